package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// slot is the account of one instance. Whoever holds its flight changes it;
// mu only makes single reads and writes whole.
type slot struct {
	all *slots
	id  root.InstanceID
	api *os.File // listener of its /.fly/api; set before the slot is shared

	mu         sync.Mutex
	machine    root.MachineID
	app        root.AppName
	generation uint64
	phase      orders.Phase
	stamp      root.Stamp
	since      time.Time
	next       *orders.Boot
	run        *run
	flight     *flight
	changed    chan struct{} // closed and replaced at every change
	leaseUntil time.Time
	execs      int
	removing   bool
	lateExit   *int // code of an exit that this process did not deal with any more
	reclaimed  bool
	kept       bool               // reclaimed but for the part of hotPart
	swapped    root.Bytes         // what the last reclaim took: a wake needs it back
	reclaimDue time.Time          // zero: not waiting for a reclaim
	reclaimEnd context.CancelFunc // stops the reclaim under way; nil: none

	// marking serialises what is told to the router about this slot.
	marking sync.Mutex
}

// flight is an operation under way.
type flight struct {
	start bool          // others that want a start share its outcome
	done  chan struct{} // closed when over; then the other fields may be read
	out   orders.Started
	err   error
}

// run is a boot while its processes exist. All but dead and stopAsked, which
// the slot's mu guards, is set before the run is shared.
type run struct {
	boot      orders.Boot
	pid       int
	procStart uint64
	startedAt time.Time
	source    logSource
	out       *output       // nil: a terminal that nobody holds any more
	ended     chan struct{} // closed when the exit is journalled
	oomKills  uint64        // at the start
	held      *reservation  // its memory, for a moment after the start; guarded by the slot's mu

	dead      bool // the first process has ended, the exit is being dealt with
	stopAsked bool
}

// notify wakes those who wait for a change; the caller holds mu.
func (s *slot) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// claim takes the slot's flight, waiting for the one under way.
func (s *slot) claim(ctx context.Context) (*flight, error) {
	for {
		s.mu.Lock()
		if s.flight == nil {
			f := &flight{done: make(chan struct{})}
			s.flight = f
			s.mu.Unlock()
			return f, nil
		}
		wait := s.flight.done
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, s.gaveUp(ctx)
		}
	}
}

// land ends a flight.
func (s *slot) land(f *flight) {
	s.mu.Lock()
	s.flight = nil
	s.notify()
	asleep := !s.reclaimDue.IsZero()
	s.mu.Unlock()
	close(f.done)
	if asleep {
		s.all.kickReclaim()
	}
}

func (s *slot) gaveUp(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errGoingAway) || s.all.detached(ctx).Err() != nil {
		return &root.Error{Kind: root.Unavailable, Message: "the platform's server process is going away, try again", Err: context.Cause(ctx)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	what := "is still " + string(s.phase)
	if s.phase == orders.PhaseStopped && s.next == nil {
		what = "is stopped and its next boot is not prepared yet"
	}
	if s.leaseUntil.After(time.Now()) {
		what = "is leased until " + s.leaseUntil.UTC().Format(time.RFC3339)
	}
	return &root.Error{Kind: root.Timeout, Message: fmt.Sprintf("machine %s %s", s.machine, what), Err: context.Cause(ctx)}
}

// record journals an entry about the slot and takes over the phase it brings.
func (s *slot) record(e orders.Entry) orders.Entry {
	s.mu.Lock()
	e.Machine, e.App, e.Instance, e.Generation = s.machine, s.app, s.id, s.generation
	s.mu.Unlock()
	e.At = time.Now()
	e = s.all.journal.append(e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := orders.PhaseAfter(e.Type); p != "" {
		s.phase, s.stamp, s.since = p, e.Stamp, e.At
		s.notify()
	}
	return e
}

func (s *slot) done() orders.Done {
	s.mu.Lock()
	defer s.mu.Unlock()
	return orders.Done{Phase: s.phase, Stamp: s.stamp}
}

func (s *slot) account() orders.Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := orders.Instance{
		Machine: s.machine, App: s.app, Instance: s.id, Generation: s.generation,
		Phase: s.phase, Stamp: s.stamp, Since: s.since, LeaseUntil: s.leaseUntil, Reclaimed: s.reclaimed,
	}
	if s.next != nil {
		b := *s.next
		i.Next = &b
	}
	if s.run != nil {
		b := s.run.boot
		i.Running, i.PID, i.StartedAt = &b, s.run.pid, s.run.startedAt
	}
	return i
}

func (s *slot) notRunning(verb string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return root.Errorf(root.Precondition, "unable to %s machine from current state: '%s'", verb, s.phase)
}

// lease sets until when wakes wait.
func (s *slot) lease(o orders.Lease) orders.Done {
	s.mu.Lock()
	s.leaseUntil = o.Until
	s.notify()
	s.mu.Unlock()
	s.save()
	return s.done()
}

func (s *slot) source() logSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return logSource{app: s.app, machine: s.machine, instance: s.id}
}

func errGone(id root.InstanceID) error {
	return root.Errorf(root.NotFound, "there is no instance %s here", id)
}

// messageOf is what people are told of an error.
func messageOf(err error) string {
	if e, ok := errors.AsType[*root.Error](err); ok && e.Message != "" && e.Kind != root.Internal {
		return e.Message
	}
	return err.Error()
}
