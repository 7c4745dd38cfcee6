package control

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
)

// issuer is certs/issue without an authority.
type issuer struct {
	w       *world
	tried   []string
	uploads map[string]*certs.Certificate
	issued  map[string]*certs.Certificate
	reach   error
	off     bool
}

func (i *issuer) Obtains() bool { return !i.off }
func (i *issuer) Try(h string)  { i.tried = append(i.tried, h) }
func (i *issuer) Root() string  { return "the root" }

func (i *issuer) Certificate(_ context.Context, h string, source certs.Source) (*certs.Certificate, error) {
	from := i.issued
	if source == certs.Uploaded {
		from = i.uploads
	}
	if c := from[h]; c != nil {
		return c, nil
	}
	return nil, root.Errorf(root.NotFound, "none")
}

func (i *issuer) Upload(ctx context.Context, c certs.Certificate) (int64, error) {
	i.uploads[c.Hostname] = &c
	return i.w.store.PutUpload(ctx, root.Upload{Hostname: c.Hostname, Chain: c.Chain, Key: []byte("box")})
}

func (i *issuer) Reaches(context.Context, string) error { return i.reach }

func newCertWorld(t *testing.T) (*world, *issuer) {
	t.Helper()
	w := newWorld(t)
	i := &issuer{w: w, uploads: map[string]*certs.Certificate{}, issued: map[string]*certs.Certificate{}}
	w.Certs.Issuer, w.Certs.Domain = i, "apps.example.net"
	w.Certs.Lookup = func(context.Context, string) ([]net.IPAddr, error) {
		return []net.IPAddr{{IP: net.IPv4(192, 0, 2, 7)}}, nil
	}
	return w, i
}

func TestAddHostname(t *testing.T) {
	w, i := newCertWorld(t)
	ctx := t.Context()
	st, err := w.Certs.Add(ctx, admin, "shop", "Shop.Example.com.")
	w.must(err)
	if st.Hostname.Name != "shop.example.com" || !st.Hostname.ACME || st.Configured() || !slices.Equal(i.tried, []string{"shop.example.com"}) {
		t.Errorf("got %+v, tried %v", st, i.tried)
	}
	if app, ok := w.Certs.Catalog.Snapshot().AppAt("shop.example.com"); !ok || app != "shop" {
		t.Errorf("the catalog does not know the name when Add returns: %q, %t", app, ok)
	}
	st, err = w.Certs.Add(ctx, admin, "shop", "café.example.com")
	w.must(err)
	if st.Hostname.Name != "xn--caf-dma.example.com" {
		t.Errorf("IDNA: got %s", st.Hostname.Name)
	}
	for name, private := range map[string]bool{"shop.lan": true, "*.shop.internal": true, "*.wild.example.com": false} {
		st, err := w.Certs.Add(ctx, admin, "shop", name)
		w.must(err)
		if st.Hostname.ACME || st.Private != private || st.Configured() != private {
			t.Errorf("%s: got %+v", name, st)
		}
	}
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "other"})
	w.must(err)
	_, err = w.Certs.Add(ctx, admin, "other", "shop.example.com")
	w.want(err, root.Conflict, "another app")
	for _, bad := range []string{"", "shop", "x.apps.example.net", "apps.example.net", "*.apps.example.net", "a..b", "10.0.0.1"} {
		_, err := w.Certs.Add(ctx, admin, "other", bad)
		w.want(err, root.Invalid, "")
	}
	_, err = w.Certs.Add(ctx, reader, "shop", "b.example.com")
	w.want(err, root.Forbidden, "")
	_, err = w.Certs.Add(ctx, foreign, "shop", "b.example.com")
	w.want(err, root.Forbidden, "")

	// Its own name below the platform's domain, so that it gets a certificate.
	st, err = w.Certs.Add(ctx, admin, "other", "other.apps.example.net")
	w.must(err)
	if !st.Hostname.ACME {
		t.Errorf("an app's own name: got %+v, want a certificate to be obtained", st)
	}

	list, err := w.Certs.List(ctx, reader, "shop")
	w.must(err)
	if len(list) != 5 {
		t.Errorf("list: got %d, want 5", len(list))
	}
	w.must(w.Certs.Remove(ctx, admin, "shop", "SHOP.example.com"))
	_, err = w.Certs.Get(ctx, admin, "shop", "shop.example.com")
	w.want(err, root.NotFound, "roost certs add")
	w.want(w.Certs.Remove(ctx, reader, "shop", "shop.lan"), root.Forbidden, "")
	// With its app a hostname becomes free.
	w.must(w.Apps.Delete(ctx, admin, "shop", true))
	_, err = w.Certs.Add(ctx, admin, "other", "shop.lan")
	w.must(err)
}

func TestImportCertificate(t *testing.T) {
	w, i := newCertWorld(t)
	ctx := t.Context()
	pair, err := certs.SelfSigned("shop.example.com", w.now)
	w.must(err)
	doc, err := certs.EncodePair(pair)
	w.must(err)
	_, err = w.Certs.Import(ctx, admin, "shop", "cafe.example.com", doc.Chain, doc.Key)
	w.want(err, root.Invalid, "not for cafe.example.com")
	if _, ok := w.Certs.Catalog.Snapshot().AppAt("cafe.example.com"); ok {
		t.Error("a certificate that was refused left its hostname behind")
	}
	st, err := w.Certs.Import(ctx, admin, "shop", "shop.example.com", doc.Chain, doc.Key)
	w.must(err)
	if st.Uploaded == nil || st.Hostname.ACME || !st.Configured() || st.Uploaded.KeyType != "ecdsa" || len(i.tried) > 0 {
		t.Errorf("got %+v, tried %v", st, i.tried)
	}
	_, err = w.Certs.Import(ctx, reader, "shop", "shop.example.com", doc.Chain, doc.Key)
	w.want(err, root.Forbidden, "")
	delete(i.uploads, "shop.example.com")
	st, err = w.Certs.RemoveUploaded(ctx, admin, "shop", "shop.example.com")
	w.must(err)
	if st.Configured() {
		t.Errorf("without the upload: got %+v", st)
	}
	_, err = w.Certs.RemoveUploaded(ctx, admin, "shop", "shop.example.com")
	w.want(err, root.NotFound, "no uploaded certificate")
}

// A check names what it saw and what to do.
func TestCheckHostname(t *testing.T) {
	w, i := newCertWorld(t)
	ctx := t.Context()
	_, err := w.Certs.Add(ctx, admin, "shop", "shop.example.com")
	w.must(err)
	i.tried = nil
	check := func() *NameCheck {
		t.Helper()
		st, err := w.Certs.Check(ctx, admin, "shop", "shop.example.com")
		w.must(err)
		return st.DNS
	}
	i.reach = errors.New("connection refused")
	if c := check(); c.HTTP || c.Here || !slices.Equal(c.A, []string{"192.0.2.7"}) || !strings.Contains(c.Problem, "192.0.2.7") || !strings.Contains(c.Problem, "connection refused") || c.Remedy == "" {
		t.Errorf("unreachable: got %+v", c)
	}
	if len(i.tried) > 0 {
		t.Error("a certificate is tried for though the name does not lead here")
	}
	i.reach = nil // behind NAT: another address, but requests arrive
	if c := check(); !c.HTTP || c.Problem != "" {
		t.Errorf("reachable: got %+v", c)
	}
	if !slices.Equal(i.tried, []string{"shop.example.com"}) {
		t.Errorf("tried %v, want the name: what it waited for has come", i.tried)
	}
	i.tried = nil
	w.must(w.store.PutAttempt(ctx, root.CertAttempt{Hostname: "shop.example.com", Failures: 3, Code: "rate_limited"}))
	check()
	if len(i.tried) > 0 {
		t.Error("a check tries in spite of the authority's limit")
	}
	w.Certs.Lookup = func(context.Context, string) ([]net.IPAddr, error) {
		return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	if c := check(); !strings.Contains(c.Problem, "has no address") || !strings.Contains(c.Remedy, "Add an A or AAAA record for shop.example.com") {
		t.Errorf("no address: got %+v", c)
	}
	w.Certs.Lookup = func(context.Context, string) ([]net.IPAddr, error) { return nil, &net.DNSError{Err: "timed out"} }
	if c := check(); !strings.Contains(c.Problem, "could not be looked up: timed out") {
		t.Errorf("no name server: got %+v", c)
	}
}
