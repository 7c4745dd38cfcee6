package deploy

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/e2e/instance"
)

// TestDisk: two hundred deploys, each with a layer of its own, stay within the
// budget, and the releases that can be rolled back to can be.
func TestDisk(t *testing.T) {
	t.Parallel()
	const (
		releases = 200
		kept     = 5
		layer    = 1 << 20
		budget   = 16 << 20
	)
	h := newHost(t, fmt.Sprintf("--keep-releases=%d", kept), fmt.Sprintf("--image-budget=%dMB", budget>>20), "--image-sweep=10s")
	dir := h.folder("disk", "")
	for n := range releases {
		noise := make([]byte, layer)
		_, _ = rand.Read(noise)
		ref := h.image("disk", fmt.Sprintf("n%d", n), instance.File{Name: "noise", Data: string(noise)})
		h.mustDeploy(dir, ref)
	}
	if got, want := h.serves("disk"), fmt.Sprintf("n%d", releases-1); got != want {
		t.Errorf("%q serves, want %q", got, want)
	}
	images := filepath.Join(h.Dir, "data", "images")
	// What a layer takes: its blob, and unpacked. The program is in a layer
	// that all share.
	const most = (kept+2)*2*layer*2 + 2*budget + 64<<20
	h.eventually(func() string {
		if got := size(t, images); got > most {
			return fmt.Sprintf("the images take %d MB, want at most %d", got>>20, most>>20)
		}
		return ""
	})
	t.Logf("the images take %d MB after %d deploys", size(t, images)>>20, releases)
	list := h.releases("disk")
	if len(list) < kept {
		t.Fatalf("%d releases are listed, want at least %d", len(list), kept)
	}
	oldest := list[kept-1]
	if _, err := h.CLI(t.Context(), "rollback", fmt.Sprintf("v%d", oldest.Version), "--app", "disk", "--yes"); err != nil {
		t.Fatal(err)
	}
	if got, want := h.serves("disk"), fmt.Sprintf("n%d", releases-kept); got != want {
		t.Errorf("after the rollback to v%d %q serves, want %q", oldest.Version, got, want)
	}
}

// size is what the files below a directory take on the disk.
func size(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil // it may have been removed meanwhile
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
