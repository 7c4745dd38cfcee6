// Package cgroup limits, freezes, reclaims and measures containers through the
// kernel's control groups, version 1 (also as part of a hybrid layout) or
// version 2. It makes no cgroup for a container: the OCI runtime does, at the
// path that Parent.Path names; this package works on it afterwards.
//
// All containers live under one parent with a memory limit of its own, so that
// together they leave the host what it needs. runtime/runc owns the Parent;
// the supervisor asks it for free memory before it admits a wake.
//
// It starts no goroutine. A Parent is safe for concurrent use.
package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
)

const (
	// reclaimStep bounds how long a wake waits behind a reclaim: one step.
	reclaimStep = 4 * root.MiB
	// reclaimFloor is the progress below which a step counts as fruitless.
	reclaimFloor = 64 * root.KiB
	// reclaimTries is how many fruitless steps in a row end a reclaim.
	reclaimTries = 3

	// freezeTimeout is for processes inside a system call that cannot be
	// interrupted, such as a read from a network file system.
	freezeTimeout = 5 * time.Second
	// freezeAgain is how long a freeze may take before it is begun anew. A
	// process in execve waits for its other threads to die, and in version 1
	// those that are frozen already do not die.
	freezeAgain = 100 * time.Millisecond
	// oomSettle is how long after its announcement a kill for memory is counted.
	oomSettle = 200 * time.Millisecond
	// removeTimeout is for the kernel to let go of killed processes.
	removeTimeout = 2 * time.Second

	unlimited = root.Bytes(math.MaxInt64)
)

// Parent is the control group that all containers of one Roost live in.
type Parent struct {
	name string // path from the root of the hierarchies: "/roost-5e1f00aa"
	h    hierarchy

	mu     sync.Mutex
	limits map[string]limits // by container
}

// limits are what a container asked for; the kernel's may differ for a while.
type limits struct {
	memory, swap root.Bytes
	extra        root.Bytes // part of swap: what the container has turned on itself
	swappiness   int        // of version 1, while it runs; 0 is the default
}

// hierarchy is what differs between the versions. Names are paths from the
// root of the hierarchies; a group that does not exist gives fs.ErrNotExist.
type hierarchy interface {
	version() int
	// create makes a parent whose children can have every limit.
	create(name string) error
	// remove removes an empty group, wherever it exists.
	remove(name string) error
	children(name string) ([]string, error)
	limitMemory(name string, l limits) error
	// allowSwap lets a group swap as much as it likes, or only what l says.
	allowSwap(name string, l limits, on bool) error
	setFrozen(name string, on bool) error
	frozen(name string) (bool, error)
	// reclaimOnce gives step back; no progress is no error.
	reclaimOnce(name string, step root.Bytes, l limits) error
	memory(name string) (usage, limit root.Bytes, err error)
	// idle is the part of usage that the kernel drops without harm.
	idle(name string) (root.Bytes, error)
	stats(name string) (runtime.Stats, error)
	oomKills(name string) (uint64, error)
	pids(name string) ([]int, error)
	// oomEvents names the file to watch, and the control file if it takes an
	// eventfd instead of being watched itself.
	oomEvents(name string) (file, control string)
}

// Open finds out which version the host uses, and creates the parent at the
// given path from the root of the hierarchies. It has no memory limit until
// SetLimit.
func Open(parent string) (*Parent, error) {
	l, err := detectHost()
	if err != nil {
		return nil, err
	}
	return open(l.hierarchy(), parent)
}

func open(h hierarchy, parent string) (*Parent, error) {
	name := path.Clean("/" + parent)
	if name == "/" {
		return nil, root.Errorf(root.Invalid, "the control group of the machines needs a name of its own")
	}
	if err := h.create(name); err != nil {
		return nil, fmt.Errorf("create control group %s: %w", name, err)
	}
	return &Parent{name: name, h: h, limits: map[string]limits{}}, nil
}

// Version is 1 or 2.
func (p *Parent) Version() int { return p.h.version() }

// Path is a container's control group as the OCI spec's cgroupsPath wants it.
func (p *Parent) Path(id string) string { return path.Join(p.name, id) }

// SetLimit limits the memory of all containers together; swap is not part of it.
func (p *Parent) SetLimit(total root.Bytes) error {
	if err := p.h.limitMemory(p.name, limits{memory: total, swap: unlimited}); err != nil {
		return fmt.Errorf("limit the memory of all machines to %s: %w", total, err)
	}
	return nil
}

// Free is how much more memory containers can take: what is left of the
// parent's limit or of the host's memory, whichever is less. Cache that the
// kernel can drop counts as free.
func (p *Parent) Free() (root.Bytes, error) {
	usage, limit, err := p.h.memory(p.name)
	if err != nil {
		return 0, fmt.Errorf("free memory: %w", err)
	}
	idle, err := p.h.idle(p.name)
	if err != nil {
		return 0, fmt.Errorf("free memory: %w", err)
	}
	host, err := hostAvailable()
	if err != nil {
		return 0, fmt.Errorf("free memory: %w", err)
	}
	return max(0, min(limit-usage+min(idle, usage), host)), nil
}

// Limit is the parent's memory limit.
func (p *Parent) Limit() (root.Bytes, error) {
	_, limit, err := p.h.memory(p.name)
	return limit, err
}

// SetMemory sets what a container may use: memory, and swap beside it while
// it is not suspended. The parent remembers both for Thaw and Reclaim, so it
// is also called for containers that are adopted.
func (p *Parent) SetMemory(id string, memory, swap root.Bytes) error {
	l := limits{memory: memory, swap: swap}
	p.mu.Lock()
	p.limits[id] = l
	p.mu.Unlock()
	if err := p.h.limitMemory(p.Path(id), l); err != nil {
		return p.wrap("limit the memory of", id, err)
	}
	frozen, err := p.h.frozen(p.Path(id))
	if err != nil {
		return p.wrap("limit the memory of", id, err)
	}
	return p.wrap("limit the swap of", id, p.h.allowSwap(p.Path(id), l, frozen))
}

// AddSwap lets a container use extra swap beside what SetMemory gave it, and
// says how readily, from 0 to 200, or negative for the default; where the
// kernel knows that only for the host it has no effect. 0 takes it back, which
// gives EBUSY if it is in use and the memory for it is not there.
func (p *Parent) AddSwap(id string, extra root.Bytes, swappiness int) error {
	p.mu.Lock()
	old, ok := p.limits[id]
	p.mu.Unlock()
	if !ok {
		return root.Errorf(root.NotFound, "container %s has no limits", id)
	}
	l := old
	l.swap, l.extra, l.swappiness = old.swap-old.extra+extra, extra, max(0, swappiness)
	if swappiness == 0 {
		l.swappiness = leastSwappiness
	}
	name := p.Path(id)
	if err := p.h.limitMemory(name, l); err != nil {
		return p.wrap("limit the swap of", id, err)
	}
	frozen, err := p.h.frozen(name)
	if err == nil {
		err = p.h.allowSwap(name, l, frozen)
	}
	if err != nil {
		return p.wrap("limit the swap of", id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits[id] = l
	return nil
}

// leastSwappiness stands for 0, which in limits is the default.
const leastSwappiness = 1

func (p *Parent) limitsOf(id string) (limits, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.limits[id]
	return l, ok
}

// Freeze stops every process of a container; they stand still when it
// returns. It gives Unavailable if some do not within 5 seconds; then none is
// frozen.
func (p *Parent) Freeze(id string) error {
	name := p.Path(id)
	if err := p.h.setFrozen(name, true); err != nil {
		return p.wrap("freeze", id, err)
	}
	deadline := time.Now().Add(freezeTimeout)
	again := time.Now().Add(freezeAgain)
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		frozen, err := p.h.frozen(name)
		if err != nil {
			return p.wrap("freeze", id, err)
		}
		if frozen {
			return nil
		}
		if time.Now().After(deadline) {
			err := p.h.setFrozen(name, false)
			return errors.Join(root.Errorf(root.Unavailable, "container %s did not stand still within %s: a process is inside a system call that cannot be interrupted", id, freezeTimeout), err)
		}
		pause(wait)
		if time.Now().After(again) {
			if err := p.h.setFrozen(name, false); err != nil {
				return p.wrap("freeze", id, err)
			}
			pause(wait)
			again = time.Now().Add(freezeAgain)
		}
		// Version 1 gives up on tasks that were being forked: ask again.
		if err := p.h.setFrozen(name, true); err != nil {
			return p.wrap("freeze", id, err)
		}
	}
}

// Thaw lets the processes of a container go on, and takes back the licence to
// swap that Reclaim gave. What has been swapped comes back when it is touched.
func (p *Parent) Thaw(id string) error {
	name := p.Path(id)
	if err := p.h.setFrozen(name, false); err != nil {
		return p.wrap("thaw", id, err)
	}
	if l, ok := p.limitsOf(id); ok {
		return p.wrap("thaw", id, p.h.allowSwap(name, l, false))
	}
	return nil
}

// Frozen reports whether every process of a container stands still.
func (p *Parent) Frozen(id string) (bool, error) {
	frozen, err := p.h.frozen(p.Path(id))
	return frozen, p.wrap("look at", id, err)
}

// Reclaim gives up to amount of a container's memory back to the host, in
// steps of 4 MB, and returns how much; it ends early when ctx ends or nothing
// more can be had, neither of which is an error. The container may be frozen.
func (p *Parent) Reclaim(ctx context.Context, id string, amount root.Bytes) (done root.Bytes, err error) {
	name := p.Path(id)
	l, ok := p.limitsOf(id)
	if !ok {
		l = limits{memory: unlimited, swap: unlimited}
	}
	if err := p.h.allowSwap(name, l, true); err != nil {
		return 0, p.wrap("reclaim", id, err)
	}
	defer func() {
		// A thaw may have come meanwhile, and its limits been overwritten above.
		if frozen, ferr := p.h.frozen(name); ferr == nil && !frozen {
			if now, ok := p.limitsOf(id); ok {
				l = now
			}
			err = errors.Join(err, p.wrap("reclaim", id, p.h.allowSwap(name, l, false)))
		}
	}()
	for tries := 0; done < amount && tries < reclaimTries && ctx.Err() == nil; {
		before, _, err := p.h.memory(name)
		if err != nil {
			return done, p.wrap("reclaim", id, err)
		}
		if err := p.h.reclaimOnce(name, min(reclaimStep, amount-done, before), l); err != nil {
			return done, p.wrap("reclaim", id, err)
		}
		after, _, err := p.h.memory(name)
		if err != nil {
			return done, p.wrap("reclaim", id, err)
		}
		done += max(0, before-after)
		if before-after < reclaimFloor {
			tries++
		} else {
			tries = 0
		}
	}
	return done, nil
}

// Stats reads the kernel's accounts of a container.
func (p *Parent) Stats(id string) (runtime.Stats, error) {
	s, err := p.h.stats(p.Path(id))
	return s, p.wrap("measure", id, err)
}

// PIDs lists a container's processes, in the host's numbering.
func (p *Parent) PIDs(id string) ([]int, error) {
	pids, err := p.h.pids(p.Path(id))
	return pids, p.wrap("list the processes of", id, err)
}

// WatchOOM calls f with the number of processes of a container that the
// kernel has killed for memory, whenever it changes, until ctx ends or the
// container's control group is gone; the latter gives nil.
func (p *Parent) WatchOOM(ctx context.Context, id string, f func(kills uint64)) error {
	name := p.Path(id)
	file, control := p.h.oomEvents(name)
	last := uint64(0)
	look := func() (changed bool, err error) {
		kills, err := p.h.oomKills(name)
		if err != nil || kills == last {
			return false, err
		}
		last = kills
		f(kills)
		return true, nil
	}
	if _, err := look(); err != nil {
		return p.wrap("watch", id, err)
	}
	err := watch(ctx, file, control, func() error {
		// Version 1 tells before it kills.
		for end := time.Now().Add(oomSettle); ; pause(time.Millisecond) {
			changed, err := look()
			if err != nil || changed || time.Now().After(end) || ctx.Err() != nil {
				return err
			}
		}
	})
	if gone(err) {
		return nil
	}
	return p.wrap("watch", id, err)
}

// Children lists the containers that have a control group.
func (p *Parent) Children() ([]string, error) { return p.h.children(p.name) }

// RemoveChild removes what the OCI runtime may have left of a container's
// control groups. Processes inside make it fail; one that does not exist is
// success.
func (p *Parent) RemoveChild(id string) error {
	p.mu.Lock()
	delete(p.limits, id)
	p.mu.Unlock()
	return p.wrap("remove", id, p.h.remove(p.Path(id)))
}

// Remove removes the parent, which has to be empty.
func (p *Parent) Remove() error {
	if err := p.h.remove(p.name); err != nil {
		return fmt.Errorf("remove control group %s: %w", p.name, err)
	}
	return nil
}

// wrap says which container, and gives a group that is gone its kind.
func (p *Parent) wrap(verb, id string, err error) error {
	if err == nil {
		return nil
	}
	if gone(err) {
		return &root.Error{Kind: root.NotFound, Message: fmt.Sprintf("%s container %s: it does not run", verb, id), Err: err}
	}
	return fmt.Errorf("%s container %s: %w", verb, id, err)
}

// gone: reading a file of a group that was removed after it was opened gives
// ENODEV.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// writeFile writes in one call, and past os.File: to that, EAGAIN, which is how
// memory.reclaim says that there was less to be had, means to wait.
func writeFile(name, value string) (err error) {
	fd, err := syscall.Open(name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if _, err = syscall.Write(fd, []byte(value)); err != nil {
		err = &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return errors.Join(err, syscall.Close(fd))
}

func readString(name string) (string, error) {
	data, err := os.ReadFile(name)
	return string(bytes.TrimSpace(data)), err
}

// readBytes reads a size; "max" and version 1's "a lot" are unlimited.
func readBytes(name string) (root.Bytes, error) {
	s, err := readString(name)
	if err != nil {
		return 0, err
	}
	if s == "max" {
		return unlimited, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	if n >= 1<<62 {
		return unlimited, nil
	}
	return root.Bytes(n), nil
}

// readKey reads one number of a file with a key and a value on each line; a
// key that is not there is 0.
func readKeys(name string, keys ...string) ([]uint64, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	values := make([]uint64, len(keys))
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		for i := range keys {
			if keys[i] != key {
				continue
			}
			if values[i], err = strconv.ParseUint(value, 10, 64); err != nil {
				return nil, fmt.Errorf("read %s of %s: %w", key, name, err)
			}
		}
	}
	return values, nil
}

func readPIDs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		pid, err := strconv.Atoi(s.Text())
		if err != nil {
			return nil, fmt.Errorf("processes of %s: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// removeDir waits for the kernel, which is busy with a group for a moment
// after its last process has ended.
func removeDir(dir string) error {
	deadline := time.Now().Add(removeTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := syscall.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline):
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		pause(wait)
	}
}

// pause is between two looks at the kernel, where there is no event to wait
// for and the waiting is bounded and short.
func pause(d time.Duration) { <-time.After(d) }

func subdirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func hostAvailable() (root.Bytes, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return root.Bytes(kib) * root.KiB, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// ignoreMissing: a kernel without swap accounting has no file for it.
func ignoreMissing(err error, dir string) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, serr := os.Stat(dir); serr != nil {
		return serr
	}
	return nil
}
