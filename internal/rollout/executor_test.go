package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	root "github.com/roost-run/roost"
)

// site is a world with two web machines, a worker, a sleeping web machine and
// a machine that the app made itself.
func site() *world {
	w := newWorld()
	w.add("web", root.StateStarted, 1, true)
	w.add("web", root.StateStarted, 1, true)
	w.add("web", root.StateStopped, 1, true)
	w.add("worker", root.StateStarted, 1, false)
	own := w.add("", root.StateStopped, 0, true)
	own.Origin, own.Spec.Config.Metadata = root.OriginApp, nil
	w.floor["web"] = 2
	w.journal = root.Rollout{App: shop, Version: 2, Former: 1}
	w.current = 1
	return w
}

func both() []root.Group { return []root.Group{group("web", true), group("worker", false)} }

// versions tells each machine's release and state.
func (w *world) versions() map[string]string {
	out := map[string]string{}
	for id, m := range w.machines {
		out[string(id)[12:]] = fmt.Sprintf("%s v%d %s", m.Group(), m.Spec.Release, m.Status.State)
	}
	return out
}

func TestRolling(t *testing.T) {
	w := site()
	r := release(both()...)
	r.Deploy.ReleaseCommand = []string{"migrate"}
	if err := w.run(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"01": "web v2 started", "02": "web v2 started", "03": "web v2 stopped", "04": "worker v2 started", "05": " v0 stopped",
	}
	if diff := cmp.Diff(want, w.versions()); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	if w.status != root.ReleaseComplete || w.current != 2 || len(w.ran) != 1 {
		t.Errorf("got %s %q, current v%d, commands %v", w.status, w.message, w.current, w.ran)
	}
	w.expect(t)
	if !slices.ContainsFunc(w.events, func(e root.ReleaseEvent) bool {
		return e.Step == root.StepNotice && strings.Contains(e.Message, "made by the app itself")
	}) {
		t.Errorf("nothing names the machine that the app made: %+v", w.events)
	}
}

func (w *world) expect(t *testing.T) {
	t.Helper()
	for _, v := range w.violations {
		t.Error(v)
	}
}

// same checks that machines are what they were.
func (w *world) same(t *testing.T, before []*root.Machine) {
	t.Helper()
	type fact struct {
		ID       root.MachineID
		Config   root.Config
		Digest   root.Digest
		Release  int
		Secrets  int
		State    root.State
		Cordoned bool
	}
	facts := func(ms []*root.Machine) (out []fact) {
		for _, m := range ms {
			out = append(out, fact{m.ID, m.Spec.Config, m.Spec.Image.Digest, m.Spec.Release, m.Spec.Secrets, m.Status.State, m.Spec.Cordoned})
		}
		return out
	}
	if diff := cmp.Diff(facts(before), facts(w.list())); diff != "" {
		t.Errorf("machines are not what they were (-before +after):\n%s", diff)
	}
}

func TestFailuresGoBack(t *testing.T) {
	for name, prepare := range map[string]func(*world, *root.Release){
		"command": func(w *world, r *root.Release) {
			r.Deploy.ReleaseCommand, w.failing = []string{"migrate"}, root.StepReleaseCommand
		},
		"seed": func(w *world, r *root.Release) {
			r.Deploy.SeedCommand, w.failing = []string{"seed"}, root.StepSeedCommand
		},
		"not ready":      func(w *world, _ *root.Release) { w.bad.Version = 2 },
		"checks":         func(w *world, _ *root.Release) { w.bad.Version, w.badAfter = 2, true; w.floor["web"] = 1 },
		"machine checks": func(w *world, _ *root.Release) { w.refused = "worker"; w.floor["web"] = 1 },
		"verification":   func(w *world, _ *root.Release) { w.verify = root.Errorf(root.Precondition, "the app does not answer") },
		"new group": func(w *world, r *root.Release) {
			r.Groups = append(r.Groups, group("api", true))
			w.verify = root.Errorf(root.Precondition, "the app does not answer")
		},
		"group gone": func(w *world, r *root.Release) {
			r.Groups = r.Groups[:1]
			w.floor["worker"] = 1
			w.verify = root.Errorf(root.Precondition, "the app does not answer")
		},
	} {
		for _, strategy := range []root.Strategy{root.StrategyRolling, root.StrategyCanary, root.StrategyBlueGreen, root.StrategyImmediate} {
			t.Run(name+"/"+string(strategy), func(t *testing.T) {
				if strings.HasSuffix(name, "checks") && strategy == root.StrategyImmediate {
					t.Log("immediate waits for nothing: the verification finds it")
					return
				}
				w, r := site(), release(both()...)
				r.Deploy.Strategy = strategy
				prepare(w, r)
				if strategy == root.StrategyImmediate {
					delete(w.floor, "worker")
				}
				before := w.list()
				if err := w.run(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				if w.status != root.ReleaseFailed || w.message == "" || w.current != 1 {
					t.Errorf("got %s %q, current v%d, want failed with a reason, current v1", w.status, w.message, w.current)
				}
				w.same(t, before)
				w.expect(t)
			})
		}
	}
}

func TestCancelGoesBack(t *testing.T) {
	w, r := site(), release(both()...)
	before := w.list()
	work, cancel := context.WithCancelCause(t.Context())
	e := New(Options{Cluster: w, Memory: w, Failpoint: func(point string) {
		if point == "updated" {
			cancel(&CancelledError{By: "eve"})
		}
	}}, r, w.journal)
	status, message, err := e.Run(t.Context(), work)
	if err != nil || status != root.ReleaseInterrupted || message != "cancelled by eve" {
		t.Errorf("got %s %q %v, want interrupted by eve", status, message, err)
	}
	w.same(t, before)
	w.expect(t)
}

// A process that is told to end leaves everything as it is, for the next one.
func TestEndOfTheProcess(t *testing.T) {
	w, r := site(), release(both()...)
	ctx, cancel := context.WithCancel(t.Context())
	e := New(Options{Cluster: w, Memory: w, Failpoint: func(point string) {
		if point == "passed" {
			cancel()
		}
	}}, r, w.journal)
	if _, _, err := e.Run(ctx, ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's end", err)
	}
	if w.journal.Returning || w.status != "" {
		t.Errorf("it gave up: %+v, %s", w.journal, w.status)
	}
	if err := w.run(t.Context(), r); err != nil || w.status != root.ReleaseComplete {
		t.Errorf("the next one: got %s %v", w.status, err)
	}
	w.expect(t)
}

func TestBlueGreen(t *testing.T) {
	w, r := site(), release(group("web", true))
	r.Deploy.Strategy = root.StrategyBlueGreen
	if err := w.run(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for _, m := range w.machines {
		if m.Managed() {
			states[fmt.Sprintf("%s v%d %s cordoned=%v", m.Group(), m.Spec.Release, m.Status.State, m.Spec.Cordoned)]++
			if m.Spec.Generation != 1 {
				t.Errorf("machine %s is not a new one", m.ID)
			}
		}
	}
	want := map[string]int{"web v2 started cordoned=false": 2, "web v2 stopped cordoned=false": 1}
	if diff := cmp.Diff(want, states); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	w.expect(t)
	// What marks a green is nothing that a later release would change.
	next := *r
	next.Version, next.Deploy.Strategy = 3, root.StrategyRolling
	p, err := Make(&next, w.list(), root.Rollout{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Updates) == 0 {
		t.Error("the same again: nothing is planned")
	}
	for _, l := range p.Updates {
		for _, s := range l.Steps {
			if s.Action != Keep {
				t.Errorf("the same again: got %s of %s (%s), want keep", s.Action, s.Machine, s.Why)
			}
		}
	}
}

// Every crash at every point, in each strategy, for a release that works and
// for one that does not: it ends, the right release serves, and at no instant
// too little served.
func TestCrashes(t *testing.T) {
	for _, strategy := range []root.Strategy{root.StrategyRolling, root.StrategyCanary, root.StrategyBlueGreen, root.StrategyImmediate} {
		for _, bad := range []bool{false, true} {
			for _, point := range Failpoints {
				t.Run(fmt.Sprintf("%s/bad=%v/%s", strategy, bad, point), func(t *testing.T) {
					w, r := site(), release(both()...)
					w.add("old", root.StateStarted, 1, true) // a group that goes
					w.add("web", root.StateStopped, 1, true)
					r.Groups = append(r.Groups, group("new", true))
					r.Deploy.Strategy, r.Deploy.ReleaseCommand = strategy, []string{"migrate"}
					if bad {
						w.verify = root.Errorf(root.Precondition, "the app does not answer")
					}
					before := w.list()
					if err := w.run(t.Context(), r, point, point); err != nil {
						t.Fatal(err)
					}
					w.expect(t)
					if bad {
						if w.status != root.ReleaseFailed || w.current != 1 {
							t.Errorf("got %s %q, current v%d", w.status, w.message, w.current)
						}
						w.same(t, before)
						return
					}
					if w.status != root.ReleaseComplete || w.current != 2 {
						t.Errorf("got %s %q, current v%d", w.status, w.message, w.current)
					}
					count := map[string]int{}
					for _, m := range w.machines {
						if m.Managed() {
							count[fmt.Sprintf("%s v%d", m.Group(), m.Spec.Release)]++
						}
					}
					if diff := cmp.Diff(map[string]int{"web v2": 4, "worker v2": 1, "new v2": 1}, count); diff != "" {
						t.Errorf("machines (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// Any app, any strategy, any failure, any crashes: what served goes on serving.
func TestNeverTooFewServe(t *testing.T) {
	rapid.Check(t, neverTooFew)
}

func neverTooFew(t *rapid.T) {
	w := newWorld()
	var groups []root.Group
	for i := range rapid.IntRange(1, 3).Draw(t, "groups") {
		name, served := fmt.Sprint("g", i), rapid.Bool().Draw(t, "served") || i == 0
		running := rapid.IntRange(0, 6).Draw(t, "running")
		for range running {
			w.add(name, root.StateStarted, 1, served)
		}
		for range rapid.IntRange(0, 3).Draw(t, "resting") {
			w.add(name, rapid.SampledFrom([]root.State{root.StateStopped, root.StateSuspended}).Draw(t, "state"), 1, served)
		}
		if rapid.IntRange(0, 4).Draw(t, "kept") > 0 || len(groups) == 0 {
			groups = append(groups, group(name, served))
		}
		w.floor[name] = running
	}
	r := release(groups...)
	d := &r.Deploy
	d.Strategy = rapid.SampledFrom([]root.Strategy{root.StrategyRolling, root.StrategyCanary, root.StrategyBlueGreen, root.StrategyImmediate}).Draw(t, "strategy")
	d.MaxUnavailable = rapid.SampledFrom([]float64{0, 0.2, 0.33, 0.5, 1, 2, 5}).Draw(t, "max unavailable")
	d.MaxConcurrent = rapid.IntRange(0, 4).Draw(t, "max concurrent")
	switch rapid.IntRange(0, 3).Draw(t, "fate") {
	case 1:
		w.bad.Version = 2
	case 2:
		w.verify = root.Errorf(root.Precondition, "the app does not answer")
	}
	for i := range groups {
		if Served(&groups[i].Config) {
			continue
		}
		// Without services a machine stops before its next version starts.
		n := w.floor[groups[i].Name]
		at := Unavailable(d.MaxUnavailable, n)
		if d.Strategy == root.StrategyImmediate {
			at = concurrent(d)
		}
		if d.Strategy != root.StrategyBlueGreen {
			w.floor[groups[i].Name] = max(0, n-at)
		}
	}
	w.journal = root.Rollout{App: shop, Version: 2, Former: 1}
	before := w.list()
	crashes := rapid.SliceOfN(rapid.SampledFrom(Failpoints), 0, 4).Draw(t, "crashes")
	if err := w.run(context.Background(), r, crashes...); err != nil {
		t.Fatal(err)
	}
	if len(w.violations) > 0 {
		t.Fatal(strings.Join(w.violations, "\n"))
	}
	switch w.status {
	case root.ReleaseComplete:
		for _, m := range w.machines {
			if m.Managed() && m.Spec.Release != 2 || m.Spec.Cordoned {
				t.Errorf("machine %s of group %s was left behind at v%d", m.ID, m.Group(), m.Spec.Release)
			}
		}
	case root.ReleaseFailed:
		after := map[root.MachineID]bool{}
		for id := range maps.Keys(w.machines) {
			after[id] = true
		}
		for _, m := range before {
			now := w.machines[m.ID]
			if now == nil || now.Spec.Release != m.Spec.Release || now.Status.State == root.StateStarted != (m.Status.State == root.StateStarted) || now.Spec.Cordoned {
				t.Errorf("machine %s was not brought back: %+v", m.ID, now)
			}
			delete(after, m.ID)
		}
		if len(after) > 0 {
			t.Errorf("machines were left over: %v", after)
		}
	default:
		t.Errorf("status: got %q", w.status)
	}
}
