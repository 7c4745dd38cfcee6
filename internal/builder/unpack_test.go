package builder

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

func archive(t *testing.T, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	err := unpack(archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "a/b/script", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 3},
		tar.Header{Name: "a/link", Typeflag: tar.TypeSymlink, Linkname: "b/script"},
		tar.Header{Name: "a/dangling", Typeflag: tar.TypeSymlink, Linkname: "nothing"},
		tar.Header{Name: "twice", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1},
		tar.Header{Name: "twice", Typeflag: tar.TypeReg, Mode: 0o644, Size: 2},
	), dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a/b/script": "xxx", "a/link": "xxx", "twice": "xx"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "a/b/script")); err != nil || st.Mode() != 0o711 {
		t.Errorf("mode of a script: got %v, %v; want -rwx--x--x", st.Mode(), err)
	}
}

// Nothing in an upload reaches out of its directory, also not in two steps.
func TestUnpackStaysInside(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	for name, entries := range map[string][]tar.Header{
		"parent":                {{Name: "../x", Typeflag: tar.TypeReg}},
		"parent inside":         {{Name: "a/../../x", Typeflag: tar.TypeReg}},
		"through absolute link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"through relative link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"directory over link":   {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/d", Typeflag: tar.TypeDir}},
		"link out":              {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}},
		"link by a link":        {{Name: "p/q/a", Typeflag: tar.TypeSymlink, Linkname: "../.."}, {Name: "p/q/a/l", Typeflag: tar.TypeSymlink, Linkname: "../x"}},
		"hard link":             {{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
		"device":                {{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"fifo":                  {{Name: "f", Typeflag: tar.TypeFifo}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			dir := filepath.Join(top, "context")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			err := unpack(archive(t, entries...), dir)
			if !root.IsKind(err, root.Invalid) {
				t.Errorf("got %v, want Invalid", err)
			}
			for _, d := range []string{top, outside} {
				left, err := os.ReadDir(d)
				if err != nil || len(left) > 1 || len(left) == 1 && left[0].Name() != "context" {
					t.Errorf("%s: got %v, %v", d, left, err)
				}
			}
		})
	}
}

func TestUnpackBounds(t *testing.T) {
	t.Parallel()
	b := &bounded{r: strings.NewReader("0123456789"), left: 9, what: "it"}
	if _, err := io.ReadAll(b); !root.IsKind(err, root.TooLarge) {
		t.Errorf("ten bytes of nine: got %v, want TooLarge", err)
	}
	b = &bounded{r: strings.NewReader("0123456789"), left: 10, what: "it"}
	if got, err := io.ReadAll(b); err != nil || len(got) != 10 {
		t.Errorf("ten bytes of ten: got %q, %v", got, err)
	}
	// The bound's kind survives the archive's reader.
	whole := archive(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 4000})
	if err := unpack(&bounded{r: whole, left: 2000, what: "it"}, t.TempDir()); !root.IsKind(err, root.TooLarge) {
		t.Errorf("archive beyond the bound: got %v, want TooLarge", err)
	}
	cut := archive(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 4000})
	cut.Truncate(2000)
	if err := unpack(cut, t.TempDir()); !root.IsKind(err, root.Invalid) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("archive cut off: got %v, want Invalid", err)
	}
}
