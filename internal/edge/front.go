package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/origin"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/proxy/load"
)

const (
	// controlHold is how long API requests wait for control to come back.
	controlHold = 10 * time.Second
	// frontHeaderTimeout and frontIdle guard the API's sockets.
	frontHeaderTimeout = 30 * time.Second
	frontIdle          = 2 * time.Minute
	// maxBusy bounds one busy lease; an app renews it.
	maxBusy     = time.Hour
	defaultBusy = time.Minute
)

// front accepts API requests on every socket that takes some and forwards them
// to the control process; while that is away they wait.
type front struct {
	proxy   *httputil.ReverseProxy
	catalog interface{ Snapshot() *root.Snapshot }
	loads   *load.Table
	log     *slog.Logger

	mu       sync.Mutex
	servers  map[*http.Server]struct{}
	machines map[root.InstanceID]*http.Server
	closing  bool
	serving  sync.WaitGroup
}

// originKey is the context's key for a connection's origin.Origin.
type originKey struct{}

func newFront(socket string, catalog interface{ Snapshot() *root.Snapshot }, loads *load.Table, log *slog.Logger) *front {
	f := &front{catalog: catalog, loads: loads, log: log, servers: make(map[*http.Server]struct{}), machines: make(map[root.InstanceID]*http.Server)}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:       f.rewrite,
		FlushInterval: -1,
		ErrorHandler:  f.fail,
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Transport: &retryTransport{next: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dialControl(ctx, socket) },
			DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second,
		}},
	}
	return f
}

// dialControl connects to control, waiting for it while it is away: nothing
// was sent yet, so nothing can happen twice.
func dialControl(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	deadline := time.Now().Add(controlHold)
	for {
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
		if serr := sleep(ctx, minPause); serr != nil {
			return nil, serr
		}
	}
}

// retryTransport sends reads again when control died over them.
type retryTransport struct{ next http.RoundTripper }

func (t *retryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	deadline := time.Now().Add(controlHold)
	for {
		resp, err := t.next.RoundTrip(r)
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if err == nil || !read || r.Body != nil && r.Body != http.NoBody || r.Header.Get("Upgrade") != "" || r.Context().Err() != nil || time.Now().After(deadline) {
			return resp, err
		}
		if sleep(r.Context(), minPause) != nil {
			return nil, err
		}
	}
}

func (f *front) rewrite(pr *httputil.ProxyRequest) {
	o, _ := pr.In.Context().Value(originKey{}).(origin.Origin)
	pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "control"
	pr.Out.Host = pr.In.Host
	origin.Set(pr.Out.Header, o)
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := pr.In.Header[name]; ok {
			pr.Out.Header[name] = v
		}
	}
}

func (f *front) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	f.log.Warn("api request not forwarded", "path", r.URL.Path, "err", err)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "5")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(map[string]string{
		"error": "the control process of this host does not answer; if this lasts, look at its log (journalctl -u roost)",
	})
}

// Serve serves one API socket until Shutdown.
func (f *front) Serve(l net.Listener, kind orders.ListenerKind, machine root.MachineID) error {
	s := f.server(kind, machine, "")
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	f.servers[s] = struct{}{}
	f.serving.Add(1)
	f.mu.Unlock()
	defer f.serving.Done()
	return s.Serve(l)
}

func (f *front) server(kind orders.ListenerKind, machine root.MachineID, instance root.InstanceID) *http.Server {
	forward := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A build's log comes back while its context is still being sent. An
		// HTTP/1 connection is always able to.
		_ = http.NewResponseController(w).EnableFullDuplex()
		f.proxy.ServeHTTP(w, r)
	})
	mux := http.NewServeMux()
	mux.Handle("/", forward)
	if instance != "" {
		mux.HandleFunc("/.fly/busy", func(w http.ResponseWriter, r *http.Request) { f.busy(w, r, instance) })
	}
	var handler http.Handler = mux
	if instance == "" {
		handler = forward // no cleaning of paths on the way
	}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: frontHeaderTimeout,
		IdleTimeout:       frontIdle,
		ErrorLog:          slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, originKey{}, f.origin(c, kind, machine))
		},
	}
}

func (f *front) origin(c net.Conn, kind orders.ListenerKind, machine root.MachineID) origin.Origin {
	o := origin.Origin{Front: kind, Machine: machine}
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	if u, ok := c.(*net.UnixConn); ok {
		o.Peer = "unknown"
		if cred, err := ipc.PeerCredentials(u); err == nil {
			o.Peer = origin.User(cred.UID)
		}
		return o
	}
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		o.Peer = c.RemoteAddr().String()
		return o
	}
	addr := ap.Addr().Unmap().WithZone("")
	o.Peer = addr.String()
	if kind == origin.Internal {
		// Once for each connection: not worth an index.
		for m := range f.catalog.Snapshot().AllMachines() {
			if m.Spec.Address.IPv4 == o.Peer || m.Spec.Address.IPv6 == o.Peer {
				o.Machine = m.ID
				break
			}
		}
	}
	return o
}

// busy keeps a machine awake: PUT /.fly/busy?ttl=60s, DELETE ends it.
func (f *front) busy(w http.ResponseWriter, r *http.Request, instance root.InstanceID) {
	var until time.Time
	switch r.Method {
	case http.MethodPut, http.MethodPost:
		ttl := defaultBusy
		if v := r.URL.Query().Get("ttl"); v != "" {
			d, err := time.ParseDuration(v)
			if err != nil || d <= 0 || d > maxBusy {
				writeJSON(w, http.StatusBadRequest, map[string]string{"error": fmt.Sprintf("ttl must be a duration up to %s, such as 60s", maxBusy)})
				return
			}
			ttl = d
		}
		until = time.Now().Add(ttl)
	case http.MethodDelete:
	case http.MethodGet:
		until = f.loads.Unit(instance).Counts().BusyUntil
	default:
		w.Header().Set("Allow", "GET, PUT, POST, DELETE")
		writeJSON(w, http.StatusMethodNotAllowed, map[string]string{"error": "use PUT to hold a busy lease, DELETE to end it"})
		return
	}
	if r.Method != http.MethodGet {
		f.loads.Unit(instance).Busy(until)
	}
	answer := map[string]any{"busy": until.After(time.Now())}
	if until.After(time.Now()) {
		answer["expires_at"] = until.UTC().Format(time.RFC3339)
	}
	writeJSON(w, http.StatusOK, answer)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the peer went away: nobody to tell
}

// sockets is the part of orders.Client that hands out machines' sockets.
type sockets interface {
	Socket(ctx context.Context, id root.InstanceID) (*os.File, error)
}

// socketTimeout bounds asking for a socket.
const socketTimeout = 5 * time.Second

// machine begins to serve an instance's /.fly/api, once.
func (f *front) machine(from sockets, id root.MachineID, instance root.InstanceID) {
	f.mu.Lock()
	if f.closing || f.machines[instance] != nil {
		f.mu.Unlock()
		return
	}
	s := f.server(origin.Machine, id, instance)
	f.machines[instance] = s
	f.serving.Add(1)
	f.mu.Unlock()
	go func() {
		defer f.serving.Done()
		if err := f.serveMachine(from, s, instance); err != nil {
			f.log.Warn("machine's api socket is not served", "machine", id, "err", err)
			f.mu.Lock()
			if f.machines[instance] == s {
				delete(f.machines, instance)
			}
			f.mu.Unlock()
		}
	}()
}

func (f *front) serveMachine(from sockets, s *http.Server, instance root.InstanceID) error {
	ctx, cancel := context.WithTimeout(context.Background(), socketTimeout)
	defer cancel()
	file, err := from.Socket(ctx, instance)
	if err != nil {
		return err
	}
	l, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return ignoreClosed(s.Serve(limited(l, orders.ListenMachine)))
}

// forget ends serving an instance's socket.
func (f *front) forget(instance root.InstanceID) {
	f.mu.Lock()
	s := f.machines[instance]
	delete(f.machines, instance)
	f.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
}

// Shutdown ends all serving; requests in flight may finish until ctx ends.
func (f *front) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.closing = true
	var all []*http.Server
	for s := range f.servers {
		all = append(all, s)
	}
	for _, s := range f.machines {
		all = append(all, s)
	}
	f.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() {
			if s.Shutdown(ctx) != nil {
				_ = s.Close()
			}
		})
	}
	wg.Wait()
	f.serving.Wait()
	return nil
}
