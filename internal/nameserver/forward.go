package nameserver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// upstream is a name server outside and what is known of its health.
type upstream struct {
	addr   string
	missed atomic.Int32 // questions in a row without an answer
	probed atomic.Int64 // when the last probe began, in Unix nanoseconds
}

func (u *upstream) silent() bool { return u.missed.Load() >= silentAfter }

// mayProbe reports whether a probe is due, to one caller.
func (u *upstream) mayProbe(now time.Time) bool {
	last := u.probed.Load()
	return now.Sub(time.Unix(0, last)) >= silentRetry && u.probed.CompareAndSwap(last, now.UnixNano())
}

// probe puts a question to a silent upstream for nobody's sake.
func (s *Server) probe(ctx context.Context, q *dns.Msg, u *upstream) {
	if !u.mayProbe(time.Now()) {
		return
	}
	q = q.Copy()
	s.probes.Go(func() {
		if _, err := s.ask(ctx, q, u); err == nil {
			s.o.Log.Info("name server answers again", "addr", u.addr)
		}
	})
}

// forward asks the upstreams, in order, until one knows. What it says, the
// absence of a name included, is passed on.
func (s *Server) forward(ctx context.Context, q *dns.Msg) *dns.Msg {
	serving := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, forwardTimeout, errors.New("no name server answered"))
	defer cancel()
	select {
	case s.forwards <- struct{}{}:
		defer func() { <-s.forwards }()
	case <-ctx.Done():
		return failure(q)
	}
	var last *dns.Msg
	var errs []error
	for _, u := range s.upstreams {
		if u.silent() {
			s.probe(serving, q, u)
			continue
		}
		a, err := s.ask(ctx, q, u)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		last = a
		if a.Rcode == dns.RcodeSuccess || a.Rcode == dns.RcodeNameError {
			break
		}
	}
	if last == nil {
		s.o.Log.Debug("public name not resolved", "err", errors.Join(errs...))
		return failure(q)
	}
	last.Id = q.Id
	last.RecursionAvailable, last.Authoritative = true, false
	return last
}

func failure(q *dns.Msg) *dns.Msg {
	a := new(dns.Msg)
	a.SetRcode(q, dns.RcodeServerFailure)
	a.RecursionAvailable = true
	return a
}

// ask puts a question to one upstream, by UDP and, if the answer does not
// fit, by TCP.
func (s *Server) ask(ctx context.Context, q *dns.Msg, u *upstream) (*dns.Msg, error) {
	own := new(dns.Msg)
	own.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	own.CheckingDisabled = q.CheckingDisabled
	opt := q.IsEdns0()
	own.SetEdns0(maxUDP, opt != nil && opt.Do())
	a, err := s.exchange(ctx, "udp", own, u.addr)
	if err == nil {
		u.missed.Store(0)
	} else if u.missed.Add(1) == silentAfter {
		s.o.Log.Warn("name server does not answer", "addr", u.addr, "err", err)
		u.probed.Store(time.Now().UnixNano())
	}
	if err == nil && a.Truncated {
		a, err = s.exchange(ctx, "tcp", own, u.addr)
	}
	return a, err
}

func (s *Server) exchange(ctx context.Context, network string, q *dns.Msg, upstream string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	c, err := s.o.Dial(ctx, network, upstream)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", upstream, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	client := dns.Client{Net: network, Timeout: upstreamTimeout}
	a, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c})
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", upstream, err)
	}
	if !a.Response || len(a.Question) != 1 || a.Question[0] != q.Question[0] {
		return nil, fmt.Errorf("ask %s: the answer is to another question", upstream)
	}
	return a, nil
}
