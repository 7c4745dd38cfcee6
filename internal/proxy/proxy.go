// Package proxy is the data path: it takes requests from listeners that the
// server process opened, finds app and machine, wakes what sleeps, forwards,
// and follows replays. Its decisions are in the pure packages below it; here
// is the I/O, on net/http.
//
// It reads the catalog and the live state of machines through small
// interfaces, so that it knows neither the control plane nor the server
// process. Goroutines: net/http's one per connection, one per wake under way,
// two per upgraded connection. Close waits for all of them.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/metrics"
	"github.com/roost-run/roost/internal/proxy/load"
	"github.com/roost-run/roost/internal/proxy/route"
	"github.com/roost-run/roost/internal/proxy/statics"
	"github.com/roost-run/roost/internal/proxy/wake"
)

// Catalog is the routable cluster.
type Catalog interface {
	Snapshot() *root.Snapshot
}

// Live knows what machines do right now, ahead of the catalog.
type Live interface {
	// State is the state of the machine's current version.
	State(m *root.Machine) root.State
	// Ended tells how that version last ended by itself, for people; "" if it
	// did not.
	Ended(m *root.Machine) string
}

// Waker brings machines up; see wake.Waker.
type Waker = wake.Waker

// Options of a Proxy.
type Options struct {
	Domain      string
	Region      root.Region
	Catalog     Catalog
	Live        Live
	Waker       Waker
	Health      *health.Prober
	Checks      *health.Checker // nil: none are made
	Loads       *load.Table
	Dial        func(ctx context.Context, network, addr string) (net.Conn, error)
	HoldTimeout time.Duration // how long a request waits for a machine
	HoldQueue   int           // how many may, per app
	SpoolDir    string        // where bodies go that are kept and do not fit into memory
	Synced      func() bool   // nil: always; else whether the catalog is complete
	Access      func(*Record) // nil: no access log
	Notify      func(Notice)  // lines for apps' logs; nil: nobody keeps them
	// Challenge answers what a certificate authority asks for at a host; nil,
	// or false: the app may know.
	Challenge func(ctx context.Context, host, token string) (string, bool)
	// HTTPSPort is where clients reach what stands for port 443; 0: nowhere,
	// so that nobody is sent there.
	HTTPSPort int
	// Statics finds the files of [[statics]]; nil: none.
	Statics *statics.Server
	Metrics *metrics.Edge // nil: none
	Logger  *slog.Logger
}

// Bounds and times of the data path.
const (
	// maxHeld bounds the requests that wait over all apps: each costs a
	// goroutine and its buffers, near 20 KB.
	maxHeld = 10000
	// headerTimeout guards against clients that never finish their head.
	headerTimeout = time.Minute
	// idleTimeout closes client connections without a request. It differs from
	// headerTimeout so that a connection knows which of them is set; see setIdle.
	idleTimeout = headerTimeout + time.Second
	// maxHeader answers 431; net/http adds 4 KB of slack to it.
	maxHeader = 60 << 10
	// dialTimeout: the machine is on this host, an answer takes microseconds.
	dialTimeout = 2 * time.Second
	// upstreamIdle is how long an idle connection to a machine is kept, as on
	// Fly; shorter than the keep-alive of common app servers.
	upstreamIdle = 4 * time.Second
	// farewellTimeout is how long clients that keep a connection are waited for
	// before it is closed: most that are busy come back within it.
	farewellTimeout = 500 * time.Millisecond
	farewellPoll    = 10 * time.Millisecond
	// unreadTimeout bounds the wait for connections on which there is something
	// that was not read yet, on a busy host: none for farewellQuiet looks.
	unreadTimeout = 5 * time.Second
	farewellQuiet = 5
	// maxAttempts bounds how often one request looks for a machine.
	maxAttempts = 90
)

// Proxy is the data path. Use New, Serve, Shutdown and Close.
type Proxy struct {
	o       Options
	router  route.Router
	flights *wake.Flights
	queue   *wake.Queue
	waiters waiters
	bodies  bodies

	backends sync.Map // root.InstanceID -> *backend
	upgrades upgrades

	mu        sync.Mutex
	servers   []*http.Server
	listeners []net.Listener
	closing   bool
	serving   sync.WaitGroup

	terminators sync.WaitGroup

	farewell atomic.Bool  // answers tell clients to close their connection
	open     atomic.Int64 // connections that clients may send requests on
	conns    sync.Map     // those connections, as net.Conn
}

// New returns a Proxy that serves nothing yet.
func New(o Options) *Proxy {
	p := &Proxy{o: o, queue: wake.NewQueue(o.HoldQueue, maxHeld)}
	p.flights = wake.New(wakerFunc(p.wake), o.HoldTimeout)
	p.bodies.dir = o.SpoolDir
	p.upgrades.conns = make(map[*upgrade]struct{})
	return p
}

type wakerFunc func(context.Context, *root.Machine) error

func (f wakerFunc) Wake(ctx context.Context, m *root.Machine) error { return f(ctx, m) }

// Listener is a listening socket and the outside port it stands for.
type Listener struct {
	net.Listener
	Port int
	// TLS, if set, is how TLS is terminated for clients that speak it; they
	// may speak HTTP/2 then.
	TLS *tls.Config
}

// Serve serves HTTP on l until Shutdown or Close.
func (p *Proxy) Serve(l Listener) error {
	s := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serveHTTP(w, r, l.Port) }),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withGuard,
		ConnState:         p.count,
		ErrorLog:          slog.NewLogLogger(p.o.Logger.Handler(), slog.LevelDebug),
	}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	served := net.Listener(guard{l.Listener})
	if l.TLS != nil {
		s.Protocols.SetHTTP2(true)
		s.HTTP2 = http2Config()
		t := newTerminator(l.Listener, l.TLS, p.handshakeFailed)
		served = t
		p.terminators.Go(t.run)
	}
	p.mu.Lock()
	if p.closing {
		p.mu.Unlock()
		return http.ErrServerClosed
	}
	p.servers, p.listeners = append(p.servers, s), append(p.listeners, l.Listener)
	p.serving.Add(1)
	p.mu.Unlock()
	defer p.serving.Done()
	err := s.Serve(served)
	if p.farewell.Load() && errors.Is(err, net.ErrClosed) {
		return http.ErrServerClosed
	}
	return err
}

// count follows the connections of clients.
func (p *Proxy) count(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		p.open.Add(1)
		p.conns.Store(c, nil)
	case http.StateHijacked, http.StateClosed:
		p.open.Add(-1)
		p.conns.Delete(c)
	}
}

// unread reports whether a client has sent something that nobody has read.
func (p *Proxy) unread() (some bool) {
	p.conns.Range(func(c, _ any) bool {
		some = pending(c.(net.Conn))
		return !some
	})
	return some
}

// pending looks into the socket below a connection.
func pending(c net.Conn) bool {
	switch c := c.(type) {
	case *guardedConn:
		return pending(c.Conn)
	case *aheadConn:
		return pending(c.Conn)
	case interface{ NetConn() net.Conn }:
		return pending(c.NetConn())
	case syscall.Conn:
		raw, err := c.SyscallConn()
		if err != nil {
			return false
		}
		n := 0
		if cerr := raw.Control(func(fd uintptr) {
			n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}); cerr != nil || err != nil {
			return false
		}
		return n > 0
	default:
		return false
	}
}

// sayFarewell has clients close their connections: a request on its way when
// the server closes one would be lost, and so would one that net/http reads
// once it is shutting down.
func (p *Proxy) sayFarewell(ctx context.Context) {
	t := time.NewTicker(farewellPoll)
	defer t.Stop()
	quiet := 0
	for begin := time.Now(); p.open.Load() > 0; {
		if quiet++; p.unread() {
			quiet = 0
		}
		waited := time.Since(begin)
		if waited > unreadTimeout || waited > farewellTimeout && quiet >= farewellQuiet {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// part adds the farewell to an answer.
func (p *Proxy) part(h http.Header) {
	if p.farewell.Load() {
		h["Connection"] = []string{"close"}
	}
}

// Shutdown asks clients that keep their connection to close it, then takes no
// new connections and waits for requests in flight until ctx
// ends; upgraded connections are closed then, WebSockets with code 1001.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	servers, listeners := p.servers, p.listeners
	p.mu.Unlock()
	p.farewell.Store(true)
	for _, l := range listeners {
		_ = l.Close() // the socket itself is the server process's
	}
	p.serving.Wait()
	p.terminators.Wait()
	p.sayFarewell(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, s := range servers {
		wg.Go(func() {
			if err := s.Shutdown(ctx); err != nil {
				mu.Lock()
				first = err
				mu.Unlock()
				_ = s.Close() // ctx ended: cut what is left
			}
		})
	}
	wg.Go(func() { p.upgrades.drain(ctx) })
	wg.Wait()
	p.flights.Close()
	p.backends.Range(func(_, v any) bool {
		v.(*backend).transport.CloseIdleConnections()
		return true
	})
	return first
}

// Changed tells that a machine's live state or its record changed, or that it
// became ready: who waits for it looks again.
func (p *Proxy) Changed(app root.AppName) { p.waiters.wake(app) }

// ChangedAll tells that anything may have changed.
func (p *Proxy) ChangedAll() { p.waiters.wakeAll() }

// Suspended tells that an instance stands still, or is about to. If requests
// are in flight there it is woken again: nobody else would answer them.
func (p *Proxy) Suspended(m *root.Machine, now bool) {
	b := p.backend(m)
	b.frozen.Store(true)
	b.transport.CloseIdleConnections()
	if c := b.unit.Counts(); now && c.InFlight > c.Upgrades {
		p.o.Logger.Info("machine was suspended over requests, waking it", "machine", m.ID, "app", m.App, "requests", c.InFlight-c.Upgrades)
		p.flights.Start(m)
	}
	p.waiters.wake(m.App)
}

// Resumed tells that an instance runs.
func (p *Proxy) Resumed(m *root.Machine) {
	p.backend(m).frozen.Store(false)
	p.waiters.wake(m.App)
}

// Gone tells that the processes of an instance are gone.
func (p *Proxy) Gone(id root.InstanceID) {
	if v, ok := p.backends.LoadAndDelete(id); ok {
		v.(*backend).transport.CloseIdleConnections()
	}
}

// CloseIdle drops the idle connections to a machine, before it is suspended.
func (p *Proxy) CloseIdle(id root.InstanceID) {
	if v, ok := p.backends.Load(id); ok {
		v.(*backend).transport.CloseIdleConnections()
	}
}

// Held is how many requests wait for a machine now.
func (p *Proxy) Held() int { return p.queue.Len() }

// Upgrades is how many upgraded connections are open.
func (p *Proxy) Upgrades() int {
	p.upgrades.mu.Lock()
	defer p.upgrades.mu.Unlock()
	return len(p.upgrades.conns)
}
