package autostop

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/load"
)

func TestInExcess(t *testing.T) {
	for _, c := range []struct {
		name                 string
		running, over, floor int
		want                 bool
	}{
		{"a single idle one goes", 1, 0, 0, true},
		{"a single one above its limit stays", 1, 1, 0, false},
		{"the floor stays", 1, 0, 1, false},
		{"one of two goes", 2, 0, 0, true},
		{"a spare one stays beside a loaded one", 2, 1, 0, false},
		{"one of three goes beside a loaded one", 3, 1, 0, true},
		{"the floor beats the formula", 3, 0, 3, false},
		{"above the floor", 3, 0, 2, true},
	} {
		if got := InExcess(c.running, c.over, c.floor); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPolicyOf(t *testing.T) {
	for _, c := range []struct {
		name     string
		services []root.Service
		want     Policy
	}{
		{"no service", nil, Policy{Action: root.AutostopOff}},
		{"default time", []root.Service{{Autostop: root.AutostopStop}}, Policy{Action: root.AutostopStop, After: root.DefaultStopAfter}},
		{
			"the most restrictive wins",
			[]root.Service{
				{Autostop: root.AutostopSuspend, StopAfter: time.Second, SuspendFor: time.Hour, MinRunning: 2},
				{Autostop: root.AutostopStop, StopAfter: time.Minute, SuspendFor: 2 * time.Hour},
			},
			Policy{Action: root.AutostopStop, After: time.Minute, MinRunning: 2, SuspendFor: 2 * time.Hour},
		},
		{
			"off beats all, never beats any time",
			[]root.Service{{Autostop: root.AutostopSuspend, StopAfter: time.Second, SuspendFor: time.Hour}, {Autostop: root.AutostopOff, StopAfter: time.Second}},
			Policy{Action: root.AutostopOff, After: time.Second},
		},
	} {
		m := &root.Machine{Spec: root.Spec{Config: root.Config{Services: c.services}}}
		if diff := cmp.Diff(c.want, PolicyOf(m)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// rig is a loop over machines whose state the test sets.
type rig struct {
	mu       sync.Mutex
	snapshot *root.Snapshot
	states   map[root.MachineID]root.State
	acts     []act
	refuse   error // of the next suspend
	loads    *load.Table
	loop     *Loop
	begin    time.Time
}

type act struct {
	Machine root.MachineID
	Verb    string
	After   time.Duration
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{snapshot: root.NewSnapshot(), states: make(map[root.MachineID]root.State), loads: &load.Table{}, begin: time.Now()}
	r.loop = New(Options{
		Catalog: r, State: r.state, Loads: r.loads, Stopper: r, Primary: "loc",
		Quiet: func(root.InstanceID) {}, Changed: func(root.AppName) {}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	return r
}

func (r *rig) Snapshot() *root.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snapshot
}

func (r *rig) state(m *root.Machine) root.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.states[m.ID]
}

func (r *rig) Stop(_ context.Context, m *root.Machine, _ string) error {
	r.did(m, "stop", root.StateStopped)
	return nil
}

func (r *rig) Suspend(_ context.Context, m *root.Machine, _ string) error {
	r.mu.Lock()
	err := r.refuse
	r.refuse = nil
	r.mu.Unlock()
	if err != nil {
		return err
	}
	r.did(m, "suspend", root.StateSuspended)
	r.loop.Suspended(m.ID, m.Spec.Instance, time.Now())
	return nil
}

func (r *rig) did(m *root.Machine, verb string, s root.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acts = append(r.acts, act{m.ID, verb, time.Since(r.begin)})
	r.states[m.ID] = s
}

func (r *rig) add(id root.MachineID, s root.Service, edit ...func(*root.Machine)) *load.Unit {
	m := &root.Machine{ID: id, App: "shop", Region: "loc", Origin: root.OriginUser, Spec: root.Spec{Instance: root.InstanceID("i-" + id), Config: root.Config{Services: []root.Service{s}}}}
	for _, f := range edit {
		f(m)
	}
	r.mu.Lock()
	r.snapshot = r.snapshot.With(1, root.Change{Machine: m})
	r.states[id] = root.StateStarted
	r.mu.Unlock()
	u := r.loads.Unit(m.Spec.Instance)
	r.loop.Started(id, m.Spec.Instance)
	return u
}

// all returns what was done so far.
func (r *rig) all() []act {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acts
}

func (r *rig) want(t *testing.T, want ...act) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(want, r.acts); diff != "" {
		t.Errorf("acts (-want +got):\n%s", diff)
	}
}

func TestExactTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		u := r.add("m1", root.Service{Autostop: root.AutostopSuspend, StopAfter: time.Minute, SuspendFor: time.Hour})
		time.Sleep(30 * time.Second)
		u.Take(0, 0)
		time.Sleep(5 * time.Minute) // a long request
		r.want(t)
		u.Release(0)
		time.Sleep(time.Minute - time.Millisecond)
		r.want(t)
		time.Sleep(2 * time.Millisecond)
		suspended := act{"m1", "suspend", 6*time.Minute + 30*time.Second}
		r.want(t, suspended)
		time.Sleep(time.Hour)
		r.want(t, suspended, act{"m1", "stop", suspended.After + time.Hour})
	})
}

// A version that comes up beside the one that serves is known to the loop
// before the catalog names it; when it has taken over, it sleeps as any other.
func TestNewVersionBesideTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		service := root.Service{Autostop: root.AutostopSuspend, StopAfter: time.Minute}
		r.add("m1", service).Take(0, 0)
		time.Sleep(10 * time.Second)
		r.loads.Unit("i-new")
		r.loop.Started("m1", "i-new")
		time.Sleep(20 * time.Second) // until it is ready
		r.mu.Lock()
		r.snapshot = r.snapshot.With(2, root.Change{Machine: &root.Machine{
			ID: "m1", App: "shop", Region: "loc", Origin: root.OriginUser, Spec: root.Spec{Instance: "i-new", Config: root.Config{Services: []root.Service{service}}},
		}})
		r.mu.Unlock()
		r.loop.Stopped("i-m1")
		time.Sleep(40*time.Second - time.Millisecond)
		r.want(t)
		time.Sleep(2 * time.Millisecond)
		r.want(t, act{"m1", "suspend", 70 * time.Second})
	})
}

func TestBusyLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		u := r.add("m1", root.Service{Autostop: root.AutostopStop, StopAfter: time.Minute})
		u.Busy(time.Now().Add(10 * time.Minute))
		time.Sleep(11*time.Minute - time.Second)
		r.want(t)
		time.Sleep(2 * time.Second)
		r.want(t, act{"m1", "stop", 11 * time.Minute})
	})
}

func TestBusyLeaseEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		u := r.add("m1", root.Service{Autostop: root.AutostopStop, StopAfter: 10 * time.Second})
		u.Busy(time.Now().Add(time.Hour))
		time.Sleep(time.Minute)
		u.Busy(time.Time{})
		time.Sleep(9 * time.Second)
		r.want(t)
		time.Sleep(12 * time.Second)
		if acts := r.all(); len(acts) != 1 {
			t.Errorf("acts: got %v, want one, within the idle time and a look", acts)
		}
	})
}

func TestFloorAndGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := root.Service{Autostop: root.AutostopStop, StopAfter: time.Minute, MinRunning: 1}
		r.add("m1", s)
		r.add("m2", s)
		r.add("worker", root.Service{Autostop: root.AutostopStop, StopAfter: 2 * time.Minute}, func(m *root.Machine) {
			m.Spec.Config.Metadata = map[string]string{root.MetadataProcessGroup: "worker"}
		})
		r.add("off", root.Service{Autostop: root.AutostopOff, StopAfter: time.Second})
		time.Sleep(time.Hour)
		if acts := r.all(); len(acts) != 2 || acts[1].Machine != "worker" || acts[0].After != time.Minute {
			t.Errorf("acts: got %v, want one of m1 and m2 after 1m, then worker", acts)
		}
	})
}

func TestSpareBesideLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := root.Service{Autostop: root.AutostopStop, StopAfter: time.Minute, Concurrency: root.Concurrency{Soft: 1}}
		loaded := r.add("m1", s)
		loaded.Take(0, 0)
		loaded.Take(0, 0)
		r.add("m2", s)
		time.Sleep(10 * time.Minute)
		r.want(t) // m2 is the spare one
		loaded.Release(0)
		time.Sleep(time.Minute)
		if acts := r.all(); len(acts) != 1 || acts[0].Machine != "m2" {
			t.Errorf("acts: got %v, want m2", acts)
		}
	})
}

func TestSuspendRefused(t *testing.T) {
	for _, c := range []struct {
		err  error
		verb string
		at   time.Duration
	}{
		{root.Errorf(root.Conflict, "news crossed"), "suspend", time.Minute + minRecheck},
		{root.Errorf(root.Precondition, "cannot freeze"), "stop", time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.mu.Lock()
			r.refuse = c.err
			r.mu.Unlock()
			u := r.add("m1", root.Service{Autostop: root.AutostopSuspend, StopAfter: time.Minute})
			time.Sleep(2 * time.Minute)
			r.want(t, act{"m1", c.verb, c.at})
			if !u.Take(0, 0) {
				t.Error("the unit is still parked")
			}
		})
	}
}

// TestSpreadLoad keeps three machines busy with little work each: no one is
// ever idle, but two of them are too many.
func TestSpreadLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := root.Service{Autostop: root.AutostopStop, StopAfter: time.Minute, Concurrency: root.Concurrency{Soft: 2}}
		units := []*load.Unit{r.add("m1", s), r.add("m2", s), r.add("m3", s)}
		tick := func(n int) {
			for range n {
				for _, u := range units {
					if u.Take(0, 0) {
						time.Sleep(time.Second)
						u.Release(0)
					}
				}
			}
		}
		tick(20)
		r.want(t)
		tick(200)
		if acts := r.all(); len(acts) != 2 || acts[0].Machine == acts[1].Machine || acts[1].After-acts[0].After < time.Minute {
			t.Errorf("acts: got %v, want two machines stopped, one after the other", acts)
		}
	})
}

// TestSpreadLoadNeeded has two of three machines above their soft limit now and
// then: all three are needed.
func TestSpreadLoadNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := root.Service{Autostop: root.AutostopStop, StopAfter: time.Minute, Concurrency: root.Concurrency{Soft: 1}}
		units := []*load.Unit{r.add("m1", s), r.add("m2", s), r.add("m3", s)}
		for range 100 {
			for i, u := range units {
				n := 2
				if i == 2 {
					n = 1
				}
				for range n {
					u.Take(0, 0)
				}
				time.Sleep(time.Second)
				for range n {
					u.Release(0)
				}
			}
			time.Sleep(10 * time.Second)
		}
		r.want(t)
	})
}

// TestDrainGivesUp does not cut a request that takes longer than the drain.
func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := root.Service{Autostop: root.AutostopStop, StopAfter: time.Minute}
		a, b := r.add("m1", s), r.add("m2", s)
		a.Take(0, 0)
		b.Take(0, 0)
		time.Sleep(time.Hour)
		r.want(t)
		a.Release(0)
		time.Sleep(5 * time.Minute)
		if acts := r.all(); len(acts) != 1 || acts[0].Machine != "m1" {
			t.Errorf("acts: got %v, want m1 once its request is done", acts)
		}
	})
}
