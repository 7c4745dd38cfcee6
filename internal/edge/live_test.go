package edge

import (
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

func stamp(seq uint64) root.Stamp { return root.Stamp{Boot: 1, Seq: seq} }

func TestState(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   root.InstanceID
		status root.Status
		known  []orders.Instance // nil: the server process gave no account yet
		news   []orders.Entry
		want   root.State
	}{
		{"no status yet", "A", root.Status{}, nil, nil, root.StateCreating},
		{"the catalog alone", "A", root.Status{Instance: "A", State: root.StateStarted, Stamp: stamp(5)}, nil, nil, root.StateStarted},
		{
			"newer journal", "A", root.Status{Instance: "A", State: root.StateStarted, Stamp: stamp(5)}, nil,
			[]orders.Entry{{Instance: "A", Stamp: stamp(6), Type: orders.EntrySuspended}}, root.StateSuspended,
		},
		{
			"newer status", "A", root.Status{Instance: "A", State: root.StateFailed, Stamp: stamp(7)}, nil,
			[]orders.Entry{{Instance: "A", Stamp: stamp(6), Type: orders.EntryExited}}, root.StateFailed,
		},
		{
			"same news, in more words", "A", root.Status{Instance: "A", State: root.StateFailed, Stamp: stamp(6)}, nil,
			[]orders.Entry{{Instance: "A", Stamp: stamp(6), Type: orders.EntryExited}}, root.StateFailed,
		},
		{
			"an old entry does not beat a newer one", "A", root.Status{}, nil,
			[]orders.Entry{{Instance: "A", Stamp: stamp(6), Type: orders.EntryResumed}, {Instance: "A", Stamp: stamp(5), Type: orders.EntrySuspended}}, root.StateStarted,
		},
		{"prepared, never started", "A", root.Status{Instance: "A", State: root.StateCreated}, []orders.Instance{{Instance: "A", Phase: orders.PhaseStopped}}, nil, root.StateCreated},
		{"a new version on its way", "B", root.Status{Instance: "A", State: root.StateStarted, Stamp: stamp(5)}, []orders.Instance{}, nil, root.StateUpdating},
		{
			"a new version that runs already", "B", root.Status{Instance: "A", State: root.StateStarted, Stamp: stamp(5)}, nil,
			[]orders.Entry{{Instance: "B", Stamp: stamp(6), Type: orders.EntryStarted}}, root.StateStarted,
		},
		{"gone after a reboot", "A", root.Status{Instance: "A", State: root.StateStarted, Stamp: stamp(5)}, []orders.Instance{}, nil, root.StateRestarting},
		{"stopped before a reboot", "A", root.Status{Instance: "A", State: root.StateStopped, Stamp: stamp(5)}, []orders.Instance{}, nil, root.StateStopped},
		{
			"removed", "A", root.Status{Instance: "A", State: root.StateStopped, Stamp: stamp(5)}, nil,
			[]orders.Entry{{Instance: "A", Stamp: stamp(6), Type: orders.EntryStarted}, {Instance: "A", Stamp: stamp(7), Type: orders.EntryRemoved}}, root.StateStopped,
		},
		{
			"an account that is older than an answer", "A", root.Status{}, []orders.Instance{{Instance: "A", Phase: orders.PhaseSuspended, Stamp: stamp(4)}},
			[]orders.Entry{{Instance: "A", Stamp: stamp(5), Type: orders.EntryResumed}}, root.StateStarted,
		},
	} {
		l := newLive()
		if c.known != nil {
			l.reset(c.known)
		}
		for _, e := range c.news {
			l.apply(e)
		}
		if c.known != nil {
			l.reset(c.known) // again, as after a lost connection: what is newer stays
		}
		m := &root.Machine{ID: "m", Spec: root.Spec{Instance: c.spec}, Status: c.status}
		if got := l.State(m); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestEnded(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name string
		news []orders.Entry
		want string
	}{
		{"nothing", nil, ""},
		{"asked for", []orders.Entry{{Type: orders.EntryExited, At: now, Exit: &orders.Exit{Requested: true}}}, ""},
		{"a code", []orders.Entry{{Type: orders.EntryStarted, At: now.Add(-time.Second)}, {Type: orders.EntryExited, At: now, Exit: &orders.Exit{Code: 3}}}, "exited with code 3 1s after its start"},
		{"a signal", []orders.Entry{{Type: orders.EntryExited, At: now, Exit: &orders.Exit{Code: 137, Signal: 9}}}, "was killed by signal 9"},
		{"memory", []orders.Entry{{Type: orders.EntryExited, At: now, Exit: &orders.Exit{Code: 137, Signal: 9, OOMKilled: true}}}, "was killed because it ran out of memory"},
		{"nobody knows", []orders.Entry{{Type: orders.EntryExited, At: now, Exit: &orders.Exit{Code: -1}}}, "ended while nobody watched"},
		{"no start", []orders.Entry{{Type: orders.EntryFailed, At: now, Error: "no such command"}}, "could not start: no such command"},
		{"long ago", []orders.Entry{{Type: orders.EntryFailed, At: now.Add(-time.Hour), Error: "no such command"}}, ""},
	} {
		l := newLive()
		for i, e := range c.news {
			e.Instance, e.Stamp = "A", stamp(uint64(i+1))
			l.apply(e)
		}
		if got := l.Ended(&root.Machine{Spec: root.Spec{Instance: "A"}}); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
