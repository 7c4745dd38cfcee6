package supervisor

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/roost-run/roost/internal/patience"
)

// Of what an earlier server process started, what it has noted is adopted, and
// what it was killed too early to note is ended.
func TestStraysEnd(t *testing.T) {
	dir := t.TempDir()
	argv := func(name string) []string { return []string{"/bin/sh", "-c", "read nothing", name, dir} }
	start := func(name string) *exec.Cmd {
		t.Helper()
		a := argv(name)
		cmd := exec.CommandContext(t.Context(), a[0], a[1:]...)
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it has ended, perhaps
			_ = cmd.Wait()         // it may be reaped already
		})
		return cmd
	}
	noted := start(childEdge)
	start(childEdge)
	c := &children{
		argv: argv, foreign: &foreign{reaper: newReaper(), log: slog.New(slog.DiscardHandler)}, paths: &paths{dir},
		log: slog.New(slog.DiscardHandler), running: map[string]childProcess{}, adopted: map[string]childProcess{},
	}
	p := childProcess{PID: noted.Process.Pid}
	p.ProcStart, p.Binary = identify(p.PID)
	data, err := json.Marshal(map[string]childProcess{childEdge: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.paths.children(), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the stray to end", func() bool {
		pids, err := running(argv(childEdge))
		return err == nil && slices.Equal(pids, []int{p.PID})
	})
	if got := c.adopted[childEdge].PID; got != p.PID {
		t.Errorf("adopted %d, want %d", got, p.PID)
	}
}
