package supervisor

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeepInMemory: bundles are never on a disk, a directory in use is left
// alone, and everything is gone afterwards.
func TestKeepInMemory(t *testing.T) {
	disk, err := os.MkdirTemp(".", "inmemory-") // beside the source, which is on a disk
	if err != nil {
		t.Fatal(err)
	}
	if disk, err = filepath.Abs(disk); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmountBelow(disk); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(disk); err != nil {
			t.Errorf("not restored: %v", err)
		}
	})
	if on, err := isInMemory(disk); err != nil || on {
		t.Fatalf("the test needs a directory on a disk, %s is none (%v)", disk, err)
	}
	log := slog.New(slog.DiscardHandler)
	used, fresh := filepath.Join(disk, "used"), filepath.Join(disk, "fresh")
	if err := os.MkdirAll(filepath.Join(used, "01J0"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{used: false, fresh: true} {
		for range 2 { // the next server process finds it as it is
			if err := keepInMemory(dir, log); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := isInMemory(dir); err != nil || got != want {
			t.Errorf("%s is in memory: got %v, %v, want %v", dir, got, err, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(fresh, &st); err != nil || st.Mode&0o777 != 0o700 {
		t.Errorf("mode: got %o, %v, want 700", st.Mode&0o777, err)
	}
}

// TestKeepInMemoryApart: where the run directory is in memory already, bundles
// are in a file system of their own, once, so that machines cannot fill the
// host's.
func TestKeepInMemoryApart(t *testing.T) {
	run := t.TempDir()
	if err := unix.Mount("test", run, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(run, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := unmountBelow(run); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.DiscardHandler)
	fresh, used := filepath.Join(run, "fresh"), filepath.Join(run, "used")
	for _, dir := range []string{fresh, filepath.Join(used, "01J0")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]int{fresh: 1, used: 0} {
		for range 2 {
			if err := keepInMemory(dir, log); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(string(data), " "+dir+" "); got != want {
			t.Errorf("mounts at %s: got %d, want %d", dir, got, want)
		}
	}
}
