package control

import (
	"context"
	"testing"
)

// TestWritesAreRouted: a write has its answer when the edge routes by it.
func TestWritesAreRouted(t *testing.T) {
	w := newWorld(t)
	m := w.create("web")
	var told []int64
	w.Machines.Routed = func(_ context.Context, revision int64) {
		if now := w.Machines.Catalog.Snapshot().Revision(); now < revision {
			t.Errorf("the edge is asked for revision %d before the catalog has it (%d)", revision, now)
		}
		told = append(told, revision)
	}
	w.must(w.Machines.Cordon(t.Context(), admin, "shop", m.ID, "", true))
	w.must(w.Machines.Cordon(t.Context(), admin, "shop", m.ID, "", false))
	if len(told) != 2 || told[0] >= told[1] {
		t.Errorf("revisions that the edge was asked for: got %v, want two", told)
	}
}
