package nameserver

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestReservedNames: what no public server knows is not asked for.
func TestReservedNames(t *testing.T) {
	s := New(Options{Catalog: fixed{cluster()}, Dial: noDial(t), Upstreams: []string{"192.0.2.53:53"}})
	reverse := func(ip string) string { return strings.TrimSuffix(must(dns.ReverseAddr(ip)), ".") }
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{reverse("10.1.2.3"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("172.16.0.1"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("172.31.255.255"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("192.168.1.1"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("127.0.0.1"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("169.254.169.254"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("0.0.0.0"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("::"), dns.TypePTR, dns.RcodeSuccess, []string{}}, // the zone's own name: no data
		{reverse("::1"), dns.TypePTR, dns.RcodeSuccess, []string{}},
		{reverse("fd00::1"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{reverse("fe80::1"), dns.TypePTR, dns.RcodeNameError, []string{}},
		{"localhost", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.1"}},
		{"a.LocalHost", dns.TypeAAAA, dns.RcodeSuccess, []string{"::1"}},
		{"localhost", dns.TypeMX, dns.RcodeSuccess, []string{}},
		{"printer.local", dns.TypeA, dns.RcodeNameError, []string{}},
		{"a.test", dns.TypeA, dns.RcodeNameError, []string{}},
	} {
		a := s.reply(t.Context(), question(c.name, c.qtype), addr6(1, net7), true)
		if a.Rcode != c.rcode {
			t.Errorf("%s %s: got %s, want %s", c.name, dns.TypeToString[c.qtype], dns.RcodeToString[a.Rcode], dns.RcodeToString[c.rcode])
		}
		if diff := cmp.Diff(c.want, data(a)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.name, dns.TypeToString[c.qtype], diff)
		}
	}
	for _, public := range []string{"www.example", reverse("172.32.0.1"), reverse("8.8.8.8"), reverse("2606:4700::1"), "notlocalhost", "local.example"} {
		if z := reservedZone(public); z != "" {
			t.Errorf("%s: taken for a name of %s", public, z)
		}
	}
}

// TestSilentUpstreamIsNotWaitedFor: only the first questions pay for a name
// server that is out of reach, and it is asked again when it is back.
func TestSilentUpstreamIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back atomic.Bool
		quiet := silent(t)
		s := New(Options{Catalog: fixed{cluster()}, Upstreams: []string{"a:53"}, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if !back.Load() {
				return quiet(ctx, network, addr)
			}
			client, server := net.Pipe()
			go func() {
				c := &dns.Conn{Conn: server}
				defer c.Close()
				if q, err := c.ReadMsg(); err == nil {
					a := new(dns.Msg)
					a.SetReply(q)
					a.Answer = []dns.RR{must(dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1"))}
					_ = c.WriteMsg(a)
				}
			}()
			return client, nil
		}})
		ask := func() (int, time.Duration) {
			start := time.Now()
			a := s.reply(t.Context(), question("www.example", dns.TypeA), addr6(1, net7), true)
			return a.Rcode, time.Since(start)
		}
		for range silentAfter {
			if rcode, took := ask(); rcode != dns.RcodeServerFailure || took != upstreamTimeout {
				t.Errorf("while it is not known: got %s after %v, want SERVFAIL after %v", dns.RcodeToString[rcode], took, upstreamTimeout)
			}
		}
		for range 10 {
			if rcode, took := ask(); rcode != dns.RcodeServerFailure || took != 0 {
				t.Errorf("once it is known: got %s after %v, want SERVFAIL at once", dns.RcodeToString[rcode], took)
			}
			time.Sleep(500 * time.Millisecond) //nolint:forbidigo // virtual
		}
		back.Store(true)
		deadline := time.Now().Add(upstreamTimeout + 2*silentRetry)
		for {
			rcode, _ := ask()
			if rcode == dns.RcodeSuccess {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the name server is back and is not asked")
			}
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // virtual
		}
		s.probes.Wait()
	})
}
