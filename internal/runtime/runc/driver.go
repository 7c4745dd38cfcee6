// Package runc is the runtime.Driver over an OCI runtime binary: runc, crun,
// runsc, or what else speaks runc's command line. Containers are created and
// executed by the binary; freezing, reclaiming, measuring and, where the
// processes are the kernel's own, signalling go to the kernel directly, since
// starting a process for them would cost more than the work.
//
// Child processes are started through go-runc's package variable Monitor,
// which a process that reaps all its children replaces by its own.
//
// The supervisor is the only user in production. The driver starts goroutines
// only within calls and waits for them.
package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	gorunc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/bundle"
	"github.com/roost-run/roost/internal/runtime/cgroup"
	"github.com/roost-run/roost/internal/runtime/swapon"
)

const (
	// cleanupTimeout is for what has to happen although the caller has gone.
	cleanupTimeout = 20 * time.Second
	// killTimeout is for the kernel to end killed processes, which may first
	// have to finish a system call.
	killTimeout = 10 * time.Second
)

// Options of a Driver.
type Options struct {
	Binary       string // OCI runtime of containers that name none; "" is "runc"
	Root         string // directory for the runtimes' own state; gone after a reboot
	CgroupParent string // control group of all containers, from the root of the hierarchies
	Log          *slog.Logger
	// Nudge, if set, wakes the given processes of a container that has thawed
	// and that one main process watches; see thaw.go. It returns those that it
	// can wake, if they wait as it expects; end is called once they have run.
	Nudge func(ctx context.Context, id string, pids []int) (sharers []int, end func())
}

// Driver implements runtime.Driver.
type Driver struct {
	o       Options
	cgroups func() (*cgroup.Parent, error)

	mu         sync.Mutex
	containers map[string]*container

	held heldMasters
}

// container is what the driver remembers of one that exists. It does not
// change after it is made.
type container struct {
	binary string
	bundle string
	pid    int
	pidfd  *os.File // of the first process, so that no stranger is ever signalled
}

var _ runtime.Driver = (*Driver)(nil)

// New makes a driver; it touches nothing until it is used.
func New(o Options) *Driver {
	if o.Binary == "" {
		o.Binary = "runc"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		o:          o,
		cgroups:    sync.OnceValues(func() (*cgroup.Parent, error) { return cgroup.Open(o.CgroupParent) }),
		containers: map[string]*container{},
	}
}

// Cgroup is the parent of all containers. The first call, of this or any
// other method, creates it.
func (d *Driver) Cgroup() (*cgroup.Parent, error) { return d.cgroups() }

// Create implements runtime.Driver.
func (d *Driver) Create(ctx context.Context, c runtime.Container) (pid int, err error) {
	cg, err := d.cgroups()
	if err != nil {
		return 0, err
	}
	spec, err := bundle.Read(c.Bundle)
	if err != nil {
		return 0, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	if spec.Linux == nil || spec.Linux.CgroupsPath != cg.Path(c.ID) {
		return 0, fmt.Errorf("create container %s: its bundle is not for the control group %s", c.ID, cg.Path(c.ID))
	}
	binary := c.Runtime
	if binary == "" {
		binary = d.o.Binary
	}
	if _, err := d.find(c.ID); err == nil {
		return 0, root.Errorf(root.Conflict, "container %s exists already", c.ID)
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, d.remove(ctx, c.ID, &container{binary: binary}, true))
	}()
	if pid, err = d.create(ctx, binary, c); err != nil {
		return 0, err
	}
	known, err := newContainer(binary, c.Bundle, pid)
	if err != nil {
		return 0, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	d.mu.Lock()
	d.containers[c.ID] = known
	d.mu.Unlock()
	if memory, swap := bundle.Limits(spec); memory > 0 {
		if err := cg.SetMemory(c.ID, memory, swap); err != nil {
			return 0, err
		}
	}
	if bundle.OwnSwap(spec) {
		if err := swapon.OwnSettings(pid); err != nil {
			return 0, fmt.Errorf("create container %s: %w", c.ID, err)
		}
	}
	return pid, nil
}

func (d *Driver) create(ctx context.Context, binary string, c runtime.Container) (pid int, err error) {
	pidFile := filepath.Join(c.Bundle, "pid")
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	opts := &gorunc.CreateOpts{PidFile: pidFile}
	streams := stdio{in: c.Stdin, out: c.Stdout, err: c.Stderr}
	var console *consoleSocket
	if c.Terminal != nil {
		if console, err = listenConsole(); err != nil {
			return 0, fmt.Errorf("create container %s: %w", c.ID, err)
		}
		defer func() { err = errors.Join(err, console.close()) }()
		opts.ConsoleSocket, streams = console, stdio{}
	}
	// Without files go-runc would collect the output until all who hold it
	// have ended, and the container holds it.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, null.Close()) }()
	opts.IO = streams.or(null)
	if err := d.run(ctx, binary, "create container "+c.ID, func(r *gorunc.Runc) error { return r.Create(ctx, c.ID, c.Bundle, opts) }); err != nil {
		return 0, err
	}
	if console != nil {
		master, err := console.receive()
		if err != nil {
			return 0, fmt.Errorf("create container %s: %w", c.ID, err)
		}
		c.Terminal(master)
	}
	return readPID(pidFile)
}

// Start implements runtime.Driver.
func (d *Driver) Start(ctx context.Context, id string) error {
	c, err := d.find(id)
	if err != nil {
		return err
	}
	if released, err := d.release(ctx, id, c); released || err != nil {
		return err
	}
	return d.run(ctx, c.binary, "start container "+id, func(r *gorunc.Runc) error { return r.Start(ctx, id) })
}

// Signal implements runtime.Driver. SIGKILL also thaws: a process that is
// frozen could not die.
func (d *Driver) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	c, err := d.find(id)
	if err != nil {
		return err
	}
	cg, err := d.cgroups()
	if err != nil {
		return err
	}
	switch {
	case runtime.Sandboxed(c.binary):
		err = d.run(ctx, c.binary, "signal container "+id, func(r *gorunc.Runc) error {
			return r.Kill(ctx, id, int(sig), &gorunc.KillOpts{All: all})
		})
	case all:
		err = d.signalAll(cg, id, sig)
	default:
		err = c.signal(id, sig)
	}
	if err == nil && sig == syscall.SIGKILL {
		if err = cg.Thaw(id); root.IsKind(err, root.NotFound) {
			err = nil // it has ended already
		}
	}
	return err
}

// signalAll holds on to each process before it looks again which ones are
// inside, so that a number used anew in between is never hit.
func (d *Driver) signalAll(cg *cgroup.Parent, id string, sig syscall.Signal) (err error) {
	pids, err := cg.PIDs(id)
	if err != nil {
		return err
	}
	held := map[int]*os.File{}
	defer func() {
		for _, f := range held {
			_ = f.Close() // a pidfd has nothing to lose
		}
	}()
	for _, pid := range pids {
		f, err := openPID(pid)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("signal container %s: %w", id, err)
		}
		held[pid] = f
	}
	if pids, err = cg.PIDs(id); err != nil {
		return err
	}
	sent := 0
	for _, pid := range pids {
		if held[pid] == nil {
			continue
		}
		err := unix.PidfdSendSignal(int(held[pid].Fd()), sig, nil, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal container %s: %w", id, err)
		}
		sent++
	}
	if sent == 0 {
		return root.Errorf(root.NotFound, "container %s has no processes", id)
	}
	return nil
}

// Delete implements runtime.Driver.
func (d *Driver) Delete(ctx context.Context, id string, force bool) error {
	c, err := d.find(id)
	if root.IsKind(err, root.NotFound) {
		return d.removeCgroup(id)
	}
	if err != nil {
		return err
	}
	if force {
		cg, err := d.cgroups()
		if err != nil {
			return err
		}
		// Not through the runtime, which refuses in some states.
		err = d.signalAll(cg, id, syscall.SIGKILL)
		if err == nil {
			err = cg.Thaw(id)
		}
		if err != nil && !root.IsKind(err, root.NotFound) {
			return err
		}
		if err := c.waitEnd(ctx); err != nil {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
	}
	if err := d.remove(ctx, id, c, force); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.containers, id)
	d.mu.Unlock()
	if c.pidfd != nil {
		return c.pidfd.Close()
	}
	return nil
}

func (d *Driver) remove(ctx context.Context, id string, c *container, force bool) error {
	err := d.run(ctx, c.binary, "delete container "+id, func(r *gorunc.Runc) error {
		return r.Delete(ctx, id, &gorunc.DeleteOpts{Force: force})
	})
	if err != nil && !root.IsKind(err, root.NotFound) {
		return err
	}
	return d.removeCgroup(id)
}

func (d *Driver) removeCgroup(id string) error {
	cg, err := d.cgroups()
	if err != nil {
		return err
	}
	return cg.RemoveChild(id)
}

// List implements runtime.Driver. It also takes over the containers that this
// driver did not create, which have their limits put right again: whoever
// made them may have died in the middle of a reclaim.
func (d *Driver) List(ctx context.Context) ([]runtime.Existing, error) {
	binaries, err := d.binaries()
	if err != nil {
		return nil, err
	}
	var all []runtime.Existing
	for _, binary := range binaries {
		var found []*gorunc.Container
		err := d.run(ctx, binary, "list containers", func(r *gorunc.Runc) (err error) {
			found, err = r.List(ctx)
			return err
		})
		if root.IsKind(err, root.Precondition) { // it ran nothing, or was uninstalled: the others matter
			d.o.Log.WarnContext(ctx, "containers of a missing runtime not listed", "runtime", binary, "err", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, c := range found {
			e := runtime.Existing{ID: c.ID, PID: c.Pid, Running: c.Status == "running" || c.Status == "paused"}
			if c.Status == "stopped" {
				e.PID = 0
			}
			if err := d.adopt(binary, c, e.PID); err != nil {
				d.o.Log.WarnContext(ctx, "container taken over in part", "container", c.ID, "err", err)
			}
			all = append(all, e)
		}
	}
	return all, nil
}

func (d *Driver) adopt(binary string, c *gorunc.Container, pid int) error {
	d.mu.Lock()
	_, known := d.containers[c.ID]
	d.mu.Unlock()
	if known {
		return nil
	}
	cg, err := d.cgroups()
	if err != nil {
		return err
	}
	a := &container{binary: binary, bundle: c.Bundle}
	if pid != 0 {
		if a, err = newContainer(binary, c.Bundle, pid); err != nil {
			return err
		}
		// It may have ended, and its number be somebody else's by now.
		if pids, err := cg.PIDs(c.ID); err != nil || !slices.Contains(pids, pid) {
			return errors.Join(err, fmt.Errorf("process %d is not in it", pid), a.pidfd.Close())
		}
	}
	d.mu.Lock()
	d.containers[c.ID] = a
	d.mu.Unlock()
	spec, err := bundle.Read(c.Bundle)
	if err != nil {
		return err
	}
	if memory, swap := bundle.Limits(spec); memory > 0 && pid != 0 {
		return cg.SetMemory(c.ID, memory, swap)
	}
	return nil
}

// Freeze implements runtime.Driver.
func (d *Driver) Freeze(id string) error {
	cg, err := d.cgroups()
	if err != nil {
		return err
	}
	d.held.wait(id)
	return cg.Freeze(id)
}

// Thaw implements runtime.Driver: children run before a main process that
// watches them, which may go on a little after Thaw has returned.
func (d *Driver) Thaw(id string) error {
	cg, err := d.cgroups()
	if err != nil {
		return err
	}
	pids, err := cg.PIDs(id)
	if err != nil {
		return err
	}
	d.held.wait(id)
	var m *master
	if frozen, err := cg.Frozen(id); err == nil && frozen { // else nobody is overdue
		m = holdMaster(pids)
	}
	err = cg.Thaw(id)
	if m != nil {
		d.held.release(id, m, &d.o)
	}
	return err
}

// Close returns when no main process is held back any more, which would stand
// still until the next driver of its container. Nothing may thaw meanwhile.
func (d *Driver) Close() { d.held.waitAll() }

// Reclaim implements runtime.Driver.
func (d *Driver) Reclaim(ctx context.Context, id string, amount root.Bytes) (root.Bytes, error) {
	cg, err := d.cgroups()
	if err != nil {
		return 0, err
	}
	return cg.Reclaim(ctx, id, amount)
}

// Stats implements runtime.Driver.
func (d *Driver) Stats(id string) (runtime.Stats, error) {
	cg, err := d.cgroups()
	if err != nil {
		return runtime.Stats{}, err
	}
	return cg.Stats(id)
}

// PIDs implements runtime.Driver.
func (d *Driver) PIDs(id string) ([]int, error) {
	cg, err := d.cgroups()
	if err != nil {
		return nil, err
	}
	return cg.PIDs(id)
}

// Each runtime keeps its state in a directory named after its binary, so that
// List knows whom to ask after a restart.
func (d *Driver) stateDir(binary string) string {
	return filepath.Join(d.o.Root, url.PathEscape(binary))
}

func (d *Driver) binaries() ([]string, error) {
	entries, err := os.ReadDir(d.o.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, err := url.PathUnescape(e.Name()); err == nil && e.IsDir() {
			names = append(names, name)
		}
	}
	return names, nil
}

// find returns a container that this driver created or took over, or one that
// exists without; NotFound if there is none.
func (d *Driver) find(id string) (*container, error) {
	d.mu.Lock()
	c := d.containers[id]
	d.mu.Unlock()
	if c != nil {
		return c, nil
	}
	binaries, err := d.binaries()
	if err != nil {
		return nil, err
	}
	for _, binary := range binaries {
		// runsc keeps files that begin with the id, the others a directory.
		for _, pattern := range []string{id, id + "_sandbox:*"} {
			if m, err := filepath.Glob(filepath.Join(d.stateDir(binary), pattern)); err == nil && len(m) > 0 {
				return &container{binary: binary}, nil
			}
		}
	}
	return nil, root.Errorf(root.NotFound, "container %s does not exist", id)
}

func newContainer(binary, bundle string, pid int) (*container, error) {
	fd, err := openPID(pid)
	if err != nil {
		return nil, err
	}
	return &container{binary: binary, bundle: bundle, pid: pid, pidfd: fd}, nil
}

func openPID(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)), nil
}

func (c *container) signal(id string, sig syscall.Signal) error {
	if c.pidfd == nil {
		return root.Errorf(root.NotFound, "container %s has no processes", id)
	}
	err := unix.PidfdSendSignal(int(c.pidfd.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return root.Errorf(root.NotFound, "container %s has no processes", id)
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

// waitEnd waits for the first process to end; whether its parent has reaped
// it does not matter.
func (c *container) waitEnd(ctx context.Context) error {
	if c.pidfd == nil {
		return nil
	}
	deadline := time.Now().Add(killTimeout)
	fds := []unix.PollFd{{Fd: int32(c.pidfd.Fd()), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		n, err := unix.Poll(fds, 50) // milliseconds, to notice ctx
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case time.Now().After(deadline):
			return root.Errorf(root.Unavailable, "process %d was killed but has not ended within %s", c.pid, killTimeout)
		}
	}
	return context.Cause(ctx)
}

func readPID(name string) (int, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("read %s: %q is not a process id", name, data)
	}
	return pid, nil
}
