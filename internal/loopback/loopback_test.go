package loopback

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFree(t *testing.T) {
	seen := map[string]bool{}
	for range 300 {
		addr := Free(t)
		if seen[addr] {
			t.Fatalf("%s came twice", addr)
		}
		seen[addr] = true
		for range 2 {
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			_ = l.Close()
		}
	}
}

func TestRefusing(t *testing.T) {
	addr := Refusing(t).String()
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect: got %v, %v, want refused", c, err)
	}
	for _, host := range []string{addr, ":" + addr[len("127.0.0.1:"):]} {
		if l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", host); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("listen on %s: got %v, %v, want address in use", host, l, err)
		}
	}
}
