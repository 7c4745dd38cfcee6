package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/patience"
)

// world is a host of its own with an internet behind it, so that the real host
// is not touched.
type world struct {
	t        testing.TB
	o        Options
	router   *Router
	host     *os.File
	internet *os.File
}

// The internet's addresses, and the host's on that side.
const (
	internet4, internet6 = "198.51.100.1", "2001:db8::1"
	hostPublic4          = "198.51.100.2"
	hostPublic6          = "2001:db8::2"
	otherNet4            = "198.51.100.77" // a source nobody owns
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
}

func randomName(t testing.TB) string {
	t.Helper()
	b := make([]byte, 3)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// newNamespace makes a namespace that is removed after the test.
func newNamespace(t testing.TB, path string) *os.File {
	t.Helper()
	ns, err := bindNamespace(path, true, func() error {
		return setSysctls(
			sysctl{"ipv6/conf/all/disable_ipv6", "0"}, sysctl{"ipv6/conf/default/disable_ipv6", "0"}, sysctl{"ipv6/conf/default/accept_dad", "0"},
			// A new namespace takes these over from the host, where others run.
			sysctl{forward4, "0"}, sysctl{forward6, "0"}, sysctl{"ipv4/conf/all/accept_redirects", "1"})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.Close()
		if err := removeNamespace(path); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func handle(t testing.TB, ns *os.File) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// newHost makes the host and the internet, without a router.
func newHost(t testing.TB) *world {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	w := &world{t: t, o: Options{
		Name:          randomName(t),
		Namespace:     filepath.Join(dir, "netns", "router"),
		HostNamespace: filepath.Join(dir, "netns", "host"),
	}}
	w.host = newNamespace(t, w.o.HostNamespace)
	w.internet = newNamespace(t, filepath.Join(dir, "internet"))
	host, far := handle(t, w.host), handle(t, w.internet)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(w.internet.Fd())
	must(t, host.LinkAdd(v))
	for _, side := range []struct {
		h        *netlink.Handle
		own, gw4 string
		own6     string
	}{{host, hostPublic4, internet4, hostPublic6}, {far, internet4, "", internet6}} {
		l, err := side.h.LinkByName("eth0")
		must(t, err)
		lo, err := side.h.LinkByName("lo")
		must(t, err)
		must(t, side.h.LinkSetUp(lo))
		must(t, side.h.LinkSetUp(l))
		must(t, addAddress(side.h, l, netip.PrefixFrom(netip.MustParseAddr(side.own), 24)))
		must(t, addAddress(side.h, l, netip.PrefixFrom(netip.MustParseAddr(side.own6), 64)))
		must(t, waitLocal(t.Context(), side.h, netip.MustParseAddr(side.own6)))
	}
	l, err := host.LinkByName("eth0")
	must(t, err)
	must(t, waitCarrier(t.Context(), host, l))
	must(t, addDefault(host, l, netip.MustParseAddr(internet4)))
	must(t, addDefault(host, l, netip.MustParseAddr(internet6)))
	return w
}

// newWorld makes a host with a router.
func newWorld(t testing.TB, published ...uint16) *world {
	t.Helper()
	w := newHost(t)
	w.o.Published = published
	w.open()
	t.Cleanup(func() {
		if w.router == nil {
			return
		}
		if err := w.router.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) open() {
	w.t.Helper()
	r, err := OpenRouter(w.t.Context(), w.o, testLog(w.t))
	must(w.t, err)
	w.router = r
}

func (w *world) net() *Network { return w.router.Network() }

// machine is an attached machine.
type machine struct {
	Attachment
	ns *os.File
}

func (w *world) attachment(index, network uint32) Attachment {
	a := AddressFor(network, 0xa7b, index)
	return Attachment{
		Namespace: filepath.Join(filepath.Dir(w.o.Namespace), InterfaceFor(index)),
		Interface: InterfaceFor(index), IPv4: a.IPv4, IPv6: a.IPv6, NetworkID: network,
	}
}

func (w *world) attach(index, network uint32) *machine {
	w.t.Helper()
	a := w.attachment(index, network)
	must(w.t, w.net().Attach(w.t.Context(), a))
	ns, err := openNamespace(a.Namespace)
	must(w.t, err)
	w.t.Cleanup(func() {
		_ = ns.Close()
		if err := removeNamespace(a.Namespace); err != nil {
			w.t.Error(err)
		}
	})
	return &machine{Attachment: a, ns: ns}
}

// echoTCP answers each connection with the client's address, inside ns.
func echoTCP(t testing.TB, ns *os.File, addr string) string {
	t.Helper()
	var l net.Listener
	must(t, within(ns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String())
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

// echoUDP answers each datagram with the client's address, inside ns.
func echoUDP(t testing.TB, ns *os.File, addr string) string {
	t.Helper()
	var c net.PacketConn
	must(t, within(ns, func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
		}
	})
	t.Cleanup(func() { _ = c.Close(); wg.Wait() })
	return c.LocalAddr().String()
}

// refusedAfter is how long a probe waits before it counts as unanswered. The
// positive probes of the same pair take well under a millisecond.
const refusedAfter = 300 * time.Millisecond

// ask connects from inside ns and returns what the server sees as the client.
func ask(ns *os.File, network, addr string, timeout time.Duration) (seen string, err error) {
	err = within(ns, func() error {
		c, err := net.DialTimeout(network, addr, timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
		}
		b := make([]byte, 256)
		n, err := c.Read(b)
		seen = string(b[:n])
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	return seen, err
}

func reaches(t testing.TB, what string, ns *os.File, network, addr, wantSeen string) {
	t.Helper()
	seen, err := ask(ns, network, addr, patience.Limit)
	if err != nil || seen != wantSeen {
		t.Errorf("%s (%s %s): got seen as %q, error %v; want seen as %q", what, network, addr, seen, err, wantSeen)
	}
}

func refused(t testing.TB, what string, ns *os.File, network, addr string) {
	t.Helper()
	if seen, err := ask(ns, network, addr, refusedAfter); err == nil {
		t.Errorf("%s (%s %s): got an answer, seen as %q; want none", what, network, addr, seen)
	}
}

func at(ip string, port int) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }
