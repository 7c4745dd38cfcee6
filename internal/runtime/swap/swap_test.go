package swap

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	root "github.com/roost-run/roost"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it sets up swap")
	}
}

func inUse(t *testing.T, device string) bool {
	t.Helper()
	areas, err := active()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range areas {
		if a.Device == device {
			return true
		}
	}
	return false
}

func TestFile(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s, err := Setup("file:16MB", 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "swap")
	if s.Kind != KindFile || s.Device != name || s.Size != 16*root.MiB {
		t.Errorf("got %+v, want 16 MB in %s", s, name)
	}
	if !inUse(t, name) {
		t.Error("the kernel does not use it")
	}

	// The next process of the same Roost, whatever its mode, has it too.
	again, err := Setup("none", 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.Device != name {
		t.Errorf("taken over: got %+v, want %s", again, name)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if inUse(t, name) {
		t.Error("it is in use after Close")
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestFileLeftByACrash(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "swap"), []byte("half made"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Setup("file:16MB", 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFileTooLarge(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	_, err := Setup("file:8000000GB", 0, dir)
	if err == nil {
		t.Fatal("got no error")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Auto never fails for want of anything, and leaves the host as it was.
func TestAuto(t *testing.T) {
	needRoot(t)
	s, err := Setup("auto", 64*root.MiB, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else's may go away at any moment.
	if s.ours && !inUse(t, s.Device) {
		t.Errorf("got %+v, which the kernel does not use", s)
	}
	ours := s.ours
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if ours && inUse(t, s.Device) {
		t.Errorf("%s is in use after Close", s.Device)
	}
}

func TestZRAMSaysWhenThereIsNone(t *testing.T) {
	needRoot(t)
	s, err := Setup("zram", 64*root.MiB, t.TempDir())
	if err != nil {
		if !root.IsKind(err, root.Precondition) {
			t.Errorf("got %v, want kind %v", err, root.Precondition)
		}
		return
	}
	if s.Kind != KindZRAM || !inUse(t, s.Device) {
		t.Errorf("got %+v, want zram in use", s)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestModeIsInvalid(t *testing.T) {
	for _, mode := range []string{"", "disk", "file:", "file:lots"} {
		if _, err := Setup(mode, 0, t.TempDir()); !root.IsKind(err, root.Invalid) {
			t.Errorf("mode %q: got %v, want kind %v", mode, err, root.Invalid)
		}
	}
}

func TestParseSwaps(t *testing.T) {
	got := parseSwaps("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" +
		"/dev/zram0                              partition\t1048572\t\t0\t\t100\n" +
		"/var/lib/a\\040b/swap                    file\t\t65532\t\t12\t\t-2\n")
	want := []*Swap{
		{Kind: KindZRAM, Device: "/dev/zram0", Size: 1048572 * root.KiB},
		{Kind: KindFile, Device: "/var/lib/a b/swap", Size: 65532 * root.KiB},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Swap{})); diff != "" {
		t.Errorf("swaps (-want +got):\n%s", diff)
	}
}
