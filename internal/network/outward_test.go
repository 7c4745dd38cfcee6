package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

func TestOutward(t *testing.T) {
	t.Parallel()
	own := func() ([]net.Addr, error) {
		_, a, _ := net.ParseCIDR("203.0.113.7/32")
		_, b, _ := net.ParseCIDR("2001:db8::7/128")
		return []net.Addr{a, b}, nil
	}
	strict := &Outward{Published: []uint16{80, 443}, own: own}
	people := &Outward{Published: []uint16{80, 443}, Loopback: true, Closed: []uint16{4280}, own: own}
	for _, tc := range []struct {
		address        string
		strict, people bool
	}{
		{"198.51.100.1:443", true, true},
		{"[2001:db8::1]:443", true, true},
		{"10.0.0.5:5000", true, true}, // the host's neighbours, as for machines
		{"[fd12::5]:5000", true, true},
		{"203.0.113.7:443", true, true}, // an app of this host
		{"203.0.113.7:5432", false, true},
		{"[2001:db8::7]:5432", false, true},
		{"203.0.113.7:4280", false, false},
		{"127.0.0.1:4280", false, false},
		{"127.0.0.1:80", false, true},
		{"127.0.0.1:9093", false, true},
		{"127.9.9.9:22", false, true},
		{"[::1]:4280", false, false},
		{"[::ffff:127.0.0.1]:4280", false, false},
		{"0.0.0.0:4280", false, false},
		{"[::]:4280", false, false},
		{"169.254.169.254:80", false, false},
		{"169.254.170.2:80", false, false},
		{"169.254.64.2:4280", false, false},
		{"[::ffff:169.254.169.254]:80", false, false},
		{"[fd00:ec2::254]:80", false, false},
		{"[fd20:ce::254]:80", false, false},
		{"[fd00:c1::a9fe:a9fe]:80", false, false},
		{"[fd00:a9fe:a9fe::1]:80", false, false},
		{"[fd00:42::42]:80", false, false},
		{"[fe80::a9fe:a9fe%eth0]:80", false, false},
		{"[64:ff9b::a9fe:a9fe]:80", false, false},
		{"100.100.100.200:80", false, false},
		{"168.63.129.16:80", false, false},
		{"192.0.0.192:80", false, false},
		{"172.19.0.1:4280", false, false},
		{"[fdaa::3]:4280", false, false},
		{"224.0.0.1:80", false, false},
		{"255.255.255.255:80", false, false},
		{"[ff02::1]:80", false, false},
	} {
		for o, want := range map[*Outward]bool{strict: tc.strict, people: tc.people} {
			err := o.Check(tc.address)
			if got := err == nil; got != want || err != nil && !root.IsKind(err, root.Forbidden) {
				t.Errorf("%s (loopback %v): got %v, want allowed %v", tc.address, o.Loopback, err, want)
			}
		}
	}
	if err := strict.Check("localhost:80"); err == nil {
		t.Error("a name was allowed")
	}
}

// What is checked is where a connection goes, whatever the name said.
func TestOutwardDial(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	local := "localhost:" + port
	for name, tc := range map[string]struct {
		o    Outward
		want bool
	}{
		"strict":   {Outward{}, false},
		"loopback": {Outward{Loopback: true}, true},
		"closed":   {Outward{Loopback: true, Closed: []uint16{netip.MustParseAddrPort(l.Addr().String()).Port()}}, false},
		"trusted":  {Outward{Trusted: []string{local}}, true},
	} {
		for _, address := range []string{local, strings.ToUpper(local)} {
			c, err := tc.o.DialContext(context.WithoutCancel(t.Context()), "tcp", address)
			if got := err == nil; got != tc.want {
				t.Errorf("%s: got %v, want connected %v", name, err, tc.want)
			}
			if err == nil {
				_ = c.Close()
			} else if e, ok := errors.AsType[*root.Error](err); !ok || e.Kind != root.Forbidden {
				t.Errorf("%s: got %v, want Forbidden", name, err)
			}
		}
	}
}
