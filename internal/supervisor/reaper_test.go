package supervisor

import (
	"bytes"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/roost-run/roost/internal/patience"
)

func TestReaperCodes(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), testPayload, "exit", strconv.Itoa(i))
			cmd.Dir = t.TempDir()
			var out bytes.Buffer
			cmd.Stdout = &out
			ch, err := testReaper.Start(cmd)
			if err != nil {
				t.Error(err)
				return
			}
			code, err := testReaper.Wait(cmd, ch)
			if err != nil || code != i || out.String() != "hello\n" {
				t.Errorf("got code %d, output %q, %v, want %d", code, out.String(), err, i)
			}
		})
	}
	wg.Wait()
}

func TestReaperSignal(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "kill -9 $$")
	ch, err := testReaper.StartLocked(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-ch; e.Status != 137 {
		t.Errorf("code: got %d, want 137", e.Status)
	}
}

func TestReaperOrphan(t *testing.T) {
	t.Parallel()
	// Its grandchild becomes ours.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sh -c 'sleep 0.2; exit 5' >/dev/null & echo $!")
	var out bytes.Buffer
	cmd.Stdout = &out
	ch, err := testReaper.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := testReaper.Wait(cmd, ch); err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if e := patience.Receive(t, "the exit of the orphan", testReaper.watch(pid)); e.Status != 5 {
		t.Errorf("code: got %d, want 5", e.Status)
	}
}

func TestReaperStartFails(t *testing.T) {
	t.Parallel()
	if _, err := testReaper.Start(exec.CommandContext(t.Context(), "/nonexistent")); err == nil {
		t.Error("got no error")
	}
	if _, err := testReaper.StartLocked(exec.CommandContext(t.Context(), "/nonexistent")); err == nil {
		t.Error("locked: got no error")
	}
}
