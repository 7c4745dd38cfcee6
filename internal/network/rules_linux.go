package network

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	uplink      = "uplink" // the router's end of the link to the host
	routerTable = "roost"  // in the router namespace

	// wakeGroup is the nflog group, in the router namespace, of first packets.
	wakeGroup = 4280
	// wakeInterval is how often a suspended machine's packets are reported:
	// soon enough for a retransmission after a lost report, seldom enough that
	// a flood costs nothing.
	wakeInterval = 200 * time.Millisecond
	// maxDynamic bounds sets that packets fill: the keys are interfaces.
	maxDynamic = 65535
)

// sets are those of the router's table. The rules never change with the
// machines; only these do.
type sets struct {
	networks  *nftables.Set // interface -> network
	members   *nftables.Set // network and interface
	sources4  *nftables.Set // interface and address it may send from
	sources6  *nftables.Set
	suspended *nftables.Set // interfaces
	woken     *nftables.Set // interfaces reported within wakeInterval
	traffic   *nftables.Set // interface, with a counter of private packets
}

func newSets(t *nftables.Table) sets {
	set := func(name string, types ...nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: types[0], KeyByteOrder: binaryutil.NativeEndian}
		if len(types) > 1 {
			s.KeyType = nftables.MustConcatSetType(types...)
		}
		return s
	}
	s := sets{
		networks:  set("networks", nftables.TypeIFName),
		members:   set("members", nftables.TypeMark, nftables.TypeIFName),
		sources4:  set("sources4", nftables.TypeIFName, nftables.TypeIPAddr),
		sources6:  set("sources6", nftables.TypeIFName, nftables.TypeIP6Addr),
		suspended: set("suspended", nftables.TypeIFName),
		woken:     set("woken", nftables.TypeIFName),
		traffic:   set("traffic", nftables.TypeIFName),
	}
	s.networks.IsMap, s.networks.DataType = true, nftables.TypeMark
	s.woken.Dynamic, s.woken.HasTimeout, s.woken.Timeout, s.woken.Size = true, true, wakeInterval, maxDynamic
	s.traffic.Dynamic, s.traffic.Size = true, maxDynamic
	return s
}

func (s *sets) all() []*nftables.Set {
	return []*nftables.Set{s.networks, s.members, s.sources4, s.sources6, s.suspended, s.woken, s.traffic}
}

// perMachine are the sets that hold something of a machine, each with the
// place of the interface's name in its keys.
func (s *sets) perMachine() map[*nftables.Set]int {
	return map[*nftables.Set]int{s.networks: 0, s.members: 4, s.sources4: 0, s.sources6: 0, s.suspended: 0, s.woken: 0, s.traffic: 0}
}

// elements are what the sets hold of an attachment.
func (s *sets) elements(a parsed) map[*nftables.Set][]nftables.SetElement {
	name := ifname(a.Interface)
	mark := binaryutil.NativeEndian.PutUint32(a.NetworkID)
	key := func(parts ...[]byte) nftables.SetElement {
		var k []byte
		for _, p := range parts {
			k = append(k, p...)
		}
		return nftables.SetElement{Key: k}
	}
	return map[*nftables.Set][]nftables.SetElement{
		s.networks: {{Key: name, Val: mark}},
		s.members:  {key(mark, name)},
		s.sources4: {key(name, a.four.AsSlice()), key(name, a.second.AsSlice())},
		s.sources6: {key(name, a.six.AsSlice())},
	}
}

// addChain adds a chain, or empties it, and fills it: in one transaction
// nobody sees it empty.
func addChain(c *nftables.Conn, chain *nftables.Chain, rules ...[]expr.Any) {
	c.AddChain(chain)
	c.FlushChain(chain)
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: r})
	}
}

// routerRules writes the table of the router namespace, whose rules are the
// same for none and for ten thousand machines.
func routerRules(c *nftables.Conn, buildsReach []netip.Prefix) (sets, error) {
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: routerTable})
	s := newSets(t)
	for i, set := range s.all() {
		// Unique in this transaction is enough; the library would count in a
		// variable that nothing guards.
		set.ID = uint32(i) + 1
		if err := c.AddSet(set, nil); err != nil {
			return s, err
		}
	}

	// Who sends: only what comes from a machine's own addresses goes on. Link
	// local packets are for neighbour discovery alone. TCP within the private
	// network and DNS are not tracked: their rules need no memory, and a full
	// table of connections then cannot stop the edge.
	addChain(c, &nftables.Chain{Table: t, Name: "prerouting", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: new(nftables.ChainPolicyAccept)},
		rule(iif("lo"), accept()),
		rule(iif(uplink), accept()),
		rule(source("fe80::/10"), proto(unix.IPPROTO_ICMPV6), accept()),
		rule(source("::/128"), proto(unix.IPPROTO_ICMPV6), accept()),
		rule(ipv4(), match{meta(expr.MetaKeyIIFNAME, reg1), address(false, true, reg2), notIn(s.sources4, reg1)}, drop()),
		rule(ipv6(), match{meta(expr.MetaKeyIIFNAME, reg1), address(true, true, reg2), notIn(s.sources6, reg1)}, drop()),
		rule(destination(PrivateIPv4), proto(unix.IPPROTO_TCP), notrack()),
		rule(destination(PrivateIPv6), proto(unix.IPPROTO_TCP), notrack()),
		rule(destination(GatewayIPv4+"/32"), port(unix.IPPROTO_UDP, 53), notrack()),
		rule(destination(DNSIPv6+"/128"), port(unix.IPPROTO_UDP, 53), notrack()),
	)
	addChain(c, &nftables.Chain{Table: t, Name: "output", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw, Policy: new(nftables.ChainPolicyAccept)},
		rule(notOif(uplink), proto(unix.IPPROTO_TCP), notrack()),
		rule(notOif(uplink), fromPort(unix.IPPROTO_UDP, 53), notrack()),
	)

	// To the router itself: answers to the edge, DNS and API.
	api := [][]expr.Any{
		rule(iif("lo"), accept()),
		rule(iif(uplink), known(), accept()),
		rule(iif(uplink), proto(unix.IPPROTO_ICMPV6), accept()),
		rule(iif(uplink), proto(unix.IPPROTO_ICMP), accept()),
		rule(iif(uplink), drop()),
		rule(proto(unix.IPPROTO_ICMP), accept()),
		rule(proto(unix.IPPROTO_ICMPV6), accept()),
		rule(tcpFlags(tcpSYN|tcpACK, expr.CmpOpNeq, tcpSYN), accept()), // not a new connection
		rule(proto(unix.IPPROTO_UDP), known(), accept()),
	}
	api = append(buildsInput(), api...)
	for _, to := range []string{GatewayIPv4 + "/32", DNSIPv6 + "/128"} {
		api = append(api,
			rule(destination(to), port(unix.IPPROTO_UDP, 53), accept()),
			rule(destination(to), port(unix.IPPROTO_TCP, 53), accept()),
			rule(destination(to), port(unix.IPPROTO_TCP, 4280), accept()))
	}
	addChain(c, &nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: new(nftables.ChainPolicyDrop)}, api...)

	// Out of the host.
	egress := &nftables.Chain{Table: t, Name: "egress"}
	var out [][]expr.Any
	for _, p := range metadata {
		out = append(out, rule(destination(p), drop()))
	}
	out = append(out,
		rule(destination(PrivateIPv4), drop()),
		rule(destination(PrivateIPv6), drop()),
		rule(invalid(), drop()),
		rule(tcpFlags(tcpSYN, expr.CmpOpEq, tcpSYN), clampMSS()),
	)
	out = append(out, buildsEgress(buildsReach)...)
	addChain(c, egress, append(out, rule(accept()))...)

	// Between machines of one network. A packet that shows somebody wants
	// something (a new connection, data, any datagram) counts as traffic and
	// wakes; keep-alives, acknowledgements and pings do not, the kernel of a
	// frozen machine answers them.
	private := &nftables.Chain{Table: t, Name: "private"}
	addChain(c, private,
		rule(proto(unix.IPPROTO_ICMP), accept()),
		rule(proto(unix.IPPROTO_ICMPV6), accept()),
		rule(tcpFlags(tcpSYN|tcpPSH, expr.CmpOpEq, 0), accept()),
		rule(tcpFlags(tcpRST, expr.CmpOpEq, tcpRST), accept()),
		rule(match{meta(expr.MetaKeyIIFNAME, reg1), count(s.traffic)}),
		rule(match{meta(expr.MetaKeyOIFNAME, reg1), count(s.traffic)}),
		rule(match{
			meta(expr.MetaKeyOIFNAME, reg1), in(s.suspended, reg1), notIn(s.woken, reg1),
			&expr.Dynset{SetName: s.woken.Name, SetID: s.woken.ID, Operation: unix.NFT_DYNSET_OP_ADD, SrcRegKey: reg1},
			&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_QTHRESHOLD, Group: wakeGroup, QThreshold: 1},
		}),
		rule(accept()),
	)

	addChain(c, &nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: new(nftables.ChainPolicyDrop)},
		rule(iif(uplink), known(), accept()),
		rule(iif(uplink), drop()),
		rule(oif(uplink), jump(egress.Name)),
		rule(match{
			meta(expr.MetaKeyIIFNAME, reg1),
			&expr.Lookup{SetName: s.networks.Name, SetID: s.networks.ID, SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
		}),
		rule(match{meta(expr.MetaKeyMARK, regMark), meta(expr.MetaKeyOIFNAME, regBehind), in(s.members, regMark)}, jump(private.Name)),
	)
	addChain(c, &nftables.Chain{Table: t, Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: new(nftables.ChainPolicyAccept)},
		rule(oif(uplink), masquerade()),
	)
	return s, nil
}

func count(s *nftables.Set) expr.Any {
	return &expr.Dynset{SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_ADD, SrcRegKey: reg1, Exprs: []expr.Any{&expr.Counter{}}}
}

// clampMSS makes a connection fit the path's MTU: the machines' is larger than
// that of many uplinks.
func clampMSS() match {
	return match{
		&expr.Rt{Register: reg1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

// hostRules writes the instance's only table on the host. What may come in
// through the uplink is the router's own table's to decide.
func hostRules(c *nftables.Conn, name string, u uplinkAddresses, published []uint16) {
	link := hostLink(name)
	t := c.AddTable(hostTable(name))
	nat := [][]expr.Any{rule(notOif(link), source(u.router4.String()+"/32"), masquerade())}
	if u.v6 {
		nat = append(nat, rule(notOif(link), source(u.router6.String()+"/128"), masquerade()))
	}
	addChain(c, &nftables.Chain{Table: t, Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: new(nftables.ChainPolicyAccept)}, nat...)

	input := [][]expr.Any{
		rule(notIif(link), accept()),
		rule(known(), accept()),
		rule(proto(unix.IPPROTO_ICMP), accept()),
		rule(proto(unix.IPPROTO_ICMPV6), accept()),
	}
	for _, p := range published {
		input = append(input, rule(port(unix.IPPROTO_TCP, p), accept()))
	}
	input = append(input, rule(drop()))
	addChain(c, &nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: new(nftables.ChainPolicyAccept)}, input...)
}

func hostTable(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: "roost_" + name}
}

// hostLink is the host's end of the uplink.
func hostLink(name string) string { return "roost-" + name }
