// Package real tests a running Roost from outside, on real machines: what a
// user can do wrong, and what the proxy, the network and the API promise. All
// tests share one instance; each makes apps of its own.
package real

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/e2e/suite"
	"github.com/roost-run/roost/machines"
)

// in is the instance that all tests share; probe is the reference of the
// probe's image.
var in *instance.Instance

// tests is this test binary; archive holds the probe's image.
var (
	tests   *suite.Suite
	archive string
)

// ownInstance is a Roost for one test alone, for those that kill processes or
// need other settings.
func ownInstance(t *testing.T, settings ...string) *instance.Instance {
	t.Helper()
	i := tests.Own(t, append([]string{"--swap=file:256MB"}, settings...)...)
	if _, err := i.CLI(t.Context(), "image", "load", archive); err != nil {
		t.Fatal(err)
	}
	return i
}

const probe = "registry.localhost/probe:latest"

// sleep is what a console's machine runs.
var sleep = instance.File{Name: "bin/sleep", Link: "/app"}

// parallel is how many tests run at once unless -parallel says so: most of
// their time they wait.
const parallel = 8

func TestMain(m *testing.M) {
	suite.Main(m, parallel, func(ctx context.Context, s *suite.Suite) (err error) {
		tests, archive = s, filepath.Join(s.Dir, "probe.tar")
		if in, err = s.Share(ctx, "--reclaim-after=1s", "--swap=file:1GB", "--hold-timeout="+hold.String()); err != nil {
			return err
		}
		if err := instance.BuildArchive(ctx, "./probe", probe, archive, sleep); err != nil {
			return err
		}
		_, err = in.CLI(ctx, "image", "load", archive)
		return err
	})
}

// admin calls the API as root on the host: through the socket, without token.
func admin() *machines.Client { return in.AsRoot() }

// patience bounds what a test waits for: generous, since other tests share
// the processors.
const patience = 3 * time.Minute

// hold is how long the shared instance holds a request in vain: no shorter,
// for a machine that starts on a busy host, and no longer, for tests that wait
// for it.
const hold = 30 * time.Second

func eventually(t *testing.T, look func() (missing string)) {
	t.Helper()
	suite.Eventually(t, patience, look)
}

// state reads a machine's state.
func state(t *testing.T, app, id string) machines.State {
	t.Helper()
	m, err := admin().Get(t.Context(), app, id)
	if err != nil {
		t.Fatal(err)
	}
	return m.State
}

// history is a machine's events, oldest first, as "type/status/source".
func history(t *testing.T, app, id string) []string {
	t.Helper()
	list, err := admin().Events(t.Context(), app, id, 50)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range slices.Backward(list) {
		out = append(out, e.Type+"/"+e.Status+"/"+e.Source)
	}
	return out
}

// starts counts how often a machine was started or resumed.
func starts(t *testing.T, app, id string) int {
	t.Helper()
	n := 0
	for _, e := range history(t, app, id) {
		if strings.HasPrefix(e, "start/started/") {
			n++
		}
	}
	return n
}

// exits are a machine's exit events, oldest first.
func exits(t *testing.T, app, id string) []machines.EventRequest {
	t.Helper()
	list, err := admin().Events(t.Context(), app, id, 50)
	if err != nil {
		t.Fatal(err)
	}
	var out []machines.EventRequest
	for _, e := range slices.Backward(list) {
		if e.Type == "exit" {
			if e.Request == nil || e.Request.ExitEvent == nil {
				t.Fatalf("an exit event without exit: %+v", e)
			}
			out = append(out, *e.Request)
		}
	}
	return out
}

// job is a config that runs one command of the probe, once.
func job(command ...string) machines.Config {
	return machines.Config{Image: probe, Init: machines.Init{Cmd: command}, Restart: &machines.Restart{Policy: "no"}}
}

// printed is what a machine's own program has printed so far.
func printed(t *testing.T, app, id string) string {
	t.Helper()
	return logOf(t, in, app, id, "app")
}

// logOf reads the lines of one provider ("": all) from a machine's log.
func logOf(t *testing.T, i *instance.Instance, app, id, provider string) string {
	t.Helper()
	r, err := i.CLI(t.Context(), "logs", "--app", app, "--machine", id, "--no-tail", "--lines", "0", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	d := json.NewDecoder(strings.NewReader(r.Stdout))
	for d.More() {
		var line struct{ Provider, Message string }
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if provider == "" || line.Provider == provider {
			b.WriteString(line.Message + "\n")
		}
	}
	return b.String()
}

// outcome runs a job to its end and returns what it printed.
func outcome(t *testing.T, app string, c machines.Config) string {
	t.Helper()
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	await(t, app, m.ID, machines.StateStopped)
	return printed(t, app, m.ID)
}

// inside runs a command of the probe in a running machine.
func inside(t *testing.T, app, id string, command ...string) machines.ExecReply {
	t.Helper()
	r, err := admin().Exec(t.Context(), app, id, machines.ExecRequest{Command: append([]string{"/app"}, command...)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantStatus fails unless err is an answer of the API with this status whose
// text has every one of the parts.
func wantStatus(t *testing.T, err error, status int, parts ...string) {
	t.Helper()
	if machines.StatusOf(err) != status {
		t.Errorf("got %v, want status %d", err, status)
		return
	}
	wantText(t, err.Error(), parts...)
}

func want(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var apps atomic.Int64

// newApp makes an app that goes with the test, and returns its name.
func newApp(t *testing.T, request ...machines.CreateAppRequest) string {
	t.Helper()
	r := machines.CreateAppRequest{OrgSlug: "personal"}
	if len(request) > 0 {
		r = request[0]
	}
	r.Name = fmt.Sprintf("app-%d", apps.Add(1))
	if _, err := admin().CreateApp(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(lastWords(r.Name))
		}
		if err := admin().DeleteApp(context.WithoutCancel(t.Context()), r.Name, true); err != nil {
			t.Errorf("delete app %s: %v", r.Name, err)
		}
	})
	return r.Name
}

// lastWords is what a person needs to know of an app whose test has failed:
// its machines, their newest events and what the log has last.
func lastWords(app string) string {
	const events, lines = 8, 15
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var b strings.Builder
	list, err := admin().List(ctx, app, machines.ListOptions{Deleted: true})
	fmt.Fprintf(&b, "app %s has %d machines (%v)\n", app, len(list), err)
	for _, m := range list {
		fmt.Fprintf(&b, "machine %s (%s) is %s, its events:\n", m.ID, m.Name, m.State)
		for _, e := range slices.Backward(m.Events[:min(events, len(m.Events))]) {
			fmt.Fprintf(&b, "  %s %s/%s/%s %s\n", time.UnixMilli(e.Timestamp).UTC().Format("15:04:05.000"), e.Type, e.Status, e.Source, e.Reason)
		}
	}
	r, err := in.CLI(ctx, "logs", "--app", app, "--no-tail", "--lines", fmt.Sprint(lines))
	fmt.Fprintf(&b, "the log's end (%v):\n%s", err, r.Stdout)
	return b.String()
}

// web is a config of the probe that serves on port 80.
func web() machines.Config {
	return machines.Config{
		Image: probe,
		Services: []machines.Service{{
			Protocol: "tcp", InternalPort: 8080, Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}},
			Concurrency: &machines.Concurrency{Type: "requests"},
		}},
	}
}

// launch makes a machine. One that goes to sleep soon may do so before anybody
// has seen it run.
func launch(t *testing.T, app string, config machines.Config) *machines.Machine {
	t.Helper()
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start makes a machine and waits until it runs.
func start(t *testing.T, app string, config machines.Config) *machines.Machine {
	t.Helper()
	m := launch(t, app, config)
	await(t, app, m.ID, machines.StateStarted)
	return m
}

// await waits until a machine is in a state.
func await(t *testing.T, app, id string, want machines.State) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		_, err := admin().Wait(t.Context(), app, id, machines.WaitOptions{State: want, Timeout: time.Minute})
		if err == nil {
			return
		}
		if machines.StatusOf(err) != http.StatusRequestTimeout || time.Now().After(deadline) {
			t.Fatalf("machine %s is not %s: %v", id, want, err)
		}
	}
}

var transport = &http.Transport{MaxIdleConnsPerHost: 100, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
	return in.DialEdge(ctx, network, address)
}}

// answer is a response with its body read.
type answer struct {
	*http.Response
	Text string
}

// request asks an app through the edge; header is names and values in turn.
func request(t *testing.T, method, app, path string, body io.Reader, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+app+".localhost"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	hc := &http.Client{Transport: transport, Timeout: instance.RequestTimeout}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatalf("%s %s%s: %v", method, app, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s%s: body: %v", method, app, path, err)
	}
	return answer{resp, string(data)}
}

func get(t *testing.T, app, path string, header ...string) answer {
	t.Helper()
	return request(t, http.MethodGet, app, path, nil, header...)
}

// echo is what the probe says of a request (see probe/main.go).
type echo struct {
	Machine string
	Method  string
	URI     string
	Host    string
	Header  http.Header
	Body    int64
	Number  int64
}

func (a answer) echo(t *testing.T) echo {
	t.Helper()
	var e echo
	if a.StatusCode != http.StatusOK {
		t.Fatalf("status %d, Roost-Error %q: %.500s", a.StatusCode, a.Header.Get("Roost-Error"), a.Text)
	}
	if err := json.Unmarshal([]byte(a.Text), &e); err != nil {
		t.Fatalf("not an echo: %v: %.200s", err, a.Text)
	}
	return e
}

// wantText fails unless text has every one of the parts.
func wantText(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("the text does not say %q:\n%s", p, text)
		}
	}
}

// raw sends a request body as it is and returns status and body.
func raw(t *testing.T, method, path, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, in.API+path, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	hc := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("Fly-Request-Id") == "" {
		t.Errorf("%s %s: no fly-request-id", method, path)
	}
	return resp.StatusCode, string(data)
}
