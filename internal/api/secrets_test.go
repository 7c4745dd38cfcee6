package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/machines"
)

// fakeSecrets has the secrets A and B, at version 7.
type fakeSecrets struct{ *fake }

func (f fakeSecrets) set() root.SecretSet {
	return root.SecretSet{App: "shop", Version: 7, Secrets: []root.Secret{
		{Name: "A", Digest: "0123456789abcdef", CreatedAt: f.now, UpdatedAt: f.now, Version: 1},
		{Name: "B", Digest: "fedcba9876543210", CreatedAt: f.now, UpdatedAt: f.now, Version: 7, Staged: true},
	}}
}

func (f fakeSecrets) List(context.Context, auth.Actor, root.AppName) (root.SecretSet, error) {
	return f.set(), nil
}

func (f fakeSecrets) Get(_ context.Context, _ auth.Actor, _ root.AppName, name string) (root.Secret, error) {
	for _, s := range f.set().Secrets {
		if s.Name == name {
			return s, nil
		}
	}
	return root.Secret{}, root.Errorf(root.NotFound, "no secret %s", name)
}

func (f fakeSecrets) Set(_ context.Context, a auth.Actor, _ root.AppName, values control.SecretValues) (root.SecretSet, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if values[name] == nil {
			text.WriteString(" -" + name)
		} else {
			text.WriteString(" " + name + "=" + *values[name])
		}
	}
	f.called(a, "set%s", text.String())
	return f.set(), nil
}

func (f fakeSecrets) Deploy(_ context.Context, a auth.Actor, _ root.AppName, description string) (*root.Release, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "deploy secrets: %s", description)
	if description == "none" {
		return nil, &root.Error{Kind: root.Precondition, Code: "no_release", Message: "no release"}
	}
	return &root.Release{ID: "01R", App: "shop", Version: 3, Reason: "secrets", Progress: root.Progress{Status: root.ReleasePending}}, nil
}

func TestSecretRoutes(t *testing.T) {
	w := newWorld(t)
	const a = `{"name":"A","digest":"0123456789abcdef","created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z"`
	const b = `{"name":"B","digest":"fedcba9876543210","created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z"`
	const path = "/v1/apps/shop/secrets"
	for name, tt := range map[string]struct {
		method, path, body string
		status             int
		want               string
		call               string
	}{
		"list":               {"GET", path, "", 200, `{"secrets":[` + a + "}," + b + "}]}", ""},
		"a stale version":    {"GET", path + "?version=999&min_version=999", "", 200, `{"secrets":[` + a + "}," + b + "}]}", ""},
		"values":             {"GET", path + "?show_secrets=true", "", 403, `write-only`, ""},
		"one":                {"GET", path + "/A", "", 200, a + "}", ""},
		"one's value":        {"GET", path + "/A?show_secrets=1", "", 403, `write-only`, ""},
		"none":               {"GET", path + "/C", "", 404, "no secret C", ""},
		"set":                {"POST", path, `{"values":{"A":"x","B":null}}`, 200, `{"secrets":[` + a + "}," + b + `}],"version":7,"Version":7}`, "set A=x -B"},
		"sync":               {"POST", path, `{"values":{}}`, 200, `"version":7`, "set"},
		"set one":            {"POST", path + "/A", `{"value":"x"}`, 201, a + `,"version":7,"Version":7}`, "set A=x"},
		"delete":             {"DELETE", path + "/A", "", 200, `{"Version":7,"version":7}`, "set -A"},
		"delete none":        {"DELETE", path + "/C", "", 404, "no secret C", ""},
		"a number":           {"POST", path, `{"values":{"A":123456789}}`, 400, `values.A: want a string, or null`, ""},
		"an object":          {"POST", path, `{"values":{"A":{"canary":1}}}`, 400, `values.A: want a string`, ""},
		"no value":           {"POST", path + "/A", `{}`, 400, "value: want a string", ""},
		"with what is known": {"GET", "/roost/v1/apps/shop/secrets", "", 200, `"staged":true`, ""},
		"deploy":             {"POST", "/roost/v1/apps/shop/secrets/deploy", `{"description":"why"}`, 201, `"version":3`, "deploy secrets: why"},
		"deploy nothing":     {"POST", "/roost/v1/apps/shop/secrets/deploy", `{"description":"none"}`, 412, `no_release`, "deploy secrets: none"},
	} {
		t.Run(name, func(t *testing.T) {
			w.calls = nil
			got := w.do(t, tt.method, tt.path, tt.body)
			if got.status != tt.status || !strings.Contains(got.body, tt.want) {
				t.Errorf("got %d %s, want %d with %s", got.status, got.body, tt.status, tt.want)
			}
			if got := w.lastCall(); got != tt.call {
				t.Errorf("control was asked: %q, want %q", got, tt.call)
			}
		})
	}
	if log := w.log.String(); strings.Contains(log, "canary") || strings.Contains(log, "123456789") {
		t.Errorf("a value stands in the log:\n%s", log)
	}
}

// TestSecretsClient: the typed client, and that it prints no values.
func TestSecretsClient(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	x := "canary"
	values := machines.SecretValues{"A": &x, "B": nil}
	r, err := c.SetSecrets(t.Context(), "shop", values)
	if err != nil || r.Version != 7 || len(r.Secrets) != 2 || w.lastCall() != "set A=canary -B" {
		t.Errorf("got %+v, %v, asked %q", r, err, w.lastCall())
	}
	if got := fmt.Sprintf("%v %+v %#v", values, values, values); strings.Contains(got, "canary") {
		t.Errorf("it prints %s", got)
	}
	list, err := c.Secrets(t.Context(), "shop")
	if err != nil || len(list) != 2 || list[0].Digest != "0123456789abcdef" {
		t.Errorf("list: got %+v, %v", list, err)
	}
}

type fakeScale struct{ *fake }

func (f fakeScale) Show(context.Context, auth.Actor, root.AppName) ([]control.GroupSize, error) {
	return []control.GroupSize{{Group: "web", Count: 2, Guest: root.DefaultGuest(), Regions: map[root.Region]int{"loc": 2}}}, nil
}

func (f fakeScale) Plan(_ context.Context, a auth.Actor, _ root.AppName, c control.ScaleCount) ([]control.ScaleStep, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "plan %+v in %v, at most %d", c.Groups, c.Regions, c.Bound)
	return []control.ScaleStep{{Group: "web", Region: "loc"}}, nil
}

func (f fakeScale) Count(_ context.Context, a auth.Actor, _ root.AppName, c control.ScaleCount, done func(control.ScaleStep)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "count %+v in %v, at most %d, %v", c.Groups, c.Regions, c.Bound, c.Guest)
	switch c.Groups[0].Group {
	case "refused":
		return &root.Error{Kind: root.Precondition, Code: "no_release", Message: "deploy first"}
	case "half":
		done(control.ScaleStep{Group: "half", Region: "loc", Machine: "148e1234c56789"})
		return root.Errorf(root.Exhausted, "no room for the other half")
	}
	done(control.ScaleStep{Group: "web", Region: "loc", Machine: "148e1234c56789"})
	done(control.ScaleStep{Group: "web", Region: "loc", Machine: "148e1234c56780", Remove: true})
	return nil
}

func (f fakeScale) Resize(_ context.Context, a auth.Actor, _ root.AppName, c control.Resize, done func(*root.Machine)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "resize %s to %v %d", c.Group, c.Guest, c.Memory)
	done(&root.Machine{ID: "148e1234c56789", Region: "loc", Status: root.Status{State: root.StateStarted}})
	return nil
}

func (f fakeScale) Restart(_ context.Context, a auth.Actor, _ root.AppName, force bool, done func(*root.Machine)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "restart app force=%v", force)
	done(&root.Machine{ID: "148e1234c56789"})
	return nil
}

func TestScaleRoutes(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	ctx := t.Context()
	var events []client.ScaleEvent
	collect := func(e client.ScaleEvent) { events = append(events, e) }
	two := 2
	err := c.SetCount(ctx, "shop", client.ScaleCount{
		Groups: []client.GroupCount{{Group: "web", Count: 2}, {Count: -1, Relative: true}}, Regions: []string{"ams", "loc"}, MaxPerRegion: &two, MemoryMB: 512,
	}, collect)
	want := []client.ScaleEvent{
		{Group: "web", Region: "loc", Machine: "148e1234c56789", Action: "create"}, {Group: "web", Region: "loc", Machine: "148e1234c56780", Action: "remove"},
	}
	if diff := cmp.Diff(want, events); err != nil || diff != "" {
		t.Errorf("count: %v (-want +got):\n%s", err, diff)
	}
	if got, want := w.lastCall(), "count [{Group:web Count:2 Relative:false} {Group: Count:-1 Relative:true}] in [ams loc], at most 2, &{shared 1 512.0 MB}"; got != want {
		t.Errorf("control was asked: %s, want %s", got, want)
	}
	err = c.SetCount(ctx, "shop", client.ScaleCount{Groups: []client.GroupCount{{Group: "web", Count: 2}}, DryRun: true}, nil)
	if got := w.lastCall(); err != nil || !strings.HasPrefix(got, "plan") || !strings.HasSuffix(got, "at most -1") {
		t.Errorf("dry run: got %v, asked %s", err, got)
	}
	// An error before the first machine is an ordinary answer, one after it ends the stream.
	err = c.SetCount(ctx, "shop", client.ScaleCount{Groups: []client.GroupCount{{Group: "refused", Count: 1}}}, nil)
	if e, ok := errors.AsType[*machines.Error](err); !ok || e.Status != 412 || e.Code != "no_release" {
		t.Errorf("refused: got %v, want 412 with its code", err)
	}
	events = nil
	err = c.SetCount(ctx, "shop", client.ScaleCount{Groups: []client.GroupCount{{Group: "half", Count: 2}}}, collect)
	if machines.StatusOf(err) != 422 || len(events) != 1 || !strings.Contains(err.Error(), "no room") {
		t.Errorf("half: got %v after %v", err, events)
	}
	for name, in := range map[string]client.ScaleCount{
		"no group": {}, "nothing": {Groups: []client.GroupCount{{Relative: true}}}, "a region": {Groups: []client.GroupCount{{Count: 1}}, Regions: []string{"No Such"}},
		"a size": {Groups: []client.GroupCount{{Count: 1}}, Size: "shared-cpu-3x"}, "a bound": {Groups: []client.GroupCount{{Count: 1}}, MaxPerRegion: new(int(-1))},
	} {
		if err := c.SetCount(ctx, "shop", in, nil); machines.StatusOf(err) != 400 {
			t.Errorf("%s: got %v, want status 400", name, err)
		}
	}
	if err := c.SetSize(ctx, "shop", client.ScaleSize{Group: "web", Size: "performance-2x", MemoryMB: 8192}, nil); err != nil {
		t.Error(err)
	}
	if got, want := w.lastCall(), "resize web to &{performance 2 4.0 GB} 8589934592"; got != want {
		t.Errorf("control was asked: %s, want %s", got, want)
	}
	if err := c.RestartApp(ctx, "shop", true, nil); err != nil || w.lastCall() != "restart app force=true" {
		t.Errorf("restart: got %v, asked %s", err, w.lastCall())
	}
	sizes, err := c.Scale(ctx, "shop")
	if diff := cmp.Diff([]client.GroupSize{{Group: "web", Count: 2, CPUKind: "shared", CPUs: 1, MemoryMB: 256, Regions: map[string]int{"loc": 2}}}, sizes); err != nil || diff != "" {
		t.Errorf("show: %v (-want +got):\n%s", err, diff)
	}
}

type fakeDialer struct{ *fake }

func (f fakeDialer) Dial(_ context.Context, a auth.Actor, _ root.AppName, id root.MachineID, port int) (net.Conn, *root.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "dial %q %d", id, port)
	if port == 1 {
		return nil, nil, root.Errorf(root.Precondition, "it listens on no port")
	}
	conn, err := f.dial()
	return conn, &root.Machine{ID: "148e1234c56789"}, err
}

// TestProxyRoute: bytes go both ways over connections of their own, each
// direction ends by itself, and a refusal is an ordinary answer.
func TestProxyRoute(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	ctx := t.Context()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 2) // the connections of this test
	go func() {
		for range cap(served) {
			conn, err := l.Accept()
			if err != nil {
				served <- err
				return
			}
			go func() { // answers only when it has heard all
				data, err := io.ReadAll(conn)
				if err == nil {
					_, err = conn.Write(bytes.ToUpper(data))
				}
				served <- errors.Join(err, conn.Close())
			}()
		}
	}()
	w.dial = func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String()) }
	long := strings.Repeat("a long way ", 100_000) // more than any buffer on the way
	for _, text := range []string{"hello", long} {
		tunnel, err := c.Dial(ctx, "shop", "148e1234c56789", 5432)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tunnel, text); err != nil {
			t.Fatal(err)
		}
		if err := tunnel.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(tunnel)
		if err != nil || string(got) != strings.ToUpper(text) {
			t.Errorf("got %d bytes, %v, want %d", len(got), err, len(text))
		}
		if err := errors.Join(tunnel.Close(), <-served); err != nil {
			t.Error(err)
		}
	}
	if got, want := w.lastCall(), `dial "148e1234c56789" 5432`; got != want {
		t.Errorf("control was asked: %s, want %s", got, want)
	}
	_, err = c.Dial(ctx, "shop", "", 1)
	if machines.StatusOf(err) != 412 || !strings.Contains(err.Error(), "listens on no port") {
		t.Errorf("refused: got %v, want status 412 with the reason", err)
	}
	for _, path := range []string{"?port=0", "?port=x", "?port=80&machine=x", "?port=80"} { // the last one lacks the upgrade
		if got := w.do(t, "GET", "/roost/v1/apps/shop/proxy"+path, ""); got.status != 400 {
			t.Errorf("%s: got %d %s, want 400", path, got.status, got.body)
		}
	}
}

type fakeConsoles struct{ *fake }

func (f fakeConsoles) Open(_ context.Context, a auth.Actor, _ root.AppName, o control.Console) (*root.Machine, *root.Release, func() error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "console %+v", o.Image)
	if o.Image == "missing" {
		return nil, nil, nil, root.Errorf(root.NotFound, "image missing is nowhere")
	}
	release := &root.Release{Version: 1, Definition: []byte(`{"console_command":"python 'manage .py' shell"}`)}
	return &root.Machine{ID: "148e1234c56789"}, release, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.called(a, "console removed")
		if f.removed != nil {
			close(f.removed)
		}
		return nil
	}, nil
}

// TestConsoleRoute: the app's console command runs, and the machine goes,
// whatever the command did.
func TestConsoleRoute(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	var ran []string
	w.execute = func(_ context.Context, e control.ExecStream) (control.ExecResult, error) {
		ran = e.Args
		_, err := e.Files[1].WriteString("out")
		return control.ExecResult{Code: 3}, err
	}
	var out bytes.Buffer
	end, err := c.Console(t.Context(), "shop", client.ConsoleOptions{}, client.ExecStart{}, client.ExecIO{Stdout: &out})
	if err != nil || end.Code != 3 || out.String() != "out" || !slices.Equal(ran, []string{"python", "manage .py", "shell"}) {
		t.Errorf("got %+v, %v, %q, ran %q", end, err, out.String(), ran)
	}
	if got := w.lastCall(); got != "console removed" {
		t.Errorf("at the end: %s", got)
	}
	if _, err = c.Console(t.Context(), "shop", client.ConsoleOptions{}, client.ExecStart{Args: []string{"ls"}}, client.ExecIO{}); err != nil || !slices.Equal(ran, []string{"ls"}) {
		t.Errorf("a command of one's own: %v, ran %q", err, ran)
	}
	_, err = c.Console(t.Context(), "shop", client.ConsoleOptions{Image: "missing"}, client.ExecStart{}, client.ExecIO{})
	if machines.StatusOf(err) != 404 {
		t.Errorf("no image: got %v, want status 404", err)
	}
	_, err = c.Console(t.Context(), "shop", client.ConsoleOptions{Size: "huge"}, client.ExecStart{}, client.ExecIO{})
	if machines.StatusOf(err) != 400 {
		t.Errorf("no size: got %v, want status 400", err)
	}
	// The client goes away while the command runs.
	running, ended := make(chan struct{}), make(chan struct{})
	w.removed = make(chan struct{})
	w.execute = func(ctx context.Context, _ control.ExecStream) (control.ExecResult, error) {
		close(running)
		<-ctx.Done()
		close(ended)
		return control.ExecResult{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-running
		cancel()
	}()
	if _, err := c.Console(ctx, "shop", client.ConsoleOptions{}, client.ExecStart{}, client.ExecIO{}); !errors.Is(err, context.Canceled) {
		t.Errorf("client gone: got %v", err)
	}
	<-ended
	<-w.removed // the handler outlives the connection
	if got := w.lastCall(); got != "console removed" {
		t.Errorf("after the client went: %s", got)
	}
}
