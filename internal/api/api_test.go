package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/machines"
	"github.com/roost-run/roost/internal/api/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
)

// world is an API over fakes, as the edge would reach it.
type world struct {
	*fake
	*httptest.Server
	token   string // of scope org
	reader  string // of scope read
	routes  []route.Route
	catalog *root.Snapshot
	log     logged
}

type sourceOf map[root.TokenHash]*root.Token

func (s sourceOf) Token(_ context.Context, hash root.TokenHash) (*root.Token, error) {
	return s[hash], nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{fake: newFake(), catalog: root.NewSnapshot()}
	source := sourceOf{}
	issue := func(scope auth.Scope) string {
		secret, err := auth.New(scope, zeroes{})
		if err != nil {
			t.Fatal(err)
		}
		source[secret.Hash()] = &root.Token{ID: "01" + string(scope), Hash: secret.Hash(), Scope: scope, Org: "personal", Name: "test"}
		return string(secret)
	}
	w.token, w.reader = issue(auth.ScopeOrg), issue(auth.ScopeRead)
	ms := fakeMachines{w.fake}
	w.routes = append(
		machines.Routes(machines.Options{Apps: fakeApps{w.fake}, Machines: ms, Hosts: fakeHosts{}, Secrets: fakeSecrets{w.fake}, Certs: fakeCerts{w.fake}, Region: "loc"}),
		roost.Routes(roost.Options{Orgs: fakeOrgs{}, Tokens: fakeTokens{}, Images: fakeImages{}, Logs: fakeLogs{}, Hosts: fakeHosts{}, Machines: ms,
			Secrets: fakeSecrets{w.fake}, Certs: fakeCerts{w.fake}, Scale: fakeScale{w.fake}, Dialer: fakeDialer{w.fake}, Consoles: fakeConsoles{w.fake}})...)
	h := newHandler(Options{
		Auth: &auth.Verifier{Source: source, Now: time.Now}, Catalog: w, Region: "loc", Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	}, w.routes)
	w.Server = httptest.NewServer(h)
	t.Cleanup(w.Close)
	w.apps["shop"] = &root.App{Name: "shop", ID: "abcdefghij012345", Org: "personal", Network: "default", CreatedAt: w.now}
	return w
}

// Snapshot makes the world the catalog.
func (w *world) Snapshot() *root.Snapshot { return w.catalog }

// logged collects the log.
type logged struct {
	mu  sync.Mutex // guards buf: handlers log beside each other
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request with the token of scope org, unless header has another.
func (w *world) do(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := w.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, strings.TrimSpace(string(data))}
}

func (w *world) create(t *testing.T, body string) (id string) {
	t.Helper()
	a := w.do(t, "POST", "/v1/apps/shop/machines", body)
	var m struct{ ID string }
	if err := json.Unmarshal([]byte(a.body), &m); err != nil || a.status != http.StatusOK {
		t.Fatalf("create: got %d %s", a.status, a.body)
	}
	return m.ID
}

func TestRoutesHavePermissions(t *testing.T) {
	w := newWorld(t)
	seen := make(map[string]bool)
	for _, r := range w.routes {
		name := r.Method + " " + r.Pattern
		if !auth.Known(r.Permission) {
			t.Errorf("%s: permission %q is not in the table", name, r.Permission)
		}
		if r.Handler == nil || seen[name] {
			t.Errorf("%s: without handler, or twice in the table", name)
		}
		seen[name] = true
	}
}

// TestEveryRouteNeedsAToken walks the table: nobody comes in without one, and
// a token without the permission is refused before anything is looked at.
func TestEveryRouteNeedsAToken(t *testing.T) {
	w := newWorld(t)
	path := strings.NewReplacer("{app}", "shop", "{machine}", "148e1234c56789", "{key}", "k", "{org}", "personal", "{token}", "x")
	for _, r := range w.routes {
		for name, header := range map[string][]string{
			"without":                     {"Authorization", ""},
			"malformed":                   {"Authorization", "Bearer roost_o_xyz"},
			"foreign":                     {"Authorization", "Bearer fm2_abc"},
			"a front that is not trusted": {"Authorization", "", "Roost-Front", "api", "Roost-Peer", "uid:0"},
			"another user on the socket":  {"Authorization", "", "Roost-Front", "api-sock", "Roost-Peer", "uid:1000"},
		} {
			a := w.do(t, r.Method, path.Replace(r.Pattern), "", header...)
			if a.status != http.StatusUnauthorized || !strings.Contains(a.body, `"error":"Authenticate: token validation error`) {
				t.Errorf("%s %s, %s: got %d %s, want 401", r.Method, r.Pattern, name, a.status, a.body)
			}
			if a.header.Get("Fly-Request-Id") == "" {
				t.Errorf("%s %s: no request id", r.Method, r.Pattern)
			}
		}
		may := auth.Actor{Scope: auth.ScopeRead, Org: "personal"}.Can(r.Permission)
		a := w.do(t, r.Method, path.Replace(r.Pattern), "", "Authorization", "Bearer "+w.reader)
		if got := a.status == http.StatusForbidden && strings.Contains(a.body, string(r.Permission)); got == may {
			t.Errorf("%s %s with scope read: got %d %s, permitted %v", r.Method, r.Pattern, a.status, a.body, may)
		}
	}
	if len(w.calls) > 0 && strings.HasPrefix(w.lastCall(), "create") {
		t.Errorf("a refused request reached control: %v", w.calls)
	}
}

func TestActors(t *testing.T) {
	w := newWorld(t)
	id := root.MachineID(w.create(t, `{"config":{"image":"a"}}`))
	w.catalog = w.catalog.With(1, root.Change{Machine: w.machines[id]})
	tests := map[string]struct {
		header []string
		want   auth.Actor
	}{
		"token": {nil, auth.Actor{Name: "test@personal", Scope: auth.ScopeOrg, Org: "personal", Origin: root.OriginUser, TokenID: "01org"}},
		"token from an app, scheme doubled, in a list": {
			[]string{"Authorization", "bearer FlyV1 fm2_x," + w.token, "Roost-Front", "internal"},
			auth.Actor{Name: "test@personal", Scope: auth.ScopeOrg, Org: "personal", Origin: root.OriginApp, TokenID: "01org"},
		},
		"root on its socket": {[]string{"Authorization", "", "Roost-Front", "api-sock", "Roost-Peer", "uid:0"}, auth.LocalRoot()},
		"a machine on its socket": {
			[]string{"Authorization", "", "Roost-Front", "machine", "Roost-Machine", string(id)}, auth.MachineActor(w.machines[id]),
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w.actor = auth.Actor{}
			a := w.do(t, "GET", "/v1/apps/shop/machines/"+string(id), "", tt.header...)
			if a.status != http.StatusOK || w.actor != tt.want {
				t.Errorf("actor: got %+v (%d %s), want %+v", w.actor, a.status, a.body, tt.want)
			}
		})
	}
}

func TestTransport(t *testing.T) {
	w := newWorld(t)
	if a := w.do(t, "GET", "/v1/nothing", ""); a.status != http.StatusNotFound || a.body != "404 page not found" {
		t.Errorf("unknown route: got %d %q, want 404 and plain text", a.status, a.body)
	}
	if a := w.do(t, "POST", "/v1/apps/shop/machines", `{"config":{"image":"panic"}}`); a.status != http.StatusInternalServerError ||
		!strings.Contains(a.body, `"error":"internal error"`) || a.header.Get("Fly-Request-Id") == "" {
		t.Errorf("panic: got %d %s, want 500 with a request id", a.status, a.body)
	} else if log := w.log.String(); !strings.Contains(log, "request_id="+a.header.Get("Fly-Request-Id")) || !strings.Contains(log, "fake_test.go") {
		t.Errorf("log of a panic: got %.2000s, want the request id and the stack", log)
	}
	large := `{"config":{"image":"` + strings.Repeat("a", route.DefaultBody) + `"}}`
	if a := w.do(t, "POST", "/v1/apps/shop/machines", large); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("large body: got %d %.200s, want 413", a.status, a.body)
	}
	if a := w.do(t, "GET", "/v1/apps/shop/machines", "", "X", "y"); !strings.HasSuffix(a.header.Get("Fly-Request-Id"), "-loc") {
		t.Errorf("request id: got %q, want a ULID and the region", a.header.Get("Fly-Request-Id"))
	}
}
