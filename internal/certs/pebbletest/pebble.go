// Package pebbletest runs pebble, the ACME authority that Let's Encrypt tests
// with, inside a test, with a name server that sends every name to this host.
// It is for tests only: who imports it links all of pebble.
package pebbletest

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// Options of an authority.
type Options struct {
	HTTPPort, TLSPort int    // where it validates, in place of 80 and 443
	Validity          uint64 // of certificates, in seconds; 0: pebble's five years
	Blocked           []string
	// Nowhere are names that have no address.
	Nowhere []string
	Log     io.Writer // nil: nowhere
}

// Authority is a running pebble.
type Authority struct {
	Directory string // URL
	RootFile  string // certificates by which its own API is trusted
	Roots     []byte // PEM: what certificates that it issues end at
}

// Start runs an authority until the test ends. It sets environment variables,
// so the test cannot be parallel.
func Start(t *testing.T, o Options) *Authority {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	t.Setenv("PEBBLE_AUTHZREUSE", "0")
	if o.Log == nil {
		o.Log = io.Discard
	}
	logger := log.New(o.Log, "pebble ", log.LstdFlags)
	store := db.NewMemoryStore()
	for _, name := range o.Blocked {
		if err := store.AddBlockedDomain(name); err != nil {
			t.Fatal(err)
		}
	}
	issuer := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "the only one", ValidityPeriod: o.Validity}})
	validator := va.New(logger, o.HTTPPort, o.TLSPort, true, nameServer(t, o.Nowhere), store)
	front := wfe.New(logger, store, validator, issuer, []string{"pebble.letsencrypt.org"}, true, false, 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	a := &Authority{Directory: server.URL + wfe.DirectoryPath, RootFile: filepath.Join(t.TempDir(), "pebble.pem"), Roots: issuer.GetRootCert(0).PEM()}
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(a.RootFile, own, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// nameServer says of every name that it is at 127.0.0.1, but for those that
// are nowhere.
func nameServer(t *testing.T, nowhere []string) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // as pebble asks
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		q := r.Question[0]
		for _, name := range nowhere {
			if strings.EqualFold(q.Name, dns.Fqdn(name)) {
				m.Rcode = dns.RcodeNameError
			}
		}
		if q.Qtype == dns.TypeA && m.Rcode == dns.RcodeSuccess {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(m) // the one who asked is gone
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-ended; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("name server: %v", err)
		}
	})
	return l.Addr().String()
}
