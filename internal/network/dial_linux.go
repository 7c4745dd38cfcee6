package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// DialHost connects from the host's namespace: to public name servers,
// registries, whatever the host itself reaches. network is as in net.Dial. A
// host name in addr is looked up with the host's own resolvers.
func (n *Network) DialHost(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return n.dialAddress(ctx, network, addr)
	}
	resolver := net.Resolver{PreferGo: true, Dial: n.dialAddress}
	ips, err := resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ip := range ips {
		c, err := n.dialAddress(ctx, network, net.JoinHostPort(ip.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// DialMachine connects from the router's namespace to an address of a machine.
func (n *Network) DialMachine(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialIn(ctx, n.o.Namespace, network, addr)
}

func (n *Network) dialAddress(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialIn(ctx, n.o.HostNamespace, network, addr)
}

// dialIn connects to an address without names: the dialer then makes the
// socket on the calling goroutine, which is the thread inside the namespace.
func dialIn(ctx context.Context, namespace, network, addr string) (conn net.Conn, err error) {
	ns, err := openNamespace(namespace)
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", namespace, err)
	}
	defer ns.Close()
	err = within(ns, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}
