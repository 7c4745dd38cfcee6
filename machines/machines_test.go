package machines_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/machines"
)

func TestDuration(t *testing.T) {
	tests := map[string]struct {
		want time.Duration
		out  string
	}{
		`"1m30s"`:    {90 * time.Second, `"1m30s"`},
		`"500ms"`:    {500 * time.Millisecond, `"500ms"`},
		`15000000`:   {15 * time.Millisecond, `"15ms"`},
		`1e9`:        {time.Second, `"1s"`},
		`null`:       {0, `"0s"`},
		`""`:         {0, `"0s"`},
		`"-1s"`:      {-time.Second, `"-1s"`},
		`"15"`:       {},
		`1e99`:       {},
		`true`:       {},
		`{"a":"1s"}`: {},
	}
	for in, tt := range tests {
		t.Run(in, func(t *testing.T) {
			var d machines.Duration
			err := json.Unmarshal([]byte(in), &d)
			if tt.out == "" {
				if err == nil {
					t.Errorf("got %v, want an error", time.Duration(d))
				}
				return
			}
			out, marshalErr := json.Marshal(d)
			if err := errors.Join(err, marshalErr); err != nil || time.Duration(d) != tt.want || string(out) != tt.out {
				t.Errorf("got %v %s, %v, want %v %s", time.Duration(d), out, err, tt.want, tt.out)
			}
		})
	}
}

func TestAutostop(t *testing.T) {
	tests := map[string]struct {
		want machines.Autostop
		out  string
	}{
		`false`: {machines.AutostopOff, `false`}, `"off"`: {machines.AutostopOff, `false`}, `"false"`: {machines.AutostopOff, `false`},
		`true`: {machines.AutostopStop, `true`}, `"stop"`: {machines.AutostopStop, `true`}, `"true"`: {machines.AutostopStop, `true`},
		`"suspend"`: {machines.AutostopSuspend, `"suspend"`}, `null`: {machines.AutostopUnset, `false`},
		`"sleep"`: {}, `1`: {},
	}
	for in, tt := range tests {
		t.Run(in, func(t *testing.T) {
			var a machines.Autostop
			err := json.Unmarshal([]byte(in), &a)
			out, _ := json.Marshal(a)
			if wantErr := tt.out == ""; (err != nil) != wantErr || !wantErr && (a != tt.want || string(out) != tt.out) {
				t.Errorf("got %q %s, %v, want %q %s", a, out, err, tt.want, tt.out)
			}
		})
	}
}

func TestHeaderValues(t *testing.T) {
	tests := map[string]struct {
		want machines.HeaderValues
		out  string
	}{
		`false`:      {machines.HeaderValues{}, `false`},
		`[]`:         {machines.HeaderValues{}, `false`},
		`"DENY"`:     {machines.HeaderValues{"DENY"}, `"DENY"`},
		`["a"]`:      {machines.HeaderValues{"a"}, `"a"`},
		`["a", "b"]`: {machines.HeaderValues{"a", "b"}, `["a","b"]`},
		`null`:       {nil, `null`},
		`true`:       {}, `1`: {}, `[1]`: {}, `{}`: {},
	}
	for in, tt := range tests {
		t.Run(in, func(t *testing.T) {
			var h machines.HeaderValues
			err := json.Unmarshal([]byte(in), &h)
			if tt.out == "" {
				if err == nil {
					t.Errorf("got %q, want an error", h)
				}
				return
			}
			out, marshalErr := json.Marshal(h)
			if err := errors.Join(err, marshalErr); err != nil || string(out) != tt.out {
				t.Errorf("got %s, %v, want %s", out, err, tt.out)
			}
			if diff := cmp.Diff(tt.want, h); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPresets(t *testing.T) {
	for _, name := range machines.Presets() {
		g, ok := machines.Preset(name)
		if err := g.Check(); !ok || err != nil {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
	if _, ok := machines.Preset("shared-cpu-3x"); ok || len(machines.Presets()) != 18 {
		t.Errorf("got %v", machines.Presets())
	}
	for name, g := range map[string]machines.Guest{
		"kind":       {CPUKind: "large", CPUs: 1, MemoryMB: 256},
		"cpus":       {CPUKind: "shared", CPUs: 3, MemoryMB: 768},
		"step":       {CPUKind: "shared", CPUs: 1, MemoryMB: 300},
		"too much":   {CPUKind: "shared", CPUs: 1, MemoryMB: 4096},
		"too little": {CPUKind: "performance", CPUs: 2, MemoryMB: 2048},
	} {
		if g.Check() == nil {
			t.Errorf("%s: %+v passes", name, g)
		}
	}
}

// TestReadMachine: a document as Fly.io sends it.
func TestReadMachine(t *testing.T) {
	const document = `{"id":"73d8d46dbee589","name":"quiet-lake-4821","state":"stopped","region":"iad",
		"image_ref":{"registry":"registry.fly.io","repository":"demo","tag":"v1","digest":"sha256:0","labels":{}},
		"instance_id":"01J0ABCDEFGHJKMNPQRSTVWXY1","private_ip":"fdaa:0:18:a7b:7d:f066:b83b:2",
		"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:09Z",
		"config":{"init":{"exec":null,"tty":false},"image":"demo:v1","guest":{"cpu_kind":"shared","cpus":1,"memory_mb":256,"persist_rootfs":1},
			"services":[{"protocol":"tcp","internal_port":8080,"autostop":true,"force_instance_key":null}],"future":1},
		"events":[{"id":"01J","type":"exit","status":"stopped","source":"flyd","timestamp":1767323100000,
			"request":{"exit_event":{"exit_code":137,"signal":-1,"oom_killed":true,"exited_at":"2026-01-02T03:05:00Z"},"restart_count":3}}],
		"checks":[{"name":"servicecheck-00-http-8080","status":"passing","output":"200 OK","updated_at":"2026-01-02T03:04:20Z"}],
		"host_status":"ok","cordoned":false,"future":{}}`
	var m machines.Machine
	if err := json.Unmarshal([]byte(document), &m); err != nil {
		t.Fatal(err)
	}
	exit := m.Events[0].Request.ExitEvent
	if m.State != machines.StateStopped || !m.State.Idle() || m.Config.Services[0].Autostop != machines.AutostopStop || m.Config.Guest.PersistRootFS != "never" ||
		exit.ExitCode != 137 || !exit.OOMKilled || !m.Events[0].Time().Equal(time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC)) {
		t.Errorf("got %+v with config %+v and exit %+v", m, m.Config, exit)
	}
}

// seen serves one answer and keeps what was asked.
type seen struct {
	request, body string
	header        http.Header
}

func serve(t *testing.T, s *seen, status int, answer string) http.Handler {
	t.Helper()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.request, s.body, s.header = r.Method+" "+r.RequestURI, string(body), r.Header
		w.Header().Set("Fly-Request-Id", "01R-loc")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	})
}

// TestRequests: what each method sends. The answers of a real API are in the
// tests of the server.
func TestRequests(t *testing.T) {
	var s seen
	server := httptest.NewServer(serve(t, &s, 200, "{}"))
	defer server.Close()
	c := machines.New(machines.Options{BaseURL: server.URL, Token: "roost_t"})
	ctx := t.Context()
	const app, id = "my shop", "148e1234c56789"
	path := "/v1/apps/my%20shop/machines/" + id
	tests := map[string]struct {
		call          func() error
		request, body string
	}{
		"list": {func() error {
			return c.Do(ctx, "GET", "/v1/x", nil, nil)
		}, "GET /v1/x", ""},
		"signal": {func() error { return c.Signal(ctx, app, id, "SIGUSR1") }, "POST " + path + "/signal", `{"signal":"SIGUSR1"}`},
		"stop":   {func() error { return c.Stop(ctx, app, id, machines.StopRequest{}) }, "POST " + path + "/stop", `{}`},
		"stop, all": {func() error {
			return c.Stop(ctx, app, id, machines.StopRequest{Signal: "SIGTERM", Timeout: machines.Duration(time.Minute)})
		}, "POST " + path + "/stop", `{"signal":"SIGTERM","timeout":"1m0s"}`},
		"restart": {func() error {
			return c.Restart(ctx, app, id, machines.StopRequest{Timeout: machines.Duration(time.Second)}, true)
		}, "POST " + path + "/restart?force_stop=true&timeout=1s", ""},
		"cordon":   {func() error { return c.Cordon(ctx, app, id, true) }, "POST " + path + "/cordon", ""},
		"uncordon": {func() error { return c.Cordon(ctx, app, id, false) }, "POST " + path + "/uncordon", ""},
		"destroy":  {func() error { return c.Destroy(ctx, app, id, true) }, "DELETE " + path + "?force=true", ""},
		"wait":     {func() error { _, err := c.Wait(ctx, app, id, machines.WaitOptions{}); return err }, "GET " + path + "/wait", ""},
		"wait, all": {func() error {
			_, err := c.Wait(ctx, app, id, machines.WaitOptions{State: "stopped", Version: "01V", Timeout: time.Hour})
			return err
		}, "GET " + path + "/wait?state=stopped&timeout=60&version=01V", ""},
		"metadata":       {func() error { return c.SetMetadata(ctx, app, id, "a/b", "c") }, "POST " + path + "/metadata/a%2Fb", `{"value":"c"}`},
		"metadata, gone": {func() error { return c.DeleteMetadata(ctx, app, id, "k") }, "DELETE " + path + "/metadata/k", ""},
		"delete app":     {func() error { return c.DeleteApp(ctx, app, false) }, "DELETE /v1/apps/my%20shop?force=false", ""},
		"busy":           {func() error { return c.Busy(ctx, time.Minute) }, "PUT /.fly/busy?ttl=1m0s", ""},
		"busy no more":   {func() error { return c.Busy(ctx, 0) }, "DELETE /.fly/busy", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.call(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{tt.request, tt.body}, []string{s.request, s.body}); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if got := s.header.Get("Authorization"); got != "Bearer roost_t" {
				t.Errorf("Authorization: got %q", got)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	tests := map[string]struct {
		status int
		body   string
		want   machines.Error
	}{
		"an error":      {409, `{"error":"taken","status":"name_taken"}`, machines.Error{Status: 409, Code: "name_taken", Message: "taken", RequestID: "01R-loc"}},
		"message first": {409, `{"status":"error","message":"held","error":"other","code":"invalid"}`, machines.Error{Status: 409, Code: "invalid", Message: "held", RequestID: "01R-loc"}},
		"plain text":    {404, "404 page not found\n", machines.Error{Status: 404, Message: "404 page not found", RequestID: "01R-loc"}},
		"nothing":       {502, "", machines.Error{Status: 502, RequestID: "01R-loc"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(serve(t, new(seen), tt.status, tt.body))
			defer server.Close()
			_, err := machines.New(machines.Options{BaseURL: server.URL}).Get(t.Context(), "a", "b")
			got, ok := errors.AsType[*machines.Error](err)
			if !ok || *got != tt.want || machines.StatusOf(err) != tt.status {
				t.Errorf("got %#v, want %#v", err, tt.want)
			}
			if !strings.Contains(err.Error(), "request 01R-loc") {
				t.Errorf("text: got %q, want the request id in it", err)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	c := machines.New(machines.Options{BaseURL: "unix:///nowhere/api"})
	_, err := c.Get(t.Context(), "a", "b")
	if err == nil || machines.StatusOf(err) != 0 || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the user had enough")
	cancel(cause)
	if _, err := c.Get(ctx, "a", "b"); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

// TestEnvironment: where a client without options looks.
func TestEnvironment(t *testing.T) {
	var s seen
	server := httptest.NewServer(serve(t, &s, 200, "[]"))
	defer server.Close()
	t.Setenv("FLY_FLAPS_BASE_URL", server.URL)
	t.Setenv("FLY_API_TOKEN", "roost_env")
	if _, err := machines.New(machines.Options{}).List(t.Context(), "shop", machines.ListOptions{Deleted: true, Region: "loc"}); err != nil {
		t.Fatal(err)
	}
	if s.request != "GET /v1/apps/shop/machines?include_deleted=true&region=loc" || s.header.Get("Authorization") != "Bearer roost_env" {
		t.Errorf("got %s with %q", s.request, s.header.Get("Authorization"))
	}
	t.Setenv("FLY_FLAPS_BASE_URL", "")
	for token, want := range map[string]string{"roost_env": "_api.internal", "": "/.fly/api"} {
		t.Setenv("FLY_API_TOKEN", token)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // long or short: the error names it
		_, err := machines.New(machines.Options{}).Get(ctx, "a", "b")
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with token %q: got %v, want %s asked", token, err, want)
		}
	}
}

func TestSocketAndLease(t *testing.T) {
	var s seen
	socket := filepath.Join(t.TempDir(), "api")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(serve(t, &s, 200, "{}"))
	server.Listener = l
	server.Start()
	defer server.Close()
	c := machines.New(machines.Options{BaseURL: "unix://" + socket})
	if err := c.Holding("0123456789ab").Suspend(t.Context(), "shop", "148e1234c56789"); err != nil {
		t.Fatal(err)
	}
	if got := s.header.Get("Fly-Machine-Lease-Nonce"); got != "0123456789ab" || s.header.Get("Authorization") != "" {
		t.Errorf("got nonce %q and %q", got, s.header.Get("Authorization"))
	}
	if err := c.Suspend(t.Context(), "shop", "148e1234c56789"); err != nil || s.header.Get("Fly-Machine-Lease-Nonce") != "" {
		t.Errorf("the client without lease sends nonce %q (%v)", s.header.Get("Fly-Machine-Lease-Nonce"), err)
	}
}
