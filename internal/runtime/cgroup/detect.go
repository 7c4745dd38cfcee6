package cgroup

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// layout says where the hierarchies are mounted.
type layout struct {
	controllers map[string]string // version 1: mount point by controller
	mounts      []string          // every hierarchy, named and unified ones too
	unified     string            // version 2's mount point
}

func detectHost() (layout, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return layout{}, err
	}
	return detect(bytes.NewReader(data))
}

// Version says which version of control groups the host uses for memory, 1 or
// 2, and whether swap is accounted.
func Version() (version int, swap bool, err error) {
	l, err := detectHost()
	if err != nil {
		return 0, false, err
	}
	if l.controllers["memory"] == "" {
		return 2, true, nil
	}
	_, err = os.Stat(filepath.Join(l.controllers["memory"], "memory.memsw.limit_in_bytes"))
	return 1, err == nil, nil
}

// detect reads a mountinfo table (proc_pid_mountinfo(5)).
func detect(mountinfo io.Reader) (layout, error) {
	l := layout{controllers: map[string]string{}}
	s := bufio.NewScanner(mountinfo)
	for s.Scan() {
		mount, fsys, ok := strings.Cut(s.Text(), " - ")
		m, f := strings.Fields(mount), strings.Fields(fsys)
		if !ok || len(m) < 5 || len(f) < 3 {
			continue
		}
		point := m[4]
		switch f[0] {
		case "cgroup2":
			l.unified = point
			l.mounts = append(l.mounts, point)
		case "cgroup":
			if slices.Contains(l.mounts, point) {
				continue
			}
			l.mounts = append(l.mounts, point)
			for option := range strings.SplitSeq(f[2], ",") {
				if l.controllers[option] == "" {
					l.controllers[option] = point
				}
			}
		}
	}
	if err := s.Err(); err != nil {
		return layout{}, err
	}
	if l.controllers["memory"] != "" {
		for _, c := range []string{"memory", "freezer", "pids", "cpu", "cpuacct"} {
			if l.controllers[c] == "" {
				return layout{}, root.Errorf(root.Precondition, "the kernel's control groups (version 1) lack the controller %s: mount it, or boot with systemd.unified_cgroup_hierarchy=1", c)
			}
		}
		return l, nil
	}
	if l.unified == "" {
		return layout{}, root.Errorf(root.Precondition, "no control groups are mounted: mount -t cgroup2 none /sys/fs/cgroup")
	}
	return l, nil
}

func (l layout) hierarchy() hierarchy {
	if l.controllers["memory"] != "" {
		return v1{l}
	}
	return v2{l.unified}
}
