// Package django runs the tests of the Django example, which are Python's.
package django

import (
	"os"
	"os/exec"
	"testing"
)

// python is Debian's, for which the packages of scripts/setup are.
const python = "/usr/bin/python3"

func TestDjango(t *testing.T) {
	// A copy: the tests write, and the tree may not be ours to write to.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"tests":      {"test", "--verbosity", "2"},
		"migrations": {"makemigrations", "--check", "--dry-run"},
		"statics":    {"collectstatic", "--noinput"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), python, append([]string{"manage.py"}, args...)...)
			cmd.Dir = dir
			// Nothing of the caller's: DEBUG or FLY_APP_NAME would make another shop of it.
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + os.TempDir(), "LANG=C.UTF-8", "SECRET_KEY=test", "PYTHONDONTWRITEBYTECODE=1"}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("manage.py %v: %v\n%s\nscripts/setup installs what is missing", args, err, out)
			}
			t.Logf("%s", out)
		})
	}
}
