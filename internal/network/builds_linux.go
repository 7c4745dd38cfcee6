package network

import (
	"context"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// private are networks that are not the internet's: builds stay out of them.
var private = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
	"::/96", "::ffff:0:0/96", "64:ff9b::/96", "fc00::/7", "fe80::/9", "ff00::/8",
}

// buildsEgress are the rules of the egress chain for what builds send.
func buildsEgress(reach []netip.Prefix) [][]expr.Any {
	var rules [][]expr.Any
	for _, p := range reach {
		rules = append(rules, rule(iif(buildsLink), inPrefix(p, false), accept()))
	}
	for _, p := range private {
		rules = append(rules, rule(iif(buildsLink), destination(p), drop()))
	}
	return rules
}

// buildsInput are the rules for what builds send to the router: DNS only.
func buildsInput() [][]expr.Any {
	return [][]expr.Any{
		rule(iif(buildsLink), port(unix.IPPROTO_TCP, 4280), drop()),
	}
}

// AttachBuilds makes the namespace of builds, or mends it, and returns a
// function that calls another one inside it. It goes with the router.
func (r *Router) AttachBuilds(ctx context.Context, namespace string) (do func(func() error) error, err error) {
	a := AddressFor(buildsNetwork, 0, buildsIndex)
	err = r.net.Attach(ctx, Attachment{
		Namespace: namespace, Interface: buildsLink, IPv4: ipv4Of(buildsIndex), IPv6: a.IPv6, NetworkID: buildsNetwork,
	})
	if err != nil {
		return nil, err
	}
	return func(f func() error) error {
		ns, err := openNamespace(namespace)
		if err != nil {
			return err
		}
		defer ns.Close()
		return within(ns, f)
	}, nil
}
