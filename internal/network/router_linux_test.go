package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

// state describes a namespace whole: links, addresses, routes, neighbours,
// tables and settings, without those of the instances that ignore names.
func state(t testing.TB, ns *os.File, ignore func(string) bool) []string {
	t.Helper()
	var lines []string
	add := func(format string, args ...any) {
		if s := fmt.Sprintf(format, args...); !ignore(s) {
			lines = append(lines, s)
		}
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	links, err := h.LinkList()
	must(t, err)
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		add("link %s %s mtu %d up %v", a.Name, l.Type(), a.MTU, a.Flags&net.FlagUp != 0)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		addrs, err := h.AddrList(nil, family)
		must(t, err)
		for _, a := range addrs {
			add("address %s on %s", a.IPNet, names[a.LinkIndex])
		}
		routes, err := h.RouteList(nil, family)
		must(t, err)
		for _, r := range routes {
			add("route %s by %s on %s type %d", r.Dst, r.Gw, names[r.LinkIndex], r.Type)
		}
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	must(t, err)
	chains, err := c.ListChains()
	must(t, err)
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		must(t, err)
		add("chain %s %s with %d rules", ch.Table.Name, ch.Name, len(rules))
	}
	must(t, within(ns, func() error {
		for _, dir := range []string{"ipv4", "ipv6"} {
			err := filepath.Walk("/proc/sys/net/"+dir, func(path string, info os.FileInfo, err error) error {
				if err != nil || info.IsDir() || info.Mode()&0o400 == 0 {
					return nil //nolint:nilerr // entries of links that just went
				}
				if b, err := os.ReadFile(path); err == nil {
					add("%s = %s", path, strings.TrimSpace(string(b)))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	slices.Sort(lines)
	return lines
}

// volatile are settings that the kernel itself changes.
func volatile(s string) bool {
	for _, part := range []string{"/tcp_fastopen_key", "stable_secret", "/neigh/", "/route/gc", "tcp_mem", "udp_mem", "/use_carrier"} {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

func TestCloseLeavesTheHostAsItWas(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	// A host that somebody hardened and configured by hand.
	must(t, within(w.host, func() error {
		return setSysctls(sysctl{"ipv4/conf/all/accept_redirects", "0"}, sysctl{"ipv4/conf/eth0/forwarding", "1"}, sysctl{"ipv6/conf/eth0/accept_ra", "0"})
	}))
	before := state(t, w.host, volatile)
	w.open()
	m, other := w.attach(1, 7), w.attach(2, 8)
	serve(t, w.internet, 9000)
	reaches(t, "internet", m.ns, "tcp", at(internet4, 9000), hostPublic4)
	if during := state(t, w.host, volatile); cmp.Equal(before, during) {
		t.Error("the comparison sees no difference while the router is up")
	}
	must(t, w.router.Close(context.Background()))
	if diff := cmp.Diff(before, state(t, w.host, volatile)); diff != "" {
		t.Errorf("host after Close (-before +after):\n%s", diff)
	}
	for _, path := range []string{w.o.Namespace, w.o.HostNamespace, m.Namespace, other.Namespace} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after Close: got %v, want it gone", path, err)
		}
	}
	for _, m := range []*machine{m, other} {
		if l, err := linkByName(handle(t, m.ns), machineLink); err != nil || l != nil {
			t.Errorf("the machine's link after Close: got %v, %v, want none", l, err)
		}
	}
}

// TestFailedOpenLeavesNothing cannot have any of its uplink's addresses.
func TestFailedOpenLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	h := handle(t, w.host)
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, addAddress(h, lo, netip.MustParsePrefix("169.254.64.1/18")))
	before := state(t, w.host, volatile)
	if r, err := OpenRouter(t.Context(), w.o, testLog(t)); !root.IsKind(err, root.Exhausted) {
		t.Errorf("got %v, %v, want kind Exhausted", r, err)
	}
	if diff := cmp.Diff(before, state(t, w.host, volatile)); diff != "" {
		t.Errorf("host after a failure (-before +after):\n%s", diff)
	}
	if _, err := os.Lstat(w.o.Namespace); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("router's namespace: got %v, want it gone", err)
	}
}

// TestRealHost is the only test that touches the host's own namespace.
func TestRealHost(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	o := Options{Name: randomName(t), Namespace: filepath.Join(dir, "router"), HostNamespace: filepath.Join(dir, "host")}
	own, err := os.Open("/proc/self/ns/net")
	must(t, err)
	defer own.Close()
	mine := func(s string) bool {
		return strings.Contains(s, hostLink(o.Name)) || strings.Contains(s, "roost_"+o.Name)
	}
	others := func() bool {
		return slices.ContainsFunc(state(t, own, func(s string) bool { return mine(s) || volatile(s) }), func(s string) bool { return strings.Contains(s, "roost-") })
	}
	// Other instances come and go beside this test, and with them forwarding.
	ignore := func(s string) bool {
		return volatile(s) || !mine(s) && strings.Contains(s, "roost") || strings.Contains(s, "forwarding") || strings.Contains(s, "ip_forward") || strings.Contains(s, "169.254.") || strings.Contains(s, "fd72:") || strings.Contains(s, "accept_redirects") || strings.Contains(s, "fe80::")
	}
	alone := !others()
	whole := state(t, own, volatile)
	before := state(t, own, ignore)
	r, err := OpenRouter(t.Context(), o, testLog(t))
	must(t, err)
	a := AddressFor(7, 1, 1)
	err = r.Network().Attach(t.Context(), Attachment{Namespace: filepath.Join(dir, "m1"), Interface: "m1", IPv4: a.IPv4, IPv6: a.IPv6, NetworkID: 7})
	alone = alone && !others()
	if err := errors.Join(err, r.Close(context.Background())); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, state(t, own, ignore)); diff != "" {
		t.Errorf("host after Close (-before +after):\n%s", diff)
	}
	if after := state(t, own, volatile); alone && !others() {
		if diff := cmp.Diff(whole, after); diff != "" {
			t.Errorf("host after Close, forwarding included (-before +after):\n%s", diff)
		}
	}
}

// TestInstancesShareAHost starts two instances; the first to come is the first
// to go, and the last restores what the first remembered.
func TestInstancesShareAHost(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	before := state(t, w.host, volatile)
	w.open()
	first := w.router
	m1 := w.attach(1, 7)
	second := *w
	second.o.Name = randomName(t)
	second.o.Namespace = filepath.Join(t.TempDir(), "router")
	second.o.HostNamespace = filepath.Join(t.TempDir(), "host")
	must(t, os.WriteFile(second.o.HostNamespace, nil, 0o600))
	must(t, unix.Mount(w.o.HostNamespace, second.o.HostNamespace, "", unix.MS_BIND, ""))
	second.open()
	m2 := second.attach(1, 7) // the same addresses, and no conflict
	serve(t, w.internet, 9000)
	serve(t, m1.ns, 8080)
	for _, m := range []*machine{m1, m2} {
		reaches(t, "internet", m.ns, "tcp", at(internet4, 9000), hostPublic4)
		reaches(t, "internet", m.ns, "tcp", at(internet6, 9000), hostPublic6)
	}
	refused(t, "a machine of the other instance", second.net().ns, "tcp", at(m1.IPv4, 8080))
	must(t, first.Close(context.Background()))
	reaches(t, "internet, after the other instance went", m2.ns, "tcp", at(internet4, 9000), hostPublic4)
	// The first Close removed this file; the host itself is still open.
	must(t, second.router.Close(context.Background()))
	if diff := cmp.Diff(before, state(t, w.host, volatile)); diff != "" {
		t.Errorf("host after both closed (-before +after):\n%s", diff)
	}
}

// TestUplinkAvoidsTakenAddresses gives the host the instance's first choice.
func TestUplinkAvoidsTakenAddresses(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	h := handle(t, w.host)
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, addAddress(h, lo, netip.PrefixFrom(uplinkSubnet(w.o.Name, 0).Addr().Next(), 32)))
	w.open()
	addrs, err := h.AddrList(nil, unix.AF_INET)
	must(t, err)
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.String() == uplinkSubnet(w.o.Name, 1).Addr().Next().String() }) {
		t.Errorf("host's addresses: got %v, want one of the second choice %s", addrs, uplinkSubnet(w.o.Name, 1))
	}
	m := w.attach(1, 7)
	serve(t, w.internet, 9000)
	reaches(t, "internet", m.ns, "tcp", at(internet4, 9000), hostPublic4)
	must(t, w.router.Close(context.Background()))
}

// TestAdoption opens the router again, after each kind of damage a crash or a
// person can do, and finds machines and their connections unharmed.
func TestAdoption(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.attach(1, 7), w.attach(2, 7)
	serve(t, b.ns, 8080)
	serve(t, w.internet, 9000)

	// A connection that must live through all of it.
	var l net.Listener
	must(t, within(b.ns, func() (err error) {
		l, err = net.Listen("tcp", at(b.IPv4, 7000))
		return err
	}))
	defer l.Close()
	var c net.Conn
	must(t, within(a.ns, func() (err error) {
		c, err = net.Dial("tcp", l.Addr().String())
		return err
	}))
	defer c.Close()
	s, err := l.Accept()
	must(t, err)
	defer s.Close()

	for _, damage := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"none", func(*testing.T) {}},
		{"uplink removed", func(t *testing.T) {
			h := handle(t, w.host)
			link, err := h.LinkByName(hostLink(w.o.Name))
			must(t, err)
			must(t, h.LinkDel(link))
		}},
		{"host's table removed", func(t *testing.T) {
			must(t, w.router.hostNFT(func(c *nftables.Conn) { c.DelTable(hostTable(w.o.Name)) }))
		}},
		{"uplink without address or memory", func(t *testing.T) {
			h := handle(t, w.host)
			link, err := h.LinkByName(hostLink(w.o.Name))
			must(t, err)
			addrs, err := h.AddrList(link, unix.AF_UNSPEC)
			must(t, err)
			for _, a := range addrs {
				must(t, h.AddrDel(link, &a))
			}
			must(t, h.LinkSetAlias(link, ""))
		}},
		{"chain emptied", func(t *testing.T) {
			must(t, w.net().nft(func(c *nftables.Conn) error {
				c.FlushChain(&nftables.Chain{Table: w.net().sets.members.Table, Name: "input"})
				return nil
			}))
		}},
	} {
		t.Run(damage.name, func(t *testing.T) {
			damage.do(t)
			w.router.Release()
			w.t = t
			w.open()
			serve(t, w.net().ns, 53)
			reaches(t, "machine to machine", a.ns, "tcp", at(b.IPv6, 8080), a.IPv6)
			reaches(t, "internet", a.ns, "tcp", at(internet4, 9000), hostPublic4)
			reaches(t, "internet", a.ns, "tcp", at(internet6, 9000), hostPublic6)
			reaches(t, "DNS", a.ns, "udp", at(GatewayIPv4, 53), a.IPv4)
			must(t, s.SetReadDeadline(patience.Deadline()))
			_, err := io.WriteString(c, "still here")
			must(t, err)
			buf := make([]byte, 10)
			if _, err := io.ReadFull(s, buf); err != nil {
				t.Errorf("the old connection: %v", err)
			}
			got, err := w.net().Attachments(t.Context())
			must(t, err)
			slices.Sort(got)
			if diff := cmp.Diff([]string{"m1", "m2"}, got); diff != "" {
				t.Errorf("attachments (-want +got):\n%s", diff)
			}
		})
	}
	w.t = t
}

// TestRouterNamespaceLost finds an uplink whose router is gone.
func TestRouterNamespaceLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.router.Release()
	must(t, removeNamespace(w.o.Namespace))
	w.open()
	m := w.attach(1, 7)
	serve(t, w.internet, 9000)
	reaches(t, "internet", m.ns, "tcp", at(internet4, 9000), hostPublic4)
}

// TestAttachIsIdempotent repeats Attach on an intact machine, and after damage.
func TestAttachIsIdempotent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.attach(1, 7), w.attach(2, 7)
	serve(t, a.ns, 8080)
	index := func() int {
		l, err := w.net().nl.LinkByName(b.Interface)
		must(t, err)
		return l.Attrs().Index
	}
	first := index()
	must(t, w.net().Attach(t.Context(), b.Attachment))
	if got := index(); got != first {
		t.Error("attaching an intact machine again made a new link")
	}
	for name, damage := range map[string]func(){
		"link deleted": func() {
			l, err := w.net().nl.LinkByName(b.Interface)
			must(t, err)
			must(t, w.net().nl.LinkDel(l))
		},
		"route deleted": func() {
			must(t, w.net().nl.RouteDel(&netlink.Route{Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.MustParsePrefix(b.IPv4 + "/32"))}))
		},
		"elements deleted": func() { must(t, w.net().purge(b.Interface, nil)) },
		"machine's end down": func() {
			h := handle(t, b.ns)
			l, err := h.LinkByName(machineLink)
			must(t, err)
			must(t, h.LinkSetDown(l))
		},
	} {
		damage()
		must(t, w.net().Attach(t.Context(), b.Attachment))
		reaches(t, "after "+name, b.ns, "tcp", at(a.IPv4, 8080), b.IPv4)
		reaches(t, "after "+name, b.ns, "tcp", at(a.IPv6, 8080), b.IPv6)
	}
}

func TestDetach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	empty := state(t, w.net().ns, volatile)
	setsEmpty := func() {
		t.Helper()
		for _, s := range w.net().sets.all() {
			e, err := w.net().elements(s)
			must(t, err)
			if len(e) > 0 {
				t.Errorf("set %s after detach: got %d elements, want none", s.Name, len(e))
			}
		}
	}
	for name, detach := range map[string]func(a Attachment) error{
		"whole":              func(a Attachment) error { return w.net().Detach(t.Context(), a) },
		"by interface alone": func(a Attachment) error { return w.net().Detach(t.Context(), Attachment{Interface: a.Interface}) },
		"by namespace alone": func(a Attachment) error { return w.net().Detach(t.Context(), Attachment{Namespace: a.Namespace}) },
		"after the link went": func(a Attachment) error {
			l, err := w.net().nl.LinkByName(a.Interface)
			must(t, err)
			must(t, w.net().nl.LinkDel(l))
			return w.net().Detach(t.Context(), a)
		},
		"twice": func(a Attachment) error {
			must(t, w.net().Detach(t.Context(), a))
			return w.net().Detach(t.Context(), a)
		},
		"never attached": func(a Attachment) error {
			must(t, w.net().Detach(t.Context(), a))
			return w.net().Detach(t.Context(), w.attachment(77, 9))
		},
	} {
		m := w.attach(5, 7)
		must(t, w.router.SetSuspended(m.Interface, true))
		if err := detach(m.Attachment); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(m.Namespace); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: namespace file: got %v, want it gone", name, err)
		}
		setsEmpty()
		if diff := cmp.Diff(empty, state(t, w.net().ns, volatile)); diff != "" {
			t.Errorf("%s: router's namespace (-before +after):\n%s", name, diff)
		}
		h := handle(t, m.ns)
		if l, err := linkByName(h, machineLink); err != nil || l != nil {
			t.Errorf("%s: the machine's link: got %v, %v, want none", name, l, err)
		}
	}
}

func TestAttachRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*Attachment){
		"network 0":                 func(a *Attachment) { a.NetworkID = 0; a.IPv6 = AddressFor(0, 1, 1).IPv6 },
		"address of other network":  func(a *Attachment) { a.NetworkID = 8 },
		"address of another index":  func(a *Attachment) { a.IPv4 = AddressFor(7, 1, 2).IPv4 },
		"public address":            func(a *Attachment) { a.IPv4 = "8.8.8.8" },
		"no address":                func(a *Attachment) { a.IPv6 = "" },
		"the uplink":                func(a *Attachment) { a.Interface = uplink },
		"a name that is no machine": func(a *Attachment) { a.Interface = "m01" },
		"no namespace":              func(a *Attachment) { a.Namespace = "" },
	} {
		a := w.attachment(1, 7)
		change(&a)
		if err := w.net().Attach(t.Context(), a); !root.IsKind(err, root.Invalid) {
			t.Errorf("%s: got %v, want kind Invalid", name, err)
		}
	}
	if got, err := w.net().Attachments(t.Context()); err != nil || len(got) > 0 {
		t.Errorf("attachments: got %v, %v, want none", got, err)
	}
}

func TestOpenWithoutRouter(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if _, err := Open(Options{Namespace: filepath.Join(t.TempDir(), "none")}); !root.IsKind(err, root.Unavailable) {
		t.Errorf("got %v, want kind Unavailable", err)
	}
}

// TestDialHost dials from the edge's side, by address and by name.
func TestDialHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n, err := Open(w.o)
	must(t, err)
	defer n.Close()
	addr := echoTCP(t, w.host, "127.0.0.1:0") // the host's loopback, not the router's
	c, err := n.DialHost(t.Context(), "tcp", addr)
	must(t, err)
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "127.0.0.1" {
		t.Errorf("answer: got %q, %v, want 127.0.0.1", b, err)
	}
	_, port, err := net.SplitHostPort(addr)
	must(t, err)
	if c, err := n.DialHost(t.Context(), "tcp", net.JoinHostPort("localhost", port)); err != nil {
		t.Errorf("by name: %v", err)
	} else {
		_ = c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.DialHost(ctx, "tcp", at(otherNet4, 9)); err == nil {
		t.Error("dial of nobody: got a connection")
	}
}

// TestDo starts a process and a socket inside the router.
func TestDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var inside, outside string
	must(t, w.router.Do(func() error {
		b, err := exec.CommandContext(t.Context(), "readlink", "/proc/self/ns/net").Output()
		inside = string(b)
		return err
	}))
	b, err := exec.CommandContext(t.Context(), "readlink", "/proc/self/ns/net").Output()
	must(t, err)
	outside = string(b)
	var st unix.Stat_t
	must(t, unix.Stat(w.o.Namespace, &st))
	if want := fmt.Sprintf("net:[%d]\n", st.Ino); inside != want || outside == want {
		t.Errorf("namespaces: got inside %q and outside %q, want inside %q only", inside, outside, want)
	}
	if err := w.router.Do(func() error { return io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error of f: got %v", err)
	}
}

// TestHostWithoutIPv6 has only IPv4 outside; inside, 6PN works.
func TestHostWithoutIPv6(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	must(t, within(w.host, func() error {
		return setSysctls(sysctl{"ipv6/conf/all/disable_ipv6", "1"}, sysctl{"ipv6/conf/default/disable_ipv6", "1"})
	}))
	w.open()
	a, b := w.attach(1, 7), w.attach(2, 7)
	serve(t, b.ns, 8080)
	serve(t, w.internet, 9000)
	reaches(t, "6PN", a.ns, "tcp", at(b.IPv6, 8080), a.IPv6)
	reaches(t, "internet", a.ns, "tcp", at(internet4, 9000), hostPublic4)
	refused(t, "internet by IPv6", a.ns, "tcp", at(internet6, 9000))
	must(t, w.router.Close(context.Background()))
}

// TestRouteFromAdvertisements keeps the host's route and goes without IPv6 egress.
func TestRouteFromAdvertisements(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	h := handle(t, w.host)
	l, err := h.LinkByName("eth0")
	must(t, err)
	must(t, h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(internet6), Flags: int(netlink.FLAG_ONLINK), Protocol: unix.RTPROT_RA}))
	w.open()
	m := w.attach(1, 7)
	serve(t, w.internet, 9000)
	reaches(t, "internet", m.ns, "tcp", at(internet4, 9000), hostPublic4)
	refused(t, "internet by IPv6", m.ns, "tcp", at(internet6, 9000))
	reaches(t, "the host's own IPv6", w.host, "tcp", at(internet6, 9000), hostPublic6)
	must(t, w.router.Close(context.Background()))
}

func TestProblems(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	problems := func() (found []Problem) {
		must(t, within(w.host, func() error { found = Problems(t.Context()); return nil }))
		return found
	}
	if got := problems(); len(got) > 0 {
		t.Errorf("problems of a plain host: got %v, want none", got)
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(w.host.Fd())))
	must(t, err)
	filter := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	forward := c.AddChain(&nftables.Chain{Table: filter, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: new(nftables.ChainPolicyDrop)})
	must(t, c.Flush())
	if got := problems(); len(got) != 1 || !strings.Contains(got[0].Mend, "ufw route allow") || !strings.Contains(got[0].What, "ip filter FORWARD") {
		t.Errorf("problems with a FORWARD that drops: got %v, want it, and a mend for ufw", got)
	}
	c.AddChain(&nftables.Chain{Table: filter, Name: "DOCKER-USER"})
	must(t, c.Flush())
	if got := problems(); len(got) != 1 || !strings.Contains(got[0].Mend, "DOCKER-USER") {
		t.Errorf("problems with Docker: got %v, want a mend in DOCKER-USER", got)
	}
	accepting := *forward
	accepting.Policy = new(nftables.ChainPolicyAccept)
	c.AddChain(&accepting)
	must(t, c.Flush())
	if got := problems(); len(got) > 0 {
		t.Errorf("problems after the policy accepts: got %v, want none", got)
	}
}

// TestFiftyMachines attaches and detaches many, some at the same time.
func TestFiftyMachines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rules := func() (rules int) {
		for _, line := range state(t, w.net().ns, volatile) {
			var table, chain string
			var n int
			if _, err := fmt.Sscanf(line, "chain %s %s with %d rules", &table, &chain, &n); err == nil {
				rules += n
			}
		}
		return rules
	}
	none := rules()
	const machines = 50
	errs := make(chan error, machines)
	for i := range machines {
		go func() { errs <- w.net().Attach(t.Context(), w.attachment(uint32(i+1), uint32(1+i%2))) }()
	}
	for range machines {
		must(t, <-errs)
	}
	names, err := w.net().Attachments(t.Context())
	must(t, err)
	if len(names) != machines {
		t.Errorf("attachments: got %d, want %d", len(names), machines)
	}
	if got := rules(); got != none || none == 0 {
		t.Errorf("rules with %d machines: got %d, want %d as with none", machines, got, none)
	}
	last := w.attachment(machines, 2)
	ns, err := openNamespace(last.Namespace)
	must(t, err)
	defer ns.Close()
	peer, err := openNamespace(w.attachment(2, 2).Namespace)
	must(t, err)
	defer peer.Close()
	serve(t, peer, 8080)
	reaches(t, "among many", ns, "tcp", at(w.attachment(2, 2).IPv6, 8080), last.IPv6)
	for i := range machines {
		go func() { errs <- w.net().Detach(t.Context(), w.attachment(uint32(i+1), uint32(1+i%2))) }()
	}
	for range machines {
		must(t, <-errs)
	}
	if names, err = w.net().Attachments(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("attachments after detach: got %v, %v, want none", names, err)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	w := newWorld(b)
	b.Run("attach", func(b *testing.B) {
		a := w.attachment(1, 7)
		for b.Loop() {
			must(b, w.net().Attach(context.Background(), a))
			b.StopTimer()
			must(b, w.net().Detach(context.Background(), a))
			b.StartTimer()
		}
	})
	b.Run("detach", func(b *testing.B) {
		a := w.attachment(1, 7)
		for b.Loop() {
			b.StopTimer()
			must(b, w.net().Attach(context.Background(), a))
			b.StartTimer()
			must(b, w.net().Detach(context.Background(), a))
		}
	})
}
