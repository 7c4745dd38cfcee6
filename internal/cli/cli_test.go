package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/cli/term"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC // a terminal shows local times
	// Nothing of the caller's may decide where these tests connect to.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "ROOST_") || strings.HasPrefix(name, "FLY_") {
			_ = os.Unsetenv(name)
		}
	}
	home, err := os.MkdirTemp("", "roost-cli-")
	if err != nil {
		panic(err)
	}
	_ = os.Setenv("XDG_CONFIG_HOME", home)
	code := m.Run()
	_ = os.RemoveAll(home)
	os.Exit(code)
}

// now is the moment at which all commands of these tests run.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// api is a platform that answers what it was told to, and notes what it was
// asked.
type api struct {
	*httptest.Server
	mux *http.ServeMux

	mu    sync.Mutex // guards calls
	calls []call
}

type call struct{ line, body, token string } // "GET /v1/apps?org_slug=personal"

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{mux: http.NewServeMux()}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		if r.Header.Get("Upgrade") == "" {
			_, _ = body.ReadFrom(r.Body)
		}
		a.mu.Lock()
		a.calls = append(a.calls, call{r.Method + " " + r.URL.RequestURI(), body.String(), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")})
		a.mu.Unlock()
		w.Header().Set("Fly-Request-Id", "01REQUEST-loc")
		a.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(a.Close)
	return a
}

// answer makes the API answer a pattern with v as JSON.
func (a *api) answer(pattern string, status int, v any) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { reply(w, status, v) })
}

func (a *api) fail(pattern string, status int, message string) {
	a.answer(pattern, status, map[string]string{"error": message})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (a *api) asked() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

func (a *api) last() call {
	all := a.asked()
	return all[len(all)-1]
}

// place is where a command runs: on a terminal, or in a pipe.
type place struct {
	terminal bool
	input    string
	ctx      context.Context //nolint:containedctx // of one run
}

type said struct {
	out, err string
	code     int
}

// streams are a command's, both outputs on errs.
func (p place) streams(errs io.Writer) *term.IO {
	return &term.IO{
		In: strings.NewReader(p.input), Out: errs, Err: errs, Now: func() time.Time { return now },
		InTTY: p.terminal, OutTTY: p.terminal, ErrTTY: p.terminal, Color: p.terminal,
	}
}

func (p place) run(t *testing.T, args ...string) said {
	t.Helper()
	var out, errs bytes.Buffer
	streams := p.streams(&errs)
	streams.Out = &out
	ctx := p.ctx
	if ctx == nil {
		ctx = t.Context()
	}
	code := Run(ctx, streams, args, Processes{})
	return said{out.String(), errs.String(), code}
}

// run is place.run in a pipe, against the API.
func (a *api) run(t *testing.T, args ...string) said {
	t.Helper()
	return place{}.run(t, append([]string{"--url", a.URL}, args...)...)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// want checks what a command said: its code, and parts of its two streams.
func (s said) want(t *testing.T, code int, parts ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("exit code: got %d, want %d\n%s%s", s.code, code, s.out, s.err)
	}
	for _, p := range parts {
		if !strings.Contains(s.err, p) {
			t.Errorf("standard error does not say %q:\n%s", p, s.err)
		}
	}
}

const id = "148e1234c56789"

func exampleMachine(state machines.State) machines.Machine {
	return machines.Machine{
		ID: id, Name: "amber-bird-1", State: state, Region: "loc", InstanceID: "01VERSION",
		ImageRef:  machines.ImageRef{Registry: "registry.localhost", Repository: "shop", Tag: "latest", Digest: "sha256:1234"},
		PrivateIP: "fdaa:0:1::2", CreatedAt: now.Add(-49 * time.Hour), UpdatedAt: now.Add(-90 * time.Second),
		Config: &machines.Config{Image: "registry.localhost/shop:latest", Guest: &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 256}, Metadata: map[string]string{"fly_process_group": "web"}},
		Checks: []machines.Status{
			{Name: "servicecheck-00-http-8080", Status: "critical", Output: "400 Bad Request: DisallowedHost\nAllow the host.", UpdatedAt: now.Add(-time.Minute)},
			{Name: "servicecheck-01-tcp-8080", Status: "passing", Output: "connection accepted", UpdatedAt: now.Add(-time.Hour)},
		},
		Events: []machines.Event{
			{
				Type: "exit", Status: "stopped", Source: "flyd", Timestamp: now.Add(-2 * time.Minute).UnixMilli(),
				Request: &machines.EventRequest{ExitEvent: &machines.ExitEvent{ExitCode: 137, OOMKilled: true}},
			},
			{Type: "launch", Status: "created", Source: "user", Timestamp: now.Add(-time.Hour).UnixMilli(), Reason: "requested"},
		},
	}
}

// platform is an API with something of everything.
func platform(t *testing.T) *api {
	a := newAPI(t)
	app := machines.App{ID: "app1", Name: "shop", Organization: machines.Organization{Slug: "personal", Name: "Personal"}, Status: "deployed", MachineCount: 2, Network: "default"}
	second := exampleMachine(machines.StateSuspended)
	second.ID, second.Name, second.Events, second.Cordoned, second.Checks = "2870000000000a", "red\x1b[31m-bird", nil, true, nil
	second.ImageRef = machines.ImageRef{Registry: "docker.io", Repository: "library/redis", Digest: "sha256:0123456789abcdef0123456789abcdef"}
	expires := now.Add(time.Hour)
	text := "probe listens"
	a.answer("GET /v1/apps", 200, map[string]any{"total_apps": 1, "apps": []machines.App{app}})
	a.answer("GET /v1/apps/shop", 200, app)
	a.answer("GET /v1/apps/shop/machines", 200, []machines.Machine{exampleMachine(machines.StateStarted), second})
	a.answer("GET /v1/apps/shop/machines/"+id, 200, exampleMachine(machines.StateStarted))
	a.answer("GET /roost/v1/apps/shop/machines/"+id+"/inspect", 200, client.Inspection{
		Listens: []client.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}, Usage: &client.Usage{Memory: 3 << 20, Swap: 1 << 19},
	})
	a.answer("GET /roost/v1/orgs", 200, []client.Org{{Slug: "personal", Name: "Personal", CreatedAt: now.Add(-5 * time.Hour)}})
	a.answer("GET /roost/v1/tokens", 200, []client.Token{
		{ID: "01TOKEN", Name: "admin", Scope: "org", Org: "personal", CreatedAt: now.Add(-5 * time.Second)},
		{ID: "01OTHER", Name: "middleware", Scope: "app", Org: "personal", App: "shop", CreatedAt: now, ExpiresAt: &expires},
	})
	a.answer("GET /roost/v1/images", 200, []client.Image{{Ref: "registry.localhost/shop:latest@sha256:0123456789abcdef0123456789abcdef", Digest: "sha256:0123456789abcdef0123456789abcdef", Size: 12 << 20, CreatedAt: now.Add(-time.Hour), InUse: true}})
	release := client.Release{
		ID: "01RELEASE", App: "shop", Version: 3, Status: "complete", Current: true, Image: "registry.localhost/shop:v3@sha256:0123456789abcdef0123456789abcdef",
		Strategy: "rolling", Reason: "deploy", Description: "new checkout", Author: "admin", Groups: []string{"web", "worker"},
		CreatedAt: now.Add(-time.Hour), StartedAt: now.Add(-time.Hour), FinishedAt: now.Add(-time.Hour + 2500*time.Millisecond),
	}
	failed := client.Release{ID: "01FAILED", App: "shop", Version: 4, Status: "failed", Message: "the release command ended with code 1", Image: release.Image, Strategy: "rolling", Reason: "deploy", Author: "admin", Groups: release.Groups, CreatedAt: now.Add(-time.Minute)}
	a.answer("GET /roost/v1/apps/shop/releases", 200, []client.Release{failed, release})
	a.answer("GET /roost/v1/apps/shop/releases/0", 200, release)
	a.mux.HandleFunc("GET /roost/v1/apps/shop/releases/3/events", func(w http.ResponseWriter, _ *http.Request) {
		for _, e := range releaseEvents("complete", "") {
			_ = json.NewEncoder(w).Encode(e)
		}
	})
	a.answer("GET /roost/v1/apps/shop/secrets", 200, exampleSecrets())
	a.answer("GET /roost/v1/apps/shop/scale", 200, []client.GroupSize{
		{Group: "web", Count: 3, CPUKind: "shared", CPUs: 1, MemoryMB: 256, Regions: map[string]int{"loc": 2, "fra": 1}},
		{Group: "worker", Count: 1, CPUKind: "performance", CPUs: 2, MemoryMB: 4096, Regions: map[string]int{"loc": 1}},
	})
	a.answer("GET /roost/v1/hosts", 200, []client.Host{
		{ID: "1f978f01", Name: "one", Region: "loc", Arch: "amd64", CPUs: 2, Memory: 2 << 30, Machines: map[string]int{"started": 1, "suspended": 2}, Local: &client.LocalHost{Memory: 2 << 30, Free: 1 << 30, Swap: "zram"}},
		{ID: "1f978f02", Name: "two", Region: "fra", Memory: 1 << 30},
	})
	a.answer("GET /v1/tokens/current", 200, map[string]any{"tokens": []caller{{TokenID: "01TOKEN", User: "middleware", OrgSlug: "personal", Apps: []string{"shop"}}}})
	a.mux.HandleFunc("GET /roost/v1/apps/shop/logs", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(client.LogLine{At: now, App: "shop", Machine: id, Provider: "app", Stream: "stdout", Message: text + "\ton \x1b[2J 8080"})
		_ = json.NewEncoder(w).Encode(client.LogLine{At: now.Add(1500 * time.Millisecond), App: "shop", Machine: id, Provider: "runner", Message: "Main child exited normally with code: 0"})
	})
	return a
}

// TestReadGolden: every command that reads, to a person, to a pipe and as JSON.
func TestReadGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"app-list":       {"app", "list"},
		"release-list":   {"releases", "--app", "shop"},
		"release-show":   {"release", "show", "--app", "shop"},
		"auth-whoami":    {"auth", "whoami"},
		"image-list":     {"image", "list"},
		"checks-list":    {"checks", "list", "--app", "shop"},
		"logs":           {"logs", "--app", "shop", "--no-tail"},
		"machine-list":   {"machine", "list", "--app", "shop"},
		"machine-logs":   {"machine", "logs", "--app", "shop", "--no-tail", id},
		"machine-status": {"machine", "status", "--app", "shop", id},
		"org-list":       {"org", "list"},
		"scale-show":     {"scale", "show", "--app", "shop"},
		"secrets-list":   {"secrets", "list", "--app", "shop"},
		"status-app":     {"status", "--app", "shop"},
		"status-hosts":   {"status"},
		"token-list":     {"token", "list"},
	} {
		t.Run(name, func(t *testing.T) {
			args = append([]string{"--url", platform(t).URL}, args...)
			terminal, pipe, asJSON := place{terminal: true}.run(t, args...), place{}.run(t, args...), place{terminal: true}.run(t, append(args, "--json")...)
			for _, s := range []said{terminal, pipe, asJSON} {
				s.want(t, 0)
				if s.err != "" {
					t.Errorf("standard error: got %q, want nothing", s.err)
				}
			}
			if strings.Contains(pipe.out, "\x1b") {
				t.Errorf("escape sequences in a pipe: %q", pipe.out)
			}
			if dec := json.NewDecoder(strings.NewReader(asJSON.out)); dec.Decode(new(any)) != nil {
				t.Errorf("--json is not JSON: %s", asJSON.out)
			}
			golden(t, name+".terminal", terminal.out)
			golden(t, name+".pipe", pipe.out)
			golden(t, name+".json", asJSON.out)
		})
	}
}

// TestHelpGolden: the help of every command, which is the manual, and that
// every verb has an example or needs none.
func TestHelpGolden(t *testing.T) {
	var all strings.Builder
	var walk func(path []string)
	walk = func(path []string) {
		s := place{}.run(t, append(path, "--help")...)
		s.want(t, 0)
		if s.err != "" {
			t.Errorf("help of %v goes to standard error: %q", path, s.err)
		}
		all.WriteString("==== roost " + strings.Join(path, " ") + "\n" + s.out + "\n")
		cmd, _, err := newRootCmd(&factory{io: &term.IO{}}, Processes{}).Find(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "help" {
				walk(append(append([]string(nil), path...), sub.Name()))
			}
		}
	}
	walk(nil)
	golden(t, "help", all.String())
}

// interruptible is a context that ends as Ctrl-C ends a command's.
func interruptible(t *testing.T) (context.Context, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
