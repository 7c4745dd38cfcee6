// Package doctor looks at a host and says what Roost would miss on it, each
// finding with its mend. It changes nothing. The command line prints all of
// it; a server refuses to start on a finding that is Fatal.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/network"
)

// Level says how much a finding matters.
type Level string

// The levels.
const (
	OK    Level = "ok"
	Warn  Level = "warning" // works, with less than there could be
	Fatal Level = "problem" // Roost cannot run
)

// Finding is the outcome of one check.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // what to do; empty when OK
}

// The parts of the kernel that checks look at, as variables so that tests can
// show them another host.
type host struct {
	proc, sys, modules string
	lxcfs              string // where lxcfs is mounted
	uid                int
	lookPath           func(string) (string, error)
}

// Examine runs every check for a server with the given configuration.
func Examine(ctx context.Context, c config.Config) []Finding {
	h := host{proc: "/proc", sys: "/sys", modules: "/lib/modules", lxcfs: "/var/lib/lxcfs", uid: os.Getuid(), lookPath: exec.LookPath}
	f := []Finding{
		h.privilege(), h.kernel(), h.cgroups(), h.overlay(), h.runtime(ctx, c.Runtime),
		h.binary("tini", "/usr/bin/tini-static", "first process of every machine", "apt-get install tini", Fatal),
		h.ownFigures(),
		h.swap(c.Swap), h.memory(c), h.goToolchain(), disk(c.Data), https(c),
	}
	for _, p := range network.Problems(ctx) {
		f = append(f, Finding{"network", Warn, p.What, p.Mend})
	}
	return f
}

// Refuse returns the fatal findings as one error of kind Precondition, or nil.
func Refuse(findings []Finding) error {
	var problems []error
	for _, f := range findings {
		if f.Level == Fatal {
			problems = append(problems, root.Errorf(root.Precondition, "%s: %s; %s", f.Check, f.Detail, f.Mend))
		}
	}
	return errors.Join(problems...)
}

func (h host) privilege() Finding {
	if h.uid != 0 {
		return Finding{"privilege", Fatal, "this is not root", "run as root: machines need namespaces, mounts and control groups"}
	}
	return Finding{"privilege", OK, "running as root", ""}
}

// minKernel has cgroup.kill, openat2 and nft sets as they are used here.
const minKernel = "5.15"

func (h host) kernel() Finding {
	data, err := os.ReadFile(filepath.Join(h.proc, "sys/kernel/osrelease"))
	if err != nil {
		return Finding{"kernel", Warn, "version unknown: " + err.Error(), "mount /proc"}
	}
	release := strings.TrimSpace(string(data))
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 5 || major == 5 && minor < 15 {
		return Finding{"kernel", Fatal, "Linux " + release + " is older than " + minKernel, "upgrade the kernel, for example to Debian 12's"}
	}
	return Finding{"kernel", OK, "Linux " + release, ""}
}

func (h host) cgroups() Finding {
	dir := filepath.Join(h.sys, "fs/cgroup")
	if data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil {
		for _, c := range []string{"memory", "cpu", "pids"} {
			if !slices.Contains(strings.Fields(string(data)), c) {
				return Finding{"control groups", Fatal, "version 2 without the " + c + " controller", "boot without cgroup_disable=" + c}
			}
		}
		return Finding{"control groups", OK, "version 2", ""}
	}
	for _, c := range []string{"memory", "freezer", "pids", "cpu"} {
		if _, err := os.Stat(filepath.Join(dir, c)); err != nil {
			return Finding{"control groups", Fatal, "no " + c + " controller below " + dir, "mount cgroup2, or boot with systemd.unified_cgroup_hierarchy=1"}
		}
	}
	return Finding{"control groups", OK, "version 1", ""}
}

func (h host) overlay() Finding {
	data, err := os.ReadFile(filepath.Join(h.proc, "filesystems"))
	if err == nil && strings.Contains(string(data), "overlay") {
		return Finding{"overlay file system", OK, "available", ""}
	}
	if h.module("kernel/fs/overlayfs/overlay.ko*") {
		return Finding{"overlay file system", OK, "available as a module", ""}
	}
	return Finding{"overlay file system", Fatal, "not in this kernel", "modprobe overlay, or a kernel that has it"}
}

// module says whether the running kernel could load a module: those of another
// one are of no use.
func (h host) module(pattern string) bool {
	release, err := os.ReadFile(filepath.Join(h.proc, "sys/kernel/osrelease"))
	if err != nil {
		return false
	}
	found, err := filepath.Glob(filepath.Join(h.modules, strings.TrimSpace(string(release)), pattern))
	return err == nil && len(found) > 0
}

// versionTimeout bounds asking a runtime for its version. A server that starts
// on a busy host must not take it for one without a runtime.
const versionTimeout = 30 * time.Second

func (h host) runtime(ctx context.Context, binary string) Finding {
	path, err := h.lookPath(binary)
	if err != nil {
		return Finding{"OCI runtime", Fatal, binary + " is not installed", "apt-get install runc"}
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Finding{"OCI runtime", Fatal, path + " does not run: " + err.Error(), "reinstall it"}
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return Finding{"OCI runtime", OK, version, ""}
}

func (h host) binary(check, path, use, mend string, missing Level) Finding {
	if _, err := h.lookPath(path); err != nil {
		return Finding{check, missing, path + " is not installed (" + use + ")", mend}
	}
	return Finding{check, OK, path, ""}
}

// ownFigures looks for lxcfs, installed and at work.
func (h host) ownFigures() Finding {
	const use = "machines see their own memory and CPUs in /proc"
	f := h.binary("lxcfs", "/usr/bin/lxcfs", use, "apt-get install lxcfs", Warn)
	if f.Level != OK {
		return f
	}
	if _, err := os.Stat(filepath.Join(h.lxcfs, "proc", "meminfo")); err != nil {
		f.Detail += "; the host's does not run, so Roost runs its own"
	}
	return f
}

func (h host) swap(mode string) Finding {
	const check = "memory of suspended machines"
	switch {
	case mode == "none":
		return Finding{check, Warn, "stays in memory: swap is set to none", "set swap = \"auto\" or \"file:4GB\""}
	case strings.HasPrefix(mode, "file:"):
		return Finding{check, OK, "goes to a swap file of " + strings.TrimPrefix(mode, "file:"), ""}
	}
	if _, err := os.Stat(filepath.Join(h.sys, "block/zram0")); err == nil {
		return Finding{check, OK, "goes to zram", ""}
	}
	if h.module("kernel/drivers/block/zram/zram.ko*") {
		return Finding{check, OK, "goes to zram", ""}
	}
	if mode == "zram" {
		return Finding{check, Fatal, "swap is set to zram, which this kernel does not have", "set swap = \"auto\" or \"file:4GB\""}
	}
	return Finding{check, Warn, "stays in memory: this kernel has no zram", "set swap = \"file:4GB\"; freezing works without, memory is just not given back"}
}

func (h host) memory(c config.Config) Finding {
	data, err := os.ReadFile(filepath.Join(h.proc, "meminfo"))
	if err != nil {
		return Finding{"memory", Warn, "unknown: " + err.Error(), "mount /proc"}
	}
	var total root.Bytes
	for line := range strings.Lines(string(data)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kb); n == 1 {
			total = root.Bytes(kb) * root.KiB
		}
	}
	if total <= c.Reserve+256*root.MiB {
		return Finding{"memory", Fatal, fmt.Sprintf("%s in all, of which %s are kept for the host", total, c.Reserve), "lower reserve, or use a larger host"}
	}
	return Finding{"memory", OK, fmt.Sprintf("%s in all, %s kept for the host", total, c.Reserve), ""}
}

func (h host) goToolchain() Finding {
	path, err := h.lookPath("go")
	if err != nil {
		return Finding{"Go toolchain", Warn, "not installed: `roost image build` of Go programs does not work", "install Go from https://go.dev/dl/"}
	}
	return Finding{"Go toolchain", OK, path, ""}
}

// slowSync is where consensus writes begin to be felt by users of the API.
const slowSync = 20 * time.Millisecond

// disk measures a durable write where the data directory is or will be.
func disk(data string) Finding {
	dir := data
	for {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	f, err := os.CreateTemp(dir, ".roost-doctor-*")
	if err != nil {
		return Finding{"disk", Fatal, "cannot write in " + dir + ": " + err.Error(), "make it writable, or set data to another directory"}
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer f.Close()
	var worst time.Duration
	for range 5 {
		start := time.Now()
		if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
			return Finding{"disk", Fatal, "cannot write in " + dir + ": " + err.Error(), "make room"}
		}
		if err := f.Sync(); err != nil {
			return Finding{"disk", Fatal, "cannot sync in " + dir + ": " + err.Error(), "check the disk"}
		}
		worst = max(worst, time.Since(start))
	}
	if worst > slowSync {
		return Finding{"disk", Warn, fmt.Sprintf("a durable write in %s took %s", dir, worst.Round(100*time.Microsecond)), "use a local SSD for data: every change waits for such a write"}
	}
	return Finding{"disk", OK, fmt.Sprintf("a durable write in %s takes %s", dir, worst.Round(10*time.Microsecond)), ""}
}
