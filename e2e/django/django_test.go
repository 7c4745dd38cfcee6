package django

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"

	"github.com/roost-run/roost/e2e/instance"
)

// TestShop runs the demo's steps on a real host and compares the host before
// and after.
func TestShop(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: machines need namespaces, mounts and control groups")
	}
	source, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	before, err := instance.ReadHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in, err := instance.Start(t.Context(), cmp.Or(os.Getenv("E2E_BINARY"), filepath.Join(source, "bin", "roost")), Settings()...)
	if err != nil {
		t.Fatal(err)
	}
	s := New(in, source)
	defer s.Close()
	for _, step := range Steps() {
		ok := t.Run(step.Name, func(t *testing.T) {
			seen, err := step.Run(t.Context(), s)
			if err != nil {
				t.Fatalf("%v\n\nthe platform's last words:\n%s", err, in.LogTail(40))
			}
			t.Log(seen)
		})
		if !ok {
			break // the steps build on each other
		}
	}
	if err := in.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := instance.CheckRestored(t.Context(), before, in.Marks(), in.Dir); err != nil {
		t.Error(err)
	}
}
