package controlplane

import (
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/network"
)

// forPulls is how this process reaches registries that people name: as their
// machines would, but for what the configuration names, and proxies.
func forPulls(cfg *config.Config, hubs registries) *network.Outward {
	return &network.Outward{Published: publishedPorts(cfg), Trusted: append(hubs.addresses(), proxies()...)}
}

// forWebhooks is how it reaches what people want to have told. A service
// beside Roost is meant to be reached; Roost itself is not.
func forWebhooks(cfg *config.Config) *network.Outward {
	o := &network.Outward{Published: publishedPorts(cfg), Loopback: true, Trusted: proxies()}
	if p, ok := portOf(cfg.API); ok {
		o.Closed = append(o.Closed, p)
	}
	return o
}

// publishedPorts are the edge's.
func publishedPorts(cfg *config.Config) []uint16 {
	var ports []uint16
	for _, l := range cfg.Listen {
		if p, ok := portOf(l.Addr); ok {
			ports = append(ports, p)
		}
	}
	return ports
}

func portOf(address string) (uint16, bool) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return uint16(n), err == nil && n > 0
}

// addresses are where the registries of the configuration, and their mirrors,
// are connected to.
func (r registries) addresses() []string {
	var list []string
	for _, reg := range r {
		list = append(list, withPorts(reg.Host)...)
		for _, m := range reg.Mirrors {
			if u, err := url.Parse(m); err == nil {
				list = append(list, withPorts(u.Host)...)
			}
		}
	}
	return list
}

// withPorts adds the usual ports to a host without one.
func withPorts(host string) []string {
	host = strings.ToLower(host)
	if _, _, err := net.SplitHostPort(host); err == nil {
		return []string{host}
	}
	host = strings.Trim(host, "[]")
	return []string{net.JoinHostPort(host, "443"), net.JoinHostPort(host, "80")}
}

// proxies are those that the server's environment names, as net/http reads it:
// what they let through is theirs to decide.
func proxies() []string {
	var list []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		v := os.Getenv(name)
		if v == "" {
			continue
		}
		if !strings.Contains(v, "://") {
			v = "http://" + v
		}
		u, err := url.Parse(v)
		if err != nil {
			continue
		}
		list = append(list, withPorts(u.Host)...)
		if u.Port() == "" && u.Scheme == "socks5" {
			list = append(list, net.JoinHostPort(u.Hostname(), "1080"))
		}
	}
	return list
}
