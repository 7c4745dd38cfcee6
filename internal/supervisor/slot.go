package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
)

const (
	// bootTimeout ends a start in which the OCI runtime hangs.
	bootTimeout = 60 * time.Second
	// cleanTimeout is for what has to happen whoever gave up waiting.
	cleanTimeout = 30 * time.Second
	// killAgain is how long a kill may take before it is repeated.
	killAgain = 5 * time.Second
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
	s.reclaimDue, s.swapped = time.Time{}, 0
	if s.reclaimEnd != nil {
		s.reclaimEnd()
	}
	s.mu.Unlock()
	if swapped > 0 {
		admitted, err := s.all.memory.admit(ctx, swapped, string(s.machine), s.all.reclaimOne)
		if err != nil {
			s.mu.Lock()
			s.swapped, s.reclaimDue = swapped, time.Now().Add(s.all.reclaimAfter)
			s.mu.Unlock()
			return orders.Started{}, err
		}
		defer admitted()
	}
	if err := s.all.driver.Thaw(r.boot.Container); err != nil {
		return orders.Started{}, fmt.Errorf("thaw machine %s: %w", s.machine, err)
	}
	e := s.record(orders.Entry{Type: orders.EntryResumed, Number: r.boot.Number, PID: r.pid, Source: o.Source, Reason: o.Reason})
	s.mu.Lock()
	s.reclaimed = false
	s.mu.Unlock()
	// A mark that stays a little too long costs an event that finds it awake.
	s.all.tasks.Go(s.mark)
	return orders.Started{Stamp: e.Stamp, Phase: orders.PhaseStarted, Thawed: true}, nil
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

// boot runs the prepared boot; the caller holds the flight.
func (s *slot) boot(ctx context.Context, o orders.Start) (_ orders.Started, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("the start took more than %s", bootTimeout))
	defer cancel()
	s.mu.Lock()
	b := *s.next
	s.mu.Unlock()
	if b.Problem == "" {
		admitted, err := s.all.memory.admit(ctx, b.Memory, string(s.machine), s.all.reclaimOne)
		if err != nil {
			return orders.Started{}, err
		}
		defer admitted()
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
	r, err := s.launch(ctx, b)
	<-flushed
	if err != nil {
		s.all.logs.platform(s.source(), fmt.Sprintf("machine failed to start: %s", messageOf(err)))
		s.record(orders.Entry{Type: orders.EntryFailed, Number: b.Number, Source: o.Source, Reason: reason, Error: messageOf(err)})
		s.save()
		return orders.Started{}, err
	}
	e := s.record(orders.Entry{Type: orders.EntryStarted, Number: b.Number, PID: r.pid, Source: o.Source, Reason: reason})
	s.save()
	return orders.Started{Stamp: e.Stamp, Phase: orders.PhaseStarted, Booted: true}, nil
}

// launch makes the container and lets it go; on failure nothing is left.
func (s *slot) launch(ctx context.Context, b orders.Boot) (_ *run, err error) {
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
	pid, err := s.all.driver.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	r := &run{boot: b, pid: pid, startedAt: time.Now(), source: source, ended: make(chan struct{})}
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
		r.out = carry(reader, s.all.logs.stream(source))
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
	s.all.logs.platform(r.source, ending(exit))
	s.mu.Lock()
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
	s.run, s.reclaimed, s.swapped, s.reclaimDue = nil, false, 0, time.Time{}
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
	s.reclaimed = false
	s.reclaimDue = time.Now().Add(s.all.reclaimAfter)
	s.mu.Unlock()
	s.all.logs.platform(r.source, "Virtual machine has been suspended")
	return orders.Done{Phase: orders.PhaseSuspended, Stamp: e.Stamp}, nil
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
