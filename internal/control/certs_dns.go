package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// lead finds out where a hostname leads, and says what is wrong with it.
func (s *Certs) lead(ctx context.Context, name string) *NameCheck {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	c := &NameCheck{Host: publicAddresses()}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, name)
	if s.Lookup != nil {
		ips, err = s.Lookup(ctx, name)
	}
	for _, ip := range ips {
		if v4 := ip.IP.To4(); v4 != nil {
			c.A = append(c.A, v4.String())
		} else {
			c.AAAA = append(c.AAAA, ip.IP.String())
		}
	}
	if s.Lookup == nil {
		if cname, err := net.DefaultResolver.LookupCNAME(ctx, name); err == nil {
			if cname = strings.TrimSuffix(cname, "."); !strings.EqualFold(cname, name) {
				c.CNAME = cname
			}
		}
	}
	seen := slices.Concat(c.A, c.AAAA)
	var foreign []string
	for _, a := range seen {
		if !slices.Contains(c.Host, a) {
			foreign = append(foreign, a)
		}
	}
	c.Here = len(seen) > 0 && len(foreign) == 0
	reach := errors.New("it has no address")
	if len(seen) > 0 {
		reach = s.Issuer.Reaches(ctx, name)
	}
	c.HTTP = reach == nil
	here := strings.Join(c.Host, ", ")
	if here == "" {
		here = "this host's public address"
	}
	switch {
	case err != nil || len(seen) == 0:
		c.Problem = fmt.Sprintf("%s has no address", name)
		if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.IsNotFound {
			c.Problem = fmt.Sprintf("%s could not be looked up: %s", name, dns.Err)
		}
		c.Remedy = fmt.Sprintf("Add an A or AAAA record for %s with %s.", name, here)
	case c.HTTP:
		// Whatever the addresses are, requests arrive: behind NAT this host does
		// not know its public ones.
	case len(c.Host) > 0 && len(foreign) > 0:
		c.Problem = fmt.Sprintf("%s leads to %s, which is not this host (%s), and nothing there answered for it: %v", name, strings.Join(foreign, ", "), here, reach)
		c.Remedy = fmt.Sprintf("Point the records of %s at %s, all of them.", name, here)
	default:
		c.Problem = fmt.Sprintf("%s leads to %s, but a request to its port 80 was not answered here: %v", name, strings.Join(seen, ", "), reach)
		c.Remedy = "Port 80 must reach this host from the internet: check the firewall, the forwarding of a router, and that nothing else has the port."
	}
	return c
}

// publicAddresses are the addresses of this host that the internet can reach.
func publicAddresses() []string {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() || n.IP.IsPrivate() || carrierGrade.Contains(n.IP) {
			continue
		}
		out = append(out, n.IP.String())
	}
	return out
}

// carrierGrade is the address space between carriers and their customers (RFC 6598).
var carrierGrade = net.IPNet{IP: net.IPv4(100, 64, 0, 0), Mask: net.CIDRMask(10, 32)}
