package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
)

// soon is how close an expiry has to be to be warned of.
const soon = 14 * 24 * time.Hour

// maxPEM bounds an uploaded chain or key.
const maxPEM = 64 << 10

// Check reads an uploaded certificate and says what is wrong with it (kind
// Invalid), or what is only worth a warning: chain and key are PEM, the leaf
// comes first, the key is the leaf's, the leaf is valid now and covers
// hostname, each certificate is signed by the next. The chain it returns has
// the certificates in order, without a root.
func Check(hostname, chain, key string, now time.Time) (_ Certificate, leaf *x509.Certificate, warnings []string, err error) {
	no := func(format string, args ...any) (Certificate, *x509.Certificate, []string, error) {
		return Certificate{}, nil, nil, root.Errorf(root.Invalid, format, args...)
	}
	if len(chain) > maxPEM || len(key) > maxPEM {
		return no("the certificate or its key is larger than %d KB", maxPEM>>10)
	}
	certificates, err := parseChain(chain)
	if err != nil {
		return no("%s", root.MessageOf(err))
	}
	if !strings.Contains(key, "PRIVATE KEY-----") {
		return no("the private key is not PEM: it must begin with -----BEGIN PRIVATE KEY----- (or EC or RSA PRIVATE KEY)")
	}
	if strings.Contains(key, "ENCRYPTED") {
		return no("the private key is encrypted: remove its passphrase first (openssl pkey -in KEY -out PLAIN)")
	}
	// The key's leaf may stand anywhere in the file.
	found := slices.IndexFunc(certificates, func(c *x509.Certificate) bool {
		_, err := tls.X509KeyPair(encodeChain(c), []byte(key))
		return err == nil
	})
	if found < 0 {
		if _, err := tls.X509KeyPair(encodeChain(certificates[0]), []byte(key)); err != nil && strings.Contains(err.Error(), "failed to parse private key") {
			return no("the private key cannot be read: it must be RSA, ECDSA or Ed25519 in PKCS#8, PKCS#1 or SEC 1 form")
		}
		return no("the private key does not belong to the certificate")
	}
	leaf = certificates[found]
	ordered, complete := order(leaf, certificates)
	switch {
	case leaf.IsCA && len(leaf.DNSNames) == 0:
		return no("the certificate is an authority's, not a site's")
	case now.After(leaf.NotAfter):
		return no("the certificate expired on %s", leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		return no("the certificate is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case !slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return covers(strings.ToLower(n), hostname) }):
		return no("the certificate is for %s, not for %s", strings.Join(leaf.DNSNames, ", "), hostname)
	}
	if left := leaf.NotAfter.Sub(now); left < soon {
		warnings = append(warnings, fmt.Sprintf("the certificate expires on %s, in %d days; uploaded certificates are not renewed by themselves", leaf.NotAfter.UTC().Format(time.DateOnly), int(left.Hours()/24)))
	}
	if !complete {
		warnings = append(warnings, fmt.Sprintf("the chain is not complete: the certificate of %q is missing, and clients that do not know it will refuse the connection", ordered[len(ordered)-1].Issuer.CommonName))
	}
	return Certificate{Hostname: hostname, Source: Uploaded, Chain: string(encodeChain(ordered...)), Key: key}, leaf, warnings, nil
}

// covers reports whether a certificate's name is enough for a registered
// hostname, which may be a wildcard itself.
func covers(name, hostname string) bool { return name == hostname || Match(name, hostname) }

func parseChain(chain string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := []byte(chain); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue // a file with the key in it
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, root.Errorf(root.Invalid, "certificate %d of the chain cannot be read: %v", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, root.Errorf(root.Invalid, "the certificate is not PEM: it must begin with -----BEGIN CERTIFICATE-----")
	}
	return out, nil
}

// order puts the chain together from the leaf up, without the root. complete
// says whether it ends below a root that was given, or at an intermediate
// that is the last.
func order(leaf *x509.Certificate, all []*x509.Certificate) (chain []*x509.Certificate, complete bool) {
	chain = []*x509.Certificate{leaf}
	for last := leaf; ; {
		if bytes.Equal(last.RawIssuer, last.RawSubject) {
			return chain, true // self-signed
		}
		i := slices.IndexFunc(all, func(c *x509.Certificate) bool { return !slices.Contains(chain, c) && last.CheckSignatureFrom(c) == nil })
		if i < 0 {
			// A public authority's intermediates are signed by a root that is
			// not sent: a leaf alone is what people forget.
			return chain, len(chain) > 1
		}
		if bytes.Equal(all[i].RawIssuer, all[i].RawSubject) {
			return chain, true
		}
		last = all[i]
		chain = append(chain, last)
	}
}

func encodeChain(certificates ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certificates {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes everything
	}
	return b.Bytes()
}

// Leaf reads the first certificate of a chain.
func Leaf(chain string) (*x509.Certificate, error) {
	certificates, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	return certificates[0], nil
}

// EncodePair writes a certificate with its key as a document.
func EncodePair(c *tls.Certificate) (TLSAnswer, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return TLSAnswer{}, err
	}
	var chain bytes.Buffer
	for _, der := range c.Certificate {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a buffer takes everything
	}
	return TLSAnswer{Chain: chain.String(), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))}, nil
}
