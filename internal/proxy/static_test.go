package proxy_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy"
	"github.com/roost-run/roost/internal/proxy/statics"
)

// files are the image of every machine with statics.
func withFiles(t *testing.T, files map[string]string) option {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return func(o *proxy.Options) { o.Statics = statics.New(func(root.Digest) string { return dir }) }
}

func serves(prefix string) func(*root.Machine) {
	return func(m *root.Machine) {
		m.Spec.Image.Digest = "sha256:1"
		m.Spec.Config.Statics = []root.Static{{GuestPath: "/", URLPrefix: prefix}}
	}
}

// TestStatic: files are answered in front of sleeping machines, whatever
// headers steer the request; all else reaches a machine.
func TestStatic(t *testing.T) {
	big := strings.Repeat("0123456789", 1<<18)
	w := newWorld(t, withFiles(t, map[string]string{"a.css": "css", "big": big}))
	m := w.machine("shop", root.StateStopped, echo("app"), serves("/static"))
	for name, edit := range map[string]func(*http.Request){
		"plain":          func(*http.Request) {},
		"forced machine": header("Fly-Force-Instance-Id", string(m.record.ID)),
		"forced region":  header("Fly-Force-Region", "syd"),
	} {
		resp, body := w.get("/static/a.css", edit)
		if resp.StatusCode != http.StatusOK || body != "css" || resp.Header.Get("Server") != "roost" || resp.Header.Get("Via") != "1.1 roost" || resp.Header.Get("Fly-Request-Id") == "" {
			t.Errorf("%s: got %d %q %v", name, resp.StatusCode, body, resp.Header)
		}
	}
	if resp, body := w.get("/static/big"); resp.StatusCode != http.StatusOK || body != big {
		t.Errorf("large file: got %d, %d bytes", resp.StatusCode, len(body))
	}
	if resp, body := w.do(w.client(), http.MethodHead, "/static/a.css", nil); resp.StatusCode != http.StatusOK || body != "" || resp.ContentLength != 3 {
		t.Errorf("HEAD: got %d, length %d, %q", resp.StatusCode, resp.ContentLength, body)
	}
	if resp, _ := w.get("/static/../../etc/passwd"); resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Roost-Error") != "PU01" {
		t.Errorf("climb: got %d %s", resp.StatusCode, resp.Header.Get("Roost-Error"))
	}
	if got := m.woken(); got != 0 {
		t.Errorf("wakes: got %d, want 0", got)
	}
	const files = 5
	lines := w.logged(files + 1)
	static := 0
	for _, r := range lines {
		if !r.Static {
			continue
		}
		static++
		if r.Machine != "" || r.Status != http.StatusOK || (r.Bytes == 0) != (r.Method == http.MethodHead) {
			t.Errorf("access log: got %+v", r)
		}
	}
	if static != files {
		t.Errorf("access log: got %d files in %d lines, want %d", static, len(lines), files)
	}
	for name, c := range map[string]struct{ method, path string }{
		"missing": {http.MethodGet, "/static/b.css"}, "elsewhere": {http.MethodGet, "/a.css"}, "POST": {http.MethodPost, "/static/a.css"},
	} {
		if _, body := w.do(w.client(), c.method, c.path, nil); body != "app "+c.method+" "+c.path+" len=0" {
			t.Errorf("%s: got %q", name, body)
		}
	}
	if _, body := w.do(w.client(), http.MethodGet, "/static/a.css", strings.NewReader("body")); body != "app GET /static/a.css len=4" {
		t.Errorf("with a body: got %q", body)
	}
	if m.woken() == 0 {
		t.Error("nothing woke")
	}
}

// TestStaticNeedsService: files are part of what a port serves.
func TestStaticNeedsService(t *testing.T) {
	w := newWorld(t, withFiles(t, map[string]string{"a.css": "css"}))
	w.machine("shop", root.StateStopped, echo("app"), serves("/"), func(m *root.Machine) { m.Spec.Config.Services[0].Ports[0].Port = 8080 })
	if resp, body := w.get("/a.css"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %d %q, want 503", resp.StatusCode, body)
	}
}

// TestStaticSlowReader: a client that reads nothing for a while gets the rest.
func TestStaticSlowReader(t *testing.T) {
	big := strings.Repeat("0123456789", 1<<20)
	w := newWorld(t, withFiles(t, map[string]string{"big": big}))
	w.machine("shop", root.StateStopped, echo("app"), serves("/"))
	c := w.dial()
	if _, err := io.WriteString(c, "GET /big HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1)
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Fatal(err)
	}
	// The edge has filled the kernel's buffers by now, or does meanwhile.
	if _, body := w.get("/big"); body != big {
		t.Errorf("another client got %d bytes", len(body))
	}
	rest, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(rest), big) {
		t.Errorf("got %d bytes, %v, want the file of %d at the end", len(rest), err, len(big))
	}
}

func inGroup(name string) func(*root.Machine) {
	return func(m *root.Machine) {
		m.Spec.Config.Metadata = map[string]string{root.MetadataProcessGroup: name}
	}
}

// routed is a world whose app sends /pdf/** to the group pdf.
func routed(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	routes := []root.Route{{Paths: []string{"/pdf/**"}, Methods: []string{"GET"}, Group: "pdf"}}
	w.apply(root.Change{App: &root.App{Name: "shop", Org: "personal", Network: "default", Routes: routes}})
	return w
}

// TestRoutes: each request wakes a machine of its group and no other.
func TestRoutes(t *testing.T) {
	w := routed(t)
	web := w.machine("shop", root.StateStopped, echo("web"), inGroup("app"))
	pdf := w.machine("shop", root.StateSuspended, echo("pdf"), inGroup("pdf"))
	check := func(method, path, want string) {
		t.Helper()
		if _, body := w.do(w.client(), method, path, nil); body != want+" "+method+" "+path+" len=0" {
			t.Errorf("%s %s: got %q, want %s", method, path, body, want)
		}
	}
	check(http.MethodGet, "/pdf/1", "pdf")
	if got := web.woken(); got != 0 {
		t.Errorf("the ordinary machine woke %d times for a routed request", got)
	}
	pdf.suspend()
	check(http.MethodGet, "/", "web")
	check(http.MethodPost, "/pdf/1", "web")
	check(http.MethodGet, "/pdfs/1", "web")
	if got := pdf.woken(); got != 1 {
		t.Errorf("the group's machine woke %d times, want once, for its own request", got)
	}
	// The group's machine is busy or not: plain requests never spill to it.
	web.exit("exited")
	check(http.MethodGet, "/again", "web")
}

func TestRoutesAndSteering(t *testing.T) {
	w := routed(t)
	elsewhere := func(name string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/elsewhere") {
				rw.Header().Set("Fly-Replay", "elsewhere=true")
				return
			}
			echo(name)(rw, r)
		}
	}
	var pdf *fakeMachine
	web := w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/heavy" {
			rw.Header().Set("Fly-Replay", "instance="+string(pdf.record.ID))
			return
		}
		echo("web")(rw, r)
	}, inGroup("app"))
	pdf = w.machine("shop", root.StateStarted, elsewhere("pdf"), inGroup("pdf"))
	w.machine("shop", root.StateStarted, elsewhere("pdf"), inGroup("pdf"))
	for name, c := range map[string]struct {
		path string
		edit func(*http.Request)
		want string
	}{
		"forced into the group":    {"/", forceFirst(pdf), "pdf GET / "},
		"forced out of the group":  {"/pdf/1", forceFirst(web), "web GET /pdf/1 "},
		"preferred in the group":   {"/", header("Fly-Prefer-Instance-Id", string(pdf.record.ID)), "pdf GET / "},
		"replayed into the group":  {"/heavy", func(*http.Request) {}, "pdf GET /heavy "},
		"elsewhere from the group": {"/pdf/elsewhere", func(*http.Request) {}, "web GET /pdf/elsewhere "},
	} {
		if resp, body := w.get(c.path, c.edit); !strings.HasPrefix(body, c.want) {
			t.Errorf("%s: got %d %q, want %q", name, resp.StatusCode, body, c.want)
		}
	}
}

// TestRouteWithoutMachines: the app's ordinary machines can do the work; a
// group whose machines cannot come up is a failure that is shown.
func TestRouteWithoutMachines(t *testing.T) {
	w := routed(t)
	w.machine("shop", root.StateStarted, echo("web"), inGroup("app"))
	if _, body := w.get("/pdf/1"); !strings.HasPrefix(body, "web ") {
		t.Errorf("without a machine in the group: got %q, want web's answer", body)
	}
	pdf := w.machine("shop", root.StateStopped, echo("pdf"), inGroup("pdf"))
	pdf.wakeErr = root.Errorf(root.Exhausted, "the host is full")
	if resp, _ := w.get("/pdf/1"); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Roost-Error") != "PM02" {
		t.Errorf("group that cannot start: got %d %s, want 503 PM02", resp.StatusCode, resp.Header.Get("Roost-Error"))
	}
}

// TestOnlyReservedMachines says why a plain request finds nobody.
func TestOnlyReservedMachines(t *testing.T) {
	w := routed(t)
	pdf := w.machine("shop", root.StateStopped, echo("pdf"), inGroup("pdf"))
	resp, body := w.get("/")
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "kept for the requests of its serverless routes") {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if got := pdf.woken(); got != 0 {
		t.Errorf("wakes: got %d, want 0", got)
	}
}

// TestStaticOptions: what a port says of answers counts for files, too.
func TestStaticOptions(t *testing.T) {
	text := strings.Repeat("text ", 1000)
	files := withFiles(t, map[string]string{"a.css": text})
	for name, c := range map[string]struct {
		options root.HTTPOptions
		want    map[string]string
	}{
		"headers": {
			root.HTTPOptions{Headers: map[string][]string{"Cache-Control": {"public, max-age=60"}, "X-Frame-Options": {"DENY"}, "Etag": nil, "Server": nil, "Content-Length": {"1"}}},
			map[string]string{"Cache-Control": "public, max-age=60", "X-Frame-Options": "DENY", "Etag": "", "Server": "", "Content-Encoding": "br"},
		},
		"pristine":       {root.HTTPOptions{Pristine: true}, map[string]string{"Server": "", "Via": "", "Fly-Request-Id": "", "Content-Encoding": "br"}},
		"not compressed": {root.HTTPOptions{Compress: new(false)}, map[string]string{"Server": "roost", "Content-Encoding": "", "Vary": "", "Content-Length": "5000"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, files)
			w.machine("shop", root.StateStopped, echo("app"), serves("/"), httpPort(func(o *root.HTTPOptions) { *o = c.options }))
			resp, _ := w.get("/a.css", header("Accept-Encoding", "br"))
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("got %d", resp.StatusCode)
			}
			for name, want := range c.want {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

// TestStaticOverTLS: the same files where the kernel cannot copy them, and 301
// before them where a port wants HTTPS.
func TestStaticOverTLS(t *testing.T) {
	big := strings.Repeat("0123456789", 1<<18)
	w := newSecureWorld(t, withFiles(t, map[string]string{"big": big}))
	m := w.machine("shop", root.StateStopped, echo("app"), serves("/static"), tlsPort(), func(m *root.Machine) { m.Spec.Config.Services[0].Ports[0].ForceHTTPS = true })
	for proto, protocols := range map[string][]string{"HTTP/2.0": nil, "HTTP/1.1": {"http/1.1"}} {
		c := w.https(protocols...)
		resp, body := get(t, c, "https://shop.localhost/static/big")
		if resp.Proto != proto || resp.StatusCode != http.StatusOK || body != big {
			t.Errorf("%s: got %s %d, %d bytes", proto, resp.Proto, resp.StatusCode, len(body))
		}
		if resp, _ := get(t, c, "https://shop.localhost/static/%2e%2e/big"); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: climb: got %d", proto, resp.StatusCode)
		}
	}
	plain := w.client()
	plain.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if resp, _ := get(t, plain, "http://shop.localhost/static/big"); resp.StatusCode != http.StatusMovedPermanently {
		t.Errorf("plain: got %d, want 301", resp.StatusCode)
	}
	if got := m.woken(); got != 0 {
		t.Errorf("wakes: got %d, want 0", got)
	}
}
