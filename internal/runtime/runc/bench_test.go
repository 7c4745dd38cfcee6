package runc

import (
	"os"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
	"github.com/roost-run/roost/internal/runtime/swapon"
)

// BenchmarkStart is what a wake of a stopped machine costs in the runtime:
// create, and start until the first process has been let go.
func BenchmarkStart(b *testing.B) {
	d := newDriver(b)
	rootfs := runtimetest.Rootfs(b, runtimetest.Payload(b))
	for b.Loop() {
		b.StopTimer()
		c := newBundle(b, d, rootfs, []string{"/payload", "sleep"}, 64*root.MiB, 0)
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		c.Stdout, c.Stderr = null, null
		b.StartTimer()
		pid, err := d.Create(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Start(b.Context(), c.ID); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := d.Delete(b.Context(), c.ID, true); err != nil {
			b.Fatal(err)
		}
		if _, err := runtimetest.Wait(pid); err != nil {
			b.Fatal(err)
		}
		if err := null.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkThaw is the kernel's part of waking a suspended machine.
func BenchmarkThaw(b *testing.B) {
	d := newDriver(b)
	c := newBundle(b, d, runtimetest.Rootfs(b, runtimetest.Payload(b)), []string{"/payload", "sleep"}, 64*root.MiB, 0)
	pid, err := d.Create(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	if err := d.Start(b.Context(), c.ID); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		if err := d.Freeze(c.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := d.Thaw(c.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := d.Delete(b.Context(), c.ID, true); err != nil {
		b.Fatal(err)
	}
	if _, err := runtimetest.Wait(pid); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOwnSettings is what it adds to a start that a container may turn on
// swap of its own.
func BenchmarkOwnSettings(b *testing.B) {
	d := newDriver(b)
	c := newBundle(b, d, runtimetest.Rootfs(b, runtimetest.Payload(b)), []string{"/payload", "sleep"}, 64*root.MiB, 0)
	pid, err := d.Create(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() { // one over the other
		if err := swapon.OwnSettings(pid); err != nil {
			b.Fatal(err)
		}
	}
	if err := d.Delete(b.Context(), c.ID, true); err != nil {
		b.Fatal(err)
	}
	if _, err := runtimetest.Wait(pid); err != nil {
		b.Fatal(err)
	}
}
