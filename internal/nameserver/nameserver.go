// Package nameserver answers machines' DNS questions: names under internal
// from the catalog, public names by asking the host's name servers. Names that
// no public server can know, such as the reverse of private addresses, are not
// asked for, and nobody waits long for name servers that are out of reach.
//
// Names, orders and TTL are Fly's ("Private Networking, Fly.io .internal
// addresses"), with three differences: suspended machines are listed, since
// the first packet wakes them; A is answered beside AAAA, for clients and
// servers that know IPv4 only; and an app of another network does not exist.
// The network is the asking machine's, by its source address, which the
// network's source filter vouches for. A machine that asks by IPv4 is found
// in the catalog; by IPv6 its address says it.
//
// It runs in the edge. It keeps no cache: what it says of a machine is what
// the catalog says now. Serve starts a goroutine per question or connection
// and returns after the last one.
package nameserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
)

const (
	// maxUDP is the largest answer by UDP: it fits the private network's MTU
	// and every path that DNS is used over (DNS flag day 2020).
	maxUDP = 1232
	// maxForwards is how many public questions are asked at once; one more
	// waits, until forwardTimeout, and is then answered SERVFAIL.
	maxForwards = 256
	// upstreamTimeout is one try of one upstream.
	upstreamTimeout = 2 * time.Second
	// forwardTimeout is the whole of a public question: less than the 5 s
	// after which resolvers ask again.
	forwardTimeout = 4500 * time.Millisecond
	// An upstream that left silentAfter questions in a row without an answer
	// counts as silent: it is not waited for until it has answered one of those
	// that are put to it every silentRetry, while clients get SERVFAIL at once.
	silentAfter = 2
	silentRetry = time.Second
	// shutdownTimeout lets questions under way end.
	shutdownTimeout = 5 * time.Second
	// tcpTimeout ends idle connections.
	tcpTimeout = 10 * time.Second
)

// Options are what a Server needs.
type Options struct {
	Catalog interface{ Snapshot() *root.Snapshot }
	// State is a machine's state by the newest news, which may be ahead of the
	// catalog's. Nil: the catalog's.
	State func(*root.Machine) root.State
	// Upstreams are the servers asked for public names, in order, "host:port".
	// Without any, public names are answered SERVFAIL.
	Upstreams []string
	// Dial connects to an upstream ("udp" or "tcp").
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger
}

// Server is the name server. It is safe for concurrent use.
type Server struct {
	o        Options
	forwards chan struct{} // a slot per public question under way
	index    atomic.Pointer[addressIndex]

	upstreams []*upstream
	probes    sync.WaitGroup // questions asked only to see if an upstream is back
}

// New returns a server.
func New(o Options) *Server {
	if o.State == nil {
		o.State = func(m *root.Machine) root.State { return m.Status.State }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, forwards: make(chan struct{}, maxForwards)}
	for _, addr := range o.Upstreams {
		s.upstreams = append(s.upstreams, &upstream{addr: addr})
	}
	return s
}

// Serve answers on the sockets until ctx ends, then lets questions under way
// end. It closes the sockets, and returns early only if one of them fails.
func (s *Server) Serve(ctx context.Context, stream []net.Listener, packet []net.PacketConn) error {
	defer s.probes.Wait()
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range stream {
		g.Go(func() error { return s.serve(ctx, &dns.Server{Listener: l}) })
	}
	for _, c := range packet {
		g.Go(func() error { return s.serve(ctx, &dns.Server{PacketConn: c, UDPSize: maxUDP}) })
	}
	g.Go(func() error { <-ctx.Done(); return nil })
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *Server) serve(ctx context.Context, d *dns.Server) error {
	d.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		peer, udp := peerOf(w.RemoteAddr())
		if a := s.reply(ctx, q, peer, udp); a != nil {
			_ = w.WriteMsg(a) // the peer went away: nobody to tell
		}
	})
	d.IdleTimeout = func() time.Duration { return tcpTimeout }
	d.ReadTimeout, d.WriteTimeout = tcpTimeout, tcpTimeout
	started := make(chan struct{})
	d.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- d.ActivateAndServe() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-started:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	return errors.Join(d.ShutdownContext(stop), <-done)
}

func peerOf(a net.Addr) (peer netip.Addr, udp bool) {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone(""), true
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone(""), false
	}
	return netip.Addr{}, false
}

// reply answers one question; nil says nothing at all.
func (s *Server) reply(ctx context.Context, q *dns.Msg, peer netip.Addr, udp bool) *dns.Msg {
	if q.Response {
		return nil // two servers answering each other would never end
	}
	size := dns.MinMsgSize
	opt := q.IsEdns0()
	if opt != nil {
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	a := s.answer(ctx, q, peer)
	a.Extra = withoutOPT(a.Extra)
	if opt != nil {
		own := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		own.SetUDPSize(maxUDP)
		if opt.Do() {
			own.SetDo()
		}
		if opt.Version() != 0 {
			a.Answer, a.Ns, a.Extra = nil, nil, nil
			a.Rcode = dns.RcodeBadVers
		}
		a.Extra = append(a.Extra, own)
	}
	a.Compress = true
	if !udp {
		size = dns.MaxMsgSize
	}
	a.Truncate(size)
	return a
}

func withoutOPT(rrs []dns.RR) []dns.RR {
	var kept []dns.RR
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}

func (s *Server) answer(ctx context.Context, q *dns.Msg, peer netip.Addr) *dns.Msg {
	a := new(dns.Msg)
	if q.Opcode != dns.OpcodeQuery {
		a.SetRcode(q, dns.RcodeNotImplemented)
		return a
	}
	if len(q.Question) != 1 {
		a.SetRcode(q, dns.RcodeFormatError)
		return a
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		a.SetRcode(q, dns.RcodeRefused)
		return a
	}
	if z := zoneOf(question.Name); z != nil {
		return s.private(q, z, peer)
	}
	if z := reservedZone(question.Name); z != "" {
		return answerReserved(q, z)
	}
	if !q.RecursionDesired {
		a.SetRcode(q, dns.RcodeRefused)
		return a
	}
	return s.forward(ctx, q)
}
