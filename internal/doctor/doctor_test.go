package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fake is a host made of files.
func fake(t *testing.T, files map[string]string) host {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return host{
		proc: filepath.Join(dir, "proc"), sys: filepath.Join(dir, "sys"), modules: filepath.Join(dir, "modules"), lxcfs: filepath.Join(dir, "lxcfs"),
		lookPath: func(name string) (string, error) { return name, nil },
	}
}

func TestSwap(t *testing.T) {
	t.Parallel()
	const release, module = "proc/sys/kernel/osrelease", "/kernel/drivers/block/zram/zram.ko.xz"
	for _, tt := range []struct {
		name  string
		mode  string
		files map[string]string
		want  Level
	}{
		{"module of the running kernel", "auto", map[string]string{release: "6.1\n", "modules/6.1" + module: ""}, OK},
		{"module of another kernel", "auto", map[string]string{release: "6.18\n", "modules/6.1" + module: ""}, Warn},
		{"device is there", "auto", map[string]string{"sys/block/zram0": ""}, OK},
		{"file", "file:1GB", nil, OK},
		{"none", "none", nil, Warn},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := fake(t, tt.files).swap(tt.mode)
			if f.Level != tt.want || f.Level != OK && f.Mend == "" {
				t.Errorf("got %+v, want level %s and a mend unless ok", f, tt.want)
			}
		})
	}
}

func TestOwnFigures(t *testing.T) {
	t.Parallel()
	h := fake(t, map[string]string{"lxcfs/proc/meminfo": ""})
	if f := h.ownFigures(); f.Level != OK {
		t.Errorf("lxcfs runs: got %+v, want ok", f)
	}
	h = fake(t, nil)
	if f := h.ownFigures(); f.Level != OK || !strings.Contains(f.Detail, "Roost runs its own") {
		t.Errorf("lxcfs is installed only: got %+v, want ok, by one of our own", f)
	}
	h.lookPath = func(string) (string, error) { return "", os.ErrNotExist }
	if f := h.ownFigures(); f.Level != Warn || f.Mend != "apt-get install lxcfs" {
		t.Errorf("no lxcfs: got %+v, want a warning that names the package", f)
	}
}
