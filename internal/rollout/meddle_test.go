package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

// meddle carries out r while somebody else does f when the plan is made and no
// machine has been touched.
func (w *world) meddle(t *testing.T, r *root.Release, f func()) {
	t.Helper()
	r.Deploy.Strategy = root.StrategyCanary // its canary comes between
	done := false
	o := Options{Cluster: w, Memory: w, Pause: time.Nanosecond, Failpoint: func(point string) {
		if point == "canary:passed" && !done {
			w.mu.Lock()
			defer w.mu.Unlock()
			done = true
			f()
		}
	}}
	if _, _, err := New(o, r, w.journal).Run(t.Context(), t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestMachineWokenMeanwhileServesOn(t *testing.T) {
	w := site()
	r := release(group("web", true))
	r.Deploy.OnlyGroups = []string{"web"}
	w.meddle(t, r, func() {
		w.machines["00000000000003"].Status.State = root.StateStarted
		w.floor["web"] = 3
	})
	if w.status != root.ReleaseComplete || w.machines["00000000000003"].Status.State != root.StateStarted {
		t.Errorf("got %s %q, machines %v: want the woken machine to be updated and to run on", w.status, w.message, w.versions())
	}
	w.expect(t)
}

func TestMachinesThatComeAndGoMeanwhile(t *testing.T) {
	w := site()
	r := release(both()...)
	w.meddle(t, r, func() {
		w.floor["web"] = 1
		delete(w.machines, "00000000000002")
		delete(w.machines, "00000000000004") // the only worker: the release has that group
		w.add("web", root.StateStarted, 1, true)
	})
	if w.status != root.ReleaseComplete {
		t.Fatalf("got %s %q, want it to go on", w.status, w.message)
	}
	var got []string
	for _, v := range w.versions() {
		got = append(got, v)
	}
	slices.Sort(got)
	want := []string{" v0 stopped", "web v2 started", "web v2 started", "web v2 stopped", "worker v2 started"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("machines %v (-want +got):\n%s", w.versions(), diff)
	}
	if !slices.ContainsFunc(w.events, func(e root.ReleaseEvent) bool {
		return e.Warning && strings.Contains(e.Message, "was destroyed meanwhile")
	}) {
		t.Errorf("nothing tells of the machine that went: %+v", w.events)
	}
	w.expect(t)
}

// What served for a moment may have requests: it is not killed under them.
func TestGreensDrainOnTheWayBack(t *testing.T) {
	w := site()
	r := release(both()...)
	r.Deploy.Strategy = root.StrategyBlueGreen
	w.verify = root.Errorf(root.Precondition, "the app does not answer")
	before := w.list()
	if err := w.run(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if len(w.retired) != 2 {
		t.Errorf("retired %v, want both greens that served", w.retired)
	}
	w.same(t, before)
	w.expect(t)
}
