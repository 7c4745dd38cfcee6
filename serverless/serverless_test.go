package serverless_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/machines"
	"github.com/roost-run/roost/serverless"
)

const (
	nameA = "serverless-aaaaaaaaaaaa"
	nameB = "serverless-bbbbbbbbbbbb"
)

func TestCreateReplayServe(t *testing.T) {
	p := newPlatform(t)
	guest := &machines.Guest{CPUKind: "shared", CPUs: 2, MemoryMB: 1024}
	_, app := p.start(t, "web-1", digestA, func(o *serverless.Options) {
		o.Guest, o.IdleStop, o.Env = guest, 90*time.Second, map[string]string{"WORKERS": "1"}
	})
	w := p.ask(t, app, "POST", "/receipts/7", "body")
	made := w.Header().Get(serverless.HeaderMachine)
	if got, want := w.Body.String(), "POST /receipts/7 body on "+made; got != want || made == app || made == "" {
		t.Errorf("first request: got %q from machine %q, want %q", got, made, want)
	}
	if again := p.ask(t, app, "GET", "/receipts", ""); again.Header().Get(serverless.HeaderMachine) != made {
		t.Errorf("second request: answered by %q, want %q", again.Header().Get(serverless.HeaderMachine), made)
	}
	if page := p.ask(t, app, "GET", "/products", ""); page.Body.String() != "GET /products  on "+app {
		t.Errorf("page: got %q, want it from the app machine", page.Body)
	}
	if page := p.ask(t, made, "GET", "/products", ""); page.Body.String() != "GET /products  on "+app {
		t.Errorf("page asked of the serverless machine: got %q, want it from the app machine", page.Body)
	}
	yes, idle := true, machines.Duration(90*time.Second)
	want := []machines.CreateRequest{{Name: nameA, Region: "loc", Config: machines.Config{
		Image: image + digestA, Guest: guest,
		Env:      map[string]string{"DATABASE": "x", "WORKERS": "1", "SERVERLESS_MACHINE": "1"},
		Metadata: map[string]string{"fly_process_group": "serverless"},
		Services: []machines.Service{{
			Protocol: "tcp", InternalPort: 8080, Autostart: &yes, Autostop: machines.AutostopSuspend, AutoStopAfter: &idle,
			Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}},
		}},
	}}}
	if diff := cmp.Diff(want, p.created); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
}

// TestOneMachine: 100 first requests at once, on two processes.
func TestOneMachine(t *testing.T) {
	p := newPlatform(t)
	p.creating = make(chan struct{})
	a, one := p.start(t, "web-1", digestA, nil)
	b, two := p.start(t, "web-2", digestA, nil)
	a.SetPauses(time.Hour, time.Hour)
	b.SetPauses(time.Hour, time.Hour)
	var wg sync.WaitGroup
	answers := make(chan string, 100)
	for i := range 100 {
		wg.Go(func() {
			w := p.ask(t, []string{one, two}[i%2], "GET", "/receipts", "")
			answers <- w.Header().Get(serverless.HeaderMachine) + w.Header().Get(serverless.HeaderFallback)
		})
	}
	close(p.creating)
	wg.Wait()
	close(answers)
	var by []string
	for machine := range answers {
		by = append(by, machine)
	}
	slices.Sort(by)
	if by = slices.Compact(by); len(by) != 1 || len(p.created) != 1 {
		t.Errorf("answered by %q, %d machines made, want one", by, len(p.created))
	}
	if p.calls > 30 {
		t.Errorf("the API was called %d times for 100 requests of two processes", p.calls)
	}
}

func TestFallbacks(t *testing.T) {
	tests := map[string]struct {
		prepare func(p *platform, o *serverless.Options)
		request func(r *http.Request)
		want    string // in the header; "" means no fallback
		log     string // in the log only
	}{
		"API down": {prepare: func(p *platform, _ *serverless.Options) { p.broken = true }, want: "the machines API is unavailable", log: "try again later"},
		"API not there": {prepare: func(_ *platform, o *serverless.Options) {
			o.Client = machines.New(machines.Options{BaseURL: "unix:///nowhere", Token: "t"})
		}, want: "the machines API does not answer", log: "nowhere"},
		"no services": {prepare: func(p *platform, _ *serverless.Options) {
			for _, m := range p.machines {
				m.Config.Services = nil
			}
		}, want: "no services"},
		"creation takes long": {prepare: func(p *platform, o *serverless.Options) {
			p.creating, o.Patience = make(chan struct{}), time.Millisecond
		}, want: "still being made"},
		"replay failed": {request: func(r *http.Request) {
			r.Header.Set("Fly-Replay-Failed", "instance=x;app=shop;region=loc;replay_source=y;reason=timeout;elapsed_ms=30000")
		}, want: "replay failed: timeout"},
		"replay came back": {request: func(r *http.Request) {
			r.Header.Set("Fly-Replay-Src", "instance=x;region=loc;t=1;state=serverless")
		}, want: "came back"},
		"large body": {request: func(r *http.Request) { r.ContentLength = 11 << 20 }, want: "too large"},
		"not on a machine": {prepare: func(_ *platform, o *serverless.Options) {
			o.Getenv = func(string) string { return "" }
		}, want: "not on a machine"},
		"not through the proxy": {request: func(r *http.Request) { r.Header.Del("Fly-Request-Id") }},
		"other path":            {request: func(r *http.Request) { r.URL.Path = "/products" }},
		"other method":          {request: func(r *http.Request) { r.Method = "DELETE" }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t)
			var log bytes.Buffer
			s, app := p.start(t, "web-1", digestA, func(o *serverless.Options) {
				o.Logger = slog.New(slog.NewTextHandler(&log, nil))
				if tt.prepare != nil {
					tt.prepare(p, o)
				}
			})
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/receipts", nil)
			r.Header.Set("Fly-Request-Id", "01R")
			if tt.request != nil {
				tt.request(r)
			}
			w := httptest.NewRecorder()
			p.handlers[app].ServeHTTP(w, r)
			if w.Code != http.StatusOK || !strings.HasSuffix(w.Body.String(), "on "+app) {
				t.Errorf("got %d %q, want it served locally", w.Code, w.Body)
			}
			got := w.Header().Get(serverless.HeaderFallback)
			if !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("%s: got %q, want %q in it", serverless.HeaderFallback, got, tt.want)
			}
			if logged := log.Len() > 0; logged != (tt.want != "") || !strings.Contains(log.String(), tt.log) {
				t.Errorf("log: got %q, want %q in it", log.String(), tt.log)
			}
			if tt.log != "" && strings.Contains(got, tt.log) {
				t.Errorf("%s tells the client of the platform: %q", serverless.HeaderFallback, got)
			}
			if p.creating != nil {
				close(p.creating)
			}
			s.Close()
		})
	}
}

// TestFailureIsRemembered: an API that is down does not slow every request.
func TestFailureIsRemembered(t *testing.T) {
	p := newPlatform(t)
	p.broken = true
	s, app := p.start(t, "web-1", digestA, nil)
	s.SetPauses(time.Hour, 0)
	for range 10 {
		p.ask(t, app, "GET", "/receipts", "")
	}
	if p.calls != 1 {
		t.Errorf("the API was called %d times in its first second down, want 1", p.calls)
	}
}

// TestKnownMachineOutlivesAPI: requests go on to a machine that is known while
// the API is away, and do not ask it each time.
func TestKnownMachineOutlivesAPI(t *testing.T) {
	p := newPlatform(t)
	s, app := p.start(t, "web-1", digestA, nil)
	s.SetPauses(0, 0)
	made := p.ask(t, app, "GET", "/receipts", "").Header().Get(serverless.HeaderMachine)
	p.mu.Lock()
	p.broken, p.calls = true, 0
	p.mu.Unlock()
	for range 10 {
		if w := p.ask(t, app, "GET", "/receipts", ""); w.Header().Get(serverless.HeaderMachine) != made {
			t.Errorf("answered by %q (fallback %q), want %s", w.Header().Get(serverless.HeaderMachine), w.Header().Get(serverless.HeaderFallback), made)
		}
	}
	if p.calls != 1 {
		t.Errorf("the API was called %d times, want 1", p.calls)
	}
}

// TestGone: somebody removed the machine; the next request makes another one.
func TestGone(t *testing.T) {
	p := newPlatform(t)
	s, app := p.start(t, "web-1", digestA, nil)
	s.SetPauses(0, 0)
	made := p.ask(t, app, "GET", "/receipts", "").Header().Get(serverless.HeaderMachine)
	p.remove(made)
	w := p.ask(t, app, "GET", "/receipts", "")
	if again := w.Header().Get(serverless.HeaderMachine); again == "" || again == made || len(p.created) != 2 {
		t.Errorf("answered by %q (fallback %q), %d machines made, want a second one", again, w.Header().Get(serverless.HeaderFallback), len(p.created))
	}
}

// TestGoneThisMoment: the machine was there a moment ago; the request is
// served locally and the next one has a new machine.
func TestGoneThisMoment(t *testing.T) {
	p := newPlatform(t)
	s, app := p.start(t, "web-1", digestA, nil)
	s.SetPauses(0, time.Hour)
	p.remove(p.ask(t, app, "GET", "/receipts", "").Header().Get(serverless.HeaderMachine))
	if w := p.ask(t, app, "GET", "/receipts", ""); w.Code != 200 || w.Header().Get(serverless.HeaderFallback) != "replay failed: no_candidate" {
		t.Errorf("after it was removed: got %d, fallback %q", w.Code, w.Header().Get(serverless.HeaderFallback))
	}
	if w := p.ask(t, app, "GET", "/receipts", ""); w.Header().Get(serverless.HeaderMachine) == "" || len(p.created) != 2 {
		t.Errorf("the next request: answered by %q, %d machines made", w.Header().Get(serverless.HeaderMachine), len(p.created))
	}
}

func TestBrokenMachineIsReplaced(t *testing.T) {
	p := newPlatform(t)
	_, app := p.start(t, "web-1", digestA, nil)
	p.add(nameA, digestA, machines.StateFailed, nil)
	w := p.ask(t, app, "GET", "/receipts", "")
	if w.Header().Get(serverless.HeaderMachine) == "" || len(p.created) != 1 {
		t.Errorf("answered by %q (fallback %q), %d machines made", w.Header().Get(serverless.HeaderMachine), w.Header().Get(serverless.HeaderFallback), len(p.created))
	}
}

// TestNewerReleaseOfTheSameImage: new secrets, another fly.toml. The machine
// that is there gets them, once, and no older app machine takes them back.
func TestNewerReleaseOfTheSameImage(t *testing.T) {
	p := newPlatform(t)
	app := func(name, release, database string) string {
		_, id := p.start(t, name, digestA, nil)
		p.mu.Lock()
		defer p.mu.Unlock()
		c := p.machines[id].Config
		c.Metadata["fly_release_version"], c.Env["DATABASE"] = release, database
		return id
	}
	old := app("web-1", "9", "x")
	made := p.ask(t, old, "GET", "/receipts", "").Header().Get(serverless.HeaderMachine)
	fresh := app("web-2", "10", "y")
	older := app("web-3", "9", "x")
	for _, id := range []string{fresh, older} {
		if w := p.ask(t, id, "GET", "/receipts", ""); w.Header().Get(serverless.HeaderMachine) != made || made == "" {
			t.Fatalf("answered by %q (fallback %q), want %q", w.Header().Get(serverless.HeaderMachine), w.Header().Get(serverless.HeaderFallback), made)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if diff := cmp.Diff([]string{made}, p.updated); diff != "" {
		t.Errorf("updated (-want +got):\n%s", diff)
	}
	c := p.machines[made].Config
	if c.Env["DATABASE"] != "y" || c.Metadata["serverless_release"] != "10" || len(p.created) != 1 {
		t.Errorf("got %v, %v, %d made; want release 10's", c.Env, c.Metadata, len(p.created))
	}
}

// TestOlderIsRemoved: each version keeps its machine while it is there; then
// the newer one removes it, but not before it is idle.
func TestOlderIsRemoved(t *testing.T) {
	p := newPlatform(t)
	_, old := p.start(t, "web-1", digestA, nil)
	if w := p.ask(t, old, "GET", "/receipts", ""); w.Header().Get(serverless.HeaderMachine) == "" {
		t.Fatalf("no serverless machine: %q", w.Header().Get(serverless.HeaderFallback))
	}
	s, fresh := p.start(t, "web-2", digestB, nil)
	s.SetPauses(time.Millisecond, 0)
	p.program = nil
	rounds := func(n int) { // waits until the newer one has looked n times
		t.Helper()
		p.mu.Lock()
		target := p.calls + n
		p.mu.Unlock()
		wait(t, func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.calls >= target
		})
	}
	p.ask(t, fresh, "GET", "/receipts", "")
	rounds(3)
	if diff := cmp.Diff([]string{nameA, nameB, "web-1", "web-2"}, p.names()); diff != "" {
		t.Errorf("during the rollout (-want +got):\n%s", diff)
	}
	p.mu.Lock()
	delete(p.machines, old)
	p.mu.Unlock()
	rounds(3)
	if diff := cmp.Diff([]string{nameA, nameB, "web-2"}, p.names()); diff != "" {
		t.Errorf("while the older one works (-want +got):\n%s", diff)
	}
	p.set(nameA, machines.StateSuspended)
	wait(t, func() bool { return !slices.Contains(p.names(), nameA) })
	if diff := cmp.Diff([]string{nameB, "web-2"}, p.names()); diff != "" {
		t.Errorf("after it fell asleep (-want +got):\n%s", diff)
	}
}

func wait(t *testing.T, done func() bool) {
	t.Helper()
	patience.Until(t, "the newer version", done)
}

func TestBadRoutePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a route that is no pattern was accepted")
		}
	}()
	serverless.New(serverless.Options{Routes: []string{"GET receipts"}})
}
