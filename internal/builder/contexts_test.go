package builder

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/buildcontext"
)

func scan(t *testing.T, dir string) (*buildcontext.Scanned, []byte) {
	t.Helper()
	s, err := buildcontext.Scan(t.Context(), dir, buildcontext.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(s.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	return s, data
}

func stream(t *testing.T, s *buildcontext.Scanned, wanted ...digest.Digest) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Write(&b, wanted); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Whatever name an app may have, its files have a place.
func TestContextOfAnyApp(t *testing.T) {
	t.Parallel()
	c, err := openContexts(t.TempDir(), contextBudget)
	if err != nil {
		t.Fatal(err)
	}
	_, manifest := scan(t, source(t, map[string]string{"a": "a"}))
	for _, name := range []string{"boot", "blobs", "manifests", "x"} {
		app, err := root.ParseAppName(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.begin(key(app), bytes.NewReader(manifest)); err != nil {
			t.Errorf("app %s: %v", app, err)
		}
	}
}

// An app that has the name of one that is gone has nothing of it, and what the
// old one had goes.
func TestContextForget(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	c, err := openContexts(contextsDir(Dir(data)), contextBudget)
	if err != nil {
		t.Fatal(err)
	}
	s, manifest := scan(t, source(t, map[string]string{"secret": "s3cr3t"}))
	id, missing, err := c.begin("shop.1", bytes.NewReader(manifest))
	if err != nil || len(missing) != 1 {
		t.Fatalf("got %v missing, %v", missing, err)
	}
	if err := c.receive("shop.1", id, bytes.NewReader(stream(t, s, missing...))); err != nil {
		t.Fatal(err)
	}
	if _, missing, err := c.begin("shop.2", bytes.NewReader(manifest)); err != nil || len(missing) != 1 {
		t.Errorf("another app of that name: got %v missing, %v, want the file to be sent", missing, err)
	}
	if err := Forget(Dir(data), "shop.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(contextsDir(Dir(data)), "shop.1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was forgotten: got %v", err)
	}
	if _, missing, err := c.begin("shop.1", bytes.NewReader(manifest)); err != nil || len(missing) != 1 {
		t.Errorf("after Forget: got %v missing, %v, want the file to be sent", missing, err)
	}
	for _, bad := range []string{"", ".", "..", ".boot", "a/b", "../x"} {
		if err := Forget(Dir(data), bad); !root.IsKind(err, root.Invalid) {
			t.Errorf("%q: got %v, want Invalid", bad, err)
		}
	}
}

// Only what changed is sent, and what arrived before a connection broke is not
// sent again.
func TestContextDelta(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	dir := source(t, map[string]string{"a": "a", "b": "b", "sub/c": "c"})
	if _, sent := send(t, h, "shop", dir); sent != 3 {
		t.Errorf("first: %d files sent, want 3", sent)
	}
	if _, sent := send(t, h, "shop", dir); sent != 0 {
		t.Errorf("again: %d files sent, want none", sent)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/c"), []byte("C"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, sent := send(t, h, "shop", dir); sent != 1 {
		t.Errorf("one changed: %d files sent, want 1", sent)
	}
	// Another app gets nothing of it: a digest is no permission to read.
	if _, sent := send(t, h, "other", dir); sent != 3 {
		t.Errorf("another app: %d files sent, want 3", sent)
	}
}

func TestContextResume(t *testing.T) {
	t.Parallel()
	c, err := openContexts(filepath.Join(t.TempDir(), "contexts"), root.GiB)
	if err != nil {
		t.Fatal(err)
	}
	s, manifest := scan(t, source(t, map[string]string{"a": "aaaa", "b": "bbbb"}))
	id, missing, err := c.begin("shop", bytes.NewReader(manifest))
	if err != nil || len(missing) != 2 {
		t.Fatalf("begin: %v, %v", missing, err)
	}
	if _, _, err := c.open("shop", id); !root.IsKind(err, root.Precondition) {
		t.Errorf("open before it is whole: got %v, want Precondition", err)
	}
	whole := stream(t, s, missing...)
	if err := c.receive("shop", id, bytes.NewReader(whole[:len(whole)-2])); err == nil {
		t.Error("a stream that ended early: got no error")
	}
	_, left, err := c.begin("shop", bytes.NewReader(manifest))
	if err != nil || len(left) != 1 || left[0] != missing[1] {
		t.Fatalf("after the break: %v, %v, want the second alone", left, err)
	}
	if err := c.receive("shop", id, bytes.NewReader(stream(t, s, left...))); err != nil {
		t.Fatal(err)
	}
	tree, release, err := c.open("shop", id)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	target := filepath.Join(t.TempDir(), "source")
	if err := tree.write(target); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "aaaa", "b": "bbbb"} {
		if got, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func TestContextRefuses(t *testing.T) {
	t.Parallel()
	c, err := openContexts(filepath.Join(t.TempDir(), "contexts"), root.GiB)
	if err != nil {
		t.Fatal(err)
	}
	s, manifest := scan(t, source(t, map[string]string{"a": "aaaa"}))
	id, missing, err := c.begin("shop", bytes.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	good := stream(t, s, missing...)
	lie := bytes.Replace(good, []byte("aaaa"), []byte("bbbb"), 1)
	other, _ := scan(t, source(t, map[string]string{"z": "zzzz"}))
	for name, data := range map[string][]byte{
		"other content":         lie,
		"not part of it":        stream(t, other, digest.FromString("zzzz")),
		"no digest":             []byte("../../etc/passwd 4\nroot"),
		"a digest with slashes": []byte("sha256:../../../x 1\nx"),
	} {
		if err := c.receive("shop", id, bytes.NewReader(data)); !root.IsKind(err, root.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	if _, missing, err := c.begin("shop", bytes.NewReader(manifest)); err != nil || len(missing) != 1 {
		t.Errorf("after the refusals: missing %v, %v, want the file", missing, err)
	}
	for name, data := range map[string]string{
		"points out":     `{"entries":[{"path":"../x","mode":420,"size":0,"digest":"` + string(digest.FromString("")) + `"}]}`,
		"not a manifest": `[1]`,
	} {
		if _, _, err := c.begin("shop", strings.NewReader(data)); !root.IsKind(err, root.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	for _, id := range []digest.Digest{"sha256:../../x", "", digest.FromString("unknown")} {
		if _, _, err := c.open("shop", id); err == nil {
			t.Errorf("open %q: got no error", id)
		}
	}
}

// Files of contexts stay within their budget, the newest stay; after a reboot
// none is trusted.
func TestContextCollect(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "contexts")
	c, err := openContexts(dir, 8)
	if err != nil {
		t.Fatal(err)
	}
	s, manifest := scan(t, source(t, map[string]string{"a": "aaaa", "b": "bbbb", "c": "cccc"}))
	id, missing, err := c.begin("shop", bytes.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.receive("shop", id, bytes.NewReader(stream(t, s, missing...))); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(c.blob("shop", digest.FromString("bbbb")), old, old); err != nil {
		t.Fatal(err)
	}
	_, release, err := c.open("shop", id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.collect(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, missing, err = c.begin("shop", bytes.NewReader(manifest)); err != nil || len(missing) != 0 {
		t.Errorf("collected while it is in use: %v, %v", missing, err)
	}
	release()
	if err := c.collect(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, missing, err = c.begin("shop", bytes.NewReader(manifest)); err != nil || len(missing) != 1 || missing[0] != digest.FromString("bbbb") {
		t.Errorf("after collecting: missing %v, %v, want the oldest", missing, err)
	}
	if err := c.collect(time.Now().Add(2 * keepManifest)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.manifest("shop", id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("manifest after two days: got %v, want none", err)
	}
	if err := os.WriteFile(filepath.Join(dir, bootMark), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = openContexts(dir, 8); err != nil {
		t.Fatal(err)
	}
	if _, missing, err = c.begin("shop", bytes.NewReader(manifest)); err != nil || len(missing) != 3 {
		t.Errorf("after a reboot: missing %v, %v, want all", missing, err)
	}
}
