package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// uplinkAddresses are the two ends of the link between router and host.
type uplinkAddresses struct {
	host4, router4 netip.Addr // of one /30
	host6, router6 netip.Addr // of one /126
	v6             bool       // IPv6 leaves the host
	mtu            int
}

const (
	uplinkBase    = 169<<24 | 254<<16 | 64<<8 // 169.254.64.0
	uplinkSubnets = 1 << 12                   // /30s in a /18
)

// uplinkSubnet returns the i-th choice of an instance.
func uplinkSubnet(name string, i int) netip.Prefix {
	sum := sha256.Sum256([]byte(name))
	n := (binary.BigEndian.Uint32(sum[:]) + uint32(i)) % uplinkSubnets
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uplinkBase+n*4)
	return netip.PrefixFrom(netip.AddrFrom4(b), 30)
}

func addressesOf(name string, subnet netip.Prefix) uplinkAddresses {
	sum := sha256.Sum256([]byte(name))
	six := [16]byte{0xfd, 0x72, 0x6f, 0x6f}
	copy(six[4:8], sum[4:8])
	six[15] = 1
	host6 := netip.AddrFrom16(six)
	host4 := subnet.Addr().Next()
	return uplinkAddresses{host4: host4, router4: host4.Next(), host6: host6, router6: host6.Next()}
}

// lockHost keeps the instances of one host from setting up or taking down
// their uplinks at the same time. The lock is on the namespace itself.
func lockHost(ctx context.Context, host *os.File) (unlock func(), err error) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		err := unix.Flock(int(host.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = unix.Flock(int(host.Fd()), unix.LOCK_UN) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the host's network: %w", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another instance of Roost to set up its uplink: %w", context.Cause(ctx))
		}
	}
}

// otherUplinks lists the uplinks of other instances.
func otherUplinks(host *netlink.Handle, name string) ([]netlink.Link, error) {
	links, err := host.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the host's links: %w", err)
	}
	var others []netlink.Link
	for _, l := range links {
		if n := l.Attrs().Name; l.Type() == "veth" && strings.HasPrefix(n, hostLink("")) && n != hostLink(name) {
			others = append(others, l)
		}
	}
	return others, nil
}

// connect brings the uplink up: link, addresses, routes, and forwarding on the
// host. It is idempotent.
func (r *Router) connect(ctx context.Context) (uplinkAddresses, error) {
	var none uplinkAddresses
	unlock, err := lockHost(ctx, r.host)
	if err != nil {
		return none, err
	}
	defer unlock()

	link, subnet, err := r.existingUplink()
	if err != nil {
		return none, err
	}
	if link == nil {
		if subnet, err = r.freeSubnet(); err != nil {
			return none, err
		}
	}
	u := addressesOf(r.o.Name, subnet)
	v6, v6Route, mtu, err := r.hostRoutes()
	if err != nil {
		return none, err
	}
	u.mtu = mtu
	if link == nil {
		if link, err = r.makeUplink(u); err != nil {
			return none, err
		}
	}
	was, known := parseAlias(link.Attrs().Alias)
	if !known {
		if was, err = r.rememberHost(link); err != nil {
			return none, err
		}
	}
	u.v6 = v6 && (was.get(forward6) == "1" || v6Route != unix.RTPROT_RA)
	if v6 && !u.v6 {
		r.log.Warn("machines get no ipv6 to the internet: the host learned its route from router advertisements, which forwarding would switch off",
			"mend", "set net.ipv6.conf.<link>.accept_ra=2 and net.ipv6.conf.all.forwarding=1 on the host, then restart")
	}
	return u, r.configureUplink(ctx, u)
}

// existingUplink finds the link of an earlier run. One that does not lead to
// the router's namespace is removed.
func (r *Router) existingUplink() (netlink.Link, netip.Prefix, error) {
	var none netip.Prefix
	link, err := linkByName(r.hostNL, hostLink(r.o.Name))
	if err != nil || link == nil {
		return nil, none, err
	}
	peer, err := linkByName(r.net.nl, uplink)
	if err != nil {
		return nil, none, err
	}
	if peer != nil && peer.Attrs().ParentIndex == link.Attrs().Index && link.Attrs().ParentIndex == peer.Attrs().Index {
		addrs, err := r.hostNL.AddrList(link, unix.AF_INET)
		if err != nil {
			return nil, none, fmt.Errorf("addresses of %s: %w", link.Attrs().Name, err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
				return link, netip.PrefixFrom(ip, 30).Masked(), nil
			}
		}
		// It crashed before it had an address: choose one now.
		subnet, err := r.freeSubnet()
		return link, subnet, err
	}
	if err := r.forget(link); err != nil {
		return nil, none, err
	}
	return nil, none, deleteLink(r.hostNL, link)
}

// freeSubnet returns the first choice that overlaps nothing the host knows.
func (r *Router) freeSubnet() (netip.Prefix, error) {
	taken, err := takenPrefixes(r.hostNL)
	if err != nil {
		return netip.Prefix{}, err
	}
	for i := range uplinkSubnets {
		subnet := uplinkSubnet(r.o.Name, i)
		free := true
		for _, t := range taken {
			if t.Overlaps(subnet) {
				free = false
				break
			}
		}
		if free {
			return subnet, nil
		}
	}
	return netip.Prefix{}, root.Errorf(root.Exhausted, "no /30 of 169.254.64.0/18 is free for the uplink: remove routes or addresses in that range")
}

// takenPrefixes lists the host's addresses and routes, except those wide
// enough to be a default or the link-local network.
func takenPrefixes(h *netlink.Handle) ([]netip.Prefix, error) {
	var taken []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		ip, ok := netip.AddrFromSlice(n.IP.To4())
		bits, _ := n.Mask.Size()
		if ok && bits > 16 {
			taken = append(taken, netip.PrefixFrom(ip, bits))
		}
	}
	addrs, err := h.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	routes, err := h.RouteList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	for _, rt := range routes {
		add(rt.Dst)
	}
	return taken, nil
}

// defaultMTU is used where the host has no default route yet.
const defaultMTU = 1500

// hostRoutes looks at the host's default routes: whether there is one for IPv6
// and who made it, and the MTU of the link they use.
func (r *Router) hostRoutes() (v6 bool, v6Protocol, mtu int, err error) {
	mtu = defaultMTU
	routes, err := r.hostNL.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		return false, 0, 0, fmt.Errorf("list the host's routes: %w", err)
	}
	for _, rt := range routes {
		if !isDefault(rt) {
			continue
		}
		if rt.Family == unix.AF_INET6 {
			v6, v6Protocol = true, int(rt.Protocol)
		}
		if rt.LinkIndex == 0 {
			continue // several next hops
		}
		l, err := r.hostNL.LinkByIndex(rt.LinkIndex)
		if err == nil && l.Attrs().MTU >= 1280 && l.Attrs().MTU < mtu {
			mtu = l.Attrs().MTU
		}
	}
	return v6, v6Protocol, mtu, nil
}

func isDefault(rt netlink.Route) bool {
	if rt.Type != unix.RTN_UNICAST || rt.Gw == nil && len(rt.MultiPath) == 0 && rt.LinkIndex == 0 {
		return false
	}
	if rt.Dst == nil {
		return true
	}
	bits, _ := rt.Dst.Mask.Size()
	return bits == 0 && rt.Dst.IP.IsUnspecified()
}

func (r *Router) makeUplink(u uplinkAddresses) (netlink.Link, error) {
	// A leftover end in the router namespace has lost its peer's name.
	if old, err := linkByName(r.net.nl, uplink); err != nil {
		return nil, err
	} else if old != nil {
		if err := deleteLink(r.net.nl, old); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = hostLink(r.o.Name), u.mtu
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = uplink, netlink.NsFd(r.net.ns.Fd())
	if err := r.hostNL.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("make the uplink %s: %w", attrs.Name, err)
	}
	return r.hostNL.LinkByName(attrs.Name)
}

// configureUplink gives both ends addresses and routes and lets the host forward.
func (r *Router) configureUplink(ctx context.Context, u uplinkAddresses) error {
	end, err := r.hostNL.LinkByName(hostLink(r.o.Name))
	if err != nil {
		return fmt.Errorf("find the uplink: %w", err)
	}
	far, err := r.net.nl.LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("find the uplink: %w", err)
	}
	err = within(r.host, func() error {
		dir := "ipv6/conf/" + end.Attrs().Name + "/"
		if u.v6 {
			return setSysctls(sysctl{dir + "disable_ipv6", "0"}, sysctl{dir + "accept_ra", "0"}, sysctl{dir + "accept_dad", "0"},
				sysctl{forward6, "1"}, sysctl{forward4, "1"})
		}
		return setSysctls(sysctl{forward4, "1"})
	})
	if err != nil {
		return err
	}
	for _, side := range []struct {
		h         *netlink.Handle
		link      netlink.Link
		four, six netip.Addr
	}{{r.hostNL, end, u.host4, u.host6}, {r.net.nl, far, u.router4, u.router6}} {
		if err := side.h.LinkSetUp(side.link); err != nil {
			return fmt.Errorf("bring %s up: %w", side.link.Attrs().Name, err)
		}
		if err := addAddress(side.h, side.link, netip.PrefixFrom(side.four, 30)); err != nil {
			return err
		}
		if u.v6 {
			if err := addAddress(side.h, side.link, netip.PrefixFrom(side.six, 126)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(waitCarrier(ctx, r.hostNL, end), waitCarrier(ctx, r.net.nl, far)); err != nil {
		return err
	}
	if u.v6 {
		if err := errors.Join(waitLocal(ctx, r.hostNL, u.host6), waitLocal(ctx, r.net.nl, u.router6)); err != nil {
			return err
		}
	}
	if err := addDefault(r.net.nl, far, u.host4); err != nil {
		return err
	}
	if u.v6 {
		return addDefault(r.net.nl, far, u.host6)
	}
	return nil
}

// disconnect takes the uplink away and leaves the host as it was.
func (r *Router) disconnect(ctx context.Context) error {
	unlock, err := lockHost(ctx, r.host)
	if err != nil {
		return err
	}
	defer unlock()
	link, err := linkByName(r.hostNL, hostLink(r.o.Name))
	if err != nil || link == nil {
		return err
	}
	if err := r.forget(link); err != nil {
		return err
	}
	return deleteLink(r.hostNL, link)
}
