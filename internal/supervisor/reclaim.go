package supervisor

import (
	"context"
	"errors"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// hotPart is the part of a suspended machine's memory that stays while there is
// room, if it would have to come back from a disk: a quarter. The kernel takes
// first what was not touched for longest, so after a sleep or two it is what a
// wake needs, and a Django wakes in 5 ms instead of 160; it is also less than
// compressed memory would take for the whole. Memory pressure takes it too.
const hotPart = 4

// kickReclaim makes the reclaimer look again: at the end of every flight of a
// suspended slot, since it passes over those with one.
func (a *slots) kickReclaim() {
	select {
	case a.reclaimKick <- struct{}{}:
	default:
	}
}

// reclaimer gives the memory of suspended machines back when their time has
// come, the one that sleeps longest first, one at a time.
func (a *slots) reclaimer(ctx context.Context) {
	for ctx.Err() == nil {
		s, due := a.oldestSuspended()
		patience := time.Duration(-1)
		if s != nil {
			patience = max(time.Until(due), 0)
		}
		if patience != 0 {
			_ = wait(ctx, a.reclaimKick, patience) // the loop looks at ctx
			continue
		}
		if err := a.reclaim(ctx, s, false); err != nil && ctx.Err() == nil {
			a.log.Warn("memory of a suspended machine not given back", "machine", s.machine, "err", err)
		}
	}
}

// oldestSuspended returns the slot whose reclaim is due first, nil if none is.
func (a *slots) oldestSuspended() (oldest *slot, due time.Time) {
	for _, s := range a.list() {
		s.mu.Lock()
		d := s.reclaimDue
		ready := !d.IsZero() && s.phase == orders.PhaseSuspended && s.flight == nil
		s.mu.Unlock()
		if ready && (oldest == nil || d.Before(due)) {
			oldest, due = s, d
		}
	}
	return oldest, due
}

// longestKept returns the slot that sleeps longest of those that were left a
// part of their memory, nil if there is none.
func (a *slots) longestKept() (longest *slot) {
	var since time.Time
	for _, s := range a.list() {
		s.mu.Lock()
		ready, at := s.kept && s.phase == orders.PhaseSuspended && s.flight == nil, s.since
		s.mu.Unlock()
		if ready && (longest == nil || at.Before(since)) {
			longest, since = s, at
		}
	}
	return longest
}

// reclaimOne gives one suspended machine's memory back at once, all of it,
// whether its time has come or not, and says whether there was one.
func (a *slots) reclaimOne(ctx context.Context) bool {
	s, _ := a.oldestSuspended()
	if s == nil {
		s = a.longestKept()
	}
	if s == nil {
		return false
	}
	if err := a.reclaim(ctx, s, true); err != nil {
		a.log.Warn("memory of a suspended machine not given back", "machine", s.machine, "err", err)
	}
	return true
}

// reclaim gives a suspended machine's memory back; a wake ends it early, which
// is no error. Unless the whole is wanted, the part of hotPart may stay. One
// that is not suspended gives Precondition.
func (a *slots) reclaim(ctx context.Context, s *slot, whole bool) error {
	a.reclaiming.Lock()
	defer a.reclaiming.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.phase != orders.PhaseSuspended || s.flight != nil {
		s.mu.Unlock()
		return s.notRunning("reclaim")
	}
	r, stamp := s.run, s.stamp
	s.reclaimDue, s.reclaimEnd, s.kept = time.Time{}, cancel, false
	s.mu.Unlock()
	amount := r.boot.Memory
	if st, err := a.driver.Stats(r.boot.Container); err == nil {
		amount = st.Memory
		if keep := (st.Memory + st.Swap) / hotPart; a.onDisk && !whole {
			amount = max(0, amount-keep)
		}
	}
	got, err := a.driver.Reclaim(ctx, r.boot.Container, amount)
	s.mu.Lock()
	s.reclaimEnd = nil
	still := s.stamp == stamp && s.phase == orders.PhaseSuspended
	if still {
		s.reclaimed, s.kept = true, a.onDisk && !whole
		s.swapped += max(got, 0)
	}
	s.mu.Unlock()
	if !still || errors.Is(err, context.Canceled) {
		return nil
	}
	if err == nil || got > 0 {
		s.record(orders.Entry{Type: orders.EntryReclaimed, Number: r.boot.Number, Reason: root.Bytes(got).String()})
	}
	return err
}
