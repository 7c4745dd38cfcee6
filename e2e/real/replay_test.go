package real

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/roost-run/roost/machines"
)

// pair is an app with two machines that run.
func pair(t *testing.T) (app, a, b string) {
	t.Helper()
	app = newApp(t)
	first, second := start(t, app, web()), start(t, app, web())
	return app, first.ID, second.ID
}

// replay is a path whose answer by machine only (by any, if empty) is the
// given fly-replay header.
func replay(header, only string) string {
	return "/replay?" + url.Values{"h": {header}, "only": {only}}.Encode()
}

func replayJSON(t *testing.T, document map[string]any, only string) string {
	t.Helper()
	j, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return "/replay?" + url.Values{"j": {string(j)}, "only": {only}}.Encode()
}

// at sends a request to one machine first.
func at(t *testing.T, app, machine, path string, header ...string) answer {
	t.Helper()
	return get(t, app, path, append(header, "Fly-Force-Instance-Id", machine)...)
}

// wantMachine fails unless the request ended at a machine.
func wantMachine(t *testing.T, a answer, want string) echo {
	t.Helper()
	e := a.echo(t)
	if e.Machine != want {
		t.Errorf("ended at %s, want %s", e.Machine, want)
	}
	if a.Header.Get("Set-Cookie") != "" || a.Header.Get("Fly-Replay") != "" {
		t.Errorf("the issuer's headers reached the client: %v", a.Header)
	}
	return e
}

func TestReplayInstanceAndState(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	for range 5 { // never by chance
		e := wantMachine(t, at(t, app, a, replay("instance="+b+";state=blue", "")), b)
		src := e.Header.Get("Fly-Replay-Src")
		wantText(t, src, "instance="+a, "region=loc", "state=blue", "t=")
	}
}

func TestReplayPreferInstance(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	for range 5 {
		wantMachine(t, at(t, app, a, replay("prefer_instance="+b, "")), b)
	}
	gone := "148e1234c56789"
	e := at(t, app, a, replay("prefer_instance="+gone, "")).echo(t)
	if got := e.Header.Get("Fly-Preferred-Instance-Unavailable"); got != gone {
		t.Errorf("fly-preferred-instance-unavailable: got %q, want %s", got, gone)
	}
}

func TestReplayElsewhere(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	for range 5 {
		wantMachine(t, at(t, app, a, replay("elsewhere=true", a)), b)
		wantMachine(t, at(t, app, b, replay("elsewhere=true", b)), a)
	}
}

func TestReplayApp(t *testing.T) {
	t.Parallel()
	app, a, _ := pair(t)
	other := newApp(t)
	target := start(t, other, web())
	wantMachine(t, at(t, app, a, replay("app="+other, a)), target.ID)
}

func TestReplayRegion(t *testing.T) {
	t.Parallel()
	app, a, _ := pair(t)
	at(t, app, a, replay("region=loc", a)).echo(t)
	at(t, app, a, replay(`region="fra,any"`, a)).echo(t)
	if got := at(t, app, a, replay("region=fra", a)); got.StatusCode < 500 {
		t.Errorf("a region without machines: got %d, want an error: %s", got.StatusCode, got.Text)
	}
}

func TestReplayTimeoutAndFallback(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	if err := admin().Stop(t.Context(), app, b, machines.StopRequest{}); err != nil {
		t.Fatal(err)
	}
	await(t, app, b, machines.StateStopped)
	// A lease keeps it from being woken, so that the target is out of reach.
	if _, err := admin().AcquireLease(t.Context(), app, b, 10*time.Minute, "test"); err != nil {
		t.Fatal(err)
	}
	e := wantMachine(t, at(t, app, a, replay("instance="+b+";timeout=300ms;fallback=force_self", "")), a)
	wantText(t, e.Header.Get("Fly-Replay-Failed"), "instance="+b, "reason=", "replay_source="+a, "elapsed_ms=")
	e = at(t, app, a, replay("instance="+b+";timeout=300ms;fallback=prefer_self", "")).echo(t)
	wantText(t, e.Header.Get("Fly-Replay-Failed"), "instance="+b)
	got := at(t, app, a, replay("instance="+b+";timeout=300ms", ""))
	if got.StatusCode < 500 {
		t.Errorf("without fallback: got %d, want an error", got.StatusCode)
	}
	if got.Header.Get("Roost-Error") == "" {
		t.Error("no Roost-Error header")
	}
}

func TestReplayTransform(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	e := wantMachine(t, at(t, app, a, replayJSON(t, map[string]any{
		"instance": b, "state": "s1",
		"transform": map[string]any{
			"path": "/changed?x=1", "delete_headers": []string{"X-Drop"},
			"set_headers": []map[string]string{{"name": "X-New", "value": "there"}},
		},
	}, a), "X-Drop", "here", "X-Keep", "kept"), b)
	if e.URI != "/changed?x=1" {
		t.Errorf("path: got %q", e.URI)
	}
	if e.Header.Get("X-Drop") != "" || e.Header.Get("X-New") != "there" || e.Header.Get("X-Keep") != "kept" {
		t.Errorf("headers: got %v", e.Header)
	}
	wantText(t, e.Header.Get("Fly-Replay-Src"), "state=s1")
}

func TestReplayLoop(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	got := at(t, app, a, "/replay?loop=1&h="+url.QueryEscape("elsewhere=true"))
	if got.StatusCode != http.StatusBadGateway || got.Header.Get("Roost-Error") != "PA02" {
		t.Errorf("got %d %q, want 502 PA02: %s", got.StatusCode, got.Header.Get("Roost-Error"), got.Text)
	}
	wantText(t, got.Text, "10")
	// Both machines are well after it.
	wantMachine(t, at(t, app, a, "/"), a)
	wantMachine(t, at(t, app, b, "/"), b)
}

func TestReplayRefused(t *testing.T) {
	t.Parallel()
	app, a, _ := pair(t)
	if _, err := in.CLI(t.Context(), "org", "create", "strangers"); err != nil {
		t.Fatal(err)
	}
	foreign := newApp(t, machines.CreateAppRequest{OrgSlug: "strangers"})
	start(t, foreign, web())
	separate := newApp(t, machines.CreateAppRequest{OrgSlug: "personal", Network: "separate"})
	start(t, separate, web())
	for header, code := range map[string]string{
		"app=" + foreign:          "PA05",
		"app=" + separate:         "PA05",
		"app=nobody":              "PA04",
		"nonsense":                "PA03",
		"instance=":               "PA03",
		"timeout=soon;region=loc": "PA03",
	} {
		got := at(t, app, a, replay(header, a))
		if got.StatusCode != http.StatusBadGateway || got.Header.Get("Roost-Error") != code {
			t.Errorf("fly-replay %q: got %d %q, want 502 %s: %s", header, got.StatusCode, got.Header.Get("Roost-Error"), code, got.Text)
		}
		if strings.Contains(got.Text, "must not see") {
			t.Errorf("fly-replay %q: the issuer's body reached the client", header)
		}
	}
}

// TestReplayBody: 2 MB go round whole, 12 MB cannot.
func TestReplayBody(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	send := func(size int) answer {
		return request(t, http.MethodPost, app, replay("instance="+b, ""), bytes.NewReader(bytes.Repeat([]byte("x"), size)), "Fly-Force-Instance-Id", a)
	}
	e := wantMachine(t, send(2<<20), b)
	if e.Body != 2<<20 || e.Method != http.MethodPost {
		t.Errorf("got a %s with %d bytes, want a POST with %d", e.Method, e.Body, 2<<20)
	}
	// The answer does not wait for the whole body. A client that only looks for
	// it after its last byte may find a closed connection.
	conn, err := in.DialEdge(t.Context(), "tcp", "")
	want(t, err)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer conn.Close()
	want(t, conn.SetDeadline(time.Now().Add(patience)))
	sending.Go(func() {
		head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s.localhost\r\nFly-Force-Instance-Id: %s\r\nContent-Length: %d\r\n\r\n", replay("instance="+b, ""), app, a, 12<<20)
		if _, err := io.WriteString(conn, head); err == nil {
			_, _ = conn.Write(make([]byte, 12<<20)) // as much as is taken
		}
	})
	got, err := http.ReadResponse(bufio.NewReader(conn), nil)
	want(t, err)
	text, err := io.ReadAll(got.Body)
	want(t, errors.Join(err, got.Body.Close()))
	if got.StatusCode != http.StatusRequestEntityTooLarge || got.Header.Get("Roost-Error") != "PA01" {
		t.Errorf("12 MB: got %d %q, want 413 PA01: %s", got.StatusCode, got.Header.Get("Roost-Error"), text)
	}
	// Without a replay 12 MB are nobody's problem.
	e = request(t, http.MethodPost, app, "/", bytes.NewReader(make([]byte, 12<<20)), "Fly-Force-Instance-Id", a).echo(t)
	if e.Body != 12<<20 {
		t.Errorf("12 MB without replay: got %d bytes", e.Body)
	}
}

// TestReplayWakes: a stopped and a suspended target come up for the replay.
func TestReplayWakes(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	if err := admin().Suspend(t.Context(), app, b); err != nil {
		t.Fatal(err)
	}
	await(t, app, b, machines.StateSuspended)
	wantMachine(t, at(t, app, a, replay("instance="+b, "")), b)
	if err := admin().Stop(t.Context(), app, b, machines.StopRequest{}); err != nil {
		t.Fatal(err)
	}
	await(t, app, b, machines.StateStopped)
	wantMachine(t, at(t, app, a, replay("instance="+b, "")), b)
}

// TestSteeringHeaders: the four request headers that choose a machine.
func TestSteeringHeaders(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	for range 5 {
		wantMachine(t, get(t, app, "/", "Fly-Force-Instance-Id", b), b)
		wantMachine(t, get(t, app, "/", "Fly-Prefer-Instance-Id", a), a)
	}
	e := get(t, app, "/", "Fly-Prefer-Instance-Id", "148e1234c56789").echo(t)
	if got := e.Header.Get("Fly-Preferred-Instance-Unavailable"); got != "148e1234c56789" {
		t.Errorf("fly-preferred-instance-unavailable: got %q", got)
	}
	get(t, app, "/", "Fly-Prefer-Region", "fra,loc").echo(t)
	get(t, app, "/", "Fly-Force-Region", "loc").echo(t)
	if got := get(t, app, "/", "Fly-Force-Region", "fra"); got.StatusCode < 500 {
		t.Errorf("a region without machines: got %d, want an error", got.StatusCode)
	}
	if got := get(t, app, "/", "Fly-Force-Instance-Id", "148e1234c56789"); got.StatusCode != http.StatusBadGateway {
		t.Errorf("a machine that does not exist: got %d, want 502: %s", got.StatusCode, got.Text)
	}
}

// TestRequestHeaders: what the app sees, and what a client cannot forge.
func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, web())
	a := get(t, app, "/path?q=1", "Fly-Client-Ip", "6.6.6.6", "Fly-Region", "mars", "Fly-Replay-Src", "instance=x", "X-Forwarded-For", "1.2.3.4", "Roost-Machine", "x")
	e := a.echo(t)
	for name, want := range map[string]string{
		"Fly-Client-Ip": "127.0.0.1", "Fly-Region": "loc", "X-Forwarded-Proto": "http", "Fly-Forwarded-Proto": "http",
		"X-Forwarded-Ssl": "off", "Fly-Forwarded-Port": "80", "Fly-Replay-Src": "", "Roost-Machine": "",
	} {
		if got := e.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	wantText(t, e.Header.Get("X-Forwarded-For"), "1.2.3.4, 127.0.0.1")
	wantText(t, e.Header.Get("Via"), "1.1 ")
	wantText(t, e.Header.Get("X-Request-Start"), "t=")
	if e.URI != "/path?q=1" || e.Host != app+".localhost" {
		t.Errorf("got %q for %q", e.URI, e.Host)
	}
	if id := a.Header.Get("Fly-Request-Id"); id == "" || id != e.Header.Get("Fly-Request-Id") {
		t.Errorf("fly-request-id: client %q, app %q", id, e.Header.Get("Fly-Request-Id"))
	}
	if got := a.Header.Get("Server"); got != "roost" {
		t.Errorf("Server: got %q", got)
	}
	if got := a.Header.Get("Via"); !strings.Contains(got, "roost") {
		t.Errorf("Via: got %q", got)
	}
}

// TestUnknownHost: 404 with a body for whoever asks.
func TestUnknownHost(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]string{"text/html": "<html", "application/json": "{", "*/*": "nobody-has-this"} {
		a := get(t, "nobody-has-this", "/", "Accept", accept)
		if a.StatusCode != http.StatusNotFound {
			t.Errorf("status: got %d, want 404", a.StatusCode)
		}
		wantText(t, a.Text, want)
	}
}
