package nameserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/patience"
)

// fixed is a catalog that does not change.
type fixed struct{ s *root.Snapshot }

func (f fixed) Snapshot() *root.Snapshot { return f.s }

const (
	net7 = 7
	net8 = 8
)

type spec struct {
	app    root.AppName
	net    uint32
	region root.Region
	state  root.State
	meta   map[string]string
	hidden bool
}

// cluster has two apps on network 7 and one on network 8. A machine's id ends
// in its index, and so do its addresses.
func cluster() *root.Snapshot {
	changes := []root.Change{
		{App: &root.App{Name: "shop", NetworkID: net7}},
		{App: &root.App{Name: "db", NetworkID: net7}},
		{App: &root.App{Name: "empty", NetworkID: net7}},
		{App: &root.App{Name: "secret", NetworkID: net8}},
	}
	for i, s := range []spec{
		{app: "shop", net: net7, region: "fra", state: root.StateStarted, meta: map[string]string{root.MetadataProcessGroup: "web"}},
		{app: "shop", net: net7, region: "iad", state: root.StateSuspended, meta: map[string]string{root.MetadataProcessGroup: "web", "Tier": "v1.2"}},
		{app: "shop", net: net7, region: "fra", state: root.StateStopped, meta: map[string]string{root.MetadataProcessGroup: "worker"}},
		{app: "shop", net: net7, region: "fra", state: root.StateStarted, hidden: true},
		{app: "shop", net: net7, region: "fra", state: root.StateDestroyed},
		{app: "db", net: net7, region: "fra", state: root.StateStarted},
		{app: "secret", net: net8, region: "fra", state: root.StateStarted},
	} {
		changes = append(changes, root.Change{Machine: machineOf(uint32(i+1), s)})
	}
	return root.NewSnapshot().With(1, changes...)
}

func machineOf(index uint32, s spec) *root.Machine {
	m := &root.Machine{
		ID: root.MachineIDFrom([7]byte{6: byte(index)}), App: s.app, Region: s.region,
		Spec: root.Spec{Address: network.AddressFor(s.net, 1, index)}, Status: root.Status{State: s.state},
	}
	m.Spec.Config.Metadata = s.meta
	m.Spec.Config.DNS.SkipRegistration = s.hidden
	return m
}

func addr6(index, net uint32) netip.Addr {
	return netip.MustParseAddr(network.AddressFor(net, 1, index).IPv6)
}
func addr4(index uint32) netip.Addr { return netip.MustParseAddr(network.AddressFor(1, 1, index).IPv4) }

func question(name string, t uint16) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), t)
	return q
}

func noDial(t testing.TB) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, _, addr string) (net.Conn, error) {
		t.Errorf("dialled %s: a private name must not leave the host", addr)
		return nil, errors.New("no network")
	}
}

// data returns the answers' data, sorted.
func data(a *dns.Msg) []string {
	out := []string{}
	for _, rr := range a.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out = append(out, rr.A.String())
		case *dns.AAAA:
			out = append(out, rr.AAAA.String())
		case *dns.TXT:
			out = append(out, strings.Join(rr.Txt, ""))
		case *dns.PTR:
			out = append(out, rr.Ptr)
		}
	}
	slices.Sort(out)
	return out
}

func TestPrivateNames(t *testing.T) {
	s := New(Options{Catalog: fixed{cluster()}, Dial: noDial(t), Upstreams: []string{"192.0.2.53:53"}})
	ip := func(indices ...uint32) []string {
		out := []string{}
		for _, i := range indices {
			out = append(out, network.AddressFor(net7, 1, i).IPv6)
		}
		slices.Sort(out)
		return out
	}
	const id = "0000000000000"
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2)},
		{"shop.internal", dns.TypeA, dns.RcodeSuccess, []string{"172.19.0.4", "172.19.0.6"}},
		{"SHOP.Internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2)},
		{"shop.internal", dns.TypeTXT, dns.RcodeSuccess, []string{}},
		{"shop.internal", dns.TypeMX, dns.RcodeSuccess, []string{}},
		{"all.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2, 3)},
		{"global.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2)},
		{"fra.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1)},
		{"all.fra.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 3)},
		{"iad.shop.internal", dns.TypeA, dns.RcodeSuccess, []string{"172.19.0.6"}},
		{"nrt.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
		{id + "2.vm.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(2)},
		{id + "3.vm.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}}, // stopped
		{"all." + id + "3.vm.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(3)},
		{id + "4.vm.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}}, // skip_registration
		{id + "6.vm.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}}, // of another app
		{"web.process.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2)},
		{"worker.process.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
		{"all.worker.process.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(3)},
		{"web.fly_process_group.kv._metadata.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2)},
		{"v1.2.tier.kv._metadata.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(2)},
		{"other.tier.kv._metadata.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
		{"top5.nearest.of.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, ip(1, 2)},
		{"top0.nearest.of.shop.internal", dns.TypeAAAA, dns.RcodeNameError, []string{}},
		{"nearest.of.shop.internal", dns.TypeAAAA, dns.RcodeNameError, []string{}},
		{"a.b.c.shop.internal", dns.TypeAAAA, dns.RcodeNameError, []string{}},
		{"empty.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
		{"unknown.internal", dns.TypeAAAA, dns.RcodeNameError, []string{}},
		{"secret.internal", dns.TypeAAAA, dns.RcodeNameError, []string{}}, // another network's
		{"all.secret.internal", dns.TypeA, dns.RcodeNameError, []string{}},
		{"internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
		{"_api.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{"fdaa::3"}},
		{"_api.internal", dns.TypeA, dns.RcodeSuccess, []string{"172.19.0.1"}},
		{"_what.internal", dns.TypeAAAA, dns.RcodeNameError, []string{}},
		{"shop.flycast", dns.TypeAAAA, dns.RcodeNameError, []string{}},
		{"vms.shop.internal", dns.TypeTXT, dns.RcodeSuccess, []string{id + "1 fra," + id + "2 iad"}},
		{"all.vms.shop.internal", dns.TypeTXT, dns.RcodeSuccess, []string{id + "1 fra," + id + "2 iad," + id + "3 fra"}},
		{"vms.shop.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
		{"regions.shop.internal", dns.TypeTXT, dns.RcodeSuccess, []string{"fra,iad"}},
		{"regions.empty.internal", dns.TypeTXT, dns.RcodeSuccess, []string{}},
		{"_apps.internal", dns.TypeTXT, dns.RcodeSuccess, []string{"db,empty,shop"}},
		{"_peer.internal", dns.TypeTXT, dns.RcodeSuccess, []string{}},
		{"_instances.internal", dns.TypeTXT, dns.RcodeSuccess, []string{
			"instance=" + id + "6,app=db,ip=" + ip(6)[0] + ",region=fra;" +
				"instance=" + id + "1,app=shop,ip=" + ip(1)[0] + ",region=fra;" +
				"instance=" + id + "2,app=shop,ip=" + ip(2)[0] + ",region=iad"}},
		{"4.0.19.172.in-addr.arpa", dns.TypePTR, dns.RcodeSuccess, []string{id + "1.vm.shop.internal."}},
		{"16.0.19.172.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, []string{}}, // another network's
		{"9.9.19.172.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, []string{}},
		{strings.TrimSuffix(must(dns.ReverseAddr(ip(6)[0])), "."), dns.TypePTR, dns.RcodeSuccess, []string{id + "6.vm.db.internal."}},
	} {
		for _, peer := range []netip.Addr{addr6(1, net7), addr4(1), addr4(1).Next()} {
			a := s.reply(t.Context(), question(c.name, c.qtype), peer, true)
			if a.Rcode != c.rcode {
				t.Errorf("%s %s asked by %s: got %s, want %s", c.name, dns.TypeToString[c.qtype], peer, dns.RcodeToString[a.Rcode], dns.RcodeToString[c.rcode])
			}
			if diff := cmp.Diff(c.want, data(a)); diff != "" {
				t.Errorf("%s %s asked by %s (-want +got):\n%s", c.name, dns.TypeToString[c.qtype], peer, diff)
			}
			for _, rr := range slices.Concat(a.Answer, a.Ns) {
				if rr.Header().Ttl != 5 {
					t.Errorf("%s: ttl: got %d, want 5", c.name, rr.Header().Ttl)
				}
			}
			if len(a.Answer) == 0 && (len(a.Ns) != 1 || a.Ns[0].Header().Rrtype != dns.TypeSOA) {
				t.Errorf("%s: absence without SOA", c.name)
			}
			if !a.Authoritative || !a.Response {
				t.Errorf("%s: flags: got %+v, want an authoritative response", c.name, a.MsgHdr)
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestStrangersSeeNothing asks from addresses that are no machine's.
func TestStrangersSeeNothing(t *testing.T) {
	s := New(Options{Catalog: fixed{cluster()}, Dial: noDial(t)})
	for _, peer := range []netip.Addr{netip.MustParseAddr("172.19.9.9"), netip.MustParseAddr("fdaa::3"), netip.MustParseAddr("127.0.0.1"), {}} {
		if a := s.reply(t.Context(), question("shop.internal", dns.TypeAAAA), peer, true); a.Rcode != dns.RcodeNameError {
			t.Errorf("asked by %s: got %s, want NXDOMAIN", peer, dns.RcodeToString[a.Rcode])
		}
		for _, name := range []string{"_apps.internal", "all._instances.internal"} {
			if a := s.reply(t.Context(), question(name, dns.TypeTXT), peer, true); len(a.Answer) > 0 {
				t.Errorf("%s asked by %s: got %v, want nothing", name, peer, a.Answer)
			}
		}
	}
	if a := s.reply(t.Context(), question("secret.internal", dns.TypeAAAA), addr6(7, net8), true); len(a.Answer) != 1 {
		t.Errorf("its own network: got %v, want one machine", a.Answer)
	}
}

func TestNearestComesFirst(t *testing.T) {
	s := New(Options{Catalog: fixed{cluster()}, Dial: noDial(t)})
	for asker, want := range map[uint32]uint32{1: 1, 2: 2} {
		a := s.reply(t.Context(), question("top1.nearest.of.shop.internal", dns.TypeAAAA), addr6(asker, net7), true)
		if diff := cmp.Diff([]string{addr6(want, net7).String()}, data(a)); diff != "" {
			t.Errorf("nearest to machine %d (-want +got):\n%s", asker, diff)
		}
	}
}

// TestLiveStateCounts answers by news that the catalog does not have yet.
func TestLiveStateCounts(t *testing.T) {
	stopped := atomic.Bool{}
	s := New(Options{Catalog: fixed{cluster()}, State: func(m *root.Machine) root.State {
		if stopped.Load() && m.Status.State == root.StateStarted {
			return root.StateStopped
		}
		return m.Status.State
	}})
	count := func() int {
		return len(s.reply(t.Context(), question("shop.internal", dns.TypeAAAA), addr6(1, net7), true).Answer)
	}
	before := count()
	stopped.Store(true)
	if after := count(); before != 2 || after != 1 {
		t.Errorf("answers: got %d, then %d; want 2, then 1", before, after)
	}
}

// TestLongAnswers has more machines than a datagram holds.
func TestLongAnswers(t *testing.T) {
	const machines = 300
	changes := []root.Change{{App: &root.App{Name: "big", NetworkID: net7}}}
	for i := range machines {
		m := machineOf(uint32(i+1), spec{app: "big", net: net7, region: "fra", state: root.StateStarted})
		m.ID = root.MachineIDFrom([7]byte{5: byte(i >> 8), 6: byte(i)})
		changes = append(changes, root.Change{Machine: m})
	}
	s := New(Options{Catalog: fixed{root.NewSnapshot().With(1, changes...)}})
	ask := func(q *dns.Msg, udp bool) (*dns.Msg, int) {
		t.Helper()
		a := s.reply(t.Context(), q, addr6(1, net7), udp)
		wire, err := a.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return a, len(wire)
	}
	plain := question("big.internal", dns.TypeAAAA)
	edns := plain.Copy()
	edns.SetEdns0(4096, false)
	for name, c := range map[string]struct {
		q         *dns.Msg
		udp       bool
		limit     int
		truncated bool
	}{
		"udp":      {plain, true, 512, true},
		"udp edns": {edns, true, 1232, true},
		"tcp":      {plain, false, 65535, false},
	} {
		a, size := ask(c.q, c.udp)
		if size > c.limit || a.Truncated != c.truncated {
			t.Errorf("%s: got %d bytes, truncated %v; want at most %d, truncated %v", name, size, a.Truncated, c.limit, c.truncated)
		}
		if !c.truncated && len(a.Answer) != machines {
			t.Errorf("%s: got %d answers, want %d", name, len(a.Answer), machines)
		}
		if opt := a.IsEdns0(); (opt != nil) != (c.q == edns) {
			t.Errorf("%s: OPT: got %v", name, opt)
		}
	}
	text, _ := ask(question("vms.big.internal", dns.TypeTXT), false)
	txt := text.Answer[0].(*dns.TXT).Txt
	if joined := strings.Join(txt, ""); strings.Count(joined, " fra") != machines || len(txt) < 2 {
		t.Errorf("long text: got %d machines in %d strings, want %d in several", strings.Count(joined, " fra"), len(txt), machines)
	}
}

func TestRefusals(t *testing.T) {
	s := New(Options{Catalog: fixed{cluster()}, Dial: noDial(t), Upstreams: []string{"192.0.2.53:53"}})
	change := func(f func(*dns.Msg)) *dns.Msg {
		q := question("shop.internal", dns.TypeAAAA)
		f(q)
		return q
	}
	for name, c := range map[string]struct {
		q    *dns.Msg
		want int
	}{
		"two questions":  {change(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError},
		"no question":    {change(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		"update":         {change(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"chaos":          {change(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"transfer":       {question("internal", dns.TypeAXFR), dns.RcodeRefused},
		"no recursion":   {func() *dns.Msg { q := question("example.com", dns.TypeA); q.RecursionDesired = false; return q }(), dns.RcodeRefused},
		"future of EDNS": {change(func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		a := s.reply(t.Context(), c.q, addr6(1, net7), true)
		if a.Rcode != c.want || a.Id != c.q.Id || len(a.Answer) > 0 {
			t.Errorf("%s: got %s, id %d, %d answers; want %s, id %d, none", name, dns.RcodeToString[a.Rcode], a.Id, len(a.Answer), dns.RcodeToString[c.want], c.q.Id)
		}
		if _, err := a.Pack(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	response := question("shop.internal", dns.TypeAAAA)
	response.Response = true
	if a := s.reply(t.Context(), response, addr6(1, net7), true); a != nil {
		t.Errorf("a response was answered: %v", a)
	}
}

func TestAddressesAreTheRouters(t *testing.T) {
	if gatewayIPv4 != network.GatewayIPv4 || dnsIPv6 != network.DNSIPv6 {
		t.Errorf("router's addresses: got %s and %s, want %s and %s", gatewayIPv4, dnsIPv6, network.GatewayIPv4, network.DNSIPv6)
	}
	for _, a := range []netip.Addr{addr6(1, 0xdeadbeef), addr4(1), netip.MustParseAddr("2001:db8::1"), {}} {
		if a.IsValid() && networkIDOf(a) != network.NetworkIDOf(a) {
			t.Errorf("network of %s: got %d, want %d", a, networkIDOf(a), network.NetworkIDOf(a))
		}
	}
}

// serveUpstream is a public name server on one port, UDP and TCP.
func serveUpstream(t *testing.T, answer func(q *dns.Msg, tcp bool) *dns.Msg) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*dns.Server{{Listener: l}, {PacketConn: c}} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		d.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			_, tcp := w.RemoteAddr().(*net.TCPAddr)
			if a := answer(q, tcp); a != nil {
				_ = w.WriteMsg(a)
			}
		})
		done := make(chan error, 1)
		go func() { done <- d.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := errors.Join(d.Shutdown(), <-done); err != nil {
				t.Error(err)
			}
		})
	}
	return l.Addr().String()
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

func TestForward(t *testing.T) {
	var asked atomic.Int32
	good := serveUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		asked.Add(1)
		a := new(dns.Msg)
		a.SetReply(q)
		switch q.Question[0].Name {
		case "missing.example.":
			a.Rcode = dns.RcodeNameError
		case "broken.example.":
			a.Rcode = dns.RcodeServerFailure
		case "long.example.":
			if !tcp {
				a.Truncated = true
				return a
			}
			for range 100 {
				a.Answer = append(a.Answer, must(dns.NewRR("long.example. 60 IN TXT "+strings.Repeat("x", 200))))
			}
		case "liar.example.":
			a.Question[0].Name = "other.example."
		default:
			a.Answer = append(a.Answer, must(dns.NewRR(q.Question[0].Name+" 60 IN A 192.0.2.1")))
		}
		return a
	})
	failing := serveUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		a := new(dns.Msg)
		a.SetRcode(q, dns.RcodeServerFailure)
		return a
	})
	for _, c := range []struct {
		name      string
		upstreams []string
		question  string
		udp       bool
		rcode     int
		answers   int
		truncated bool
	}{
		{"found", []string{good}, "www.example", true, dns.RcodeSuccess, 1, false},
		{"absence is passed on", []string{good}, "missing.example", true, dns.RcodeNameError, 0, false},
		{"failure is passed on", []string{good}, "broken.example", true, dns.RcodeServerFailure, 0, false},
		{"the next one is asked", []string{failing, good}, "www.example", true, dns.RcodeSuccess, 1, false},
		{"nobody listens", []string{"127.0.0.1:1", good}, "www.example", true, dns.RcodeSuccess, 1, false},
		{"TCP when it is long", []string{good}, "long.example", false, dns.RcodeSuccess, 100, false},
		{"and truncated for UDP", []string{good}, "long.example", true, dns.RcodeSuccess, -1, true},
		{"an answer to another question", []string{good}, "liar.example", true, dns.RcodeServerFailure, 0, false},
		{"no upstream", nil, "www.example", true, dns.RcodeServerFailure, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(Options{Catalog: fixed{cluster()}, Upstreams: c.upstreams, Dial: dial})
			q := question(c.question, dns.TypeA)
			a := s.reply(t.Context(), q, addr6(1, net7), c.udp)
			if a.Rcode != c.rcode || a.Id != q.Id || a.Truncated != c.truncated || c.answers >= 0 && len(a.Answer) != c.answers {
				t.Errorf("got %s, id %d, truncated %v, %d answers; want %s, id %d, truncated %v, %d answers",
					dns.RcodeToString[a.Rcode], a.Id, a.Truncated, len(a.Answer), dns.RcodeToString[c.rcode], q.Id, c.truncated, c.answers)
			}
			if a.IsEdns0() != nil {
				t.Error("an OPT that nobody asked for")
			}
			if wire, err := a.Pack(); err != nil || c.udp && len(wire) > 512 {
				t.Errorf("size: got %d, %v, want at most 512", len(wire), err)
			}
		})
	}
	if asked.Load() == 0 {
		t.Error("the upstream was never asked")
	}
}

// silent is an upstream that takes questions and says nothing.
func silent(t testing.TB) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		c, far := net.Pipe()
		t.Cleanup(func() { _ = far.Close() })
		go func() {
			b := make([]byte, 512)
			for {
				if _, err := far.Read(b); err != nil {
					return
				}
			}
		}()
		return c, nil
	}
}

func TestSilentUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Catalog: fixed{cluster()}, Upstreams: []string{"a:53", "b:53", "c:53", "d:53"}, Dial: silent(t)})
		start := time.Now()
		a := s.reply(t.Context(), question("www.example", dns.TypeA), addr6(1, net7), true)
		if a.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %s, want SERVFAIL", dns.RcodeToString[a.Rcode])
		}
		if took := time.Since(start); took != forwardTimeout {
			t.Errorf("took %v, want %v", took, forwardTimeout)
		}
	})
}

// TestForwardsAreBounded fills every slot; one more waits, and is told.
func TestForwardsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		quiet := silent(t)
		s := New(Options{Catalog: fixed{cluster()}, Upstreams: []string{"a:53", "b:53", "c:53"}, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "a:53" {
				dials.Add(1)
			}
			return quiet(ctx, network, addr)
		}})
		done := make(chan int, maxForwards+10)
		for range maxForwards + 10 {
			go func() {
				done <- s.reply(t.Context(), question("www.example", dns.TypeA), addr6(1, net7), true).Rcode
			}()
		}
		synctest.Wait()
		if got := dials.Load(); got != maxForwards {
			t.Errorf("questions under way: got %d, want %d", got, maxForwards)
		}
		// Private names do not queue behind public ones.
		if a := s.reply(t.Context(), question("shop.internal", dns.TypeAAAA), addr6(1, net7), true); len(a.Answer) != 2 {
			t.Errorf("private name meanwhile: got %d answers, want 2", len(a.Answer))
		}
		for range maxForwards + 10 {
			if rcode := <-done; rcode != dns.RcodeServerFailure {
				t.Errorf("got %s, want SERVFAIL", dns.RcodeToString[rcode])
			}
		}
	})
}

// TestServe asks over real sockets; the asker is found by its IPv4 address.
func TestServe(t *testing.T) {
	m := machineOf(1, spec{app: "shop", net: net7, region: "fra", state: root.StateStarted})
	m.Spec.Address.IPv4 = "127.0.0.1"
	snap := root.NewSnapshot().With(1, root.Change{App: &root.App{Name: "shop", NetworkID: net7}}, root.Change{Machine: m})
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	c := must(net.ListenPacket("udp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- New(Options{Catalog: fixed{snap}}).Serve(ctx, []net.Listener{l}, []net.PacketConn{c})
	}()
	for network, addr := range map[string]string{"udp": c.LocalAddr().String(), "tcp": l.Addr().String()} {
		client := dns.Client{Net: network, Timeout: patience.Limit}
		a, _, err := client.Exchange(question("shop.internal", dns.TypeAAAA), addr)
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		if diff := cmp.Diff([]string{m.Spec.Address.IPv6}, data(a)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", network, diff)
		}
	}
	// Garbage is no reason to stop.
	raw := must(net.Dial("udp", c.LocalAddr().String()))
	defer raw.Close()
	for _, garbage := range [][]byte{{}, {1}, make([]byte, 12), append(make([]byte, 5), 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc0, 0x0c)} {
		if _, err := raw.Write(garbage); err != nil {
			t.Fatal(err)
		}
	}
	client := dns.Client{Timeout: patience.Limit}
	if _, _, err := client.Exchange(question("shop.internal", dns.TypeA), c.LocalAddr().String()); err != nil {
		t.Errorf("after garbage: %v", err)
	}
	want := errors.New("test ended")
	cancel(want)
	if err := <-done; !errors.Is(err, want) {
		t.Errorf("Serve: got %v, want %v", err, want)
	}
	if _, err := c.WriteTo([]byte("x"), raw.LocalAddr()); err == nil {
		t.Error("Serve left its socket open")
	}
}

// TestServeEndsBeforeItBegan cancels first.
func TestServeEndsBeforeItBegan(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := must(net.ListenPacket("udp", "127.0.0.1:0"))
	if err := New(Options{Catalog: fixed{cluster()}}).Serve(ctx, nil, []net.PacketConn{c}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// FuzzReply feeds raw messages: whatever they say, the answer fits, is to the
// question, and never tells of another network.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"shop.internal", "all._instances.internal", "secret.internal", "v1.2.tier.kv._metadata.shop.internal", "top1.nearest.of.shop.internal", "example.com", "4.0.19.172.in-addr.arpa", "internal", "."} {
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeANY} {
			q := question(name, t)
			f.Add(must(q.Pack()), true)
			q.SetEdns0(65535, true)
			f.Add(must(q.Pack()), false)
		}
	}
	s := New(Options{Catalog: fixed{cluster()}, Upstreams: []string{"a:53"}, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no network")
	}})
	secret := addr6(7, net8).String()
	f.Fuzz(func(t *testing.T, wire []byte, udp bool) {
		q := new(dns.Msg)
		if q.Unpack(wire) != nil {
			return // the library answers FORMERR or nothing
		}
		a := s.reply(t.Context(), q, addr6(1, net7), udp)
		if a == nil {
			if !q.Response {
				t.Fatal("a question without answer")
			}
			return
		}
		if a.Id != q.Id || !a.Response {
			t.Errorf("header: got %+v for %+v", a.MsgHdr, q.MsgHdr)
		}
		out, err := a.Pack()
		if err != nil {
			t.Fatalf("the answer does not pack: %v", err)
		}
		limit := 65535
		if udp {
			limit = maxUDP
		}
		if len(out) > limit {
			t.Errorf("size: got %d, want at most %d", len(out), limit)
		}
		if strings.Contains(a.String(), secret) {
			t.Errorf("told of another network: %v", a)
		}
	})
}

func BenchmarkReply(b *testing.B) {
	s := New(Options{Catalog: fixed{cluster()}})
	q := question("shop.internal", dns.TypeAAAA)
	b.ReportAllocs()
	for b.Loop() {
		a := s.reply(b.Context(), q, addr6(1, net7), true)
		if _, err := a.Pack(); err != nil {
			b.Fatal(err)
		}
	}
}
