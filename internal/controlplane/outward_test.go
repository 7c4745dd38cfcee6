package controlplane

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/image"
)

func TestOutward(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTPS_PROXY", "proxy.test:3128")
	cfg := config.Default()
	cfg.Listen = []config.Listen{{Addr: ":8080", Port: 80}, {Addr: "127.0.0.1:8443", Port: 443}}
	o := forPulls(&cfg, registries{{Host: "Hub.test", Mirrors: []string{"http://127.0.0.1:5000/x"}}, {Host: "10.0.0.5:5000"}})
	want := []string{"hub.test:443", "hub.test:80", "127.0.0.1:5000", "10.0.0.5:5000", "proxy.test:3128"}
	if diff := cmp.Diff(want, o.Trusted); diff != "" {
		t.Errorf("trusted (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint16{8080, 8443}, o.Published); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	hooks := forWebhooks(&cfg)
	if err := hooks.Check("127.0.0.1:4280"); !root.IsKind(err, root.Forbidden) {
		t.Errorf("a webhook to the API: got %v, want Forbidden", err)
	}
	if err := hooks.Check("127.0.0.1:9093"); err != nil {
		t.Errorf("a webhook to a service beside Roost: %v", err)
	}
}

// A registry that people name cannot send this process to the host's own
// services, by its name or by a redirect, and what such a service says is not
// told.
func TestPullsStayOutside(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 100)
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("inner secret"))
	}))
	defer inner.Close()
	host := strings.TrimPrefix(inner.URL, "http://")
	outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inner.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer outer.Close()
	gate := strings.TrimPrefix(outer.URL, "http://")
	cfg := config.Default()
	o := forPulls(&cfg, registries{{Host: gate, PlainHTTP: true}})
	s, err := image.Open(t.Context(), image.Options{Root: t.TempDir(), Domain: "roost.test", Dial: o.DialContext})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	port := netip.MustParseAddrPort(host).Port()
	for _, registry := range []string{host, "localhost:" + host[strings.LastIndex(host, ":")+1:], gate} {
		_, err := s.Resolve(t.Context(), registry+"/team/app:1")
		if !root.IsKind(err, root.Forbidden) {
			t.Errorf("%s: got %v, want Forbidden", registry, err)
		}
		if strings.Contains(root.MessageOf(err), "inner secret") {
			t.Errorf("%s: the message tells what the service said: %v", registry, err)
		}
	}
	select {
	case path := <-asked:
		t.Errorf("the service at port %d was asked for %s", port, path)
	default:
	}
	if _, err := s.PullAs(t.Context(), host+"/team/app:1", image.Login{Host: true}, nil); err == nil || len(asked) == 0 {
		t.Errorf("a pull by root: got %v, asked %d times, want it to arrive", err, len(asked))
	} else if strings.Contains(root.MessageOf(err), "inner secret") {
		t.Errorf("root: the message tells what the service said: %v", err)
	}
}

// Webhooks neither reach the API of this host nor follow a redirect there.
func TestWebhooksStayOutside(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 100)
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	defer api.Close()
	hook := httptest.NewServer(http.RedirectHandler(api.URL, http.StatusTemporaryRedirect))
	defer hook.Close()
	cfg := config.Default()
	cfg.API = strings.TrimPrefix(api.URL, "http://")
	p := poster{forWebhooks(&cfg)}
	if _, err := p.Post(t.Context(), api.URL, strings.NewReader("{}")); !root.IsKind(err, root.Forbidden) {
		t.Errorf("to the API: got %v, want Forbidden", err)
	}
	if status, err := p.Post(t.Context(), hook.URL, strings.NewReader("{}")); err != nil || status != http.StatusTemporaryRedirect {
		t.Errorf("a redirect: got %d, %v, want it as the answer", status, err)
	}
	if len(asked) != 0 {
		t.Errorf("the API was asked %d times", len(asked))
	}
}
