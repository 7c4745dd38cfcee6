package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is the concatenation of matches and, last, what to do. The functions
// here are the words that rules_linux.go is written in.

type match = []expr.Any

func rule(parts ...match) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// Registers. The 16-byte register 1 spans the 4-byte ones from 8 to 11, so a
// key of an interface and an address lies in 1 and 2, and one of a mark and an
// interface in 8 and, behind it, 9 to 12.
const (
	reg1      = unix.NFT_REG_1
	reg2      = unix.NFT_REG_2
	regMark   = unix.NFT_REG32_00
	regBehind = unix.NFT_REG32_01
)

// ifname is an interface's name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg1, Data: data}
}

func meta(key expr.MetaKey, register uint32) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

func iif(name string) match {
	return match{meta(expr.MetaKeyIIFNAME, reg1), compare(expr.CmpOpEq, ifname(name))}
}
func oif(name string) match {
	return match{meta(expr.MetaKeyOIFNAME, reg1), compare(expr.CmpOpEq, ifname(name))}
}
func notIif(name string) match {
	return match{meta(expr.MetaKeyIIFNAME, reg1), compare(expr.CmpOpNeq, ifname(name))}
}
func notOif(name string) match {
	return match{meta(expr.MetaKeyOIFNAME, reg1), compare(expr.CmpOpNeq, ifname(name))}
}

func ipv4() match {
	return match{meta(expr.MetaKeyNFPROTO, reg1), compare(expr.CmpOpEq, []byte{unix.NFPROTO_IPV4})}
}
func ipv6() match {
	return match{meta(expr.MetaKeyNFPROTO, reg1), compare(expr.CmpOpEq, []byte{unix.NFPROTO_IPV6})}
}

func proto(p byte) match {
	return match{meta(expr.MetaKeyL4PROTO, reg1), compare(expr.CmpOpEq, []byte{p})}
}

// address loads a source or destination address.
func address(v6, source bool, register uint32) expr.Any {
	p := &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if v6 {
		p.Offset, p.Len = 24, 16
	}
	if source {
		p.Offset -= p.Len
	}
	return p
}

// inPrefix matches packets whose address lies in p, of p's family.
func inPrefix(p netip.Prefix, source bool) match {
	m := ipv4()
	if p.Addr().Is6() {
		m = ipv6()
	}
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(m,
		address(p.Addr().Is6(), source, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()))
}

func source(p string) match      { return inPrefix(netip.MustParsePrefix(p), true) }
func destination(p string) match { return inPrefix(netip.MustParsePrefix(p), false) }

// port matches TCP or UDP packets to a port, fromPort those from one.
func port(p byte, number uint16) match     { return portAt(p, 2, number) }
func fromPort(p byte, number uint16) match { return portAt(p, 0, number) }

func portAt(p byte, offset uint32, number uint16) match {
	return append(proto(p),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(number)))
}

// The TCP flags.
const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
)

// tcpFlags compares the flags under mask.
func tcpFlags(mask byte, op expr.CmpOp, want byte) match {
	return append(proto(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		compare(op, []byte{want}))
}

// ctState matches connections in one of the states.
func ctState(bits uint32) match {
	return match{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

func known() match   { return ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }
func invalid() match { return ctState(expr.CtStateBitINVALID) }

func in(s *nftables.Set, register uint32) expr.Any {
	return &expr.Lookup{SetName: s.Name, SetID: s.ID, SourceRegister: register}
}

func notIn(s *nftables.Set, register uint32) expr.Any {
	return &expr.Lookup{SetName: s.Name, SetID: s.ID, SourceRegister: register, Invert: true}
}

func verdict(v expr.VerdictKind) match { return match{&expr.Verdict{Kind: v}} }
func accept() match                    { return verdict(expr.VerdictAccept) }
func drop() match                      { return verdict(expr.VerdictDrop) }
func masquerade() match                { return match{&expr.Masq{}} }
func notrack() match                   { return match{&expr.Notrack{}} }
func jump(chain string) match {
	return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
