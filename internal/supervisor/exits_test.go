package supervisor

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/patience"
)

// orphan starts a process that is a child of another one. It does what script
// says once end is called.
func orphan(t *testing.T, script string) (pid int, st procStat, end func()) {
	t.Helper()
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	// For reading, too: then it opens without a reader, and keeps what is written.
	w, err := os.OpenFile(gate, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	end = func() {
		t.Helper()
		if _, err := w.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
	}
	// Its parent lives on, so that it does not become ours.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `sh -c 'read go <"$GATE"; `+script+`' >/dev/null & echo $!; exec >&-; wait; exec sleep 1000`)
	cmd.Env = append(os.Environ(), "GATE="+gate)
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
	return pid, st, end
}

func TestForeignExitCodes(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]int{"exit 6": 6, "kill -9 $$": 137} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			w := &foreign{reaper: testReaper, log: slog.New(slog.DiscardHandler)}
			pid, st, end := orphan(t, script)
			ch, err := w.watch(t.Context(), pid, st.startedAt)
			if err != nil {
				t.Fatal(err)
			}
			end()
			if code := patience.Receive(t, "the exit", ch); code != want {
				t.Errorf("code: got %d, want %d", code, want)
			}
		})
	}
}

// TestConnector: on kernels before 6.15 it is the only way.
func TestConnector(t *testing.T) {
	t.Parallel()
	w := &foreign{reaper: testReaper, log: slog.New(slog.DiscardHandler)}
	pid, _, end := orphan(t, "exit 6")
	ch := w.listen(t.Context(), pid)
	defer w.unlisten(pid)
	if w.stop == nil {
		t.Fatal("the kernel has no process events (CONFIG_PROC_EVENTS), or this is not the first process namespace")
	}
	end()
	if got := exitCode(unix.WaitStatus(patience.Receive(t, "the exit", ch))); got != 6 {
		t.Errorf("code: got %d, want 6", got)
	}
}

func TestForeignRefusesAnother(t *testing.T) {
	t.Parallel()
	w := &foreign{reaper: testReaper, log: slog.New(slog.DiscardHandler)}
	pid, st, _ := orphan(t, "exit 0")
	if _, err := w.watch(t.Context(), pid, st.startedAt+1); err == nil {
		t.Error("got no error for a process with the number of an ended one")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
