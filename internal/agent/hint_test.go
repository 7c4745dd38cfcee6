package agent

import (
	"testing"

	"github.com/roost-run/roost/internal/orders"
)

// TestHint: what a version does that does not answer at its port.
func TestHint(t *testing.T) {
	for _, c := range []struct {
		listens []orders.Listen
		want    string
	}{
		{nil, "it listens on no port"},
		{[]orders.Listen{{Proto: "udp", Address: "0.0.0.0:8080"}}, "it listens on no port"},
		{[]orders.Listen{{Proto: "tcp", Address: "127.0.0.1:8080"}}, "it listens on 127.0.0.1:8080 only: make it listen on 0.0.0.0:8080"},
		{[]orders.Listen{{Proto: "tcp6", Address: "[::]:9000"}}, "it listens on [::]:9000, and internal_port has to name the port that it uses"},
	} {
		if got := hint(c.listens, map[int]bool{8080: true}); got != c.want {
			t.Errorf("%v: got %q, want %q", c.listens, got, c.want)
		}
	}
}
