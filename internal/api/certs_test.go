package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/machines"
)

type fakeCerts struct{ *fake }

func (f fakeCerts) status(name string) control.CertStatus {
	st := control.CertStatus{Hostname: root.Hostname{Name: name, App: "shop", ACME: true, CreatedAt: f.now}, Obtains: true}
	switch name {
	case "good.example.com":
		st.Issued = &control.CertInfo{Issuer: "R3", Names: []string{name}, KeyType: "ecdsa", NotBefore: f.now, NotAfter: f.now.AddDate(100, 0, 0)}
	case "bad.example.com":
		st.Attempt = root.CertAttempt{Hostname: name, At: f.now, Failures: 2, Next: f.now.Add(time.Hour), Code: "rate_limited", Message: "too many", Remedy: "wait"}
	}
	return st
}

func (f fakeCerts) Add(_ context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "certs add %s %s", app, hostname)
	switch hostname {
	case "taken.example.com":
		return control.CertStatus{}, &root.Error{Kind: root.Conflict, Code: root.CodeHostnameTaken, Message: "taken"}
	case "":
		return control.CertStatus{}, root.Errorf(root.Invalid, "not a hostname")
	}
	return f.status(hostname), nil
}

func (f fakeCerts) Import(_ context.Context, a auth.Actor, app root.AppName, hostname, chain, key string) (control.CertStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "certs import %s %s %s %s", app, hostname, chain, key)
	st := f.status(hostname)
	st.Warnings = []string{"expires soon"}
	return st, nil
}

func (f fakeCerts) Get(_ context.Context, _ auth.Actor, _ root.AppName, hostname string) (control.CertStatus, error) {
	if hostname == "none.example.com" {
		return control.CertStatus{}, root.Errorf(root.NotFound, "no such hostname")
	}
	return f.status(hostname), nil
}

func (f fakeCerts) List(context.Context, auth.Actor, root.AppName) ([]control.CertStatus, error) {
	var out []control.CertStatus
	for _, n := range []string{"*.a.example.com", "b.example.com", "c.example.com", "good.example.com"} {
		out = append(out, f.status(n))
	}
	return out, nil
}

func (f fakeCerts) Check(_ context.Context, _ auth.Actor, _ root.AppName, hostname string) (control.CertStatus, error) {
	st := f.status(hostname)
	st.DNS = &control.NameCheck{A: []string{"192.0.2.1"}, CNAME: "edge.example.net", Host: []string{"192.0.2.9", "2001:db8::9"}, Problem: "it leads elsewhere", Remedy: "point it here"}
	return st, nil
}

func (f fakeCerts) Remove(_ context.Context, a auth.Actor, app root.AppName, hostname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "certs remove %s %s", app, hostname)
	return nil
}

func (f fakeCerts) RemoveUploaded(_ context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "certs remove uploaded %s %s", app, hostname)
	return f.status(hostname), nil
}

func (f fakeCerts) RemoveACME(_ context.Context, a auth.Actor, app root.AppName, hostname string) (control.CertStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "certs remove acme %s %s", app, hostname)
	return f.status(hostname), nil
}

func (fakeCerts) Root() string { return "-----BEGIN CERTIFICATE-----" }

// TestCertificates drives the routes of certificates with our client, and looks
// at the members that Fly's clients read.
func TestCertificates(t *testing.T) {
	w := newWorld(t)
	c := client.New(machines.Options{BaseURL: w.URL, Token: w.token})
	ctx := t.Context()
	added, err := c.AddCertificate(ctx, "shop", "*.a.example.com")
	if err != nil || w.lastCall() != "certs add shop *.a.example.com" {
		t.Fatalf("add: got %v, called %s", err, w.lastCall())
	}
	if added.Status != "pending_validation" || len(added.ValidationErrors) != 1 || added.ValidationErrors[0].Code != "wildcard" {
		t.Errorf("a wildcard: got %+v", added)
	}
	for hostname, status := range map[string]int{"taken.example.com": 422, "": 422} {
		if _, err := c.AddCertificate(ctx, "shop", hostname); machines.StatusOf(err) != status {
			t.Errorf("add %q: got %v, want status %d", hostname, err, status)
		}
	}
	good, err := c.Certificate(ctx, "shop", "good.example.com")
	if err != nil || !good.Configured || good.Status != "active" || len(good.Certificates) != 1 || good.Certificates[0].Source != "fly" || good.Certificates[0].Issued[0].Type != "ecdsa" || len(good.ValidationErrors) != 0 {
		t.Errorf("good: got %+v, %v", good, err)
	}
	bad, err := c.Certificate(ctx, "shop", "bad.example.com")
	if err != nil || bad.Configured || bad.RateLimitedUntil == nil || bad.ValidationErrors[0].Remediation != "wait" {
		t.Errorf("bad: got %+v, %v", bad, err)
	}
	if _, err := c.Certificate(ctx, "shop", "none.example.com"); machines.StatusOf(err) != http.StatusNotFound {
		t.Errorf("none: got %v, want 404", err)
	}
	checked, err := c.CheckCertificate(ctx, "shop", "*.a.example.com")
	if err != nil || checked.DNSRecords == nil || checked.DNSRecords.CNAME[0] != "edge.example.net" || !slices.Equal(checked.DNSRequirements.AAAA, []string{"2001:db8::9"}) ||
		!slices.ContainsFunc(checked.ValidationErrors, func(v machines.ValidationError) bool { return v.Code == "dns" && v.Remediation == "point it here" }) {
		t.Errorf("check: got %+v, %v", checked, err)
	}
	imported, err := c.ImportCertificate(ctx, "shop", "good.example.com", "CHAIN", "KEY")
	if err != nil || imported.Warning != "expires soon" || w.lastCall() != "certs import shop good.example.com CHAIN KEY" {
		t.Errorf("import: got %+v, %v", imported, err)
	}
	if gone, err := c.RemoveImportedCertificate(ctx, "shop", "b.example.com"); err != nil || gone.Warning == "" || w.lastCall() != "certs remove uploaded shop b.example.com" {
		t.Errorf("remove uploaded: got %+v, %v", gone, err)
	}
	if err := c.RemoveCertificate(ctx, "shop", "*.a.example.com"); err != nil || w.lastCall() != "certs remove shop *.a.example.com" {
		t.Errorf("remove: got %v, called %s", err, w.lastCall())
	}
	list, err := c.Certificates(ctx, "shop")
	if err != nil || len(list) != 4 || !list[3].HasFlyCertificate || list[3].Status != "active" {
		t.Errorf("list: got %+v, %v", list, err)
	}
	if a, err := c.Authority(ctx); err != nil || !strings.HasPrefix(a.Certificate, "-----BEGIN") {
		t.Errorf("authority: got %+v, %v", a, err)
	}
	reader := client.New(machines.Options{BaseURL: w.URL, Token: w.reader})
	if _, err := reader.AddCertificate(ctx, "shop", "x.example.com"); machines.StatusOf(err) != http.StatusForbidden {
		t.Errorf("add with a token that only reads: got %v, want 403", err)
	}
}

// TestCertificatePages: a list in pages, and what Fly's clients expect of every
// member: lists that are empty, not null.
func TestCertificatePages(t *testing.T) {
	w := newWorld(t)
	get := func(path string) map[string]any {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.token)
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var doc map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
		}
		return doc
	}
	const path = "/v1/apps/shop/certificates?limit=3"
	one := get(path)
	if n := len(one["certificates"].([]any)); n != 3 || one["next_cursor"] != "c.example.com" || one["total_count"] != 4.0 {
		t.Errorf("first page: got %v", one)
	}
	two := get(path + "&cursor=c.example.com")
	if n := len(two["certificates"].([]any)); n != 1 || two["next_cursor"] != "" {
		t.Errorf("second page: got %v", two)
	}
	if got := get(path + "&filter=GOOD"); got["total_count"] != 1.0 {
		t.Errorf("filter: got %v", got)
	}
	detail := get("/v1/apps/shop/certificates/b.example.com")
	for _, name := range []string{"certificates", "validation_errors"} {
		if _, ok := detail[name].([]any); !ok {
			t.Errorf("%s: got %v, want a list", name, detail[name])
		}
	}
}
