package real

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/certs/pebbletest"
	"github.com/roost-run/roost/machines"
)

// browser reaches every name at one address and trusts one authority.
func browser(t *testing.T, addr string, roots string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(roots)) {
		t.Fatalf("no certificate in %.100q", roots)
	}
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	}
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func fetch(t *testing.T, c *http.Client, url string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// TestHTTPS is an app's way to HTTPS on a real host: by itself under
// localhost, for a hostname of its own from a real authority (whose questions
// arrive at the edge), with an uploaded certificate, and on while control is
// away.
func TestHTTPS(t *testing.T) {
	plain, err := instance.FreePort()
	want(t, err)
	secure, err := instance.FreePort()
	want(t, err)
	authority := pebbletest.Start(t, pebbletest.Options{HTTPPort: plain, TLSPort: secure})
	i := ownInstance(t, "--listen=127.0.0.1:"+strconv.Itoa(plain)+"=80,127.0.0.1:"+strconv.Itoa(secure)+"=443",
		"--acme-ca="+authority.Directory, "--acme-root="+authority.RootFile)
	ctx := t.Context()
	api := i.AsRoot()
	if _, err := api.CreateApp(ctx, machines.CreateAppRequest{Name: "shop", OrgSlug: "personal"}); err != nil {
		t.Fatal(err)
	}
	config := web()
	config.Services[0].Ports = []machines.Port{{Port: 80, Handlers: []string{"http"}, ForceHTTPS: true}, {Port: 443, Handlers: []string{"tls", "http"}}}
	m, err := api.Create(ctx, "shop", machines.CreateRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Warnings) > 0 {
		t.Errorf("warnings: %v, want none", m.Warnings)
	}
	if _, err := api.Wait(ctx, "shop", m.ID, machines.WaitOptions{State: machines.StateStarted, Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + strconv.Itoa(secure)

	// <app>.localhost, by the local authority.
	trusted, err := i.CLI(ctx, "certs", "trust", "--print")
	if err != nil {
		t.Fatal(err)
	}
	local := browser(t, addr, trusted.Stdout)
	resp, body, err := fetch(t, local, "https://shop.localhost/hello")
	if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		t.Fatalf("https://shop.localhost: got %v, %v; want 200 over HTTP/2", resp, err)
	}
	var seen struct{ Header http.Header }
	if err := json.Unmarshal([]byte(body), &seen); err != nil || seen.Header.Get("X-Forwarded-Proto") != "https" || seen.Header.Get("Via") != "2 roost" {
		t.Errorf("the app saw %v, %v; want https and 2 roost", seen.Header, err)
	}

	// Plain requests are sent there.
	c := browser(t, "127.0.0.1:"+strconv.Itoa(plain), trusted.Stdout)
	resp, _, err = fetch(t, c, "http://shop.localhost/a?b=c")
	if err != nil || resp.StatusCode != http.StatusMovedPermanently || resp.Header.Get("Location") != "https://shop.localhost:"+strconv.Itoa(secure)+"/a?b=c" {
		t.Errorf("plain: got %v, %v; want 301 to port %d", resp, err, secure)
	}

	// A hostname of its own, from the authority.
	added, err := i.CLI(ctx, "certs", "add", "Shop.Example.com.", "-a", "shop", "--wait", patience.String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(added.Stdout, "status\tactive") || !strings.Contains(added.Stdout, "certificate\tobtained") {
		t.Errorf("certs add printed\n%s", added.Stdout)
	}
	public := browser(t, addr, string(authority.Roots))
	own := func() (missing string) {
		resp, _, err := fetch(t, public, "https://shop.example.com/")
		if err != nil {
			return err.Error()
		}
		if resp.StatusCode != http.StatusOK {
			return resp.Status
		}
		return ""
	}
	eventually(t, own)
	if _, _, err := fetch(t, public, "https://other.example.com/"); err == nil {
		t.Error("a name nobody has got a connection")
	}

	// The edge does not need control for any of it, private names included.
	if err := i.Kill(ctx, "control"); err != nil {
		t.Fatal(err)
	}
	if missing := own(); missing != "" {
		t.Errorf("while control is away: %s", missing)
	}
	if resp, _, err := fetch(t, local, "https://nobody.localhost/"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a new private name while control is away: got %v, %v; want a connection and 404", resp, err)
	}

	// An uploaded certificate comes first.
	eventually(t, func() string {
		if _, _, err := api.Regions(ctx); err != nil {
			return err.Error()
		}
		return ""
	})
	pair, err := certs.SelfSigned("shop.example.com", m.CreatedAt)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := certs.EncodePair(pair)
	if err != nil {
		t.Fatal(err)
	}
	chain, key := filepath.Join(t.TempDir(), "chain.pem"), filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(chain, []byte(doc.Chain), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte(doc.Key), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := i.CLI(ctx, "certs", "import", "shop.example.com", "--cert", chain, "--key", key, "-a", "shop"); err != nil {
		t.Fatal(err)
	}
	uploaded := browser(t, addr, doc.Chain)
	eventually(t, func() string {
		if _, _, err := fetch(t, uploaded, "https://shop.example.com/"); err != nil {
			return err.Error()
		}
		return ""
	})
	if _, err := i.CLI(ctx, "certs", "remove", "shop.example.com", "-a", "shop", "--yes"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if _, _, err := fetch(t, uploaded, "https://shop.example.com/"); err == nil {
			return "the hostname is still served"
		}
		return ""
	})
	if r, err := i.CLI(ctx, "certs", "list", "-a", "shop"); err != nil || r.Stdout != "" {
		t.Errorf("certs list: got %q, %v; want nothing", r.Stdout, err)
	}
}
