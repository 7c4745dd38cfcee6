package supervisor

import (
	"errors"
	"fmt"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// suspend freezes. See orders.Suspend.
func (s *slot) suspend(o orders.Suspend) (orders.Done, error) {
	s.mu.Lock()
	switch {
	case o.Generation != 0 && o.Generation != s.generation, o.Seen != (root.Stamp{}) && o.Seen != s.stamp:
		s.mu.Unlock()
		return orders.Done{}, root.Errorf(root.Conflict, "machine %s has changed meanwhile, it was not suspended", s.machine)
	case s.flight != nil || s.execs > 0 || s.removing || s.run != nil && s.run.dead:
		s.mu.Unlock()
		return orders.Done{}, root.Errorf(root.Conflict, "machine %s is in use by another operation, it was not suspended", s.machine)
	case s.phase == orders.PhaseSuspended:
		d := orders.Done{Phase: s.phase, Stamp: s.stamp}
		s.mu.Unlock()
		return d, nil
	case s.phase != orders.PhaseStarted:
		s.mu.Unlock()
		return orders.Done{}, root.Errorf(root.Precondition, "unable to suspend machine from current state: '%s'", s.phase)
	}
	f := &flight{done: make(chan struct{})}
	s.flight = f
	r := s.run
	s.mu.Unlock()
	defer s.land(f)
	s.record(orders.Entry{Type: orders.EntrySuspending, Number: r.boot.Number, PID: r.pid, Source: o.Source, Reason: o.Reason})
	// Marked first: a packet between the two must not be lost; its event waits
	// for this flight and thaws.
	s.mark()
	if err := s.all.driver.Freeze(r.boot.Container); err != nil {
		err = errors.Join(fmt.Errorf("freeze machine %s: %w", s.machine, err), s.all.driver.Thaw(r.boot.Container))
		s.record(orders.Entry{Type: orders.EntryResumed, Number: r.boot.Number, PID: r.pid, Source: o.Source, Reason: "suspend failed"})
		s.mark()
		return orders.Done{}, err
	}
	e := s.record(orders.Entry{Type: orders.EntrySuspended, Number: r.boot.Number, PID: r.pid, Source: o.Source, Reason: o.Reason})
	s.mu.Lock()
	s.reclaimed, s.kept = false, false
	s.reclaimDue = time.Now().Add(s.all.reclaimAfter)
	s.mu.Unlock()
	s.all.logs.proxy(r.source, o.Source, o.Reason)
	s.all.logs.platform(r.source, "Virtual machine has been suspended")
	return orders.Done{Phase: orders.PhaseSuspended, Stamp: e.Stamp}, nil
}

// mark tells the router whether the first packet has to wake the machine.
func (s *slot) mark() {
	s.marking.Lock()
	defer s.marking.Unlock()
	s.mu.Lock()
	on := s.phase == orders.PhaseSuspended || s.phase == orders.PhaseSuspending
	r := s.run
	s.mu.Unlock()
	if r == nil || r.boot.Interface == "" {
		return
	}
	if err := s.all.router.SetSuspended(r.boot.Interface, on); err != nil {
		s.all.log.Warn("first-packet wake not set", "machine", s.machine, "on", on, "err", err)
	}
}
