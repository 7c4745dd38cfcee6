package edge

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/roost-run/roost/internal/proxy/load"
)

// TestKeepBusy: a lease stands at once and is never shortened, and is answered
// when what autostop had begun before is over.
func TestKeepBusy(t *testing.T) {
	u := (&load.Table{}).Unit("i")
	until := time.Now().Add(time.Hour)
	if err := keepBusy(t.Context(), u, until); err != nil || !u.Counts().BusyUntil.Equal(until) {
		t.Errorf("got %v, busy until %s, want %s", err, u.Counts().BusyUntil, until)
	}
	if err := keepBusy(t.Context(), u, until.Add(-time.Minute)); err != nil || !u.Counts().BusyUntil.Equal(until) {
		t.Errorf("a shorter one: got %v, busy until %s, want %s", err, u.Counts().BusyUntil, until)
	}

	parked := (&load.Table{}).Unit("i")
	if !parked.Park(time.Now(), 0) {
		t.Fatal("not parked")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := keepBusy(gone, parked, until); !errors.Is(err, context.Canceled) {
		t.Errorf("parked, and nobody waits: got %v, want that it was waited for", err)
	}
	parked.Unpark()
	if err := keepBusy(gone, parked, until); err != nil {
		t.Errorf("not parked any more: got %v", err)
	}
}
