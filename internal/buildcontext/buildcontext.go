// Package buildcontext is a directory on its way to the builder: the manifest
// of its files, which names contents by digest, so that only what the other
// side lacks is sent. Scan makes it on the client, leaving out what the ignore
// file names; Write and ReadBlobs are the two ends of the transfer. Both the
// client and the builder use it; it knows neither HTTP nor where blobs are kept.
package buildcontext

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
)

// Bounds of a context.
const (
	MaxFiles    = 200_000
	MaxSize     = root.Bytes(4 << 30) // of all files together
	MaxManifest = 64 << 20            // bytes of JSON
)

// Entry is a file, directory or symbolic link of a context.
type Entry struct {
	Path   string        `json:"path"` // with slashes, relative, clean
	Mode   fs.FileMode   `json:"mode"` // type and permissions: Go's bits
	Size   int64         `json:"size,omitempty"`
	MTime  int64         `json:"mtime,omitempty"`  // seconds since 1970
	Digest digest.Digest `json:"digest,omitempty"` // of a regular file
	Link   string        `json:"link,omitempty"`   // of a symbolic link
}

// Manifest is a context: its entries, sorted by Compare, each directory before
// what it holds.
type Manifest struct {
	Entries []Entry `json:"entries"`
}

// Compare orders paths as a walk of the tree meets them.
func Compare(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// ID names the manifest: the digest of its JSON.
func (m Manifest) ID() digest.Digest {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and numbers
	}
	return digest.FromBytes(data)
}

// Check refuses what no honest client sends: entries that point out of the
// context, by name or through a link, twice, without their directory, of other
// kinds than the three, or too many of them. Kinds: Invalid, TooLarge.
func (m Manifest) Check() error {
	if len(m.Entries) > MaxFiles {
		return root.Errorf(root.TooLarge, "the build context has %d files, more than %d: leave out what the build does not need, with a .dockerignore", len(m.Entries), MaxFiles)
	}
	dirs := map[string]bool{".": true}
	var total root.Bytes
	for i, e := range m.Entries {
		if !utf8.ValidString(e.Path) || !utf8.ValidString(e.Link) { // JSON would change it on the way
			return root.Errorf(root.Invalid, "the build context has an entry %q whose name or target is not UTF-8: rename it, or leave it out with a .dockerignore", clip(e.Path))
		}
		if !fs.ValidPath(e.Path) || e.Path == "." || strings.ContainsRune(e.Path, 0) {
			return root.Errorf(root.Invalid, "the build context has an entry %q that points out of it", clip(e.Path))
		}
		if i > 0 && Compare(m.Entries[i-1].Path, e.Path) >= 0 {
			return root.Errorf(root.Invalid, "the build context has the entry %q twice or out of order", clip(e.Path))
		}
		// A link is no directory, so nothing is written through one.
		if !dirs[path.Dir(e.Path)] {
			return root.Errorf(root.Invalid, "the build context has an entry %q outside of any of its directories", clip(e.Path))
		}
		if err := e.check(); err != nil {
			return err
		}
		dirs[e.Path] = e.Mode.IsDir()
		if total += root.Bytes(e.Size); total > MaxSize {
			return root.Errorf(root.TooLarge, "the build context is larger than %s: leave out what the build does not need, with a .dockerignore", MaxSize)
		}
	}
	return nil
}

func (e Entry) check() error {
	switch e.Mode.Type() {
	case fs.ModeDir:
		if e.Size == 0 && e.Digest == "" && e.Link == "" {
			return nil
		}
	case fs.ModeSymlink:
		if e.Size == 0 && e.Digest == "" && e.Link != "" && !strings.ContainsRune(e.Link, 0) {
			return nil
		}
	case 0:
		if e.Size >= 0 && e.Link == "" && e.Digest.Validate() == nil && e.Digest.Algorithm() == digest.SHA256 {
			return nil
		}
	default:
		return root.Errorf(root.Invalid, "the build context has an entry %q that is neither file, directory nor symbolic link", clip(e.Path))
	}
	return root.Errorf(root.Invalid, "the build context has an entry %q that says contradictory things", clip(e.Path))
}

// Blobs lists the contents that the manifest needs, each once, with its size.
// Kind Invalid if it gives one of them two sizes.
func (m Manifest) Blobs() (map[digest.Digest]int64, error) {
	blobs := map[digest.Digest]int64{}
	for _, e := range m.Entries {
		if e.Digest == "" {
			continue
		}
		if size, ok := blobs[e.Digest]; ok && size != e.Size {
			return nil, root.Errorf(root.Invalid, "the build context gives %s two sizes", e.Digest)
		}
		blobs[e.Digest] = e.Size
	}
	return blobs, nil
}

// clip keeps hostile input out of messages.
func clip(s string) string {
	if len(s) > 120 {
		return fmt.Sprintf("%s...", s[:120])
	}
	return s
}
