package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/proxy"
	"github.com/roost-run/roost/internal/proxy/load"
)

// world is a proxy before fake machines: HTTP servers on loopback addresses
// that start, stop, freeze and thaw. It plays the server process and the live
// state.
type world struct {
	t       testing.TB
	catalog *catalog.Catalog
	loads   *load.Table
	health  *health.Prober
	proxy   *proxy.Proxy
	addr    string // of the proxy's listener, which stands for port 80

	listens atomic.Pointer[[]string] // what Inspect says

	mu       sync.Mutex
	revision int64
	machines map[root.InstanceID]*fakeMachine
	records  []proxy.Record
}

// fakeMachine is one machine. gate is closed while it runs and accepts.
type fakeMachine struct {
	w       *world
	record  *root.Machine
	handler http.HandlerFunc

	mu      sync.Mutex
	state   root.State
	ended   string
	server  *http.Server
	socket  net.Listener  // what server accepts from
	gate    chan struct{} // closed: runs; open: frozen
	wakes   int
	wakeErr error
	onWake  func()        // called in Wake, without lock
	onStart func()        // the same, once it runs
	slow    time.Duration // between start and listening
	deaf    bool          // starts, but does not listen
	accepts int
}

type option func(*proxy.Options)

func newWorld(tb testing.TB, options ...option) *world {
	tb.Helper()
	w := &world{t: tb, catalog: catalog.New(root.NewSnapshot()), loads: &load.Table{}, machines: make(map[root.InstanceID]*fakeMachine)}
	log := slog.New(slog.DiscardHandler)
	dialer := &net.Dialer{}
	w.health = health.New(health.Options{
		Dial: dialer.DialContext, Inspector: w, Logger: log,
		Changed: func(id root.MachineID, _ root.InstanceID) {
			if m := w.catalog.Snapshot().Machine(id); m != nil {
				w.proxy.Changed(m.App)
			}
		},
	})
	o := proxy.Options{
		Domain: "localhost", Region: "loc", Catalog: w.catalog, Live: w, Waker: w, Health: w.health, Loads: w.loads,
		Dial: dialer.DialContext, HoldTimeout: patience.Limit, HoldQueue: 1000, SpoolDir: tb.TempDir(), Logger: log,
		Access: func(r *proxy.Record) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.records = append(w.records, *r)
		},
	}
	for _, f := range options {
		f(&o)
	}
	w.proxy = proxy.New(o)
	l, err := listen(tb, "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	w.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.proxy.Serve(proxy.Listener{Listener: l, Port: 80}) }()
	tb.Cleanup(func() {
		w.thawAll()
		if err := w.proxy.Shutdown(patience.Context(tb)); err != nil {
			tb.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			tb.Errorf("serve: %v", err)
		}
		w.health.Close()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, m := range w.machines {
			m.halt()
		}
	})
	w.app("shop", "personal", "default")
	return w
}

// logged returns the access log when it has n lines: one is written after its
// answer, which the client may be ahead of.
func (w *world) logged(n int) (lines []proxy.Record) {
	w.t.Helper()
	patience.Until(w.t, "the access log", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		lines = slices.Clone(w.records)
		return len(lines) >= n
	})
	return lines
}

func (w *world) apply(c root.Change) {
	w.mu.Lock()
	w.revision++
	rev := w.revision
	w.mu.Unlock()
	w.catalog.Apply(rev, c)
	w.proxy.ChangedAll()
}

func (w *world) app(name root.AppName, org root.OrgSlug, network root.NetworkName) {
	w.apply(root.Change{App: &root.App{Name: name, Org: org, Network: network}})
}

var lastMachine atomic.Uint32

// machine adds a machine of app in the given state.
func (w *world) machine(app root.AppName, state root.State, h http.HandlerFunc, edit ...func(*root.Machine)) *fakeMachine {
	w.t.Helper()
	n := lastMachine.Add(1)
	// An address of its own, so that its port is free while it sleeps.
	l, err := listen(w.t, fmt.Sprintf("127.%d.%d.%d:0", 16+n>>16&63, n>>8&255, n&255))
	if err != nil {
		w.t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(l.Addr().String())
	number, _ := strconv.Atoi(port)
	_ = l.Close()
	m := &root.Machine{
		ID: root.MachineID(fmt.Sprintf("%014x", n)), App: app, Region: "loc", Origin: root.OriginUser,
		Spec: root.Spec{
			Instance: root.InstanceID(fmt.Sprintf("01INSTANCE%016d", n)), Launch: true, Address: root.Address{IPv4: host},
			Config: root.Config{Services: []root.Service{{
				Protocol: "tcp", InternalPort: number, Autostart: true,
				Ports:       []root.Port{{Port: 80, Handlers: []string{"http"}}},
				Concurrency: root.Concurrency{Type: "requests", Soft: 20},
			}}},
		},
	}
	for _, f := range edit {
		f(m)
	}
	f := &fakeMachine{w: w, record: m, handler: h, state: root.StateStopped}
	w.mu.Lock()
	w.machines[m.Spec.Instance] = f
	w.mu.Unlock()
	switch state {
	case root.StateStarted:
		f.start()
	case root.StateSuspended:
		f.start()
		f.suspend()
	default:
		f.state = state
	}
	w.apply(root.Change{Machine: m})
	return f
}

func (w *world) find(m *root.Machine) *fakeMachine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machines[m.Spec.Instance]
}

// State implements proxy.Live.
func (w *world) State(m *root.Machine) root.State {
	f := w.find(m)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Ended implements proxy.Live.
func (w *world) Ended(m *root.Machine) string {
	f := w.find(m)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// Listens implements health.Inspector.
func (w *world) Listens(context.Context, root.InstanceID) ([]string, error) {
	if l := w.listens.Load(); l != nil {
		return *l, nil
	}
	return nil, errors.New("nothing to inspect")
}

// Wake implements proxy.Waker.
func (w *world) Wake(ctx context.Context, m *root.Machine) error {
	f := w.find(m)
	f.mu.Lock()
	f.wakes++
	hook, started, err := f.onWake, f.onStart, f.wakeErr
	f.mu.Unlock()
	if hook != nil {
		hook()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	f.start()
	if started != nil {
		started()
	}
	return nil
}

// start boots or thaws.
func (f *fakeMachine) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.state {
	case root.StateStarted:
		return
	case root.StateSuspended:
		close(f.gate)
	default:
		f.gate = make(chan struct{})
		close(f.gate)
		if !f.deaf {
			f.listen(f.slow)
		}
	}
	f.state = root.StateStarted
	f.w.proxy.Resumed(f.record)
}

// listen serves, after a while. It needs the lock.
func (f *fakeMachine) listen(after time.Duration) {
	s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		f.wait()
		f.handler(rw, r)
	})}
	f.server = s
	begin := func() { // needs the lock
		l, err := listen(f.w.t, net.JoinHostPort(f.record.Spec.Address.IPv4, strconv.Itoa(f.record.Spec.Config.Services[0].InternalPort)))
		if err != nil {
			f.w.t.Errorf("fake machine: %v", err)
			return
		}
		f.socket = l
		go func() { _ = s.Serve(&gated{l, f}) }()
	}
	if after == 0 {
		begin()
		return
	}
	time.AfterFunc(after, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.server == s { // it was not halted meanwhile
			begin()
		}
	})
}

func (f *fakeMachine) wait() {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	<-gate
}

// gated accepts nothing while its machine is frozen; the kernel does.
type gated struct {
	net.Listener
	f *fakeMachine
}

func (g *gated) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err == nil {
		g.f.wait()
		g.f.mu.Lock()
		g.f.accepts++
		g.f.mu.Unlock()
	}
	return c, err
}

func (f *fakeMachine) suspend() {
	f.mu.Lock()
	f.gate = make(chan struct{})
	f.state = root.StateSuspended
	f.mu.Unlock()
	f.w.proxy.Suspended(f.record, true)
}

// exit ends the machine by itself.
func (f *fakeMachine) exit(how string) {
	f.halt()
	f.mu.Lock()
	f.state, f.ended = root.StateStopped, how
	f.mu.Unlock()
	f.w.health.Forget(f.record.Spec.Instance)
	f.w.proxy.CloseIdle(f.record.Spec.Instance)
	f.w.proxy.Changed(f.record.App)
}

func (f *fakeMachine) halt() {
	f.mu.Lock()
	s, l := f.server, f.socket
	f.server, f.socket = nil, nil
	f.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
	if l != nil { // the server does not know it before it serves
		_ = l.Close()
	}
}

func (f *fakeMachine) woken() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wakes
}

func (w *world) thawAll() {
	w.mu.Lock()
	var all []*fakeMachine
	for _, f := range w.machines {
		all = append(all, f)
	}
	w.mu.Unlock()
	for _, f := range all {
		f.mu.Lock()
		frozen := f.state == root.StateSuspended
		f.mu.Unlock()
		if frozen {
			f.start()
		}
	}
}

// answer is a handler that says text.
func answer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// client does not follow redirects and keeps connections per test.
func (w *world) client() *http.Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", w.addr)
	}, MaxIdleConnsPerHost: 100}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience.Limit}
}

// get asks the proxy; edit may change the request.
func (w *world) get(path string, edit ...func(*http.Request)) (reply, string) {
	w.t.Helper()
	return w.do(w.client(), http.MethodGet, path, nil, edit...)
}

func (w *world) do(c *http.Client, method, path string, body io.Reader, edit ...func(*http.Request)) (reply, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, "http://shop.localhost"+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range edit {
		f(r)
	}
	resp, err := c.Do(r)
	if err != nil {
		w.t.Errorf("%s %s: %v", method, path, err)
		return reply{Header: http.Header{}}, ""
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Errorf("%s %s: body: %v", method, path, err)
	}
	return reply{resp.StatusCode, resp.Header, resp.Trailer, resp.ContentLength, resp.Close}, string(data)
}

// reply is a response whose body was read.
type reply struct {
	StatusCode      int
	Header, Trailer http.Header
	ContentLength   int64
	Close           bool
}

// listen listens on a TCP address.
func listen(tb testing.TB, addr string) (net.Listener, error) {
	tb.Helper()
	var c net.ListenConfig
	return c.Listen(tb.Context(), "tcp", addr)
}

// dial connects to the proxy.
func (w *world) dial() net.Conn {
	w.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(w.t.Context(), "tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}
