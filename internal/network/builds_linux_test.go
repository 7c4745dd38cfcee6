package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestBuilds: what a step of a build reaches, and what not.
func TestBuilds(t *testing.T) {
	t.Parallel()
	w := newHost(t)
	w.o.BuildsReach = []netip.Prefix{netip.MustParsePrefix("10.9.9.9/32"), netip.MustParsePrefix("fd00::/16"), netip.MustParsePrefix("169.254.0.0/16")}
	w.o.Published = []uint16{8443}
	w.open()
	open := true
	t.Cleanup(func() {
		if open {
			must(t, w.router.Close(context.Background()))
		}
	})
	path := filepath.Join(filepath.Dir(w.o.Namespace), "builds")
	do, err := w.router.AttachBuilds(t.Context(), path)
	must(t, err)
	builds, err := openNamespace(path)
	must(t, err)
	t.Cleanup(func() { must(t, builds.Close()) })
	inside := false
	must(t, do(func() error { inside = true; return nil }))
	if !inside {
		t.Error("the function was not called")
	}
	m := w.attach(1, 7)
	serve(t, m.ns, 9000)
	for _, p := range []int{53, 4280} {
		serve(t, w.net().ns, p)
	}
	serve(t, w.internet, 9000)
	serve(t, w.host, 2222)
	echoTCP(t, w.host, at("", 8443))
	// A private network behind the host, with two addresses.
	h := handle(t, w.internet)
	l, err := h.LinkByName("eth0")
	must(t, err)
	for _, a := range []string{"10.9.9.9/32", "10.9.9.10/32", "fdab:9::9/128"} {
		must(t, addAddress(h, l, netip.MustParsePrefix(a)))
	}

	own := ipv4Of(buildsIndex)
	reaches(t, "DNS", builds, "udp", at(GatewayIPv4, 53), own)
	reaches(t, "DNS", builds, "tcp", at(GatewayIPv4, 53), own)
	refused(t, "API", builds, "tcp", at(GatewayIPv4, 4280))
	reaches(t, "internet", builds, "tcp", at(internet4, 9000), hostPublic4)
	refused(t, "a machine", builds, "tcp", at(m.IPv4, 9000))
	refused(t, "a machine", builds, "tcp", at(m.IPv6, 9000))
	reaches(t, "private address, from a machine", m.ns, "tcp", at("10.9.9.10", 9000), hostPublic4)
	refused(t, "private address", builds, "tcp", at("10.9.9.10", 9000))
	refused(t, "private address", builds, "udp", at("10.9.9.10", 9000))
	refused(t, "private address", builds, "tcp", at("fdab:9::9", 9000))
	reaches(t, "a private address that is allowed", builds, "tcp", at("10.9.9.9", 9000), hostPublic4)
	for _, ip := range clouds { // whatever builds may reach besides
		a := netip.MustParseAddr(ip)
		must(t, addAddress(h, l, netip.PrefixFrom(a, a.BitLen())))
		refused(t, "metadata", builds, "tcp", at(ip, 9000))
	}
	u := addressesOf(w.o.Name, uplinkSubnet(w.o.Name, 0))
	for _, ip := range []string{hostPublic4, u.host4.String()} {
		refused(t, "a service of the host", builds, "tcp", at(ip, 2222))
	}
	// The agent, which sweeps links of machines that are gone, does not see it.
	names, err := w.net().Attachments(t.Context())
	must(t, err)
	if len(names) != 1 || names[0] != m.Interface {
		t.Errorf("attachments: got %v, want the machine's alone", names)
	}
	_, err = w.router.AttachBuilds(t.Context(), path) // again: it is mended
	must(t, err)
	reaches(t, "internet, after it was attached again", builds, "tcp", at(internet4, 9000), hostPublic4)
	open = false
	must(t, w.router.Close(t.Context()))
	refused(t, "internet, after the router", builds, "tcp", at(internet4, 9000))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace after the router: got %v, want none", err)
	}
}
