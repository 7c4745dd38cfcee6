package real

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

const checkName = "servicecheck-00-http-8080"

// checked is web with a health check of its service.
func checked(edit ...func(*machines.Check)) machines.Config {
	c := web()
	k := machines.Check{Type: "http", Path: "/ht/", Interval: machines.Duration(2 * time.Second), Timeout: machines.Duration(10 * time.Second), GracePeriod: machines.Duration(time.Second)}
	for _, f := range edit {
		f(&k)
	}
	c.Services[0].Checks = []machines.Check{k}
	return c
}

// says waits until the API says of a machine's one check what is wanted.
func says(t *testing.T, i *instance.Instance, app, id, status string, parts ...string) {
	t.Helper()
	var got machines.Status
	eventually(t, func() string {
		m, err := i.AsRoot().Get(t.Context(), app, id)
		if err != nil {
			return err.Error()
		}
		if len(m.Checks) != 1 || m.Checks[0].Status != status {
			return fmt.Sprintf("machine %s is %s and its checks are %+v, want %s", id, m.State, m.Checks, status)
		}
		got = m.Checks[0]
		for _, p := range parts {
			if !strings.Contains(got.Output, p) {
				return fmt.Sprintf("the check says %q, want %q in it", got.Output, p)
			}
		}
		return ""
	})
	if got.Name != checkName || got.UpdatedAt.IsZero() {
		t.Errorf("the check is %+v", got)
	}
}

// ask asks an instance's app, one machine of it if at is not "".
func ask(t *testing.T, i *instance.Instance, app, at, path string) (status int, header http.Header, text string) {
	t.Helper()
	hc := &http.Client{Timeout: instance.RequestTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+i.Edge+path, nil)
	want(t, err)
	req.Host = app + ".localhost"
	if at != "" {
		req.Header.Set("Fly-Force-Instance-Id", at)
	}
	resp, err := hc.Do(req)
	want(t, err)
	defer resp.Body.Close()
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	return resp.StatusCode, resp.Header, b.String()
}

// whoAnswers is the machine that answers a request.
func whoAnswers(t *testing.T, i *instance.Instance, app string) string {
	t.Helper()
	status, header, text := ask(t, i, app, "", "/")
	var e echo
	if err := json.Unmarshal([]byte(text), &e); err != nil || status != http.StatusOK {
		t.Fatalf("status %d, Roost-Error %q: %.300s", status, header.Get("Roost-Error"), text)
	}
	return e.Machine
}

// checksOf is how many checks a machine's process has answered.
func checksOf(t *testing.T, i *instance.Instance, app, id string) int {
	t.Helper()
	_, _, text := ask(t, i, app, id, "/checks")
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("checks of %s: %q", id, text)
	}
	return n
}

// TestChecksGateTraffic: a machine whose check fails gets no requests, and gets
// them again when it passes; people see why, in API, command line and log.
func TestChecksGateTraffic(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	a, b := start(t, app, checked()), start(t, app, checked())
	says(t, in, app, a.ID, "passing", "200 OK: well")
	says(t, in, app, b.ID, "passing")
	eventually(t, func() string {
		if whoAnswers(t, in, app) != a.ID {
			return "nothing goes to the first machine"
		}
		return ""
	})
	ask(t, in, app, a.ID, "/sicken?n=-1")
	says(t, in, app, a.ID, "critical", "500 Internal Server Error: no database")
	for range 50 {
		if who := whoAnswers(t, in, app); who != b.ID {
			t.Fatalf("%s answered, whose check fails", who)
		}
	}
	for _, args := range [][]string{{"checks", "list", "--app", app}, {"machine", "status", a.ID, "--app", app}, {"status", "--app", app}} {
		r, err := in.CLI(t.Context(), args...)
		want(t, err)
		wantText(t, r.Stdout, "critical")
	}
	r, err := in.CLI(t.Context(), "checks", "list", "--app", app)
	want(t, err)
	wantText(t, r.Stdout, checkName, "500 Internal Server Error: no database", a.ID, b.ID)

	// Nobody is left: the request waits, and says for what it waited in vain.
	ask(t, in, app, b.ID, "/sicken?n=-1")
	says(t, in, app, b.ID, "critical")
	status, header, text := ask(t, in, app, "", "/")
	if status != http.StatusServiceUnavailable || header.Get("Roost-Error") != "PR01" {
		t.Errorf("status %d, Roost-Error %q", status, header.Get("Roost-Error"))
	}
	wantText(t, text, checkName, "500 Internal Server Error: no database")
	wantText(t, logOf(t, in, app, a.ID, "health"), "Health check '"+checkName+"' on port 8080 has failed. Your app is not responding properly. Services exposed on ports [80]")

	// A restart is a new process, which is well.
	want(t, admin().Restart(t.Context(), app, a.ID, machines.StopRequest{}, false))
	says(t, in, app, a.ID, "passing")
	if who := whoAnswers(t, in, app); who != a.ID {
		t.Errorf("%s answered, want the one that passes", who)
	}
}

// TestGatingWithoutControl: while the control process stands still, failing
// machines are left out and taken in again; then their status is as it is.
func TestGatingWithoutControl(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := ownApp(t, i)
	a, b := up(t, i, app, checked()), up(t, i, app, checked())
	says(t, i, app, a.ID, "passing")
	says(t, i, app, b.ID, "passing")
	pid, err := i.PID(t.Context(), "control")
	want(t, err)
	want(t, syscall.Kill(pid, syscall.SIGSTOP))
	killed := false
	defer func() {
		if !killed {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}()
	stop := load(t, i, app)
	getsRequests := func(id string) bool {
		for range 20 {
			if whoAnswers(t, i, app) == id {
				return true
			}
		}
		return false
	}
	awaitRequests := func(id string, want bool) {
		t.Helper()
		eventually(t, func() string {
			if got := getsRequests(id); got != want {
				return fmt.Sprintf("machine %s gets requests: %t, want %t", id, got, want)
			}
			return ""
		})
	}
	awaitRequests(a.ID, true)
	ask(t, i, app, a.ID, "/sicken?n=-1")
	awaitRequests(a.ID, false)
	// No request reaches it by the edge now: its neighbour cures it.
	cure := "http://" + net.JoinHostPort(a.PrivateIP, "8080") + "/sicken?n=0"
	if status, _, text := ask(t, i, app, b.ID, "/fetch?url="+url.QueryEscape(cure)); status != http.StatusOK {
		t.Errorf("the cure: %d %s", status, text)
	}
	awaitRequests(a.ID, true)
	ask(t, i, app, b.ID, "/sicken?n=-1")
	awaitRequests(b.ID, false)
	stop()
	killed = true
	want(t, syscall.Kill(pid, syscall.SIGKILL))
	says(t, i, app, b.ID, "critical", "no database")
	says(t, i, app, a.ID, "passing")
}

// TestGatingAcrossEdges: an edge that was killed is followed by one that knows
// which machines failed.
func TestGatingAcrossEdges(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := ownApp(t, i)
	a, b := up(t, i, app, checked()), up(t, i, app, checked())
	says(t, i, app, a.ID, "passing")
	says(t, i, app, b.ID, "passing")
	ask(t, i, app, a.ID, "/sicken?n=-1")
	says(t, i, app, a.ID, "critical")
	for range 3 {
		pid, err := i.PID(t.Context(), "edge")
		want(t, err)
		want(t, i.Kill(t.Context(), "edge"))
		eventually(t, func() string {
			if now, err := i.PID(t.Context(), "edge"); err != nil || now == pid {
				return fmt.Sprintf("the edge is %d, %v", now, err)
			}
			return ""
		})
		for range 20 {
			if who := whoAnswers(t, i, app); who != b.ID {
				t.Fatalf("%s answered, whose check fails", who)
			}
		}
	}
	says(t, i, app, a.ID, "critical")
	says(t, i, app, b.ID, "passing")
}

// TestRestartLimitOfCheck: so many failures in a row restart the machine, and
// without a limit none do.
func TestRestartLimitOfCheck(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	// Grace enough for a slow start: a process that does not answer yet is no second failure.
	limited := start(t, app, checked(func(k *machines.Check) { k.RestartLimit, k.GracePeriod = 2, machines.Duration(10*time.Second) }))
	endless := start(t, app, checked())
	says(t, in, app, limited.ID, "passing")
	says(t, in, app, endless.ID, "passing")
	ask(t, in, app, endless.ID, "/sicken?n=-1")
	ask(t, in, app, limited.ID, "/sicken?n=-1")
	eventually(t, func() string {
		if n := starts(t, app, limited.ID); n != 2 {
			return fmt.Sprintf("it was started %d times", n)
		}
		return ""
	})
	says(t, in, app, limited.ID, "passing") // its new process is well
	if n := starts(t, app, endless.ID); n != 1 {
		t.Errorf("without restart_limit it was started %d times", n)
	}
	says(t, in, app, endless.ID, "critical")
	wantText(t, strings.Join(history(t, app, limited.ID), " "), "restart/stopping/flyd exit/stopped/flyd restart/starting/flyd")
	wantText(t, logOf(t, in, app, limited.ID, "runner"), "Restarting machine: check "+checkName+" failed 2 times in a row: 500 Internal Server Error")
}

// TestSuspendedIsNotProbed: checks neither reach nor wake what is suspended,
// and it does not keep anything awake; its last state holds.
func TestSuspendedIsNotProbed(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := checked()
	c.Services[0].Autostop, c.Services[0].AutoStopAfter = machines.AutostopSuspend, new(machines.Duration(3*time.Second))
	m := launch(t, app, c)
	// A request keeps it awake until it has passed.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+app+".localhost/events", nil)
	want(t, err)
	resp, err := transport.RoundTrip(req)
	want(t, err)
	defer resp.Body.Close()
	says(t, in, app, m.ID, "passing")
	cancel()
	await(t, app, m.ID, machines.StateSuspended) // its own checks do not count as load
	before := starts(t, app, m.ID)

	// Another machine's checks are the clock.
	clock := newApp(t)
	other := start(t, clock, checked())
	says(t, in, clock, other.ID, "passing")
	from := checksOf(t, in, clock, other.ID)
	eventually(t, func() string {
		if n := checksOf(t, in, clock, other.ID) - from; n < 4 {
			return fmt.Sprintf("%d checks of a machine that is awake", n)
		}
		return ""
	})
	if s, n := state(t, app, m.ID), starts(t, app, m.ID); s != machines.StateSuspended || n != before {
		t.Errorf("it is %s and was started %d times, want it suspended and untouched", s, n-before)
	}
	says(t, in, app, m.ID, "passing")
	if who := whoAnswers(t, in, app); who != m.ID {
		t.Errorf("%s answered", who)
	}
}

// TestCandidateThatFailsItsCheck: a new version that does not pass never gets
// a request; the old one serves on, and the answer says why.
func TestCandidateThatFailsItsCheck(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := checked()
	c.Env = map[string]string{"RELEASE": "1"}
	m := start(t, app, c)
	says(t, in, app, m.ID, "passing")
	stop := load(t, in, app)

	bad := c
	bad.Env = map[string]string{"RELEASE": "2", "ALLOWED_HOST": "shop.example"}
	_, err := update(t, app, m.ID, bad)
	wantStatus(t, err, http.StatusPreconditionFailed, checkName, "400 Bad Request: DisallowedHost at /ht/",
		"Host is "+app+".localhost", "ALLOWED_HOSTS", "the old version keeps serving")
	wantText(t, inside(t, app, m.ID, "env").Stdout, "RELEASE=1\n")
	says(t, in, app, m.ID, "passing")

	good := c
	good.Env = map[string]string{"RELEASE": "3", "ALLOWED_HOST": app + ".localhost"}
	_, err = update(t, app, m.ID, good)
	want(t, err)
	wantText(t, inside(t, app, m.ID, "env").Stdout, "RELEASE=3\n")
	says(t, in, app, m.ID, "passing")
	stop()
}

// TestLogsOfApp: one stream has what an app's machines and the platform say.
func TestLogsOfApp(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	a := start(t, app, web())
	b := start(t, app, web())
	want(t, admin().Stop(t.Context(), app, b.ID, machines.StopRequest{}))
	await(t, app, b.ID, machines.StateStopped)
	get(t, app, "/", "Fly-Force-Instance-Id", b.ID)
	want(t, admin().Destroy(t.Context(), app, a.ID, true))
	read := func(args ...string) string {
		t.Helper()
		r, err := in.CLI(t.Context(), append([]string{"logs", "--app", app, "--no-tail", "--lines", "0"}, args...)...)
		want(t, err)
		return r.Stdout
	}
	all := ""
	for _, part := range []string{"probe listens on", a.ID, b.ID, "machine started in", "machine became reachable in"} {
		eventually(t, func() string {
			all = read()
			return lacks(all, part)
		})
	}
	if proxy := read("--provider", "proxy"); strings.Contains(proxy, "probe listens on") || !strings.Contains(proxy, "machine started in") {
		t.Errorf("--provider proxy:\n%s", proxy)
	}
	if one := read("--machine", b.ID, "--provider", "app"); strings.Contains(one, a.ID) || !strings.Contains(one, "probe listens on") {
		t.Errorf("--machine:\n%s", one)
	}
	if none := read("--since", "2999-01-01T00:00:00Z"); none != "" {
		t.Errorf("--since:\n%s", none)
	}
	last := ""
	for line := range strings.Lines(all) {
		at, _, _ := strings.Cut(line, "\t")
		if at < last {
			t.Errorf("%s comes after %s", at, last)
		}
		last = at
	}
}
