package edge

import (
	"context"
	"net/http"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
)

// TestRevision: who asks for a revision has the answer when the edge routes by
// it, and the load of a version says whether requests still go there.
func TestRevision(t *testing.T) {
	h := newHost(t)
	h.startControl()
	m := h.addMachine(root.Service{}, root.StateStarted, orders.PhaseStarted)
	h.edge()
	h.wantHello()
	edge := ipc.NewClient(h.cfg.EdgeSocket())
	defer edge.Close()
	routed := func() bool {
		t.Helper()
		var l MachineLoad
		if err := edge.Call(t.Context(), http.MethodGet, "/load/"+string(m.Spec.Instance)+"?machine="+string(m.ID), nil, &l); err != nil {
			t.Fatal(err)
		}
		return l.Routed
	}
	ask := func(ctx context.Context, revision string) error {
		return edge.Call(ctx, http.MethodGet, "/revision/"+revision, nil, nil)
	}
	if err := ask(t.Context(), "1"); err != nil || !routed() {
		t.Errorf("at the first revision: %v, routed %v", err, routed())
	}
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := ask(soon, "2"); err == nil {
		t.Error("an answer for a revision that is not there yet")
	}
	answer := make(chan error, 1)
	go func() { answer <- ask(t.Context(), "2") }()
	m = m.Clone()
	m.Spec.Cordoned = true
	h.control.Apply(2, root.Change{Machine: m})
	if err := <-answer; err != nil || routed() {
		t.Errorf("after the cordon: %v, routed %v", err, routed())
	}
	next := m.Clone()
	next.Spec.Cordoned, next.Spec.Instance = false, "01NEXT"
	h.control.Apply(3, root.Change{Machine: next})
	if err := ask(t.Context(), "3"); err != nil || routed() {
		t.Errorf("after the switch to another version: %v, routed %v", err, routed())
	}
	if err := ask(t.Context(), "x"); !root.IsKind(err, root.Invalid) {
		t.Errorf("no number: got %v", err)
	}
}
