package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
)

// v2 is version 2: one hierarchy, mounted at point.
type v2 struct{ point string }

func (h v2) dir(name string) string        { return filepath.Join(h.point, name) }
func (h v2) file(name, file string) string { return filepath.Join(h.point, name, file) }

func (h v2) version() int { return 2 }

// create also lends the controllers to every group on the way down: a group
// has the files of those that its parent lends.
func (h v2) create(name string) error {
	dir := h.point
	for _, part := range append([]string{""}, strings.Split(strings.Trim(name, "/"), "/")...) {
		dir = filepath.Join(dir, part)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := lend(dir); err != nil {
			return err
		}
	}
	return nil
}

func lend(dir string) error {
	has, err := readString(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range []string{"memory", "pids", "cpu"} {
		if !contains(has, c) {
			return root.Errorf(root.Precondition, "control group %s lacks the controller %s: its parent does not lend it", dir, c)
		}
	}
	lent, err := readString(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(has) {
		if contains(lent, c) {
			continue
		}
		err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		switch {
		case errors.Is(err, syscall.EBUSY) && needed(c):
			return &root.Error{Kind: root.Precondition, Message: fmt.Sprintf("control group %s has processes of its own, so it cannot lend the controller %s to the machines: name a parent without processes", dir, c), Err: err}
		case err != nil && needed(c):
			return fmt.Errorf("lend %s: %w", c, err)
		}
	}
	return nil
}

func needed(controller string) bool {
	return controller == "memory" || controller == "pids" || controller == "cpu"
}

func contains(list, word string) bool { return strings.Contains(" "+list+" ", " "+word+" ") }

func (h v2) remove(name string) error               { return removeDir(h.dir(name)) }
func (h v2) children(name string) ([]string, error) { return subdirs(h.dir(name)) }

func (h v2) limitMemory(name string, l limits) error {
	return writeFile(h.file(name, "memory.max"), numberOrMax(l.memory))
}

// allowSwap: a limit below what is swapped already is fine, it stops more.
func (h v2) allowSwap(name string, l limits, on bool) error {
	limit := l.swap
	if on {
		limit = unlimited
	}
	err := writeFile(h.file(name, "memory.swap.max"), numberOrMax(limit))
	return ignoreMissing(err, h.dir(name))
}

func (h v2) setFrozen(name string, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return writeFile(h.file(name, "cgroup.freeze"), value)
}

func (h v2) frozen(name string) (bool, error) {
	v, err := readKeys(h.file(name, "cgroup.events"), "frozen")
	if err != nil {
		return false, err
	}
	return v[0] == 1, nil
}

func (h v2) reclaimOnce(name string, step root.Bytes, _ limits) error {
	err := writeFile(h.file(name, "memory.reclaim"), strconv.FormatInt(int64(step), 10))
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return nil // not all of it
	}
	return err
}

func (h v2) memory(name string) (usage, limit root.Bytes, err error) {
	if usage, err = readBytes(h.file(name, "memory.current")); err != nil {
		return 0, 0, err
	}
	limit, err = readBytes(h.file(name, "memory.max"))
	return usage, limit, err
}

func (h v2) idle(name string) (root.Bytes, error) {
	v, err := readKeys(h.file(name, "memory.stat"), "inactive_file")
	if err != nil {
		return 0, err
	}
	return root.Bytes(v[0]), nil
}

func (h v2) stats(name string) (runtime.Stats, error) {
	usage, err := readBytes(h.file(name, "memory.current"))
	if err != nil {
		return runtime.Stats{}, err
	}
	mem, err := readKeys(h.file(name, "memory.stat"), "anon")
	if err != nil {
		return runtime.Stats{}, err
	}
	swap, err := readBytes(h.file(name, "memory.swap.current"))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // no file: a kernel without swap
		return runtime.Stats{}, err
	}
	cpu, err := readKeys(h.file(name, "cpu.stat"), "usage_usec")
	if err != nil {
		return runtime.Stats{}, err
	}
	kills, err := h.oomKills(name)
	if err != nil {
		return runtime.Stats{}, err
	}
	pids, err := h.pids(name)
	if err != nil {
		return runtime.Stats{}, err
	}
	return runtime.Stats{
		Memory:    usage,
		Anon:      root.Bytes(mem[0]),
		Swap:      swap,
		CPUMicros: cpu[0],
		OOMKills:  kills,
		Processes: len(pids),
	}, nil
}

func (h v2) oomKills(name string) (uint64, error) {
	v, err := readKeys(h.file(name, "memory.events"), "oom_kill")
	if err != nil {
		return 0, err
	}
	return v[0], nil
}

func (h v2) pids(name string) ([]int, error) { return readPIDs(h.dir(name)) }

func (h v2) oomEvents(name string) (file, control string) {
	return h.file(name, "memory.events"), ""
}

func numberOrMax(b root.Bytes) string {
	if b == unlimited {
		return "max"
	}
	return strconv.FormatInt(int64(b), 10)
}
