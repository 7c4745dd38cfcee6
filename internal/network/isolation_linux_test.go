package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/patience"
)

// serve makes a machine answer on a port, TCP and UDP, both families.
func serve(t testing.TB, ns *os.File, port int) {
	t.Helper()
	echoTCP(t, ns, at("", port))
	echoUDP(t, ns, at("", port))
}

func TestMachinesOfOneNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.attach(1, 7), w.attach(2, 7)
	serve(t, a.ns, 8080)
	serve(t, b.ns, 8080)
	for _, p := range []struct{ from, to *machine }{{a, b}, {b, a}} {
		for _, network := range []string{"tcp", "udp"} {
			reaches(t, "same network", p.from.ns, network, at(p.to.IPv4, 8080), p.from.IPv4)
			reaches(t, "same network", p.from.ns, network, at(p.to.IPv6, 8080), p.from.IPv6)
		}
		reaches(t, "second address", p.from.ns, "tcp", at(SecondIPv4(p.to.IPv4), 8080), p.from.IPv4)
	}
	// The edge and health checks live in the router.
	reaches(t, "router to machine", w.net().ns, "tcp", at(a.IPv4, 8080), GatewayIPv4)
	reaches(t, "router to machine", w.net().ns, "tcp", at(a.IPv6, 8080), DNSIPv6)
	reaches(t, "router to machine", w.net().ns, "udp", at(a.IPv4, 8080), GatewayIPv4)
	w.untracked("a private connection", func(f *netlink.ConntrackFlow) bool { return f.Forward.Protocol == unix.IPPROTO_TCP })
}

// untracked fails if the table of connections has one that it should not have:
// a flood of them would fill it, and then nothing passes.
func (w *world) untracked(what string, match func(*netlink.ConntrackFlow) bool) {
	w.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(w.net().ns.Fd()), unix.NETLINK_NETFILTER)
	must(w.t, err)
	defer h.Close()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := h.ConntrackTableList(netlink.ConntrackTable, family)
		must(w.t, err)
		for _, f := range flows {
			if match(f) {
				w.t.Errorf("%s is tracked: %s", what, f)
			}
		}
	}
}

func TestMachinesOfDifferentNetworks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, a2, b := w.attach(1, 7), w.attach(2, 7), w.attach(3, 8)
	for _, m := range []*machine{a, a2, b} {
		serve(t, m.ns, 8080)
	}
	// The servers answer where they may, so that silence means the rule.
	reaches(t, "same network", a.ns, "tcp", at(a2.IPv4, 8080), a.IPv4)
	for _, p := range []struct{ from, to *machine }{{a, b}, {b, a}, {b, a2}} {
		for _, network := range []string{"tcp", "udp"} {
			refused(t, "other network", p.from.ns, network, at(p.to.IPv4, 8080))
			refused(t, "other network", p.from.ns, network, at(p.to.IPv6, 8080))
		}
		refused(t, "other network, second address", p.from.ns, "tcp", at(SecondIPv4(p.to.IPv4), 8080))
	}
	// Not even its existence shows: an address that nobody has fails alike.
	refused(t, "nobody's address", a.ns, "tcp", at(AddressFor(7, 0xa7b, 99).IPv6, 8080))
}

// TestSpoofedSource sends datagrams from addresses the machine does not have,
// then an honest one: the links keep order, so when that arrives the others
// were dropped.
func TestSpoofedSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sender, victim, target := w.attach(1, 7), w.attach(2, 7), w.attach(3, 7)
	for _, family := range []struct {
		name, network, target string
		spoofed               []string
		honest                string
	}{
		{"ipv4", "udp4", target.IPv4, []string{victim.IPv4, SecondIPv4(victim.IPv4), GatewayIPv4, "8.8.8.8"}, sender.IPv4},
		{"ipv6", "udp6", target.IPv6, []string{victim.IPv6, DNSIPv6, "fdaa:0:8:0:a7b:0:1:2", "2001:db8::99"}, sender.IPv6},
	} {
		t.Run(family.name, func(t *testing.T) {
			var l net.PacketConn
			must(t, within(target.ns, func() (err error) {
				l, err = net.ListenPacket(family.network, at(family.target, 0))
				return err
			}))
			defer l.Close()
			send := func(from string) {
				h := handle(t, sender.ns)
				lo, err := h.LinkByName("lo")
				must(t, err)
				if from != family.honest {
					ip := netip.MustParseAddr(from)
					must(t, addAddress(h, lo, netip.PrefixFrom(ip, ip.BitLen())))
				}
				must(t, within(sender.ns, func() error {
					d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
					c, err := d.Dial(family.network, l.LocalAddr().String())
					if err != nil {
						return err
					}
					defer c.Close()
					_, err = c.Write([]byte(from))
					return err
				}))
			}
			for _, from := range family.spoofed {
				send(from)
			}
			send(family.honest)
			must(t, l.SetReadDeadline(patience.Deadline()))
			b := make([]byte, 256)
			n, _, err := l.ReadFrom(b)
			if err != nil {
				t.Fatalf("the honest datagram did not arrive: %v", err)
			}
			if got := string(b[:n]); got != family.honest {
				t.Errorf("first datagram: got one from %s, want only the one from %s", got, family.honest)
			}
		})
	}
}

func TestRouterPorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.attach(1, 7)
	for _, p := range []int{53, 4280, 9090} {
		serve(t, w.net().ns, p)
	}
	for _, a := range []struct{ router, seen string }{{GatewayIPv4, m.IPv4}, {DNSIPv6, m.IPv6}} {
		reaches(t, "DNS", m.ns, "udp", at(a.router, 53), a.seen)
		reaches(t, "DNS", m.ns, "tcp", at(a.router, 53), a.seen)
		reaches(t, "API", m.ns, "tcp", at(a.router, 4280), a.seen)
		refused(t, "another socket of the edge", m.ns, "tcp", at(a.router, 9090))
		refused(t, "another socket of the edge", m.ns, "udp", at(a.router, 9090))
		refused(t, "API by UDP", m.ns, "udp", at(a.router, 4280))
	}
	w.untracked("a DNS question", func(f *netlink.ConntrackFlow) bool { return f.Forward.DstPort == 53 || f.Forward.SrcPort == 53 })
	u := addressesOf(w.o.Name, uplinkSubnet(w.o.Name, 0))
	refused(t, "the router's uplink address", m.ns, "tcp", at(u.router4.String(), 4280))
	refused(t, "the router's uplink address", m.ns, "tcp", at(u.router6.String(), 4280))
	refused(t, "the link-local gateway", m.ns, "tcp", at("fe80::1%eth0", 4280))
}

// clouds are addresses at which clouds tell a host of its credentials.
var clouds = []string{
	"169.254.169.254", "169.254.170.2", "169.254.42.42", "100.100.100.200", "168.63.129.16", "192.0.0.192",
	"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe",
}

func TestEgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 8443)
	m := w.attach(1, 7)
	serve(t, w.internet, 9000)
	for _, network := range []string{"tcp", "udp"} {
		reaches(t, "internet", m.ns, network, at(internet4, 9000), hostPublic4)
		reaches(t, "internet", m.ns, network, at(internet6, 9000), hostPublic6)
	}
	// Metadata services answer on link-local addresses near the host.
	h := handle(t, w.internet)
	l, err := h.LinkByName("eth0")
	must(t, err)
	for _, ip := range clouds {
		a := netip.MustParseAddr(ip)
		must(t, addAddress(h, l, netip.PrefixFrom(a, a.BitLen())))
		seen := hostPublic4
		if a.Is6() {
			seen = hostPublic6
		}
		reaches(t, "metadata, from the host", w.host, "tcp", at(ip, 9000), seen)
		refused(t, "metadata, from a machine", m.ns, "tcp", at(ip, 9000))
	}

	// The host's own services.
	serve(t, w.host, 2222)
	echoTCP(t, w.host, at("", 8443))
	u := addressesOf(w.o.Name, uplinkSubnet(w.o.Name, 0))
	for _, ip := range []string{hostPublic4, hostPublic6, u.host4.String(), u.host6.String()} {
		refused(t, "a service of the host", m.ns, "tcp", at(ip, 2222))
		refused(t, "a service of the host", m.ns, "udp", at(ip, 2222))
	}
	reaches(t, "a published port, by the public address", m.ns, "tcp", at(hostPublic4, 8443), u.router4.String())
	reaches(t, "a published port, by the public address", m.ns, "tcp", at(hostPublic6, 8443), u.router6.String())
	reaches(t, "the same service from outside", w.internet, "tcp", at(hostPublic4, 2222), internet4)
}

// TestUnsolicited lets the host and the internet try to get in, with routes.
func TestUnsolicited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.attach(1, 7)
	serve(t, m.ns, 8080)
	serve(t, w.net().ns, 9090)
	u := addressesOf(w.o.Name, uplinkSubnet(w.o.Name, 0))
	for _, hop := range []struct {
		ns       *os.File
		link     string
		gw4, gw6 netip.Addr
	}{
		{w.host, hostLink(w.o.Name), u.router4, u.router6},
		{w.internet, "eth0", netip.MustParseAddr(hostPublic4), netip.MustParseAddr(hostPublic6)},
	} {
		h := handle(t, hop.ns)
		l, err := h.LinkByName(hop.link)
		must(t, err)
		for dst, gw := range map[string]netip.Addr{PrivateIPv4: hop.gw4, PrivateIPv6: hop.gw6, netip.PrefixFrom(u.router4, 32).String(): hop.gw4} {
			if gw == u.router4 && !strings.HasPrefix(dst, "172.") {
				continue
			}
			must(t, h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Protocol: unix.RTPROT_STATIC}))
		}
	}
	for _, from := range []*os.File{w.host, w.internet} {
		for _, network := range []string{"tcp", "udp"} {
			refused(t, "unsolicited to a machine", from, network, at(m.IPv4, 8080))
			refused(t, "unsolicited to a machine", from, network, at(m.IPv6, 8080))
			refused(t, "unsolicited to the router", from, network, at(u.router4.String(), 9090))
		}
		refused(t, "unsolicited to DNS", from, "udp", at(GatewayIPv4, 9090))
	}
}

// TestInterfaceOfAnotherNetwork gives an interface to a machine of another
// network, as happens when an index is used again, also without a Detach.
func TestInterfaceOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	for name, detach := range map[string]bool{"after detach": true, "after a crash": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			peer7, peer8 := w.attach(1, 7), w.attach(2, 8)
			serve(t, peer7.ns, 8080)
			serve(t, peer8.ns, 8080)
			old := w.attach(3, 7)
			reaches(t, "before", old.ns, "tcp", at(peer7.IPv4, 8080), old.IPv4)
			if detach {
				must(t, w.net().Detach(context.Background(), old.Attachment))
			}
			a := w.attachment(3, 8)
			if !detach {
				a.Namespace += "-next"
			}
			t.Cleanup(func() { _ = removeNamespace(a.Namespace) })
			must(t, w.net().Attach(t.Context(), a))
			ns, err := openNamespace(a.Namespace)
			must(t, err)
			defer ns.Close()
			reaches(t, "its new network", ns, "tcp", at(peer8.IPv4, 8080), a.IPv4)
			reaches(t, "its new network", ns, "tcp", at(peer8.IPv6, 8080), a.IPv6)
			refused(t, "its old network", ns, "tcp", at(peer7.IPv4, 8080))
			refused(t, "its old network", ns, "tcp", at(peer7.IPv6, 8080))
			must(t, w.net().Detach(context.Background(), a))
		})
	}
}
