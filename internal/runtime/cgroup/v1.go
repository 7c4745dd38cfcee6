package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
)

// v1 is version 1: one hierarchy for each controller, or for a few.
type v1 struct{ layout }

// Swappiness of a running container that may swap, and of a suspended one.
// A running one without swap gets 0, which keeps global pressure off it too.
const (
	runningSwappiness   = 60
	suspendedSwappiness = 100
)

func (h v1) dir(controller, name string) string {
	return filepath.Join(h.controllers[controller], name)
}

func (h v1) file(controller, name, file string) string {
	return filepath.Join(h.controllers[controller], name, file)
}

func (h v1) version() int { return 1 }

func (h v1) create(name string) error {
	for _, c := range []string{"memory", "freezer", "pids", "cpu", "cpuacct"} {
		if err := os.MkdirAll(h.dir(c, name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (h v1) remove(name string) error {
	var errs []error
	for _, mount := range h.mounts {
		errs = append(errs, removeDir(filepath.Join(mount, name)))
	}
	return errors.Join(errs...)
}

func (h v1) children(name string) ([]string, error) { return subdirs(h.dir("freezer", name)) }

func (h v1) limitMemory(name string, l limits) error {
	limit, both := h.file("memory", name, "memory.limit_in_bytes"), h.file("memory", name, "memory.memsw.limit_in_bytes")
	swap := sum(l)
	// The limit of both must never be below that of memory: the order depends
	// on whether they grow or shrink.
	err := writeFile(limit, number(l.memory))
	if err == nil || !errors.Is(err, syscall.EINVAL) {
		return errors.Join(err, ignoreMissing(writeFile(both, number(swap)), h.dir("memory", name)))
	}
	return errors.Join(writeFile(both, number(swap)), writeFile(limit, number(l.memory)))
}

// allowSwap: swapping does not change the sum of memory and swap, which is
// what version 1 limits, so only the inclination to swap has to be raised.
func (h v1) allowSwap(name string, l limits, on bool) error {
	value := 0
	switch {
	case on:
		value = suspendedSwappiness
	case l.swap > 0 && l.swappiness > 0:
		value = l.swappiness
	case l.swap > 0:
		value = runningSwappiness
	}
	return writeFile(h.file("memory", name, "memory.swappiness"), strconv.Itoa(value))
}

func (h v1) setFrozen(name string, on bool) error {
	state := "THAWED"
	if on {
		state = "FROZEN"
	}
	return writeFile(h.file("freezer", name, "freezer.state"), state)
}

func (h v1) frozen(name string) (bool, error) {
	state, err := readString(h.file("freezer", name, "freezer.state"))
	return state == "FROZEN", err
}

// reclaimOnce lowers the limit below the usage, which makes the kernel reclaim
// the difference, and raises it again at once: a container that is thawed
// meanwhile must not meet the low limit. memory.force_empty would reclaim
// everything in one call that nothing can end.
func (h v1) reclaimOnce(name string, step root.Bytes, l limits) error {
	limit := h.file("memory", name, "memory.limit_in_bytes")
	usage, _, err := h.memory(name)
	if err != nil {
		return err
	}
	lower := writeFile(limit, number(max(0, usage-step)))
	if errors.Is(lower, syscall.EBUSY) || errors.Is(lower, syscall.EINTR) {
		lower = nil // nothing more to be had, or not all of it
	}
	return errors.Join(lower, writeFile(limit, number(l.memory)))
}

func (h v1) memory(name string) (usage, limit root.Bytes, err error) {
	if usage, err = readBytes(h.file("memory", name, "memory.usage_in_bytes")); err != nil {
		return 0, 0, err
	}
	limit, err = readBytes(h.file("memory", name, "memory.limit_in_bytes"))
	return usage, limit, err
}

func (h v1) idle(name string) (root.Bytes, error) {
	v, err := readKeys(h.file("memory", name, "memory.stat"), "total_inactive_file")
	if err != nil {
		return 0, err
	}
	return root.Bytes(v[0]), nil
}

func (h v1) stats(name string) (runtime.Stats, error) {
	usage, err := readBytes(h.file("memory", name, "memory.usage_in_bytes"))
	if err != nil {
		return runtime.Stats{}, err
	}
	mem, err := readKeys(h.file("memory", name, "memory.stat"), "total_rss", "total_swap")
	if err != nil {
		return runtime.Stats{}, err
	}
	cpu, err := readBytes(h.file("cpuacct", name, "cpuacct.usage"))
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
		Swap:      root.Bytes(mem[1]),
		CPUMicros: uint64(cpu) / 1000,
		OOMKills:  kills,
		Processes: len(pids),
	}, nil
}

func (h v1) oomKills(name string) (uint64, error) {
	v, err := readKeys(h.file("memory", name, "memory.oom_control"), "oom_kill")
	if err != nil {
		return 0, err
	}
	return v[0], nil
}

func (h v1) pids(name string) ([]int, error) { return readPIDs(h.dir("freezer", name)) }

func (h v1) oomEvents(name string) (file, control string) {
	return h.file("memory", name, "memory.oom_control"), h.file("memory", name, "cgroup.event_control")
}

func sum(l limits) root.Bytes {
	if l.memory == unlimited || l.swap >= unlimited-l.memory {
		return unlimited
	}
	return l.memory + l.swap
}

func number(b root.Bytes) string {
	if b == unlimited {
		return "-1"
	}
	return strconv.FormatInt(int64(b), 10)
}
