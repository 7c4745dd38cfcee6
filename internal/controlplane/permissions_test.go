package controlplane_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/api/machines"
	"github.com/roost-run/roost/internal/api/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
	api "github.com/roost-run/roost/machines"
)

var update = flag.Bool("update", false, "rewrite golden files")

// callers of the routes below: what the token is of, or "" for none.
var callers = []struct{ name, org, scope, app string }{
	{"root", "", "", ""},
	{"nobody", "", "", ""},
	{"org", "personal", "org", ""},
	{"app", "personal", "app", "shop"},
	{"deploy", "personal", "deploy", "shop"},
	{"read", "personal", "read", ""},
	{"app-other", "personal", "app", "blog"},
	{"deploy-other", "personal", "deploy", "blog"},
	{"org-foreign", "others", "org", ""},
	{"read-foreign", "others", "read", ""},
}

// sendable are requests that get as far as the question who may: the path's
// query, and the body. The others do with none.
var sendable = map[string]struct{ query, body string }{
	"POST /v1/apps":                                         {"", `{"app_name":"blog"}`},
	"POST /v1/apps/{app}/machines":                          {"", `{"config":{"image":"registry.localhost/shop:none"}}`},
	"POST /v1/apps/{app}/machines/{machine}":                {"", `{"config":{"image":"registry.localhost/shop:none"}}`},
	"POST /v1/apps/{app}/machines/{machine}/exec":           {"", `{"command":["true"]}`},
	"POST /v1/apps/{app}/machines/{machine}/signal":         {"", `{"signal":"SIGTERM"}`},
	"POST /v1/apps/{app}/machines/{machine}/metadata/{key}": {"", `{"value":"v"}`},
	"POST /v1/apps/{app}/secrets/{name}":                    {"", `{"value":"dmFsdWU="}`},
	"POST /roost/v1/apps/{app}/scale/count":                 {"", `{"groups":[{"group":"app","count":1}]}`},
	"GET /roost/v1/apps/{app}/proxy":                        {"?port=80", ""},
	"POST /roost/v1/images/load":                            {"?as=registry.localhost/shop:1", ""},
	"DELETE /roost/v1/images":                               {"?ref=registry.localhost/shop:1", ""},
	"GET /roost/v1/tokens":                                  {"?org=personal", ""},
	"POST /roost/v1/tokens":                                 {"", `{"name":"x","scope":"org","org":"personal"}`},
	"GET /v1/apps":                                          {"?org_slug=personal", ""},
}

// askTimeout ends an answer that goes on; its status has come by then.
const askTimeout = 2 * time.Minute

// TestPermissions asks every route of the API as every kind of caller, about
// the app shop of the organisation personal: what is not refused, with 401 or
// 403, is in the golden file as "-". A route that forgets to ask who may is
// seen here, whatever its permission says.
func TestPermissions(t *testing.T) {
	s := start(t)
	s.ok("GET", "/v1/apps?org_slug=personal", nil, nil) // it is up
	s.ok("POST", "/roost/v1/orgs", config{"slug": "others", "name": "Others"}, nil)
	s.ok("POST", "/v1/apps", config{"app_name": "blog", "org_slug": "personal"}, nil)
	tokens := map[string]string{}
	ready := func() {
		t.Helper()
		if status, _ := s.call("GET", "/v1/apps/shop", nil, nil); status == http.StatusOK {
			return
		}
		s.ok("POST", "/v1/apps", config{"app_name": "shop", "org_slug": "personal"}, nil)
		for _, c := range callers { // those of an app go with it
			if c.scope != "" {
				var got struct{ Token string }
				s.ok("POST", "/roost/v1/tokens", config{"name": c.name, "scope": c.scope, "org": c.org, "app": c.app}, &got)
				tokens[c.name] = got.Token
			}
		}
	}
	routes := append(machines.Routes(machines.Options{}), roost.Routes(roost.Options{})...)
	slices.SortStableFunc(routes, func(a, b route.Route) int {
		return strings.Compare(a.Pattern+a.Method, b.Pattern+b.Method)
	})
	paths := strings.NewReplacer("{app}", "shop", "{org}", "personal", "{machine}", "148e1234c56789", "{version}", "1",
		"{key}", "k", "{name}", "NAME", "{hostname}", "shop.example.com", "{context}", "sha256:"+strings.Repeat("0", 64))
	var out bytes.Buffer
	fmt.Fprintf(&out, "%-70s", "")
	for _, c := range callers {
		fmt.Fprintf(&out, " %-12s", c.name)
	}
	out.WriteString("\n")
	for _, r := range routes {
		fmt.Fprintf(&out, "%-70s", r.Method+" "+r.Pattern)
		for _, c := range callers {
			ready()
			var status int
			var text string
			name, with := r.Method+" "+r.Pattern, sendable[r.Method+" "+r.Pattern]
			switch name {
			case "GET /roost/v1/apps/{app}/console", "GET /roost/v1/apps/{app}/machines/{machine}/exec": // they answer in a stream
				status, text = s.stream(name, c.name, tokens[c.name])
			case "DELETE /roost/v1/tokens/{token}":
				var victim struct{ ID string }
				s.ok("POST", "/roost/v1/tokens", config{"name": "victim", "scope": "read", "org": "personal"}, &victim)
				status, text = s.ask(r.Method, strings.Replace(r.Pattern, "{token}", victim.ID, 1), "", c.name, tokens[c.name])
			default:
				status, text = s.ask(r.Method, paths.Replace(r.Pattern)+with.query, with.body, c.name, tokens[c.name])
			}
			got := "-"
			switch status {
			case http.StatusUnauthorized, http.StatusForbidden:
				got = fmt.Sprint(status)
			case http.StatusInternalServerError:
				t.Errorf("%s %s as %s: got %d %s", r.Method, r.Pattern, c.name, status, text)
			}
			fmt.Fprintf(&out, " %-12s", got)
		}
		out.WriteString("\n")
	}
	got := strings.ReplaceAll(out.String(), " \n", "\n")
	for strings.Contains(got, " \n") {
		got = strings.ReplaceAll(got, " \n", "\n")
	}
	const golden = "testdata/permissions.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil { //nolint:gosec // for people
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("who may what (-want +got; -update after reading it):\n%s", diff)
	}
}

// ask sends a request with a token, or as root without one.
func (s *server) ask(method, path, document, caller, token string) (status int, text string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), askTimeout)
	defer cancel()
	var body io.Reader
	if method != http.MethodGet {
		if document == "" {
			document = "{}"
		}
		body = strings.NewReader(document)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://roost"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if strings.Contains(path, "/proxy?") {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", client.ProxyProtocol)
	}
	if token = bearer(caller, token); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	// What a client says of itself under the platform's names does not count.
	req.Header.Set("Roost-Front", "api-sock")
	req.Header.Set("Roost-Peer", "uid:0")
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s as %s: %v", method, path, caller, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil && resp.StatusCode >= 300 {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// bearer is what a caller says, "" for root.
func bearer(caller, token string) string {
	if token == "" && caller != "root" {
		return "roost_o_nobody"
	}
	return token
}

// stream asks for a command, whose end comes after the connection has turned
// into a stream.
func (s *server) stream(name, caller, token string) (status int, text string) {
	s.t.Helper()
	c := client.New(api.Options{BaseURL: "unix://" + s.path("run", "api.sock"), Token: bearer(caller, token)})
	start := client.ExecStart{Args: []string{"true"}}
	var err error
	if strings.HasSuffix(name, "/console") {
		_, err = c.Console(s.t.Context(), "shop", client.ConsoleOptions{}, start, client.ExecIO{})
	} else {
		_, err = c.ExecStream(s.t.Context(), "shop", "148e1234c56789", start, client.ExecIO{})
	}
	if err == nil {
		s.t.Errorf("%s as %s: it ran a command of nothing", name, caller)
		return http.StatusOK, ""
	}
	return api.StatusOf(err), err.Error()
}
