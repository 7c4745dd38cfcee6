package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/machines"
)

func exampleSecrets() client.Secrets {
	return client.Secrets{Version: 4, Secrets: []client.Secret{
		{Name: "DATABASE_URL", Digest: "0123456789abcdef", CreatedAt: now.Add(-time.Hour), UpdatedAt: now.Add(-time.Hour)},
		{Name: "SECRET_KEY", Digest: "fedcba9876543210", CreatedAt: now.Add(-time.Hour), UpdatedAt: now.Add(-time.Minute), Staged: true},
	}}
}

// keeping is a platform that keeps secrets: the digest of a value is how long
// it is.
func keeping(t *testing.T) *api {
	a := newAPI(t)
	var mu sync.Mutex
	version, values := 1, map[string]string{"OLD": "3"}
	a.mux.HandleFunc("GET /roost/v1/apps/shop/secrets", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		out := client.Secrets{Version: version, Secrets: []client.Secret{}}
		for name, digest := range values {
			out.Secrets = append(out.Secrets, client.Secret{Name: name, Digest: digest})
		}
		reply(w, 200, out)
	})
	a.mux.HandleFunc("POST /v1/apps/shop/secrets", func(w http.ResponseWriter, _ *http.Request) {
		var in struct{ Values map[string]*string }
		if err := json.Unmarshal([]byte(a.last().body), &in); err != nil {
			reply(w, 400, nil)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for name, value := range in.Values {
			was := values[name]
			delete(values, name)
			if value != nil {
				values[name] = "digest-" + strings.Repeat("x", len(*value))
			}
			if values[name] != was {
				version++
			}
		}
		reply(w, 200, machines.SecretsReply{})
	})
	a.answer("POST /roost/v1/apps/shop/secrets/deploy", 201, client.Release{ID: "01R", App: "shop", Version: 9, Status: "pending"})
	a.mux.HandleFunc("GET /roost/v1/apps/shop/releases/9/events", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(client.ReleaseEvent{ID: "1", Step: "update", Machine: id, Message: "machine is updated: new secrets"})
		_ = json.NewEncoder(w).Encode(client.ReleaseEvent{ID: "1a", Step: "verify", Message: "it answers", URL: "http://shop.localhost/"})
		_ = json.NewEncoder(w).Encode(client.ReleaseEvent{ID: "2", Step: "end", Release: &client.Release{Version: 9, Status: "complete"}})
	})
	return a
}

// sent is the body of the first such call.
func (a *api) sent(line string) string {
	for _, c := range a.asked() {
		if c.line == line {
			return c.body
		}
	}
	return ""
}

// TestSecretsSet: values come from arguments and standard input, a release
// follows, and no value is ever printed.
func TestSecretsSet(t *testing.T) {
	a := keeping(t)
	s := place{input: "canary-stdin\n"}.run(t, "--url", a.URL, "secrets", "set", "--app", "shop", "A=canary-arg", "B=-", "URL=postgres://u:p@h/x?a=b")
	s.want(t, 0, "A set (digest ", "B set (digest ", "v9", "new secrets")
	if strings.Contains(s.out+s.err, "canary") {
		t.Errorf("a value is shown:\n%s%s", s.out, s.err)
	}
	if s.out != "" {
		t.Errorf("the answer: got %q, want nothing", s.out)
	}
	var in struct{ Values map[string]string }
	if err := json.Unmarshal([]byte(a.sent("POST /v1/apps/shop/secrets")), &in); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"A": "canary-arg", "B": "canary-stdin", "URL": "postgres://u:p@h/x?a=b"}, in.Values); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if got := a.sent("POST /roost/v1/apps/shop/secrets/deploy"); !strings.Contains(got, "set A, B, URL") || strings.Contains(got, "canary") {
		t.Errorf("the release's description: got %s", got)
	}
}

func TestSecretsStageAndUnset(t *testing.T) {
	a := keeping(t)
	a.run(t, "secrets", "set", "--app", "shop", "--stage", "A=1").want(t, 0, "A set", "roost secrets deploy --app shop")
	if a.sent("POST /roost/v1/apps/shop/secrets/deploy") != "" {
		t.Error("--stage made a release")
	}
	a.run(t, "secrets", "set", "--app", "shop", "--stage", "A=22").want(t, 0, "A changed (digest digest-xx, was digest-x)")
	a.run(t, "secrets", "unset", "--app", "shop", "--stage", "A", "NONE").want(t, 0, "A removed", "NONE was not set")
	a.run(t, "secrets", "unset", "--app", "shop", "NONE").want(t, 0, "Nothing changed")
	a.run(t, "secrets", "unset", "--app", "shop", "--detach", "OLD").want(t, 0, "OLD removed", "v9")
	a.run(t, "secrets", "deploy", "--app", "shop").want(t, 0, "v9")
	s := a.run(t, "secrets", "set", "--app", "shop", "--stage", "--json", "Z=1")
	s.want(t, 0)
	var out client.Secrets
	if err := json.Unmarshal([]byte(s.out), &out); err != nil || len(out.Secrets) != 1 || out.Secrets[0].Name != "Z" {
		t.Errorf("--json: got %s, %v", s.out, err)
	}
}

// TestSecretsDuringRelease: what is stored is not lost, and it is said how to
// go on.
func TestSecretsDuringRelease(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /roost/v1/apps/shop/secrets", 200, exampleSecrets())
	a.answer("POST /v1/apps/shop/secrets", 200, machines.SecretsReply{})
	a.answer("POST /roost/v1/apps/shop/secrets/deploy", 409, map[string]string{"error": "release v4 is being rolled out", "status": "release_in_progress"})
	a.run(t, "secrets", "set", "--app", "shop", "A=1").want(t, exitFailed, "v4 is being rolled out", "the secrets are stored", "roost secrets deploy --app shop")
}

// TestSecretsWithoutRelease: there is nothing to release, which is no failure.
func TestSecretsWithoutRelease(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /roost/v1/apps/shop/secrets", 200, exampleSecrets())
	a.answer("POST /v1/apps/shop/secrets", 200, machines.SecretsReply{})
	a.answer("POST /roost/v1/apps/shop/secrets/deploy", 412, map[string]string{"error": "no release", "status": "no_release"})
	a.answer("GET /v1/apps/shop/machines", 200, []machines.Machine{})
	a.run(t, "secrets", "set", "--app", "shop", "A=1").want(t, 0, "no machines yet")
}

func TestSecretsMistakes(t *testing.T) {
	a := newAPI(t)
	for name, c := range map[string]struct {
		args  []string
		input string
		says  string
	}{
		"no value":       {[]string{"set", "canary"}, "", "argument 1 is not NAME=VALUE"},
		"bad name":       {[]string{"set", "A-B=canary"}, "", `"A-B"`},
		"reserved":       {[]string{"set", "FLY_REGION=canary"}, "", "FLY_REGION"},
		"two from stdin": {[]string{"set", "A=-", "B=-"}, "canary", "cannot both"},
		"empty stdin":    {[]string{"set", "A=-"}, "", "standard input is empty"},
		"twice":          {[]string{"set", "A=canary", "A=2"}, "", "A is set twice"},
		"unset a value":  {[]string{"unset", "A=canary"}, "", "names only"},
		"nothing":        {[]string{"import"}, "\n# canary\n", "no NAME=VALUE line"},
		"a bare line":    {[]string{"import"}, "A=1\ncanary\n", "line 2 is not NAME=VALUE"},
		"an open value":  {[]string{"import"}, "A=\"\"\"\ncanary\n", `line 1: the value of A has no closing """`},
		"a bad line":     {[]string{"import"}, "A=1\n1B=canary\n", "line 2: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := place{input: c.input}.run(t, append([]string{"--url", a.URL, "secrets", c.args[0], "--app", "shop"}, c.args[1:]...)...)
			s.want(t, exitUsage, c.says)
			if strings.Contains(s.err, "canary") {
				t.Errorf("a value is shown:\n%s", s.err)
			}
		})
	}
	if asked := a.asked(); len(asked) > 0 {
		t.Errorf("the API was asked: %v", asked)
	}
}

func TestParseSecrets(t *testing.T) {
	got, err := parseSecrets(strings.NewReader(strings.Join([]string{
		"# a comment", "", "PLAIN=one two  ", "export EXPORTED=yes", `QUOTED=" spaces "`, "SINGLE='x=y#z'", "EMPTY=", `ODD="`,
		`KEY="""`, "-----BEGIN-----", "  body", `-----END-----"""`, `SHORT="""first`, `second"""`, "LAST=1\r",
	}, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	plain := map[string]string{}
	for name, value := range got {
		plain[name] = *value
	}
	want := map[string]string{
		"PLAIN": "one two", "EXPORTED": "yes", "QUOTED": " spaces ", "SINGLE": "x=y#z", "EMPTY": "", "ODD": `"`,
		"KEY": "-----BEGIN-----\n  body\n-----END-----", "SHORT": "first\nsecond", "LAST": "1",
	}
	if diff := cmp.Diff(want, plain); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// scaling is a platform that scales: what it is asked twice, first as a plan.
func scaling(t *testing.T, events ...client.ScaleEvent) *api {
	a := newAPI(t)
	for _, what := range []string{"scale/count", "scale/size", "restart"} {
		a.mux.HandleFunc("POST /roost/v1/apps/shop/"+what, func(w http.ResponseWriter, _ *http.Request) {
			for _, e := range append(events, client.ScaleEvent{Done: true}) {
				_ = json.NewEncoder(w).Encode(e)
			}
		})
	}
	return a
}

func TestScaleCount(t *testing.T) {
	up := client.ScaleEvent{Group: "web", Region: "loc", Machine: id, Action: "create"}
	down := client.ScaleEvent{Group: "worker", Region: "loc", Machine: "2870000000000a", Action: "remove"}
	a := scaling(t, up, up, down)
	args := []string{"--url", a.URL, "scale", "count", "--app", "shop", "web=3", "worker=-1", "--max-per-region", "2", "--region", "loc,fra"}
	// What goes is asked for: in a pipe by --yes.
	place{}.run(t, args...).want(t, exitUsage, "+2 web in loc", "-1 worker in loc", "--yes")
	if n := len(a.asked()); n != 1 {
		t.Errorf("%d calls, want only the plan", n)
	}
	place{terminal: true, input: "n\n"}.run(t, args...).want(t, exitFailed, "Remove 1 machine of shop?")
	place{terminal: true, input: "y\n"}.run(t, args...).want(t, 0, "Machine "+id+" (web, loc) created", "Machine 2870000000000a (worker, loc) removed")
	s := place{}.run(t, append(args, "--yes", "--json")...)
	s.want(t, 0)
	var events []client.ScaleEvent
	if err := json.Unmarshal([]byte(s.out), &events); err != nil || len(events) != 3 {
		t.Errorf("--json: got %s, %v", s.out, err)
	}
	two := 2
	want := client.ScaleCount{Groups: []client.GroupCount{{Group: "web", Count: 3}, {Group: "worker", Count: -1, Relative: true}}, Regions: []string{"loc", "fra"}, MaxPerRegion: &two}
	var got client.ScaleCount
	if err := json.Unmarshal([]byte(a.last().body), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}

	scaling(t).run(t, "scale", "count", "--app", "shop", "2").want(t, 0, "has these machines already")
	refuses := newAPI(t)
	refuses.answer("POST /roost/v1/apps/shop/scale/count", 412, map[string]string{"error": "no complete release", "status": "no_release"})
	refuses.run(t, "scale", "count", "--app", "shop", "2").want(t, exitFailed, "no complete release", "roost deploy")
	for _, bad := range [][]string{{"x"}, {"web="}, {"=2"}, {"web=+0"}, {"2", "3"}, {"web=1", "web=2"}, {"1.5"}} {
		a.run(t, append([]string{"scale", "count", "--app", "shop"}, bad...)...).want(t, exitUsage, "scale count --help")
	}
}

func TestScaleSizeAndRestart(t *testing.T) {
	a := scaling(t, client.ScaleEvent{Group: "web", Machine: id, Action: "resize", State: "started"})
	a.run(t, "scale", "vm", "--app", "shop", "shared-cpu-2x", "--vm-memory", "1024").want(t, 0, "Machine "+id+" (web) has the new size; it is started")
	if got, want := strings.TrimSpace(a.last().body), `{"size":"shared-cpu-2x","memory_mb":1024}`; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	a.run(t, "scale", "memory", "--app", "shop", "512MB", "--process-group", "web").want(t, 0)
	if got, want := strings.TrimSpace(a.last().body), `{"group":"web","memory_mb":512}`; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	a.run(t, "scale", "memory", "--app", "shop", "much").want(t, exitUsage, "number of MB")
	scaling(t).run(t, "scale", "memory", "--app", "shop", "512").want(t, 0, "have that size already")
	a.run(t, "app", "restart", "shop").want(t, 0, "Machine "+id+" restarted")
	if got := a.last().line; got != "POST /roost/v1/apps/shop/restart" {
		t.Errorf("asked %s", got)
	}
}

func TestParseForward(t *testing.T) {
	for in, want := range map[string][2]int{"5432": {5432, 5432}, "15432:5432": {15432, 5432}, "0:80": {0, 80}} {
		if l, r, err := parseForward(in); err != nil || [2]int{l, r} != want {
			t.Errorf("%s: got %d, %d, %v", in, l, r, err)
		}
	}
	for _, in := range []string{"", "x", "0", "1:0", "70000:1", "1:2:3", "1:"} {
		if _, _, err := parseForward(in); err == nil {
			t.Errorf("%q: got no error", in)
		}
	}
	for in, want := range map[string][2]string{"db.internal": {"db", ""}, id: {"", id}, id + ".vm.db.internal": {"db", id}, "db.internal.": {"db", ""}} {
		if app, machine, err := parseProxyHost(in); err != nil || [2]string{app, machine} != want {
			t.Errorf("%s: got %q, %q, %v", in, app, machine, err)
		}
	}
	for _, in := range []string{"db", "a.b.internal", "x.vm.db.internal", "example.com"} {
		if _, _, err := parseProxyHost(in); err == nil {
			t.Errorf("%q: got no error", in)
		}
	}
}

// tunnels makes the platform answer the proxy route with an echo in capitals.
func tunnels(a *api) {
	a.mux.HandleFunc("GET /roost/v1/apps/shop/proxy", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("port") == "1" {
			reply(w, 412, map[string]string{"error": "it listens on no port"})
			return
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", client.ProxyProtocol)
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		out := client.NewFrameWriter(conn)
		for {
			_, data, err := client.ReadFrame(buffered)
			if err != nil || len(data) == 0 {
				_ = out.Frame(client.FrameStdout, nil)
				return
			}
			_ = out.Frame(client.FrameStdout, bytes.ToUpper(data))
		}
	})
}

// loud hands what is written to it to whoever waits for it.
type loud struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	wrote chan struct{} // capacity 1
}

func (l *loud) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func (l *loud) await(t *testing.T, pattern string) []string {
	t.Helper()
	deadline := time.After(patience.Limit)
	for {
		l.mu.Lock()
		found := regexp.MustCompile(pattern).FindStringSubmatch(l.buf.String())
		l.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-l.wrote:
		case <-deadline:
			t.Fatalf("nothing says %q:\n%s", pattern, l.buf.String())
		}
	}
}

// TestProxy: several connections at once, each direction ends by itself, a
// refused one is reported and the others go on; ctrl-c is the end.
func TestProxy(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /v1/apps/shop", 200, machines.App{Name: "shop"})
	tunnels(a)
	start := func(forward string) (string, *loud, func()) {
		ctx, cancel := context.WithCancel(t.Context())
		errs := &loud{wrote: make(chan struct{}, 1)}
		code := make(chan int, 1)
		go func() {
			code <- Run(ctx, place{}.streams(errs), []string{"--url", a.URL, "proxy", forward, "shop.internal"}, Processes{})
		}()
		addr := errs.await(t, `Proxying (\S+) to port \d+ of shop`)[1]
		return addr, errs, func() {
			cancel()
			if got := <-code; got != 0 {
				t.Errorf("exit code after ctrl-c: got %d, want 0\n%s", got, errs.buf.String())
			}
		}
	}
	addr, _, stop := start("0:5432")
	var conns []net.Conn
	for range 3 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		_, err := io.WriteString(conn, "hello")
		tcp, ok := conn.(*net.TCPConn)
		if err = errors.Join(err, tcp.CloseWrite()); err != nil || !ok {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "HELLO" {
			t.Errorf("got %q, %v, want HELLO", got, err)
		}
	}
	stop()

	addr, errs, stop := start("0:1")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	errs.await(t, "it listens on no port")
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("the connection ended with %v", err)
	}
	_ = conn.Close()
	stop()
	a.fail("GET /v1/apps/none", 404, "app not found")
	a.run(t, "proxy", "0:80", "--app", "none").want(t, exitFailed, "app not found")
}

// TestSSHConsolePicks: one that runs before one that is suspended, which is
// woken; none is an error that says what else there is.
func TestSSHConsolePicks(t *testing.T) {
	machine := func(id string, state machines.State, group string) machines.Machine {
		m := exampleMachine(state)
		m.ID, m.Config = id, &machines.Config{Metadata: map[string]string{"fly_process_group": group}}
		return m
	}
	list := []machines.Machine{
		machine("0000000000000a", machines.StateStopped, "app"), machine("0000000000000b", machines.StateSuspended, "worker"), machine("0000000000000c", machines.StateStarted, "app"),
	}
	for name, tt := range map[string]struct {
		args    []string
		place   place
		machine string
		woken   bool
		fails   string
	}{
		"one that runs":  {nil, place{}, "0000000000000c", false, ""},
		"of a group":     {[]string{"-g", "worker"}, place{}, "0000000000000b", true, ""},
		"by id":          {[]string{"--machine", "0000000000000c"}, place{}, "0000000000000c", false, ""},
		"one that rests": {[]string{"--machine", "0000000000000a"}, place{}, "", false, "roost machine start"},
		"none":           {[]string{"-g", "nope"}, place{}, "", false, "roost console --app shop"},
		"chosen in vain": {[]string{"-s"}, place{}, "", false, "--machine"},
		"chosen":         {[]string{"-s"}, place{terminal: true, input: "3\n"}, "0000000000000c", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			a.answer("GET /v1/apps/shop/machines", 200, list)
			for _, m := range list {
				a.answer("GET /v1/apps/shop/machines/"+m.ID, 200, m)
				a.answer("POST /v1/apps/shop/machines/"+m.ID+"/start", 200, machines.StartReply{PreviousState: m.State})
				a.answer("GET /v1/apps/shop/machines/"+m.ID+"/wait", 200, machines.WaitReply{OK: true})
				a.fail("GET /roost/v1/apps/shop/machines/"+m.ID+"/exec", 412, "reached "+m.ID)
			}
			s := tt.place.run(t, append([]string{"--url", a.URL, "ssh", "console", "--app", "shop", "-C", "ls -l"}, tt.args...)...)
			if tt.fails != "" {
				if s.code == 0 || !strings.Contains(s.err, tt.fails) {
					t.Errorf("got %d, %s, want a failure with %q", s.code, s.err, tt.fails)
				}
				return
			}
			s.want(t, exitFailed, "reached "+tt.machine)
			if got := a.sent("POST /v1/apps/shop/machines/"+tt.machine+"/start") != "" || strings.Contains(s.err, "Waking"); got != tt.woken {
				t.Errorf("woken: got %v, want %v\n%s", got, tt.woken, s.err)
			}
		})
	}
}

func TestConsoleUsage(t *testing.T) {
	a := newAPI(t)
	a.run(t, "console", "--app", "shop", "--pty").want(t, exitUsage, "--pty needs a terminal")
	a.run(t, "console", "--app", "shop", "-C", "'open").want(t, exitUsage, "not a command")
	a.fail("GET /roost/v1/apps/shop/console", 412, "neither a release nor a machine")
	a.run(t, "console", "--app", "shop", "-C", "ls").want(t, exitFailed, "neither a release")
}
