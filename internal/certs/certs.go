// Package certs is what control and edge have in common about TLS: the
// documents of the certificate feed, what a certificate and its key must
// satisfy, the local authority's certificates, and which names are private.
//
// It does no I/O and starts no goroutine. certs/issue (control) obtains and
// keeps certificates, certs/serve (edge) presents them.
package certs

import (
	"errors"
	"log/slog"
	"strings"
)

// Where control serves the edge.
const (
	// FeedPath streams Lines.
	FeedPath = "/internal/certs"
	// HTTPChallengePath and TLSChallengePath answer what a certificate
	// authority asks: GET with the query host, and token for the former.
	HTTPChallengePath = "/internal/acme/http"
	TLSChallengePath  = "/internal/acme/tls-alpn"
)

// ALPN is the protocol in which an authority validates by TLS-ALPN-01 (RFC 8737).
const ALPN = "acme-tls/1"

// OwnName is what the platform asks its own edges for when only the app behind
// matters: they have a certificate for it that nobody trusts, whatever else
// they have. The name leads nowhere (RFC 6761).
const OwnName = "edge.roost.invalid"

// ErrNoCertificate ends a handshake for a name that nobody has a certificate of.
var ErrNoCertificate = errors.New("no certificate for this name")

// WellKnown begins the path in which an authority validates by HTTP-01 (RFC
// 8555, section 8.3).
const WellKnown = "/.well-known/acme-challenge/"

// Source says where a certificate comes from.
type Source string

// The sources. An uploaded certificate is used before an issued one.
const (
	Uploaded Source = "custom"
	ACME     Source = "acme"
)

// Certificate is a chain with its private key, for one hostname.
type Certificate struct {
	Hostname string // as registered: "shop.example.com", "*.example.com"
	Source   Source
	Chain    string // PEM, the leaf first
	Key      string // PEM
}

// LogValue keeps the key out of logs.
func (c Certificate) LogValue() slog.Value {
	return slog.GroupValue(slog.String("hostname", c.Hostname), slog.String("source", string(c.Source)))
}

// String keeps the key out of whatever prints it.
func (c Certificate) String() string { return "certificate of " + c.Hostname }

// Authority lets an edge issue certificates for private names by itself: an
// intermediate of the local authority that is good for nothing else.
type Authority struct {
	// Names are what it may issue for: "shop.lan", or "*.localhost" for one
	// label in the star's place.
	Names []string
	Chain string // PEM, without the root
	Key   string // PEM
}

// LogValue keeps the key out of logs.
func (a Authority) LogValue() slog.Value { return slog.AnyValue(a.Names) }

// String keeps the key out of whatever prints it.
func (a Authority) String() string { return "issuer for " + strings.Join(a.Names, ", ") }

// Format is the version of a Line and of the edge's file.
const Format = 1

// Line is one message of the feed. Those with Full replace everything that
// was known once the one with Done has come; later ones are changes.
type Line struct {
	Format    int
	Full      bool          `json:",omitempty"`
	Done      bool          `json:",omitempty"`
	Put       []Certificate `json:",omitempty"`
	Remove    []string      `json:",omitempty"` // hostnames
	Authority *Authority    `json:",omitempty"` // nil in a change: as it was
}

// HTTPAnswer answers HTTPChallengePath.
type HTTPAnswer struct{ KeyAuthorization string }

// TLSAnswer answers TLSChallengePath: the certificate to present.
type TLSAnswer struct{ Chain, Key string }

// Match reports whether a hostname as registered covers name: it is the same,
// or a wildcard with one label in the star's place. Both are in lower case.
func Match(hostname, name string) bool {
	if suffix, ok := strings.CutPrefix(hostname, "*"); ok {
		first, rest, ok := strings.Cut(name, ".")
		return ok && first != "" && rest == suffix[1:]
	}
	return hostname == name
}

// Normal is a name as a handshake sends it, in the form names are kept in.
func Normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// privateSuffixes are the names that no public authority issues for: reserved
// by RFC 6761, 6762, 8375 and by ICANN for private use, or in that use for long.
var privateSuffixes = []string{"localhost", "test", "local", "internal", "home.arpa", "lan", "home", "corp", "private", "intranet", "example", "invalid"}

// Private reports whether only the local authority can issue for name.
func Private(name string) bool {
	name = strings.TrimPrefix(name, "*.")
	if !strings.Contains(name, ".") {
		return true
	}
	for _, s := range privateSuffixes {
		if n := len(name) - len(s); n > 0 && name[n-1] == '.' && name[n:] == s {
			return true
		}
	}
	return false
}
