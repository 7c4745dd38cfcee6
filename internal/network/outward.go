package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	root "github.com/roost-run/roost"
)

// metadata are the addresses at which clouds tell a host, and whoever sends
// from it, of its credentials and of what it was started with. They are
// nobody's business on this host but the host's.
var metadata = []string{
	"169.254.0.0/16",         // link-local: AWS, GCP, Azure, Oracle, OpenStack, Hetzner, DigitalOcean; ECS at .170.2
	"fe80::/10",              // the same; OpenStack at fe80::a9fe:a9fe
	"fd00:ec2::/32",          // AWS: ::254, ::23 (pods), ::250 (time), ::253 (names)
	"fd20:ce::254/128",       // GCP
	"fd00:c1::a9fe:a9fe/128", // Oracle
	"fd00:a9fe:a9fe::/48",    // Akamai
	"fd00:42::42/128",        // Scaleway
	"100.100.100.200/32",     // Alibaba
	"168.63.129.16/32",       // Azure's wire server
	"192.0.0.192/32",         // Oracle, of old
	"64:ff9b::a9fe:0/112",    // the first, behind NAT64
}

// nowhere are addresses that no neighbour of the host has.
var nowhere = []string{"0.0.0.0/8", "224.0.0.0/3", "::/128", "ff00::/8"}

// loopback are the host's to itself.
var loopback = []string{"127.0.0.0/8", "::1/128"}

// dialTimeout bounds a connection whose context does not.
const dialTimeout = 10 * time.Second

// Outward connects from the host on behalf of somebody who chose the address:
// who names a registry, a webhook, or answers for them with a redirect. It
// reaches what a machine reaches, see the package: the internet and the host's
// other networks, but neither cloud metadata nor the host itself, except on
// the published ports. What counts is the address that is connected to, after
// the name was looked up, at every connection: a name that means something
// else a moment later does not help.
type Outward struct {
	Published []uint16 // of the edge, on any address of the host
	// Loopback lets all ports of the host through, but those of Closed.
	Loopback bool
	Closed   []uint16
	// Trusted are names or addresses, with port, that whoever runs the host has
	// configured: they are connected to wherever they are.
	Trusted []string

	own func() ([]net.Addr, error) // net.InterfaceAddrs; nil outside tests
}

// DialContext is net.Dialer's. What must not be reached gives Forbidden.
func (o *Outward) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	if !slices.Contains(o.Trusted, strings.ToLower(address)) {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error { return o.Check(address) }
	}
	return d.DialContext(ctx, network, address)
}

// Check returns nil if the address, of an IP and a port, may be reached.
func (o *Outward) Check(address string) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	ip := to.Addr().Unmap().WithZone("")
	refuse := func(why string) error {
		return root.Errorf(root.Forbidden, "%s may not be reached from here: it is %s", to, why)
	}
	switch {
	case anyOf(metadata, ip):
		return refuse("an address of the cloud's or link-local")
	case anyOf(nowhere, ip):
		return refuse("no address of a service")
	case anyOf([]string{PrivateIPv4, PrivateIPv6}, ip):
		return refuse("an address of the machines' network")
	}
	self := anyOf(loopback, ip)
	if !self {
		if self, err = o.isOwn(ip); err != nil {
			return err
		}
	}
	switch {
	case !self, slices.Contains(o.Published, to.Port()) && !ip.IsLoopback():
		return nil
	case o.Loopback && !slices.Contains(o.Closed, to.Port()):
		return nil
	}
	return refuse("this host's own")
}

// isOwn reports whether the host has the address.
func (o *Outward) isOwn(ip netip.Addr) (bool, error) {
	list := o.own
	if list == nil {
		list = net.InterfaceAddrs
	}
	all, err := list()
	if err != nil {
		return false, fmt.Errorf("addresses of the host: %w", err)
	}
	return slices.ContainsFunc(all, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		own, ok := netip.AddrFromSlice(n.IP)
		return ok && own.Unmap() == ip
	}), nil
}

func anyOf(prefixes []string, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return netip.MustParsePrefix(p).Contains(ip) })
}
