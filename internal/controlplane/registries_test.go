package controlplane

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/config"
)

func TestRegistries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HUB_PASSWORD", "hubs")
	r := registries{
		{Host: "docker.io", Username: "hub", PasswordEnv: "HUB_PASSWORD"},
		{Host: "ghcr.io", Mirrors: []string{"https://mirror.test/ghcr", "https://other.test:5000"}, Username: "me", PasswordFile: file},
		{Host: "10.0.0.5:5000", PlainHTTP: true},
		{Host: "gone.test", Username: "me", PasswordFile: file + ".missing"},
	}
	for host, want := range map[string][2]string{
		"registry-1.docker.io": {"hub", "hubs"}, "docker.io": {"hub", "hubs"},
		"mirror.test": {"me", "secret"}, "other.test:5000": {"me", "secret"}, "ghcr.io": {}, "10.0.0.5:5000": {}, "elsewhere.test": {},
	} {
		user, password, err := r.credentials(host)
		if err != nil || [2]string{user, password} != want {
			t.Errorf("%s: got %s:%s, %v, want %v", host, user, password, err, want)
		}
	}
	if _, _, err := r.credentials("gone.test"); err == nil {
		t.Error("a password that cannot be read: got no error")
	}
	if diff := cmp.Diff([]string{"https://mirror.test/ghcr", "https://other.test:5000"}, r.mirrors("ghcr.io")); diff != "" {
		t.Errorf("mirrors (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.0.0.5:5000"}, r.plainHTTP()); diff != "" {
		t.Errorf("plain HTTP (-want +got):\n%s", diff)
	}
	var none registries = []config.Registry(nil)
	if none.mirrors("docker.io") != nil {
		t.Error("mirrors of nothing")
	}
}
