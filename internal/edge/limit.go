package edge

import (
	"errors"
	"net"
	"sync"

	"github.com/roost-run/roost/internal/orders"
)

// How many connections one machine may hold open to the host itself, on each
// of its ways in. All machines share this process's descriptors and memory
// with the requests from outside.
const (
	maxAPIConns = 256
	maxDNSConns = 64
)

// limited wraps a listener that machines reach.
func limited(l net.Listener, kind orders.ListenerKind) net.Listener {
	switch kind {
	case orders.ListenInternal, orders.ListenMachine:
		return &perPeer{Listener: l, most: maxAPIConns, open: make(map[string]int)}
	case orders.ListenDNS:
		return &perPeer{Listener: l, most: maxDNSConns, open: make(map[string]int)}
	}
	return l
}

// perPeer closes what an address opens beyond its share. All who connect to
// one unix socket are one.
type perPeer struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[string]int // by address
}

func (l *perPeer) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := ""
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			peer = a.IP.String()
		}
		l.mu.Lock()
		full := l.open[peer] >= l.most
		if !full {
			l.open[peer]++
		}
		l.mu.Unlock()
		if !full {
			return &limitedConn{Conn: c, done: sync.OnceFunc(func() { l.left(peer) })}, nil
		}
		_ = c.Close() // it has enough others
	}
}

func (l *perPeer) left(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer]--; l.open[peer] == 0 {
		delete(l.open, peer)
	}
}

type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.done()
	return err
}

// CloseWrite passes a half-close on.
func (c *limitedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.New("no half-close")
}
