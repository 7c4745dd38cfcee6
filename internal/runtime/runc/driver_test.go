package runc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/bundle"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
)

func TestMain(m *testing.M) {
	// Containers become children of this process, as they do of the supervisor.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "child subreaper:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestDriver(t *testing.T) {
	runtimetest.Suite(t, newFixture)
}

var parents atomic.Int64

// newDriver makes a driver with state and a control group of its own.
func newDriver(tb testing.TB) *Driver {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Fatal("this test needs root: it runs containers")
	}
	d := New(Options{
		Binary:       os.Getenv("ROOST_TEST_RUNTIME"),
		Root:         filepath.Join(tb.TempDir(), "state"),
		CgroupParent: fmt.Sprintf("/roost-test-%d-%d", os.Getpid(), parents.Add(1)),
	})
	tb.Cleanup(func() {
		cg, err := d.Cgroup()
		if err != nil {
			tb.Error(err)
			return
		}
		list, err := d.List(context.WithoutCancel(tb.Context()))
		if err != nil {
			tb.Error(err)
		}
		for _, c := range list {
			if err := d.Delete(context.WithoutCancel(tb.Context()), c.ID, true); err != nil {
				tb.Error(err)
			}
		}
		if err := cg.Remove(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

func newFixture(t *testing.T) runtimetest.Fixture {
	t.Helper()
	d := newDriver(t)
	return runtimetest.Fixture{Driver: d, Bundle: func(t *testing.T, rootfs string, args []string, memory root.Bytes) runtime.Container {
		t.Helper()
		return newBundle(t, d, rootfs, args, memory, 0)
	}}
}

var ids atomic.Int64

func newBundle(tb testing.TB, d *Driver, rootfs string, args []string, memory, swap root.Bytes) runtime.Container {
	tb.Helper()
	cg, err := d.Cgroup()
	if err != nil {
		tb.Fatal(err)
	}
	c := runtime.Container{ID: fmt.Sprintf("c%d", ids.Add(1)), Bundle: tb.TempDir()}
	err = bundle.Write(c.Bundle, bundle.Spec{
		Container: c.ID, Hostname: "machine", CgroupPath: cg.Path(c.ID), Rootfs: rootfs,
		Image:  ocispec.ImageConfig{Cmd: args, Env: []string{"FROM_BUNDLE=1"}},
		Memory: memory, Swap: swap, CPUShares: 64, Init: "/usr/bin/tini-static",
	})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func execOf(out *os.File, args []string) runtime.Exec {
	return runtime.Exec{Args: args, Stdout: out, Stderr: out}
}

// newNamespace makes a network namespace, as each machine has one.
func newNamespace(tb testing.TB) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), file, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
	return file
}
