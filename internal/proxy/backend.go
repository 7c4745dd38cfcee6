package proxy

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/load"
)

// backend is the proxy's side of one instance: its connections and whether it
// stands still. Each has its own transport, so that closing one machine's idle
// connections is exact.
type backend struct {
	machine   atomic.Pointer[root.Machine] // a record of this instance
	unit      *load.Unit
	transport *http.Transport
	frozen    atomic.Bool

	mu      sync.Mutex
	pending map[*attempt]struct{} // sent to a frozen machine, no answer yet
}

// attempt is one delivery of a request to a machine.
type attempt struct {
	cancel context.CancelCauseFunc
}

func (p *Proxy) backend(m *root.Machine) *backend {
	id := m.Spec.Instance
	if v, ok := p.backends.Load(id); ok {
		b := v.(*backend)
		b.machine.Store(m)
		return b
	}
	b := &backend{unit: p.o.Loads.Unit(id), pending: make(map[*attempt]struct{})}
	b.machine.Store(m)
	b.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return p.dial(ctx, b, network, addr)
		},
		DisableCompression:     true,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        upstreamIdle,
		ExpectContinueTimeout:  expectTimeout,
		MaxResponseHeaderBytes: 256 << 10,
		WriteBufferSize:        8 << 10,
		ReadBufferSize:         8 << 10,
	}
	v, _ := p.backends.LoadOrStore(id, b)
	return v.(*backend)
}

func (p *Proxy) dial(ctx context.Context, b *backend, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := p.o.Dial(ctx, network, addr)
	if err != nil {
		return nil, &dialError{err}
	}
	return &upstreamConn{Conn: c, p: p, b: b}, nil
}

// dialError marks that the request never reached the machine.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// upstreamConn wakes a machine that stands still, after something was written
// to it: the kernel took the connection and the bytes for it, so that the
// request is there when its processes go on.
type upstreamConn struct {
	net.Conn
	p *Proxy
	b *backend
}

func (c *upstreamConn) Write(data []byte) (int, error) {
	n, err := c.Conn.Write(data)
	if n > 0 && c.b.frozen.Load() {
		c.p.flights.Start(c.b.machine.Load())
	}
	return n, err
}

// CloseWrite passes a half-close on.
func (c *upstreamConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// wake is what a flight does. Who began it may have looked before the flight
// that came first had landed: a machine that runs takes no order.
func (p *Proxy) wake(ctx context.Context, m *root.Machine) error {
	var err error
	if p.o.Live.State(m) != root.StateStarted {
		err = p.o.Waker.Wake(ctx, m)
	}
	b := p.backend(m)
	if err == nil {
		b.frozen.Store(false)
	} else {
		// What was written to it will not be answered.
		b.mu.Lock()
		for a := range b.pending {
			a.cancel(&wakeError{err})
		}
		b.mu.Unlock()
	}
	p.waiters.wake(m.App)
	return err
}

// wakeError marks that a machine could not be woken.
type wakeError struct{ err error }

func (e *wakeError) Error() string { return e.err.Error() }
func (e *wakeError) Unwrap() error { return e.err }

func (b *backend) add(a *attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending[a] = struct{}{}
}

func (b *backend) remove(a *attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pending, a)
}
