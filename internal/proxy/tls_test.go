package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/certs/serve"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/proxy"
	"github.com/roost-run/roost/internal/proxy/rawtest"
)

// secureWorld is a world with a second listener, which stands for port 443.
type secureWorld struct {
	*world
	tls   string // its address
	roots *x509.CertPool
}

// tlsPort is a machine's port as most apps have it: plain on 80, TLS on 443.
func tlsPort(edit ...func(*root.Port)) func(*root.Machine) {
	return func(m *root.Machine) {
		p := root.Port{Port: 443, Handlers: []string{"tls", "http"}}
		for _, f := range edit {
			f(&p)
		}
		s := &m.Spec.Config.Services[0]
		s.Ports = append(s.Ports, p)
	}
}

func newSecureWorld(t *testing.T, options ...option) *secureWorld {
	t.Helper()
	l, err := listen(t, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &secureWorld{tls: l.Addr().String(), roots: x509.NewCertPool()}
	_, port, _ := net.SplitHostPort(w.tls)
	number, _ := strconv.Atoi(port)
	w.world = newWorld(t, append(options, func(o *proxy.Options) { o.HTTPSPort = number })...)

	chain, key, err := certs.NewRoot("test", "localhost", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.roots.AppendCertsFromPEM([]byte(chain))
	a, err := certs.NewIntermediate(chain, key, []string{"*.localhost", "own.test", "*.wild.test"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "certificates.json")
	data, err := json.Marshal(certs.Line{Format: certs.Format, Full: true, Done: true, Authority: &a})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve.New(serve.Options{File: file, Log: slog.New(slog.DiscardHandler)})
	s.Load()
	served := make(chan error, 1)
	config := s.Config(func(name string) root.TLSOptions { return w.proxy.TLSOptions(name, 443) })
	go func() { served <- w.proxy.Serve(proxy.Listener{Listener: l, Port: 443, TLS: config}) }()
	t.Cleanup(func() {
		_ = w.proxy.Shutdown(patience.Context(t)) // the world's own cleanup reports
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return w
}

// https returns a client that reaches every host at the TLS listener.
func (w *secureWorld) https(protocols ...string) *http.Client {
	t := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: w.roots, NextProtos: protocols},
		ForceAttemptHTTP2: len(protocols) == 0,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.tls)
		},
	}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (w *secureWorld) dialTLS(t *testing.T, name string, protocols ...string) (*tls.Conn, error) {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: w.roots, NextProtos: protocols}}
	c, err := d.DialContext(t.Context(), "tcp", w.tls)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(patience.Deadline())
	return c.(*tls.Conn), nil
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// echoHeaders says what the machine was told about the connection.
func echoHeaders(w http.ResponseWriter, r *http.Request) {
	for _, name := range []string{"X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Ssl", "Fly-Forwarded-Proto", "Fly-Forwarded-Ssl", "Fly-Forwarded-Port", "Via"} {
		_, _ = io.WriteString(w, name+"="+r.Header.Get(name)+"\n")
	}
	_, _ = io.WriteString(w, "proto="+r.Proto+" host="+r.Host)
}

func TestHTTPS(t *testing.T) {
	w := newSecureWorld(t)
	w.machine("shop", root.StateStarted, echoHeaders, tlsPort())
	for _, c := range []struct {
		name      string
		protocols []string
		proto     string
		via       string
	}{
		{"HTTP/2", nil, "HTTP/2.0", "2 roost"},
		{"HTTP/1.1", []string{"http/1.1"}, "HTTP/1.1", "1.1 roost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := get(t, w.https(c.protocols...), "https://shop.localhost/")
			if resp.Proto != c.proto || resp.StatusCode != http.StatusOK {
				t.Errorf("got %s %d, want %s 200", resp.Proto, resp.StatusCode, c.proto)
			}
			want := "X-Forwarded-Proto=https\nX-Forwarded-Port=443\nX-Forwarded-Ssl=on\nFly-Forwarded-Proto=https\nFly-Forwarded-Ssl=on\nFly-Forwarded-Port=443\nVia=" +
				c.via + "\nproto=HTTP/1.1 host=shop.localhost"
			if body != want {
				t.Errorf("the machine saw\n%s\nwant\n%s", body, want)
			}
		})
	}
}

// An HTTP/2 client's many requests, with bodies both ways, share a connection.
func TestHTTP2Streams(t *testing.T) {
	w := newSecureWorld(t)
	w.machine("shop", root.StateStarted, rawtest.Handler, tlsPort())
	c := w.https()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			body := strings.Repeat("x", 1+i*2000)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://shop.localhost/"+strconv.Itoa(i), io.NopCloser(strings.NewReader(body)))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if want := "POST /" + strconv.Itoa(i) + " " + strconv.Quote(body); err != nil || string(got) != want {
				t.Errorf("request %d: got %.60q (%d bytes), %v; want %d bytes", i, got, len(got), err, len(want))
			}
		})
	}
	wg.Wait()
}

// The corpus of raw requests has to pass over TLS as well.
func TestRawBytesOverTLS(t *testing.T) {
	w := newSecureWorld(t)
	w.machine("shop", root.StateStarted, rawtest.Handler, tlsPort())
	// The corpus knows an address only: a relay puts TLS around it.
	l, err := listen(t, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				s, err := (&tls.Dialer{Config: &tls.Config{ServerName: "shop.localhost", RootCAs: w.roots, NextProtos: []string{"http/1.1"}}}).DialContext(t.Context(), "tcp", w.tls)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				wg.Go(func() { _, _ = io.Copy(s, c) })
				_, _ = io.Copy(c, s)
			})
		}
	})
	rawtest.Run(t, l.Addr().String())
	_ = l.Close()
	wg.Wait()
}

func TestForceHTTPS(t *testing.T) {
	w := newSecureWorld(t, func(o *proxy.Options) {
		o.Challenge = func(_ context.Context, host, token string) (string, bool) {
			return token + ".answer", host == "shop.localhost" && token == "ours"
		}
	})
	w.machine("shop", root.StateStarted, answer("the app"), tlsPort(), func(m *root.Machine) {
		m.Spec.Config.Services[0].Ports[0].ForceHTTPS = true
	})
	_, port, _ := net.SplitHostPort(w.tls)
	c := w.client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, tc := range []struct {
		path, host string
		status     int
		want       string // Location, or the body
	}{
		{"/a/b?c=d", "shop.localhost", 301, "https://shop.localhost:" + port + "/a/b?c=d"},
		{"/a%2Fb?", "shop.localhost:8080", 301, "https://shop.localhost:" + port + "/a%2Fb?"},
		{"//elsewhere.example/", "shop.localhost", 301, "https://shop.localhost:" + port + "//elsewhere.example/"},
		{"/.well-known/acme-challenge/ours", "shop.localhost", 200, "ours.answer"},
		{"/.well-known/acme-challenge/theirs", "shop.localhost", 200, "the app"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.addr+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tc.host
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := string(body)
		if tc.status == 301 {
			got = resp.Header.Get("Location")
		}
		if resp.StatusCode != tc.status || got != tc.want {
			t.Errorf("%s at %s: got %d %q, want %d %q", tc.path, tc.host, resp.StatusCode, got, tc.status, tc.want)
		}
		if resp.Header.Get("Fly-Request-Id") == "" {
			t.Errorf("%s: no request id", tc.path)
		}
	}
	// Over TLS nothing is sent elsewhere.
	if resp, body := get(t, w.https(), "https://shop.localhost/a"); resp.StatusCode != 200 || body != "the app" {
		t.Errorf("over TLS: got %d %q, want 200", resp.StatusCode, body)
	}
}

// Where nobody listens for HTTPS, nobody is sent there.
func TestForceHTTPSWithoutListener(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, answer("the app"), func(m *root.Machine) {
		m.Spec.Config.Services[0].Ports[0].ForceHTTPS = true
	})
	if resp, body := w.get("/"); resp.StatusCode != 200 || body != "the app" {
		t.Errorf("got %d %q, want 200", resp.StatusCode, body)
	}
}

func TestPlainRequestOnTLSPort(t *testing.T) {
	w := newSecureWorld(t)
	w.machine("shop", root.StateStarted, answer("the app"), tlsPort())
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "speaks HTTPS") {
		t.Errorf("got %d %q, want 400 that says why", resp.StatusCode, body)
	}
}

func TestHandshakes(t *testing.T) {
	w := newSecureWorld(t)
	w.app("strict", "personal", "default")
	w.app("own", "personal", "default")
	w.machine("shop", root.StateStarted, answer("the app"), tlsPort())
	w.machine("strict", root.StateStarted, answer("strict"), tlsPort(func(p *root.Port) {
		p.TLS = root.TLSOptions{Versions: []string{"TLSv1.3"}, ALPN: []string{"http/1.1"}}
	}))
	w.machine("own", root.StateStarted, answer("own"), tlsPort(func(p *root.Port) { p.TLS.DefaultSelfSigned = true }))
	w.apply(root.Change{App: &root.App{Name: "own", Org: "personal", Network: "default", Hostnames: []string{"own.test", "*.wild.test", "public.example.com"}}})

	// Names that lead to an app by hostname, exact and wildcard, in any case.
	for _, host := range []string{"own.test", "a.wild.test", "OWN.test"} {
		if resp, body := get(t, w.https(), "https://"+host+"/"); resp.StatusCode != 200 || body != "own" {
			t.Errorf("%s: got %d %q, want own", host, resp.StatusCode, body)
		}
	}
	if _, err := w.dialTLS(t, "a.b.wild.test"); err == nil {
		t.Error("a.b.wild.test: got a connection, want none: a wildcard is one label")
	}
	// A name without certificate ends the handshake.
	if _, err := w.dialTLS(t, "nobody.example.com"); err == nil {
		t.Error("nobody.example.com: got a connection, want none")
	}
	if _, err := w.dialTLS(t, ""); err == nil {
		t.Error("no name: got a connection, want none")
	}
	// The platform itself is answered for a name of its own.
	own := tls.Dialer{Config: &tls.Config{ServerName: certs.OwnName, InsecureSkipVerify: true}}
	if c, err := own.DialContext(t.Context(), "tcp", w.tls); err != nil {
		t.Errorf("%s: %v", certs.OwnName, err)
	} else {
		_ = c.Close()
	}
	// ... unless the port says default_self_signed.
	d := tls.Dialer{Config: &tls.Config{ServerName: "public.example.com", InsecureSkipVerify: true}}
	c, err := d.DialContext(t.Context(), "tcp", w.tls)
	if err != nil {
		t.Fatalf("default_self_signed: %v", err)
	}
	if leaf := c.(*tls.Conn).ConnectionState().PeerCertificates[0]; leaf.CheckSignatureFrom(leaf) != nil && leaf.Subject.String() != leaf.Issuer.String() || leaf.VerifyHostname("public.example.com") != nil {
		t.Errorf("default_self_signed: got a certificate for %v by %v", leaf.DNSNames, leaf.Issuer)
	}
	_ = c.Close()

	// tls_options
	old := &tls.Config{ServerName: "strict.localhost", RootCAs: w.roots, MaxVersion: tls.VersionTLS12}
	if c, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", w.tls); err == nil {
		_ = c.Close()
		t.Error("TLS 1.2 where the port allows 1.3 only: got a connection")
	}
	if c, err := w.dialTLS(t, "strict.localhost", "h2", "http/1.1"); err != nil || c.ConnectionState().NegotiatedProtocol != "http/1.1" {
		t.Errorf("alpn: got %v, want http/1.1", err)
	}
	old.ServerName = "shop.localhost"
	c2, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", w.tls)
	if err != nil {
		t.Fatalf("TLS 1.2: %v", err)
	}
	_ = c2.Close()
	old.MaxVersion = tls.VersionTLS11
	old.MinVersion = tls.VersionTLS10
	if c, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", w.tls); err == nil {
		_ = c.Close()
		t.Error("TLS 1.1: got a connection")
	}
}

// A session resumes: the ticket of one connection is good for the next, also
// where a port's own options make another configuration.
func TestSessionTickets(t *testing.T) {
	w := newSecureWorld(t)
	w.app("strict", "personal", "default")
	w.machine("shop", root.StateStarted, answer("the app"), tlsPort())
	w.machine("strict", root.StateStarted, answer("strict"), tlsPort(func(p *root.Port) { p.TLS.ALPN = []string{"http/1.1"} }))
	for _, host := range []string{"shop.localhost", "strict.localhost"} {
		config := &tls.Config{ServerName: host, RootCAs: w.roots, NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for i, want := range []bool{false, true} {
			c, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", w.tls)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(c); err != nil { // the ticket comes before the answer
				t.Fatal(err)
			}
			if got := c.(*tls.Conn).ConnectionState().DidResume; got != want {
				t.Errorf("%s, connection %d resumed: got %t, want %t", host, i+1, got, want)
			}
			_ = c.Close()
		}
	}
}

// WebSockets and the like go over TLS as over plain connections.
func TestUpgradeOverTLS(t *testing.T) {
	w := newSecureWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		c, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, buf)
	}, tlsPort())
	c, err := w.dialTLS(t, "shop.localhost", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v; want 101", resp, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v; want hello", got, err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after the end: got %q, %v", rest, err)
	}
}

// A client that opens streams and takes them back at once (CVE-2023-44487)
// keeps no more requests under way than it may, and loses its connection.
func TestRapidReset(t *testing.T) {
	w := newSecureWorld(t)
	release := make(chan struct{})
	defer close(release)
	var mu sync.Mutex
	now, most := 0, 0
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-release
		mu.Lock()
		now--
		mu.Unlock()
		rw.WriteHeader(http.StatusNoContent)
	}, tlsPort())
	c, err := w.dialTLS(t, "shop.localhost", "h2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "shop.localhost"}, {":path", "/"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	const all = 50000
	sent := uint32(0)
	for sent = range all {
		id := 2*sent + 1
		err := errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true}), f.WriteRSTStream(id, http2.ErrCodeCancel))
		if err != nil {
			break // as it should be
		}
	}
	patience.Receive(t, "the connection to end", ended)
	mu.Lock()
	defer mu.Unlock()
	// Those that were under way when patience ended, and those taken back before.
	if most > 1000 || sent == all-1 {
		t.Errorf("%d requests were sent and %d reached the app at once, want less", sent, most)
	}
}

// A head that never ends in CONTINUATION frames (CVE-2023-45288) is cut.
func TestContinuationFlood(t *testing.T) {
	w := newSecureWorld(t)
	w.machine("shop", root.StateStarted, answer("the app"), tlsPort())
	c, err := w.dialTLS(t, "shop.localhost", "h2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String())}); err != nil {
		t.Fatal(err)
	}
	block.Reset()
	_ = enc.WriteField(hpack.HeaderField{Name: "x-long", Value: strings.Repeat("x", 10000)})
	var sent int
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	for sent = range 10000 { // 100 MB
		if f.WriteContinuation(1, false, []byte(block.String())) != nil {
			break
		}
	}
	patience.Receive(t, "the connection to end", ended)
	if sent > 2000 {
		t.Errorf("the connection ended after %d frames, want sooner", sent)
	}
}

// A farewell ends HTTP/2 connections in order: the request in flight is
// answered, and the client is told to go away.
func TestShutdownHTTP2(t *testing.T) {
	w := newSecureWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(rw, "done")
	}, tlsPort())
	result := make(chan string, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://shop.localhost/", nil)
		if err != nil {
			result <- err.Error()
			return
		}
		resp, err := w.https().Do(req)
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		result <- string(body)
	}()
	<-entered
	shut := make(chan error, 1)
	go func() { shut <- w.proxy.Shutdown(t.Context()) }()
	close(release)
	if got := <-result; got != "done" {
		t.Errorf("got %q, want done", got)
	}
	if err := <-shut; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}
