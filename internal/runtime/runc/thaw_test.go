package runc

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/roost-run/roost/internal/patience"
)

// TestMasterHeldBack: a main process goes on when the nudge of those that it
// watches is over, and that ends after they have run.
func TestMasterHeldBack(t *testing.T) {
	start := func(command string, args ...string) int {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), command, args...)
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it says that it was killed
		})
		return cmd.Process.Pid
	}
	state := func(pid int) string {
		s, _, _ := readStat(fmt.Sprintf("/proc/%d/stat", pid))
		return s
	}
	main := start("sleep", "3600")
	works, waits := start("sh", "-c", "while :; do :; done"), start("cat")
	patience.Until(t, "one works and one waits", func() bool {
		w, _ := readCPU(waits)
		b, _ := readCPU(works)
		return w.asleep && b.ran > 0
	})
	if err := syscall.Kill(main, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the main process to stop", func() bool { return state(main) == "T" })

	var did []string
	var before cpuTime
	m := &master{pid: main, others: map[int]cpuTime{works: {}, waits: {}}}
	err := m.release(func(ctx context.Context, pids []int) (sharers []int, end func()) {
		did = append(did, "nudge, main "+state(main))
		if _, bounded := ctx.Deadline(); !bounded || len(pids) != 2 {
			t.Errorf("nudged %v, bounded %t, want both and a bound", pids, bounded)
		}
		before, _ = readCPU(works)
		return []int{works, waits}, func() {
			did = append(did, "end, main "+state(main))
			if ctx.Err() != nil {
				return // a host that is too busy: it goes on with what it has
			}
			if now, _ := readCPU(works); now.ran == before.ran {
				t.Error("the nudge ended before the worker had run")
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"nudge, main T", "end, main T"}; !slices.Equal(did, want) {
		t.Errorf("got %q, want %q", did, want)
	}
	patience.Until(t, "the main process to go on", func() bool { return state(main) == "S" })
}
