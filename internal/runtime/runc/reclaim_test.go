package runc

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
	"github.com/roost-run/roost/internal/runtime/swap"
)

// started runs the payload and waits until it is ready.
func started(t *testing.T, d *Driver, memory, swap root.Bytes, args ...string) (id string, pid int) {
	t.Helper()
	c := newBundle(t, d, runtimetest.Rootfs(t, runtimetest.Payload(t)), append([]string{"/payload"}, args...), memory, swap)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.Stdout, c.Stderr = w, w
	if pid, err = d.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Delete(context.WithoutCancel(t.Context()), c.ID, true); err != nil {
			t.Error(err)
		}
		if _, err := runtimetest.Wait(pid); err != nil {
			t.Error(err)
		}
	})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(patience.Deadline()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	if n, err := r.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "ready") {
		t.Fatalf("output: got %q, %v, want ready", buf[:n], err)
	}
	return c.ID, pid
}

// withSwap gives the host swap for the time of the test.
func withSwap(t *testing.T) {
	t.Helper()
	s, err := swap.Setup("file:256MB", 0, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A frozen machine's memory goes to swap without a thaw, although the machine
// itself has no swap, and comes back when it is touched.
func TestReclaim(t *testing.T) {
	withSwap(t)
	d := newDriver(t)
	const eaten = 80
	id, _ := started(t, d, 256*root.MiB, 0, "eat", fmt.Sprint(eaten))
	if err := d.Freeze(id); err != nil {
		t.Fatal(err)
	}
	before, err := d.Stats(id)
	if err != nil {
		t.Fatal(err)
	}
	if before.Anon < eaten*root.MiB || before.Swap != 0 {
		t.Fatalf("before: got %+v, want %d MB and no swap", before, eaten)
	}

	// One step only: the context ends in between.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := d.Reclaim(ctx, id, math.MaxInt64); got != 0 || err != nil {
		t.Errorf("reclaim that is called off: got %s, %v", got, err)
	}
	if got, err := d.Reclaim(t.Context(), id, 8*root.MiB); err != nil || got < 4*root.MiB || got > 16*root.MiB {
		t.Errorf("reclaim of 8 MB: got %s, %v", got, err)
	}

	start := time.Now()
	got, err := d.Reclaim(t.Context(), id, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	after, err := d.Stats(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("reclaimed %s in %s: memory %s -> %s, anon %s -> %s, swap %s", got, took, before.Memory, after.Memory, before.Anon, after.Anon, after.Swap)
	if after.Memory > 10*root.MiB || after.Swap < 60*root.MiB {
		t.Errorf("after: got %+v, want at most 10 MB resident", after)
	}
	cg, err := d.Cgroup()
	if err != nil {
		t.Fatal(err)
	}
	if frozen, err := cg.Frozen(id); err != nil || !frozen {
		t.Errorf("frozen: got %v, %v", frozen, err)
	}
	start = time.Now()
	if err := d.Thaw(id); err != nil {
		t.Fatal(err)
	}
	t.Logf("thaw: %s", time.Since(start))
	if out, code, err := execOutput(t, d, id, "/payload", "exit", "0"); err != nil || code != 0 {
		t.Errorf("exec after the thaw: got %q, %d, %v", out, code, err)
	}
}

// A running machine without swap is killed at its limit, although the host
// has swap.
func TestNoSwapWhileRunning(t *testing.T) {
	withSwap(t)
	d := newDriver(t)
	c := newBundle(t, d, runtimetest.Rootfs(t, runtimetest.Payload(t)), []string{"/payload", "eat", "120"}, 64*root.MiB, 0)
	pid, err := d.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if code, err := runtimetest.Wait(pid); err != nil || code != 137 {
		t.Errorf("exit: got %d, %v, want 137", code, err)
	}
}

// One with swap gets as much as it asked for.
func TestSwapWhileRunning(t *testing.T) {
	withSwap(t)
	d := newDriver(t)
	id, _ := started(t, d, 64*root.MiB, 128*root.MiB, "eat", "120")
	s, err := d.Stats(id)
	if err != nil {
		t.Fatal(err)
	}
	if s.Swap < 40*root.MiB || s.Memory > 64*root.MiB {
		t.Errorf("stats: got %+v, want 64 MB resident at most, the rest in swap", s)
	}
}

func execOutput(t *testing.T, d *Driver, id string, args ...string) (string, int, error) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code, err := d.Exec(t.Context(), id, execOf(f, args))
	data, rerr := os.ReadFile(f.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(data), code, err
}
