package runtimetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime"
)

// Fake is a runtime.Driver without root: its containers are plain child
// processes of the caller, who reaps them with wait4(pid) as with the real
// one. The command is Args, or the bundle's, found in the bundle's root file
// system if it is there. It isolates and limits nothing.
type Fake struct {
	Args []string // what every container runs; nil: what its bundle says

	mu         sync.Mutex
	containers map[string]*fakeContainer
}

type fakeContainer struct {
	pid     int
	process specs.Process
	rootfs  string

	mu       sync.Mutex
	sessions []int    // led by the first process, and by those of Exec
	gate     *os.File // written to at Start
	started  bool
	frozen   bool
	kills    uint64
	memory   root.Bytes // given back by Reclaim, until the thaw
}

var _ runtime.Driver = (*Fake)(nil)

// NewFake makes a driver without containers.
func NewFake() *Fake { return &Fake{containers: map[string]*fakeContainer{}} }

// The shell becomes the command when Start opens the gate.
const gateScript = `read -r _ <&3 || exit 126; exec 3<&-; exec "$@"`

// Create implements runtime.Driver.
func (f *Fake) Create(_ context.Context, c runtime.Container) (pid int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.containers[c.ID] != nil {
		return 0, root.Errorf(root.Conflict, "container %s exists already", c.ID)
	}
	n := &fakeContainer{process: specs.Process{Args: f.Args, Cwd: "/", Env: os.Environ()}}
	if f.Args == nil {
		if err := n.read(c.Bundle); err != nil {
			return 0, err
		}
	}
	gate, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, gate.Close()) }()
	stdin, stdout, stderr := c.Stdin, c.Stdout, c.Stderr
	attr := &syscall.SysProcAttr{Setsid: true}
	if c.Terminal != nil {
		master, slave, err := openTerminal()
		if err != nil {
			return 0, errors.Join(err, w.Close())
		}
		defer func() { err = errors.Join(err, slave.Close()) }()
		stdin, stdout, stderr = slave, slave, slave
		attr.Setctty = true
		defer c.Terminal(master)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, errors.Join(err, w.Close())
	}
	defer func() { err = errors.Join(err, null.Close()) }()
	files := []uintptr{fdOr(stdin, null), fdOr(stdout, null), fdOr(stderr, null), gate.Fd()}
	argv := append([]string{"sh", "-c", gateScript, "sh"}, n.args(n.process.Args)...)
	n.pid, err = syscall.ForkExec("/bin/sh", argv, &syscall.ProcAttr{Dir: n.dir(n.process.Cwd), Env: n.process.Env, Files: files, Sys: attr})
	if err != nil {
		return 0, errors.Join(fmt.Errorf("create container %s: %w", c.ID, err), w.Close())
	}
	n.gate, n.sessions = w, []int{n.pid}
	f.containers[c.ID] = n
	return n.pid, nil
}

func (n *fakeContainer) read(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil || s.Process == nil || len(s.Process.Args) == 0 || s.Root == nil {
		return errors.Join(fmt.Errorf("bundle %s has no process or root", dir), err)
	}
	n.process, n.rootfs = *s.Process, s.Root.Path
	if _, args, ok := cutInit(n.process.Args); ok {
		n.process.Args = args
	}
	return nil
}

// cutInit takes a bundle's process 1 off, which does not exist here.
func cutInit(args []string) (init, rest []string, ok bool) {
	if len(args) > 2 && strings.HasPrefix(args[0], "/.roost/") && args[1] == "--" {
		return args[:2], args[2:], true
	}
	return nil, args, false
}

// args finds a command in the root file system, or else on the host.
func (n *fakeContainer) args(args []string) []string {
	inside := filepath.Join(n.rootfs, args[0])
	if _, err := os.Stat(inside); n.rootfs != "" && err == nil {
		return append([]string{inside}, args[1:]...)
	}
	return args
}

func (n *fakeContainer) dir(cwd string) string {
	if n.rootfs == "" {
		return "/"
	}
	return filepath.Join(n.rootfs, cwd)
}

func (f *Fake) find(id string) (*fakeContainer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.containers[id]; n != nil {
		return n, nil
	}
	return nil, root.Errorf(root.NotFound, "container %s does not exist", id)
}

// Start implements runtime.Driver.
func (f *Fake) Start(_ context.Context, id string) error {
	n, err := f.find(id)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started {
		return root.Errorf(root.Precondition, "container %s was started already", id)
	}
	n.started = true
	_, err = n.gate.WriteString("go\n")
	return errors.Join(err, n.gate.Close())
}

// Signal implements runtime.Driver.
func (f *Fake) Signal(_ context.Context, id string, sig syscall.Signal, all bool) error {
	n, err := f.find(id)
	if err != nil {
		return err
	}
	pids := n.members()
	if len(pids) == 0 || !all && pids[0] != n.pid {
		return root.Errorf(root.NotFound, "container %s has no processes", id)
	}
	if !all {
		pids = pids[:1]
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil // SIGKILL ends a stopped process too
}

// Delete implements runtime.Driver.
func (f *Fake) Delete(ctx context.Context, id string, force bool) error {
	n, err := f.find(id)
	if err != nil {
		return nil // gone
	}
	if force {
		err := f.Signal(ctx, id, syscall.SIGKILL, true)
		if err != nil && !root.IsKind(err, root.NotFound) {
			return err
		}
		for len(n.members()) > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(time.Millisecond):
			}
		}
	}
	if len(n.members()) > 0 {
		return root.Errorf(root.Precondition, "container %s still runs", id)
	}
	f.mu.Lock()
	delete(f.containers, id)
	f.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.started {
		return n.gate.Close()
	}
	return nil
}

// Exec implements runtime.Driver; the user is ignored.
func (f *Fake) Exec(ctx context.Context, id string, e runtime.Exec) (int, error) {
	n, err := f.find(id)
	if err != nil {
		return 0, err
	}
	n.mu.Lock()
	frozen := n.frozen
	n.mu.Unlock()
	if frozen {
		return 0, root.Errorf(root.Precondition, "container %s is suspended", id)
	}
	args := n.args(e.Args)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	cwd := e.Dir
	if cwd == "" {
		cwd = n.process.Cwd
	}
	argv0, err := exec.LookPath(args[0])
	if err != nil {
		return 0, root.Errorf(root.Invalid, "command not found: %s", e.Args[0])
	}
	pid, err := syscall.ForkExec(argv0, args, &syscall.ProcAttr{
		Dir: n.dir(cwd), Env: slices.Concat(n.process.Env, e.Env),
		Files: []uintptr{fdOr(e.Stdin, null), fdOr(e.Stdout, null), fdOr(e.Stderr, null)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, root.Errorf(root.Invalid, "cannot run %s: %v", e.Args[0], err)
	}
	n.mu.Lock()
	n.sessions = append(n.sessions, pid)
	n.mu.Unlock()
	if e.PIDFile != "" {
		if err := os.WriteFile(e.PIDFile, []byte(strconv.Itoa(pid)), 0o600); err != nil {
			return 0, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	defer stop()
	code, err := Wait(pid)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return code, err
}

// members are the living processes, the first one first.
func (n *fakeContainer) members() []int {
	n.mu.Lock()
	sessions := slices.Clone(n.sessions)
	n.mu.Unlock()
	var pids []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, name := range stats {
		p, err := readStat(name)
		if err == nil && p.state != 'Z' && p.state != 'X' && slices.Contains(sessions, p.session) {
			pids = append(pids, p.pid)
		}
	}
	slices.SortFunc(pids, func(a, b int) int {
		if (a == n.pid) != (b == n.pid) {
			if a == n.pid {
				return -1
			}
			return 1
		}
		return a - b
	})
	return pids
}

type procStat struct {
	pid, session int
	state        byte
}

// readStat reads proc_pid_stat(5); the command in it may hold spaces.
func readStat(name string) (p procStat, err error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return p, err
	}
	s := string(data)
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return p, fmt.Errorf("read %s: %q", name, s)
	}
	var ppid, group int
	if _, err := fmt.Sscan(s, &p.pid); err != nil {
		return p, err
	}
	_, err = fmt.Sscanf(s[i+1:], " %c %d %d %d", &p.state, &ppid, &group, &p.session)
	return p, err
}

// Freeze implements runtime.Driver, by SIGSTOP.
func (f *Fake) Freeze(id string) error { return f.stop(id, true) }

// Thaw implements runtime.Driver, by SIGCONT.
func (f *Fake) Thaw(id string) error { return f.stop(id, false) }

func (f *Fake) stop(id string, on bool) error {
	n, err := f.find(id)
	if err != nil {
		return err
	}
	sig := syscall.SIGCONT
	if on {
		sig = syscall.SIGSTOP
	}
	for _, pid := range n.members() {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	for end := patience.Deadline(); on && !n.still(); pause() {
		if time.Now().After(end) {
			return root.Errorf(root.Unavailable, "container %s did not stand still", id)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen = on
	if !on {
		n.memory = 0
	}
	return nil
}

func (n *fakeContainer) still() bool {
	for _, pid := range n.members() {
		if p, err := readStat(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && p.state != 'T' && p.state != 'Z' {
			return false
		}
	}
	return true
}

// fakeMemory is what every fake container uses.
const fakeMemory = 64 * root.MiB

// Reclaim implements runtime.Driver; it only keeps the books.
func (f *Fake) Reclaim(ctx context.Context, id string, amount root.Bytes) (root.Bytes, error) {
	n, err := f.find(id)
	if err != nil {
		return 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	done := root.Bytes(0)
	for step := 4 * root.MiB; done < amount && n.memory < fakeMemory && ctx.Err() == nil; done += step {
		n.memory += step
	}
	return min(done, amount), nil
}

// Stats implements runtime.Driver.
func (f *Fake) Stats(id string) (runtime.Stats, error) {
	n, err := f.find(id)
	if err != nil {
		return runtime.Stats{}, err
	}
	processes := len(n.members())
	n.mu.Lock()
	defer n.mu.Unlock()
	return runtime.Stats{
		Memory: fakeMemory - n.memory, Anon: fakeMemory - n.memory, Swap: n.memory,
		OOMKills: n.kills, Processes: processes,
	}, nil
}

// PIDs implements runtime.Driver.
func (f *Fake) PIDs(id string) ([]int, error) {
	n, err := f.find(id)
	if err != nil {
		return nil, err
	}
	return n.members(), nil
}

// List implements runtime.Driver.
func (f *Fake) List(context.Context) ([]runtime.Existing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []runtime.Existing
	for id, n := range f.containers {
		e := runtime.Existing{ID: id}
		if slices.Contains(n.members(), n.pid) {
			n.mu.Lock()
			e.PID, e.Running = n.pid, n.started
			n.mu.Unlock()
		}
		all = append(all, e)
	}
	return all, nil
}

// OOM ends a container as the kernel does when its memory is used up.
func (f *Fake) OOM(id string) error {
	n, err := f.find(id)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.kills++
	n.mu.Unlock()
	return syscall.Kill(n.pid, syscall.SIGKILL)
}

func fdOr(f, otherwise *os.File) uintptr {
	if f == nil {
		f = otherwise
	}
	_ = unix.SetNonblock(int(f.Fd()), false) // if it is closed, starting fails
	return f.Fd()
}

// openTerminal makes a pseudo terminal (pty(7)).
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	master = os.NewFile(uintptr(fd), "terminal")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// setTerminal makes a bundle ask for a terminal.
func setTerminal(dir string) error {
	name := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	s.Process.Terminal = true
	if data, err = json.Marshal(s); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}
