package nameserver

import (
	"net"
	"strings"

	"github.com/miekg/dns"
)

// reserved are domains that mean nothing outside a host or a site, so no
// public server can know them: the reverse of private and special addresses
// (RFC 6303, RFC 7793) and the special names (RFC 6761, RFC 7686). Programs
// look such names up when they start or log, and should not wait for that.
var reserved = []string{
	"10.in-addr.arpa.", "168.192.in-addr.arpa.", "0.in-addr.arpa.", "127.in-addr.arpa.", "254.169.in-addr.arpa.",
	"2.0.192.in-addr.arpa.", "100.51.198.in-addr.arpa.", "113.0.203.in-addr.arpa.", "255.255.255.255.in-addr.arpa.",
	"16.172.in-addr.arpa.", "17.172.in-addr.arpa.", "18.172.in-addr.arpa.", "20.172.in-addr.arpa.", "21.172.in-addr.arpa.",
	"22.172.in-addr.arpa.", "23.172.in-addr.arpa.", "24.172.in-addr.arpa.", "25.172.in-addr.arpa.", "26.172.in-addr.arpa.",
	"27.172.in-addr.arpa.", "28.172.in-addr.arpa.", "29.172.in-addr.arpa.", "30.172.in-addr.arpa.", "31.172.in-addr.arpa.",
	strings.Repeat("0.", 32) + "ip6.arpa.", "1." + strings.Repeat("0.", 31) + "ip6.arpa.", "d.f.ip6.arpa.",
	"8.e.f.ip6.arpa.", "9.e.f.ip6.arpa.", "a.e.f.ip6.arpa.", "b.e.f.ip6.arpa.", "8.b.d.0.1.0.0.2.ip6.arpa.",
	zoneLocalhost, "invalid.", "local.", "onion.", "test.",
}

const zoneLocalhost = "localhost."

// reservedZone returns the reserved domain that a name lies in, "" if none.
func reservedZone(name string) string {
	name = strings.ToLower(dns.Fqdn(name))
	for _, z := range reserved {
		if rest, ok := strings.CutSuffix(name, z); ok && (rest == "" || strings.HasSuffix(rest, ".")) {
			return z
		}
	}
	return ""
}

// answerReserved answers a name of a reserved domain: nothing exists there but
// localhost.
func answerReserved(q *dns.Msg, zone string) *dns.Msg {
	a := new(dns.Msg)
	a.SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	name, want := q.Question[0].Name, q.Question[0].Qtype
	switch {
	case zone != zoneLocalhost:
		if !strings.EqualFold(dns.Fqdn(name), zone) || !strings.HasSuffix(zone, ".arpa.") {
			a.Rcode = dns.RcodeNameError
		}
	case want == dns.TypeA:
		a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: want, Class: dns.ClassINET, Ttl: ttl}, A: net.IPv4(127, 0, 0, 1)})
	case want == dns.TypeAAAA:
		a.Answer = append(a.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: name, Rrtype: want, Class: dns.ClassINET, Ttl: ttl}, AAAA: net.IPv6loopback})
	}
	if len(a.Answer) == 0 {
		a.Ns = absence(zone)
	}
	return a
}

// absence says how long the absence of a name may be believed (RFC 2308).
func absence(zone string) []dns.RR {
	return []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "ns.internal.", Mbox: "hostmaster.internal.", Serial: 1, Refresh: ttl, Retry: ttl, Expire: ttl, Minttl: ttl,
	}}
}
