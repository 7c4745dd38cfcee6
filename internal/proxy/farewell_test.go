package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	limit "github.com/roost-run/roost/internal/patience"
)

// TestUnread: what a client has sent is seen before anybody reads it, so that a
// busy edge does not close the connection over it, whatever the connection is
// wrapped in.
func TestUnread(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"port 80":            func(c net.Conn) net.Conn { return &guardedConn{Conn: c} },
		"without TLS":        func(c net.Conn) net.Conn { return &guardedConn{Conn: &aheadConn{Conn: c}} },
		"HTTP/1 through TLS": func(c net.Conn) net.Conn { return &guardedConn{Conn: tls.Server(&aheadConn{Conn: c}, nil)} },
		"HTTP/2 through TLS": func(c net.Conn) net.Conn { return tls.Server(&aheadConn{Conn: c}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			client, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			served := wrap(accepted)
			p := &Proxy{}
			p.count(served, http.StateNew)
			if p.unread() {
				t.Error("nothing was sent: got true, want false")
			}
			const head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
			if _, err := io.WriteString(client, head); err != nil {
				t.Fatal(err)
			}
			limit.Until(t, "the bytes are seen", p.unread)
			if _, err := io.ReadFull(accepted, make([]byte, len(head))); err != nil {
				t.Fatal(err)
			}
			if p.unread() {
				t.Error("all was read: got true, want false")
			}
			if _, err := io.WriteString(client, head); err != nil {
				t.Fatal(err)
			}
			limit.Until(t, "more bytes are seen", p.unread)
			p.count(served, http.StateClosed)
			if p.unread() || p.open.Load() != 0 {
				t.Error("the connection is closed: got true, want false")
			}
		})
	}
}
