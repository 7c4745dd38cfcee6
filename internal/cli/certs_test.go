package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

var expiry = time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)

// unsound is a hostname that leads elsewhere.
func unsound() machines.Certificate {
	return machines.Certificate{
		Hostname: "shop.example.com", ACMERequested: true, Status: "pending_validation",
		DNSRecords:       &machines.DNSRecords{A: []string{"192.0.2.7"}, CNAME: []string{"old.example.net"}},
		DNSRequirements:  machines.DNSRequirements{A: []string{"192.0.2.9"}},
		ValidationErrors: []machines.ValidationError{{Code: "dns", Message: "shop.example.com leads to 192.0.2.7", Remediation: "Point it at 192.0.2.9."}},
	}
}

func sound() machines.Certificate {
	return machines.Certificate{
		Hostname: "shop.example.com", ACMERequested: true, Status: "active", Configured: true,
		Certificates: []machines.IssuedCertificate{{Source: "custom", Issuer: "R3", ExpiresAt: expiry}, {Source: "fly", Issuer: "E5", ExpiresAt: expiry}},
	}
}

func TestCertsCheck(t *testing.T) {
	a := newAPI(t)
	a.answer("POST /v1/apps/shop/certificates/shop.example.com/check", 200, unsound())
	a.answer("POST /v1/apps/shop/certificates/good.example.com/check", 200, sound())
	s := a.run(t, "certs", "check", "shop.example.com", "-a", "shop")
	s.want(t, exitFailed, "HTTPS does not work for this hostname yet")
	const piped = "hostname\tshop.example.com\nstatus\tpending_validation\nleads to\t192.0.2.7 by way of old.example.net\nthis host\t192.0.2.9\n" +
		"problem\tshop.example.com leads to 192.0.2.7\nto do\tPoint it at 192.0.2.9.\n"
	if s.out != piped {
		t.Errorf("pipe: got\n%s\nwant\n%s", s.out, piped)
	}
	s = place{terminal: true}.run(t, "--url", a.URL, "certs", "check", "good.example.com", "-a", "shop")
	s.want(t, exitDone)
	const terminal = "Hostname     shop.example.com\nStatus       active\nCertificate  uploaded, in use, of R3, expires 2027-03-01\nCertificate  obtained, not in use, of E5, expires 2027-03-01\n"
	if s.out != terminal {
		t.Errorf("terminal: got\n%s\nwant\n%s", s.out, terminal)
	}
	// A program reads the finding in the document, and the exit code is that of the call.
	s = a.run(t, "certs", "check", "shop.example.com", "-a", "shop", "--json")
	s.want(t, exitDone)
	if !strings.Contains(s.out, `"remediation": "Point it at 192.0.2.9."`) {
		t.Errorf("json: got %s", s.out)
	}
}

func TestCertsAdd(t *testing.T) {
	a := newAPI(t)
	pending := machines.Certificate{Hostname: "shop.example.com", ACMERequested: true, Status: "pending_validation"}
	a.answer("POST /v1/apps/shop/certificates/acme", 201, pending)
	a.answer("GET /v1/apps/shop/certificates/shop.example.com", 200, unsound())
	s := a.run(t, "certs", "add", "shop.example.com", "-a", "shop")
	s.want(t, exitDone, "leads to app shop", "roost certs check shop.example.com -a shop")
	if !strings.Contains(s.out, "status\tpending_validation (a certificate is being obtained)") {
		t.Errorf("got %s", s.out)
	}
	// With --wait a refusal is the command's own, with what to do.
	a.run(t, "certs", "add", "shop.example.com", "-a", "shop", "--wait", "1m").want(t, exitFailed, "Error: shop.example.com leads to 192.0.2.7", "Point it at 192.0.2.9.")
	a.run(t, "certs", "add", "-a", "shop").want(t, exitUsage)
}

func TestCertsImport(t *testing.T) {
	a := newAPI(t)
	warned := sound()
	warned.Warning = "the certificate expires soon"
	a.answer("POST /v1/apps/shop/certificates/custom", 201, warned)
	dir := t.TempDir()
	chain, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	if err := errors.Join(os.WriteFile(chain, []byte("CHAIN"), 0o600), os.WriteFile(key, []byte("KEY"), 0o600)); err != nil {
		t.Fatal(err)
	}
	a.run(t, "certs", "import", "shop.example.com", "-a", "shop", "--cert", chain, "--key", key).want(t, exitDone, "Warning: the certificate expires soon")
	asked := a.asked()
	if got := asked[len(asked)-1].body; !strings.Contains(got, `"fullchain":"CHAIN"`) || !strings.Contains(got, `"private_key":"KEY"`) {
		t.Errorf("sent %s", got)
	}
	a.run(t, "certs", "import", "shop.example.com", "-a", "shop", "--cert", chain).want(t, exitUsage, "--cert FILE --key FILE")
	a.run(t, "certs", "import", "shop.example.com", "-a", "shop", "--cert", chain, "--key", filepath.Join(dir, "none")).want(t, exitFailed, "none")
}

func TestCertsRemoveAsks(t *testing.T) {
	a := newAPI(t)
	a.answer("DELETE /v1/apps/shop/certificates/shop.example.com", 204, nil)
	a.run(t, "certs", "remove", "shop.example.com", "-a", "shop").want(t, exitUsage, "--yes")
	if len(a.asked()) > 0 {
		t.Errorf("asked %v without a yes", a.asked())
	}
	a.run(t, "certs", "remove", "shop.example.com", "-a", "shop", "--yes").want(t, exitDone, "does not lead to app shop any more")
}

func TestCertsList(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /v1/apps/shop/certificates", 200, map[string]any{"certificates": []machines.CertificateSummary{
		{Hostname: "a.example.com", Status: "active", HasFlyCertificate: true, CreatedAt: expiry}, {Hostname: "shop.lan", Status: "active", Private: true, CreatedAt: expiry},
	}})
	s := a.run(t, "certs", "list", "-a", "shop")
	s.want(t, exitDone)
	if want := "a.example.com\tactive\tobtained\t2027-03-01T00:00:00Z\nshop.lan\tactive\tlocal authority\t2027-03-01T00:00:00Z\n"; s.out != want {
		t.Errorf("got\n%s\nwant\n%s", s.out, want)
	}
}

func TestCertsTrust(t *testing.T) {
	root, _, err := certs.NewRoot("test", "localhost", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(t)
	a.answer("GET /roost/v1/ca", 200, client.Authority{Certificate: root})
	if s := a.run(t, "cert", "trust", "--print"); s.out != root || s.code != exitDone {
		t.Errorf("--print: got %d %q", s.code, s.out)
	}
	a.run(t, "certs", "trust").want(t, exitUsage, "--yes") // and installs nothing

	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	store := []trustStore{
		{dir: filepath.Join(dir, "none"), command: []string{"false"}},
		{dir: dir, command: []string{"sh", "-c", "echo installed >> " + log}, undo: []string{"sh", "-c", "echo undone >> " + log}},
	}
	var errs bytes.Buffer
	f := &factory{io: place{}.streams(&errs)}
	installed := func() []string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dir, "roost-local-*.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	if err := f.trust(t.Context(), root, store, false, true); err != nil {
		t.Fatal(err)
	}
	if files := installed(); len(files) != 1 {
		t.Fatalf("installed %v, want one file", files)
	}
	if data, err := os.ReadFile(installed()[0]); err != nil || string(data) != root {
		t.Errorf("the file: got %q, %v", data, err)
	}
	for range 2 { // the second finds nothing to undo
		if err := f.trust(t.Context(), root, store, true, false); err != nil {
			t.Fatal(err)
		}
	}
	if files := installed(); len(files) > 0 {
		t.Errorf("after --undo: %v", files)
	}
	if data, err := os.ReadFile(log); err != nil || string(data) != "installed\nundone\n" {
		t.Errorf("the store's commands: got %q, %v", data, err)
	}
	if err := f.trust(t.Context(), root, store[:1], false, true); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("an unknown system: got %v", err)
	}
}
