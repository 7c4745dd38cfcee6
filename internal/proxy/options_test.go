package proxy_test

import (
	"bufio"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	root "github.com/roost-run/roost"
)

// httpPort edits the options of a machine's port 80.
func httpPort(edit func(*root.HTTPOptions)) func(*root.Machine) {
	return func(m *root.Machine) { edit(&m.Spec.Config.Services[0].Ports[0].HTTP) }
}

func decoded(t *testing.T, coding, body string) string {
	t.Helper()
	var r io.Reader = strings.NewReader(body)
	var err error
	switch coding {
	case "zstd":
		r, err = zstd.NewReader(r)
	case "br":
		r = brotli.NewReader(r)
	case "gzip":
		r, err = gzip.NewReader(r)
	case "deflate":
		r, err = zlib.NewReader(r)
	}
	if err != nil {
		t.Fatalf("%s: %v", coding, err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", coding, err)
	}
	return string(data)
}

func TestCompress(t *testing.T) {
	w := newWorld(t)
	page := strings.Repeat("<p>hello, hello</p>\n", 5000)
	serve := func(rw http.ResponseWriter, r *http.Request) {
		for name, values := range r.URL.Query() {
			if name != "status" && name != "small" && name != "stream" {
				rw.Header()[http.CanonicalHeaderKey(name)] = values
			}
		}
		if rw.Header().Get("Content-Type") == "" {
			rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		}
		body := page
		if r.URL.Query().Has("small") {
			body = "small"
		}
		if r.URL.Query().Get("stream") == "" {
			rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		if s, err := strconv.Atoi(r.URL.Query().Get("status")); err == nil {
			rw.WriteHeader(s)
		}
		_, _ = io.WriteString(rw, body)
	}
	w.machine("shop", root.StateStarted, serve)
	off := false
	w.app("plain", "personal", "default")
	w.machine("plain", root.StateStarted, serve, httpPort(func(o *root.HTTPOptions) { o.Compress = &off }))

	for _, c := range []struct {
		name, path, accept, coding string
		host                       string
	}{
		{name: "the best", path: "/", accept: "gzip, deflate, br, zstd", coding: "zstd"},
		{name: "no zstd", path: "/", accept: "gzip, br", coding: "br"},
		{name: "gzip", path: "/", accept: "gzip", coding: "gzip"},
		{name: "deflate", path: "/", accept: "deflate", coding: "deflate"},
		{name: "refused by q", path: "/", accept: "zstd;q=0, br;q=0.0, gzip;q=0.1", coding: "gzip"},
		{name: "anything", path: "/", accept: "*", coding: "gzip"},
		{name: "unknown length", path: "/?stream=1", accept: "gzip", coding: "gzip"},
		{name: "an error page", path: "/?status=404", accept: "gzip", coding: "gzip"},
		{name: "JSON", path: "/?content-type=application/json", accept: "gzip", coding: "gzip"},
		{name: "SVG", path: "/?content-type=image/svg%2Bxml", accept: "gzip", coding: "gzip"},
		{name: "not asked for", path: "/", accept: "identity"},
		{name: "unknown coding", path: "/", accept: "lzma"},
		{name: "compressed by the app", path: "/?content-encoding=x-app", accept: "gzip", coding: "x-app"},
		{name: "none by the app", path: "/?content-encoding=none", accept: "gzip"},
		{name: "small", path: "/?small=1", accept: "gzip"},
		{name: "a picture", path: "/?content-type=image/png", accept: "gzip"},
		{name: "events", path: "/?content-type=text/event-stream", accept: "gzip"},
		{name: "a part", path: "/?status=206&content-range=bytes+0-1/2", accept: "gzip"},
		{name: "no-transform", path: "/?cache-control=public,+no-transform", accept: "gzip"},
		{name: "off", path: "/", accept: "gzip", host: "plain.localhost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := w.get(c.path, header("Accept-Encoding", c.accept), func(r *http.Request) {
				if c.host != "" {
					r.Host = c.host
				}
			})
			if got := resp.Header.Get("Content-Encoding"); got != c.coding {
				t.Fatalf("Content-Encoding: got %q, want %q", got, c.coding)
			}
			want := page
			if strings.Contains(c.path, "small") {
				want = "small"
			}
			if got := decoded(t, c.coding, body); got != want {
				t.Errorf("body: got %d bytes, want %d", len(got), len(want))
			}
			if c.coding != "" && c.coding != "x-app" && (len(body) > len(page)/4 || resp.Header.Get("Vary") != "Accept-Encoding" || resp.ContentLength == int64(len(page))) {
				t.Errorf("%d bytes, Vary %q, Content-Length %d: want less, Accept-Encoding and not the app's", len(body), resp.Header.Get("Vary"), resp.ContentLength)
			}
		})
	}

	t.Run("validators", func(t *testing.T) {
		resp, _ := w.get(`/?etag="a"&vary=Cookie&accept-ranges=bytes`, header("Accept-Encoding", "gzip"))
		if got := resp.Header.Get("Etag"); got != `W/"a"` {
			t.Errorf("ETag: got %s, want a weak one", got)
		}
		if got := strings.Join(resp.Header["Vary"], ", "); got != "Cookie, Accept-Encoding" {
			t.Errorf("Vary: got %q", got)
		}
		if resp.Header.Get("Accept-Ranges") != "" {
			t.Error("ranges of a compressed answer are offered")
		}
		resp, _ = w.get(`/?etag="a"`, header("Accept-Encoding", "identity"))
		if resp.Header.Get("Etag") != `"a"` || resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("uncompressed: got ETag %s and Vary %q", resp.Header.Get("Etag"), resp.Header.Get("Vary"))
		}
	})
	t.Run("HEAD", func(t *testing.T) {
		resp, _ := w.do(w.client(), http.MethodHead, "/", nil, header("Accept-Encoding", "gzip"))
		if resp.Header.Get("Content-Encoding") != "" || resp.ContentLength != int64(len(page)) {
			t.Errorf("got %q and %d, want the app's own header", resp.Header.Get("Content-Encoding"), resp.ContentLength)
		}
	})
}

// What an app sends now arrives now, compressed or not.
func TestCompressedStream(t *testing.T) {
	w := newWorld(t)
	next := make(chan string)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/plain")
		for s := range next {
			_, _ = io.WriteString(rw, s)
			_ = http.NewResponseController(rw).Flush()
		}
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://shop.localhost/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "gzip")
	go func() { next <- "first\n" }()
	resp, err := w.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("Content-Encoding: got %q, want gzip", got)
	}
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(z)
	for _, want := range []string{"first\n", "second\n"} {
		if got, err := r.ReadString('\n'); err != nil || got != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
		if want == "first\n" {
			next <- "second\n"
		}
	}
	close(next)
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("the end: got %q, %v", rest, err)
	}
}

func TestResponseHeaders(t *testing.T) {
	w := newWorld(t)
	app := func(rw http.ResponseWriter, _ *http.Request) {
		h := rw.Header()
		h.Set("Server", "gunicorn")
		h.Set("Via", "1.1 inner")
		h.Set("X-Powered-By", "django")
		h.Set("Cache-Control", "private")
		_, _ = io.WriteString(rw, "hello")
	}
	w.machine("shop", root.StateStarted, app, httpPort(func(o *root.HTTPOptions) {
		o.Headers = map[string][]string{"X-Powered-By": nil, "Cache-Control": {"public"}, "X-Two": {"a", "b"}, "Content-Length": {"999"}, "Transfer-Encoding": nil}
	}))
	w.app("pristine", "personal", "default")
	w.machine("pristine", root.StateStarted, app, httpPort(func(o *root.HTTPOptions) { o.Pristine = true }))

	resp, body := w.get("/")
	if body != "hello" || resp.ContentLength != 5 {
		t.Errorf("got %q of length %d: a header of the options changed the framing", body, resp.ContentLength)
	}
	if h := resp.Header; h["X-Powered-By"] != nil || h.Get("Cache-Control") != "public" || !slices.Equal(h["X-Two"], []string{"a", "b"}) || h.Get("Server") != "roost" {
		t.Errorf("got %v", h)
	}
	resp, _ = w.get("/", func(r *http.Request) { r.Host = "pristine.localhost" })
	if h := resp.Header; h.Get("Server") != "gunicorn" || h.Get("Via") != "1.1 inner" || h["Fly-Request-Id"] != nil {
		t.Errorf("pristine: got %v, want the app's own", h)
	}
}

// idle_timeout ends a kept connection sooner, or keeps it longer.
func TestIdleTimeout(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, answer("hello"), httpPort(func(o *root.HTTPOptions) { o.IdleTimeout = time.Second }))
	c := w.dial()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second)) // half of the usual time
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the connection to end", err)
	}
}
