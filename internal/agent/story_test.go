package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// line is an entry in short.
type line struct {
	typ    orders.EntryType
	source orders.Source
	reason string
	exit   *orders.Exit
	err    string
}

// event is an event in short.
type event struct{ Type, Status, Source string }

func play(st *root.Status, c *root.Config, r *retries, lines ...line) (last turn) {
	for _, l := range lines {
		seq := st.Stamp.Seq + 1
		last = tell(st, c, r, orders.Entry{
			Stamp: root.Stamp{Boot: 1, Seq: seq}, At: time.Unix(1000+int64(seq), 0).UTC(), Type: l.typ,
			Source: l.source, Reason: l.reason, Exit: l.exit, Error: l.err,
		}, false)
	}
	return last
}

func events(st *root.Status) []event {
	out := []event{}
	for _, e := range slices.Backward(st.Events) {
		out = append(out, event{e.Type, string(e.Status), e.Source})
	}
	return out
}

func TestTell(t *testing.T) {
	code := func(n int) *orders.Exit { return &orders.Exit{Code: n} }
	asked := func(n int) *orders.Exit { return &orders.Exit{Code: n, Requested: true} }
	launched := []line{{typ: orders.EntryStarting, source: "flyd", reason: reasonLaunch}, {typ: orders.EntryStarted, source: "flyd", reason: reasonLaunch}}
	onFailure := root.Config{Restart: root.Restart{Policy: root.RestartOnFailure, MaxRetries: 2}}
	never := root.Config{Restart: root.Restart{Policy: root.RestartNo}}
	for _, c := range []struct {
		name   string
		config root.Config
		lines  []line
		state  root.State
		step   step
		line   string
		events []event
	}{
		{
			name: "wake and autostop", config: onFailure, state: root.StateStarted,
			lines: append(launched,
				line{typ: orders.EntrySuspending, source: "proxy"}, line{typ: orders.EntrySuspended, source: "proxy"},
				line{typ: orders.EntryReclaimed}, line{typ: orders.EntryResumed, source: "proxy"}),
			events: []event{
				{"start", "started", "flyd"}, {"suspend", "suspending", "proxy"}, {"suspend", "suspended", "proxy"}, {"start", "started", "proxy"},
			},
		},
		{
			name: "requested stop", config: onFailure, state: root.StateStopped,
			lines:  append(launched, line{typ: orders.EntryStopping, source: "user"}, line{typ: orders.EntryExited, exit: asked(130)}),
			events: []event{{"start", "started", "flyd"}, {"stop", "stopping", "user"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "requested restart", config: onFailure, state: root.StateStarted,
			lines: append(launched, line{typ: orders.EntryStopping, source: "user", reason: reasonRestart}, line{typ: orders.EntryExited, exit: asked(0)},
				line{typ: orders.EntryStarting, source: "flyd", reason: reasonRestart}, line{typ: orders.EntryStarted, source: "flyd", reason: reasonRestart}),
			events: []event{
				{"start", "started", "flyd"}, {"restart", "stopping", "user"}, {"exit", "stopped", "flyd"}, {"restart", "starting", "flyd"}, {"start", "started", "flyd"},
			},
		},
		{
			name: "requested restart, half way", config: onFailure, state: root.StateRestarting, step: stepStart,
			lines:  append(launched, line{typ: orders.EntryStopping, source: "user", reason: reasonRestart}, line{typ: orders.EntryExited, exit: asked(0)}),
			events: []event{{"start", "started", "flyd"}, {"restart", "stopping", "user"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "crash", config: onFailure, state: root.StateRestarting, step: stepRetry, line: "machine exited with exit code 3, restarting in 1s",
			lines:  append(launched, line{typ: orders.EntryExited, exit: code(3)}),
			events: []event{{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "done", config: onFailure, state: root.StateStopped, line: "machine exited with exit code 0, not restarting",
			lines:  append(launched, line{typ: orders.EntryExited, exit: code(0)}),
			events: []event{{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "policy no", config: never, state: root.StateStopped, line: "machine exited with exit code 1, not restarting",
			lines:  append(launched, line{typ: orders.EntryExited, exit: code(1)}),
			events: []event{{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "crash loop", config: onFailure, state: root.StateStopped, line: "machine has reached its max restart count of 2",
			lines: append(launched, line{typ: orders.EntryExited, exit: code(1)},
				line{typ: orders.EntryStarting, source: "flyd", reason: reasonPolicy}, line{typ: orders.EntryStarted, source: "flyd", reason: reasonPolicy}, line{typ: orders.EntryExited, exit: code(1)},
				line{typ: orders.EntryStarting, source: "flyd", reason: reasonPolicy}, line{typ: orders.EntryStarted, source: "flyd", reason: reasonPolicy}, line{typ: orders.EntryExited, exit: code(1)}),
			events: []event{
				{"start", "started", "flyd"}, {"exit", "stopped", "flyd"},
				{"restart", "starting", "flyd"}, {"start", "started", "flyd"}, {"exit", "stopped", "flyd"},
				{"restart", "starting", "flyd"}, {"start", "started", "flyd"}, {"exit", "stopped", "flyd"},
			},
		},
		{
			name: "auto_destroy", config: root.Config{AutoDestroy: true, Restart: root.Restart{Policy: root.RestartNo}},
			state: root.StateStopped, step: stepDestroy, line: "machine exited with exit code 0, not restarting",
			lines:  append(launched, line{typ: orders.EntryExited, exit: code(0)}),
			events: []event{{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "a wake that fails leaves it stopped", config: onFailure, state: root.StateStopped, line: "machine did not start: no space",
			lines: append(launched, line{typ: orders.EntryStopping, source: "proxy"}, line{typ: orders.EntryExited, exit: asked(0)},
				line{typ: orders.EntryStarting, source: "proxy"}, line{typ: orders.EntryFailed, source: "proxy", err: "no space"}),
			events: []event{{"start", "started", "flyd"}, {"stop", "stopping", "proxy"}, {"exit", "stopped", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "the host went down", config: never, state: root.StateRestarting, step: stepReboot,
			lines:  append(launched, line{typ: orders.EntryExited, reason: orders.ReasonHostRestarted, exit: code(-1)}),
			events: []event{{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "the host was shut down", config: never, state: root.StateRestarting, step: stepReboot,
			lines:  append(launched, line{typ: orders.EntryStopping, source: "flyd", reason: orders.ReasonHostShutdown}, line{typ: orders.EntryExited, exit: asked(0)}),
			events: []event{{"start", "started", "flyd"}, {"stop", "stopping", "flyd"}, {"exit", "stopped", "flyd"}},
		},
		{
			name: "the host went down while it slept", config: onFailure, state: root.StateStopped,
			lines: append(launched, line{typ: orders.EntrySuspending, source: "proxy"}, line{typ: orders.EntrySuspended, source: "proxy"},
				line{typ: orders.EntryExited, reason: orders.ReasonHostRestarted, exit: code(-1)}),
			events: []event{{"start", "started", "flyd"}, {"suspend", "suspending", "proxy"}, {"suspend", "suspended", "proxy"}, {"exit", "stopped", "flyd"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, r := root.Status{}, retries{}
			got := play(&st, &c.config, &r, c.lines...)
			if st.State != c.state {
				t.Errorf("state: got %s, want %s", st.State, c.state)
			}
			if got.step != c.step {
				t.Errorf("step: got %d, want %d", got.step, c.step)
			}
			if got.line != c.line {
				t.Errorf("line: got %q, want %q", got.line, c.line)
			}
			if d := cmp.Diff(c.events, events(&st)); d != "" {
				t.Errorf("events (-want +got):\n%s", d)
			}
		})
	}
}

func TestTellForgetsWhatItKnows(t *testing.T) {
	st := root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: 2, Seq: 5}}
	tell(&st, &root.Config{}, &retries{}, orders.Entry{Stamp: root.Stamp{Boot: 2, Seq: 5}, Type: orders.EntryExited}, false)
	tell(&st, &root.Config{}, &retries{}, orders.Entry{Stamp: root.Stamp{Boot: 1, Seq: 9}, Type: orders.EntryExited}, false)
	if st.State != root.StateStarted || len(st.Events) != 0 {
		t.Errorf("got state %s with %d events, want started without", st.State, len(st.Events))
	}
}

func TestRestartDelays(t *testing.T) {
	var r retries
	now := time.Unix(0, 0)
	var got []time.Duration
	for range 7 {
		d, due, _ := r.next(root.Restart{Policy: root.RestartAlways}, false, now)
		if !due {
			t.Fatal("always: not due")
		}
		got = append(got, d)
		now = now.Add(d)
	}
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("delays (-want +got):\n%s", d)
	}
	if d, _, _ := r.next(root.Restart{Policy: root.RestartAlways}, false, now.Add(root.RestartWindow)); d != time.Second {
		t.Errorf("after a quiet window: got %s, want 1s", d)
	}
}

func TestRetriesCountInTheWindow(t *testing.T) {
	var r retries
	p := root.Restart{Policy: root.RestartOnFailure, MaxRetries: 2}
	now := time.Unix(0, 0)
	for range 2 {
		if _, due, _ := r.next(p, true, now); !due {
			t.Fatal("within the count: not due")
		}
	}
	if _, due, exhausted := r.next(p, true, now.Add(time.Minute)); due || !exhausted {
		t.Errorf("third within the window: got due %v, exhausted %v", due, exhausted)
	}
	if _, due, _ := r.next(p, true, now.Add(root.RestartWindow)); !due {
		t.Error("after the window: not due")
	}
}

func TestReachable(t *testing.T) {
	ad := root.Address{IPv4: "172.19.0.8", IPv6: "fdaa::2"}
	for address, want := range map[string]bool{
		"0.0.0.0:8080": true, "[::]:8080": true, "172.19.0.8:8080": true, "[fdaa::2]:8080": true,
		"127.0.0.1:8080": false, "[::1]:8080": false, "0.0.0.0:80": false,
	} {
		if got := reachable([]orders.Listen{{Proto: "tcp", Address: address}}, 8080, ad); got != want {
			t.Errorf("%s: got %v, want %v", address, got, want)
		}
	}
	if reachable([]orders.Listen{{Proto: "udp", Address: "0.0.0.0:8080"}}, 8080, ad) {
		t.Error("udp: got reachable")
	}
}
