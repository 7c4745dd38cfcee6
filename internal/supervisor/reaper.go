package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// unclaimedFor is how long the exit of a process that nobody watches yet is
// kept: a container's first process may end before the runtime has said which
// one it is. Process ids do not come round in that time.
const unclaimedFor = 10 * time.Second

// reaper waits for every child of this process, those it inherits as
// subreaper included. Nothing else in the process may wait for children, so
// every child is started through it. It is go-runc's ProcessMonitor, and safe
// for concurrent use.
type reaper struct {
	// starting is held for reading from before a child exists until it is in
	// watched, so that its exit finds it there.
	starting sync.RWMutex

	mu        sync.Mutex
	watched   map[int]chan runc.Exit
	unclaimed map[int]runc.Exit
}

func newReaper() *reaper {
	return &reaper{watched: map[int]chan runc.Exit{}, unclaimed: map[int]runc.Exit{}}
}

// becomeSubreaper makes orphans below this process its children.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become child subreaper: %w", err)
	}
	return nil
}

// run reaps until ctx ends.
func (r *reaper) run(ctx context.Context) {
	sig := make(chan os.Signal, 1) // one pending is enough: each leads to a full round
	signal.Notify(sig, syscall.SIGCHLD)
	defer signal.Stop(sig)
	for {
		r.reap()
		select {
		case <-ctx.Done():
			return
		case <-sig:
		}
	}
}

func (r *reaper) reap() {
	r.starting.Lock()
	defer r.starting.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || pid <= 0:
			return
		}
		r.ended(runc.Exit{Timestamp: time.Now(), Pid: pid, Status: exitCode(ws)})
	}
}

func (r *reaper) ended(e runc.Exit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.watched[e.Pid]; ch != nil {
		delete(r.watched, e.Pid)
		ch <- e
		close(ch)
		return
	}
	for pid, old := range r.unclaimed {
		if e.Timestamp.Sub(old.Timestamp) > unclaimedFor {
			delete(r.unclaimed, pid)
		}
	}
	r.unclaimed[e.Pid] = e
}

// watch returns a channel that gets the exit of pid, a child or one to be
// inherited.
func (r *reaper) watch(pid int) chan runc.Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := make(chan runc.Exit, 1) // the reaper never waits for the watcher
	if e, ok := r.unclaimed[pid]; ok {
		delete(r.unclaimed, pid)
		ch <- e
		close(ch)
		return ch
	}
	r.watched[pid] = ch
	return ch
}

// Start starts cmd and watches it.
func (r *reaper) Start(cmd *exec.Cmd) (chan runc.Exit, error) {
	r.starting.RLock()
	defer r.starting.RUnlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	delete(r.unclaimed, cmd.Process.Pid) // an earlier process of that number
	r.mu.Unlock()
	return r.watch(cmd.Process.Pid), nil
}

// StartLocked is Start on a thread that lives as long as the child.
func (r *reaper) StartLocked(cmd *exec.Cmd) (chan runc.Exit, error) {
	type result struct {
		ch  chan runc.Exit
		err error
	}
	started := make(chan result)
	out := make(chan runc.Exit, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ch, err := r.Start(cmd)
		started <- result{ch, err}
		if err != nil {
			return
		}
		out <- <-ch
		close(out)
	}()
	if res := <-started; res.err != nil {
		return nil, res.err
	}
	return out, nil
}

// Wait waits for the exit, and for what copies the command's output.
func (r *reaper) Wait(cmd *exec.Cmd, ch chan runc.Exit) (int, error) {
	e := <-ch
	// The child is reaped already, so this only ends the goroutines that copy
	// its streams; that there is no child any more is its usual answer.
	_ = cmd.Wait()
	return e.Status, nil
}

// exitCode is 128 + signal for what a signal killed.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
