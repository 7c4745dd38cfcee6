package cgroup

import (
	"fmt"
	"os"
	"strconv"
)

// A group of the platform's own processes has the CPU weight of two small
// machines, so that it does not starve them.
const (
	ownShares = "128" // version 1
	ownWeight = "5"   // version 2
)

// Join moves a process, and what it will start, into a group beside the
// containers', which is made if need be: it counts towards the parent's limit.
// Such a group is no container; RemoveChild removes it.
func (p *Parent) Join(group string, pid int) error {
	if err := p.join(group, strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("move process %d into control group %s: %w", pid, p.Path(group), err)
	}
	return nil
}

func (p *Parent) join(group, pid string) error {
	name := p.Path(group)
	switch h := p.h.(type) {
	case v1:
		for _, c := range []string{"memory", "pids", "cpu", "cpuacct"} {
			if err := os.MkdirAll(h.dir(c, name), 0o755); err != nil {
				return err
			}
			if err := writeFile(h.file(c, name, "cgroup.procs"), pid); err != nil {
				return err
			}
		}
		return writeFile(h.file("cpu", name, "cpu.shares"), ownShares)
	case v2:
		if err := os.MkdirAll(h.dir(name), 0o755); err != nil {
			return err
		}
		if err := writeFile(h.file(name, "cgroup.procs"), pid); err != nil {
			return err
		}
		return writeFile(h.file(name, "cpu.weight"), ownWeight)
	}
	return fmt.Errorf("version %d is not supported", p.h.version())
}
