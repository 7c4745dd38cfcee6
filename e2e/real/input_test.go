package real

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// TestImageDoesNotExist: the error names the image, and nothing is left.
func TestImageDoesNotExist(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	_, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: machines.Config{Image: "registry.localhost/nobody:v1"}})
	if status := machines.StatusOf(err); status != http.StatusNotFound && status != http.StatusUnprocessableEntity && status != http.StatusBadRequest {
		t.Fatalf("got %v, want a status that says it is the client's mistake", err)
	}
	wantText(t, err.Error(), "registry.localhost/nobody:v1")
	wantNoMachines(t, app)
}

func wantNoMachines(t *testing.T, app string) {
	t.Helper()
	list, err := admin().List(t.Context(), app, machines.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if !m.State.Gone() {
			t.Errorf("machine %s (%s) was left behind", m.ID, m.State)
		}
	}
}

// TestWrongArchitecture: the error names what the image has and what is needed.
func TestWrongArchitecture(t *testing.T) {
	t.Parallel()
	foreign := "s390x"
	archive := filepath.Join(t.TempDir(), "foreign.tar")
	if err := instance.BuildArchiveFor(t.Context(), "./probe", "registry.localhost/foreign:v1", archive, foreign); err != nil {
		t.Fatal(err)
	}
	r, err := in.CLI(t.Context(), "image", "load", archive)
	if err == nil {
		t.Fatal("an image of another architecture was loaded without a word")
	}
	wantText(t, r.Stderr, foreign, "amd64")
	if r.Code != 1 {
		t.Errorf("exit code: got %d, want 1", r.Code)
	}
}

func TestCommandNotFound(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	r, err := in.CLI(t.Context(), "machine", "run", probe, "--app", app, "--entrypoint", "/no/such/program")
	if err == nil {
		t.Fatal("a command that does not exist was started")
	}
	wantText(t, r.Stderr, "/no/such/program", "not found")
}

func TestNoSuchUser(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	r, err := in.CLI(t.Context(), "machine", "run", probe, "--app", app, "--user", "nobodyhere")
	if err == nil {
		t.Fatal("a machine of a user that does not exist was started")
	}
	wantText(t, r.Stderr, "nobodyhere")
}

// TestNobodyListens: the held request is answered with the reason.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, listen string
		want         []string
	}{
		{"other port", "0.0.0.0:9090", []string{"8080", "9090"}},
		{"loopback only", "127.0.0.1:8080", []string{"127.0.0.1:8080", "0.0.0.0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			app := newApp(t)
			c := web()
			c.Env = map[string]string{"LISTEN": test.listen}
			start(t, app, c)
			a := get(t, app, "/")
			if a.StatusCode != http.StatusBadGateway && a.StatusCode != http.StatusServiceUnavailable && a.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("status: got %d, want 502, 503 or 504", a.StatusCode)
			}
			if a.Header.Get("Roost-Error") == "" {
				t.Error("no Roost-Error header")
			}
			wantText(t, a.Text, test.want...)
		})
	}
}

// TestOutOfMemory: the exit says that memory was the reason.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	r, err := in.CLI(t.Context(), "machine", "run", probe, "--app", app, "--rm", "--", "eat", "600")
	if err == nil {
		t.Fatal("600 MB fit into a machine of 256 MB")
	}
	if r.Code != 137 {
		t.Errorf("exit code: got %d, want 137", r.Code)
	}
	wantText(t, r.Stderr, "out of memory")
	list, err := admin().List(t.Context(), app, machines.ListOptions{Deleted: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Fatalf("got %d machines, want the destroyed one", len(list))
	}
	for _, e := range list[0].Events {
		if e.Type == "exit" {
			if !e.Request.ExitEvent.OOMKilled || e.Request.ExitEvent.RequestedStop {
				t.Errorf("exit event: got %+v, want oom_killed and not requested", e.Request.ExitEvent)
			}
			return
		}
	}
	t.Error("no exit event")
}

// TestMalformedConfig: what is wrong and where, and no machine. 400 is a mistake,
// 422 something that Fly has and Roost not yet.
func TestMalformedConfig(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	ok := `"image":"` + probe + `"`
	for _, test := range []struct {
		name, body string
		status     int
		want       []string
	}{
		{"not JSON", `{`, 400, nil},
		{"not an object", `[]`, 400, nil},
		{"empty", ``, 400, nil},
		{"two documents", `{"config":{` + ok + `}} {}`, 400, nil},
		{"wrong type", `{"config":{` + ok + `,"env":[1]}}`, 400, []string{"env"}},
		{"no image", `{"config":{}}`, 400, []string{"image"}},
		{"bad reference", `{"config":{"image":"UPPER CASE"}}`, 400, []string{"UPPER CASE"}},
		{"bad guest", `{"config":{` + ok + `,"guest":{"cpu_kind":"shared","cpus":3,"memory_mb":256}}}`, 400, []string{"cpus"}},
		{"bad memory", `{"config":{` + ok + `,"guest":{"memory_mb":100}}}`, 400, []string{"memory_mb", "100"}},
		{"bad port", `{"config":{` + ok + `,"services":[{"protocol":"tcp","internal_port":70000}]}}`, 400, []string{"internal_port", "70000"}},
		{"bad handler", `{"config":{` + ok + `,"services":[{"protocol":"tcp","internal_port":80,"ports":[{"port":80,"handlers":["smtp"]}]}]}}`, 400, []string{"smtp"}},
		{"bad restart", `{"config":{` + ok + `,"restart":{"policy":"sometimes"}}}`, 400, []string{"sometimes"}},
		{"bad duration", `{"config":{` + ok + `,"stop_config":{"timeout":"soon"}}}`, 400, []string{"soon"}},
		{"bad signal", `{"config":{` + ok + `,"stop_config":{"signal":"SIGSEGV"}}}`, 400, []string{"SIGSEGV"}},
		{"bad file", `{"config":{` + ok + `,"files":[{"guest_path":"relative","raw_value":""}]}}`, 400, []string{"relative"}},
		{"bad base64", `{"config":{` + ok + `,"files":[{"guest_path":"/a","raw_value":"%%%"}]}}`, 400, []string{"raw_value"}},
		{"bad env name", `{"config":{` + ok + `,"env":{"A=B":"c"}}}`, 400, []string{"env"}},
		{"reserved env", `{"config":{` + ok + `,"env":{"FLY_REGION":"x"}}}`, 400, []string{"FLY_REGION"}},
		{"unknown region", `{"config":{` + ok + `},"region":"mars"}`, 422, []string{"mars"}},
		{"bad name", `{"config":{` + ok + `},"name":"no spaces please"}`, 400, []string{"no spaces please"}},

		{"mounts", `{"config":{` + ok + `,"mounts":[{"volume":"vol_x","path":"/data"}]}}`, 422, []string{"mounts"}},
		{"containers", `{"config":{"containers":[{"name":"a","image":"b"}]}}`, 422, []string{"containers"}},
		{"udp", `{"config":{` + ok + `,"services":[{"protocol":"udp","internal_port":53}]}}`, 422, []string{"udp"}},
		{"standbys", `{"config":{` + ok + `,"standbys":["148e1234c56789"]}}`, 422, []string{"standbys"}},
		{"schedule", `{"config":{` + ok + `,"schedule":"daily"}}`, 422, []string{"schedule"}},
		{"two processes", `{"config":{` + ok + `,"processes":[{"cmd":["a"]},{"cmd":["b"]}]}}`, 422, []string{"processes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, body := raw(t, http.MethodPost, "/v1/apps/"+app+"/machines", in.Token, test.body)
			if status != test.status {
				t.Errorf("status: got %d, want %d: %s", status, test.status, body)
			}
			var e struct{ Error string }
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == "" {
				t.Errorf("the body has no error text: %s", body)
			}
			wantText(t, e.Error, test.want...)
		})
	}
	wantNoMachines(t, app)
}

// TestWarnings: what is accepted but not acted on yet is said.
func TestWarnings(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	status, body := raw(t, http.MethodPost, "/v1/apps/"+app+"/machines", in.Token, `{"skip_launch":true,"config":{"image":"`+probe+`","x_unknown":{"kept":true},
		"checks":{"up":{"type":"tcp","port":8080}},"metrics":{"port":9090,"path":"/metrics"},"statics":[{"guest_path":"/s","url_prefix":"/s"}],
		"services":[{"protocol":"tcp","internal_port":8080,"ports":[{"port":443,"handlers":["tls","http"]},{"port":80,"handlers":["http"],"force_https":true}]}]}}`)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	var m struct {
		ID       string
		Warnings []string
		Config   map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], "config.metrics") {
		t.Errorf("warnings %q, want one of metrics", m.Warnings)
	}
	if got := string(m.Config["x_unknown"]); got != `{"kept":true}` {
		t.Errorf("an unknown member reads back as %q", got)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	app, other := newApp(t), newApp(t)
	token := func(t *testing.T, args ...string) (id, secret string) {
		t.Helper()
		r, err := in.CLI(t.Context(), append([]string{"token", "create", "--json"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		var created struct{ ID, Token string }
		if err := json.Unmarshal([]byte(r.Stdout), &created); err != nil {
			t.Fatal(err)
		}
		return created.ID, created.Token
	}
	list := func(t *testing.T, app, token string) int {
		t.Helper()
		status, _ := raw(t, http.MethodGet, "/v1/apps/"+app+"/machines", token, "")
		return status
	}
	id, secret := token(t, "app", "--app", app)
	if got := list(t, app, secret); got != http.StatusOK {
		t.Errorf("own app: got %d, want 200", got)
	}
	if got := list(t, other, secret); got != http.StatusForbidden {
		t.Errorf("another app: got %d, want 403", got)
	}
	for name, bad := range map[string]string{"none": "", "nonsense": "hello", "forged": secret[:len(secret)-4] + "aaaa"} {
		if got := list(t, app, bad); got != http.StatusUnauthorized {
			t.Errorf("token %s: got %d, want 401", name, got)
		}
	}
	if _, err := in.CLI(t.Context(), "token", "revoke", id); err != nil {
		t.Fatal(err)
	}
	if got := list(t, app, secret); got != http.StatusUnauthorized {
		t.Errorf("revoked: got %d, want 401", got)
	}
	_, short := token(t, "app", "--app", app, "--expiry", "1s")
	deadline := time.Now().Add(patience)
	for list(t, app, short) != http.StatusUnauthorized {
		if time.Now().After(deadline) {
			t.Fatal("an expired token is still good")
		}
		if err := instance.Pause(t.Context(), 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	_, readOnly := token(t, "read", "--app", app)
	if got := list(t, app, readOnly); got != http.StatusOK {
		t.Errorf("read token reads: got %d, want 200", got)
	}
	status, body := raw(t, http.MethodPost, "/v1/apps/"+app+"/machines", readOnly, `{"config":{"image":"`+probe+`"}}`)
	if status != http.StatusForbidden {
		t.Errorf("read token creates: got %d, want 403: %s", status, body)
	}
	rivals := "rivals-of-" + app // another one each time
	if _, err := in.CLI(t.Context(), "org", "create", rivals); err != nil {
		t.Fatal(err)
	}
	_, foreign := token(t, "org", "--org", rivals)
	if got := list(t, app, foreign); got != http.StatusForbidden {
		t.Errorf("a token of another organisation: got %d, want 403", got)
	}
}

// TestInternalPaths: what the platform's processes tell each other, private
// keys included, is nobody else's, however the path is written.
func TestInternalPaths(t *testing.T) {
	t.Parallel()
	r, err := in.CLI(t.Context(), "token", "create", "org", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var created struct{ Token string }
	if err := json.Unmarshal([]byte(r.Stdout), &created); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/internal/certs", "/%69nternal/certs", "/internal/catalog", "/internal/checks", "/internal/acme/http?host=a&token=b"} {
		for _, token := range []string{"", created.Token} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if status, body := raw(t, method, path, token, "[]"); status != http.StatusNotFound {
					t.Errorf("%s %s: got %d, want 404: %s", method, path, status, body)
				}
			}
		}
	}
}
