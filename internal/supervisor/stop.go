package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// killAgain is how long a kill may take before it is repeated.
const killAgain = 5 * time.Second

// exited deals with the end of a run's first process, and so of all of them.
// Code is 128 + signal for a signal, -1 for unknown.
func (s *slot) exited(ctx context.Context, r *run, code int) {
	s.mu.Lock()
	r.dead = true
	s.mu.Unlock()
	f, err := s.claim(ctx)
	if err != nil {
		s.leave(r)
		s.mu.Lock()
		s.lateExit = &code
		s.mu.Unlock()
		s.save() // for the next server process
		return
	}
	defer close(r.ended)
	defer s.land(f)
	exit := orders.Exit{Code: code}
	if code > 128 && code <= 128+64 {
		exit.Signal = code - 128 // also what the init process says of its child
	}
	if st, err := s.all.driver.Stats(r.boot.Container); err == nil {
		exit.OOMKilled = st.OOMKills > r.oomKills
	}
	if r.out != nil {
		if err := r.out.finish(); err != nil {
			s.all.log.Warn("machine output not closed", "machine", s.machine, "err", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if err := s.all.driver.Delete(ctx, r.boot.Container, true); err != nil {
		s.all.log.Error("container not deleted", "machine", s.machine, "container", r.boot.Container, "err", err)
	}
	s.all.swaps.Forget(r.boot.Container)
	s.all.logs.platform(r.source, ending(exit))
	s.mu.Lock()
	r.held.end() // another start may wait for it
	wasMarked := s.phase == orders.PhaseSuspended || s.phase == orders.PhaseSuspending
	exit.Requested = r.stopAsked
	s.mu.Unlock()
	if wasMarked && r.boot.Interface != "" {
		s.marking.Lock()
		err := s.all.router.SetSuspended(r.boot.Interface, false)
		s.marking.Unlock()
		if err != nil {
			s.all.log.Warn("first-packet wake not cleared", "machine", s.machine, "err", err)
		}
	}
	s.mu.Lock()
	s.run, s.reclaimed, s.kept, s.swapped, s.reclaimDue = nil, false, false, 0, time.Time{}
	s.mu.Unlock()
	e := s.record(orders.Entry{Type: orders.EntryExited, Number: r.boot.Number, PID: r.pid, Exit: &exit})
	s.all.journal.flush(e.Stamp)
	if !r.boot.TTY {
		_ = os.Remove(s.all.fifo(s.id, r.boot.Container)) // a leftover does no harm
	}
	s.save()
}

// stop asks the instance to stop. See orders.Stop.
func (s *slot) stop(ctx context.Context, o orders.Stop) (orders.Done, error) {
	sig := o.Signal
	f, err := s.claim(ctx)
	if err != nil {
		return orders.Done{}, err
	}
	defer s.land(f)
	s.mu.Lock()
	r, phase := s.run, s.phase
	s.mu.Unlock()
	if r == nil {
		return s.done(), nil
	}
	if sig == "" {
		sig = r.boot.Stop.Signal
	}
	if sig == "" {
		sig = root.DefaultStopSignal
	}
	num := unix.SignalNum(sig)
	if num == 0 {
		return orders.Done{}, root.Errorf(root.Invalid, "%q is not the name of a signal", sig)
	}
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = r.boot.Stop.Timeout
	}
	if timeout <= 0 {
		timeout = root.DefaultStopTimeout
	}
	if phase == orders.PhaseStopping {
		if num == unix.SIGKILL {
			return s.done(), s.kill(ctx, r)
		}
		return s.done(), nil
	}
	e := s.record(orders.Entry{Type: orders.EntryStopping, Number: r.boot.Number, PID: r.pid, Source: o.Source, Reason: o.Reason})
	s.mu.Lock()
	r.stopAsked = true
	s.reclaimDue = time.Time{}
	if s.reclaimEnd != nil {
		s.reclaimEnd()
	}
	s.mu.Unlock()
	s.all.journal.flush(e.Stamp)
	s.all.logs.proxy(r.source, o.Source, o.Reason)
	return orders.Done{Phase: orders.PhaseStopping, Stamp: e.Stamp}, s.end(ctx, r, num, timeout)
}

// end signals a run and makes sure that it ends.
func (s *slot) end(ctx context.Context, r *run, sig syscall.Signal, timeout time.Duration) error {
	s.all.logs.platform(r.source, fmt.Sprintf("Sending signal %s to main child process w/ PID %d", unix.SignalName(sig), mainChild(r.pid)))
	var err error
	if sig == unix.SIGKILL {
		err = s.kill(ctx, r)
	} else {
		// Before the thaw, so that a frozen machine does nothing else first.
		err = s.all.driver.Signal(ctx, r.boot.Container, sig, false)
		err = errors.Join(err, s.all.driver.Thaw(r.boot.Container))
	}
	if root.KindOf(err) == root.NotFound {
		err = nil // ended by itself this moment
	}
	s.all.tasks.Go(s.mark)
	detached := s.all.detached(ctx)
	s.all.tasks.Go(func() { s.insist(detached, r, timeout) })
	return err
}

// insist kills a run that has not ended after the timeout.
func (s *slot) insist(ctx context.Context, r *run, timeout time.Duration) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	for {
		select {
		case <-r.ended:
			return
		case <-ctx.Done():
			return // adopted as stopping
		case <-t.C:
		}
		if err := s.kill(ctx, r); err != nil && root.KindOf(err) != root.NotFound {
			s.all.log.Error("kill failed", "machine", s.machine, "container", r.boot.Container, "err", err)
		}
		t.Reset(killAgain)
	}
}

// kill kills every process of a run, frozen or not.
func (s *slot) kill(ctx context.Context, r *run) error {
	err := s.all.driver.Signal(ctx, r.boot.Container, unix.SIGKILL, true)
	return errors.Join(err, s.all.driver.Thaw(r.boot.Container))
}

// signal sends one signal to the main process.
func (s *slot) signal(ctx context.Context, o orders.Signal) (orders.Done, error) {
	if o.Signal < 1 || o.Signal > 64 {
		return orders.Done{}, root.Errorf(root.Invalid, "%d is not a signal", o.Signal)
	}
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	if r == nil {
		return orders.Done{}, s.notRunning("signal")
	}
	s.all.logs.platform(r.source, fmt.Sprintf("Sending signal %s to main child process w/ PID %d", unix.SignalName(syscall.Signal(o.Signal)), mainChild(r.pid)))
	return s.done(), s.all.driver.Signal(ctx, r.boot.Container, syscall.Signal(o.Signal), false)
}

// remove kills and forgets.
func (s *slot) remove(ctx context.Context) error {
	s.mu.Lock()
	s.removing = true
	s.notify()
	s.mu.Unlock()
	_, err := s.stop(ctx, orders.Stop{Signal: "SIGKILL", Source: orders.SourceHost, Reason: "removed"})
	if err != nil && root.KindOf(err) != root.NotFound {
		return err
	}
	for {
		s.mu.Lock()
		r := s.run
		s.mu.Unlock()
		if r == nil {
			break
		}
		select {
		case <-r.ended:
		case <-ctx.Done():
			return s.gaveUp(ctx)
		}
	}
	f, err := s.claim(ctx)
	if err != nil {
		return err
	}
	defer s.land(f)
	if !s.all.forget(s) {
		return nil // another remove was quicker
	}
	s.record(orders.Entry{Type: orders.EntryRemoved})
	return nil
}
