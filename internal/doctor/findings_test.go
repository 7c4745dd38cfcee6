package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
)

// with gives a host of files, each of which can be run, the programs of have.
func with(t *testing.T, files map[string]string, have ...string) host {
	t.Helper()
	h := fake(t, files)
	h.lookPath = func(name string) (string, error) {
		if !slices.Contains(have, name) {
			return "", errors.New("not found")
		}
		path := filepath.Join(filepath.Dir(h.proc), "bin", filepath.Base(name))
		if _, ok := files["bin/"+filepath.Base(name)]; ok {
			return path, os.Chmod(path, 0o700)
		}
		return path, nil
	}
	return h
}

func controllers(v1 ...string) map[string]string {
	files := map[string]string{}
	for _, c := range v1 {
		files["sys/fs/cgroup/"+c+"/tasks"] = ""
	}
	return files
}

func TestFindings(t *testing.T) {
	file := func(name, data string) map[string]string { return map[string]string{name: data} }
	settings := func(change func(*config.Config)) config.Config {
		c := config.Default()
		change(&c)
		return c
	}
	overlay := func(h host) Finding { return h.overlay() }
	cgroups := func(h host) Finding { return h.cgroups() }
	kernel := func(h host) Finding { return h.kernel() }
	runtime := func(h host) Finding { return h.runtime(t.Context(), "runc") }
	swap := func(mode string) func(host) Finding { return func(h host) Finding { return h.swap(mode) } }
	memory := func(c config.Config) func(host) Finding { return func(h host) Finding { return h.memory(c) } }
	tini := func(h host) Finding {
		return h.binary("tini", "/usr/bin/tini-static", "first process", "apt-get install tini", Fatal)
	}

	for name, c := range map[string]struct {
		check  func(host) Finding
		files  map[string]string
		have   []string
		level  Level
		detail string
		mend   string
	}{
		"root":     {func(h host) Finding { return h.privilege() }, nil, nil, OK, "running as root", ""},
		"not root": {func(h host) Finding { h.uid = 1000; return h.privilege() }, nil, nil, Fatal, "not root", "run as root"},

		"kernel":         {kernel, file("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"), nil, OK, "Linux 6.1.0-18-amd64", ""},
		"oldest kernel":  {kernel, file("proc/sys/kernel/osrelease", "5.15.0\n"), nil, OK, "5.15.0", ""},
		"old kernel":     {kernel, file("proc/sys/kernel/osrelease", "5.10.0-28-amd64\n"), nil, Fatal, "5.10.0-28-amd64 is older than 5.15", "upgrade"},
		"ancient kernel": {kernel, file("proc/sys/kernel/osrelease", "4.19.0\n"), nil, Fatal, "older than 5.15", "upgrade"},
		"odd kernel":     {kernel, file("proc/sys/kernel/osrelease", "custom\n"), nil, Fatal, "custom", "upgrade"},
		"no proc":        {kernel, nil, nil, Warn, "version unknown", "mount /proc"},

		"cgroup 2":             {cgroups, file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"), nil, OK, "version 2", ""},
		"cgroup 2, no memory":  {cgroups, file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n"), nil, Fatal, "without the memory controller", "cgroup_disable=memory"},
		"cgroup 1":             {cgroups, controllers("memory", "freezer", "pids", "cpu"), nil, OK, "version 1", ""},
		"cgroup 1, no freezer": {cgroups, controllers("memory", "pids", "cpu"), nil, Fatal, "no freezer controller", "systemd.unified_cgroup_hierarchy=1"},
		"no cgroups":           {cgroups, nil, nil, Fatal, "controller", "mount cgroup2"},

		"overlay":            {overlay, file("proc/filesystems", "nodev\tproc\nnodev\toverlay\n"), nil, OK, "available", ""},
		"overlay to load":    {overlay, map[string]string{"proc/sys/kernel/osrelease": "6.1\n", "modules/6.1/kernel/fs/overlayfs/overlay.ko.xz": ""}, nil, OK, "as a module", ""},
		"overlay of another": {overlay, map[string]string{"proc/sys/kernel/osrelease": "6.2\n", "modules/6.1/kernel/fs/overlayfs/overlay.ko.xz": ""}, nil, Fatal, "not in this kernel", "modprobe overlay"},
		"overlay not there":  {overlay, file("proc/filesystems", "nodev\tproc\n"), nil, Fatal, "not in this kernel", "modprobe overlay"},

		"runtime":             {runtime, file("bin/runc", "#!/bin/sh\necho runc version 1.1.5\necho more\n"), []string{"runc"}, OK, "runc version 1.1.5", ""},
		"runtime missing":     {runtime, nil, nil, Fatal, "runc is not installed", "apt-get install runc"},
		"runtime that breaks": {runtime, file("bin/runc", "#!/bin/sh\nexit 1\n"), []string{"runc"}, Fatal, "does not run", "reinstall"},
		"program":             {tini, nil, []string{"/usr/bin/tini-static"}, OK, "tini-static", ""},
		"program missing":     {tini, nil, nil, Fatal, "is not installed (first process)", "apt-get install tini"},
		"go":                  {func(h host) Finding { return h.goToolchain() }, nil, []string{"go"}, OK, "go", ""},
		"go missing":          {func(h host) Finding { return h.goToolchain() }, nil, nil, Warn, "roost image build", "https://go.dev/dl/"},

		"zram there":             {swap("auto"), file("sys/block/zram0/size", "0"), nil, OK, "goes to zram", ""},
		"no zram":                {swap("auto"), nil, nil, Warn, "no zram", `swap = "file:4GB"`},
		"zram wanted, not there": {swap("zram"), nil, nil, Fatal, "which this kernel does not have", `"auto"`},
		"swap file":              {swap("file:4GB"), nil, nil, OK, "swap file of 4GB", ""},
		"swap off":               {swap("none"), nil, nil, Warn, "stays in memory", `swap = "auto"`},

		"memory":          {memory(config.Default()), file("proc/meminfo", "MemTotal:        2048000 kB\nMemFree: 1 kB\n"), nil, OK, "kept for the host", ""},
		"little memory":   {memory(config.Default()), file("proc/meminfo", "MemTotal:        700000 kB\n"), nil, Fatal, "kept for the host", "lower reserve"},
		"smaller reserve": {memory(settings(func(c *config.Config) { c.Reserve = 128 * root.MiB })), file("proc/meminfo", "MemTotal:        700000 kB\n"), nil, OK, "", ""},
		"unknown memory":  {memory(config.Default()), nil, nil, Warn, "unknown", "mount /proc"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.check(with(t, c.files, c.have...))
			if got.Level != c.level || !strings.Contains(got.Detail, c.detail) || !strings.Contains(got.Mend, c.mend) {
				t.Errorf("got %+v, want level %q, detail with %q, mend with %q", got, c.level, c.detail, c.mend)
			}
			if (got.Level == OK) != (got.Mend == "") {
				t.Errorf("got %+v, want a mend exactly when something is wrong", got)
			}
			if got.Check == "" {
				t.Error("the check has no name")
			}
		})
	}
}

// The data directory need not be there yet; looking leaves nothing behind.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	if f := disk(filepath.Join(dir, "not", "yet")); f.Level == Fatal || !strings.Contains(f.Detail, dir) {
		t.Errorf("got %+v, want a measurement in %s", f, dir)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if f := disk("/proc/nowhere"); f.Level != Fatal || f.Mend == "" {
		t.Errorf("a directory that cannot be written: got %+v, want a problem", f)
	}
}

func TestExamineAndRefuse(t *testing.T) {
	c := config.Default()
	c.Data, c.Runtime = t.TempDir(), "no-such-runtime"
	findings := Examine(t.Context(), c)
	seen := map[string]bool{}
	for _, f := range findings {
		seen[f.Check] = true
	}
	for _, check := range []string{"privilege", "kernel", "control groups", "overlay file system", "OCI runtime", "tini", "lxcfs", "memory of suspended machines", "memory", "Go toolchain", "disk"} {
		if !seen[check] {
			t.Errorf("nothing is said of %q", check)
		}
	}
	err := Refuse(findings)
	if err == nil || !strings.Contains(err.Error(), "no-such-runtime is not installed; apt-get install runc") {
		t.Errorf("got %v, want the finding with its mend", err)
	}
	if err := Refuse([]Finding{{"a", OK, "", ""}, {"b", Warn, "", "x"}}); err != nil {
		t.Errorf("warnings: got %v, want nil", err)
	}
}
