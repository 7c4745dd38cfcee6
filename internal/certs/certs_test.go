package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		hostname, name string
		want           bool
	}{
		{"shop.example.com", "shop.example.com", true},
		{"shop.example.com", "a.shop.example.com", false},
		{"*.example.com", "shop.example.com", true},
		{"*.example.com", "a.b.example.com", false},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.localhost", "shop.localhost", true},
		{"*.localhost", "localhost", false},
		{"*.example.com", "shop.example.org", false},
		{"*.example.com", "shopexample.com", false},
	} {
		if got := certs.Match(c.hostname, c.name); got != c.want {
			t.Errorf("%s covers %s: got %t, want %t", c.hostname, c.name, got, c.want)
		}
	}
}

func TestPrivate(t *testing.T) {
	for name, want := range map[string]bool{
		"localhost": true, "shop.localhost": true, "shop.lan": true, "*.shop.internal": true, "a.home.arpa": true, "router": true,
		"shop.example.com": false, "lan.example.org": false, "shop.xlan": false, "*.example.com": false, "arpa.org": false,
	} {
		if got := certs.Private(name); got != want {
			t.Errorf("%s: got %t, want %t", name, got, want)
		}
	}
}

// The local authority can issue for private names only, an issuer lent to an
// edge only for its own, whoever holds the keys.
func TestLocalAuthorityIsConstrained(t *testing.T) {
	chain, key, err := certs.NewRoot("test", "localhost", now)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(chain))
	verify := func(names []string, name string) error {
		t.Helper()
		a, err := certs.NewIntermediate(chain, key, names, now)
		if err != nil {
			t.Fatal(err)
		}
		i, err := certs.NewIssuer(a)
		if err != nil {
			t.Fatal(err)
		}
		c, err := i.Issue(name, now)
		if err != nil {
			t.Fatal(err)
		}
		between := x509.NewCertPool()
		for _, der := range c.Certificate[1:] {
			parsed, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			between.AddCert(parsed)
		}
		_, err = c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, Intermediates: between, CurrentTime: now})
		return err
	}
	if err := verify([]string{"*.localhost", "shop.lan"}, "shop.localhost"); err != nil {
		t.Errorf("shop.localhost: %v", err)
	}
	if err := verify([]string{"*.localhost", "shop.lan"}, "shop.lan"); err != nil {
		t.Errorf("shop.lan: %v", err)
	}
	if err := verify([]string{"*.localhost"}, "shop.lan"); err == nil {
		t.Error("an issuer for localhost issued for shop.lan, and it verifies")
	}
	// Somebody with the root's key makes an issuer for a public name.
	if err := verify([]string{"bank.example.com"}, "bank.example.com"); err == nil {
		t.Error("the local authority issued for a public name, and it verifies")
	}
}

func TestIssuerCovers(t *testing.T) {
	chain, key, err := certs.NewRoot("test", "localhost", now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := certs.NewIntermediate(chain, key, []string{"localhost", "*.localhost"}, now)
	if err != nil {
		t.Fatal(err)
	}
	i, err := certs.NewIssuer(a)
	if err != nil {
		t.Fatal(err)
	}
	if !i.Covers("shop.localhost") || !i.Covers("localhost") || i.Covers("a.b.localhost") || i.Covers("shop.lan") {
		t.Error("the issuer covers other names than it was made for")
	}
	if _, err := i.Issue("shop.localhost", now.AddDate(1, 0, 0)); err == nil {
		t.Error("an issuer that has expired issued")
	}
}

// authority signs leaves for TestCheck.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func sign(t *testing.T, template *x509.Certificate, parent *authority, public any, private any) []byte {
	t.Helper()
	issuer, key := template, private
	if parent != nil {
		issuer, key = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newAuthority(t *testing.T, name string, parent *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.ParseCertificate(sign(t, template, parent, key.Public(), key))
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func pemOf(kind string, blocks ...[]byte) string {
	var b strings.Builder
	for _, der := range blocks {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return b.String()
}

func TestCheck(t *testing.T) {
	top := newAuthority(t, "Top", nil)
	middle := newAuthority(t, "Middle", top)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(from, to time.Time, names ...string) []byte {
		return sign(t, &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: names, NotBefore: from, NotAfter: to}, middle, key.Public(), nil)
	}
	good := leaf(now.AddDate(0, -1, 0), now.AddDate(0, 6, 0), "shop.example.com", "*.wild.example.com")
	keyPEM := pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherDER, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	full := pemOf("CERTIFICATE", good, middle.cert.Raw)

	for _, c := range []struct {
		name, host, chain, key string
		err, warning           string
		length                 int // of the chain
	}{
		{name: "good", chain: full, key: keyPEM, length: 2},
		{name: "wildcard", host: "a.wild.example.com", chain: full, key: keyPEM, length: 2},
		{name: "for a wildcard", host: "*.wild.example.com", chain: full, key: keyPEM, length: 2},
		{name: "out of order, with the root", chain: pemOf("CERTIFICATE", top.cert.Raw, middle.cert.Raw, good), key: keyPEM, length: 2},
		{name: "key in the same file", chain: keyPEM + full, key: keyPEM, length: 2},
		{name: "leaf alone", chain: pemOf("CERTIFICATE", good), key: keyPEM, length: 1, warning: "Middle"},
		{name: "expires soon", chain: pemOf("CERTIFICATE", leaf(now.AddDate(0, -1, 0), now.AddDate(0, 0, 5), "shop.example.com"), middle.cert.Raw), key: keyPEM, length: 2, warning: "in 5 days"},
		{name: "other name", host: "cafe.example.com", chain: full, key: keyPEM, err: "for shop.example.com, *.wild.example.com, not for cafe.example.com"},
		{name: "two labels below", host: "a.b.wild.example.com", chain: full, key: keyPEM, err: "not for a.b.wild"},
		{name: "other key", chain: full, key: pemOf("PRIVATE KEY", otherDER), err: "does not belong"},
		{name: "expired", chain: pemOf("CERTIFICATE", leaf(now.AddDate(-1, 0, 0), now.AddDate(0, 0, -1), "shop.example.com")), key: keyPEM, err: "expired on 2026-11-20"},
		{name: "not yet", chain: pemOf("CERTIFICATE", leaf(now.AddDate(0, 0, 1), now.AddDate(1, 0, 0), "shop.example.com")), key: keyPEM, err: "not valid before"},
		{name: "no PEM", chain: "hello", key: keyPEM, err: "not PEM"},
		{name: "torn", chain: pemOf("CERTIFICATE", good[:100]), key: keyPEM, err: "certificate 1 of the chain cannot be read"},
		{name: "no key", chain: full, key: "hello", err: "the private key is not PEM"},
		{name: "encrypted key", chain: full, key: "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----\n", err: "passphrase"},
		{name: "torn key", chain: full, key: pemOf("PRIVATE KEY", otherDER[:20]), err: "cannot be read"},
		{name: "too large", chain: full + strings.Repeat(" ", 70<<10), key: keyPEM, err: "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := c.host
			if host == "" {
				host = "shop.example.com"
			}
			got, _, warnings, err := certs.Check(host, c.chain, c.key, now)
			if c.err != "" {
				if !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(got.Chain, "BEGIN CERTIFICATE"); n != c.length {
				t.Errorf("the chain has %d certificates, want %d", n, c.length)
			}
			if first, err := certs.Leaf(got.Chain); err != nil || first.IsCA {
				t.Errorf("the chain begins with %v, %v", first.Subject, err)
			}
			if text := strings.Join(warnings, "; "); c.warning == "" && text != "" || !strings.Contains(text, c.warning) {
				t.Errorf("warnings: got %q, want %q", text, c.warning)
			}
		})
	}
}

// Whatever prints one of the documents prints no key.
func TestNoKeyInLogs(t *testing.T) {
	var b strings.Builder
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("x", "c", certs.Certificate{Hostname: "shop.example.com", Key: "geheim"}, "a", certs.Authority{Names: []string{"*.localhost"}, Key: "geheim"})
	if strings.Contains(b.String(), "geheim") || !strings.Contains(b.String(), "shop.example.com") {
		t.Errorf("got %s", b.String())
	}
	if s := fmt.Sprint(certs.Certificate{Hostname: "shop.example.com", Key: "geheim"}); strings.Contains(s, "geheim") {
		t.Errorf("printed: %s", s)
	}
}
