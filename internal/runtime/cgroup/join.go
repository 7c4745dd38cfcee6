package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	root "github.com/roost-run/roost"
)

// A group of the platform's own processes has the CPU weight of two small
// machines, so that it does not starve them.
const (
	ownShares = "128" // version 1
	ownWeight = "5"   // version 2
)

// ownPIDs is how many processes and threads such a group may have: a fork bomb
// in a build must not take the host's. A machine may have as many.
const ownPIDs = "8192"

// ownLeaf is the group, below such a group, of the process itself. What it
// starts may have groups beside it: in version 2 only leaves have processes.
const ownLeaf = "main"

// Join moves a process, and what it will start, into a group beside the
// containers', which is made if need be: it counts towards the parent's limit,
// and may use so much memory itself; 0 is no limit of its own. The number of
// its processes is limited, too. Such a group is no container; RemoveGroup
// removes it.
func (p *Parent) Join(group string, pid int, memory root.Bytes) error {
	if err := p.join(group, strconv.Itoa(pid), memory); err != nil {
		return fmt.Errorf("move process %d into control group %s: %w", pid, p.Path(group), err)
	}
	return nil
}

func (p *Parent) join(group, pid string, memory root.Bytes) error {
	name := p.Path(group)
	leaf := path.Join(name, ownLeaf)
	l := limits{memory: memory}
	if memory == 0 {
		l = limits{memory: unlimited, swap: unlimited}
	}
	switch h := p.h.(type) {
	case v1:
		for _, c := range []string{"memory", "pids", "cpu", "cpuacct"} {
			if err := os.MkdirAll(h.dir(c, leaf), 0o755); err != nil {
				return err
			}
		}
		if err := errors.Join(h.limitMemory(name, l), writeFile(h.file("pids", name, "pids.max"), ownPIDs)); err != nil {
			return err
		}
		for _, c := range []string{"memory", "pids", "cpu", "cpuacct"} {
			if err := writeFile(h.file(c, leaf, "cgroup.procs"), pid); err != nil {
				return err
			}
		}
		return writeFile(h.file("cpu", name, "cpu.shares"), ownShares)
	case v2:
		if err := h.create(name); err != nil {
			return err
		}
		if err := os.MkdirAll(h.dir(leaf), 0o755); err != nil {
			return err
		}
		if err := errors.Join(h.limitMemory(name, l), writeFile(h.file(name, "pids.max"), ownPIDs)); err != nil {
			return err
		}
		if err := h.allowSwap(name, l, memory == 0); err != nil {
			return err
		}
		if err := writeFile(h.file(leaf, "cgroup.procs"), pid); err != nil {
			return err
		}
		return writeFile(h.file(name, "cpu.weight"), ownWeight)
	}
	return fmt.Errorf("version %d is not supported", p.h.version())
}

// RemoveGroup kills what is left in a group of Join, and below it, and removes
// it. One that does not exist is success.
func (p *Parent) RemoveGroup(group string) error {
	var errs []error
	for _, dir := range p.dirs(p.Path(group)) {
		errs = append(errs, removeTree(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove control group %s: %w", p.Path(group), err)
	}
	return nil
}

// dirs are a group's directories, one in each hierarchy.
func (p *Parent) dirs(name string) []string {
	switch h := p.h.(type) {
	case v1:
		var dirs []string
		for _, mount := range h.mounts {
			dirs = append(dirs, filepath.Join(mount, name))
		}
		return dirs
	case v2:
		return []string{h.dir(name)}
	}
	return nil
}

func removeTree(dir string) error {
	below, err := subdirs(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range below {
		errs = append(errs, removeTree(filepath.Join(dir, name)))
	}
	pids, err := readPIDs(dir)
	if err != nil && !gone(err) {
		errs = append(errs, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, removeDir(dir))...)
}

// Killed returns a function that says whether since now the kernel has killed
// a process in a group of Join, or below it, for memory.
func (p *Parent) Killed(group string) (func() bool, error) {
	before, err := p.kills(group)
	if err == nil {
		err = p.resetPeak(group)
	}
	if err != nil {
		return nil, fmt.Errorf("count out-of-memory kills of %s: %w", p.Path(group), err)
	}
	return func() bool {
		now, err := p.kills(group)
		return err == nil && now > before && p.full(group)
	}, nil
}

// kills counts: in version 2 those of the group, with what is below it. In
// version 1 a group's own counter leaves those below out, and goes with them;
// there it is the host's, and full says whether they may have been ours.
func (p *Parent) kills(group string) (uint64, error) {
	if h, ok := p.h.(v2); ok {
		return h.oomKills(p.Path(group))
	}
	v, err := readKeys("/proc/vmstat", "oom_kill")
	if err != nil {
		return 0, err
	}
	return v[0], nil
}

const peakFile = "memory.max_usage_in_bytes"

func (p *Parent) resetPeak(group string) error {
	h, ok := p.h.(v1)
	if !ok {
		return nil
	}
	return errors.Join(writeFile(h.file("memory", p.Path(group), peakFile), "0"), writeFile(h.file("memory", p.name, peakFile), "0"))
}

// full reports whether the group, or the parent, has been at its limit.
func (p *Parent) full(group string) bool {
	h, ok := p.h.(v1)
	if !ok {
		return true
	}
	const near = root.MiB // charges are made in batches
	for _, name := range []string{p.Path(group), p.name} {
		peak, err := readBytes(h.file("memory", name, peakFile))
		if err != nil {
			continue
		}
		if _, limit, err := h.memory(name); err == nil && peak > limit-near {
			return true
		}
	}
	return false
}
