package builder

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"bufio"

	root "github.com/roost-run/roost"
)

// Bounds of an uploaded context.
const (
	maxUpload  = 512 << 20 // as it arrives
	maxContext = 2 << 30   // unpacked
	maxFiles   = 200_000
)

// unpack writes the tar archive r, plain or gzip, to the empty directory dir.
// Nothing in it can reach out of dir: not by name, link or symbolic link.
func unpack(r io.Reader, dir string) error {
	top, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = top.Close() }() // only a handle
	in := bufio.NewReader(&bounded{r: r, left: maxUpload, what: "the upload"})
	var plain io.Reader = in
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			return damaged(err)
		}
		plain = z
	}
	plain = &bounded{r: plain, left: maxContext, what: "the unpacked upload"}
	t := tar.NewReader(plain)
	var links []string
	for files := 0; ; files++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		if files == maxFiles {
			return root.Errorf(root.TooLarge, "the upload has more than %d files: upload the program's directory only", maxFiles)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if name == "." {
			continue
		}
		if !fs.ValidPath(name) {
			return root.Errorf(root.Invalid, "the upload has an entry %q that points out of it", clip(h.Name))
		}
		if h.Typeflag == tar.TypeSymlink {
			links = append(links, name)
		}
		if err := entry(top, name, h, t); err != nil {
			return err
		}
	}
	// What follows the end of an archive is read so that the sender can finish.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return damaged(err)
	}
	// A link is followed by the toolchain, not by us: it must end inside.
	for _, l := range links {
		if _, err := top.Stat(l); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return root.Errorf(root.Invalid, "the upload has a symbolic link %q that points out of it", clip(l))
		}
	}
	return nil
}

func entry(top *os.Root, name string, h *tar.Header, body io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return outside(name, top.MkdirAll(name, 0o755))
	case tar.TypeReg, tar.TypeSymlink:
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return root.Errorf(root.Invalid, "the upload has an entry %q that is neither file, directory nor symbolic link", clip(name))
	}
	if err := top.MkdirAll(path.Dir(name), 0o755); err != nil {
		return outside(name, err)
	}
	if err := top.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return outside(name, err)
	}
	if h.Typeflag == tar.TypeSymlink {
		return outside(name, top.Symlink(h.Linkname, name))
	}
	f, err := top.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600|fs.FileMode(h.Mode)&0o111)
	if err != nil {
		return outside(name, err)
	}
	_, err = io.Copy(f, body)
	if err := errors.Join(err, f.Close()); err != nil {
		return damaged(err)
	}
	return nil
}

// outside words what os.Root says of a name that it refuses.
func outside(name string, err error) error {
	if err == nil {
		return nil
	}
	return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("the upload has an entry %q that cannot be written inside it", clip(name)), Err: err}
}

func damaged(err error) error {
	if root.KindOf(err) != root.Internal {
		return err
	}
	return &root.Error{Kind: root.Invalid, Message: "the upload is not a whole tar archive", Err: err}
}

// bounded gives kind TooLarge when more than left bytes come.
type bounded struct {
	r    io.Reader
	left int64
	what string
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, root.Errorf(root.TooLarge, "%s is too large: leave out what the build does not need", b.what)
	}
	return n, err
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}
