package statics

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/route"
)

// tree makes the files of an image: a name that ends in a slash is a
// directory, a content "-> x" is a link to x.
func tree(tb testing.TB, files map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			tb.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

const img = root.Digest("sha256:1")

// serverOf serves the trees, by digest.
func serverOf(trees map[root.Digest]string) *Server {
	return New(func(d root.Digest) string {
		if dir := trees[d]; dir != "" {
			return dir
		}
		return "/nowhere"
	})
}

func sets(mounts ...route.FileMount) []route.FileSet {
	return []route.FileSet{{Image: img, Mounts: mounts}}
}

// ask serves one request; found is false when it is not a file's.
func ask(tb testing.TB, s *Server, sets []route.FileSet, path string, header ...string) (*http.Response, string, Verdict) {
	tb.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	u, err := url.ParseRequestURI(path)
	if err != nil {
		tb.Fatal(err)
	}
	r.URL = u
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if m := r.Header.Get("Method"); m != "" {
		r.Method = m
	}
	f, v := s.Find(root.AppName(tb.Name()), sets, &Ask{URL: r.URL, AcceptEncoding: r.Header.Get("Accept-Encoding"), Plain: r.Header.Get("Plain") != ""}) // what an app had before lingers
	if v != Found {
		return nil, "", v
	}
	defer f.Close()
	w := httptest.NewRecorder()
	f.Serve(w, r)
	resp := w.Result()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp, string(body), v
}

func TestPaths(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"etc/passwd":          "secret",
		"srv/real/app.css":    "css",
		"srv/real/sub/a b.js": "js",
		"srv/real/..odd":      "odd",
		"srv/real/index.html": "home",
		"srv/real/docs/":      "",
		"srv/real/up":         "-> ..",
		"srv/real/out":        "-> ../../etc/passwd",
		"srv/real/abs":        "-> /etc/passwd",
		"srv/real/self.css":   "-> app.css",
		"app/static":          "-> /srv/real", // as a program in the machine would see it
		"app/escape":          "-> ../../../../../../../../srv/real",
		"app/proc":            "-> /proc/self/root",
		"srv/real/secret":     "x",
	})
	if err := unix.Mkfifo(filepath.Join(dir, "srv/real/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "srv/real/null"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err) // needs root
	}
	if err := unix.Mkfifo(filepath.Join(dir, "srv/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := serverOf(map[root.Digest]string{img: dir})
	plain := sets(route.FileMount{Prefix: "/static", Guest: "/app/static"})
	for name, c := range map[string]struct {
		sets    []route.FileSet
		path    string
		verdict Verdict
		want    string
	}{
		"file":                       {plain, "/static/app.css", Found, "css"},
		"below":                      {plain, "/static/sub/a%20b.js", Found, "js"},
		"query does not matter":      {plain, "/static/app.css?v=1", Found, "css"},
		"dots in a name":             {plain, "/static/..odd", Found, "odd"},
		"missing":                    {plain, "/static/nothing.css", Pass, ""},
		"other prefix":               {plain, "/staticky/app.css", Pass, ""},
		"the prefix itself":          {plain, "/static", Pass, ""},
		"directory":                  {plain, "/static/sub", Pass, ""},
		"directory with slash":       {plain, "/static/sub/", Pass, ""},
		"file with slash":            {plain, "/static/app.css/", Pass, ""},
		"no index unless asked":      {plain, "/static/", Pass, ""},
		"climb":                      {plain, "/static/../../../etc/passwd", Refuse, ""},
		"climb to a file in it":      {plain, "/static/sub/../app.css", Refuse, ""},
		"encoded climb":              {plain, "/static/%2e%2e/%2e%2e/etc/passwd", Refuse, ""},
		"climb with encoded slash":   {plain, "/static/..%2f..%2fetc/passwd", Pass, ""},
		"encoded slash":              {plain, "/static/sub%2fa%20b.js", Pass, ""},
		"two slashes":                {plain, "/static//app.css", Pass, ""},
		"dot":                        {plain, "/static/./app.css", Pass, ""},
		"NUL":                        {plain, "/static/app.css%00.js", Refuse, ""},
		"backslashes":                {plain, `/static/..\..\etc\passwd`, Pass, ""},
		"too long":                   {plain, "/static/" + strings.Repeat("a", 5000), Pass, ""},
		"deep":                       {plain, "/static/" + strings.Repeat("a/", 3000) + "b", Pass, ""},
		"link upwards":               {plain, "/static/up/real/app.css", Pass, ""},
		"link out":                   {plain, "/static/out", Pass, ""},
		"absolute link":              {plain, "/static/abs", Pass, ""},
		"link beside it":             {plain, "/static/self.css", Pass, ""},
		"FIFO":                       {plain, "/static/fifo", Pass, ""},
		"device":                     {plain, "/static/null", Pass, ""},
		"guest path climbs in vain":  {sets(route.FileMount{Prefix: "/s", Guest: "/app/escape"}), "/s/app.css", Found, "css"},
		"guest path with dots":       {sets(route.FileMount{Prefix: "/s", Guest: "/../../srv/real"}), "/s/app.css", Found, "css"},
		"guest path leads to proc":   {sets(route.FileMount{Prefix: "/s", Guest: "/app/proc"}), "/s/etc/passwd", Pass, ""},
		"guest path is a FIFO":       {sets(route.FileMount{Prefix: "/s", Guest: "/srv/pipe"}), "/s", Pass, ""},
		"no guest path":              {sets(route.FileMount{Prefix: "/s", Guest: "/nothing"}), "/s/app.css", Pass, ""},
		"guest path is a file":       {sets(route.FileMount{Prefix: "/favicon.ico", Guest: "/srv/real/app.css"}), "/favicon.ico", Found, "css"},
		"below a file":               {sets(route.FileMount{Prefix: "/favicon.ico", Guest: "/srv/real/app.css"}), "/favicon.ico/x", Pass, ""},
		"index":                      {sets(route.FileMount{Prefix: "/s", Guest: "/srv/real", Index: "index.html"}), "/s/", Found, "home"},
		"index without slash":        {sets(route.FileMount{Prefix: "/s", Guest: "/srv/real", Index: "index.html"}), "/s", Found, "home"},
		"no index there":             {sets(route.FileMount{Prefix: "/s", Guest: "/srv/real", Index: "index.html"}), "/s/docs/", Pass, ""},
		"index of the root":          {sets(route.FileMount{Prefix: "", Guest: "/srv/real", Index: "index.html"}), "/", Found, "home"},
		"root prefix":                {sets(route.FileMount{Prefix: "", Guest: "/srv/real"}), "/app.css", Found, "css"},
		"the image's root, no index": {sets(route.FileMount{Prefix: "", Guest: "/"}), "/", Pass, ""},
		"longest prefix":             {sets(route.FileMount{Prefix: "/s/sub", Guest: "/etc"}, route.FileMount{Prefix: "/s", Guest: "/srv/real"}), "/s/sub/passwd", Found, "secret"},
		"no view":                    {[]route.FileSet{{Image: "sha256:2", Mounts: plain[0].Mounts}}, "/static/app.css", Pass, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, body, v := ask(t, s, c.sets, c.path)
			if v != c.verdict || body != c.want {
				t.Errorf("%s: got %d %q, want %d %q", c.path, v, body, c.verdict, c.want)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"s/app.css": "body{}", "s/app.css.br": "BR", "s/app.css.gz": "GZIP",
		"s/app.0c5a1f3a9e2b.js": "hashed", "s/lib.min.js": "js", "s/data": "?", "s/x.gz": "gz",
	})
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, f := range []string{"s/app.css", "s/app.css.br", "s/app.css.gz", "s/lib.min.js"} {
		if err := os.Chtimes(filepath.Join(dir, f), when, when); err != nil {
			t.Fatal(err)
		}
	}
	s := serverOf(map[root.Digest]string{img: dir})
	set := sets(route.FileMount{Prefix: "/static", Guest: "/s"})
	plain, _, _ := ask(t, s, set, "/static/app.css")
	br, _, _ := ask(t, s, set, "/static/app.css", "Accept-Encoding", "br")
	tag := plain.Header.Get("Etag")
	if tag == "" || tag == br.Header.Get("Etag") {
		t.Errorf("tags: got %s for the file and %s for its variant, want two", tag, br.Header.Get("Etag"))
	}
	for name, c := range map[string]struct {
		path    string
		request []string
		status  int
		body    string
		want    map[string]string
	}{
		"plain": {"app.css", nil, 200, "body{}", map[string]string{
			"Content-Type": "text/css; charset=utf-8", "Content-Length": "6", "Accept-Ranges": "bytes", "Vary": "Accept-Encoding",
			"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT", "Cache-Control": fresh, "Content-Encoding": "",
		}},
		"brotli": {"app.css", []string{"Accept-Encoding", "gzip, deflate, br"}, 200, "BR", map[string]string{
			"Content-Type": "text/css; charset=utf-8", "Content-Encoding": "br", "Content-Length": "2", "Vary": "Accept-Encoding",
		}},
		"gzip wanted more":    {"app.css", []string{"Accept-Encoding", "br;q=0.5, gzip"}, 200, "GZIP", map[string]string{"Content-Encoding": "gzip"}},
		"brotli refused":      {"app.css", []string{"Accept-Encoding", "*, br;q=0"}, 200, "GZIP", map[string]string{"Content-Encoding": "gzip"}},
		"no coding wanted":    {"app.css", []string{"Accept-Encoding", "identity"}, 200, "body{}", map[string]string{"Content-Encoding": "", "Vary": "Accept-Encoding"}},
		"nonsense":            {"app.css", []string{"Accept-Encoding", "br;q=9, ;;,"}, 200, "body{}", map[string]string{"Content-Encoding": ""}},
		"without variants":    {"lib.min.js", []string{"Accept-Encoding", "gzip"}, 200, "js", map[string]string{"Vary": "", "Content-Encoding": "", "Cache-Control": fresh}},
		"hashed name":         {"app.0c5a1f3a9e2b.js", nil, 200, "hashed", map[string]string{"Cache-Control": immutable, "Content-Type": "text/javascript; charset=utf-8"}},
		"unknown type":        {"data", nil, 200, "?", map[string]string{"Content-Type": "application/octet-stream"}},
		"an archive as such":  {"x.gz", []string{"Accept-Encoding", "gzip"}, 200, "gz", map[string]string{"Content-Type": "application/gzip", "Content-Encoding": ""}},
		"same tag":            {"app.css", []string{"If-None-Match", tag}, 304, "", map[string]string{"Etag": tag, "Vary": "Accept-Encoding", "Content-Length": ""}},
		"tag of a variant":    {"app.css", []string{"If-None-Match", tag, "Accept-Encoding", "br"}, 200, "BR", nil},
		"not modified since":  {"app.css", []string{"If-Modified-Since", "Fri, 02 Jan 2026 03:04:05 GMT"}, 304, "", nil},
		"modified since":      {"app.css", []string{"If-Modified-Since", "Fri, 02 Jan 2026 03:04:04 GMT"}, 200, "body{}", nil},
		"other tag beats it":  {"app.css", []string{"If-Modified-Since", "Fri, 02 Jan 2026 03:04:05 GMT", "If-None-Match", `"x"`}, 200, "body{}", nil},
		"if-match fails":      {"app.css", []string{"If-Match", `"x"`}, 412, "", nil},
		"range":               {"app.css", []string{"Range", "bytes=1-3"}, 206, "ody", map[string]string{"Content-Range": "bytes 1-3/6", "Content-Length": "3"}},
		"end":                 {"app.css", []string{"Range", "bytes=-2"}, 206, "{}", map[string]string{"Content-Range": "bytes 4-5/6"}},
		"range of a variant":  {"app.css", []string{"Range", "bytes=1-", "Accept-Encoding", "gzip"}, 206, "ZIP", map[string]string{"Content-Range": "bytes 1-3/4", "Content-Length": "3", "Content-Encoding": "gzip"}},
		"range of another":    {"app.css", []string{"Range", "bytes=1-3", "If-Range", `"x"`}, 200, "body{}", nil},
		"range of this one":   {"app.css", []string{"Range", "bytes=1-3", "If-Range", tag}, 206, "ody", nil},
		"unsatisfiable":       {"app.css", []string{"Range", "bytes=90-"}, 416, "*", map[string]string{"Content-Range": "bytes */6"}},
		"head":                {"app.css", []string{"Method", "HEAD"}, 200, "", map[string]string{"Content-Length": "6"}},
		"head of the variant": {"app.css", []string{"Method", "HEAD", "Accept-Encoding", "br"}, 200, "", map[string]string{"Content-Length": "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body, v := ask(t, s, set, "/static/"+c.path, c.request...)
			if v != Found {
				t.Fatalf("got verdict %d", v)
			}
			if resp.StatusCode != c.status || body != c.body && c.body != "*" {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, c.status, c.body)
			}
			for name, want := range c.want {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

// A tag says what is in a file, whatever image it is in and whatever its time.
func TestTagIsOfContent(t *testing.T) {
	t.Parallel()
	trees := map[root.Digest]string{
		"sha256:a": tree(t, map[string]string{"s/x.css": "same", "s/y.css": "one!"}),
		"sha256:b": tree(t, map[string]string{"s/x.css": "same", "s/y.css": "two!"}),
	}
	s := serverOf(trees)
	tagIn := func(d root.Digest, file string) string {
		if err := os.Chtimes(filepath.Join(trees[d], "s", file), time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		resp, _, v := ask(t, s, []route.FileSet{{Image: d, Mounts: []route.FileMount{{Prefix: "/s", Guest: "/s"}}}}, "/s/"+file)
		if v != Found {
			t.Fatalf("%s of %s: verdict %d", file, d, v)
		}
		return resp.Header.Get("Etag")
	}
	if a, b := tagIn("sha256:a", "x.css"), tagIn("sha256:b", "x.css"); a != b {
		t.Errorf("the same content: got tags %s and %s", a, b)
	}
	if a, b := tagIn("sha256:a", "y.css"), tagIn("sha256:b", "y.css"); a == b {
		t.Errorf("other content of the same size and time has the same tag %s", a)
	}
	big := filepath.Join(trees["sha256:a"], "s/big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("x"), maxHashed+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if tagIn("sha256:a", "big") == "" {
		t.Error("a large file has no tag")
	}
}

// While releases overlap, and a while after, files of both are found; the
// current one's first.
func TestReleases(t *testing.T) {
	t.Parallel()
	s := serverOf(map[root.Digest]string{
		"sha256:1": tree(t, map[string]string{"s/app.css": "one", "s/one.css": "1"}),
		"sha256:2": tree(t, map[string]string{"s/app.css": "two", "s/two.css": "2"}),
	})
	now := time.Now()
	s.now = func() time.Time { return now }
	mounts := []route.FileMount{{Prefix: "/s", Guest: "/s"}}
	one, two := route.FileSet{Image: "sha256:1", Mounts: mounts}, route.FileSet{Image: "sha256:2", Mounts: mounts}
	check := func(what string, sets []route.FileSet, want map[string]string) {
		t.Helper()
		for path, content := range want {
			if _, body, _ := ask(t, s, sets, path); body != content {
				t.Errorf("%s: %s: got %q, want %q", what, path, body, content)
			}
		}
	}
	check("before", []route.FileSet{one}, map[string]string{"/s/app.css": "one", "/s/one.css": "1", "/s/two.css": ""})
	check("overlapping", []route.FileSet{two, one}, map[string]string{"/s/app.css": "two", "/s/one.css": "1", "/s/two.css": "2"})
	check("after", []route.FileSet{two}, map[string]string{"/s/app.css": "two", "/s/one.css": "1", "/s/two.css": "2"})
	now = now.Add(Linger - time.Second)
	check("a while after", []route.FileSet{two}, map[string]string{"/s/app.css": "two", "/s/one.css": "1"})
	now = now.Add(2 * time.Second)
	check("later", []route.FileSet{two}, map[string]string{"/s/app.css": "two", "/s/one.css": ""})
	check("rolled back", []route.FileSet{one}, map[string]string{"/s/app.css": "one", "/s/one.css": "1", "/s/two.css": "2"})
}

// FuzzFind: whatever is asked for, nothing but the files below the guest path
// is served, and each by one path only.
func FuzzFind(f *testing.F) {
	dir := tree(f, map[string]string{
		"etc/passwd": "outside", "secret": "outside", "s/a.css": "inside a", "s/d/b.css": "inside b", "s/link": "-> /etc/passwd", "s/up": "-> ../..",
	})
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "beyond"), []byte("outside"), 0o644); err != nil {
		f.Fatal(err)
	}
	s := serverOf(map[root.Digest]string{img: dir})
	for _, seed := range []string{"/s/a.css", "/s/d/b.css", "/s/../etc/passwd", "/s/%2e%2e/secret", "/s/up/etc/passwd", "/s/link", "/s//a.css", "/s/d/", "/s/..%2fsecret", "/s/a.css\x00", "/s/d/../../../beyond"} {
		f.Add(seed, "")
		f.Add(seed, "a.css")
	}
	names := map[string]string{"inside a": "/s/a.css", "inside b": "/s/d/b.css"}
	f.Fuzz(func(t *testing.T, path, index string) {
		u := &url.URL{Path: path}
		if parsed, err := url.ParseRequestURI(path); err == nil {
			u = parsed
		}
		file, v := s.Find(root.AppName("shop-"+index), sets(route.FileMount{Prefix: "/s", Guest: "/s", Index: index}), &Ask{URL: u, AcceptEncoding: "br, gzip"})
		if v != Found {
			return
		}
		defer file.Close()
		data, err := io.ReadAll(file.f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(data), "inside") {
			t.Errorf("%q served %q", u.Path, data)
		}
		if index == "" && u.Path != names[string(data)] {
			t.Errorf("%q is another name of %s", u.Path, names[string(data)])
		}
	})
}

func BenchmarkFind(b *testing.B) {
	s := serverOf(map[root.Digest]string{img: tree(b, map[string]string{"s/app.css": "css"})})
	set := sets(route.FileMount{Prefix: "/static", Guest: "/s"})
	for name, path := range map[string]string{"found": "/static/app.css", "missing": "/static/other.css", "not below": "/"} {
		b.Run(name, func(b *testing.B) {
			u := &url.URL{Path: path}
			b.ReportAllocs()
			for b.Loop() {
				if f, v := s.Find("shop", set, &Ask{URL: u, AcceptEncoding: "gzip, br"}); v == Found {
					_ = f.Close()
				}
			}
		})
	}
}
