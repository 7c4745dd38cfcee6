package cgroup

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
)

func TestDetect(t *testing.T) {
	for name, tt := range map[string]struct {
		mounts  []string
		version int // 0: it is refused
	}{
		"version 2": {[]string{"29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"}, 2},
		"version 1": {[]string{
			"30 22 0:27 / /cg/memory rw - cgroup cgroup rw,memory",
			"31 22 0:28 / /cg/freezer rw - cgroup cgroup rw,freezer",
			"32 22 0:29 / /cg/pids rw - cgroup cgroup rw,pids",
			"33 22 0:30 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
		}, 1},
		"hybrid": {[]string{
			"30 22 0:27 / /cg/memory rw - cgroup cgroup rw,memory",
			"31 22 0:28 / /cg/freezer rw - cgroup cgroup rw,freezer",
			"32 22 0:29 / /cg/pids rw - cgroup cgroup rw,pids",
			"33 22 0:30 / /cg/cpu rw - cgroup cgroup rw,cpu",
			"34 22 0:31 / /cg/cpuacct rw - cgroup cgroup rw,cpuacct",
			"35 22 0:32 / /cg/systemd rw - cgroup cgroup rw,name=systemd",
			"36 22 0:33 / /cg/unified rw - cgroup2 cgroup2 rw",
		}, 1},
		"memory in version 2 of a hybrid": {[]string{
			"34 22 0:31 / /cg/systemd rw - cgroup cgroup rw,name=systemd",
			"36 22 0:33 / /cg/unified rw - cgroup2 cgroup2 rw",
		}, 2},
		"no freezer": {[]string{"30 22 0:27 / /cg/memory rw - cgroup cgroup rw,memory"}, 0},
		"none":       {[]string{"30 22 0:27 / / rw - ext4 /dev/vda rw", "broken line", ""}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := detect(strings.NewReader(strings.Join(tt.mounts, "\n")))
			if tt.version == 0 {
				if !root.IsKind(err, root.Precondition) {
					t.Errorf("got %v, want kind %v", err, root.Precondition)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := l.hierarchy().version(); got != tt.version {
				t.Errorf("version: got %d, want %d", got, tt.version)
			}
		})
	}
}

// fakeV2 is a directory that looks like version 2; it limits nothing, but
// shows what is written to it.
type fakeV2 struct {
	t     *testing.T
	point string
}

func newFakeV2(t *testing.T) (*Parent, fakeV2) {
	t.Helper()
	f := fakeV2{t, t.TempDir()}
	f.write("", "cgroup.controllers", "cpuset cpu io memory pids\n")
	f.write("", "cgroup.subtree_control", "")
	f.write("roost", "cgroup.controllers", "cpu memory pids\n")
	f.write("roost", "cgroup.subtree_control", "cpu\n")
	p, err := open(v2{f.point}, "roost")
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"memory.max": "max\n", "memory.current": "104857600\n", "memory.swap.max": "max\n", "memory.swap.current": "4096\n",
		"memory.stat": "anon 1000\nfile 5000\ninactive_file 1048576\n", "memory.events": "low 0\noom 3\noom_kill 2\n",
		"memory.reclaim": "", "cpu.stat": "usage_usec 77\nuser_usec 70\n", "cgroup.procs": "10\n11\n",
		"cgroup.freeze": "0\n", "cgroup.events": "populated 1\nfrozen 0\n",
	} {
		f.write("roost/a", file, text)
	}
	return p, f
}

func (f fakeV2) write(group, file, text string) {
	f.t.Helper()
	dir := filepath.Join(f.point, group)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600)); err != nil {
		f.t.Fatal(err)
	}
}

// want checks what was written last. Files of the fake are not emptied first.
func (f fakeV2) want(group, file, want string) {
	f.t.Helper()
	got, err := os.ReadFile(filepath.Join(f.point, group, file))
	if err != nil {
		f.t.Fatal(err)
	}
	if !strings.HasPrefix(string(got), want) {
		f.t.Errorf("%s/%s: got %q, want %q", group, file, got, want)
	}
}

func TestV2Create(t *testing.T) {
	p, f := newFakeV2(t)
	if got := p.Path("a"); got != "/roost/a" {
		t.Errorf("path: got %s", got)
	}
	f.want("", "cgroup.subtree_control", "+pids") // the last one lent
	f.want("roost", "cgroup.subtree_control", "+pids")
	if got, err := p.Children(); err != nil || !cmp.Equal(got, []string{"a"}) {
		t.Errorf("children: got %v, %v", got, err)
	}
}

func TestV2CreateWithoutController(t *testing.T) {
	f := fakeV2{t, t.TempDir()}
	f.write("", "cgroup.controllers", "cpu pids\n")
	f.write("", "cgroup.subtree_control", "")
	if _, err := open(v2{f.point}, "roost"); !root.IsKind(err, root.Precondition) {
		t.Errorf("got %v, want kind %v", err, root.Precondition)
	}
}

func TestV2Limits(t *testing.T) {
	p, f := newFakeV2(t)
	f.write("roost/a", "memory.swap.max", "")
	if err := p.SetMemory("a", 64*root.MiB, 0); err != nil {
		t.Fatal(err)
	}
	f.want("roost/a", "memory.max", "67108864")
	f.want("roost/a", "memory.swap.max", "0")

	// Frozen, it may swap as much as it likes; thawed, what it asked for.
	f.write("roost/a", "cgroup.events", "frozen 1\n")
	if err := p.Freeze("a"); err != nil {
		t.Fatal(err)
	}
	f.want("roost/a", "cgroup.freeze", "1")
	if _, err := p.Reclaim(t.Context(), "a", math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	f.want("roost/a", "memory.swap.max", "max")
	f.want("roost/a", "memory.reclaim", "4194304")
	f.write("roost/a", "cgroup.events", "frozen 0\n")
	if err := p.Thaw("a"); err != nil {
		t.Fatal(err)
	}
	f.want("roost/a", "cgroup.freeze", "0")
	f.want("roost/a", "memory.swap.max", "0")

	// A thaw that crosses a reclaim is not undone by it.
	if _, err := p.Reclaim(t.Context(), "a", root.MiB); err != nil {
		t.Fatal(err)
	}
	f.want("roost/a", "memory.swap.max", "0")
	if err := os.Remove(filepath.Join(f.point, "roost/a/memory.swap.max")); err != nil {
		t.Fatal(err)
	}
	if err := p.SetMemory("a", root.GiB, root.GiB); err != nil {
		t.Errorf("a kernel without swap: %v", err)
	}
	if err := p.SetLimit(root.GiB); err == nil {
		t.Error("the fake's parent has no memory.max: got no error")
	}
}

func TestV2Stats(t *testing.T) {
	p, f := newFakeV2(t)
	got, err := p.Stats("a")
	if err != nil {
		t.Fatal(err)
	}
	want := runtime.Stats{Memory: 100 * root.MiB, Anon: 1000, Swap: 4096, CPUMicros: 77, OOMKills: 2, Processes: 2}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	if pids, err := p.PIDs("a"); err != nil || !cmp.Equal(pids, []int{10, 11}) {
		t.Errorf("processes: got %v, %v", pids, err)
	}
	if _, err := p.Stats("b"); !root.IsKind(err, root.NotFound) {
		t.Errorf("nobody's: got %v, want kind %v", err, root.NotFound)
	}
	f.write("roost", "memory.max", "209715200\n")
	f.write("roost", "memory.current", "104857600\n")
	f.write("roost", "memory.stat", "inactive_file 1048576\n")
	if free, err := p.Free(); err != nil || free != 101*root.MiB {
		t.Errorf("free: got %s, %v, want 101 MB", free, err)
	}
	f.write("roost/a", "cpu.stat", "usage_usec many\n")
	if _, err := p.Stats("a"); err == nil || root.KindOf(err) != root.Internal {
		t.Errorf("unreadable: got %v, want an internal error", err)
	}
}

func TestParentNeedsAName(t *testing.T) {
	for _, name := range []string{"", "/", "..", "a/.."} {
		if _, err := open(v2{t.TempDir()}, name); !root.IsKind(err, root.Invalid) {
			t.Errorf("parent %q: got %v, want kind %v", name, err, root.Invalid)
		}
	}
}
