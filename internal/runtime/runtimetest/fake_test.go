package runtimetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
)

func TestFake(t *testing.T) {
	Suite(t, func(*testing.T) Fixture {
		f := NewFake()
		return Fixture{Driver: f, Bundle: plainBundle, OOM: f.OOM}
	})
}

func plainBundle(t *testing.T, rootfs string, args []string, _ root.Bytes) runtime.Container {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(specs.Spec{
		Root:    &specs.Root{Path: rootfs},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"FROM_BUNDLE=1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return runtime.Container{ID: filepath.Base(rootfs) + filepath.Base(filepath.Dir(rootfs)), Bundle: dir}
}
