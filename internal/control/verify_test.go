package control

import (
	"testing"

	root "github.com/roost-run/roost"
)

// Which port is asked, and which one instead where nobody listens for HTTPS.
func TestVerifiedPort(t *testing.T) {
	plain, forced := root.Port{Port: 80, Handlers: []string{"http"}}, root.Port{Port: 80, Handlers: []string{"http"}, ForceHTTPS: true}
	secure := root.Port{Port: 443, Handlers: []string{"tls", "http"}}
	for name, c := range map[string]struct {
		ports   []root.Port
		port    int
		tls     bool
		instead int
	}{
		"plain":         {[]root.Port{plain}, 80, false, 80},
		"both":          {[]root.Port{plain, secure}, 80, false, 80},
		"forced":        {[]root.Port{forced, secure}, 443, true, 80},
		"HTTPS only":    {[]root.Port{secure}, 443, true, 0},
		"raw TCP":       {[]root.Port{{Port: 5432}}, 0, false, 0},
		"TLS without":   {[]root.Port{{Port: 443, Handlers: []string{"tls"}}}, 0, false, 0},
		"HTTPS, forced": {[]root.Port{secure, forced}, 443, true, 80},
	} {
		config := root.Config{Services: []root.Service{{Protocol: "tcp", InternalPort: 8080, Ports: c.ports}}}
		q, service := question(&root.Release{Groups: []root.Group{{Name: "app", Config: config}}})
		if q.Port != c.port || q.TLS != c.tls {
			t.Errorf("%s: got port %d, TLS %t; want %d, %t", name, q.Port, q.TLS, c.port, c.tls)
		}
		if service != nil && plainPort(service) != c.instead {
			t.Errorf("%s: instead: got %d, want %d", name, plainPort(service), c.instead)
		}
	}
}
