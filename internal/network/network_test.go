package network

import (
	"net/netip"
	"testing"
)

func TestAddressFor(t *testing.T) {
	for _, c := range []struct {
		network, host, index uint32
		ipv4, ipv6           string
	}{
		{1, 0xa7b, 1, "172.19.0.4", "fdaa:0:1:0:a7b:0:1:2"},
		{0x18, 0x0a7b7df0, 0x66b83b, "", "fdaa:0:18:a7b:7df0:66:b83b:2"},
		{7, 1, 126, "172.19.0.254", "fdaa:0:7:0:1:0:7e:2"},
		{7, 1, 127, "172.19.1.0", "fdaa:0:7:0:1:0:7f:2"},
		{7, 1, MaxIndex, "172.19.255.252", "fdaa:0:7:0:1:0:7ffd:2"},
		{7, 1, MaxIndex + 1, "", "fdaa:0:7:0:1:0:7ffe:2"},
		{7, 1, 0, "", "fdaa:0:7:0:1::2"},
	} {
		got := AddressFor(c.network, c.host, c.index)
		if got.IPv4 != c.ipv4 || got.IPv6 != c.ipv6 || got.Index != c.index {
			t.Errorf("AddressFor(%d, %d, %d): got %+v, want %s and %s", c.network, c.host, c.index, got, c.ipv4, c.ipv6)
		}
		if n := NetworkIDOf(netip.MustParseAddr(got.IPv6)); n != c.network {
			t.Errorf("network of %s: got %d, want %d", got.IPv6, n, c.network)
		}
	}
	seen := map[string]bool{GatewayIPv4: true}
	private := netip.MustParsePrefix(PrivateIPv4)
	for i := uint32(1); i <= MaxIndex; i++ {
		a := AddressFor(1, 1, i).IPv4
		for _, ip := range []string{a, SecondIPv4(a)} {
			if seen[ip] || !private.Contains(netip.MustParseAddr(ip)) {
				t.Fatalf("index %d: address %s is taken or outside", i, ip)
			}
			seen[ip] = true
		}
	}
}

func TestNetworkIDOfForeignAddress(t *testing.T) {
	for _, a := range []string{"2001:db8::1", "172.19.0.4", "fe80::1"} {
		if got := NetworkIDOf(netip.MustParseAddr(a)); got != 0 {
			t.Errorf("network of %s: got %d, want 0", a, got)
		}
	}
}
