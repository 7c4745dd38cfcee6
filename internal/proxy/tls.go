package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
)

// Bounds of handshakes. They are the only work the edge does for strangers
// before it knows which app they want.
const (
	handshakeTimeout = 10 * time.Second
	// maxHandshakes are under way at once; each costs a goroutine and its
	// buffers, near 30 KB. More are refused at once.
	maxHandshakes = 2000
	// maxPeerHandshakes of them may be one address's.
	maxPeerHandshakes = 200
	// maxStreams is how many requests an HTTP/2 client may have under way on
	// one connection; see patience for those it takes back.
	maxStreams = 250
	// maxFrame is the least that HTTP/2 allows: what a client may have buffered
	// here before it says anything of use.
	maxFrame = 16 << 10
	// pingAfter finds out whether a silent HTTP/2 client is still there.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// http2Config bounds HTTP/2 clients. Heads are bounded by maxHeader, with their
// CONTINUATION frames (CVE-2023-45288), by net/http itself.
func http2Config() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame, SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout}
}

// patience with an HTTP/2 connection whose client takes its requests back
// before they are answered. Each costs the app a connection: net/http's own
// bound is on handlers, and ours end with their request (rapid reset).
type patience struct {
	conn     net.Conn
	requests atomic.Int64
	back     atomic.Int64 // taken back
}

type patienceKey struct{}

// maxTakenBack is how many requests a client may take back on a connection
// before most of them have to be meant; a browser that leaves a page of many
// pictures stays below.
const maxTakenBack = 200

// takenBack ends the connection of a client that mostly takes its requests back.
func (p *Proxy) takenBack(r *http.Request) {
	c, ok := r.Context().Value(patienceKey{}).(*patience)
	if !ok {
		return
	}
	if n := c.back.Add(1); n >= maxTakenBack && 2*n > c.requests.Load() {
		if n == maxTakenBack {
			p.o.Logger.Warn("ended an HTTP/2 connection that takes most of its requests back", "client", r.RemoteAddr, "requests", c.requests.Load())
		}
		_ = c.conn.Close()
	}
}

// terminator accepts connections, does their TLS handshakes beside each other
// and hands out those that are ready: a *tls.Conn that speaks HTTP/2, which
// net/http knows how to serve, or a guarded one that speaks HTTP/1. A client
// that speaks without TLS gets a guarded connection, too: whether that will do
// is decided when the app is known.
type terminator struct {
	net.Listener
	config *tls.Config
	failed func(code string, c net.Conn, err error)

	ready chan net.Conn
	done  chan struct{} // closed when no more connections come
	ended sync.Once

	mu      sync.Mutex
	pending map[net.Conn]string // handshakes under way, by address; guarded by mu
	peers   map[string]int      // guarded by mu
	work    sync.WaitGroup
}

func newTerminator(l net.Listener, config *tls.Config, failed func(string, net.Conn, error)) *terminator {
	return &terminator{
		Listener: l, config: config, failed: failed, ready: make(chan net.Conn), done: make(chan struct{}),
		pending: make(map[net.Conn]string), peers: make(map[string]int),
	}
}

// run accepts until the listener is closed. Handshakes that are under way then
// have a moment to end: nobody else would take these connections.
func (t *terminator) run() {
	for {
		c, err := t.Listener.Accept()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			if !errors.Is(err, net.ErrClosed) {
				<-time.After(acceptPause) // out of descriptors, most likely: others will be given back
				continue
			}
			break
		}
		if !t.admit(c) {
			t.failed("PT01", c, errors.New("too many handshakes at once"))
			_ = c.Close()
			continue
		}
		t.work.Go(func() {
			defer t.release(c)
			t.serve(c)
		})
	}
	cut := time.AfterFunc(farewellTimeout, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for c := range t.pending {
			_ = c.Close()
		}
	})
	defer cut.Stop()
	t.work.Wait()
	t.ended.Do(func() { close(t.done) })
}

// acceptPause is net/http's after a failed accept.
const acceptPause = 5 * time.Millisecond

func (t *terminator) admit(c net.Conn) bool {
	peer, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		peer = ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pending) >= maxHandshakes || t.peers[peer] >= maxPeerHandshakes {
		return false
	}
	t.pending[c] = peer
	t.peers[peer]++
	return true
}

func (t *terminator) release(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peer, ok := t.pending[c]
	if !ok {
		return
	}
	delete(t.pending, c)
	if t.peers[peer]--; t.peers[peer] == 0 {
		delete(t.peers, peer)
	}
}

// handshakeByte is the first of every TLS connection (RFC 8446, section 5.1).
const handshakeByte = 22

// serve brings one connection up to the point where requests come.
func (t *terminator) serve(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout)) // of a live connection, it cannot fail
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		_ = c.Close() // came and went: nothing was lost
		return
	}
	ahead := &aheadConn{Conn: c, first: first}
	if first[0] != handshakeByte {
		_ = c.SetDeadline(time.Time{})
		t.hand(c, &guardedConn{Conn: ahead})
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	s := tls.Server(ahead, t.config)
	if err := s.HandshakeContext(ctx); err != nil {
		t.failed(handshakeCode(err), c, err)
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	switch state := s.ConnectionState(); state.NegotiatedProtocol {
	case certs.ALPN:
		_ = s.Close() // the authority has seen what it wanted
	case "h2":
		t.hand(c, s)
	default:
		t.hand(c, &guardedConn{Conn: s, tls: &state})
	}
}

// hand gives a connection to the server. From here on it is no handshake any
// more, so that it is not cut when the listener closes.
func (t *terminator) hand(c, ready net.Conn) {
	t.release(c)
	t.ready <- ready // Accept is called until done is closed
}

// handshakeCode is the spec's code of a failed handshake.
func handshakeCode(err error) string {
	ne, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, certs.ErrNoCertificate):
		return "PT05"
	case errors.Is(err, context.DeadlineExceeded), isNet && ne.Timeout():
		return "PT08"
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return "PT03"
	}
	return "PT04"
}

// Accept returns the next connection that is ready.
func (t *terminator) Accept() (net.Conn, error) {
	select {
	case c := <-t.ready:
		return c, nil
	case <-t.done:
		return nil, net.ErrClosed
	}
}

// aheadConn gives back a byte that was read to see what it is.
type aheadConn struct {
	net.Conn
	first []byte
}

func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite passes a half-close on.
func (c *aheadConn) CloseWrite() error { return closeWrite(c.Conn) }

// secure reports whether a request came in over TLS.
func secure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	c, ok := r.Context().Value(guardKey{}).(*guardedConn)
	return ok && c.tls != nil
}

// TLSOptions are how the app at a host terminates TLS on an outside port; the
// zero value where it says nothing.
func (p *Proxy) TLSOptions(host string, port int) root.TLSOptions {
	s := p.o.Catalog.Snapshot()
	app, ok := p.find(s, host)
	if !ok {
		return root.TLSOptions{}
	}
	t := p.router.Table(s, app)
	if t == nil {
		return root.TLSOptions{}
	}
	for _, target := range t.Port(port) {
		if target.Port.HasHandler("tls") {
			return target.Port.TLS
		}
	}
	return root.TLSOptions{}
}
