package control

import (
	"strings"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// TestGuess: a guess that is wrong is worse than none.
func TestGuess(t *testing.T) {
	for evidence, want := range map[string]string{
		"ImportError: cannot import name 'admn' from 'django.contrib'":                                "misspelled",
		"ModuleNotFoundError: No module named 'reportlab'":                                            "lacks a package",
		"Out of memory: Killed process 12 (gunicorn)":                                                 "too little memory",
		"no chatroom is open":                                                                         "",
		"it did not pass its health check (connect: connection refused)":                              "",
		`psycopg2.OperationalError: connection to server at "db.internal" failed: Connection refused`: "does not reach",
		`psycopg2.OperationalError: FATAL:  password authentication failed for user "shop"`:           "refuses its password",
	} {
		got := guess(evidence, nil)
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q in it", evidence, got, want)
		}
	}
}

func TestWrongPort(t *testing.T) {
	c := &root.Config{Services: []root.Service{{InternalPort: 8080}}}
	for _, try := range []struct {
		name    string
		listens []orders.Listen
		config  *root.Config
		want    string
	}{
		{"another", []orders.Listen{{Proto: "tcp6", Address: "[::]:9000"}, {Proto: "tcp", Address: "0.0.0.0:9000"}}, c, "listens on port 9000, and internal_port says 8080"},
		{"none", []orders.Listen{{Proto: "udp", Address: "0.0.0.0:8080"}}, c, "has not come so far"},
		{"the right one", []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}, c, ""},
		{"no service", nil, &root.Config{}, ""},
	} {
		got := wrongPort(try.listens, try.config)
		if (try.want == "") != (got == "") || !strings.Contains(got, try.want) {
			t.Errorf("%s: got %q, want %q in it", try.name, got, try.want)
		}
	}
}
