package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/catalog/feed"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// host plays the server process and control for one edge.
type host struct {
	t       *testing.T
	cfg     config.Config
	control *catalog.Catalog
	http    string // address of the edge's public socket
	api     string
	names   []orders.Listener
	files   []*os.File
	socket  *os.File // /.fly/api of every machine

	mu        sync.Mutex
	changed   chan struct{} // closed when the journal grew
	entries   []orders.Entry
	seen      int // how many of entries waitFor has passed
	instances map[root.InstanceID]orders.Instance
	started   func(root.InstanceID) // called when one boots
	reports   []report.Report
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{t: t, cfg: config.Default(), control: catalog.New(root.NewSnapshot()), changed: make(chan struct{}), instances: make(map[root.InstanceID]orders.Instance)}
	h.cfg.Run, h.cfg.Data = filepath.Join(dir, "run"), filepath.Join(dir, "data")
	h.cfg.HoldTimeout, h.cfg.AccessLog, h.cfg.LogLevel = patience.Limit, false, "error"
	for _, d := range []string{h.cfg.Run, h.cfg.Data} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := config.WriteEffective(h.cfg); err != nil {
		t.Fatal(err)
	}
	h.http = h.tcp(orders.ListenEdge)
	h.api = h.tcp(orders.ListenAPI)
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "machine.sock")})
	if err != nil {
		t.Fatal(err)
	}
	if h.socket, err = u.File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(u.Close(), h.socket.Close()) })
	h.serve(h.cfg.SupervisorSocket(), h.supervisor())
	return h
}

func (h *host) tcp(kind orders.ListenerKind) string {
	var c net.ListenConfig
	l, err := c.Listen(h.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = errors.Join(l.Close(), f.Close()) })
	h.names, h.files = append(h.names, orders.Listener{Kind: kind, Address: l.Addr().String(), Port: 80}), append(h.files, f)
	return l.Addr().String()
}

// serve serves on a unix socket until the returned function is called.
func (h *host) serve(path string, handler http.Handler) (stop func()) {
	l, err := ipc.Listen(path, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	s := ipc.NewServer(handler)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	stop = sync.OnceFunc(func() { _ = s.Close(); <-done })
	h.t.Cleanup(stop)
	return stop
}

func (h *host) supervisor() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/listeners", func(w http.ResponseWriter, r *http.Request) { h.hand(w, r, h.names, h.files...) })
	mux.HandleFunc("GET /v1/instances/{id}/socket", func(w http.ResponseWriter, r *http.Request) {
		h.hand(w, r, orders.Listener{Kind: orders.ListenMachine}, h.socket)
	})
	mux.HandleFunc("GET /v1/instances", ipc.Handler(func(context.Context, *http.Request, struct{}) ([]orders.Instance, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		out := []orders.Instance{}
		for _, i := range h.instances {
			out = append(out, i)
		}
		return out, nil
	}))
	mux.HandleFunc("GET /v1/journal", func(w http.ResponseWriter, r *http.Request) {
		seq, _ := strconv.ParseUint(r.URL.Query().Get("seq"), 10, 64)
		s := ipc.NewStream(w)
		for next := int(seq); ; {
			h.mu.Lock()
			entries, changed := h.entries[next:], h.changed
			h.mu.Unlock()
			for _, e := range entries {
				if s.Send(e) != nil {
					return
				}
			}
			next += len(entries)
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	})
	order := func(f func(root.InstanceID) (any, error)) http.HandlerFunc {
		return ipc.Handler(func(_ context.Context, r *http.Request, _ json.RawMessage) (any, error) {
			return f(root.InstanceID(r.PathValue("id")))
		})
	}
	mux.HandleFunc("POST /v1/instances/{id}/start", order(func(id root.InstanceID) (any, error) {
		h.mu.Lock()
		phase := h.instances[id].Phase
		h.mu.Unlock()
		if phase == orders.PhaseStopped && h.started != nil {
			h.started(id)
		}
		t := orders.EntryStarted
		if phase == orders.PhaseSuspended {
			t = orders.EntryResumed
		}
		return orders.Started{Stamp: h.log(id, t), Phase: orders.PhaseStarted, Thawed: t == orders.EntryResumed}, nil
	}))
	mux.HandleFunc("POST /v1/instances/{id}/suspend", order(func(id root.InstanceID) (any, error) {
		return orders.Done{Phase: orders.PhaseSuspended, Stamp: h.log(id, orders.EntrySuspended)}, nil
	}))
	mux.HandleFunc("POST /v1/instances/{id}/stop", order(func(id root.InstanceID) (any, error) {
		return orders.Done{Phase: orders.PhaseStopping, Stamp: h.log(id, orders.EntryStopping)}, nil
	}))
	return mux
}

func (h *host) hand(w http.ResponseWriter, r *http.Request, v any, files ...*os.File) {
	c, err := ipc.Upgrade(w, r)
	if err != nil {
		h.t.Error(err)
		return
	}
	if err := errors.Join(c.Send(v, files...), c.Close()); err != nil {
		h.t.Error(err)
	}
}

// log journals an entry.
func (h *host) log(id root.InstanceID, t orders.EntryType) root.Stamp {
	h.mu.Lock()
	defer h.mu.Unlock()
	in := h.instances[id]
	in.Stamp = root.Stamp{Boot: 1, Seq: uint64(len(h.entries) + 1)}
	in.Phase = orders.PhaseAfter(t)
	h.instances[id] = in
	h.entries = append(h.entries, orders.Entry{Stamp: in.Stamp, At: time.Now(), Type: t, Machine: in.Machine, App: in.App, Instance: id})
	close(h.changed)
	h.changed = make(chan struct{})
	return in.Stamp
}

// edge runs an edge until the returned function is called.
func (h *host) edge() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, h.cfg.Run) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("run: %v", err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

func (h *host) startControl() (stop func()) {
	mux := http.NewServeMux()
	mux.Handle("GET "+feed.Path, feed.Handler(h.control))
	mux.Handle("POST "+report.Path, report.Handler(func(_ context.Context, reports []report.Report) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.reports = append(h.reports, reports...)
		return nil
	}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s front=%s peer=%s machine=%s other=%s", r.Method, r.URL, r.Header.Get("Roost-Front"), r.Header.Get("Roost-Peer"), r.Header.Get("Roost-Machine"), r.Header.Get("Roost-Actor"))
	})
	return h.serve(h.cfg.ControlSocket(), mux)
}

// addMachine makes a machine of app shop, an HTTP server that the test runs.
func (h *host) addMachine(service root.Service, state root.State, phase orders.Phase) *root.Machine {
	hello := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }
	return h.addMachineWith(hello, service, state, phase)
}

func (h *host) addMachineWith(handler http.HandlerFunc, service root.Service, state root.State, phase orders.Phase) *root.Machine {
	var c net.ListenConfig
	l, err := c.Listen(h.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = l.Close() })
	go func() {
		_ = http.Serve(l, handler) //nolint:gosec // a test
	}()
	ap := l.Addr().(*net.TCPAddr)
	service.Protocol, service.InternalPort, service.Autostart = "tcp", ap.Port, true
	service.Ports = []root.Port{{Port: 80, Handlers: []string{"http"}}}
	m := &root.Machine{
		ID: "0000000000000a", App: "shop", Region: h.cfg.Region, Origin: root.OriginUser,
		Spec:   root.Spec{Instance: "01INSTANCE", Generation: 1, Launch: true, Address: root.Address{IPv4: "127.0.0.1"}, Config: root.Config{Services: []root.Service{service}}},
		Status: root.Status{State: state, Instance: "01INSTANCE", Generation: 1},
	}
	h.mu.Lock()
	h.instances[m.Spec.Instance] = orders.Instance{Machine: m.ID, App: m.App, Instance: m.Spec.Instance, Generation: 1, Phase: phase}
	h.mu.Unlock()
	h.control.Apply(1, root.Change{App: &root.App{Name: "shop", Org: "personal"}}, root.Change{Machine: m})
	return m
}

func (h *host) get(ctx context.Context, addr, path string, edit ...func(*http.Request)) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	r.Host = "shop.localhost"
	for _, f := range edit {
		f(r)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

func (h *host) wantHello() {
	h.t.Helper()
	status, body, err := h.get(h.t.Context(), h.http, "/")
	if err != nil || status != http.StatusOK || body != "hello" {
		h.t.Fatalf("got %d %q %v, want 200 hello", status, body, err)
	}
}

func (h *host) types() (types []orders.EntryType) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.entries {
		types = append(types, e.Type)
	}
	return types
}

func (h *host) phase(id root.InstanceID) orders.Phase {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.instances[id].Phase
}

// waitFor waits for the next entry of a type, after those that it found before:
// the newest one tells nothing, the edge goes on meanwhile.
func (h *host) waitFor(t orders.EntryType) {
	h.t.Helper()
	for {
		h.mu.Lock()
		changed, found := h.changed, false
		for ; h.seen < len(h.entries) && !found; h.seen++ {
			found = h.entries[h.seen].Type == t
		}
		h.mu.Unlock()
		if found {
			return
		}
		patience.Receive(h.t, fmt.Sprintf("an entry %s after %v", t, h.types()), changed)
	}
}

// TestEdge wakes a machine through the sockets of the server process, puts it
// to sleep again, and goes on with another edge while control is away.
func TestEdge(t *testing.T) {
	h := newHost(t)
	stopControl := h.startControl()
	h.addMachine(root.Service{Autostop: root.AutostopSuspend, StopAfter: 200 * time.Millisecond}, root.StateStopped, orders.PhaseStopped)
	stopEdge := h.edge()
	h.wantHello()
	h.waitFor(orders.EntrySuspended)
	if got := h.types(); got[0] != orders.EntryStarted || got[1] != orders.EntrySuspended {
		t.Errorf("journal: got %v, want one start before the first suspend", got)
	}
	h.wantHello()
	h.waitFor(orders.EntryResumed) // the fake machine answers frozen too, so this may come later
	h.waitFor(orders.EntrySuspended)
	stopEdge()
	stopControl()
	h.edge() // from its file and the server process alone
	h.wantHello()
	h.waitFor(orders.EntryResumed)
}

// TestFront checks what API requests carry to control, and that they wait for it.
func TestFront(t *testing.T) {
	h := newHost(t)
	m := h.addMachine(root.Service{Autostop: root.AutostopOff}, root.StateStarted, orders.PhaseStarted)
	h.edge()
	type reply struct {
		status int
		body   string
		err    error
	}
	held := make(chan reply, 1)
	go func() {
		s, b, err := h.get(context.Background(), h.api, "/v1/apps?x=1", header("Roost-Front", "api-sock"), header("Roost-Actor", "admin"))
		held <- reply{s, b, err}
	}()
	select {
	case r := <-held:
		t.Fatalf("answered while control is away: %+v", r)
	case <-time.After(100 * time.Millisecond):
	}
	h.startControl()
	if got, want := (<-held).body, "GET /v1/apps?x=1 front=api peer=127.0.0.1 machine= other="; got != want {
		t.Errorf("api: got %q, want %q", got, want)
	}
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(filepath.Dir(h.cfg.Run), "machine.sock"))
	}}}
	defer c.CloseIdleConnections()
	for _, s := range []struct{ method, path, want string }{
		{http.MethodGet, "/v1/apps", fmt.Sprintf("GET /v1/apps front=machine peer=uid:%d machine=%s other=", os.Getuid(), m.ID)},
		{http.MethodPut, "/.fly/busy?ttl=60s", `"busy":true`},
		{http.MethodPut, "/.fly/busy?ttl=nonsense", `ttl must be a duration`},
		{http.MethodDelete, "/.fly/busy", `"busy":false`},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), s.method, "http://flaps"+s.path, nil)
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if !strings.Contains(string(data), s.want) {
			t.Errorf("%s %s: got %q, want %q in it", s.method, s.path, data, s.want)
		}
	}
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}
