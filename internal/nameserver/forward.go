package nameserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// forward asks the upstreams, in order, until one knows. What it says, the
// absence of a name included, is passed on.
func (s *Server) forward(ctx context.Context, q *dns.Msg) *dns.Msg {
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
	for _, upstream := range s.o.Upstreams {
		a, err := s.ask(ctx, q, upstream)
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
func (s *Server) ask(ctx context.Context, q *dns.Msg, upstream string) (*dns.Msg, error) {
	own := new(dns.Msg)
	own.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	own.CheckingDisabled = q.CheckingDisabled
	opt := q.IsEdns0()
	own.SetEdns0(maxUDP, opt != nil && opt.Do())
	a, err := s.exchange(ctx, "udp", own, upstream)
	if err == nil && a.Truncated {
		a, err = s.exchange(ctx, "tcp", own, upstream)
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
