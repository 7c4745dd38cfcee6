package supervisor

import (
	"bytes"
	"log/slog"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// orphan starts a process that is a child of another one; kill ends it.
func orphan(t *testing.T, script string) (pid int, st procStat) {
	t.Helper()
	// Its parent lives on, so that it does not become ours.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sh -c '"+script+"' >/dev/null & echo $!; exec >&-; wait; sleep 60")
	var out bytes.Buffer
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ch, err := testReaper.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ch
	})
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(out.String())); err != nil {
		t.Fatal(err)
	}
	if st, err = readStat(pid); err != nil {
		t.Fatal(err)
	}
	return pid, st
}

func TestForeignExitCodes(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]int{"sleep 0.3; exit 6": 6, "sleep 0.3; kill -9 $$": 137} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			w := &foreign{reaper: testReaper, log: slog.New(slog.DiscardHandler)}
			pid, st := orphan(t, script)
			ch, err := w.watch(t.Context(), pid, st.startedAt)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case code := <-ch:
				if code != want {
					t.Errorf("code: got %d, want %d", code, want)
				}
			case <-time.After(deadline):
				t.Error("no exit seen")
			}
		})
	}
}

// TestConnector: on kernels before 6.15 it is the only way.
func TestConnector(t *testing.T) {
	t.Parallel()
	w := &foreign{reaper: testReaper, log: slog.New(slog.DiscardHandler)}
	pid, _ := orphan(t, "sleep 0.3; exit 6")
	ch := w.listen(t.Context(), pid)
	defer w.unlisten(pid)
	if w.stop == nil {
		t.Fatal("the kernel has no process events (CONFIG_PROC_EVENTS), or this is not the first process namespace")
	}
	select {
	case status := <-ch:
		if got := exitCode(unix.WaitStatus(status)); got != 6 {
			t.Errorf("code: got %d, want 6", got)
		}
	case <-time.After(deadline):
		t.Error("no exit reported")
	}
}

func TestForeignRefusesAnother(t *testing.T) {
	t.Parallel()
	w := &foreign{reaper: testReaper, log: slog.New(slog.DiscardHandler)}
	pid, st := orphan(t, "sleep 60")
	if _, err := w.watch(t.Context(), pid, st.startedAt+1); err == nil {
		t.Error("got no error for a process with the number of an ended one")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
