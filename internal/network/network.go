// Package network is the private network of one Roost instance on one host:
// the router's network namespace, its uplink to the host, and a namespace with
// one routed link for each machine.
//
// # Shape
//
//	host namespace                router namespace               machine namespace
//	 roost-<Name> ──── veth ──── uplink                m12 ──── veth ──── eth0
//	 masquerade,                 masquerade, isolation,           172.19.0.26/32, .27/32
//	 table roost_<Name>          DNS and API addresses            fdaa:<net>:<host>:<machine>:2/128
//
// There is no bridge. Each link is routed, so a machine can neither see nor
// answer for its neighbours, and a filter per link drops every packet whose
// source is not one of the machine's own addresses.
//
// # Address plan
//
// IPv6 (6PN) follows Fly: 16 bits fdaa, 32 bits network, 32 bits host, 32 bits
// machine, 16 bits that are always 2. The machine part is the address index,
// which the host gives out from 1. IPv4 is 172.19.0.0/16, the same in every
// instance and never visible outside the router namespace: index i has the
// pair 172.19.0.0 + 2i + 2 and the address after it (fly-global-services).
// That leaves MaxIndex machines to a host. The router answers at GatewayIPv4
// and DNSIPv6. The uplink is a /30 of 169.254.64.0/18 and a /126 of
// fd72:6f6f::/32, both derived from the instance's name and moved if taken.
//
// # Who may talk to whom
//
//   - Machines of one network reach each other, any port. Machines of different
//     networks exchange no packet; an address that nobody has is refused at once.
//   - A machine reaches the router's DNS (53) and API (4280), and may ping it;
//     no other socket of the edge.
//   - A machine reaches the internet and the host's other networks (a database
//     on the host's LAN is a common neighbour), over NAT. It does not reach
//     link-local addresses nor clouds' metadata, nor the host itself, on any of
//     its addresses, except on the ports in Options.Published. What the host
//     connects to because somebody named it is held to the same, see Outward.
//   - Builds have a place like a machine's, in a network of their own. They
//     reach the router's DNS and public addresses: no other machine, not the
//     host, and of private networks only what Options.BuildsReach names.
//   - From outside nothing reaches a machine but answers. What the edge sends
//     comes from inside the router namespace and is always allowed.
//   - IPv6 leaves the host only if the host has a default route that switching
//     forwarding on would not take away (one from router advertisements would).
//
// The number of rules is the same for any number of machines: only sets grow.
// `nft list ruleset` inside the router namespace prints all of it.
//
// # Asleep
//
// What a machine wants of another (a new connection, data, a datagram; not a
// keep-alive, an acknowledgement or a ping) counts in Forwarded, and is
// reported by Wakes if the other is suspended. The packet is not held back:
// the sleeping machine's kernel takes it, and its process finds it.
//
// # Who calls it
//
// The supervisor owns the Router. The agent and the edge hold a Network, a
// handle on what the Router made. Everything is idempotent: after a crash at
// any step the same call finishes the work. All methods are safe for
// concurrent use; no goroutine outlives the call that started it.
//
// The package knows nothing of apps, other hosts, or how a machine is run.
package network

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	root "github.com/roost-run/roost"
)

// The router's addresses inside the private network.
const (
	GatewayIPv4 = "172.19.0.1" // DNS, API, and the machines' gateway
	DNSIPv6     = "fdaa::3"    // DNS and API
)

// PrivateIPv4 and PrivateIPv6 hold every address of the private network.
const (
	PrivateIPv4 = "172.19.0.0/16"
	PrivateIPv6 = "fdaa::/16"
)

// MaxIndex is the largest address index of a machine; the smallest is 1.
const MaxIndex = 32765

// The place of builds in the network: an index and a network of their own.
const (
	buildsIndex   = MaxIndex + 1
	buildsNetwork = 1<<32 - 1
	buildsLink    = "m32766" // InterfaceFor(buildsIndex)
)

// Options say where an instance's network lives.
type Options struct {
	// Name is unique among the instances on this host: 6 hex digits, derived
	// from the data directory. Host-side links and tables carry it.
	Name string
	// Namespace is the file that the router's namespace is bound to.
	Namespace string
	// HostNamespace is the file that the host's namespace is bound to.
	// OpenRouter binds its caller's there unless one is bound already.
	HostNamespace string
	// Published are TCP ports of the host that machines may reach: the edge's
	// public ports, so that an app can call its own public address. Only
	// OpenRouter looks at it.
	Published []uint16
	// BuildsReach are private networks that builds may reach, too. Only
	// OpenRouter looks at it.
	BuildsReach []netip.Prefix
}

// Attachment is a machine's place in the network.
type Attachment struct {
	Namespace  string // file to bind the machine's namespace to
	Interface  string // the router's end, InterfaceFor
	IPv4, IPv6 string // the machine's addresses, AddressFor
	NetworkID  uint32 // not 0
}

// AddressFor returns the addresses of the machine with the given index on a
// host. IPv4 is empty for an index outside 1 to MaxIndex.
func AddressFor(networkID, hostPart, index uint32) root.Address {
	var six [16]byte
	six[0], six[1] = 0xfd, 0xaa
	binary.BigEndian.PutUint32(six[2:], networkID)
	binary.BigEndian.PutUint32(six[6:], hostPart)
	binary.BigEndian.PutUint32(six[10:], index)
	six[15] = 2
	a := root.Address{Index: index, IPv6: netip.AddrFrom16(six).String()}
	if index >= 1 && index <= MaxIndex {
		a.IPv4 = ipv4Of(index)
	}
	return a
}

// ipv4Of returns the first address of an index.
func ipv4Of(index uint32) string {
	low := uint16(2*index + 2)
	return netip.AddrFrom4([4]byte{172, 19, byte(low >> 8), byte(low)}).String()
}

// SecondIPv4 returns the machine's second address (fly-global-services), or ""
// if ipv4 is not an address.
func SecondIPv4(ipv4 string) string {
	a, err := netip.ParseAddr(ipv4)
	if err != nil || !a.Is4() {
		return ""
	}
	return a.Next().String()
}

// NetworkIDOf returns the network that a 6PN address belongs to, 0 if it is
// none.
func NetworkIDOf(a netip.Addr) uint32 {
	six := a.As16()
	if six[0] != 0xfd || six[1] != 0xaa {
		return 0
	}
	return binary.BigEndian.Uint32(six[2:])
}

// InterfaceFor returns the name of the router's end of a machine's link: "m12".
func InterfaceFor(index uint32) string {
	return "m" + strconv.FormatUint(uint64(index), 10)
}

// Problem is something about this host that stands in the network's way.
type Problem struct {
	What string // one sentence
	Mend string // what to do about it
}
