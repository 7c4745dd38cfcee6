package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The children, by the name of their command.
const (
	childEdge    = "edge"
	childControl = "control"
	childBuilder = "builder"
)

const (
	// The first restart comes at once, later ones wait, up to maxBackoff; a
	// child that ran for steadyAfter begins anew.
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 5 * time.Second
	steadyAfter = 10 * time.Second
	// childGrace is what a child has to end after SIGTERM: the edge drains.
	childGrace = 15 * time.Second
)

// paths are the supervisor's own files.
type paths struct{ run string }

func (p *paths) children() string { return filepath.Join(p.run, "children.json") }

// figuresLog is what lxcfs says.
func (p *paths) figuresLog() string { return filepath.Join(p.run, "lxcfs.log") }

// children starts edge, control and builder and keeps the first two running.
type children struct {
	argv    func(name string) []string
	reaper  *reaper
	foreign *foreign
	within  map[string]func(func() error) error // where a child is started, if not here; guarded by mu
	paths   *paths
	log     *slog.Logger

	mu      sync.Mutex
	stop    context.CancelFunc // ends keepAll; nil before it began
	done    chan struct{}      // closed when keepAll has ended
	running map[string]childProcess
	adopted map[string]childProcess // found running; keep takes them over
}

// childProcess is a running child, as its file names it.
type childProcess struct {
	PID       int
	ProcStart uint64
	Binary    uint64 // inode of the program: another one after an upgrade

	exited <-chan int // code, -1 unknown; gets one value
}

// keepAll runs edge and control until ctx ends or stopAll is called.
func (c *children) keepAll(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	defer close(done)
	c.mu.Lock()
	c.stop, c.done = stop, done
	c.mu.Unlock()
	var both sync.WaitGroup
	for _, name := range []string{childControl, childEdge} {
		both.Go(func() { c.keep(ctx, name) })
	}
	both.Wait()
}

// keep runs a child, again whenever it ends, until ctx ends; then it ends the
// child and waits for it.
func (c *children) keep(ctx context.Context, name string) {
	backoff := time.Duration(0)
	for {
		begin := time.Now()
		p, err := c.startOrAdopt(name)
		switch {
		case err != nil:
			c.log.Error("child not started", "child", name, "err", err)
		default:
			code, ended := c.watch(ctx, name, p)
			if !ended {
				if !errors.Is(context.Cause(ctx), errUpgrade) {
					c.terminate(name, p)
				}
				return
			}
			c.log.Warn("child ended, starting it again", "child", name, "pid", p.PID, "code", code, "after", time.Since(begin).Round(time.Millisecond))
		}
		if time.Since(begin) > steadyAfter {
			backoff = 0
		}
		if backoff > 0 && wait(ctx, nil, backoff) != nil {
			return
		}
		backoff = min(max(2*backoff, minBackoff), maxBackoff)
		if ctx.Err() != nil {
			return
		}
	}
}

// watch waits for the child's end, or ctx's.
func (c *children) watch(ctx context.Context, name string, p childProcess) (code int, ended bool) {
	select {
	case code := <-p.exited:
		c.set(name, nil)
		return code, true
	case <-ctx.Done():
		return 0, false
	}
}

func (c *children) startOrAdopt(name string) (childProcess, error) {
	if p, ok := c.takeAdopted(name); ok {
		return p, nil
	}
	return c.start(name)
}

// takeAdopted hands out, once, the child that was found running.
func (c *children) takeAdopted(name string) (childProcess, bool) {
	c.mu.Lock()
	p, ok := c.adopted[name]
	delete(c.adopted, name)
	c.mu.Unlock()
	if ok {
		c.set(name, &p)
		c.log.Info("child adopted", "child", name, "pid", p.PID)
	}
	return p, ok
}

func (c *children) start(name string) (childProcess, error) {
	argv := c.argv(name)
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it may outlive this process and its contexts
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if name == childLXCFS {
		// It tells twenty lines of itself that nobody has asked for. A file, as it
		// may outlive this process and whatever would read a pipe.
		said, err := os.Create(c.paths.figuresLog())
		if err != nil {
			return childProcess{}, fmt.Errorf("start %s: %w", name, err)
		}
		defer func() { _ = said.Close() }() // the child has its own
		cmd.Stdout, cmd.Stderr = said, said
	}
	// Its own group: a terminal's interrupt is for the server to pass on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if name == childBuilder {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS // what builds mount is seen by them alone, and goes with them
	}
	exited := make(chan int, 1)
	pid := 0
	begin := func() error {
		ch, err := c.reaper.Start(cmd)
		if err != nil {
			return err
		}
		pid = cmd.Process.Pid
		go func() {
			e := <-ch
			_ = cmd.Process.Release() // reaped; only the handle is left
			exited <- e.Status
		}()
		return nil
	}
	c.mu.Lock()
	in := c.within[name]
	c.mu.Unlock()
	if in == nil {
		in = func(f func() error) error { return f() }
	}
	if err := in(begin); err != nil {
		return childProcess{}, fmt.Errorf("start %s: %w", name, err)
	}
	p := childProcess{PID: pid, exited: exited}
	p.ProcStart, p.Binary = identify(p.PID)
	c.set(name, &p)
	c.log.Info("child started", "child", name, "pid", p.PID)
	return p, nil
}

// setWithin says where a child is started from now on.
func (c *children) setWithin(name string, in func(func() error) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.within[name] = in
}

func identify(pid int) (procStart, binary uint64) {
	if st, err := readStat(pid); err == nil {
		procStart = st.startedAt
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err == nil {
		binary = st.Ino
	}
	return procStart, binary
}

// set notes what runs, here and for the next server process; nil: nothing.
func (c *children) set(name string, p *childProcess) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p == nil {
		delete(c.running, name)
	} else {
		c.running[name] = *p
	}
	if err := writeVolatile(c.paths.children(), c.running); err != nil {
		c.log.Error("children not saved for adoption", "err", err)
	}
}

// terminate ends a child, by force if it does not go by itself.
func (c *children) terminate(name string, p childProcess) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(p.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			c.log.Error("child not signalled", "child", name, "pid", p.PID, "err", err)
		}
		t := time.NewTimer(childGrace)
		select {
		case <-p.exited:
			t.Stop()
			c.set(name, nil)
			return
		case <-t.C:
			c.log.Warn("child does not end", "child", name, "pid", p.PID, "signal", unix.SignalName(sig))
		}
	}
}

// end ends a child that was found running, before keepAll takes it over.
func (c *children) end(name string) {
	if p, ok := c.takeAdopted(name); ok {
		c.terminate(name, p)
	}
}

// pids lists what runs.
func (c *children) pids() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]int, len(c.running))
	for name, p := range c.running {
		out[name] = p.PID
	}
	return out
}

// renew ends those adopted children that run with another configuration or
// another binary; keep then starts them anew. New connections wait meanwhile.
func (c *children) renew(changed bool) {
	_, own := identify(os.Getpid())
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, p := range c.adopted {
		if !changed && p.Binary == own || name == childLXCFS {
			continue
		}
		c.log.Info("child has another configuration or binary, it is started anew", "child", name, "pid", p.PID)
		if err := unix.Kill(p.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			c.log.Error("child not signalled", "child", name, "pid", p.PID, "err", err)
		}
	}
}

// stopAll ends edge and control for good and waits for it.
func (c *children) stopAll() {
	c.mu.Lock()
	stop, done := c.stop, c.done
	c.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	<-done
}
