package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	gorunc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/bundle"
)

// execStart is how long a cancelled Exec gives the runtime to say which
// process it started, before the runtime itself is killed.
const execStart = 2 * time.Second

// Exec implements runtime.Driver. The command has the container's environment
// with e.Env added, its directory and limits; an empty user is root.
func (d *Driver) Exec(ctx context.Context, id string, e runtime.Exec) (code int, err error) {
	c, err := d.find(id)
	if err != nil {
		return 0, err
	}
	cg, err := d.cgroups()
	if err != nil {
		return 0, err
	}
	frozen, err := cg.Frozen(id)
	if err != nil {
		return 0, err
	}
	if frozen {
		return 0, root.Errorf(root.Precondition, "container %s is suspended: start it first", id)
	}
	process, err := c.process(e)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "roost-exec-")
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	defer func() { err = errors.Join(err, null.Close()) }()
	pidFile := e.PIDFile
	if pidFile == "" {
		pidFile = filepath.Join(dir, "pid")
	}
	opts := &gorunc.ExecOpts{
		IO:      stdio{in: e.Stdin, out: e.Stdout, err: e.Stderr, tty: e.TTY}.or(null),
		PidFile: pidFile,
	}

	// The runtime is killed only if killing the command did not end it.
	run, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRuntime()
	ended, killed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(killed)
		select {
		case <-ended:
		case <-ctx.Done():
			d.killExec(id, pidFile, ended)
			select {
			case <-ended:
			case <-time.After(execStart):
				stopRuntime()
			}
		}
	}()
	err = d.run(run, c.binary, "exec in container "+id, func(r *gorunc.Runc) error {
		opts.LogFile = r.Log
		err := r.Exec(run, id, process, opts)
		if exit, ok := errors.AsType[*gorunc.ExitError](err); ok && !failed(r.Log) {
			code = exit.Status
			return nil
		}
		return err
	})
	close(ended)
	<-killed
	if ctx.Err() != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, context.Cause(ctx))
	}
	return code, err
}

// failed reports whether the runtime itself failed; else its exit status is
// the command's.
func failed(log string) bool {
	f, err := os.Open(log)
	if err != nil {
		return false
	}
	defer f.Close()
	return lastError(f) != ""
}

// killExec kills the process named in pidFile and those it started, once it is
// named.
func (d *Driver) killExec(id, pidFile string, ended <-chan struct{}) {
	for deadline := time.Now().Add(execStart); time.Now().Before(deadline); {
		pid, err := readPID(pidFile)
		if err == nil {
			cg, err := d.cgroups()
			if err != nil {
				return
			}
			pids, err := cg.PIDs(id)
			if err != nil || !slices.Contains(pids, pid) {
				return // it has ended, or is a sandbox's
			}
			tree := descendants(pid, pids)
			_ = unix.Kill(-pid, syscall.SIGKILL) // runc gives it a session, so this misses none
			for _, p := range tree {
				_ = unix.Kill(p, syscall.SIGKILL) // it may have ended
			}
			return
		}
		if !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "not a process id") { // half written
			return
		}
		select {
		case <-ended:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// descendants returns pid and those of pids that it started, directly or not.
func descendants(pid int, pids []int) []int {
	tree := []int{pid}
	for grown := true; grown; {
		grown = false
		for _, p := range pids {
			if !slices.Contains(tree, p) && slices.Contains(tree, parentOf(p)) {
				tree, grown = append(tree, p), true
			}
		}
	}
	return tree
}

// parentOf reads proc_pid_status(5); 0 if the process has ended.
func parentOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if s, ok := strings.CutPrefix(line, "PPid:"); ok {
			ppid, _ := strconv.Atoi(strings.TrimSpace(s)) // the kernel writes a number
			return ppid
		}
	}
	return 0
}

// process makes the command's OCI process from the container's own.
func (c *container) process(e runtime.Exec) (specs.Process, error) {
	spec, err := bundle.Read(c.bundle)
	if err != nil {
		return specs.Process{}, fmt.Errorf("exec: %w", err)
	}
	// As the processes inside see it, mounts included.
	rootfs := spec.Root.Path
	if !runtime.Sandboxed(c.binary) {
		rootfs = fmt.Sprintf("/proc/%d/root", c.pid)
	}
	u, err := bundle.LookupUser(rootfs, e.User)
	if err != nil {
		return specs.Process{}, err
	}
	p := *spec.Process
	p.Args = e.Args
	p.Terminal = e.TTY
	if e.Dir != "" {
		p.Cwd = e.Dir
	}
	p.Env = slices.Clone(p.Env)
	if u.UID != p.User.UID {
		p.Env = bundle.Setenv(p.Env, "HOME", u.Home)
	}
	if e.TTY {
		p.Env = bundle.Setenv(p.Env, "TERM", "xterm")
	}
	for _, kv := range e.Env {
		key, value, _ := strings.Cut(kv, "=")
		p.Env = bundle.Setenv(p.Env, key, value)
	}
	p.User = specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Groups}
	p.Capabilities = bundle.Capabilities(u.UID)
	return p, bundle.CheckCommand(rootfs, e.Args, p.Cwd, p.Env)
}
