// Package loopback gives tests addresses that nothing else on the host uses
// meanwhile: test binaries, clones and whole platforms run beside each other,
// and a port of 127.0.0.1 that was free a moment ago may be anybody's the next.
// Only tests, and packages for tests, import it.
package loopback

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

var last atomic.Uint32

// host returns a loopback address, another one each time until they begin anew.
// Those of another process differ in most cases; where they do not, or are used
// again, ports still differ.
func host() netip.Addr {
	p, n := os.Getpid(), last.Add(1)
	// 64 to 127, so that neither 127.0.0.1 nor what people pick by hand is meant.
	return netip.AddrFrom4([4]byte{127, byte(64 + p>>8&63), byte(p), byte(1 + n%254)})
}

// Free returns an address and port to listen on later, also from another
// process and more than once. Nobody connects from that address, so that the
// port is not taken by an outgoing connection either.
func Free(tb testing.TB) string {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", netip.AddrPortFrom(host(), 0).String())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing was accepted
	return l.Addr().String()
}

// Refusing returns an address and port of 127.0.0.1 that refuses connections
// until the test ends: it is taken, and nobody listens.
func Refusing(tb testing.TB) *net.TCPAddr {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			tb.Error(err)
		}
	})
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		tb.Fatal(err)
	}
	in, ok := at.(*unix.SockaddrInet4)
	if !ok {
		tb.Fatal(fmt.Errorf("address of the socket: got %T", at))
	}
	return &net.TCPAddr{IP: net.IP(in.Addr[:]), Port: in.Port}
}
