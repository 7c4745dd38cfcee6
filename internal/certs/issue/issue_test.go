package issue_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/certs/issue"
	"github.com/roost-run/roost/internal/certs/pebbletest"
	"github.com/roost-run/roost/internal/certs/serve"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/loopback"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/proxy"
	"github.com/roost-run/roost/internal/proxy/load"
	"github.com/roost-run/roost/internal/seal"
	"github.com/roost-run/roost/internal/state"
)

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }

// world is a control process's certificates with a real edge before them.
type world struct {
	t       *testing.T
	store   *state.Store
	keys    *seal.Keyring
	socket  string
	manager *issue.Manager
	serve   *serve.Server
	proxy   *proxy.Proxy
	file    string // the edge's certificates on disk

	http, tls *net.TCPAddr // of the edge
	stop      func()       // ends control
	runs      int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	line, err := seal.NewKey(strings.NewReader(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "certs") // short: a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, store: state.New(etcdtest.New(t)), keys: keys, socket: filepath.Join(dir, "control.sock"), file: filepath.Join(dir, "edge.json")}
	if _, err := w.store.CreateApp(t.Context(), root.App{Name: "shop", Org: "personal"}); err != nil {
		t.Fatal(err)
	}
	w.edge()
	return w
}

// edge starts the proxy with both listeners.
func (w *world) edge() {
	t := w.t
	log := slog.New(slog.DiscardHandler)
	client := ipc.NewClient(w.socket)
	t.Cleanup(client.Close)
	server := serve.New(serve.Options{Client: client, File: w.file, Log: log})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		_ = server.Run(ctx)
	}()
	prober := health.New(health.Options{Dial: (&net.Dialer{}).DialContext, Logger: log})
	edge := proxy.New(proxy.Options{
		Domain: "localhost", Region: "loc", Catalog: catalog.New(root.NewSnapshot()), Health: prober, Loads: &load.Table{},
		HoldTimeout: patience.Limit, HoldQueue: 10, SpoolDir: t.TempDir(), Logger: log, Challenge: server.HTTPChallenge,
	})
	w.serve, w.proxy = server, edge
	served := make(chan error, 2)
	listen := func(port int, config *tls.Config) *net.TCPAddr {
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- edge.Serve(proxy.Listener{Listener: l, Port: port, TLS: config}) }()
		return l.Addr().(*net.TCPAddr)
	}
	w.http = listen(80, nil)
	w.tls = listen(443, server.Config(func(string) root.TLSOptions { return root.TLSOptions{} }))
	t.Cleanup(func() {
		if err := edge.Shutdown(patience.Context(t)); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		for range 2 {
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("serve: %v", err)
			}
		}
		prober.Close()
		cancel()
		<-followed
	})
}

// control starts the control side; the returned function, which w.stop is as
// well, ends it as a kill would: nothing is cleaned up.
func (w *world) control(o issue.Options) (stop func()) {
	t := w.t
	t.Helper()
	w.runs++
	o.Store, o.Keys, o.Host, o.Run, o.Name, o.Domain = w.store, w.keys, "5e1f00aa", "run"+strconv.Itoa(w.runs), "test", "localhost"
	o.PollInterval = 20 * time.Millisecond
	o.Log = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	m, err := issue.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	w.manager = m
	mux := http.NewServeMux()
	m.Register(mux)
	l, err := ipc.Listen(w.socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := ipc.NewServer(ipc.RequireRoot(mux))
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	go func() { ran <- m.Run(ctx) }()
	done := false
	w.stop = func() {
		if done {
			return
		}
		done = true
		cancel(errors.New("the test ends control"))
		_ = server.Close()
		<-served
		<-ran
		_ = m.Close()
	}
	t.Cleanup(w.stop)
	return w.stop
}

func (w *world) trust(a *pebbletest.Authority) issue.Options {
	w.t.Helper()
	data, err := os.ReadFile(a.RootFile)
	if err != nil {
		w.t.Fatal(err)
	}
	o := issue.Options{Directory: a.Directory, Email: "ops@shop.example.com", Roots: x509.NewCertPool()}
	o.Roots.AppendCertsFromPEM(data)
	return o
}

func (w *world) add(name string, acme bool) {
	w.t.Helper()
	if _, err := w.store.PutHostname(w.t.Context(), root.Hostname{Name: name, App: "shop", ACME: acme, CreatedAt: time.Now()}); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits until f returns nil.
func (w *world) eventually(what string, f func() error) {
	w.t.Helper()
	var err error
	defer func() {
		if err != nil {
			w.t.Logf("%s: %v", what, err)
		}
	}()
	patience.Until(w.t, what, func() bool { err = f(); return err == nil })
}

// leaf connects to the edge for a name, verifies the chain and returns the leaf.
func (w *world) leaf(name string, roots []byte) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: pool}}
	c, err := d.DialContext(w.t.Context(), "tcp", w.tls.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

func (w *world) served(name string, roots []byte) func() error {
	return func() error { _, err := w.leaf(name, roots); return err }
}

// Both challenges against a real authority, through the edge; where only one
// can succeed, the other is tried first or after, and does not matter.
func TestObtain(t *testing.T) {
	for _, c := range []struct {
		name      string
		http, tls bool
	}{{"HTTP-01", true, false}, {"TLS-ALPN-01", false, true}, {"either", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			o := pebbletest.Options{HTTPPort: w.http.Port, TLSPort: w.tls.Port}
			if !c.http {
				o.HTTPPort = loopback.Refusing(t).Port
			}
			if !c.tls {
				o.TLSPort = loopback.Refusing(t).Port
			}
			a := pebbletest.Start(t, o)
			w.control(w.trust(a))
			w.add("shop.example.com", true)
			w.eventually("certificate", w.served("shop.example.com", a.Roots))
			if at, err := w.store.Attempt(t.Context(), "shop.example.com"); err != nil || at.Failures != 0 {
				t.Errorf("the attempt: got %+v, %v; want no failure", at, err)
			}
			// Nothing of the challenge is left, and the edge starts without control.
			if keys, err := w.store.ACMEKeys(t.Context(), "challenges"); err != nil || len(keys) > 0 {
				t.Errorf("challenges that are left: %v, %v", keys, err)
			}
			w.stop()
			w.edge()
			w.serve.Load()
			w.eventually("certificate from disk", w.served("shop.example.com", a.Roots))
			if fi, err := os.Stat(w.file); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("the edge's file: got %v, %v; want mode 0600", fi.Mode(), err)
			}
		})
	}
}

// No private key and no account is in the store in the clear.
func TestSealed(t *testing.T) {
	w := newWorld(t)
	a := pebbletest.Start(t, pebbletest.Options{HTTPPort: w.http.Port, TLSPort: w.tls.Port})
	w.control(w.trust(a))
	w.add("shop.example.com", true)
	w.eventually("certificate", w.served("shop.example.com", a.Roots))
	keys, err := w.store.ACMEKeys(t.Context(), "")
	if err != nil || len(keys) < 4 {
		t.Fatalf("got %v, %v; want an account and a certificate", keys, err)
	}
	for _, k := range keys {
		f, err := w.store.ACME(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(f.Value), "PRIVATE KEY") || strings.Contains(string(f.Value), "CERTIFICATE") {
			t.Errorf("%s is in the clear", k)
		}
	}
	rootBox, err := w.store.Meta(t.Context(), "local_authority")
	if err != nil || rootBox == nil || strings.Contains(string(rootBox), "PRIVATE") {
		t.Errorf("the local authority is in the clear, or missing: %v", err)
	}
}

func TestRenew(t *testing.T) {
	w := newWorld(t)
	a := pebbletest.Start(t, pebbletest.Options{HTTPPort: w.http.Port, TLSPort: w.tls.Port, Validity: 3600})
	o := w.trust(a)
	o.RenewRatio = 0.9995 // of an hour: due 2 s after it was issued
	w.control(o)
	w.add("shop.example.com", true)
	var first *x509.Certificate
	w.eventually("certificate", func() (err error) { first, err = w.leaf("shop.example.com", a.Roots); return err })
	w.eventually("the next one", func() error {
		now, err := w.leaf("shop.example.com", a.Roots)
		if err == nil && now.SerialNumber.Cmp(first.SerialNumber) == 0 {
			err = errors.New("still the first")
		}
		w.manager.Try("shop.example.com") // looks now instead of in ten minutes
		return err
	})
}

// Control is killed while the authority validates: the one after goes on by
// itself, without waiting for the dead one's locks.
func TestKilledWhileObtaining(t *testing.T) {
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	// The authority reaches the edge through a port that holds its question.
	var once sync.Once
	gate := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		once.Do(func() {
			close(entered)
			<-release
		})
		req := r.Clone(r.Context())
		req.RequestURI, req.URL.Scheme, req.URL.Host = "", "http", w.http.String()
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		rw.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(rw, resp.Body)
	}))
	t.Cleanup(gate.Close)
	a := pebbletest.Start(t, pebbletest.Options{HTTPPort: gate.Listener.Addr().(*net.TCPAddr).Port, TLSPort: loopback.Refusing(t).Port})
	stop := w.control(w.trust(a))
	w.add("shop.example.com", true)
	patience.Receive(t, "the authority's question", entered)
	stop()
	// The question arrives while nobody is there; the edge waits for the next control.
	close(release)
	w.control(w.trust(a))
	w.eventually("certificate", w.served("shop.example.com", a.Roots))
}

// Failures are told in words, with what to do, and are not tried again at once.
func TestFailures(t *testing.T) {
	w := newWorld(t)
	a := pebbletest.Start(t, pebbletest.Options{
		HTTPPort: loopback.Refusing(t).Port, TLSPort: loopback.Refusing(t).Port, Blocked: []string{"blocked.example.com"}, Nowhere: []string{"nowhere.example.com"},
	})
	w.control(w.trust(a))
	for name, want := range map[string]struct{ code, message, remedy string }{
		"closed.example.com":  {issue.CodeUnreachable, "connect", "Ports 80 and 443"},
		"nowhere.example.com": {issue.CodeDNS, "look up", "Add an A or AAAA record"},
		"blocked.example.com": {issue.CodeRefused, "does not issue", "roost certs import"},
	} {
		w.add(name, true)
		var at root.CertAttempt
		w.eventually(name, func() (err error) {
			if at, err = w.store.Attempt(t.Context(), name); err == nil && at.Failures == 0 {
				err = errors.New("no attempt yet")
			}
			return err
		})
		if at.Code != want.code || !strings.Contains(at.Message, want.message) || !strings.Contains(at.Remedy, want.remedy) {
			t.Errorf("%s: got %s %q %q, want %s with %q and %q", name, at.Code, at.Message, at.Remedy, want.code, want.message, want.remedy)
		}
		if wait := at.Next.Sub(at.At); wait < 30*time.Second {
			t.Errorf("%s: the next attempt comes after %s, want a pause", name, wait)
		}
	}
}

func TestAuthorityAway(t *testing.T) {
	w := newWorld(t)
	w.control(issue.Options{Directory: "https://127.0.0.1:" + strconv.Itoa(loopback.Refusing(t).Port) + "/dir"})
	w.add("shop.example.com", true)
	w.eventually("attempt", func() error {
		at, err := w.store.Attempt(t.Context(), "shop.example.com")
		if err == nil && at.Failures == 0 {
			err = errors.New("no attempt yet")
		}
		if err == nil && at.Code != issue.CodeAuthority {
			t.Fatalf("got %+v, want code %s", at, issue.CodeAuthority)
		}
		return err
	})
}

// An uploaded certificate is used before an obtained one, and the other way
// round when it is gone; a hostname's end takes both away.
func TestUploadWins(t *testing.T) {
	w := newWorld(t)
	a := pebbletest.Start(t, pebbletest.Options{HTTPPort: w.http.Port, TLSPort: w.tls.Port})
	w.control(w.trust(a))
	w.add("shop.example.com", true)
	w.eventually("obtained", w.served("shop.example.com", a.Roots))
	pair, err := certs.SelfSigned("shop.example.com", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := certs.EncodePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.manager.Upload(t.Context(), certs.Certificate{Hostname: "shop.example.com", Source: certs.Uploaded, Chain: doc.Chain, Key: doc.Key}); err != nil {
		t.Fatal(err)
	}
	w.eventually("uploaded", w.served("shop.example.com", []byte(doc.Chain)))
	if _, err := w.store.DeleteUpload(t.Context(), "shop.example.com"); err != nil {
		t.Fatal(err)
	}
	w.eventually("obtained again", w.served("shop.example.com", a.Roots))
	if _, err := w.store.DeleteHostname(t.Context(), "shop", "shop.example.com"); err != nil {
		t.Fatal(err)
	}
	w.eventually("gone", func() error {
		if c, local := w.serve.Names(); len(c) > 0 || slices.Contains(local, "shop.example.com") {
			return errors.New("still served")
		}
		return nil
	})
}

// The local authority issues at the edge for what is private, whether control
// is there or not, and stays the same over restarts.
func TestLocalAuthority(t *testing.T) {
	w := newWorld(t)
	w.control(issue.Options{})
	local := []byte(w.manager.Root())
	w.add("shop.lan", false)
	w.add("*.wild.internal", false)
	w.eventually("shop.lan", w.served("shop.lan", local))
	w.eventually("wildcard", w.served("a.wild.internal", local))
	w.eventually("an app", w.served("shop.localhost", local))
	if _, err := w.leaf("other.lan", local); err == nil {
		t.Error("other.lan: got a certificate, want none: nobody has the name")
	}
	if _, err := w.leaf("a.b.localhost", local); err == nil {
		t.Error("a.b.localhost: got a certificate, want none")
	}
	w.stop()
	if err := w.served("another.localhost", local)(); err != nil {
		t.Errorf("without control: %v", err)
	}
	w.control(issue.Options{})
	if got := w.manager.Root(); got != string(local) {
		t.Error("a restart made another local authority")
	}
	w.eventually("after the restart", w.served("shop.lan", local))
}

func TestReaches(t *testing.T) {
	w := newWorld(t)
	to := w.http.String()
	w.control(issue.Options{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}})
	if err := w.manager.Reaches(t.Context(), "shop.example.com"); err != nil {
		t.Errorf("a name that leads here: %v", err)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	to = other.Listener.Addr().String()
	if err := w.manager.Reaches(t.Context(), "shop.example.com"); err == nil || !strings.Contains(err.Error(), "somebody else answered") {
		t.Errorf("a name that leads elsewhere: got %v", err)
	}
}
