package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/swapon"
)

const (
	// bootTimeout ends a start in which the OCI runtime hangs.
	bootTimeout = 60 * time.Second
	// cleanTimeout is for what has to happen whoever gave up waiting.
	cleanTimeout = 30 * time.Second
)

// start brings the instance to run. See orders.Start.
func (s *slot) start(ctx context.Context, o orders.Start) (orders.Started, error) {
	begin := time.Now()
	for {
		s.mu.Lock()
		if s.removing {
			s.mu.Unlock()
			return orders.Started{}, errGone(s.id)
		}
		if o.Generation != 0 && o.Generation != s.generation {
			s.mu.Unlock()
			return orders.Started{}, root.Errorf(root.Conflict, "machine %s has another version by now: the order is for generation %d, it is at %d", s.machine, o.Generation, s.generation)
		}
		if s.phase == orders.PhaseStarted && s.flight == nil && !s.run.dead {
			out := orders.Started{Stamp: s.stamp, Phase: s.phase, Took: time.Since(begin)}
			s.mu.Unlock()
			return out, nil
		}
		if f := s.flight; f != nil {
			s.mu.Unlock()
			select {
			case <-f.done:
			case <-ctx.Done():
				return orders.Started{}, s.gaveUp(ctx)
			}
			if !f.start {
				continue
			}
			out := f.out
			out.Took = time.Since(begin)
			return out, f.err
		}
		changed, patience := s.changed, time.Duration(-1)
		ready := s.phase == orders.PhaseSuspended || s.phase == orders.PhaseStopped && s.next != nil
		if ready && o.Source == orders.SourceProxy && !o.Nonce {
			patience = time.Until(s.leaseUntil)
		}
		if !ready || patience > 0 {
			s.mu.Unlock()
			if err := wait(ctx, changed, patience); err != nil {
				return orders.Started{}, s.gaveUp(ctx)
			}
			continue
		}
		f := &flight{start: true, done: make(chan struct{})}
		s.flight = f
		thaw := s.phase == orders.PhaseSuspended
		s.mu.Unlock()
		if thaw {
			// Quick, and without a step that could be given up half way.
			f.out, f.err = s.resume(ctx, o)
			s.land(f)
		} else {
			// The boot goes on for the others when this caller goes away.
			detached := s.all.detached(ctx)
			s.all.tasks.Go(func() {
				f.out, f.err = s.boot(detached, o)
				s.land(f)
			})
			select {
			case <-f.done:
			case <-ctx.Done():
				return orders.Started{}, s.gaveUp(ctx)
			}
		}
		out := f.out
		out.Took = time.Since(begin)
		return out, f.err
	}
}

// wait returns nil at a change, or after patience unless that is negative.
func wait(ctx context.Context, changed <-chan struct{}, patience time.Duration) error {
	var expired <-chan time.Time
	if patience >= 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-changed:
	case <-expired:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// resume thaws; the caller holds the flight. This is the hot path of a wake:
// no process, no flush, nothing of another slot.
func (s *slot) resume(ctx context.Context, o orders.Start) (orders.Started, error) {
	s.mu.Lock()
	r, swapped := s.run, s.swapped
	s.reclaimDue, s.swapped, s.kept = time.Time{}, 0, false
	if s.reclaimEnd != nil {
		s.reclaimEnd()
	}
	s.mu.Unlock()
	var held *reservation
	if swapped > 0 {
		var err error
		held, err = s.all.memory.admit(ctx, swapped, string(s.machine), s.all.reclaimOne)
		if err != nil {
			s.mu.Lock()
			s.swapped, s.reclaimDue = swapped, time.Now().Add(s.all.reclaimAfter)
			s.mu.Unlock()
			return orders.Started{}, err
		}
	}
	if err := s.all.driver.Thaw(r.boot.Container); err != nil {
		held.end()
		return orders.Started{}, fmt.Errorf("thaw machine %s: %w", s.machine, err)
	}
	e := s.record(orders.Entry{Type: orders.EntryResumed, Number: r.boot.Number, PID: r.pid, Source: o.Source, Reason: o.Reason})
	held.settle()
	s.mu.Lock()
	s.reclaimed = false
	if held != nil {
		r.held = held
	}
	s.mu.Unlock()
	// A mark that stays a little too long costs an event that finds it awake.
	s.all.tasks.Go(s.mark)
	return orders.Started{Stamp: e.Stamp, Phase: orders.PhaseStarted, Thawed: true}, nil
}

// boot runs the prepared boot; the caller holds the flight.
func (s *slot) boot(ctx context.Context, o orders.Start) (_ orders.Started, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("the start took more than %s", bootTimeout))
	defer cancel()
	s.mu.Lock()
	b := *s.next
	s.mu.Unlock()
	var held *reservation
	if b.Problem == "" {
		if held, err = s.all.memory.admit(ctx, b.Memory, string(s.machine), s.all.reclaimOne); err != nil {
			return orders.Started{}, err
		}
	}
	reason := o.Reason
	if reason == "" && b.Restarting {
		reason = "restart policy"
	}
	intent := s.record(orders.Entry{Type: orders.EntryStarting, Number: b.Number, Source: o.Source, Reason: reason})
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	flushed := make(chan struct{})
	s.all.tasks.Go(func() { // beside the runtime's work, which takes longer
		defer close(flushed)
		s.all.journal.flush(intent.Stamp)
	})
	r, err := s.launch(ctx, b, held)
	<-flushed
	if err != nil {
		held.end()
		s.all.logs.platform(s.source(), fmt.Sprintf("machine failed to start: %s", messageOf(err)))
		s.record(orders.Entry{Type: orders.EntryFailed, Number: b.Number, Source: o.Source, Reason: reason, Error: messageOf(err)})
		s.save()
		return orders.Started{}, err
	}
	held.settle()
	e := s.record(orders.Entry{Type: orders.EntryStarted, Number: b.Number, PID: r.pid, Source: o.Source, Reason: reason})
	s.save()
	return orders.Started{Stamp: e.Stamp, Phase: orders.PhaseStarted, Booted: true}, nil
}

// launch makes the container and lets it go; on failure nothing is left. held,
// which may be nil, ends with the container.
func (s *slot) launch(ctx context.Context, b orders.Boot, held *reservation) (_ *run, err error) {
	if b.Problem != "" {
		return nil, root.Errorf(root.Invalid, "%s", b.Problem)
	}
	c := runtime.Container{ID: b.Container, Bundle: b.Bundle, Runtime: b.Runtime}
	source := s.source()
	var reader *os.File
	defer func() {
		if err != nil && reader != nil {
			err = errors.Join(err, reader.Close())
		}
	}()
	if b.TTY {
		c.Terminal = func(master *os.File) { reader = master }
	} else {
		fifo := s.all.fifo(s.id, b.Container)
		if err := makeFIFO(fifo); err != nil {
			return nil, err
		}
		if reader, err = openFIFO(fifo, true); err != nil {
			return nil, err
		}
		writer, err := openFIFO(fifo, false)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, writer.Close()) }()
		null, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, null.Close()) }()
		c.Stdin, c.Stdout, c.Stderr = null, writer, writer
	}
	s.all.logs.platform(source, preparing(b.Command))
	s.all.swaps.Add(b.Container, s.all.swapOf(b, source))
	defer func() {
		if err != nil {
			s.all.swaps.Forget(b.Container)
		}
	}()
	pid, err := s.all.driver.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	r := &run{boot: b, pid: pid, startedAt: time.Now(), source: source, ended: make(chan struct{}), held: held}
	exit := s.all.reaper.watch(pid)
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
			defer cancel()
			err = errors.Join(err, s.all.driver.Delete(clean, b.Container, true))
		}
	}()
	if st, err := readStat(pid); err == nil {
		r.procStart = st.startedAt
	}
	if st, err := s.all.driver.Stats(b.Container); err == nil {
		r.oomKills = st.OOMKills
	}
	if b.TTY && reader != nil {
		if reader, err = pollable(reader); err != nil {
			return nil, err
		}
	}
	if err := s.all.driver.Start(ctx, b.Container); err != nil {
		return nil, err
	}
	if reader != nil {
		r.out = carry(reader, s.all.logs.stream(source, &b))
		reader = nil
	}
	s.mu.Lock()
	s.run = r
	s.mu.Unlock()
	watch := s.all.detached(ctx)
	s.all.tasks.Go(func() {
		if e, ok := await(watch, exit); ok {
			s.exited(watch, r, e.Status)
		} else {
			s.leave(r)
		}
	})
	return r, nil
}

// swapOf is what is needed to answer a boot's swapon.
func (a *slots) swapOf(b orders.Boot, source logSource) swapon.Container {
	return swapon.Container{Dir: b.Bundle, Tell: func(line string) { a.logs.platform(source, line) }}
}

// await receives from ch; false means that ctx ended first.
func await[T any](ctx context.Context, ch <-chan T) (v T, ok bool) {
	select {
	case v := <-ch:
		return v, true
	case <-ctx.Done():
	}
	select { // both, perhaps
	case v := <-ch:
		return v, true
	default:
		return v, false
	}
}

// leave lets go of a run that goes on without this process.
func (s *slot) leave(r *run) {
	if r.out != nil {
		r.out.stop()
	}
}
