// Package swapon lets a container turn on swap of its own, as a virtual machine
// would: swapon(2) of a file inside gives the container that much of the
// host's swap, swapoff(2) takes it back, and /proc/sys/vm/swappiness and
// overcommit_memory can be written. The host itself is not touched: the file is
// never used, only its size counts.
//
// The kernel hands both calls over (seccomp_unotify(2)), because the
// container's profile says so (bundle.Spec.Listener); the OCI runtime sends the
// descriptor on which they arrive to a socket that the supervisor serves with
// this package. A descriptor lives as long as the process that holds it: once
// a supervisor has died, the two calls give ENOSYS in the containers that it
// had started. The swap that is on stays on.
//
// It is not about where swapped memory goes: runtime/swap is.
//
// Serve has one goroutine for each connection and each descriptor, all of which
// have ended when it returns.
package swapon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

const (
	// maxFiles is the kernel's own bound.
	maxFiles = 32
	// maxSwap is what swap_size_mb may be at most, too.
	maxSwap = 64 * root.GiB
	// page is the unit of a swap file's header, whatever the kernel's is:
	// mkswap writes that of the machine it runs on.
	page = 4096
	// signature ends the first page of a file that mkswap has made.
	signature = "SWAPSPACE2"
	// lastPage is where the header has the number of the last page.
	lastPage = 1028
)

// Limiter changes how much swap a container may use.
type Limiter interface {
	// AddSwap sets what a container may use beside what it was created with,
	// and how readily, from 0 to 200, or negative for the default.
	AddSwap(id string, extra root.Bytes, swappiness int) error
}

// Server answers swapon and swapoff of containers.
type Server struct {
	limits Limiter
	log    *slog.Logger

	mu         sync.Mutex
	containers map[string]*container // guarded by mu, which is held for a look only
}

// Container is one whose calls are answered.
type Container struct {
	Dir string // where what is on is remembered; the container's own, outside of it
	// Tell tells the container's owner, in a line, what has happened.
	Tell func(line string)
}

// container is what the server knows of one. Each has a lock of its own: what
// one does inside must not keep others from being started.
type container struct {
	Container

	mu   sync.Mutex
	on   files // guarded by mu
	gone bool  // guarded by mu
}

// files are sizes by identity on the file system.
type files map[string]root.Bytes

func (f files) total() (sum root.Bytes) {
	for size := range maps.Values(f) {
		sum += size
	}
	return sum
}

// New returns a server; it answers nothing until it serves.
func New(limits Limiter, log *slog.Logger) *Server {
	return &Server{limits: limits, log: log, containers: map[string]*container{}}
}

// state is the file in Container.Dir.
const state = "swaps.json"

// Add begins to answer a container's calls; it is called before the container
// is created.
func (s *Server) Add(id string, c Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[id] = &container{Container: c}
}

// Restore is Add for a container that an earlier process had created: what it
// had turned on is on again. pid is any of its processes.
func (s *Server) Restore(id string, c Container, pid int) error {
	s.Add(id, c)
	var on files
	err := readJSON(filepath.Join(c.Dir, state), &on)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(on) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("swap of container %s: %w", id, err)
	}
	to := s.find(id)
	if to == nil {
		return nil // forgotten meanwhile
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	to.on = on
	return s.limits.AddSwap(id, on.total(), swappiness(pid))
}

// Forget ends what Add has begun: nothing is written to the container's
// directory from here on.
func (s *Server) Forget(id string) {
	to := s.find(id)
	if to == nil {
		return
	}
	s.mu.Lock()
	delete(s.containers, id)
	s.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	to.gone = true
}

func (s *Server) find(id string) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers[id]
}

// answer does what a call asks for; the number is what it returns to its
// caller, 0 or an errno.
func (s *Server) answer(ctx context.Context, id string, c call) unix.Errno {
	if uid, err := effectiveUID(c.pid); err != nil || uid != 0 {
		return unix.EPERM
	}
	name, err := c.path()
	if err != nil {
		return errno(err, unix.EFAULT)
	}
	f, err := openInside(c.pid, name, os.O_RDWR)
	if err != nil {
		return errno(err, unix.EINVAL)
	}
	defer f.Close()
	if !c.valid() { // its number may be another process's by now
		return unix.EINTR
	}
	to := s.find(id)
	if to == nil {
		return unix.ESRCH
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	switch {
	case to.gone:
		err = unix.ESRCH
	case c.number == unix.SYS_SWAPON:
		err = s.turnOn(id, to, name, c.pid, f)
	default:
		err = s.turnOff(id, to, name, c.pid, f)
	}
	if err != nil {
		// Whatever runs inside can have this as often as it likes.
		s.log.DebugContext(ctx, "swap of a machine not changed", "container", id, "file", name, "err", err)
		return errno(err, unix.ENOMEM)
	}
	return 0
}

// turnOn checks what the kernel would; the caller holds c.mu.
func (s *Server) turnOn(id string, c *container, name string, pid int, f *os.File) error {
	key, size, err := identify(f)
	if err != nil {
		return err
	}
	if _, ok := c.on[key]; ok {
		return unix.EBUSY
	}
	swap, err := header(f, size)
	if err != nil {
		return err
	}
	if len(c.on) >= maxFiles || c.on.total()+swap > maxSwap {
		return unix.EPERM
	}
	next := files{key: swap}
	maps.Copy(next, c.on)
	if err := s.set(id, c, pid, next); err != nil {
		return err
	}
	// Nothing is ever written to it: the host may have the space back.
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, page, int64(size)-page); err != nil {
		s.log.Debug("space of a swap file not given back", "container", id, "err", err)
	}
	line := fmt.Sprintf("swapon %s: %d MB of swap", name, next.total().MiB())
	if none, err := noHostSwap(); err == nil && none {
		line += ", of which nothing can be used, because this host has none: its operator sets swap, see roost doctor"
	}
	c.Tell(line)
	return nil
}

// turnOff is swapoff; the caller holds c.mu.
func (s *Server) turnOff(id string, c *container, name string, pid int, f *os.File) error {
	key, size, err := identify(f)
	if err != nil {
		return err
	}
	next := maps.Clone(c.on)
	if _, ok := next[key]; !ok {
		return unix.EINVAL
	}
	delete(next, key)
	if err := s.set(id, c, pid, next); err != nil {
		return err
	}
	// As it was, so that it can be turned on again.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		s.log.Debug("space of a swap file not taken again", "container", id, "err", err)
	}
	c.Tell(fmt.Sprintf("swapoff %s: %d MB of swap", name, next.total().MiB()))
	return nil
}

func (s *Server) set(id string, c *container, pid int, next files) error {
	if err := s.limits.AddSwap(id, next.total(), swappiness(pid)); err != nil {
		return err
	}
	c.on = next
	return writeJSON(filepath.Join(c.Dir, state), next)
}

// header reads what mkswap has written.
func header(f *os.File, size root.Bytes) (root.Bytes, error) {
	first := make([]byte, page)
	if _, err := f.ReadAt(first, 0); err != nil {
		return 0, unix.EINVAL
	}
	pages := root.Bytes(binary.NativeEndian.Uint32(first[lastPage:]))
	if string(first[page-len(signature):]) != signature || pages == 0 || (pages+1)*page > size {
		return 0, unix.EINVAL
	}
	return pages * page, nil
}

func identify(f *os.File) (key string, size root.Bytes, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", 0, unix.EINVAL
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), root.Bytes(st.Size), nil
}

// openInside opens a file as a process sees it. The container's root stays the
// root, whatever symbolic links lie in the way; a device or a pipe is looked
// at, not opened. A file that somebody inside holds a lease on gives EAGAIN:
// the kernel would have us wait for the holder.
func openInside(pid int, name string, access int) (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	if !filepath.IsAbs(name) {
		cwd, err := os.Readlink(filepath.Join(dir, "cwd"))
		if err != nil {
			return nil, err
		}
		name = filepath.Join(cwd, name)
	}
	top, err := unix.Open(filepath.Join(dir, "root"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top) //nolint:errcheck // nothing to lose
	found, err := unix.Openat2(top, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(found) //nolint:errcheck // nothing to lose
	var st unix.Stat_t
	if err := unix.Fstat(found, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", found), access|unix.O_NONBLOCK, 0)
}

// swappiness reads the container's own setting, see OwnSettings; negative if
// it has none.
func swappiness(pid int) int {
	data, err := readInside(pid, "/proc/sys/vm/swappiness")
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(data))
	if err != nil || n < 0 || n > 200 {
		return -1
	}
	return n
}

func readInside(pid int, name string) (string, error) {
	f, err := openInside(pid, name, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 16)
	n, err := f.ReadAt(b, 0)
	if n == 0 {
		return "", err
	}
	return string(b[:n]), nil
}

func effectiveUID(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(rest); len(f) == 4 {
				return strconv.Atoi(f[1])
			}
		}
	}
	return 0, errors.New("its status names no user")
}

func noHostSwap() (bool, error) {
	var info unix.Sysinfo_t
	err := unix.Sysinfo(&info)
	return info.Totalswap == 0, err
}

// errno is what err says to a process, or other.
func errno(err error, other unix.Errno) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return other
}
