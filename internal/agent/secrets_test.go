package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime/bundle"
)

// vault has the secrets of version 3.
type vault map[string]string

func (v vault) Open(_ context.Context, app root.AppName, version int) (map[string]string, error) {
	if app != appName || version != 3 {
		return nil, root.Errorf(root.NotFound, "app %s has no version %d of its secrets", app, version)
	}
	return v, nil
}

// withVault starts the agent again with secrets.
func (h *host) withVault(v vault) {
	h.t.Helper()
	h.kill()
	h.options.Secrets = v
	h.begin()
}

// launchWith launches machine n with version 3 of the secrets.
func (h *host) launchWith(n int, c root.Config, version int) (*root.Machine, error) {
	h.t.Helper()
	m := h.machine(n, c, true)
	m.Spec.Secrets = version
	_, err := h.Launch(h.t.Context(), m)
	return m, err
}

// TestSecretsAreInjected: they beat the config's environment, not the
// platform's, and a file that is one never gets into the root file system.
func TestSecretsAreInjected(t *testing.T) {
	h := newHost(t)
	key := "a private key"
	h.withVault(vault{"KEY": "canary", "FLY_REGION": "elsewhere", "FILE": base64.StdEncoding.EncodeToString([]byte(key))})
	c := workerConfig()
	c.Env = map[string]string{"KEY": "config", "OTHER": "config"}
	c.Process = &root.Process{Env: map[string]string{"KEY": "process"}}
	c.Files = []root.File{{GuestPath: "/etc/app/key.pem", Secret: "FILE", Mode: 0o400}, {GuestPath: "/etc/plain", Content: []byte("plain")}}
	m, err := h.launchWith(1, c, 3)
	must(t, err)
	dir := filepath.Join(h.options.Config.MachineDir(m.Spec.Instance), "1")
	spec, err := bundle.Read(dir)
	must(t, err)
	env := strings.Join(spec.Process.Env, "\n") + "\n"
	if !strings.Contains(env, "KEY=canary\n") || strings.Contains(env, "elsewhere") || !strings.Contains(env, "OTHER=config\n") {
		t.Errorf("environment:\n%s", env)
	}
	mounted := ""
	for _, mount := range spec.Mounts {
		if mount.Destination == "/etc/app/key.pem" {
			mounted = mount.Source
		}
	}
	if data, err := os.ReadFile(mounted); err != nil || string(data) != key || !strings.HasPrefix(mounted, dir) {
		t.Errorf("the file is %q with %q, %v", mounted, data, err)
	}
	if fi, err := os.Stat(mounted); err == nil && fi.Mode().Perm() != 0o400 {
		t.Errorf("mode: got %o, want 400", fi.Mode().Perm())
	}
	if fi, err := os.Stat(filepath.Join(dir, "config.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the bundle: got %v, %v, want mode 0600", fi.Mode(), err)
	}
	err = filepath.WalkDir(filepath.Join(dir, "rootfs"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), key) || strings.Contains(string(data), "canary") {
			t.Errorf("a secret is in the root file system, in %s", path)
		}
		return err
	})
	must(t, err)
	if data, err := os.ReadFile(filepath.Join(dir, "rootfs", "etc", "plain")); err != nil || string(data) != "plain" {
		t.Errorf("the other file: got %q, %v", data, err)
	}
}

// sourceOf is what a bundle mounts at a place.
func sourceOf(t *testing.T, dir, destination string) string {
	t.Helper()
	spec, err := bundle.Read(dir)
	must(t, err)
	for _, m := range spec.Mounts {
		if m.Destination == destination {
			return m.Source
		}
	}
	t.Fatalf("nothing is mounted at %s", destination)
	return ""
}

// TestMachinesShareNoMemoryFiles: the run directory is one file system in
// memory for all. What a machine may write to is elsewhere, or bounded.
func TestMachinesShareNoMemoryFiles(t *testing.T) {
	h := newHost(t)
	h.withVault(vault{"FILE": base64.StdEncoding.EncodeToString([]byte("secret"))})
	c := workerConfig()
	c.Files = []root.File{{GuestPath: "/etc/key.pem", Secret: "FILE"}}
	m, err := h.launchWith(1, c, 3)
	must(t, err)
	dir := filepath.Join(h.options.Config.MachineDir(m.Spec.Instance), "1")
	spec, err := bundle.Read(dir)
	must(t, err)
	writable := 0
	for _, mount := range spec.Mounts {
		if mount.Type != "bind" || slices.Contains(mount.Options, "ro") {
			continue
		}
		writable++
		if !strings.HasPrefix(mount.Source, h.options.Config.Run+"/") {
			continue
		}
		var run, own unix.Statfs_t
		must(t, unix.Statfs(h.options.Config.Run, &run))
		must(t, unix.Statfs(filepath.Dir(mount.Source), &own))
		if own.Fsid == run.Fsid || own.Blocks*uint64(own.Bsize) > secretsSize {
			t.Errorf("%s is %s, on a file system of %d bytes that others use", mount.Destination, mount.Source, own.Blocks*uint64(own.Bsize))
		}
		full := os.WriteFile(mount.Source, make([]byte, secretsSize+1), 0o600)
		if !errors.Is(full, unix.ENOSPC) {
			t.Errorf("%s filled: got %v, want ENOSPC", mount.Destination, full)
		}
	}
	if writable < 4 { // hosts, resolv.conf, hostname, the secret
		t.Errorf("got %d writable mounts: %+v", writable, spec.Mounts)
	}
	_, err = h.Destroy(t.Context(), m.ID)
	must(t, err)
	mounted, err := mountedBelow(h.options.Config.Run)
	must(t, err)
	if len(mounted) > 0 {
		t.Errorf("still mounted: %q", mounted)
	}
	left, err := filepath.Glob(filepath.Join(h.images.dir, "*", "*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left on disk: %q", left)
	}
}

// TestImageOfOthers: what a config reads of an image is asked for at each boot,
// for the image's name may have become another's.
func TestImageOfOthers(t *testing.T) {
	h := newHost(t)
	h.kill()
	h.options.MayUse = func(_ context.Context, org root.OrgSlug, ref string) error {
		if org != "personal" || ref == "theirs" {
			return root.Errorf(root.Forbidden, "image %s belongs to another organisation than %s", ref, org)
		}
		return nil
	}
	h.begin()
	for n, ref := range []string{"ours", "theirs"} {
		c := workerConfig()
		c.Files = []root.File{{GuestPath: "/etc/image.json", ImageConfig: ref}}
		_, err := h.launchWith(n+1, c, 0)
		if refused := err != nil && strings.Contains(root.MessageOf(err), "another organisation"); refused != (ref == "theirs") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
}

// TestProcessChoosesSecrets: some under names of their own, or none.
func TestProcessChoosesSecrets(t *testing.T) {
	h := newHost(t)
	h.withVault(vault{"A": "canary-a", "B": "canary-b"})
	for n, tt := range []struct {
		p       root.Process
		has     []string
		hasNone string
	}{
		{root.Process{}, []string{"A=canary-a\n", "B=canary-b\n"}, "nothing"},
		{root.Process{Secrets: map[string]string{"KEY": "A"}}, []string{"KEY=canary-a\n"}, "canary-b"},
		{root.Process{Secrets: map[string]string{"KEY": "A"}, NoSecrets: true}, []string{"KEY=canary-a\n"}, "canary-b"},
		{root.Process{NoSecrets: true}, nil, "canary"},
	} {
		c := workerConfig()
		c.Process = &tt.p
		m, err := h.launchWith(n+1, c, 3)
		must(t, err)
		spec, err := bundle.Read(filepath.Join(h.options.Config.MachineDir(m.Spec.Instance), "1"))
		must(t, err)
		env := strings.Join(spec.Process.Env, "\n") + "\n"
		for _, part := range tt.has {
			if !strings.Contains(env, part) {
				t.Errorf("%+v: the environment lacks %q:\n%s", tt.p, part, env)
			}
		}
		if strings.Contains(env, tt.hasNone) {
			t.Errorf("%+v: the environment has %q:\n%s", tt.p, tt.hasNone, env)
		}
	}
}

// TestSecretsThatAreNotThere: the reason says what to do, and no value.
func TestSecretsThatAreNotThere(t *testing.T) {
	h := newHost(t)
	h.withVault(vault{"TEXT": "canary, no base64"})
	file := func(secret string) root.Config {
		c := workerConfig()
		c.Files = []root.File{{GuestPath: "/etc/key", Secret: secret}}
		return c
	}
	n := 0
	for name, tt := range map[string]struct {
		c       root.Config
		version int
		want    string
	}{
		"pruned":     {workerConfig(), 2, "version 2 of the app's secrets"},
		"no such":    {file("NONE"), 3, "config.files[0].secret_name: the app has no secret NONE"},
		"not base64": {file("TEXT"), 3, "not base64"},
		"a process's": {func() root.Config {
			c := workerConfig()
			c.Process = &root.Process{Secrets: map[string]string{"KEY": "NONE"}}
			return c
		}(), 3, "config.processes[0].secrets: the app has no secret NONE"},
		"no secrets": {file("NONE"), 0, "has no secret NONE"},
	} {
		n++
		_, err := h.launchWith(n, tt.c, tt.version)
		if !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: got %v, want Invalid with %q", name, err, tt.want)
		}
	}
}
