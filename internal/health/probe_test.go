package health

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/loopback"
)

// probeOf probes a test server once.
func probeOf(t *testing.T, s *httptest.Server, edit func(*root.NamedCheck)) outcome {
	t.Helper()
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	config := root.Config{Services: []root.Service{{InternalPort: n, Checks: []root.Check{{Type: "http", Timeout: 20 * time.Second}}}}}
	c := config.NamedChecks()[0]
	if edit != nil {
		edit(&c)
	}
	var d net.Dialer
	return newProbe(c, host, "shop.localhost", d.DialContext).probe(t.Context())
}

func TestProbeHTTP(t *testing.T) {
	for _, tt := range []struct {
		name    string
		edit    func(*root.NamedCheck)
		answer  http.HandlerFunc
		passed  bool
		outputs []string // parts of the output
	}{
		{"200", nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("fine\n")) }, true, []string{"200 OK: fine"}},
		{"204", nil, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, true, []string{"204 No Content"}},
		{"redirect", nil, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login/", http.StatusFound) }, false,
			[]string{"302 Found", "redirects to /login/", "does not pass"}},
		{"redirect to https", nil, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://shop.localhost/", http.StatusMovedPermanently)
		}, false, []string{"301 Moved Permanently", "X-Forwarded-Proto"}},
		{"500", nil, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no database", 500) }, false, []string{"500 Internal Server Error: no database"}},
		{"host is the app's", nil, func(w http.ResponseWriter, r *http.Request) {
			if r.Host != "shop.localhost" {
				w.WriteHeader(400)
			}
		}, true, nil},
		{"host is refused", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(400)
			_, _ = w.Write([]byte("<html><head><title>DisallowedHost at /</title><style>h1{color:red}</style></head><body><h1>Bad Request (400)</h1></body></html>"))
		}, false, []string{"400 Bad Request: DisallowedHost at / Bad Request (400)", "The probe's Host is shop.localhost", "ALLOWED_HOSTS", "headers.Host"}},
		{"headers", func(c *root.NamedCheck) {
			c.Headers = map[string][]string{"host": {"other.example"}, "X-Probe": {"a", "b"}}
			c.Method, c.Path = "POST", "/ht/?full=1"
		}, func(w http.ResponseWriter, r *http.Request) {
			if r.Host != "other.example" || len(r.Header["X-Probe"]) != 2 || r.Method != "POST" || r.RequestURI != "/ht/?full=1" {
				http.Error(w, r.Host+" "+r.RequestURI, 400)
			}
		}, true, nil},
		{"secure", func(c *root.NamedCheck) { c.Secure = true }, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Forwarded-Proto") != "https" {
				http.Redirect(w, r, "https://shop.localhost/", http.StatusMovedPermanently)
			}
		}, true, nil},
		{"not secure", nil, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Forwarded-Proto") != "" {
				w.WriteHeader(500)
			}
		}, true, nil},
		{"binary", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "image/png")
			_, _ = w.Write([]byte{0xff, 0xfe, 0})
		}, true, []string{"200 OK: 3 bytes of image/png"}},
		{"long", nil, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write([]byte(strings.Repeat("é", 1<<20)))
		}, true, []string{"200 OK: é", "..."}},
		{"nothing", nil, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false, []string{"the app closed the connection without an answer"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(tt.answer)
			defer s.Close()
			o := probeOf(t, s, tt.edit)
			if o.passed != tt.passed {
				t.Errorf("passed %v (%s), want %v", o.passed, o.output(), tt.passed)
			}
			if out := o.output(); len(out) > 1500 || !contains(out, tt.outputs) {
				t.Errorf("output %q, want %q in it", out, tt.outputs)
			}
		})
	}
}

func contains(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// TestProbeClosesConnections: an open one would be in the way of a freeze.
func TestProbeClosesConnections(t *testing.T) {
	closed := make(chan struct{}, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateClosed {
			closed <- struct{}{}
		}
	}
	s.Start()
	defer s.Close()
	if o := probeOf(t, s, nil); !o.passed {
		t.Fatal(o.output())
	}
	<-closed
}

func TestProbeTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }))
	defer s.Close()
	for _, tt := range []struct {
		name   string
		edit   func(*root.NamedCheck)
		passed bool
		output string
	}{
		{"untrusted", func(c *root.NamedCheck) { c.TLS = true }, false, "tls_skip_verify"},
		{"skip", func(c *root.NamedCheck) { c.TLS, c.TLSSkipVerify = true, true }, true, "200 OK"},
		{"plain to TLS", nil, false, "400 Bad Request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if o := probeOf(t, s, tt.edit); o.passed != tt.passed || !strings.Contains(o.output(), tt.output) {
				t.Errorf("got %v, %q", o.passed, o.output())
			}
		})
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	if o := probeOf(t, plain, func(c *root.NamedCheck) { c.TLS = true }); o.passed || !strings.Contains(o.output(), `protocol to "http"`) {
		t.Errorf("TLS to a plain port: %q", o.output())
	}
}

func TestProbeServerName(t *testing.T) {
	for name, want := range map[string]string{"": "shop.localhost", "other.example": "other.example"} {
		config := root.Config{Services: []root.Service{{InternalPort: 1, Checks: []root.Check{{Type: "http", TLS: true, TLSServerName: name}}}}}
		p := newProbe(config.NamedChecks()[0], "127.0.0.1", "shop.localhost:8080", nil)
		if got := p.transport.(*http.Transport).TLSClientConfig.ServerName; got != want {
			t.Errorf("tls_server_name %q: asks for %q, want %q", name, got, want)
		}
	}
}

func TestProbeTCP(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", loopback.Free(t))
	if err != nil {
		t.Fatal(err)
	}
	host, port := l.Addr().(*net.TCPAddr).IP.String(), l.Addr().(*net.TCPAddr).Port
	config := root.Config{Services: []root.Service{{InternalPort: port, Checks: []root.Check{{Type: "tcp", Timeout: 20 * time.Second}}}}}
	var d net.Dialer
	p := newProbe(config.NamedChecks()[0], host, "", d.DialContext)
	if o := p.probe(t.Context()); !o.passed {
		t.Errorf("open port: %q", o.output())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if o := p.probe(t.Context()); o.passed || o.output() != "connect: connection refused" || !o.refused {
		t.Errorf("shut port: %+v", o)
	}
}

func TestProbeTimeout(t *testing.T) {
	block := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	for _, kind := range []string{"tcp", "http"} {
		config := root.Config{Services: []root.Service{{InternalPort: 1, Checks: []root.Check{{Type: kind, Timeout: 20 * time.Millisecond}}}}}
		if o := newProbe(config.NamedChecks()[0], "127.0.0.1", "", block).probe(t.Context()); o.passed || o.headline != "no answer within 20ms" {
			t.Errorf("%s: %+v", kind, o)
		}
	}
}
