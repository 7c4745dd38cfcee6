package control

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/certs"
)

// Certs are the verbs on hostnames and their certificates.
type Certs struct{ Deps }

// Issuer keeps certificates and obtains them.
type Issuer interface {
	// Obtains reports whether certificates are obtained by ACME here at all.
	Obtains() bool
	// Certificate reads one of a hostname; kind NotFound.
	Certificate(ctx context.Context, hostname string, source certs.Source) (*certs.Certificate, error)
	// Upload stores an uploaded one.
	Upload(ctx context.Context, c certs.Certificate) (rev int64, err error)
	// Try has one obtained now, whatever failed before.
	Try(hostname string)
	// Root is the local authority's certificate, PEM.
	Root() string
	// Reaches asks the name over plain HTTP, as an authority would, and returns
	// nil if this platform answered.
	Reaches(ctx context.Context, hostname string) error
}

// CertStatus is what is known of a hostname.
type CertStatus struct {
	Hostname root.Hostname
	Private  bool // served by the local authority, unless a certificate was uploaded
	Uploaded *CertInfo
	Issued   *CertInfo
	Attempt  root.CertAttempt
	Obtains  bool // by ACME, on this platform
	Warnings []string
	DNS      *NameCheck // of Check only
}

// Configured reports whether HTTPS works for the name as far as certificates go.
func (c *CertStatus) Configured() bool { return c.Private || c.Uploaded != nil || c.Issued != nil }

// CertInfo is what a certificate says.
type CertInfo struct {
	Issuer    string
	Names     []string
	KeyType   string // "ecdsa", "rsa", "ed25519"
	NotBefore time.Time
	NotAfter  time.Time
}

// NameCheck is where a hostname leads.
type NameCheck struct {
	A, AAAA []string
	CNAME   string   // "" when it has none
	Host    []string // the public addresses that this host knows of itself
	Here    bool     // all of its addresses are this host's
	HTTP    bool     // a request to port 80 of the name was answered here
	Problem string   // what is wrong, for people; "" for nothing
	Remedy  string   // what to do about it
}

const (
	// maxHostnames of an app: they stand in its record, which every host has.
	maxHostnames = 500
	checkTimeout = 10 * time.Second
)

// parseHostname reads a hostname as people write it, in any script.
func parseHostname(s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSpace(s), ".")
	star := ""
	if rest, ok := strings.CutPrefix(s, "*."); ok {
		star, s = "*.", rest
	}
	if strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) >= 0 {
		ascii, err := idna.Lookup.ToASCII(s)
		if err != nil {
			return "", &root.Error{Kind: root.Invalid, Message: "the hostname cannot be written in ASCII: " + err.Error(), Err: err}
		}
		s = ascii
	}
	return root.ParseHostname(star + s)
}

// hostname parses a name and checks that it can lead to an app. Below the
// platform's own domain an app has its own name only: adding that is how it
// gets a certificate where the domain is a public one.
func (s *Certs) hostname(text string, app root.AppName) (string, error) {
	name, err := parseHostname(text)
	if err != nil {
		return "", err
	}
	own := string(app) + "." + s.Domain
	if rest := strings.TrimPrefix(name, "*."); name != own && (rest == s.Domain || strings.HasSuffix(rest, "."+s.Domain)) {
		return "", root.Errorf(root.Invalid, "%s is below this platform's own domain %s: app %s answers at %s there, and at no other name", name, s.Domain, app, own)
	}
	return name, nil
}

// Add makes a hostname lead to an app. For a public one a certificate is
// obtained at once, unless one is uploaded.
func (s *Certs) Add(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (CertStatus, error) {
	found, err := s.app(a, auth.CertWrite, app)
	if err != nil {
		return CertStatus{}, err
	}
	name, err := s.hostname(hostname, app)
	if err != nil {
		return CertStatus{}, err
	}
	if err := room(found, name); err != nil {
		return CertStatus{}, err
	}
	h := root.Hostname{Name: name, App: app, CreatedAt: s.Now().UTC()}
	h.ACME = !certs.Private(name) && !strings.HasPrefix(name, "*.")
	rev, err := s.Store.PutHostname(ctx, h)
	if err != nil {
		return CertStatus{}, err
	}
	if err := s.read(ctx, rev); err != nil {
		return CertStatus{}, err
	}
	if h.ACME {
		s.Issuer.Try(name)
	}
	return s.status(ctx, app, name)
}

func room(app *root.App, name string) error {
	if len(app.Hostnames) >= maxHostnames && !slices.Contains(app.Hostnames, name) {
		return root.Errorf(root.Exhausted, "app %s has %d hostnames, which is the most one may have", app.Name, len(app.Hostnames))
	}
	return nil
}

// Import takes an uploaded certificate with its key for a hostname, which is
// added if the app does not have it. It is used in place of an obtained one.
func (s *Certs) Import(ctx context.Context, a auth.Actor, app root.AppName, hostname, chain, key string) (CertStatus, error) {
	found, err := s.app(a, auth.CertWrite, app)
	if err != nil {
		return CertStatus{}, err
	}
	name, err := s.hostname(hostname, app)
	if err != nil {
		return CertStatus{}, err
	}
	c, _, warnings, err := certs.Check(name, chain, key, s.Now())
	if err != nil {
		return CertStatus{}, err
	}
	if err := room(found, name); err != nil {
		return CertStatus{}, err
	}
	if !slices.Contains(found.Hostnames, name) {
		if _, err := s.Store.PutHostname(ctx, root.Hostname{Name: name, App: app, CreatedAt: s.Now().UTC()}); err != nil {
			return CertStatus{}, err
		}
	}
	rev, err := s.Issuer.Upload(ctx, c)
	if err != nil {
		return CertStatus{}, err
	}
	if err := s.read(ctx, rev); err != nil {
		return CertStatus{}, err
	}
	st, err := s.status(ctx, app, name)
	st.Warnings = warnings
	return st, err
}

// own finds an app's hostname that the actor may act on.
func (s *Certs) own(a auth.Actor, p auth.Permission, app root.AppName, hostname string) (string, error) {
	found, err := s.app(a, p, app)
	if err != nil {
		return "", err
	}
	name, err := parseHostname(hostname)
	if err != nil {
		return "", err
	}
	if !slices.Contains(found.Hostnames, name) {
		return "", root.Errorf(root.NotFound, "app %s has no hostname %s: add it with \"roost certs add %s -a %s\"", app, name, name, app)
	}
	return name, nil
}

// Get returns what is known of a hostname.
func (s *Certs) Get(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (CertStatus, error) {
	name, err := s.own(a, auth.CertRead, app, hostname)
	if err != nil {
		return CertStatus{}, err
	}
	return s.status(ctx, app, name)
}

// List returns an app's hostnames in order.
func (s *Certs) List(ctx context.Context, a auth.Actor, app root.AppName) ([]CertStatus, error) {
	found, err := s.app(a, auth.CertRead, app)
	if err != nil {
		return nil, err
	}
	out := make([]CertStatus, 0, len(found.Hostnames))
	for _, name := range found.Hostnames {
		st, err := s.status(ctx, app, name)
		if root.IsKind(err, root.NotFound) {
			continue // removed a moment ago
		}
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// Check returns what is known of a hostname and where it leads, and has a
// certificate that is missing tried for at once.
func (s *Certs) Check(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (CertStatus, error) {
	name, err := s.own(a, auth.CertRead, app, hostname)
	if err != nil {
		return CertStatus{}, err
	}
	st, err := s.status(ctx, app, name)
	if err != nil || strings.HasPrefix(name, "*.") {
		return st, err
	}
	st.DNS = s.lead(ctx, name)
	if st.Private {
		st.DNS.Problem, st.DNS.Remedy = "", "" // whoever uses it has it in a hosts file or a name server of their own
	}
	// A failure that waits for its next attempt does so for good reasons, unless
	// what it waited for has come.
	if st.Hostname.ACME && st.Issued == nil && st.Obtains && st.DNS.HTTP && st.Attempt.Code != "rate_limited" &&
		a.Allow(auth.CertWrite, s.orgOfApp(app), app, "") == nil {
		s.Issuer.Try(name)
	}
	return st, nil
}

func (s *Certs) orgOfApp(app root.AppName) root.OrgSlug {
	if found := s.Catalog.Snapshot().App(app); found != nil {
		return found.Org
	}
	return ""
}

// Remove takes a hostname away from an app, with its certificates.
func (s *Certs) Remove(ctx context.Context, a auth.Actor, app root.AppName, hostname string) error {
	name, err := s.own(a, auth.CertWrite, app, hostname)
	if err != nil {
		return err
	}
	rev, err := s.Store.DeleteHostname(ctx, app, name)
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}

// RemoveUploaded forgets the uploaded certificate of a hostname.
func (s *Certs) RemoveUploaded(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (CertStatus, error) {
	name, err := s.own(a, auth.CertWrite, app, hostname)
	if err != nil {
		return CertStatus{}, err
	}
	if _, err := s.Store.DeleteUpload(ctx, name); err != nil {
		return CertStatus{}, err
	}
	return s.status(ctx, app, name)
}

// RemoveACME ends that a certificate is obtained for a hostname; one that was
// stays until it expires.
func (s *Certs) RemoveACME(ctx context.Context, a auth.Actor, app root.AppName, hostname string) (CertStatus, error) {
	name, err := s.own(a, auth.CertWrite, app, hostname)
	if err != nil {
		return CertStatus{}, err
	}
	if _, err := s.Store.PutHostname(ctx, root.Hostname{Name: name, App: app}); err != nil {
		return CertStatus{}, err
	}
	return s.status(ctx, app, name)
}

// Root is the local authority's certificate, PEM: no secret.
func (s *Certs) Root() string { return s.Issuer.Root() }

func (s *Certs) status(ctx context.Context, app root.AppName, name string) (CertStatus, error) {
	h, err := s.Store.Hostname(ctx, name)
	if err != nil {
		return CertStatus{}, err
	}
	if h.App != app {
		return CertStatus{}, root.Errorf(root.NotFound, "app %s has no hostname %s", app, name)
	}
	st := CertStatus{Hostname: h, Private: certs.Private(name), Obtains: s.Issuer.Obtains()}
	for source, info := range map[certs.Source]**CertInfo{certs.Uploaded: &st.Uploaded, certs.ACME: &st.Issued} {
		c, err := s.Issuer.Certificate(ctx, name, source)
		if root.IsKind(err, root.NotFound) {
			continue
		}
		if err != nil {
			return CertStatus{}, err
		}
		leaf, err := certs.Leaf(c.Chain)
		if err != nil {
			return CertStatus{}, err
		}
		*info = certInfo(leaf)
	}
	st.Attempt, err = s.Store.Attempt(ctx, name)
	return st, err
}

func certInfo(leaf *x509.Certificate) *CertInfo {
	i := &CertInfo{Issuer: leaf.Issuer.CommonName, Names: leaf.DNSNames, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	switch leaf.PublicKeyAlgorithm {
	case x509.RSA:
		i.KeyType = "rsa"
	case x509.Ed25519:
		i.KeyType = "ed25519"
	default:
		i.KeyType = "ecdsa"
	}
	if i.Issuer == "" {
		i.Issuer = leaf.Issuer.String()
	}
	return i
}
