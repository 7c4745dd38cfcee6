package serverless_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/roost-run/roost/machines"
	"github.com/roost-run/roost/serverless"
)

const (
	digestA = "sha256:aaaaaaaaaaaa000000000000000000000000000000000000000000000000aaaa"
	digestB = "sha256:bbbbbbbbbbbb000000000000000000000000000000000000000000000000bbbb"
	image   = "registry.localhost/shop:1@"
)

// platform is a Machines API that takes a name once, and a proxy that follows
// replays between the processes registered with it.
type platform struct {
	*httptest.Server

	mu       sync.Mutex // guards what follows
	machines map[string]*machines.Machine
	created  []machines.CreateRequest
	updated  []string
	calls    int
	broken   bool          // the API answers 503
	creating chan struct{} // if set, creations wait until it is closed
	handlers map[string]http.Handler
	// program is what a machine made through the API runs.
	program func(id string) http.Handler
}

func newPlatform(t *testing.T) *platform {
	t.Helper()
	p := startPlatform()
	t.Cleanup(p.Close)
	return p
}

func startPlatform() *platform {
	p := &platform{machines: make(map[string]*machines.Machine), handlers: make(map[string]http.Handler)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/apps/shop/machines", p.list)
	mux.HandleFunc("GET /v1/apps/shop/machines/{id}", p.get)
	mux.HandleFunc("POST /v1/apps/shop/machines", p.create)
	mux.HandleFunc("POST /v1/apps/shop/machines/{id}", p.update)
	mux.HandleFunc("DELETE /v1/apps/shop/machines/{id}", p.destroy)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.calls++
		broken := p.broken
		p.mu.Unlock()
		if broken {
			fail(w, http.StatusServiceUnavailable, "try again later")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	return p
}

func fail(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}

func (p *platform) list(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []*machines.Machine{}
	for _, m := range p.machines {
		list = append(list, m)
	}
	_ = json.NewEncoder(w).Encode(list)
}

func (p *platform) get(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.machines[r.PathValue("id")]; m != nil {
		_ = json.NewEncoder(w).Encode(m)
		return
	}
	fail(w, http.StatusNotFound, "machine not found")
}

func (p *platform) create(w http.ResponseWriter, r *http.Request) {
	var in machines.CreateRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	p.mu.Lock()
	creating := p.creating
	p.mu.Unlock()
	if creating != nil {
		<-creating
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.machines {
		if m.Name == in.Name {
			fail(w, http.StatusConflict, "machine name "+in.Name+" is taken")
			return
		}
	}
	p.created = append(p.created, in)
	_, digest, _ := strings.Cut(in.Config.Image, "@")
	m := p.add(in.Name, digest, machines.StateStarted, &in.Config)
	if p.program != nil {
		p.handlers[m.ID] = p.program(m.ID)
	}
	_ = json.NewEncoder(w).Encode(m)
}

func (p *platform) update(w http.ResponseWriter, r *http.Request) {
	var in machines.UpdateRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.machines[r.PathValue("id")]
	switch {
	case m == nil:
		fail(w, http.StatusNotFound, "machine not found")
	case in.CurrentVersion != m.InstanceID:
		fail(w, http.StatusConflict, "it has changed")
	default:
		p.updated = append(p.updated, m.ID)
		m.Config, m.InstanceID = &in.Config, m.InstanceID+"+"
		_ = json.NewEncoder(w).Encode(m)
	}
}

func (p *platform) destroy(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.machines[r.PathValue("id")]
	switch {
	case m == nil:
		fail(w, http.StatusNotFound, "machine not found")
	case m.State == machines.StateStarted && r.URL.Query().Get("force") != "true":
		fail(w, http.StatusPreconditionFailed, "failed_precondition: it runs")
	default:
		delete(p.machines, m.ID)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}
}

// add makes a machine; the caller holds mu or is alone.
func (p *platform) add(name, digest string, state machines.State, config *machines.Config) *machines.Machine {
	m := &machines.Machine{
		ID: fmt.Sprintf("%014x", len(p.machines)+len(p.created)+1), Name: name, State: state, Region: "loc",
		ImageRef: machines.ImageRef{Digest: digest}, Config: config, InstanceID: "1",
	}
	p.machines[m.ID] = m
	return m
}

func (p *platform) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, m := range p.machines {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

func (p *platform) set(name string, state machines.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.machines {
		if m.Name == name {
			m.State = state
		}
	}
}

func (p *platform) remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.machines, id)
}

// options are those of a process on the machine.
func (p *platform) options(m *machines.Machine, digest string, isServerless bool) serverless.Options {
	env := map[string]string{"FLY_APP_NAME": "shop", "FLY_MACHINE_ID": m.ID, "FLY_IMAGE_REF": image + digest}
	if isServerless {
		env["SERVERLESS_MACHINE"] = "1"
	}
	return serverless.Options{
		Routes: []string{"GET /receipts", "POST /receipts/{id}"},
		Client: machines.New(machines.Options{BaseURL: p.URL, Token: "t"}),
		Getenv: func(name string) string { return env[name] },
	}
}

// start runs a process of the app on a new machine and returns its middleware.
func (p *platform) start(t *testing.T, name, digest string, change func(*serverless.Options)) (*serverless.Serverless, string) {
	t.Helper()
	yes := true
	p.mu.Lock()
	m := p.add(name, digest, machines.StateStarted, &machines.Config{
		Image: "registry.localhost/shop:1", Env: map[string]string{"DATABASE": "x"}, Metadata: map[string]string{"fly_process_group": "app"},
		Services: []machines.Service{{
			Protocol: "tcp", InternalPort: 8080, Autostart: &yes, Autostop: machines.AutostopStop, MinRunning: 2,
			Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}},
		}},
	})
	p.mu.Unlock()
	o := p.options(m, digest, false)
	if change != nil {
		change(&o)
	}
	s := serverless.New(o)
	t.Cleanup(s.Close)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[m.ID] = s.Wrap(program(m.ID))
	if p.program == nil {
		p.program = func(id string) http.Handler {
			return serverless.New(p.options(&machines.Machine{ID: id}, digest, true)).Wrap(program(id))
		}
	}
	return s, m.ID
}

// program is the app: it says which machine it runs on.
func program(id string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s on %s", r.Method, r.URL.Path, body, id)
	})
}

// ask sends a request to one machine through the proxy, which follows replays.
func (p *platform) ask(t *testing.T, machine, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	header := http.Header{"Fly-Request-Id": {"01REQUEST-loc"}}
	issuer := ""
	for range 10 {
		req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		req.Header = header.Clone()
		p.mu.Lock()
		h := p.handlers[machine]
		if p.machines[machine] == nil {
			h = nil
		}
		p.mu.Unlock()
		if h == nil {
			header.Set("Fly-Replay-Failed", "instance="+machine+";app=shop;region=loc;replay_source="+issuer+";reason=no_candidate;elapsed_ms=1")
			machine = issuer
			continue
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		value := w.Header().Get("Fly-Replay")
		if value == "" {
			return w
		}
		fields := make(map[string]string)
		for f := range strings.SplitSeq(value, ";") {
			k, v, _ := strings.Cut(f, "=")
			fields[k] = v
		}
		if fields["fallback"] != "prefer_self" {
			t.Fatalf("replay without fallback: %s", value)
		}
		header.Set("Fly-Replay-Src", fmt.Sprintf("instance=%s;region=loc;t=%d;state=%s", machine, time.Now().UnixMicro(), fields["state"]))
		issuer = machine
		if machine = fields["instance"]; fields["elsewhere"] == "true" {
			machine = p.other(issuer)
		}
	}
	t.Fatalf("%s %s: replays without end", method, path)
	return nil
}

func (p *platform) other(not string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, m := range p.machines {
		if id != not && !strings.HasPrefix(m.Name, "serverless-") {
			return id
		}
	}
	return ""
}
