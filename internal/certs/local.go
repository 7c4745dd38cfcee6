package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"
)

// How long what the local authority issues is valid. Browsers refuse leaves of
// more than 825 days from authorities that people installed.
const (
	rootLife         = 10 * 365 * 24 * time.Hour
	intermediateLife = 90 * 24 * time.Hour
	leafLife         = 30 * 24 * time.Hour
	// IntermediateRenew is what is left when an intermediate is replaced.
	IntermediateRenew = 45 * 24 * time.Hour
	// backdate allows for clocks that are behind.
	backdate = time.Hour
)

// NewRoot makes the local authority. Whoever installs it trusts it for private
// names only: its own certificate says so (RFC 5280, section 4.2.1.10), so that
// a stolen key is of no use for anybody else's site. domain is permitted, too,
// when it is private.
func NewRoot(name, domain string, now time.Time) (chain, key string, err error) {
	k, err := newKey()
	if err != nil {
		return "", "", err
	}
	permitted := slices.Clone(privateSuffixes)
	if Private(domain) && !slices.Contains(permitted, domain) {
		permitted = append(permitted, domain)
	}
	t := authority("Roost local authority "+name, now, rootLife, permitted)
	t.MaxPathLen = 1
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return "", "", fmt.Errorf("make the local authority: %w", err)
	}
	return encode(der, k)
}

// NewIntermediate makes an authority below a root that may issue for names
// (each exact, or a wildcard) only.
func NewIntermediate(rootChain, rootKey string, names []string, now time.Time) (Authority, error) {
	pair, err := tls.X509KeyPair([]byte(rootChain), []byte(rootKey))
	if err != nil {
		return Authority{}, fmt.Errorf("local authority: %w", err)
	}
	k, err := newKey()
	if err != nil {
		return Authority{}, err
	}
	permitted := make([]string, 0, len(names))
	for _, n := range names {
		permitted = append(permitted, strings.TrimPrefix(n, "*."))
	}
	slices.Sort(permitted)
	t := authority("Roost local issuer", now, intermediateLife, slices.Compact(permitted))
	t.MaxPathLenZero = true
	der, err := x509.CreateCertificate(rand.Reader, t, pair.Leaf, k.Public(), pair.PrivateKey)
	if err != nil {
		return Authority{}, fmt.Errorf("make a local issuer: %w", err)
	}
	chain, key, err := encode(der, k)
	return Authority{Names: names, Chain: chain, Key: key}, err
}

func authority(name string, now time.Time, life time.Duration, permitted []string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Roost"}, CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: permitted,
		ExcludedIPRanges: []*net.IPNet{{IP: make(net.IP, net.IPv4len), Mask: make(net.IPMask, net.IPv4len)}, {IP: make(net.IP, net.IPv6len), Mask: make(net.IPMask, net.IPv6len)}},
	}
}

// Issuer issues leaves with an Authority. It is safe for concurrent use.
type Issuer struct {
	names  []string
	issuer *x509.Certificate
	key    any
	chain  [][]byte
}

// NewIssuer reads an authority.
func NewIssuer(a Authority) (*Issuer, error) {
	pair, err := tls.X509KeyPair([]byte(a.Chain), []byte(a.Key))
	if err != nil {
		return nil, fmt.Errorf("local issuer: %w", err)
	}
	return &Issuer{names: a.Names, issuer: pair.Leaf, key: pair.PrivateKey, chain: pair.Certificate}, nil
}

// Covers reports whether the issuer may issue for name.
func (i *Issuer) Covers(name string) bool {
	return slices.ContainsFunc(i.names, func(n string) bool { return Match(n, name) })
}

// Issue makes a certificate for one name.
func (i *Issuer) Issue(name string, now time.Time) (*tls.Certificate, error) {
	if now.After(i.issuer.NotAfter) {
		return nil, errors.New("the local issuer has expired")
	}
	c, err := leaf(name, now, i.issuer, i.key)
	if err != nil {
		return nil, err
	}
	c.Certificate = append(c.Certificate, i.chain...)
	return c, nil
}

// SelfSigned makes a certificate that nobody trusts, for ports that ask for
// one (tls_options.default_self_signed).
func SelfSigned(name string, now time.Time) (*tls.Certificate, error) {
	return leaf(name, now, nil, nil)
}

func leaf(name string, now time.Time, parent *x509.Certificate, parentKey any) (*tls.Certificate, error) {
	k, err := newKey()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Roost"}}, DNSNames: []string{name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if parent == nil {
		t.Subject.CommonName = "self-signed"
		parent, parentKey = t, k
	} else if t.NotAfter.After(parent.NotAfter) {
		t.NotAfter = parent.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, k.Public(), parentKey)
	if err != nil {
		return nil, fmt.Errorf("issue for %s: %w", name, err)
	}
	parsed, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: parsed}, err
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	b[0] &= 0x7f           // positive
	return new(big.Int).SetBytes(b[:])
}

func encode(der []byte, k *ecdsa.PrivateKey) (chain, key string, err error) {
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	var c, p bytes.Buffer
	err = errors.Join(pem.Encode(&c, &pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.Encode(&p, &pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	return c.String(), p.String(), err
}
