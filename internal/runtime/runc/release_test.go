package runc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
)

// created is a container that waits, of a runc that can be taken away.
func created(t *testing.T) (d *Driver, c runtime.Container, pid int, link string) {
	t.Helper()
	binary, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	d = newDriver(t)
	link = filepath.Join(t.TempDir(), "runc")
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	d.o.Binary = link
	c = newBundle(t, d, runtimetest.Rootfs(t, runtimetest.Payload(t)), []string{"/payload", "exit", "7"}, 64*root.MiB, 0)
	if pid, err = d.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Delete(context.WithoutCancel(t.Context()), c.ID, true); err != nil {
			t.Error(err)
		}
	})
	return d, c, pid, link
}

// TestStartWithoutProcess: a start runs no process of the runtime's, and leaves
// what the runtime's own start leaves.
func TestStartWithoutProcess(t *testing.T) {
	d, c, pid, link := created(t)
	away := link + ".away"
	if err := os.Rename(link, away); err != nil {
		t.Fatal(err)
	}
	err := d.Start(t.Context(), c.ID)
	if err := os.Rename(away, link); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	code, err := runtimetest.Wait(pid)
	if err != nil || code != 7 {
		t.Errorf("exit code: got %d, %v, want 7", code, err)
	}
	if _, err := os.Stat(filepath.Join(d.stateDir(link), c.ID, execFIFO)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the FIFO: got %v, want that it is gone: the runtime would take the container for one that waits", err)
	}
	if err := d.Start(t.Context(), c.ID); err == nil {
		t.Error("it started twice")
	}
}

// TestStartOfDead: a first process that ended before it was let go is not
// waited for.
func TestStartOfDead(t *testing.T) {
	d, c, pid, _ := created(t)
	if err := d.Signal(t.Context(), c.ID, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if _, err := runtimetest.Wait(pid); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), c.ID); err == nil {
		t.Error("a container without a process started")
	}
}
