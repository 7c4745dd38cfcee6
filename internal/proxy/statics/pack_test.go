package statics

import (
	"compress/gzip"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/andybalholm/brotli"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/route"
)

// TestPack: a text that the image has in one form is compressed for those who
// can read it; ranges and tags are of what is sent.
func TestPack(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("body { color: red }\n", 500)
	noise := make([]byte, 8<<10)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(noise)
	dir := tree(t, map[string]string{
		"s/app.css": text, "s/small.css": "a{}", "s/photo.jpg": text, "s/noise.js": string(noise), "s/huge.txt": strings.Repeat("x", maxPacked+1),
		"s/own.css": text, "s/own.css.gz": "GZIP",
	})
	s := serverOf(map[root.Digest]string{img: dir})
	set := sets(route.FileMount{Prefix: "/s", Guest: "/s"})
	tags := map[string]bool{}
	for name, c := range map[string]struct {
		path, accept string
		coding       string
		varies       bool
	}{
		"brotli":            {"app.css", "gzip, br", "br", true},
		"gzip":              {"app.css", "gzip", "gzip", true},
		"none wanted":       {"app.css", "", "", true},
		"zstd only":         {"app.css", "zstd", "", true},
		"too small":         {"small.css", "br", "", false},
		"compressed by now": {"photo.jpg", "br", "", false},
		"too large":         {"huge.txt", "br", "", false},
		"not worth it":      {"noise.js", "br", "", true},
		"has a variant":     {"own.css", "br", "", true},
	} {
		resp, body, v := ask(t, s, set, "/s/"+c.path, "Accept-Encoding", c.accept)
		if v != Found || resp.StatusCode != 200 {
			t.Fatalf("%s: verdict %d", name, v)
		}
		if got := resp.Header.Get("Content-Encoding"); got != c.coding {
			t.Errorf("%s: coding: got %q, want %q", name, got, c.coding)
		}
		if got := resp.Header.Get("Vary") != ""; got != c.varies {
			t.Errorf("%s: Vary: got %q", name, resp.Header.Get("Vary"))
		}
		if c.path != "app.css" {
			continue
		}
		if tags[c.coding+resp.Header.Get("Etag")] = true; resp.ContentLength != int64(len(body)) {
			t.Errorf("%s: length %d, %d bytes", name, resp.ContentLength, len(body))
		}
		if got := unpack(t, c.coding, body); got != text {
			t.Errorf("%s: got %d bytes of another text", name, len(got))
		}
	}
	if len(tags) != 3 {
		t.Errorf("three forms have the tags %v", tags)
	}
	whole, body, _ := ask(t, s, set, "/s/app.css", "Accept-Encoding", "br")
	part, end, _ := ask(t, s, set, "/s/app.css", "Accept-Encoding", "br", "Range", "bytes=10-", "If-Range", whole.Header.Get("Etag"))
	if part.StatusCode != 206 || end != body[10:] || part.Header.Get("Content-Encoding") != "br" {
		t.Errorf("range: got %d, %d bytes", part.StatusCode, len(end))
	}
	if same, _, _ := ask(t, s, set, "/s/app.css", "Accept-Encoding", "br", "If-None-Match", whole.Header.Get("Etag")); same.StatusCode != 304 {
		t.Errorf("known tag: got %d", same.StatusCode)
	}
	if resp, plain, _ := ask(t, s, set, "/s/app.css", "Accept-Encoding", "br", "Plain", "1"); plain != text || resp.Header.Get("Vary") != "" {
		t.Errorf("compression off: got %d bytes, Vary %q", len(plain), resp.Header.Get("Vary"))
	}
}

func unpack(t *testing.T, coding, body string) string {
	t.Helper()
	var r io.Reader = strings.NewReader(body)
	var err error
	switch coding {
	case "br":
		r = brotli.NewReader(r)
	case "gzip":
		r, err = gzip.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestPacksAreBounded: what is kept does not grow with what is asked for.
func TestPacksAreBounded(t *testing.T) {
	t.Parallel()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	p := &packs{}
	big := pack{data: make([]byte, 1<<20)}
	for i := range 50 {
		p.keep(packKey{fileKey{name: string(rune('a' + i))}, "br"}, big)
	}
	total := 0
	for _, m := range []map[packKey]pack{p.young, p.old} {
		for _, v := range m {
			total += len(v.data)
		}
	}
	if limit := 2 * (keptPacked + 1<<20); total > limit || total == 0 {
		t.Errorf("%d bytes are kept, want at most %d", total, limit)
	}
}

// Many who ask for one file at once get the same.
func TestPackConcurrently(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("const answer = 42;\n", 5000)
	dir := tree(t, map[string]string{"s/app.js": text})
	s := serverOf(map[root.Digest]string{img: dir})
	set := sets(route.FileMount{Prefix: "/s", Guest: "/s"})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, body, _ := ask(t, s, set, "/s/app.js", "Accept-Encoding", "br"); unpack(t, "br", body) != text {
				t.Error("another text")
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(filepath.Join(dir, "s/app.js.br")); err == nil {
		t.Error("the image was written to")
	}
}
