package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/buildcontext"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/machines"
)

// TestMistakes: wrong usage is code 2, says what is wrong and what was meant,
// and reaches no API.
func TestMistakes(t *testing.T) {
	a := newAPI(t)
	for name, c := range map[string]struct {
		args  []string
		parts []string
	}{
		"unknown command":      {[]string{"machin"}, []string{`Error: roost has no command "machin"`, "Hint: did you mean `roost machine`?", "Run `roost --help` for usage."}},
		"help of no command":   {[]string{"help", "deplyo"}, []string{`Error: roost has no command "deplyo"`, "Hint: did you mean `roost deploy`?"}},
		"help of no verb":      {[]string{"help", "app", "nope"}, []string{`Error: roost app has no command "nope"`}},
		"nothing short":        {[]string{"server", "--bogus"}, []string{"Error: unknown flag: --bogus\nRun"}},
		"unknown verb":         {[]string{"app", "crate"}, []string{`roost app has no command "crate"`, "`roost app create`"}},
		"nothing is near":      {[]string{"frobnicate"}, []string{`roost has no command "frobnicate"`}},
		"unknown flag":         {[]string{"app", "list", "--jsn"}, []string{"unknown flag: --jsn", "did you mean --json?"}},
		"flag of the command":  {[]string{"machine", "exec", "-a", "shop", id, "ls", "-l"}, []string{"unknown shorthand flag: 'l'", "put -- before"}},
		"argument missing":     {[]string{"machine", "run", "-a", "shop"}, []string{"roost machine run needs IMAGE [COMMAND...]"}},
		"argument too many":    {[]string{"app", "list", "shop"}, []string{`takes no arguments, got "shop"`}},
		"no app":               {[]string{"machine", "list"}, []string{"no app was named", "--app NAME"}},
		"bad app":              {[]string{"machine", "list", "--app", "Shop"}, []string{`"Shop" is not valid`}},
		"bad app name":         {[]string{"app", "create", "a_b"}, []string{`"a_b" is not valid`}},
		"bad org":              {[]string{"org", "create", "A B"}, []string{"A B"}},
		"bad scope":            {[]string{"token", "create", "all"}, []string{`"all" is not a scope`, "org, app, deploy, read"}},
		"scope without app":    {[]string{"token", "create", "deploy"}, []string{"--app"}},
		"bad port":             {[]string{"machine", "run", "-a", "shop", "-p", "http", "x"}, []string{`--port "http"`, "80:8080/tcp:http"}},
		"bad env":              {[]string{"machine", "run", "-a", "shop", "-e", "HOME", "x"}, []string{`--env "HOME" is not NAME=VALUE`}},
		"nameless env":         {[]string{"machine", "run", "-a", "shop", "-e", "=1", "x"}, []string{"NAME=VALUE"}},
		"bad metadata":         {[]string{"machine", "run", "-a", "shop", "-m", "role", "x"}, []string{`--metadata "role"`}},
		"autostop of nothing":  {[]string{"machine", "run", "-a", "shop", "--autostop", "stop", "x"}, []string{"--port"}},
		"bad autostop":         {[]string{"machine", "run", "-a", "shop", "-p", "80", "--autostop", "later", "x"}, []string{"off, stop, suspend"}},
		"local file missing":   {[]string{"machine", "run", "-a", "shop", "--file-local", "/etc/x=/does/not/exist", "x"}, []string{"/does/not/exist"}},
		"tty without terminal": {[]string{"machine", "exec", "-a", "shop", "-t", id, "sh"}, []string{"--tty needs a terminal"}},
		"archive missing":      {[]string{"image", "load", "/does/not/exist.tar"}, []string{"/does/not/exist.tar"}},
		"build of no folder":   {[]string{"image", "build", "/does/not/exist", "-a", "shop"}, []string{"/does/not/exist is not a directory"}},
		"bad duration":         {[]string{"machine", "stop", "-a", "shop", "--timeout", "soon", id}, []string{`"soon"`}},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.run(t, c.args...)
			s.want(t, exitUsage, append(c.parts, "--help` for usage.")...)
			if s.out != "" {
				t.Errorf("standard output: got %q, want nothing", s.out)
			}
		})
	}
	if asked := a.asked(); len(asked) > 0 {
		t.Errorf("the API was asked: %v", asked)
	}
}

func TestErrorsOfTheAPI(t *testing.T) {
	a := newAPI(t)
	a.fail("GET /v1/apps/missing/machines", http.StatusNotFound, `app "missing" not found`)
	a.fail("GET /v1/apps", http.StatusUnauthorized, "the request has no token")
	a.fail("POST /v1/apps/shop/machines/"+id+"/suspend", http.StatusPreconditionFailed, "failed_precondition: it is stopped")
	a.fail("POST /v1/apps/shop/machines/", http.StatusNotFound, "machine not found")
	a.answer("POST /v1/apps", http.StatusUnprocessableEntity, map[string]string{"error": "Name has already been taken", "status": "name_taken"})
	a.fail("GET /roost/v1/apps/shop/machines/"+id+"/exec", http.StatusPreconditionFailed, "unable to exec machine from current state: 'stopped'")
	a.fail("DELETE /v1/apps/shop/machines/"+id, http.StatusPreconditionFailed, "it runs")

	a.run(t, "machine", "list", "-a", "missing").want(t, exitFailed, `Error: app "missing" not found`, "Request: 01REQUEST-loc")
	a.run(t, "app", "list").want(t, exitUnauthenticated, "Error: the request has no token", "roost auth login", "Request: 01REQUEST-loc")
	a.run(t, "app", "create", "shop").want(t, exitFailed, "already been taken", "roost app list")
	a.run(t, "machine", "exec", "-a", "shop", id, "ls").want(t, exitFailed, "'stopped'", "roost machine start --app shop "+id)
	a.run(t, "machine", "destroy", "-a", "shop", "-y", id).want(t, exitFailed, "it runs", "--force")
	if s := a.run(t, "machine", "suspend", "-a", "shop", id); s.code != exitFailed || strings.Contains(s.err, "failed_precondition") {
		t.Errorf("got %+v, want the message without the API's word", s)
	}
	// Of several things each says what went wrong with it.
	s := a.run(t, "machine", "start", "-a", "shop", "0123456789abcd", "0123456789abce")
	s.want(t, exitFailed, "Error: 0123456789abcd: machine not found", "Error: 0123456789abce: machine not found", "roost machine list --app shop")

	a.Close()
	a.run(t, "app", "list").want(t, exitFailed, "Error: no Roost answers at "+a.URL, "connection refused", "is `roost server` running?")
}

func TestDestroyAsks(t *testing.T) {
	for name, c := range map[string]struct {
		place   place
		yes     bool
		code    int
		deleted bool
		says    string
	}{
		"pipe":            {place{input: "y\n"}, false, exitUsage, false, "confirm with --yes"},
		"pipe, yes":       {place{}, true, exitDone, true, "destroyed"},
		"terminal, y":     {place{terminal: true, input: "y\n"}, false, exitDone, true, "[y/N]"},
		"terminal, YES":   {place{terminal: true, input: " YES \n"}, false, exitDone, true, "destroyed"},
		"terminal, n":     {place{terminal: true, input: "n\n"}, false, exitFailed, false, "nothing was destroyed"},
		"terminal, enter": {place{terminal: true, input: "\n"}, false, exitFailed, false, "nothing was destroyed"},
		"terminal, yes":   {place{terminal: true}, true, exitDone, true, "destroyed"},
	} {
		for what, args := range map[string][]string{"app": {"app", "destroy", "shop"}, "machine": {"machine", "destroy", "--app", "shop", id}} {
			t.Run(what+" "+name, func(t *testing.T) {
				a := platform(t)
				a.answer("DELETE /v1/apps/shop", 200, struct{}{})
				a.answer("DELETE /v1/apps/shop/machines/"+id, 200, struct{}{})
				args := append([]string{"--url", a.URL}, args...)
				if c.yes {
					args = append(args, "--yes")
				}
				s := c.place.run(t, args...)
				s.want(t, c.code, c.says)
				deleted := slices.ContainsFunc(a.asked(), func(c call) bool { return strings.HasPrefix(c.line, "DELETE ") })
				if deleted != c.deleted {
					t.Errorf("deleted: got %v, want %v (%v)", deleted, c.deleted, a.asked())
				}
			})
		}
	}
}

func TestParsePort(t *testing.T) {
	service := func(outside, inside int, protocol string, handlers ...string) machines.Service {
		return machines.Service{Protocol: protocol, InternalPort: inside, Ports: []machines.Port{{Port: outside, Handlers: handlers}}}
	}
	for in, want := range map[string]machines.Service{
		"80":                    service(80, 80, "tcp", "http"),
		"80:8080":               service(80, 8080, "tcp", "http"),
		"443:8080":              service(443, 8080, "tcp", "tls", "http"),
		"443:8080/tcp:http":     service(443, 8080, "tcp", "http"),
		"443:8080/tcp:tls:http": service(443, 8080, "tcp", "tls", "http"),
		"5000/udp":              service(5000, 5000, "udp"),
		"25:2525/tcp":           service(25, 2525, "tcp", "http"),
	} {
		got, err := parsePort(in)
		if in == "5000/udp" { // handlers are the API's to judge
			want.Ports[0].Handlers = got.Ports[0].Handlers
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", in, err, diff)
		}
	}
	for _, in := range []string{"", "x", "80:", ":80", "80:x", "0x50", "80:8080:90", "80-90"} {
		if got, err := parsePort(in); err == nil || !strings.Contains(err.Error(), "80:8080/tcp:http") {
			t.Errorf("%q: got %+v, %v, want an error that shows the form", in, got, err)
		}
	}
}

// TestRunConfig: the flags of machine run become the config that is asked for.
func TestRunConfig(t *testing.T) {
	a := platform(t)
	a.answer("POST /v1/apps/shop/machines", 200, exampleMachine(machines.StateCreated))
	a.answer("GET /v1/apps/shop/machines/"+id+"/wait", 200, machines.WaitReply{OK: true})
	local := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(local, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{
		"-n", "web", "-e", "A=1", "-e", "B=x=y", "-e", "C=", "-m", "role=web", "-p", "80:8080", "--autostop", "suspend", "--auto-stop-after", "30s",
		"--suspend-for", "0", "--vm-memory", "512", "--swap", "256", "--user", "app", "--kill-timeout", "9s", "--soft-limit", "5", "--file-local", "/etc/motd=" + local,
		"registry.localhost/shop:latest", "--", "serve", "--port", "8080",
	}
	s := a.run(t, append([]string{"machine", "run", "-a", "shop"}, flags...)...)
	s.want(t, 0, "Machine "+id)
	if s.out != id+"\n" {
		t.Errorf("answer: got %q, want the id", s.out)
	}
	a.run(t, append([]string{"machine", "run", "-a", "shop", "-d"}, flags...)...).want(t, 0)
	var got machines.CreateRequest
	if err := json.Unmarshal([]byte(a.last().body), &got); err != nil { // detached: the create is the last call
		t.Fatal(err)
	}
	on, after, never, hello := true, machines.Duration(30*time.Second), machines.Duration(0), "aGVsbG8="
	want := machines.CreateRequest{Name: "web", Config: machines.Config{
		Image: "registry.localhost/shop:latest", Env: map[string]string{"A": "1", "B": "x=y", "C": ""}, Metadata: map[string]string{"role": "web"},
		Init: machines.Init{Cmd: []string{"serve", "--port", "8080"}, SwapSizeMB: 256}, Guest: &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 512},
		Processes: []machines.Process{{User: "app"}}, StopConfig: &machines.StopConfig{Timeout: machines.Duration(9 * time.Second)},
		Files: []machines.File{{GuestPath: "/etc/motd", RawValue: &hello}},
		Services: []machines.Service{{
			Protocol: "tcp", InternalPort: 8080, Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}}, Autostop: machines.AutostopSuspend, Autostart: &on,
			AutoStopAfter: &after, SuspendFor: &never, Concurrency: &machines.Concurrency{Type: "requests", SoftLimit: 5},
		}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestConnection(t *testing.T) {
	stored := credentials{URL: "https://roost.example", Token: "stored"}
	for name, c := range map[string]struct {
		c          connection
		env        map[string]string
		url, token string
	}{
		"nothing":                 {connection{}, nil, "http://127.0.0.1:4280", ""},
		"root's socket":           {connection{socket: "/run/roost/api.sock"}, nil, "unix:///run/roost/api.sock", ""},
		"the socket beats login":  {connection{socket: "/run/roost/api.sock", stored: stored}, nil, "unix:///run/roost/api.sock", ""},
		"login":                   {connection{stored: stored}, nil, "https://roost.example", "stored"},
		"the same, by flag":       {connection{stored: stored, url: "https://roost.example/"}, nil, "https://roost.example", "stored"},
		"elsewhere, by flag":      {connection{stored: stored, url: "https://other.example"}, nil, "https://other.example", ""},
		"elsewhere, by variable":  {connection{stored: stored}, map[string]string{"ROOST_URL": "http://other.example"}, "http://other.example", ""},
		"same host, other scheme": {connection{stored: stored, url: "http://roost.example"}, nil, "http://roost.example", ""},
		"a token of no address":   {connection{stored: credentials{Token: "stored"}}, nil, "http://127.0.0.1:4280", ""},
		"flag beats variable":     {connection{url: "127.0.0.1:1", token: "flag"}, map[string]string{"ROOST_URL": "http://other.example", "ROOST_TOKEN": "env"}, "http://127.0.0.1:1", "flag"},
		"variables":               {connection{stored: stored}, map[string]string{"ROOST_TOKEN": "env", "FLY_API_TOKEN": "fly"}, "https://roost.example", "env"},
		"fly's variable":          {connection{}, map[string]string{"FLY_API_TOKEN": "fly"}, "http://127.0.0.1:4280", "fly"},
		"a path is a socket":      {connection{url: "/tmp/api.sock"}, nil, "unix:///tmp/api.sock", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.c.env, c.c.fallback = func(k string) string { return c.env[k] }, "http://127.0.0.1:4280"
			if o := c.c.choose(); o.BaseURL != c.url || o.Token != c.token {
				t.Errorf("got %q with token %q, want %q with %q", o.BaseURL, o.Token, c.url, c.token)
			}
		})
	}
}

func TestAuth(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	file := filepath.Join(home, "roost", "config.toml")
	a, other := platform(t), platform(t)

	refused := newAPI(t)
	refused.fail("GET /v1/tokens/current", http.StatusUnauthorized, "no such token")
	place{input: "roost_x\n"}.run(t, "auth", "login", "--url", refused.URL).want(t, exitUnauthenticated, "no such token")
	if _, err := os.Stat(file); err == nil {
		t.Error("a refused token was stored")
	}
	place{}.run(t, "auth", "login", "--url", a.URL).want(t, exitUsage, "no token was given")

	place{input: "roost_x\n"}.run(t, "auth", "login", "--url", a.URL+"/").want(t, 0, "Logged in at "+a.URL+" as middleware")
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("credentials: got %v, %v, want mode 0600", fi, err)
	}
	a.run(t, "auth", "whoami").want(t, 0)
	if token := a.last().token; token != "roost_x" {
		t.Errorf("token sent to where it was stored for: got %q, want roost_x", token)
	}
	other.run(t, "auth", "whoami").want(t, 0)
	if token := other.last().token; token != "" {
		t.Errorf("token sent elsewhere: %q", token)
	}
	a.run(t, "auth", "logout").want(t, 0, "Logged out")
	a.run(t, "auth", "whoami").want(t, 0)
	if token := a.last().token; token != "" {
		t.Errorf("token sent after logout: %q", token)
	}
	place{}.run(t, "auth", "logout").want(t, 0)

	if err := os.WriteFile(file, []byte("url = ["), 0o600); err != nil {
		t.Fatal(err)
	}
	place{}.run(t, "auth", "whoami").want(t, exitFailed, "is not readable", "roost auth login")
}

// oneOff is a platform on which a machine ends as x says after writing lines.
func oneOff(t *testing.T, x machines.ExitEvent, lines ...string) *api {
	a := newAPI(t)
	gone := exampleMachine(machines.StateDestroyed)
	gone.Events = []machines.Event{{Type: "exit", Request: &machines.EventRequest{ExitEvent: &x}}}
	a.answer("POST /v1/apps/shop/machines", 200, exampleMachine(machines.StateStarted))
	a.answer("GET /v1/apps/shop/machines/"+id+"/wait", 200, machines.WaitReply{OK: true, State: machines.StateDestroyed})
	a.answer("GET /v1/apps/shop/machines", 200, []machines.Machine{gone})
	a.mux.HandleFunc("GET /roost/v1/apps/shop/logs", func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		_ = enc.Encode(client.LogLine{Provider: "runner", Message: "Preparing to run"})
		for _, l := range lines {
			_ = enc.Encode(client.LogLine{Provider: "app", Message: l})
		}
		_ = enc.Encode(client.LogLine{Provider: "runner", Message: "Main child exited normally with code: 0"})
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	return a
}

func TestRunRemoveAttached(t *testing.T) {
	for name, c := range map[string]struct {
		exit  machines.ExitEvent
		code  int
		parts []string
	}{
		"done":          {machines.ExitEvent{}, 0, nil},
		"its own code":  {machines.ExitEvent{ExitCode: 3}, 3, nil},
		"out of memory": {machines.ExitEvent{ExitCode: 137, OOMKilled: true}, 137, []string{"out of memory"}},
		"not launched":  {machines.ExitEvent{ExitCode: 1, Error: "no such command"}, 1, []string{"Error: no such command"}},
		"code unknown":  {machines.ExitEvent{ExitCode: -1}, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := oneOff(t, c.exit, "one", "two", "three")
			s := a.run(t, "machine", "run", "--app", "shop", "--rm", "shop:latest", "job")
			s.want(t, c.code, c.parts...)
			if s.out != "one\ntwo\nthree\n" {
				t.Errorf("output: got %q, want its lines in order and nothing else", s.out)
			}
			if len(c.parts) == 0 && s.err != "" {
				t.Errorf("standard error: got %q, want nothing", s.err)
			}
		})
	}
}

func TestRunRemoveInterrupted(t *testing.T) {
	a := newAPI(t)
	ctx, interrupt := context.WithCancel(t.Context())
	a.answer("POST /v1/apps/shop/machines", 200, exampleMachine(machines.StateStarted))
	a.mux.HandleFunc("GET /roost/v1/apps/shop/logs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	a.mux.HandleFunc("GET /v1/apps/shop/machines/"+id+"/wait", func(_ http.ResponseWriter, r *http.Request) {
		interrupt()
		<-r.Context().Done()
	})
	s := place{ctx: ctx}.run(t, "--url", a.URL, "machine", "run", "--app", "shop", "--rm", "shop:latest")
	s.want(t, exitInterrupted, "Interrupted", "machine "+id+" runs on", "roost machine destroy --app shop --force --yes "+id)
}

// A wait that takes long says for what, and a machine that failed says why.
func TestAwait(t *testing.T) {
	a := newAPI(t)
	var waits atomic.Int32
	a.answer("POST /v1/apps/shop/machines/"+id+"/start", 200, machines.StartReply{PreviousState: "stopped"})
	a.mux.HandleFunc("GET /v1/apps/shop/machines/"+id+"/wait", func(w http.ResponseWriter, _ *http.Request) {
		waits.Add(1)
		reply(w, http.StatusRequestTimeout, map[string]string{"error": "deadline exceeded"})
	})
	a.mux.HandleFunc("GET /v1/apps/shop/machines/"+id, func(w http.ResponseWriter, _ *http.Request) {
		m := exampleMachine(machines.StateStarting)
		if waits.Load() > 1 {
			m = exampleMachine(machines.StateStopped)
		}
		reply(w, 200, m)
	})
	s := a.run(t, "machine", "start", "-a", "shop", id)
	s.want(t, exitFailed, "Waiting for machine "+id+" to be started: it is starting; 5m",
		"Error: machine "+id+" is stopped instead of started: out of memory (exit code 137)", "roost machine logs --app shop "+id)
}

func TestLogsEnd(t *testing.T) {
	a := newAPI(t)
	ctx, interrupt := context.WithCancel(t.Context())
	a.mux.HandleFunc("GET /roost/v1/apps/shop/logs", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(client.LogLine{Provider: "app", Message: "last"})
		_ = http.NewResponseController(w).Flush()
		interrupt()
		<-r.Context().Done()
	})
	a.mux.HandleFunc("GET /roost/v1/apps/broken/logs", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(client.LogLine{Provider: "app", Message: "last"})
	})
	// A person has seen enough: no failure.
	place{ctx: ctx}.run(t, "--url", a.URL, "logs", "-a", "shop").want(t, 0)
	// The platform ended it: one.
	s := a.run(t, "logs", "-a", "broken")
	s.want(t, exitFailed, "ended the stream of log lines")
	if !strings.Contains(s.out, "last") {
		t.Errorf("output: got %q, want the line before the end", s.out)
	}
	a.run(t, "logs", "-a", "broken", "--no-tail").want(t, 0)

	// A machine that never was has no log to wait for; one that is gone has.
	a.answer("GET /v1/apps/silent/machines", 200, []machines.Machine{})
	a.mux.HandleFunc("GET /roost/v1/apps/silent/logs", func(http.ResponseWriter, *http.Request) {})
	a.run(t, "machine", "logs", "-a", "silent", id).want(t, exitFailed, "app silent has no machine "+id, "--all")
}

func TestExec(t *testing.T) {
	a := newAPI(t)
	a.mux.HandleFunc("GET /roost/v1/apps/shop/machines/"+id+"/exec", func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+client.ExecProtocol+"\r\n\r\n")
		_, data, err := client.ReadFrame(buf)
		var start client.ExecStart
		if err = errors.Join(err, json.Unmarshal(data, &start)); err != nil {
			t.Error(err)
		}
		_, input, _ := client.ReadFrame(buf)
		out := client.NewFrameWriter(conn)
		_ = out.Frame(client.FrameStdout, []byte(strings.Join(start.Args, " ")+"|"+string(input)))
		_ = out.Frame(client.FrameStderr, []byte("oops"))
		_ = out.JSON(client.FrameEnd, client.ExecEnd{Code: 7})
	})
	s := place{input: "typed"}.run(t, "--url", a.URL, "machine", "exec", "-a", "shop", "-i", id, "--", "ls", "-l")
	if want := (said{"ls -l|typed", "oops", 7}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	s = place{input: "typed"}.run(t, "--url", a.URL, "machine", "exec", "-a", "shop", id, "--", "ls")
	if want := (said{"ls|", "oops", 7}); s != want {
		t.Errorf("without --stdin: got %+v, want %+v", s, want)
	}
}

// TestBuildContext: what of a folder is sent.
func TestBuildContext(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{
		".dockerignore": "*.log\nsecret\n!keep.log\nvendor/**/testdata\n", "main.go": "package main", "a.log": "x", "keep.log": "x",
		"sub/b.go": "package sub", "sub/c.log": "x", "secret/key": "x", ".git/config": "x", ".env": "x", "sub/.cache/x": "x", "vendor/m/testdata/big": "x", "vendor/m/m.go": "package m",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("main.go", filepath.Join(dir, "link.go")); err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module shop"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	a, mux := newAPI(t), http.NewServeMux()
	a.Config.Handler = mux // newAPI's own reads bodies
	mux.HandleFunc("POST /roost/v1/apps/shop/builds/contexts", func(w http.ResponseWriter, r *http.Request) {
		var m buildcontext.Manifest
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Error(err)
		}
		for _, e := range m.Entries {
			got[e.Path] = e.Link
		}
		_ = json.NewEncoder(w).Encode(client.ContextState{ID: "sha256:1"})
	})
	mux.HandleFunc("POST /roost/v1/apps/shop/builds", func(w http.ResponseWriter, r *http.Request) {
		var b client.BuildSpec
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil || b.Kind != "go" || b.Package != "./cmd" || b.Context != "sha256:1" {
			t.Errorf("build: got %+v, %v", b, err)
		}
		text := "compiling"
		_ = json.NewEncoder(w).Encode(client.Progress{Log: &text})
		_ = json.NewEncoder(w).Encode(client.Progress{Image: &client.Image{Ref: "registry.localhost/shop:latest@sha256:1"}})
	})
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	s := a.run(t, "image", "build", dir, "--app", "shop", "--package", "./cmd")
	if want := (said{"registry.localhost/shop:latest@sha256:1\n", "compiling\n", 0}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	want := map[string]string{".dockerignore": "", ".env": "", "go.mod": "", "main.go": "", "keep.log": "", "link.go": "main.go", "sub": "", "sub/b.go": "", "sub/c.log": "", "vendor": "", "vendor/m": "", "vendor/m/m.go": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

// A program that does not compile: the compiler's words once.
func TestBuildFailureOnce(t *testing.T) {
	a := newAPI(t)
	a.answer("POST /roost/v1/apps/shop/builds/contexts", 200, client.ContextState{ID: "sha256:1"})
	a.mux.HandleFunc("POST /roost/v1/apps/shop/builds", func(w http.ResponseWriter, _ *http.Request) {
		for _, l := range []string{"# bad", "./main.go:3:15: undefined: x"} {
			_ = json.NewEncoder(w).Encode(client.Progress{Log: &l})
		}
		_ = json.NewEncoder(w).Encode(client.Progress{Error: &client.Failure{Status: 422, Message: "the program does not compile:\n# bad\n./main.go:3:15: undefined: x"}})
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module bad"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	s := a.run(t, "image", "build", dir, "--app", "shop")
	s.want(t, exitFailed, "Error: the program does not compile\n")
	if n := strings.Count(s.err, "undefined: x"); n != 1 {
		t.Errorf("the compiler's error is there %d times, want once:\n%s", n, s.err)
	}
}

func TestVersion(t *testing.T) {
	verb, flag := place{}.run(t, "version"), place{}.run(t, "--version")
	if doc := (place{}).run(t, "version", "--json"); doc.code != exitDone || !strings.Contains(doc.out, `"version": "`) || !strings.Contains(doc.out, `"go": "go1.`) {
		t.Errorf("--json: got %+v", doc)
	}
	if verb != flag || !strings.HasPrefix(verb.out, "roost ") || verb.code != 0 {
		t.Errorf("got %+v and %+v, want the same line", verb, flag)
	}
}

func TestAnnounce(t *testing.T) {
	var out strings.Builder
	f := &factory{io: (place{}).streams(&out)}
	c := config.Default()
	c.Listen = []config.Listen{{Addr: ":80"}, {Addr: "127.0.0.1:8080", Port: 80}}
	f.announce(c)
	for _, part := range []string{"http://<app>.localhost (on every address)", "http://<app>.localhost:8080 (on 127.0.0.1)", "http://127.0.0.1:4280", "/var/lib/roost/admin.token", "/run/roost/api.sock"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("does not say %q:\n%s", part, out.String())
		}
	}
}

// Where a server's configuration comes from: the flag, else the variable.
func TestServerConfigFile(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"flag", "variable"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(`domain = "`+name+`.example"`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("ROOST_CONFIG", filepath.Join(dir, "variable"))
	for want, args := range map[string][]string{
		"variable.example": {"server", "--print-config"},
		"flag.example":     {"server", "--print-config", "--config", filepath.Join(dir, "flag")},
		"set.example":      {"server", "--print-config", "--domain", "set.example"},
	} {
		if s := (place{}).run(t, args...); s.code != 0 || !strings.Contains(s.out, `domain = "`+want+`"`) {
			t.Errorf("%v: got %+v, want domain %s", args, s, want)
		}
	}
	t.Setenv("ROOST_CONFIG", filepath.Join(dir, "missing"))
	(place{}).run(t, "server", "--print-config").want(t, exitFailed, "missing")
}

// A list of nothing: a person learns what to do, a program gets nothing.
func TestEmptyLists(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /v1/apps", 200, map[string]any{"apps": []machines.App{}})
	a.answer("GET /v1/apps/shop/machines", 200, []machines.Machine{})
	a.answer("GET /roost/v1/images", 200, []client.Image{})
	a.answer("GET /roost/v1/tokens", 200, []client.Token{})
	for next, args := range map[string][]string{
		"roost app create NAME": {"app", "list"}, "roost machine run": {"machine", "list", "-a", "shop"}, "roost image build": {"image", "list"}, "roost token create": {"token", "list"},
	} {
		args = append([]string{"--url", a.URL}, args...)
		if s := (place{terminal: true}).run(t, args...); s.code != 0 || s.out != "" || !strings.Contains(s.err, next) {
			t.Errorf("%v on a terminal: got %+v, want a note that names %s", args, s, next)
		}
		if got, want := (place{}).run(t, args...), (said{}); got != want {
			t.Errorf("%v in a pipe: got %+v, want nothing", args, got)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"create", "list", "destroy", "app", "machine"}
	for typed, want := range map[string]string{"crate": "create", "lsit": "list", "machines": "machine", "mach": "machine", "x": "", "ap": "app", "unrelated": ""} {
		if got := nearest(typed, names); got != want {
			t.Errorf("%s: got %q, want %q", typed, got, want)
		}
	}
}

// TestMachineSaysItsApp: where no app is named, a machine's id is enough.
func TestMachineSaysItsApp(t *testing.T) {
	a := newAPI(t)
	t.Chdir(t.TempDir())
	a.answer("GET /roost/v1/orgs", 200, []client.Org{{Slug: "personal"}, {Slug: "acme"}})
	a.answer("GET /v1/orgs/personal/machines", 200, map[string]any{"machines": []any{}})
	a.answer("GET /v1/orgs/acme/machines", 200, map[string]any{"machines": []map[string]string{{"id": "00000000000000", "app_name": "other"}, {"id": id, "app_name": "shop"}}})
	a.answer("POST /v1/apps/shop/machines/"+id+"/stop", 200, map[string]bool{"ok": true})
	a.run(t, "machine", "stop", "--detach", id).want(t, exitDone, "Machine "+id+" stopped")
	a.run(t, "machine", "stop", "--detach", "148e1234c56780").want(t, exitFailed, "Error: no app has a machine 148e1234c56780")
	a.run(t, "machine", "stop", "shop").want(t, exitUsage, "no app was named")

	one := newAPI(t)
	one.fail("GET /roost/v1/orgs", http.StatusForbidden, "this token is for app shop")
	one.run(t, "machine", "stop", id).want(t, exitUsage, "no app was named")
}

// TestLargeContext: who sends much by mistake hears of .dockerignore, once.
func TestLargeContext(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		hint  bool
	}{{largeContext, false}, {largeContext + 1, true}} {
		var out strings.Builder
		d := &buildDisplay{f: &factory{io: (place{}).streams(&out)}}
		for range 2 {
			d.upload(&client.Upload{Files: 2, Sending: 2, Bytes: c.bytes})
		}
		if n := strings.Count(out.String(), ".dockerignore"); n != 0 != c.hint || n > 1 {
			t.Errorf("%d bytes: %q", c.bytes, out.String())
		}
	}
}

// TestTokenName: the platform puts what a token is for behind its name.
func TestTokenName(t *testing.T) {
	a := newAPI(t)
	a.answer("POST /roost/v1/tokens", 201, client.CreatedToken{Secret: "roost_d_x"})
	a.run(t, "token", "create", "deploy", "--app", "shop").want(t, exitDone, "it is shown this once")
	if got := a.last().body; !strings.Contains(got, `"name":"deploy"`) {
		t.Errorf("asked for %s, want a token with the name deploy", got)
	}
}
