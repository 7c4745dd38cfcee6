package runc

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/bundle"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
	"github.com/roost-run/roost/internal/runtime/swapon"
)

// swapper is a swapon.Server at work, and a socket for bundles.
type swapper struct {
	*swapon.Server
	socket string
	stop   func() // ends it, as if its process had died

	mu   sync.Mutex
	told []string
}

func newSwapper(t *testing.T, d *Driver) *swapper {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "swapon-") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cg, err := d.Cgroup()
	if err != nil {
		t.Fatal(err)
	}
	s := &swapper{Server: swapon.New(cg, slog.New(slog.DiscardHandler)), socket: filepath.Join(dir, "s")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *swapper) container(dir string) swapon.Container {
	return swapon.Container{Dir: dir, Tell: func(line string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.told = append(s.told, line)
	}}
}

// swapping starts a container that does steps, and returns it with what it
// printed and its root file system.
func swapping(t *testing.T, d *Driver, s *swapper, user string, steps ...string) (c runtime.Container, printed, rootfs string) {
	t.Helper()
	cg, err := d.Cgroup()
	if err != nil {
		t.Fatal(err)
	}
	rootfs = runtimetest.Rootfs(t, runtimetest.Payload(t))
	for name, mb := range map[string]int64{"swapfile": 64, "plain": 1} {
		f, err := os.Create(filepath.Join(rootfs, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, 0, mb<<20); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "mkswap", filepath.Join(rootfs, "swapfile")).CombinedOutput(); err != nil {
		t.Fatalf("mkswap: %v: %s", err, out)
	}
	if err := os.Symlink("/../../swapfile", filepath.Join(rootfs, "link")); err != nil {
		t.Fatal(err)
	}
	c = runtime.Container{ID: fmt.Sprintf("swap-%d", ids.Add(1)), Bundle: t.TempDir()}
	err = bundle.Write(c.Bundle, bundle.Spec{
		Container: c.ID, Hostname: "box", CgroupPath: cg.Path(c.ID), Rootfs: rootfs, Listener: s.socket,
		Image:  ocispec.ImageConfig{Cmd: append([]string{"/payload", "swap"}, steps...), User: user},
		Memory: 64 * root.MiB, Swap: 16 * root.MiB, Init: "/usr/bin/tini-static",
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Add(c.ID, s.container(c.Bundle))
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.Stdout, c.Stderr = in, in
	pid, err := d.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Delete(context.WithoutCancel(t.Context()), c.ID, true); err != nil {
			t.Error(err)
		}
		_, _ = runtimetest.Wait(pid) // somebody else's test may have reaped it
	})
	if err := d.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for b := make([]byte, 512); !strings.HasSuffix(all.String(), "ready\n"); {
		n, err := out.Read(b)
		all.Write(b[:n])
		if err != nil {
			t.Fatalf("it ended: %v: %s", err, all.String())
		}
	}
	return c, all.String(), rootfs
}

// swapLimit reads what the kernel lets a container swap.
func swapLimit(t *testing.T, d *Driver, id string) root.Bytes {
	t.Helper()
	cg, err := d.Cgroup()
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) root.Bytes {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return root.Bytes(n)
	}
	if cg.Version() == 2 {
		return read(filepath.Join("/sys/fs/cgroup", cg.Path(id), "memory.swap.max"))
	}
	dir := filepath.Join("/sys/fs/cgroup/memory", cg.Path(id))
	return read(filepath.Join(dir, "memory.memsw.limit_in_bytes")) - read(filepath.Join(dir, "memory.limit_in_bytes"))
}

// hostSettings are what a container must not change.
func hostSettings(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{"/proc/swaps", "/proc/sys/vm/swappiness", "/proc/sys/vm/overcommit_memory"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name != "/proc/swaps" {
			all.Write(data)
			continue
		}
		for line := range strings.Lines(string(data)) { // others turn theirs on and off meanwhile
			if file := filepath.Base(strings.Fields(line)[0]); file == "swapfile" || file == "link" || file == "plain" {
				all.WriteString(line)
			}
		}
	}
	return all.String()
}

func blocks(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestSwapon(t *testing.T) {
	d := newDriver(t)
	s := newSwapper(t, d)
	before := hostSettings(t)
	c, printed, rootfs := swapping(t, d, s, "",
		"write:/proc/sys/vm/swappiness:10", "write:/proc/sys/vm/overcommit_memory:1",
		"on:/missing", "on:/plain", "on:/dev/null", "on:/", "on:link", "on:swapfile", "off:/plain")
	for _, want := range []string{
		"swappiness:10 <nil>\n", "overcommit_memory:1 <nil>\n",
		"on:/missing no such file", "on:/plain invalid argument", "on:/dev/null invalid argument", "on:/ invalid argument",
		"on:link <nil>\n", "on:swapfile device or resource busy", "off:/plain invalid argument",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("%q is not in what it printed:\n%s", want, printed)
		}
	}
	const swap = 64*root.MiB - 4096 // the first page is the header
	if got, want := swapLimit(t, d, c.ID), 16*root.MiB+swap; got != want {
		t.Errorf("swap limit: got %d, want %d", got, want)
	}
	if got := blocks(t, filepath.Join(rootfs, "swapfile")); got > 1<<20 {
		t.Errorf("the file still takes %d bytes of the host's disk", got)
	}
	if after := hostSettings(t); after != before {
		t.Errorf("the host: got %q, want %q", after, before)
	}
	s.mu.Lock()
	if len(s.told) != 1 || !strings.HasPrefix(s.told[0], "swapon link: 63 MB of swap") {
		t.Errorf("told: got %q", s.told)
	}
	s.mu.Unlock()

	// It outlives a suspend.
	if err := d.Freeze(c.ID); err != nil {
		t.Fatal(err)
	}
	if err := d.Thaw(c.ID); err != nil {
		t.Fatal(err)
	}
	if got, want := swapLimit(t, d, c.ID), 16*root.MiB+swap; got != want {
		t.Errorf("swap limit after a suspend: got %d, want %d", got, want)
	}

	// It outlives its server's process, whose end is seen by the container.
	s.stop()
	other := New(d.o)
	if _, err := other.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := newSwapper(t, other)
	if err := next.Restore(c.ID, next.container(c.Bundle), other.containers[c.ID].pid); err != nil {
		t.Fatal(err)
	}
	if got, want := swapLimit(t, other, c.ID), 16*root.MiB+swap; got != want {
		t.Errorf("swap limit after adoption: got %d, want %d", got, want)
	}
}

func TestSwapoff(t *testing.T) {
	d := newDriver(t)
	s := newSwapper(t, d)
	c, printed, rootfs := swapping(t, d, s, "", "on:/swapfile", "off:/swapfile", "off:/swapfile")
	if want := "on:/swapfile <nil>\noff:/swapfile <nil>\noff:/swapfile invalid argument\n"; !strings.HasPrefix(printed, want) {
		t.Errorf("it printed:\n%s", printed)
	}
	if got, want := swapLimit(t, d, c.ID), 16*root.MiB; got != want {
		t.Errorf("swap limit: got %d, want %d", got, want)
	}
	if got := blocks(t, filepath.Join(rootfs, "swapfile")); got < 64<<20 {
		t.Errorf("the file has only %d bytes on the disk, so swapon would refuse it", got)
	}
}

func TestSwaponRefused(t *testing.T) {
	d := newDriver(t)
	s := newSwapper(t, d)
	c, printed, _ := swapping(t, d, s, "", "user:1000", "on:/swapfile")
	if !strings.Contains(printed, "on:/swapfile operation not permitted\n") {
		t.Errorf("not root: it printed:\n%s", printed)
	}
	if got, want := swapLimit(t, d, c.ID), 16*root.MiB; got != want {
		t.Errorf("swap limit: got %d, want %d", got, want)
	}
}
