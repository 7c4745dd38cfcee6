package bundle

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime/cgroup"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestWrite(t *testing.T) {
	tree := debian(t)
	lxcfs := rootfs(t, map[string]string{"proc/meminfo": "", "proc/swaps": ""})
	dir := filepath.Join(t.TempDir(), "bundle")
	err := Write(dir, Spec{
		Container: "01j0-1", Hostname: "148e1234c56789", CgroupPath: "/roost-x/01j0-1", Rootfs: tree, NetNS: "/run/roost/netns/m1",
		Image:  ocispec.ImageConfig{Cmd: []string{"sh", "-c", "true"}, User: "www", WorkingDir: "/srv", Env: []string{"A=1"}},
		Config: root.Config{Init: root.Init{TTY: true}},
		Env:    map[string]string{"FLY_APP_NAME": "shop"},
		Mounts: []specs.Mount{{Destination: "/data", Type: "bind", Source: "/v", Options: []string{"rbind"}}},
		APIDir: "/run/roost/api", ResolvConf: "/run/roost/resolv.conf", HostsFile: "/run/roost/hosts",
		Memory: 256 * root.MiB, Swap: 512 * root.MiB, CPUShares: 64, Init: "/usr/bin/tini-static", LXCFS: lxcfs,
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if memory, swap := Limits(s); memory != 256*root.MiB || swap != 512*root.MiB {
		t.Errorf("limits: got %s and %s, want 256 and 512 MB", memory, swap)
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno || len(s.Linux.Seccomp.Syscalls) < 3 {
		t.Errorf("seccomp: got %+v, want a profile that refuses by default", s.Linux.Seccomp)
	}
	s.Linux.Seccomp = nil // the library's
	// What depends on the host's version of control groups.
	s.Linux.Resources.Memory.Swap = nil
	for i, m := range s.Mounts {
		if m.Type == "cgroup" {
			s.Mounts = append(s.Mounts[:i], s.Mounts[i+1:]...)
			break
		}
	}
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.NewReplacer(tree, "ROOTFS", dir, "BUNDLE", lxcfs, "LXCFS").Replace(string(data)) + "\n"
	golden := filepath.Join("testdata", "config.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("config.json (-want +got):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(dir, "config.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("config.json holds secrets: got mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestWriteRefusesMistakes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	err := Write(dir, Spec{Rootfs: debian(t), Image: ocispec.ImageConfig{Cmd: []string{"gunicorn"}}})
	if !root.IsKind(err, root.Invalid) {
		t.Errorf("got %v, want kind %v", err, root.Invalid)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a bundle was written")
	}
}

func TestWriteWithoutLimits(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, Spec{Rootfs: debian(t), Image: ocispec.ImageConfig{Cmd: []string{"sh"}}}); err != nil {
		t.Fatal(err)
	}
	s, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Resources.Memory != nil || s.Linux.Resources.CPU != nil {
		t.Errorf("got limits %+v nobody asked for", s.Linux.Resources)
	}
	if diff := cmp.Diff([]string{"sh"}, s.Process.Args); diff != "" {
		t.Errorf("arguments without an init (-want +got):\n%s", diff)
	}
	version, _, err := cgroup.Version()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Mounts {
		if m.Destination == "/etc/hosts" || m.Destination == "/.fly" || m.Type == "cgroup" && version == 1 {
			t.Errorf("got mount %+v nobody asked for", m)
		}
	}
}

func TestShares(t *testing.T) {
	for _, tt := range []struct {
		guest root.Guest
		want  uint64
	}{
		{root.DefaultGuest(), 64},
		{root.Guest{CPUKind: "shared", CPUs: 8}, 512},
		{root.Guest{CPUKind: "performance", CPUs: 2}, 2048},
		{root.Guest{}, 64},
	} {
		if got := Shares(tt.guest); got != tt.want {
			t.Errorf("shares of %+v: got %d, want %d", tt.guest, got, tt.want)
		}
	}
}
