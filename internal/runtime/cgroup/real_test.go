package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

// These tests use the host's own control groups, of whichever version; they
// pass on both.

// newParent makes a parent and one child, as an OCI runtime would.
func newParent(t *testing.T) (*Parent, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it makes control groups")
	}
	p, err := Open(fmt.Sprintf("roost-test-cgroup-%d-%s", os.Getpid(), t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
	})
	const id = "child"
	for _, dir := range dirs(p, id) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := errors.Join(p.RemoveChild(id), p.RemoveChild(id)); err != nil { // idempotent
			t.Error(err)
		}
	})
	return p, id
}

// join runs a command inside a group.
func join(t *testing.T, p *Parent, id string, args ...string) *exec.Cmd {
	t.Helper()
	// The shell moves itself, so that what it runs is inside from its start.
	var script strings.Builder
	for _, dir := range dirs(p, id) {
		script.WriteString("echo $$ > " + filepath.Join(dir, "cgroup.procs") + " || exit 9; ")
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", script.String() + `exec "$@"`, "sh"}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Thaw(id); err != nil {
			t.Error(err)
		}
		pids, err := p.PIDs(id)
		if err != nil {
			t.Error(err)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		_ = cmd.Wait() // the kill's status
	})
	return cmd
}

func dirs(p *Parent, id string) []string {
	switch h := p.h.(type) {
	case v1:
		var all []string
		for _, c := range []string{"memory", "pids", "cpu", "cpuacct", "freezer"} {
			all = append(all, h.dir(c, p.Path(id)))
		}
		return all
	case v2:
		return []string{h.dir(p.Path(id))}
	}
	return nil
}

func TestRealLimits(t *testing.T) {
	p, id := newParent(t)
	if err := p.SetLimit(300 * root.MiB); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Limit(); err != nil || got != 300*root.MiB {
		t.Errorf("limit: got %s, %v, want 300 MB", got, err)
	}
	if free, err := p.Free(); err != nil || free > 300*root.MiB || free < 250*root.MiB {
		t.Errorf("free: got %s, %v, want nearly 300 MB", free, err)
	}
	// Up, down, and up again: neither order of writing may fail.
	for _, mib := range []root.Bytes{64, 256, 32, 128} {
		if err := p.SetMemory(id, mib*root.MiB, mib*root.MiB/2); err != nil {
			t.Errorf("limit of %d MB: %v", mib, err)
		}
		if _, limit, err := p.h.memory(p.Path(id)); err != nil || limit != mib*root.MiB {
			t.Errorf("limit: got %s, %v, want %d MB", limit, err, mib)
		}
	}
	if got, err := p.Children(); err != nil || len(got) != 1 || got[0] != id {
		t.Errorf("children: got %v, %v", got, err)
	}
}

func TestRealFreeze(t *testing.T) {
	p, id := newParent(t)
	cmd := join(t, p, id, "sleep", "600")
	patience.Until(t, "the process is inside", func() bool {
		pids, err := p.PIDs(id)
		return err == nil && len(pids) == 1 && pids[0] == cmd.Process.Pid
	})
	if frozen, err := p.Frozen(id); err != nil || frozen {
		t.Errorf("frozen before: got %v, %v", frozen, err)
	}
	if err := p.Freeze(id); err != nil {
		t.Fatal(err)
	}
	if frozen, err := p.Frozen(id); err != nil || !frozen {
		t.Errorf("frozen: got %v, %v", frozen, err)
	}
	if err := p.Thaw(id); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "it is thawed", func() bool { frozen, err := p.Frozen(id); return err == nil && !frozen })
	s, err := p.Stats(id)
	if err != nil || s.Processes != 1 || s.Memory <= 0 {
		t.Errorf("stats: got %+v, %v", s, err)
	}
}

func TestRealOOM(t *testing.T) {
	p, id := newParent(t)
	if err := p.SetMemory(id, 8*root.MiB, 0); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("seen")
	wctx, seen := context.WithCancelCause(patience.Context(t))
	defer seen(nil)
	watching := make(chan error, 1)
	go func() { watching <- p.WatchOOM(wctx, id, func(kills uint64) { seen(stop) }) }()
	// tail keeps all of a line that never ends.
	join(t, p, id, "tail", "/dev/zero")
	if err := <-watching; !errors.Is(err, stop) {
		t.Errorf("watch: got %v, want an event", err)
	}
	if s, err := p.Stats(id); err != nil || s.OOMKills == 0 {
		t.Errorf("stats: got %+v, %v, want kills for memory", s, err)
	}
}

// File cache can be reclaimed without any swap; a context that ends stops it.
func TestRealReclaim(t *testing.T) {
	p, id := newParent(t)
	if err := p.SetMemory(id, 256*root.MiB, 0); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "data")
	const size = 64
	cmd := join(t, p, id, "sh", "-c", "dd if=/dev/zero of="+name+" bs=1M count="+strconv.Itoa(size)+" conv=fsync 2>/dev/null; sleep 600")
	patience.Until(t, "the cache is there", func() bool {
		s, err := p.Stats(id)
		pids, perr := p.PIDs(id)
		return err == nil && perr == nil && s.Memory >= size*root.MiB && len(pids) == 2 && slices.Contains(pids, cmd.Process.Pid)
	})
	patience.Until(t, "it is written", func() bool {
		pids, err := p.PIDs(id)
		return err == nil && slices.ContainsFunc(pids, func(pid int) bool {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return err == nil && string(comm) == "sleep\n"
		})
	})
	if err := p.Freeze(id); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := p.Reclaim(ctx, id, size*root.MiB); got != 0 || err != nil {
		t.Errorf("reclaim that is called off: got %s, %v", got, err)
	}
	if got, err := p.Reclaim(t.Context(), id, size*root.MiB); err != nil || got < size*root.MiB*3/4 {
		t.Errorf("reclaim: got %s, %v, want about %d MB", got, err, size)
	}
	if _, limit, err := p.h.memory(p.Path(id)); err != nil || limit != 256*root.MiB {
		t.Errorf("limit after it: got %s, %v, want 256 MB", limit, err)
	}
	if frozen, err := p.Frozen(id); err != nil || !frozen {
		t.Errorf("frozen: got %v, %v", frozen, err)
	}
}

// TestRealJoin: a group of the platform's own has limits, of processes too, and
// goes with what is in it.
func TestRealJoin(t *testing.T) {
	p, _ := newParent(t)
	const group = "builds"
	t.Cleanup(func() {
		if err := p.RemoveGroup(group); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", "inf")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // the kill's status
	})
	if err := p.Join(group, cmd.Process.Pid, 64*root.MiB); err != nil {
		t.Fatal(err)
	}
	if _, limit, err := p.h.memory(p.Path(group)); err != nil || limit != 64*root.MiB {
		t.Errorf("memory: got %s, %v, want 64 MB", limit, err)
	}
	var limits []string
	for _, dir := range dirs(p, group) {
		data, err := os.ReadFile(filepath.Join(dir, "pids.max"))
		if errors.Is(err, os.ErrNotExist) { // another controller's hierarchy
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		limits = append(limits, strings.TrimSpace(string(data)))
	}
	if want := []string{"8192"}; !slices.Equal(limits, want) {
		t.Errorf("processes: got %v, want %v", limits, want)
	}
	if err := p.RemoveGroup(group); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the group went, what was in it stayed")
	}
}
