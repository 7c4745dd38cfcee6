package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

const (
	machineLink = "eth0" // the machine's end
	machineMTU  = 1420   // Fly's
	maxAlias    = 256    // IFALIASZ, with the final zero

	machineGroup = 4280 // the group of the machines' links, in the router's namespace
)

// Network is a handle on the router that the supervisor made. It is safe for
// concurrent use; calls about one machine are the caller's to serialise.
type Network struct {
	o    Options
	ns   *os.File // the router's namespace
	nl   *netlink.Handle
	sets sets

	mu   sync.Mutex
	conn *nftables.Conn // lasting; nil: open one
}

// Open returns a handle on the router of a running instance, kind Unavailable
// if there is none. The caller closes it.
func Open(o Options) (*Network, error) {
	ns, err := openNamespace(o.Namespace)
	if err != nil {
		return nil, &root.Error{Kind: root.Unavailable, Message: "the private network is not up: is `roost server` running?", Err: err}
	}
	return newNetwork(o, ns)
}

func newNetwork(o Options, ns *os.File) (*Network, error) {
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("enter the router's namespace: %w", err), ns.Close())
	}
	return &Network{o: o, ns: ns, nl: nl, sets: newSets(&nftables.Table{Family: nftables.TableFamilyINet, Name: routerTable})}, nil
}

// Close gives the handle back.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		_ = n.conn.CloseLasting()
		n.conn = nil
	}
	n.nl.Close()
	return n.ns.Close()
}

// nft runs one transaction on the router's table.
func (n *Network) nft(f func(*nftables.Conn) error) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		if n.conn, err = nftables.New(nftables.WithNetNSFd(int(n.ns.Fd())), nftables.AsLasting()); err != nil {
			return err
		}
	}
	err = f(n.conn)
	if err == nil {
		err = n.conn.Flush()
	}
	if err != nil {
		// Replies of the failed transaction may still be queued.
		_ = n.conn.CloseLasting()
		n.conn = nil
	}
	return err
}

// parsed is a checked attachment.
type parsed struct {
	Attachment
	four, second, six netip.Addr
}

func (a Attachment) parse() (parsed, error) {
	p := parsed{Attachment: a}
	index, err := parseInterface(a.Interface)
	if err != nil {
		return p, err
	}
	var err4, err6 error
	p.four, err4 = netip.ParseAddr(a.IPv4)
	p.six, err6 = netip.ParseAddr(a.IPv6)
	if err4 != nil || !netip.MustParsePrefix(PrivateIPv4).Contains(p.four) {
		return p, root.Errorf(root.Invalid, "attach %s: %q is not an address of %s", a.Interface, a.IPv4, PrivateIPv4)
	}
	if err6 != nil || NetworkIDOf(p.six) != a.NetworkID {
		return p, root.Errorf(root.Invalid, "attach %s: %q is not an address of network %d", a.Interface, a.IPv6, a.NetworkID)
	}
	if a.NetworkID == 0 {
		return p, root.Errorf(root.Invalid, "attach %s: network 0 is no network", a.Interface)
	}
	if a.Namespace == "" || len(a.Namespace) >= maxAlias {
		return p, root.Errorf(root.Invalid, "attach %s: the namespace's path must have 1 to %d bytes", a.Interface, maxAlias-1)
	}
	if p.four.String() != ipv4Of(index) {
		return p, root.Errorf(root.Invalid, "attach %s: %s is not the address of this index", a.Interface, a.IPv4)
	}
	p.second = p.four.Next()
	return p, nil
}

// parseInterface is the inverse of InterfaceFor.
func parseInterface(name string) (uint32, error) {
	var index uint32
	if _, err := fmt.Sscanf(name, "m%d", &index); err != nil || InterfaceFor(index) != name || index < 1 || index > buildsIndex {
		return 0, root.Errorf(root.Invalid, "%q is not a machine's interface", name)
	}
	return index, nil
}

// Attach makes the machine's namespace and joins it to the router, or mends
// what is there. An intact attachment keeps its connections.
func (n *Network) Attach(ctx context.Context, a Attachment) error {
	p, err := a.parse()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	ns, err := openNamespace(a.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		ns, err = bindNamespace(a.Namespace, true, machineSysctls)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Interface, err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Interface, err)
	}
	defer inside.Close()
	if err := n.permit(p); err != nil {
		return fmt.Errorf("attach %s: isolation: %w", a.Interface, err)
	}
	near, far, err := n.link(p, ns, inside)
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Interface, err)
	}
	if err := n.configureRouter(near, far, p); err != nil {
		return fmt.Errorf("attach %s: %w", a.Interface, err)
	}
	if err := configureMachine(inside, far, near, p); err != nil {
		return fmt.Errorf("attach %s: %w", a.Interface, err)
	}
	if err := errors.Join(waitCarrier(ctx, n.nl, near), waitCarrier(ctx, inside, far), waitLocal(ctx, inside, p.six)); err != nil {
		return fmt.Errorf("attach %s: %w", a.Interface, err)
	}
	return nil
}

// machineSysctls are a machine's own network settings.
func machineSysctls() error {
	return setSysctls(
		sysctl{"ipv6/conf/all/disable_ipv6", "0"},
		sysctl{"ipv6/conf/default/disable_ipv6", "0"},
		sysctl{"ipv6/conf/default/accept_dad", "0"},
		sysctl{"ipv6/conf/default/accept_ra", "0"},
		sysctl{"ipv4/ip_unprivileged_port_start", "0"}, // apps that are not root listen on 80 and 53
		sysctl{"ipv4/ping_group_range", "0 2147483647"},
	)
}

// link finds or makes the pair of links; near is the router's end.
func (n *Network) link(p parsed, ns *os.File, inside *netlink.Handle) (near, far netlink.Link, err error) {
	if near, err = linkByName(n.nl, p.Interface); err != nil {
		return nil, nil, err
	}
	if far, err = linkByName(inside, machineLink); err != nil {
		return nil, nil, err
	}
	if near != nil && far != nil && near.Attrs().ParentIndex == far.Attrs().Index && far.Attrs().ParentIndex == near.Attrs().Index {
		return near, far, nil
	}
	for _, half := range []struct {
		h *netlink.Handle
		l netlink.Link
	}{{n.nl, near}, {inside, far}} {
		if half.l == nil {
			continue
		}
		if err := deleteLink(half.h, half.l); err != nil {
			return nil, nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group, attrs.NumTxQueues, attrs.NumRxQueues = p.Interface, machineMTU, machineGroup, 1, 1
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = machineLink, netlink.NsFd(ns.Fd())
	v.HardwareAddr, v.PeerHardwareAddr = hardwareAddress(0), hardwareAddress(binary.BigEndian.Uint16(p.four.AsSlice()[2:]))
	if err := n.nl.LinkAdd(v); err != nil {
		return nil, nil, fmt.Errorf("make link: %w", err)
	}
	if near, err = n.nl.LinkByName(p.Interface); err != nil {
		return nil, nil, err
	}
	// The path, so that Detach finds the namespace of a machine of which only
	// the interface is known.
	if err := n.nl.LinkSetAlias(near, p.Namespace); err != nil {
		return nil, nil, err
	}
	far, err = inside.LinkByName(machineLink)
	return near, far, err
}

// hardwareAddress returns the router's (0) or a machine's.
func hardwareAddress(machine uint16) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, byte(machine >> 8), byte(machine)}
}

var routerLinkLocal = netip.MustParseAddr("fe80::1")

func configureMachine(h *netlink.Handle, eth, near netlink.Link, p parsed) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{lo, eth} {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring the machine's %s up: %w", l.Attrs().Name, err)
		}
	}
	for _, a := range []netip.Addr{p.four, p.second, p.six} {
		if err := addAddress(h, eth, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	for _, gateway := range []netip.Addr{netip.MustParseAddr(GatewayIPv4), routerLinkLocal} {
		if err := setNeighbour(h, eth, gateway, near.Attrs().HardwareAddr); err != nil {
			return err
		}
		if err := addDefault(h, eth, gateway); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) configureRouter(near, far netlink.Link, p parsed) error {
	if err := n.nl.LinkSetUp(near); err != nil {
		return fmt.Errorf("bring %s up: %w", p.Interface, err)
	}
	if err := addAddress(n.nl, near, netip.PrefixFrom(routerLinkLocal, 64)); err != nil {
		return err
	}
	for _, a := range []netip.Addr{p.four, p.second, p.six} {
		if err := setNeighbour(n.nl, near, a, far.Attrs().HardwareAddr); err != nil {
			return err
		}
		from := GatewayIPv4
		if a.Is6() {
			from = DNSIPv6
		}
		rt := &netlink.Route{LinkIndex: near.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Src: net.ParseIP(from), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
		if a.Is6() {
			rt.Scope = netlink.SCOPE_UNIVERSE
		}
		if err := n.nl.RouteReplace(rt); err != nil {
			return fmt.Errorf("route %s to %s: %w", a, p.Interface, err)
		}
	}
	return nil
}

// setNeighbour makes an entry that is never asked for and, unlike learned
// ones, does not count against the kernel's table size.
func setNeighbour(h *netlink.Handle, l netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	err := h.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", ip, l.Attrs().Name, err)
	}
	return nil
}

// Detach takes a machine out of the network and returns when its links are
// gone. Interface or Namespace is enough: the link knows the namespace it was
// made for. What does not exist is success. Processes that still run in the
// namespace keep it, without a network.
func (n *Network) Detach(ctx context.Context, a Attachment) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if a.Interface == "" && a.Namespace != "" {
		iface, err := n.interfaceOf(a.Namespace)
		if err != nil {
			return err
		}
		if iface == "" {
			return removeNamespace(a.Namespace)
		}
		a.Interface = iface
	}
	if _, err := parseInterface(a.Interface); err != nil {
		return err
	}
	var errs []error
	namespaces := []string{a.Namespace}
	link, err := linkByName(n.nl, a.Interface)
	if err != nil {
		return err
	}
	if link != nil {
		if strings.HasPrefix(link.Attrs().Alias, "/") && link.Attrs().Alias != a.Namespace {
			namespaces = append(namespaces, link.Attrs().Alias)
		}
		errs = append(errs, deleteLink(n.nl, link))
	}
	errs = append(errs, n.forbid(a))
	for _, path := range namespaces {
		if path != "" {
			errs = append(errs, removeNamespace(path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach %s: %w", a.Interface, err)
	}
	return nil
}

// interfaceOf finds the link that was made for a namespace, "" if there is none.
func (n *Network) interfaceOf(namespace string) (string, error) {
	links, err := n.nl.LinkList()
	if err != nil {
		return "", fmt.Errorf("list the machines' links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Alias == namespace {
			return l.Attrs().Name, nil
		}
	}
	return "", nil
}

// detachAll takes every machine out. The kernel needs some 30 ms to remove a
// link and no longer for a group of them.
func (n *Network) detachAll(ctx context.Context) error {
	links, err := n.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list the machines' links: %w", err)
	}
	var names, namespaces []string
	for _, l := range links {
		if _, err := parseInterface(l.Attrs().Name); err != nil {
			continue
		}
		names = append(names, l.Attrs().Name)
		if strings.HasPrefix(l.Attrs().Alias, "/") {
			namespaces = append(namespaces, l.Attrs().Alias)
		}
	}
	if len(names) == 0 {
		return nil
	}
	errs := []error{within(n.ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(machineGroup)))
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove the machines' links: %w", err)
		}
		return nil
	})}
	errs = append(errs, n.nft(func(c *nftables.Conn) error {
		for _, set := range n.sets.all() {
			c.FlushSet(set)
		}
		return nil
	}))
	for _, path := range namespaces {
		errs = append(errs, removeNamespace(path))
	}
	for _, name := range names { // whatever is left of them
		if l, err := linkByName(n.nl, name); err != nil || l != nil {
			errs = append(errs, err, n.Detach(ctx, Attachment{Interface: name}))
		}
	}
	return errors.Join(errs...)
}

// Attachments lists the router's ends of the machines' links that exist.
func (n *Network) Attachments(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	links, err := n.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the machines' links: %w", err)
	}
	var names []string
	for _, l := range links {
		if _, err := parseInterface(l.Attrs().Name); err == nil && l.Attrs().Name != buildsLink {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// Forwarded counts, per interface, the packets that passed between its machine
// and others and were more than keep-alives, in both directions together.
// Traffic of the edge is not in it. Counts begin at Attach.
func (n *Network) Forwarded(ctx context.Context) (map[string]uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	elements, err := n.elements(n.sets.traffic)
	if err != nil {
		return nil, err
	}
	counts := make(map[string]uint64, len(elements))
	for _, e := range elements {
		name, _, _ := bytes.Cut(e.Key, []byte{0})
		if e.Counter != nil {
			counts[string(name)] = e.Counter.Packets
		}
	}
	return counts, nil
}
