package nameserver

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	root "github.com/roost-run/roost"
)

const (
	// ttl is Fly's: machines come and go.
	ttl = 5
	// maxString is a TXT record's string (RFC 1035, section 3.3).
	maxString = 255
	// maxText keeps a TXT record within a message.
	maxText = 60000
)

// zone is a domain that this server answers itself. Nothing of it is ever
// asked outside.
type zone struct {
	name   string
	labels []string // of the question, lower case, without the zone's own
}

// The zones: names of the private network, Flycast, and the reverse of the
// private addresses.
const (
	zoneInternal = "internal."
	zoneFlycast  = "flycast."
	zoneReverse6 = "a.a.d.f.ip6.arpa."
	zoneReverse4 = "19.172.in-addr.arpa."
)

// zoneOf returns the zone a name lies in, nil for a public one.
func zoneOf(name string) *zone {
	name = strings.ToLower(dns.Fqdn(name))
	for _, z := range []string{zoneInternal, zoneFlycast, zoneReverse6, zoneReverse4} {
		if rest, ok := strings.CutSuffix(name, z); ok && (rest == "" || strings.HasSuffix(rest, ".")) {
			return &zone{name: z, labels: dns.SplitDomainName(rest)}
		}
	}
	return nil
}

// found is what a private name stands for.
type found struct {
	exists   bool // else NXDOMAIN
	machines []*root.Machine
	router   bool     // the API
	text     []string // parts of the TXT record's text
	join     string   // between the parts
	pointer  string   // the PTR record's name
}

// private answers a name of one of our zones.
func (s *Server) private(q *dns.Msg, z *zone, peer netip.Addr) *dns.Msg {
	a := new(dns.Msg)
	a.SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	f := s.find(s.o.Catalog.Snapshot(), z, peer)
	if !f.exists {
		a.Rcode = dns.RcodeNameError
	}
	name, want := q.Question[0].Name, q.Question[0].Qtype
	head := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
	}
	if f.router {
		if want == dns.TypeA {
			a.Answer = append(a.Answer, &dns.A{Hdr: head(dns.TypeA), A: net.ParseIP(gatewayIPv4)})
		}
		if want == dns.TypeAAAA {
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: head(dns.TypeAAAA), AAAA: net.ParseIP(dnsIPv6)})
		}
	}
	for _, m := range f.machines {
		if ip := net.ParseIP(m.Spec.Address.IPv4); want == dns.TypeA && ip != nil {
			a.Answer = append(a.Answer, &dns.A{Hdr: head(dns.TypeA), A: ip})
		}
		if ip := net.ParseIP(m.Spec.Address.IPv6); want == dns.TypeAAAA && ip != nil {
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: head(dns.TypeAAAA), AAAA: ip})
		}
	}
	if want == dns.TypeTXT && len(f.text) > 0 {
		a.Answer = append(a.Answer, &dns.TXT{Hdr: head(dns.TypeTXT), Txt: textStrings(f.text, f.join)})
	}
	if want == dns.TypePTR && f.pointer != "" {
		a.Answer = append(a.Answer, &dns.PTR{Hdr: head(dns.TypePTR), Ptr: f.pointer})
	}
	if len(a.Answer) == 0 {
		a.Ns = absence(z.name)
	}
	return a
}

// The router's addresses; package network has them, and this package links no
// kernel code for two constants. A test compares them.
const (
	gatewayIPv4 = "172.19.0.1"
	dnsIPv6     = "fdaa::3"
)

// find resolves a private name for the machine at peer.
func (s *Server) find(snap *root.Snapshot, z *zone, peer netip.Addr) found {
	asker := s.askerAt(snap, peer)
	switch z.name {
	case zoneReverse4, zoneReverse6:
		return s.reverse(snap, z, asker)
	case zoneFlycast:
		return found{}
	}
	labels := z.labels
	if len(labels) == 0 {
		return found{exists: true}
	}
	last := labels[len(labels)-1]
	if strings.HasPrefix(last, "_") {
		return s.special(snap, labels, asker)
	}
	app := snap.App(root.AppName(last))
	if app == nil || asker.network == 0 || app.NetworkID != asker.network {
		return found{}
	}
	rest := labels[:len(labels)-1]
	all := len(rest) > 0 && rest[0] == "all"
	if all {
		rest = rest[1:]
	}
	return s.ofApp(snap, s.listed(snap.Machines(app.Name), all), rest, asker)
}

// special resolves the names that are no app's.
func (s *Server) special(snap *root.Snapshot, labels []string, asker asker) found {
	switch strings.Join(labels, ".") {
	case "_api":
		return found{exists: true, router: true}
	case "_peer":
		return found{exists: true}
	case "_apps":
		f := found{exists: true, join: ","}
		for _, app := range appsOf(snap, asker.network) {
			f.text = append(f.text, string(app.Name))
		}
		return f
	case "_instances", "all._instances":
		f := found{exists: true, join: ";"}
		for _, app := range appsOf(snap, asker.network) {
			for _, m := range s.listed(snap.Machines(app.Name), labels[0] == "all") {
				f.text = append(f.text, fmt.Sprintf("instance=%s,app=%s,ip=%s,region=%s", m.ID, m.App, m.Spec.Address.IPv6, m.Region))
			}
		}
		return f
	}
	return found{}
}

func appsOf(snap *root.Snapshot, network uint32) []*root.App {
	var apps []*root.App
	for app := range snap.Apps() {
		if network != 0 && app.NetworkID == network {
			apps = append(apps, app)
		}
	}
	slices.SortFunc(apps, func(a, b *root.App) int { return cmp.Compare(a.Name, b.Name) })
	return apps
}

// listed filters the machines that names stand for: those that run or sleep,
// or with all whatever exists. Cordons and health checks do not matter.
func (s *Server) listed(machines []*root.Machine, all bool) []*root.Machine {
	var out []*root.Machine
	for _, m := range machines {
		if m.Spec.Config.DNS.SkipRegistration {
			continue
		}
		switch s.o.State(m) {
		case root.StateStarted, root.StateSuspending, root.StateSuspended:
		case root.StateDestroying, root.StateDestroyed, root.StateReplaced:
			continue
		default:
			if !all {
				continue
			}
		}
		out = append(out, m)
	}
	return out
}

// ofApp resolves what stands before an app's name.
func (s *Server) ofApp(snap *root.Snapshot, machines []*root.Machine, labels []string, asker asker) found {
	f := found{exists: true}
	only := func(keep func(*root.Machine) bool) found {
		for _, m := range machines {
			if keep(m) {
				f.machines = append(f.machines, m)
			}
		}
		rand.Shuffle(len(f.machines), func(i, j int) { f.machines[i], f.machines[j] = f.machines[j], f.machines[i] })
		return f
	}
	metadata := func(key, value string) found {
		return only(func(m *root.Machine) bool {
			for k, v := range m.Spec.Config.Metadata {
				if strings.EqualFold(k, key) && strings.EqualFold(v, value) {
					return true
				}
			}
			return false
		})
	}
	n := len(labels)
	switch {
	case n == 0 || n == 1 && labels[0] == "global":
		return only(func(*root.Machine) bool { return true })
	case n == 1 && labels[0] == "vms":
		f.join = ","
		for _, m := range machines {
			f.text = append(f.text, string(m.ID)+" "+string(m.Region))
		}
		return f
	case n == 1 && labels[0] == "regions":
		f.join = ","
		for _, m := range machines {
			if !slices.Contains(f.text, string(m.Region)) {
				f.text = append(f.text, string(m.Region))
			}
		}
		slices.Sort(f.text)
		return f
	case n == 1:
		if _, err := root.ParseRegion(labels[0]); err != nil {
			return found{}
		}
		return only(func(m *root.Machine) bool { return string(m.Region) == labels[0] })
	case n == 2 && labels[1] == "vm":
		return only(func(m *root.Machine) bool { return string(m.ID) == labels[0] })
	case n == 2 && labels[1] == "process":
		return metadata(root.MetadataProcessGroup, labels[0])
	case n >= 4 && labels[n-1] == "_metadata" && labels[n-2] == "kv":
		return metadata(labels[n-3], strings.Join(labels[:n-3], "."))
	case n == 3 && labels[1] == "nearest" && labels[2] == "of":
		count, err := strconv.Atoi(strings.TrimPrefix(labels[0], "top"))
		if err != nil || count < 1 || !strings.HasPrefix(labels[0], "top") {
			return found{}
		}
		var region root.Region
		if m := s.machineAt(snap, asker.addr); m != nil {
			region = m.Region
		}
		f.machines = nearest(machines, region)
		f.machines = f.machines[:min(count, len(f.machines))]
		return f
	}
	return found{}
}

// nearest sorts the asker's own region first.
func nearest(machines []*root.Machine, region root.Region) []*root.Machine {
	sorted := slices.Clone(machines)
	far := func(m *root.Machine) int {
		if m.Region == region {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(sorted, func(a, b *root.Machine) int { return cmp.Compare(far(a), far(b)) })
	return sorted
}

// textStrings joins parts and cuts the text into a record's strings; what does
// not fit a message is left out, whole parts at a time.
func textStrings(parts []string, join string) []string {
	var b strings.Builder
	for i, p := range parts {
		if b.Len()+len(join)+len(p) > maxText {
			break
		}
		if i > 0 {
			b.WriteString(join)
		}
		b.WriteString(p)
	}
	text := b.String()
	var out []string
	for len(text) > maxString {
		out, text = append(out, text[:maxString]), text[maxString:]
	}
	return append(out, text)
}

// asker is who asks.
type asker struct {
	network uint32 // 0: nobody who may see private names
	addr    netip.Addr
}

// addressIndex finds a machine by address, in one snapshot.
type addressIndex struct {
	of       *root.Snapshot
	machines map[netip.Addr]*root.Machine
}

// machineAt finds the machine with an address, nil if there is none.
func (s *Server) machineAt(snap *root.Snapshot, a netip.Addr) *root.Machine {
	index := s.index.Load()
	if index == nil || index.of != snap {
		index = &addressIndex{of: snap, machines: make(map[netip.Addr]*root.Machine)}
		for m := range snap.AllMachines() {
			if ip, err := netip.ParseAddr(m.Spec.Address.IPv6); err == nil {
				index.machines[ip] = m
			}
			if ip, err := netip.ParseAddr(m.Spec.Address.IPv4); err == nil {
				index.machines[ip] = m
				index.machines[ip.Next()] = m // its second address
			}
		}
		s.index.Store(index)
	}
	return index.machines[a]
}

func (s *Server) askerAt(snap *root.Snapshot, peer netip.Addr) asker {
	a := asker{addr: peer, network: networkIDOf(peer)}
	if a.network == 0 {
		if m := s.machineAt(snap, peer); m != nil {
			if app := snap.App(m.App); app != nil {
				a.network = app.NetworkID
			}
		}
	}
	return a
}

// networkIDOf reads the network out of a 6PN address; 0 for others.
func networkIDOf(a netip.Addr) uint32 {
	if !a.Is6() {
		return 0
	}
	b := a.As16()
	if b[0] != 0xfd || b[1] != 0xaa {
		return 0
	}
	return uint32(b[2])<<24 | uint32(b[3])<<16 | uint32(b[4])<<8 | uint32(b[5])
}

// reverse names the machine behind an address, within the asker's network.
func (s *Server) reverse(snap *root.Snapshot, z *zone, asker asker) found {
	addr, ok := reverseAddress(z)
	if !ok {
		return found{}
	}
	m := s.machineAt(snap, addr)
	if m == nil {
		return found{}
	}
	app := snap.App(m.App)
	if app == nil || asker.network == 0 || app.NetworkID != asker.network {
		return found{}
	}
	return found{exists: true, pointer: fmt.Sprintf("%s.vm.%s.internal.", m.ID, m.App)}
}

func reverseAddress(z *zone) (netip.Addr, bool) {
	labels := slices.Clone(z.labels)
	slices.Reverse(labels)
	if z.name == zoneReverse4 {
		a, err := netip.ParseAddr("172.19." + strings.Join(labels, "."))
		return a, err == nil
	}
	b, err := hex.DecodeString("fdaa" + strings.Join(labels, ""))
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(b)
}
