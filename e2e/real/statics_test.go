package real

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// staticsImage makes an image of the probe with files in it and returns its
// reference. The tree is what a build leaves, and what a bad one might.
func staticsImage(t *testing.T, name, release string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "statics")
	want(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ref := "registry.localhost/" + name + ":" + release
	files := []instance.File{
		{Name: "srv/", Mode: 0o755}, {Name: "srv/site/", Mode: 0o755}, {Name: "srv/site/docs/", Mode: 0o755},
		{Name: "srv/site/app.css", Data: "/* " + release + " */"},
		{Name: "srv/site/app.css.gz", Data: "gzip of " + release},
		{Name: "srv/site/app.css.br", Data: "brotli of " + release},
		{Name: "srv/site/only." + release + ".js", Data: "only in " + release},
		{Name: "srv/site/app." + strings.Repeat(release[len(release)-1:], 12) + ".js", Data: "hashed"},
		{Name: "srv/site/big.bin", Data: strings.Repeat("0123456789abcdef", 3<<16)}, // 3 MiB
		{Name: "srv/site/docs/index.html", Data: "<h1>docs</h1>"},
		{Name: "srv/site/passwd", Link: "/etc/passwd"},
		{Name: "srv/site/up", Link: ".."},
		{Name: "srv/site/fifo", FIFO: true},
		{Name: "srv/secret.txt", Data: "not public"},
		{Name: "public", Link: "srv/site"}, // the guest path itself may be a link
	}
	archive := filepath.Join(dir, "image.tar")
	want(t, instance.BuildArchive(t.Context(), "./probe", ref, archive, files...))
	if _, err := in.CLI(t.Context(), "image", "load", archive); err != nil {
		t.Fatal(err)
	}
	return ref
}

func staticsConfig(image string) machines.Config {
	c := web()
	c.Image = image
	c.Statics = []machines.Static{{GuestPath: "/public", URLPrefix: "/static/"}, {GuestPath: "/srv/site/docs", URLPrefix: "/docs", IndexDocument: "index.html"}}
	return c
}

// plainly asks for the uncompressed form, as net/http's client does not by itself.
func plainly(t *testing.T, app, path string) answer {
	t.Helper()
	return get(t, app, path, "Accept-Encoding", "identity")
}

// TestStaticsWakeNobody: with every machine asleep files are served, odd paths
// are not, and no machine wakes; what is not a file is the app's to answer.
func TestStaticsWakeNobody(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := staticsConfig(staticsImage(t, "statics-asleep", "r1"))
	suspended, stopped := start(t, app, c), start(t, app, c)
	want(t, admin().Suspend(t.Context(), app, suspended.ID))
	await(t, app, suspended.ID, machines.StateSuspended)
	want(t, admin().Stop(t.Context(), app, stopped.ID, machines.StopRequest{}))
	await(t, app, stopped.ID, machines.StateStopped)

	a := plainly(t, app, "/static/app.css")
	if a.StatusCode != http.StatusOK || a.Text != "/* r1 */" {
		t.Fatalf("got %d %q", a.StatusCode, a.Text)
	}
	for name, value := range map[string]string{
		"Content-Type": "text/css; charset=utf-8", "Cache-Control": "public, max-age=0, must-revalidate", "Vary": "Accept-Encoding",
		"Accept-Ranges": "bytes", "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT", "Content-Length": "8", "Server": "roost", "Via": "1.1 roost",
	} {
		if got := a.Header.Get(name); got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
	}
	if a.Header.Get("Fly-Request-Id") == "" {
		t.Error("no fly-request-id")
	}
	for name, test := range map[string]struct {
		method, path string
		header       []string
		status       int
		text         string
	}{
		"gzip":         {"GET", "/static/app.css", []string{"Accept-Encoding", "gzip"}, 200, "gzip of r1"},
		"brotli":       {"GET", "/static/app.css", []string{"Accept-Encoding", "gzip, br"}, 200, "brotli of r1"},
		"known":        {"GET", "/static/app.css", []string{"If-None-Match", a.Header.Get("Etag")}, 304, ""},
		"not modified": {"GET", "/static/app.css", []string{"If-Modified-Since", a.Header.Get("Last-Modified")}, 304, ""},
		"range":        {"GET", "/static/big.bin", []string{"Range", "bytes=1048576-1048579"}, 206, "0123"},
		"head":         {"HEAD", "/static/app.css", nil, 200, ""},
		"index":        {"GET", "/docs/", nil, 200, "<h1>docs</h1>"},
		"climb":        {"GET", "/static/../secret.txt", nil, 400, ""},
		"encoded":      {"GET", "/static/%2e%2e/secret.txt", nil, 400, ""},
		"NUL":          {"GET", "/static/app.css%00", nil, 400, ""},
		"many dots":    {"GET", "/static/" + strings.Repeat("../", 30) + "etc/passwd", nil, 400, ""},
	} {
		header := test.header
		if !strings.Contains(strings.Join(header, " "), "Accept-Encoding") {
			header = append(header, "Accept-Encoding", "identity")
		}
		b := request(t, test.method, app, test.path, nil, header...)
		if b.StatusCode != test.status || test.status < 400 && b.Text != test.text {
			t.Errorf("%s: got %d %.100q, want %d %q", name, b.StatusCode, b.Text, test.status, test.text)
		}
	}
	big := get(t, app, "/static/big.bin", "Accept-Encoding", "identity")
	if big.StatusCode != http.StatusOK || big.Text != strings.Repeat("0123456789abcdef", 3<<16) {
		t.Errorf("large file: got %d, %d bytes", big.StatusCode, len(big.Text))
	}
	if s := state(t, app, suspended.ID); s != machines.StateSuspended {
		t.Errorf("the suspended machine is %s", s)
	}
	for _, m := range []string{suspended.ID, stopped.ID} {
		if n := starts(t, app, m); n != 1 {
			t.Errorf("machine %s was started %d times: %v", m, n, history(t, app, m))
		}
	}

	// What names no file here reaches the app, which wakes for it.
	for name, test := range map[string]struct{ method, path string }{
		"missing":             {"GET", "/static/nothing.css"},
		"a directory":         {"GET", "/static/docs"},
		"no index asked for":  {"GET", "/static/docs/"},
		"link to a file":      {"GET", "/static/passwd"},
		"link to a directory": {"GET", "/static/up/secret.txt"},
		"FIFO":                {"GET", "/static/fifo"},
		"encoded slash":       {"GET", "/static/..%2fsecret.txt"},
		"another prefix":      {"GET", "/statics/app.css"},
		"POST":                {"POST", "/static/app.css"},
		"DELETE":              {"DELETE", "/static/app.css"},
	} {
		b := request(t, test.method, app, test.path, nil)
		if e := b.echo(t); e.Machine != suspended.ID || e.Method != test.method {
			t.Errorf("%s: got %.200s, want the suspended machine's echo", name, b.Text)
		}
	}
	if n := starts(t, app, stopped.ID); n != 1 {
		t.Errorf("a second machine woke: %v", history(t, app, stopped.ID))
	}
}

// TestStaticsFollowTheImage: an update switches files at once; names that only
// the former image has are still found by pages that were delivered before.
// Under load nothing is missed.
func TestStaticsFollowTheImage(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := staticsConfig(staticsImage(t, "statics-update", "r1"))
	next := staticsImage(t, "statics-update", "r2")
	m := start(t, app, c)
	check := func(path, text string) {
		t.Helper()
		if a := plainly(t, app, path); a.StatusCode != http.StatusOK || a.Text != text {
			t.Errorf("%s: got %d %.100q, want %q", path, a.StatusCode, a.Text, text)
		}
	}
	check("/static/app.css", "/* r1 */")
	check("/static/only.r1.js", "only in r1")
	if a := get(t, app, "/static/app.111111111111.js"); !strings.Contains(a.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("hashed name: got %d, Cache-Control %q", a.StatusCode, a.Header.Get("Cache-Control"))
	}
	l := &instance.Load{Addr: in.Edge, Host: app + ".localhost", Path: "/static/app.css"}
	l.Start(t.Context())
	c.Image = next
	u, err := update(t, app, m.ID, c)
	want(t, err)
	_, err = admin().Wait(t.Context(), app, m.ID, machines.WaitOptions{Version: u.InstanceID, Timeout: patience})
	want(t, err)
	eventually(t, func() string {
		if a := plainly(t, app, "/static/app.css"); a.Text != "/* r2 */" {
			return fmt.Sprintf("app.css is still %q", a.Text)
		}
		return ""
	})
	check("/static/only.r2.js", "only in r2")
	check("/static/only.r1.js", "only in r1")
	n, err := l.Stop()
	if err != nil || n == 0 {
		t.Errorf("load: %d answers, %v", n, err)
	}
}

// TestStaticsOutliveControl: files are served while the control process is
// away, and after it came back; when the server stops no view is left (the
// instance checks the host).
func TestStaticsOutliveControl(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := "files"
	_, err := i.AsRoot().CreateApp(t.Context(), machines.CreateAppRequest{Name: app, OrgSlug: "personal"})
	want(t, err)
	dir := t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	want(t, instance.BuildArchive(t.Context(), "./probe", "registry.localhost/files:1", archive, instance.File{Name: "srv/app.css", Data: "css"}))
	_, err = i.CLI(t.Context(), "image", "load", archive)
	want(t, err)
	c := web()
	c.Image, c.Statics = "registry.localhost/files:1", []machines.Static{{GuestPath: "/srv", URLPrefix: "/static"}}
	m, err := i.AsRoot().Create(t.Context(), app, machines.CreateRequest{Config: c})
	want(t, err)
	_, err = i.AsRoot().Wait(t.Context(), app, m.ID, machines.WaitOptions{State: machines.StateStarted, Timeout: patience})
	want(t, err)
	hc := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: i.DialEdge}}
	ask := func() string {
		resp, err := hc.Get("http://" + app + ".localhost/static/app.css")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return resp.Status + " " + string(data)
	}
	if got := ask(); got != "200 OK css" {
		t.Errorf("before: got %s", got)
	}
	for range 2 {
		want(t, i.Kill(t.Context(), "control"))
		if got := ask(); got != "200 OK css" {
			t.Errorf("without control: got %s", got)
		}
		deadline := time.Now().Add(patience)
		for {
			if _, err := i.AsRoot().Get(t.Context(), app, m.ID); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if got := ask(); got != "200 OK css" {
			t.Errorf("after control came back: got %s", got)
		}
	}
	views, err := os.ReadDir(filepath.Join(i.Run(), "views"))
	want(t, err)
	if len(views) != 1 {
		t.Errorf("views: got %v, want one", views)
	}
}
