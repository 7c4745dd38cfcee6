package real

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// TestExitCodes: what the exit event says, and that nobody restarts.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	for _, test := range []struct {
		name         string
		command      []string
		code, signal int
	}{
		{"success", []string{"exit", "0"}, 0, -1},
		{"failure", []string{"exit", "42"}, 42, -1},
		{"killed", []string{"abort", "9"}, 137, 9},
		{"terminated", []string{"abort", "15"}, 143, 15},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: job(test.command...)})
			want(t, err)
			await(t, app, m.ID, machines.StateStopped)
			list := exits(t, app, m.ID)
			if len(list) != 1 {
				t.Fatalf("got %d exits, want 1", len(list))
			}
			e := list[0].ExitEvent
			if e.ExitCode != test.code || e.RequestedStop || e.Restarting || e.OOMKilled || e.ExitedAt.IsZero() {
				t.Errorf("exit event: got %+v, want code %d and nothing else", e, test.code)
			}
			// A signal shows as such where the platform saw it, and in the code anyway.
			if e.Signal != test.signal && e.Signal != -1 {
				t.Errorf("signal: got %d, want %d or -1", e.Signal, test.signal)
			}
		})
	}
}

// TestRestartPolicies counts restarts.
func TestRestartPolicies(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	create := func(t *testing.T, policy *machines.Restart, command ...string) string {
		t.Helper()
		c := job(command...)
		c.Restart = policy
		m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: c})
		want(t, err)
		return m.ID
	}
	restarting := func(list []machines.EventRequest) (flags []bool, last int) {
		for _, e := range list {
			flags, last = append(flags, e.ExitEvent.Restarting), e.RestartCount
		}
		return flags, last
	}
	t.Run("on-failure gives up", func(t *testing.T) {
		t.Parallel()
		id := create(t, &machines.Restart{Policy: "on-failure", MaxRetries: 2}, "exit", "5")
		await(t, app, id, machines.StateStopped)
		flags, count := restarting(exits(t, app, id))
		if diff := cmp.Diff([]bool{true, true, false}, flags); diff != "" || count != 2 {
			t.Errorf("restarting (-want +got), count %d, want 2:\n%s", count, diff)
		}
		wantText(t, logOf(t, in, app, id, "runner"), "restarting in 1s", "restarting in 2s", "max restart count of 2")
	})
	t.Run("on-failure, success", func(t *testing.T) {
		t.Parallel()
		id := create(t, &machines.Restart{Policy: "on-failure", MaxRetries: 2}, "exit", "0")
		await(t, app, id, machines.StateStopped)
		flags, _ := restarting(exits(t, app, id))
		if diff := cmp.Diff([]bool{false}, flags); diff != "" {
			t.Errorf("restarting (-want +got):\n%s", diff)
		}
	})
	t.Run("always, success", func(t *testing.T) {
		t.Parallel()
		id := create(t, &machines.Restart{Policy: "always"}, "exit", "0")
		eventually(t, func() string {
			if flags, count := restarting(exits(t, app, id)); len(flags) < 2 || !flags[0] || !flags[1] || count < 2 {
				return fmt.Sprintf("exits: restarting %v, count %d; want two restarts", flags, count)
			}
			return ""
		})
		// A stop that was asked for ends it, also between two runs.
		want(t, admin().Stop(t.Context(), app, id, machines.StopRequest{}))
		await(t, app, id, machines.StateStopped)
		n := len(exits(t, app, id))
		if err := instance.Pause(t.Context(), 2500*time.Millisecond); err != nil { // longer than the next restart's delay
			t.Fatal(err)
		}
		if got := len(exits(t, app, id)); got != n || state(t, app, id) != machines.StateStopped {
			t.Errorf("it was restarted after a stop: %v", history(t, app, id))
		}
	})
}

// TestAutoDestroy: a job leaves nothing but its record.
func TestAutoDestroy(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := job("exit", "4")
	c.AutoDestroy = true
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: c})
	want(t, err)
	await(t, app, m.ID, machines.StateDestroyed)
	list, err := admin().List(t.Context(), app, machines.ListOptions{})
	want(t, err)
	if len(list) != 0 {
		t.Errorf("it is still listed: %+v", list)
	}
	// As the article's Python client asks.
	for query, n := range map[string]int{"include_deleted=False": 0, "include_deleted=True": 1, "include_deleted=false": 0, "include_deleted=1": 1} {
		var found []machines.Machine
		want(t, admin().Do(t.Context(), http.MethodGet, "/v1/apps/"+app+"/machines?"+query, nil, &found))
		if len(found) != n {
			t.Errorf("%s: got %d machines, want %d", query, len(found), n)
		}
	}
	got, err := admin().Get(t.Context(), app, m.ID)
	want(t, err)
	if got.State != machines.StateDestroyed {
		t.Errorf("state: got %s", got.State)
	}
	if _, err := admin().Start(t.Context(), app, m.ID); machines.StatusOf(err) != http.StatusNotFound {
		t.Errorf("start: got %v, want 404", err)
	}
	wantText(t, printed(t, app, m.ID), "leaving with 4")
}

// TestStopSignal: the configured signal reaches the program; what does not
// listen is killed after the time-out.
func TestStopSignal(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	for _, test := range []struct {
		name    string
		command []string
		stop    *machines.StopConfig
		request machines.StopRequest
		said    string
		code    int
	}{
		{"default", []string{"wait"}, nil, machines.StopRequest{}, "got interrupt", 7},
		{"configured", []string{"wait"}, &machines.StopConfig{Signal: "SIGTERM"}, machines.StopRequest{}, "got terminated", 7},
		{"asked for", []string{"wait"}, &machines.StopConfig{Signal: "SIGTERM"}, machines.StopRequest{Signal: "SIGHUP"}, "got hangup", 7},
		{"killed late", []string{"wait", "stubborn"}, &machines.StopConfig{Timeout: machines.Duration(3 * time.Second)}, machines.StopRequest{}, "got interrupt", 137},
		{"killed at once", []string{"wait", "stubborn"}, &machines.StopConfig{Timeout: machines.Duration(time.Minute)}, machines.StopRequest{Signal: "SIGKILL"}, "waiting", 137},
		{"time-out asked for", []string{"wait", "stubborn"}, &machines.StopConfig{Timeout: machines.Duration(time.Minute)}, machines.StopRequest{Timeout: machines.Duration(3 * time.Second)}, "got interrupt", 137},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := job(test.command...)
			c.Restart = &machines.Restart{Policy: "always"} // a requested stop never restarts
			c.StopConfig = test.stop
			m := start(t, app, c)
			eventually(t, func() string { return lacks(printed(t, app, m.ID), "waiting") })
			want(t, admin().Stop(t.Context(), app, m.ID, test.request))
			await(t, app, m.ID, machines.StateStopped)
			wantText(t, printed(t, app, m.ID), test.said)
			list := exits(t, app, m.ID)
			if len(list) != 1 || list[0].ExitEvent.ExitCode != test.code || !list[0].ExitEvent.RequestedStop || list[0].ExitEvent.Restarting {
				t.Errorf("exits: got %+v, want one with code %d that was requested", list, test.code)
			}
		})
	}
}

func lacks(text, part string) string {
	if strings.Contains(text, part) {
		return ""
	}
	return fmt.Sprintf("%q is not in %q", part, text)
}

// TestSignalVerb: a signal is no stop.
func TestSignalVerb(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, job("wait", "stubborn"))
	eventually(t, func() string { return lacks(printed(t, app, m.ID), "waiting") })
	want(t, admin().Signal(t.Context(), app, m.ID, "SIGUSR1"))
	eventually(t, func() string { return lacks(printed(t, app, m.ID), "got user defined signal 1") })
	if got := state(t, app, m.ID); got != machines.StateStarted {
		t.Errorf("state: got %s", got)
	}
	// The number 9, as one client sends it.
	want(t, admin().Do(t.Context(), http.MethodPost, "/v1/apps/"+app+"/machines/"+m.ID+"/signal", map[string]any{"signal": 9}, nil))
	await(t, app, m.ID, machines.StateStopped)
	if list := exits(t, app, m.ID); len(list) != 1 || list[0].ExitEvent.RequestedStop {
		t.Errorf("exits: got %+v, want one that nobody requested", list)
	}
}

// TestOutOfMemoryServing: the request in flight gets an answer, the machine
// comes back, and its history says why it went.
func TestOutOfMemoryServing(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Restart = &machines.Restart{Policy: "on-failure", MaxRetries: 3}
	m := start(t, app, c)
	get(t, app, "/").echo(t)
	a := request(t, http.MethodPost, app, "/eat?mb=600", strings.NewReader("x"))
	if a.StatusCode != http.StatusBadGateway || a.Header.Get("Roost-Error") == "" {
		t.Errorf("the request in flight: got %d, Roost-Error %q, want 502: %s", a.StatusCode, a.Header.Get("Roost-Error"), a.Text)
	}
	wantText(t, a.Text, m.ID)
	eventually(t, func() string {
		list := exits(t, app, m.ID)
		if len(list) == 0 {
			return "no exit event"
		}
		if e := list[0].ExitEvent; !e.OOMKilled || !e.Restarting || e.RequestedStop || e.ExitCode != 137 {
			return fmt.Sprintf("exit event: %+v", e)
		}
		return ""
	})
	get(t, app, "/").echo(t) // it is held while the machine comes back
}

// TestEvents: the order of a machine's whole life.
func TestEvents(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	steps := []struct {
		do   func() error
		want machines.State
	}{
		{func() error { return admin().Suspend(t.Context(), app, m.ID) }, machines.StateSuspended},
		{func() error { _, err := admin().Start(t.Context(), app, m.ID); return err }, machines.StateStarted},
		{func() error { return admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}) }, machines.StateStopped},
		{func() error { _, err := admin().Start(t.Context(), app, m.ID); return err }, machines.StateStarted},
		{func() error { return admin().Restart(t.Context(), app, m.ID, machines.StopRequest{}, false) }, machines.StateStarted},
		{func() error {
			_, err := admin().Update(t.Context(), app, m.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: web()}})
			return err
		}, machines.StateStarted},
	}
	for i, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		await(t, app, m.ID, s.want)
	}
	got := history(t, app, m.ID)
	// The restart's own order is Fly's.
	order := []string{
		"launch/created/user", "start/started/", "suspend/suspended/user", "start/started/user", "stop/stopping/user", "exit/stopped/flyd",
		"start/started/user", "restart/stopping/user", "exit/stopped/flyd", "restart/starting/flyd", "start/started/", "update/replacing/user",
	}
	i := 0
	for _, e := range got {
		if i < len(order) && strings.HasPrefix(e, order[i]) {
			i++
		}
	}
	if i < len(order) {
		t.Errorf("%q does not come where it should in:\n%s", order[i], strings.Join(got, "\n"))
	}
	launch, began := -1, -1
	for i, e := range got {
		if e == "launch/created/user" {
			launch = i
		}
		if strings.HasPrefix(e, "start/started/") {
			began = i
		}
	}
	if n := len(slices.DeleteFunc(slices.Clone(got), func(e string) bool { return e != "launch/created/user" })); n != 2 || launch > began {
		t.Errorf("want a launch for each of two versions, before its start:\n%s", strings.Join(got, "\n"))
	}
	list, err := admin().Events(t.Context(), app, m.ID, 3)
	want(t, err)
	if len(list) != 3 || list[0].Timestamp < list[2].Timestamp {
		t.Errorf("limit 3, newest first: got %+v", list)
	}
}

// TestSkipLaunch: prepared, stopped, and started by whoever asks.
func TestSkipLaunch(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: web(), SkipLaunch: true})
	want(t, err)
	await(t, app, m.ID, machines.StateStopped)
	if n := starts(t, app, m.ID); n != 0 {
		t.Fatalf("it was started: %v", history(t, app, m.ID))
	}
	// An update of what is stopped, with skip_launch, leaves it stopped.
	u, err := admin().Update(t.Context(), app, m.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: web(), SkipLaunch: true}})
	want(t, err)
	if u.InstanceID == m.InstanceID || u.ID != m.ID {
		t.Errorf("update: got %s version %s of %s version %s", u.ID, u.InstanceID, m.ID, m.InstanceID)
	}
	await(t, app, m.ID, machines.StateStopped)
	wantMachine(t, get(t, app, "/"), m.ID)
	// Without skip_launch it is started.
	want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}))
	await(t, app, m.ID, machines.StateStopped)
	_, err = admin().Update(t.Context(), app, m.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: web()}})
	want(t, err)
	await(t, app, m.ID, machines.StateStarted)
}

// TestVerbsInWrongStates: 412 with the state, and no harm.
func TestVerbsInWrongStates(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	wantStatus(t, admin().Destroy(t.Context(), app, m.ID, false), http.StatusPreconditionFailed, "started")
	want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}))
	await(t, app, m.ID, machines.StateStopped)
	want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{})) // again is no mistake
	wantStatus(t, admin().Suspend(t.Context(), app, m.ID), http.StatusPreconditionFailed, "stopped")
	_, err := admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{Command: []string{"/app", "env"}})
	wantStatus(t, err, http.StatusPreconditionFailed, "stopped")
	_, err = admin().Processes(t.Context(), app, m.ID)
	wantStatus(t, err, http.StatusPreconditionFailed, "stopped")
	want(t, admin().Destroy(t.Context(), app, m.ID, false))
	wantStatus(t, admin().Destroy(t.Context(), app, m.ID, false), http.StatusNotFound)
	_, err = admin().Get(t.Context(), app, "148e1234c56789")
	wantStatus(t, err, http.StatusNotFound, "machine not found")
}

// TestExec: output, exit code, input, time-out.
func TestExec(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Env = map[string]string{"GREETING": "hello"}
	m := start(t, app, c)
	if r := inside(t, app, m.ID, "exit", "9"); r.ExitCode != 9 || r.Stdout != "leaving with 9\n" {
		t.Errorf("exit code: got %+v", r)
	}
	if r := inside(t, app, m.ID, "nonsense"); r.ExitCode != 64 || !strings.Contains(r.Stderr, "unknown command") || r.Stdout != "" {
		t.Errorf("stderr: got %+v", r)
	}
	if r := inside(t, app, m.ID, "env"); !strings.Contains(r.Stdout, "GREETING=hello\n") || !strings.Contains(r.Stdout, "FLY_MACHINE_ID="+m.ID) {
		t.Errorf("environment: got %+v", r)
	}
	if r := inside(t, app, m.ID, "whoami"); !strings.Contains(r.Stdout, "uid=0 ") {
		t.Errorf("user: got %+v, want root", r)
	}
	text := strings.Repeat("in and out\n", 5000)
	r, err := admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{Command: []string{"/app", "cat"}, Stdin: text})
	want(t, err)
	if r.Stdout != text {
		t.Errorf("stdin: got %d bytes back, want %d", len(r.Stdout), len(text))
	}
	r, err = admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{Cmd: `/app whoami "a b" c`})
	want(t, err)
	wantText(t, r.Stdout, `args=["a b" "c"]`)
	_, err = admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{Command: []string{"/app", "wait", "stubborn"}, Timeout: 1})
	wantStatus(t, err, http.StatusRequestTimeout) // it would never end by itself
	eventually(t, func() string {                 // and the command is gone
		list, err := admin().Processes(t.Context(), app, m.ID)
		want(t, err)
		for _, p := range list {
			if strings.Contains(p.Command, "stubborn") {
				return "the command still runs: " + p.Command
			}
		}
		return ""
	})
	_, err = admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{Command: []string{"/no/such"}})
	if err == nil {
		t.Error("a command that does not exist: no error")
	} else {
		wantText(t, err.Error(), "/no/such")
	}
	_, err = admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{})
	wantStatus(t, err, http.StatusBadRequest, "command")
}

// TestProcesses: what runs inside and on which addresses it listens.
func TestProcesses(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	eventually(t, func() string {
		list, err := admin().Processes(t.Context(), app, m.ID)
		want(t, err)
		for _, p := range list {
			for _, l := range p.ListenSockets {
				// Go listens for both protocols at once when it may.
				if (l.Address == "0.0.0.0:8080" && l.Proto == "tcp" || l.Address == "[::]:8080" && l.Proto == "tcp6") && strings.Contains(p.Command, "/app") && p.PID > 0 && p.RSS > 0 && p.Directory == "/" {
					return ""
				}
			}
		}
		return fmt.Sprintf("nobody listens on port 8080 in %+v", list)
	})
}

// TestMetadata: no new version, no restart, seen at once.
func TestMetadata(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Metadata = map[string]string{"old": "1", "gone": "1"}
	m := start(t, app, c)
	other := start(t, app, web())
	want(t, admin().SetMetadata(t.Context(), app, m.ID, "role", "primary"))
	want(t, admin().DeleteMetadata(t.Context(), app, m.ID, "gone"))
	list, err := admin().List(t.Context(), app, machines.ListOptions{Metadata: map[string]string{"role": "primary", "old": "1"}})
	want(t, err)
	if len(list) != 1 || list[0].ID != m.ID {
		t.Errorf("list by metadata: got %d machines (not %s)", len(list), other.ID)
	}
	got, err := admin().Get(t.Context(), app, m.ID)
	want(t, err)
	if diff := cmp.Diff(map[string]string{"old": "1", "role": "primary"}, got.Config.Metadata); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if got.InstanceID != m.InstanceID || starts(t, app, m.ID) != 1 {
		t.Errorf("a metadata write made a new version or a restart: %v", history(t, app, m.ID))
	}
	path := "/v1/apps/" + app + "/machines/" + m.ID + "/metadata"
	want(t, admin().Do(t.Context(), http.MethodPut, path, map[string]any{"metadata": map[string]any{"old": nil, "new": "2"}, "machine_version": m.InstanceID}, nil))
	all, err := admin().Metadata(t.Context(), app, m.ID)
	want(t, err)
	if diff := cmp.Diff(map[string]string{"new": "2", "role": "primary"}, all); diff != "" {
		t.Errorf("after a merge (-want +got):\n%s", diff)
	}
	err = admin().Do(t.Context(), http.MethodPut, path, map[string]any{"metadata": map[string]any{"x": "y"}, "machine_version": "01J0ABCDEFGHJKMNPQRSTVWXYZ"}, nil)
	wantStatus(t, err, http.StatusPreconditionFailed)
}

// TestWait: at once, in time, too late, and for what is gone.
func TestWait(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	r, err := admin().Wait(t.Context(), app, m.ID, machines.WaitOptions{Version: m.InstanceID})
	want(t, err)
	if !r.OK || r.State != machines.StateStarted || r.Version != m.InstanceID {
		t.Errorf("wait: got %+v", r)
	}
	_, err = admin().Wait(t.Context(), app, m.ID, machines.WaitOptions{State: machines.StateStopped, Timeout: time.Second})
	wantStatus(t, err, http.StatusRequestTimeout, "machine failed to reach desired state, stopped, currently started")
	err = admin().Do(t.Context(), http.MethodGet, "/v1/apps/"+app+"/machines/"+m.ID+"/wait?state=nonsense", nil, nil)
	wantStatus(t, err, http.StatusBadRequest, "nonsense")
	_, err = admin().Wait(t.Context(), app, "148e1234c56789", machines.WaitOptions{State: machines.StateDestroyed})
	wantStatus(t, err, http.StatusNotFound)

	waited := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		_, err := admin().Wait(ctx, app, m.ID, machines.WaitOptions{State: machines.StateDestroyed})
		waited <- err
	}()
	want(t, admin().Destroy(t.Context(), app, m.ID, true))
	if err := <-waited; err != nil && machines.StatusOf(err) != http.StatusNotFound { // 404 is as good
		t.Errorf("wait for destroyed: %v", err)
	}
}

// TestLeases: who has the nonce may, others get 409, until it expires.
func TestLeases(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: web(), LeaseTTL: 600})
	want(t, err)
	if m.Nonce == "" {
		t.Fatal("create with lease_ttl: no nonce")
	}
	await(t, app, m.ID, machines.StateStarted)
	held := []string{"machine ID " + m.ID + " lease currently held by ", ", expires at "}
	for name, err := range map[string]error{
		"stop":    admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}),
		"suspend": admin().Suspend(t.Context(), app, m.ID),
		"cordon":  admin().Cordon(t.Context(), app, m.ID, true),
		"destroy": admin().Destroy(t.Context(), app, m.ID, true),
		"restart": admin().Restart(t.Context(), app, m.ID, machines.StopRequest{}, false),
		"release": admin().ReleaseLease(t.Context(), app, m.ID),
	} {
		t.Run(name, func(t *testing.T) { wantStatus(t, err, http.StatusConflict, held...) })
	}
	_, err = admin().AcquireLease(t.Context(), app, m.ID, time.Minute, "another")
	wantStatus(t, err, http.StatusConflict, held...)
	want(t, admin().SetMetadata(t.Context(), app, m.ID, "free", "yes")) // needs no lease
	holder := admin().Holding(m.Nonce)
	l, err := holder.AcquireLease(t.Context(), app, m.ID, 20*time.Minute, "more")
	want(t, err)
	if l.Nonce != m.Nonce || time.Until(time.Unix(l.ExpiresAt, 0)) < 10*time.Minute {
		t.Errorf("refresh: got %+v, want the same nonce and twenty minutes", l)
	}
	want(t, holder.Stop(t.Context(), app, m.ID, machines.StopRequest{}))
	await(t, app, m.ID, machines.StateStopped)
	want(t, holder.ReleaseLease(t.Context(), app, m.ID))
	wantStatus(t, holder.ReleaseLease(t.Context(), app, m.ID), http.StatusNotFound, "lease not found")
	_, err = admin().Lease(t.Context(), app, m.ID)
	wantStatus(t, err, http.StatusNotFound)

	// A leased machine cannot be woken: the request waits until the lease ends.
	short, err := admin().AcquireLease(t.Context(), app, m.ID, 3*time.Second, "short")
	want(t, err)
	wantMachine(t, get(t, app, "/"), m.ID)
	if early := time.Until(time.Unix(short.ExpiresAt, 0)); early > 0 {
		t.Errorf("a leased machine was woken %s before the end of the lease", early)
	}
}

// TestCordon: the proxy sends nothing new; exec, DNS and what runs go on. The
// edge learns of it milliseconds after the API has replied.
func TestCordon(t *testing.T) {
	t.Parallel()
	app, a, b := pair(t)
	answers := func(status int) {
		t.Helper()
		eventually(t, func() string {
			if got := get(t, app, "/"); got.StatusCode != status {
				return fmt.Sprintf("the app answers %d, want %d", got.StatusCode, status)
			}
			return ""
		})
	}
	want(t, admin().Cordon(t.Context(), app, a, true))
	want(t, admin().Cordon(t.Context(), app, a, true)) // again is no mistake
	eventually(t, func() string {
		for range 10 {
			if got := get(t, app, "/").echo(t); got.Machine != b {
				return "requests still end at the cordoned machine"
			}
		}
		return ""
	})
	m, err := admin().Get(t.Context(), app, a)
	want(t, err)
	if !m.Cordoned || m.State != machines.StateStarted {
		t.Errorf("got cordoned %v, state %s", m.Cordoned, m.State)
	}
	want(t, admin().Cordon(t.Context(), app, b, true))
	answers(http.StatusServiceUnavailable)
	want(t, admin().Cordon(t.Context(), app, a, false))
	answers(http.StatusOK)
	// One that is made cordoned gets nothing either.
	n, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: web(), SkipServiceRegistration: true})
	want(t, err)
	await(t, app, n.ID, machines.StateStarted)
	for range 10 {
		wantMachine(t, get(t, app, "/"), a)
	}
}

// TestMachineNames: unique, kept, and the config comes back as it was sent.
func TestMachineNames(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := job("exit", "0")
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Name: "worker", Config: c, SkipLaunch: true})
	want(t, err)
	if _, err := admin().Create(t.Context(), app, machines.CreateRequest{Name: "worker", Config: c, SkipLaunch: true}); machines.StatusOf(err) < 400 || machines.StatusOf(err) > 499 {
		t.Errorf("a second machine of that name: got %v", err)
	}
	got, err := admin().Find(t.Context(), app, "worker")
	want(t, err)
	if got == nil || got.ID != m.ID {
		t.Errorf("find: got %+v", got)
	}
	_, err = admin().CreateApp(t.Context(), machines.CreateAppRequest{Name: app, OrgSlug: "personal"})
	wantStatus(t, err, http.StatusUnprocessableEntity, "Name has already been taken")
}
