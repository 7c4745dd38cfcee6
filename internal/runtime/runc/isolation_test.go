package runc

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/bundle"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
)

// output runs a container to its end and returns what it printed.
func output(t *testing.T, d *Driver, c runtime.Container, want int) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.Stdout, c.Stderr = f, f
	pid, err := d.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	code, err := runtimetest.Wait(pid)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if code != want {
		t.Errorf("exit code: got %d, want %d; it printed %q", code, want, data)
	}
	if err := d.Delete(t.Context(), c.ID, true); err != nil {
		t.Error(err)
	}
	return string(data)
}

// What a bundle promises is what the process inside finds.
func TestInside(t *testing.T) {
	d := newDriver(t)
	cg, err := d.Cgroup()
	if err != nil {
		t.Fatal(err)
	}
	payload := runtimetest.Payload(t)
	host := t.TempDir()
	for name, text := range map[string]string{"resolv.conf": "nameserver fdaa::3\n", "hosts": "::1\tme\n", "api/token": "secret\n", "lxcfs/proc/meminfo": "MemTotal: 7 kB\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(host, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		user string
		args []string
		want []string // each is in the output
	}{
		"user and environment": {"app:staff", []string{"print", "HOME", "A", "B", "PATH"}, []string{"/srv 1000 50\n", "HOME=/home/app\n", "A=image\n", "B=platform\n", "PATH=" + bundle.DefaultPath}},
		"no root powers":       {"app", []string{"cat", "/proc/self/status"}, []string{"CapEff:\t0000000000000000\n", "CapBnd:\t00000000a80425fb\n", "Seccomp:\t2\n", "NoNewPrivs:\t0\n"}},
		"root's powers":        {"", []string{"cat", "/proc/self/status"}, []string{"CapEff:\t00000000a80425fb\n", "CapAmb:\t0000000000000000\n", "Seccomp:\t2\n"}},
		"limits":               {"", []string{"cat", "/proc/self/limits", "/proc/self/oom_score_adj"}, []string{"Max open files            10240                10240", "\n500\n"}},
		"names":                {"", []string{"cat", "/etc/hostname", "/proc/sys/kernel/hostname", "/etc/hosts", "/etc/resolv.conf", "/.fly/token"}, []string{"box\nbox\n::1\tme\nnameserver fdaa::3\nsecret\n"}},
		"own figures":          {"", []string{"cat", "/proc/meminfo"}, []string{"MemTotal: 7 kB\n"}},
		"process 1 is init":    {"", []string{"cat", "/proc/1/comm"}, []string{"init\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			rootfs := runtimetest.Rootfs(t, payload)
			if err := os.Mkdir(filepath.Join(rootfs, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			for file, text := range map[string]string{"passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", "group": "staff:x:50:\n"} {
				if err := os.WriteFile(filepath.Join(rootfs, "etc", file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			c := runtime.Container{ID: "inside-" + strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", ""), Bundle: t.TempDir()}
			err := bundle.Write(c.Bundle, bundle.Spec{
				Container: c.ID, Hostname: "box", CgroupPath: cg.Path(c.ID), Rootfs: rootfs, NetNS: newNamespace(t),
				Image:  ocispec.ImageConfig{User: tt.user, WorkingDir: "/srv", Entrypoint: []string{"/payload"}, Env: []string{"A=image", "B=image"}},
				Config: root.Config{Init: root.Init{Cmd: tt.args}, Env: map[string]string{"B": "config"}},
				Env:    map[string]string{"B": "platform"},
				APIDir: filepath.Join(host, "api"), ResolvConf: filepath.Join(host, "resolv.conf"), HostsFile: filepath.Join(host, "hosts"),
				Memory: 64 * root.MiB, Init: "/usr/bin/tini-static", LXCFS: filepath.Join(host, "lxcfs"),
			})
			if err != nil {
				t.Fatal(err)
			}
			out := output(t, d, c, 0)
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("got %q, want %q in it", out, want)
				}
			}
		})
	}
}

// The next process of a Roost that died, even in the middle of a reclaim,
// takes its containers over.
func TestAdopt(t *testing.T) {
	first := newDriver(t)
	id, pid := started(t, first, 128*root.MiB, 0, "count")
	cg, err := first.Cgroup()
	if err != nil {
		t.Fatal(err)
	}
	if err := cg.SetMemory(id, 32*root.MiB, 0); err != nil { // as a reclaim leaves it
		t.Fatal(err)
	}
	second := New(first.o)
	list, err := second.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (runtime.Existing{ID: id, PID: pid, Running: true}); len(list) != 1 || list[0] != want {
		t.Errorf("list: got %+v, want %+v", list, want)
	}
	if got := memoryLimit(t, cg.Version(), cg.Path(id)); got != "134217728" {
		t.Errorf("limit: got %s, want 128 MB", got)
	}
	if out, code, err := execOutput(t, second, id, "/payload", "print", "FROM_BUNDLE"); err != nil || code != 0 || !strings.Contains(out, "FROM_BUNDLE=1") {
		t.Errorf("exec: got %q, %d, %v", out, code, err)
	}
	if err := second.Signal(t.Context(), id, syscall.SIGUSR1, false); err != nil {
		t.Errorf("signal: %v", err)
	}
	if err := second.Freeze(id); err != nil {
		t.Error(err)
	}
	if _, err := second.Reclaim(t.Context(), id, math.MaxInt64); err != nil {
		t.Error(err)
	}
	if err := second.Thaw(id); err != nil {
		t.Error(err)
	}
	if err := second.Delete(context.WithoutCancel(t.Context()), id, true); err != nil {
		t.Error(err)
	}
}

func memoryLimit(t *testing.T, version int, path string) string {
	t.Helper()
	name := filepath.Join("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
	if version == 2 {
		name = filepath.Join("/sys/fs/cgroup", path, "memory.max")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestExecUser(t *testing.T) {
	d := newDriver(t)
	id, _ := started(t, d, 64*root.MiB, 0, "sleep")
	f, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e := execOf(f, []string{"/payload", "print", "HOME"})
	e.User, e.Dir = "1234", "/proc"
	if code, err := d.Exec(t.Context(), id, e); err != nil || code != 0 {
		t.Fatalf("exec: got %d, %v", code, err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if want := "/proc 1234 1234\nHOME=/\n"; string(data) != want {
		t.Errorf("exec: got %q, want %q", data, want)
	}
	e.User = "nobody-here"
	if _, err := d.Exec(t.Context(), id, e); !root.IsKind(err, root.Invalid) {
		t.Errorf("exec as a user that does not exist: got %v, want kind %v", err, root.Invalid)
	}
}

func TestRuntimeNotInstalled(t *testing.T) {
	d := newDriver(t)
	c := newBundle(t, d, runtimetest.Rootfs(t, runtimetest.Payload(t)), []string{"/payload", "sleep"}, 64*root.MiB, 0)
	c.Runtime = "no-such-runtime"
	if _, err := d.Create(t.Context(), c); !root.IsKind(err, root.Precondition) {
		t.Errorf("got %v, want kind %v", err, root.Precondition)
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("list: got %v, %v", list, err)
	}
}
