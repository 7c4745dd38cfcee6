package buildcontext

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
)

// tree writes files; a name that ends in -> is a symbolic link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for n, body := range files {
		link, isLink := strings.CutSuffix(n, "->")
		name := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if isLink {
			err = errors.Join(err, os.Symlink(body, name))
		} else {
			err = errors.Join(err, os.WriteFile(name, []byte(body), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func paths(m Manifest) []string {
	var list []string
	for _, e := range m.Entries {
		list = append(list, e.Path)
	}
	return list
}

func TestScan(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		".dockerignore": "*.log\nsecret\n!keep.log\nvendor/**/testdata\nonly/*\n!only/this\nempty\n",
		"main.go":       "x", "a.log": "x", "keep.log": "x", "sub/b.go": "x", "sub/c.log": "x", "secret/key": "x", ".git/config": "x",
		"vendor/m/testdata/big": "x", "vendor/m/m.go": "x", "only/this": "x", "only/that": "x", "link->": "main.go", "a-b/x": "x", "a/x": "x",
	}
	dir := tree(t, files)
	other := filepath.Join(t.TempDir(), "ignore")
	if err := errors.Join(os.WriteFile(other, []byte("*\n!main.go\n"), 0o644), os.WriteFile(filepath.Join(dir, "Web"), nil, 0o644), os.WriteFile(filepath.Join(dir, "Web.dockerignore"), []byte("**\n!sub/b.go\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	all := []string{".dockerignore", ".git", ".git/config", "Web", "Web.dockerignore", "a", "a/x", "a-b", "a-b/x", "keep.log", "link", "main.go", "only", "only/this", "sub", "sub/b.go", "sub/c.log", "vendor", "vendor/m", "vendor/m/m.go"}
	for name, tc := range map[string]struct {
		o    Options
		want []string
	}{
		"the directory's own":    {Options{}, all},
		"no hidden directories":  {Options{NoHidden: true}, slices.DeleteFunc(slices.Clone(all), func(p string) bool { return strings.HasPrefix(p, ".git") })},
		"another ignore file":    {Options{Ignore: other}, []string{"main.go"}},
		"that of the Dockerfile": {Options{Dockerfile: filepath.Join(dir, "Web")}, []string{"sub", "sub/b.go"}},
		"a Dockerfile without":   {Options{Dockerfile: filepath.Join(dir, "main.go")}, all},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Scan(t.Context(), dir, tc.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, paths(s.Manifest)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := Scan(t.Context(), dir, Options{Ignore: other + ".missing"}); !root.IsKind(err, root.Invalid) {
		t.Errorf("missing ignore file: got %v, want Invalid", err)
	}
}

// What has not changed is not read again, and what has is, also when its size
// has not and little time has passed.
func TestScanCache(t *testing.T) {
	t.Parallel()
	dir, kept := tree(t, map[string]string{"old": "one", "new": "one"}), filepath.Join(t.TempDir(), "cache.json")
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "old"), long, long); err != nil {
		t.Fatal(err)
	}
	scan := func() *Scanned {
		t.Helper()
		s, err := Scan(t.Context(), dir, Options{Cache: kept})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := scan()
	// The same size and time: by its cache it is taken for the same.
	for _, name := range []string{"old", "new"} {
		file := filepath.Join(dir, name)
		fi, err := os.Stat(file)
		if err == nil {
			err = errors.Join(os.WriteFile(file, []byte("two"), 0o644), os.Chtimes(file, fi.ModTime(), fi.ModTime()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	second := scan()
	one, two := digest.FromString("one"), digest.FromString("two")
	got := []digest.Digest{first.Entries[0].Digest, first.Entries[1].Digest, second.Entries[0].Digest, second.Entries[1].Digest}
	if diff := cmp.Diff([]digest.Digest{one, one, two, one}, got); diff != "" { // new, old
		t.Errorf("digests (-want +got):\n%s", diff)
	}
	// Sending finds out that the digest is not its own, and forgets it.
	if err := second.Write(io.Discard, []digest.Digest{one}); !root.IsKind(err, root.Conflict) {
		t.Errorf("send a file that changed: got %v, want Conflict", err)
	}
	if third := scan(); third.Entries[1].Digest != two {
		t.Error("the file is still taken for what it was")
	}
	// The cache of another directory is not this one's.
	elsewhere, err := Scan(t.Context(), tree(t, map[string]string{"old": "ONE"}), Options{Cache: kept})
	if err != nil || elsewhere.Entries[0].Digest != digest.FromString("ONE") {
		t.Errorf("elsewhere: got %v, %v", elsewhere.Entries, err)
	}
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("big", 1<<20)
	s, err := Scan(t.Context(), tree(t, map[string]string{"a": "a", "b": big, "c": "", "again": "a"}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := s.Blobs()
	if err != nil || len(blobs) != 3 {
		t.Fatalf("blobs: got %v, %v", blobs, err)
	}
	wanted := []digest.Digest{digest.FromString(big), digest.FromString(""), digest.FromString("a")}
	var stream bytes.Buffer
	if err := s.Write(&stream, wanted); err != nil {
		t.Fatal(err)
	}
	whole := stream.Bytes()
	read := func(data []byte) (got []digest.Digest, err error) {
		err = ReadBlobs(bytes.NewReader(data), func(d digest.Digest, size int64, body io.Reader) error {
			b, err := io.ReadAll(body)
			if int64(len(b)) == size && digest.FromBytes(b) == d {
				got = append(got, d)
			}
			return err
		})
		return got, err
	}
	if got, err := read(whole); err != nil || !slices.Equal(got, wanted) {
		t.Errorf("got %v, %v", got, err)
	}
	// A stream that breaks has delivered what came before.
	if got, _ := read(whole[:len(whole)-1]); !slices.Equal(got, wanted[:2]) {
		t.Errorf("broken: got %v, want the first two", got)
	}
	if _, err := read(whole[:10]); !root.IsKind(err, root.Invalid) {
		t.Errorf("broken in the first line: got %v, want Invalid", err)
	}
	for _, bad := range []string{"hello\n", string(wanted[0]) + " -1\n", string(wanted[0]) + " 99999999999999\n", "sha512:" + strings.Repeat("0", 128) + " 1\nx", strings.Repeat("x", 1000)} {
		if _, err := read([]byte(bad)); !root.IsKind(err, root.Invalid) {
			t.Errorf("%.20q: got %v, want Invalid", bad, err)
		}
	}
	if err := s.Write(io.Discard, []digest.Digest{digest.FromString("else")}); !root.IsKind(err, root.Invalid) {
		t.Errorf("asked for what there is not: got %v, want Invalid", err)
	}
}

// TestNamesOfOtherEncodings: the message names the cause.
func TestNamesOfOtherEncodings(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "caf\xe9.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Scan(t.Context(), dir, Options{})
	if err == nil || !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), "\"caf\\xe9.txt\" whose name or target is not UTF-8") {
		t.Errorf("got %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	file := func(name string) Entry { return Entry{Path: name, Mode: 0o644, Size: 1, Digest: d} }
	dir := func(name string) Entry { return Entry{Path: name, Mode: fs.ModeDir | 0o755} }
	link := func(name, to string) Entry { return Entry{Path: name, Mode: fs.ModeSymlink | 0o777, Link: to} }
	for name, tc := range map[string]struct {
		entries []Entry
		ok      bool
	}{
		"good":                {[]Entry{dir("a"), file("a/b"), file("a-b"), link("l", "/etc")}, true},
		"empty":               {nil, true},
		"out by name":         {[]Entry{file("../x")}, false},
		"out by an inner one": {[]Entry{dir("a"), file("a/../../x")}, false},
		"absolute":            {[]Entry{file("/etc/passwd")}, false},
		"the root":            {[]Entry{dir(".")}, false},
		"through a link":      {[]Entry{link("a", "/tmp"), file("a/b")}, false},
		"below a file":        {[]Entry{file("a"), file("a/b")}, false},
		"without a directory": {[]Entry{file("a/b")}, false},
		"twice":               {[]Entry{file("a"), file("a")}, false},
		"out of order":        {[]Entry{file("b"), file("a")}, false},
		"name not UTF-8":      {[]Entry{file("a\xff")}, false},
		"link not UTF-8":      {[]Entry{link("l", "a\xff")}, false},
		"a device":            {[]Entry{{Path: "a", Mode: fs.ModeDevice}}, false},
		"a file without":      {[]Entry{{Path: "a", Mode: 0o644}}, false},
		"a short digest":      {[]Entry{{Path: "a", Mode: 0o644, Digest: "sha256:abc"}}, false},
		"a negative size":     {[]Entry{{Path: "a", Mode: 0o644, Size: -1, Digest: d}}, false},
		"a link to nothing":   {[]Entry{link("a", "")}, false},
		"a directory of size": {[]Entry{{Path: "a", Mode: fs.ModeDir, Size: 1}}, false},
		"a zero byte":         {[]Entry{file("a\x00b")}, false},
	} {
		if err := (Manifest{tc.entries}).Check(); (err == nil) != tc.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := (Manifest{[]Entry{{Path: "a", Mode: 0o644, Size: int64(MaxSize) + 1, Digest: d}}}).Check(); !root.IsKind(err, root.TooLarge) {
		t.Errorf("too large: got %v", err)
	}
	two := Manifest{[]Entry{file("a"), {Path: "b", Mode: 0o644, Size: 2, Digest: d}}}
	if _, err := two.Blobs(); !root.IsKind(err, root.Invalid) {
		t.Errorf("one digest, two sizes: got %v", err)
	}
}

// A manifest is decoded from what anybody sends: whatever passes Check is
// written inside the directory it is for.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{`{}`, `{"entries":[{"path":"a","mode":420,"size":1,"digest":"` + string(digest.FromString("x")) + `"}]}`, `{"entries":[{"path":"a","mode":2147484141},{"path":"a/b","mode":134218239,"link":"../../x"}]}`, `{"entries":[{"path":"..","mode":420}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Manifest
		if json.Unmarshal(data, &m) != nil || m.Check() != nil {
			return
		}
		links := map[string]bool{}
		for _, e := range m.Entries {
			for p := filepath.Dir(e.Path); p != "."; p = filepath.Dir(p) {
				if links[p] {
					t.Fatalf("%q is behind the link %q", e.Path, p)
				}
			}
			links[e.Path] = e.Mode.Type() == fs.ModeSymlink
			if !filepath.IsLocal(e.Path) {
				t.Fatalf("%q points out", e.Path)
			}
		}
		var again Manifest
		out, err := json.Marshal(m)
		if err == nil {
			err = json.Unmarshal(out, &again)
		}
		if err != nil || again.ID() != m.ID() || again.Check() != nil {
			t.Fatalf("written and read again it is another: %v %s", err, fmt.Sprint(again))
		}
	})
}
