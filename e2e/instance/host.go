package instance

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// HostState is what Roost could leave behind on a host, as sets of lines, so
// that two states can be compared whole.
type HostState map[string]bool

// ReadHost takes the host's state: mounts, links, firewall rules, control
// groups, swaps, network namespaces, sysctls, and processes that run from dirs.
func ReadHost(ctx context.Context, dirs ...string) (HostState, error) {
	s := HostState{}
	add := func(kind, line string) { s[kind+": "+strings.TrimSpace(line)] = true }

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// Fields 4.. : root, mount point, options; ids in front differ (proc_pid_mountinfo(5)).
		if f := strings.Fields(line); len(f) > 5 && !onDemand.MatchString(f[4]) {
			add("mount", strings.Join(f[3:6], " "))
		}
	}
	for kind, command := range map[string][]string{
		"link":    {"ip", "-o", "link", "show"},
		"address": {"ip", "-o", "addr", "show"},
		"route":   {"ip", "route", "show", "table", "all"},
		"rule":    {"nft", "list", "ruleset"},
	} {
		out, err := exec.CommandContext(ctx, command[0], command[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			if kind == "link" || kind == "address" {
				// The index and counters of a link are not its identity.
				if f := strings.Fields(line); len(f) > 3 {
					line = strings.Join(f[1:4], " ")
				}
			}
			if kind == "route" {
				// What router advertisements brought counts down.
				line, _, _ = strings.Cut(line, " expires ")
			}
			if kind == "rule" {
				line = counters.ReplaceAllString(line, "counter")
			}
			add(kind, line)
		}
	}
	if err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && !othersGroup(path) {
			add("cgroup", path)
		}
		return nil // a group that vanishes meanwhile is no news
	}); err != nil {
		return nil, err
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 {
			add("swap", f[0])
		}
	}
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // no named namespaces at all
		}
		for _, e := range entries {
			add("netns", filepath.Join(dir, e.Name()))
		}
	}
	for _, pattern := range []string{
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/*/forwarding", "/proc/sys/net/ipv4/conf/*/rp_filter",
		"/proc/sys/net/ipv6/conf/*/forwarding", "/proc/sys/net/ipv6/conf/*/disable_ipv6", "/proc/sys/vm/swappiness",
		"/proc/sys/vm/overcommit_memory", "/proc/sys/fs/inotify/*", "/proc/sys/kernel/core_pattern", "/proc/sys/net/netfilter/nf_conntrack_max",
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			value, err := os.ReadFile(name)
			if err != nil {
				continue // write-only, or gone with its link
			}
			add("sysctl", name+" = "+strings.TrimSpace(string(value)))
		}
	}
	for _, p := range processes() {
		for _, dir := range dirs {
			if strings.Contains(p.command, dir) || strings.HasPrefix(p.exe, dir) || strings.Contains(p.cgroup, filepath.Base(dir)) {
				add("process", fmt.Sprintf("%d %s", p.pid, p.command))
			}
		}
	}
	return s, nil
}

// onDemand is where a host's systemd mounts what it likes, when a kernel module
// was loaded or somebody logs in.
var onDemand = regexp.MustCompile(`^(/sys/fs/fuse/connections|/proc/sys/fs/binfmt_misc|/run/user/.*|/run/credentials/.*)$`)

// unit is in the control groups of what the host's systemd starts and ends
// whenever it likes.
var unit = regexp.MustCompile(`\.(service|scope|slice)(/|$)`)

// inner is a control group within one of a hierarchy's own: who made that one
// makes and removes groups in it whenever it likes.
var inner = regexp.MustCompile(`^/sys/fs/cgroup/[^/]+/[^/]+/`)

// othersGroup reports whether a control group comes and goes without Roost,
// whose groups have its name.
func othersGroup(path string) bool {
	return !strings.Contains(path, "roost") && (unit.MatchString(path) || inner.MatchString(path))
}

// counters are what rules have counted.
var counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)

type process struct {
	pid                  int
	command, exe, cgroup string
}

func processes() []process {
	var list []process
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range names {
		p := process{}
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &p.pid); err != nil || p.pid == os.Getpid() {
			continue
		}
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it ended
		}
		p.command = strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))
		p.exe, _ = os.Readlink(filepath.Join(dir, "exe"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		p.cgroup = string(cgroup)
		list = append(list, p)
	}
	return list
}

// settle bounds how long removal may take: that of links and namespaces is
// asynchronous in the kernel.
const settle = time.Minute

// CheckRestored compares the host with the state before, waiting for what the
// kernel removes late. It reports every difference. Where other programs work
// on the host meanwhile (E2E_SHARED_HOST=1), only differences that carry
// one of the marks count.
func CheckRestored(ctx context.Context, before HostState, marks []string, dirs ...string) error {
	if os.Getenv("E2E_SHARED_HOST") == "1" {
		_, err := CheckMarked(ctx, before, marks, dirs...)
		return err
	}
	return restored(ctx, before, dirs, func(diff []string) []string { return diff })
}

// CheckMarked is CheckRestored beside whatever runs on the host: what carries
// one of the marks has to be as before. The other differences are for a reader
// to know; whose they are, nobody can tell.
func CheckMarked(ctx context.Context, before HostState, marks []string, dirs ...string) (others []string, err error) {
	err = restored(ctx, before, dirs, func(diff []string) []string {
		var ours []string
		ours, others = divide(diff, marks)
		return ours
	})
	return others, err
}

// restored waits until none of the differences counts.
func restored(ctx context.Context, before HostState, dirs []string, counts func(diff []string) []string) error {
	deadline := time.Now().Add(settle)
	for {
		after, err := ReadHost(ctx, dirs...)
		if err != nil {
			return err
		}
		diff := counts(before.diff(after))
		if len(diff) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the host is not as before:\n  %s", strings.Join(diff, "\n  "))
		}
		if err := Pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// divide tells the lines that carry one of the marks from the others.
func divide(diff, marks []string) (ours, others []string) {
	for _, line := range diff {
		if slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(line, m) }) {
			ours = append(ours, line)
		} else {
			others = append(others, line)
		}
	}
	return ours, others
}

func (s HostState) diff(after HostState) []string {
	var lines []string
	for _, line := range slices.Sorted(maps.Keys(after)) {
		if !s[line] && s.comparable(line) {
			lines = append(lines, "new   "+line)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(s)) {
		if !after[line] && after.comparable(line) {
			lines = append(lines, "gone  "+line)
		}
	}
	return lines
}

// comparable reports whether a line of another state can be looked for in this
// one. A setting that is only in one of them came with a kernel module, or
// went with its link.
func (s HostState) comparable(line string) bool {
	setting, _, ok := strings.Cut(line, " = ")
	if !ok || !strings.HasPrefix(line, "sysctl: ") {
		return true
	}
	for other := range s {
		if strings.HasPrefix(other, setting+" = ") {
			return true
		}
	}
	return false
}

// Pause waits between two looks at something that sends no event.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
