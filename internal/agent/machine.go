package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/orders"
)

// machine is one machine of this host and the goroutine that owns it.
type machine struct {
	a    *Agent
	id   root.MachineID
	cmds chan *command // unbuffered: a command waits for the one before
	ear  ear
	// ended is closed when the goroutine has returned.
	ended chan struct{}

	mu     sync.Mutex
	live   root.InstanceID         // guarded by mu: the version the spec names
	stamp  root.Stamp              // guarded by mu: of the status
	cancel context.CancelCauseFunc // guarded by mu: of the command at work
	// givenUp is a version that nobody waits for; guarded by mu.
	givenUp root.InstanceID

	// What follows belongs to the goroutine.
	rec  *root.Machine // its Spec is the version in inst
	st   root.Status
	inst *instance // never nil; not staged while nothing of it exists
	cand *instance // a version that is coming up beside inst

	tries     retries
	dirty     bool   // st is ahead of the store
	rev       int64  // the store's revision of the last write of st
	wantStart string // reason of a start that is due, "" none
	wantGone  bool   // auto_destroy is due, or an unfinished destroy
	wantSet   bool   // what the machine needs to be started is to be made
	wantLease bool   // the supervisor may not know of the lease
	wantCure  string // why the machine is to be restarted, "" it is not
	used      []uint64
	gone      bool // the record is deleted

	policy  *time.Timer // a policy restart that is due later
	chores  *time.Timer // what failed on our side is tried again
	restock *time.Timer // the next boot is to be prepared
	failing time.Duration
}

// command is a function for the machine's goroutine.
type command struct {
	f       func(context.Context, *machine) error
	timeout time.Duration
	rev     int64
	err     error
	done    chan struct{} // closed when rev and err are set
}

func newMachine(a *Agent, rec *root.Machine) *machine {
	own := rec.Clone()
	m := &machine{
		a: a, id: rec.ID, cmds: make(chan *command), ended: make(chan struct{}),
		rec: own, st: own.Status,
		live: own.Spec.Instance, stamp: own.Status.Stamp,
		policy: idleTimer(), chores: idleTimer(), restock: idleTimer(),
	}
	m.ear.wake = make(chan struct{}, 1)
	m.inst = &instance{machine: own, phase: orders.PhaseStopped}
	return m
}

func idleTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (m *machine) instanceID() root.InstanceID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live
}

func (m *machine) told() root.Stamp {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stamp
}

// ear is the queue of news. It holds what one machine causes while one command
// runs, and nobody waits at it.
type ear struct {
	mu    sync.Mutex
	items []news
	wake  chan struct{} // capacity 1: something came
}

// news is an entry of the journal or, at the end of a catch-up, the
// supervisor's account, or what the edge says of checks.
type news struct {
	report  *report.Report
	entry   orders.Entry
	settle  bool
	account *orders.Instance // with settle: nil when the supervisor has none
}

func (e *ear) add(n news) {
	e.mu.Lock()
	e.items = append(e.items, n)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *ear) take() []news {
	e.mu.Lock()
	defer e.mu.Unlock()
	items := e.items
	e.items = nil
	return items
}

func (m *machine) hear(e orders.Entry)             { m.ear.add(news{entry: e}) }
func (m *machine) settle(account *orders.Instance) { m.ear.add(news{settle: true, account: account}) }

// do runs f in the machine's goroutine and returns when the status after it is
// in the store. When ctx ends first, f goes on without the caller.
func (m *machine) do(ctx context.Context, f func(context.Context, *machine) error) (int64, error) {
	return m.doWithin(ctx, commandTimeout, f)
}

// doWithin is do for what may take longer, or has to take less, than others.
func (m *machine) doWithin(ctx context.Context, timeout time.Duration, f func(context.Context, *machine) error) (int64, error) {
	c := &command{f: f, timeout: timeout, done: make(chan struct{})}
	select {
	case m.cmds <- c:
	case <-m.ended:
		return 0, root.Errorf(root.NotFound, "machine not found")
	case <-ctx.Done():
		return 0, gaveUp(ctx, m)
	}
	select {
	case <-c.done:
		return c.rev, c.err
	case <-m.ended:
		select {
		case <-c.done:
			return c.rev, c.err
		default:
			return 0, root.Errorf(root.Unavailable, "the platform is stopping; try again")
		}
	case <-ctx.Done():
		return 0, gaveUp(ctx, m)
	}
}

func gaveUp(ctx context.Context, m *machine) error {
	return &root.Error{Kind: root.Timeout, Message: fmt.Sprintf("machine %s is still being worked on; its state tells when it is done", m.id), Err: context.Cause(ctx)}
}

// interrupt ends the command at work.
func (m *machine) interrupt(cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cancel != nil {
		m.cancel(cause)
	}
}

func (m *machine) run(ctx context.Context) {
	defer close(m.ended)
	defer m.policy.Stop()
	defer m.chores.Stop()
	defer m.restock.Stop()
	for !m.gone {
		select {
		case <-ctx.Done():
			return
		case c := <-m.cmds:
			m.execute(ctx, c)
		case <-m.ear.wake:
			m.guard(ctx, func() { m.listen(ctx) })
		case <-m.policy.C:
			m.wantStart = reasonPolicy
		case <-m.chores.C:
		case <-m.restock.C:
		}
		m.guard(ctx, func() { m.tidy(ctx) })
	}
	m.a.forget(m.id)
}

// guard keeps a panic of this machine from the others: what the goroutine
// knows is thrown away and found out again.
func (m *machine) guard(ctx context.Context, f func()) {
	defer func() {
		if p := recover(); p != nil {
			m.a.log.Error("machine goroutine panicked", "machine", m.id, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			m.rebuild(ctx)
		}
	}()
	f()
}

func (m *machine) rebuild(ctx context.Context) {
	rec := m.a.o.Catalog.Snapshot().Machine(m.id)
	if rec == nil {
		m.gone = true
		return
	}
	m.rec = rec.Clone()
	m.st = m.rec.Status
	m.inst, m.cand = &instance{machine: m.rec, phase: orders.PhaseStopped}, nil
	m.dirty, m.wantStart, m.wantCure, m.wantGone, m.used = false, "", "", false, nil
	m.publish()
	account, err := m.a.o.Supervisor.Instance(ctx, m.rec.Spec.Instance)
	switch {
	case err == nil:
		m.settle(&account)
	case root.IsKind(err, root.NotFound):
		m.settle(nil)
	}
}

func (m *machine) execute(ctx context.Context, c *command) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, stop := context.WithTimeout(ctx, c.timeout)
	defer stop()
	m.mu.Lock()
	m.cancel = cancel
	m.mu.Unlock()
	c.err = root.Errorf(root.Internal, "the machine's goroutine panicked")
	m.guard(ctx, func() {
		m.listen(ctx) // what came before the command counts before it
		c.err = c.f(ctx, m)
		if ctx.Err() != nil && c.err != nil {
			c.err = fmt.Errorf("%w (%w)", context.Cause(ctx), c.err)
		}
		if err := m.flush(context.WithoutCancel(ctx)); err != nil {
			c.err = errors.Join(c.err, err)
		}
		c.rev = m.rev
	})
	m.mu.Lock()
	m.cancel = nil
	m.mu.Unlock()
	close(c.done)
}

// publish shows the goroutine's view to the others.
func (m *machine) publish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live, m.stamp = m.rec.Spec.Instance, m.st.Stamp
}

// listen takes over what the journal told since.
func (m *machine) listen(ctx context.Context) {
	for _, n := range m.ear.take() {
		switch {
		case n.report != nil:
			m.heed(n.report)
			continue
		case n.settle:
			m.settled(ctx, n.account)
			continue
		}
		m.take(ctx, n.entry)
	}
}

func (m *machine) take(ctx context.Context, e orders.Entry) {
	if m.cand != nil && e.Instance == m.cand.id() {
		m.cand.note(e)
		return
	}
	if e.Instance != m.inst.id() {
		return
	}
	m.inst.note(e)
	if orders.PhaseAfter(e.Type) == "" {
		return
	}
	if m.st.State == root.StateDestroying || m.st.State == root.StateDestroyed {
		return // how it ends is of no interest any more
	}
	before := m.st.Stamp
	t := tell(&m.st, &m.rec.Spec.Config, &m.tries, e, m.inst.problem != "" && e.Number == m.inst.last)
	if before == m.st.Stamp {
		return
	}
	m.dirty = true
	m.a.say(ctx, m.inst, t.line)
	switch t.step {
	case stepStart:
		m.wantStart = reasonRestart
	case stepReboot:
		m.wantStart = reasonReboot
	case stepRetry:
		m.policy.Reset(max(0, t.delay-time.Since(e.At)))
	case stepDestroy:
		m.wantGone = true
	}
	switch e.Type {
	case orders.EntryExited, orders.EntryFailed:
		m.used = append(m.used, e.Number)
	case orders.EntryStarting:
		m.policy.Stop()
		m.wantStart = ""
		m.unchecked(e)
	}
}

// awaitNews takes news until those with the stamp have come.
func (m *machine) awaitNews(ctx context.Context, stamp root.Stamp) error {
	i := m.inst
	return m.await(ctx, newsTimeout, "the journal's news", func() bool { return !i.heard.Before(stamp) })
}

// await takes news until done says so.
func (m *machine) await(ctx context.Context, timeout time.Duration, what string, done func() bool) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		m.listen(ctx)
		if done() {
			return nil
		}
		select {
		case <-m.ear.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline.C:
			return root.Errorf(root.Timeout, "waited %s for %s of machine %s", timeout, what, m.id)
		}
	}
}

// tidy does what news and commands left to do. What fails is tried again later.
func (m *machine) tidy(ctx context.Context) {
	if m.gone {
		return
	}
	err := m.flush(ctx)
	if m.wantGone && m.inst.running == 0 {
		err = errors.Join(err, m.destroy(ctx))
	}
	if m.gone {
		return
	}
	if m.wantLease {
		err = errors.Join(err, m.tellLease(ctx))
	}
	if m.wantCure != "" {
		err = errors.Join(err, m.cure(ctx), m.flush(ctx))
	}
	if reason := m.wantStart; reason != "" && m.inst.running == 0 {
		m.wantStart, m.wantSet = "", false
		if e := m.start(ctx, orders.Start{Source: orders.SourceHost, Reason: reason}); e != nil {
			m.a.log.Warn("start did not work", "machine", m.id, "err", e)
			switch root.KindOf(e) {
			case root.NotFound, root.Unavailable: // the supervisor is going or coming
				m.inst.staged = m.inst.staged && !root.IsKind(e, root.NotFound)
				m.wantStart = reason
				err = errors.Join(err, e)
			default:
				m.unstarted(ctx, reason, e)
			}
		}
		err = errors.Join(err, m.flush(ctx))
	}
	if m.wantSet && !m.inst.staged {
		err = errors.Join(err, m.setUp(ctx))
	}
	err = errors.Join(err, m.a.show(ctx, m.rec), m.replenish(ctx))
	for len(m.used) > 0 {
		if n := m.used[0]; n == m.inst.running || m.inst.next && n == m.inst.last { // never under a running machine, or one about to
			m.used = m.used[1:]
			continue
		}
		if e := m.a.cleanBoot(ctx, m.inst, m.used[0]); e != nil {
			err = errors.Join(err, e)
			break
		}
		m.used = m.used[1:]
	}
	if err == nil || ctx.Err() != nil {
		m.failing = 0
		return
	}
	m.failing = min(max(retryDelay, 2*m.failing), maxRetryDelay)
	m.a.log.Warn("machine needs another attempt", "machine", m.id, "err", err, "again", m.failing)
	m.chores.Reset(m.failing)
}

// unstarted: a start of ours did not even become one, so that no entry tells
// of it. It counts as a failed one.
func (m *machine) unstarted(ctx context.Context, reason string, err error) {
	if m.st.State != root.StateRestarting && m.st.State != root.StateStarting {
		return // the journal told
	}
	e := orders.Entry{
		Stamp: m.st.Stamp, At: time.Now(), Type: orders.EntryFailed, Machine: m.id, Instance: m.inst.id(),
		Source: orders.SourceHost, Reason: reason, Error: root.MessageOf(err),
	}
	t := failed(&m.st, &m.rec.Spec.Config, &m.tries, e, false)
	m.st.UpdatedAt, m.dirty = e.At, true
	m.a.say(ctx, m.inst, t.line)
	if t.step == stepRetry {
		m.policy.Reset(t.delay)
	}
}

// setUp makes what a machine that rests needs to be started.
func (m *machine) setUp(ctx context.Context) error {
	if err := m.a.sem.Acquire(ctx, 1); err != nil {
		return err
	}
	defer m.a.sem.Release(1)
	err := m.set(ctx)
	if err != nil && !root.IsKind(err, root.Invalid) {
		return err
	}
	m.wantSet = false
	if err != nil {
		m.st.State, m.st.Message = root.StateFailed, root.MessageOf(err)
		m.st.UpdatedAt, m.dirty = time.Now().UTC(), true
		return m.flush(ctx)
	}
	return nil
}

// tellLease repeats the lease to a supervisor that may have forgotten it.
func (m *machine) tellLease(ctx context.Context) error {
	rec := m.a.o.Catalog.Snapshot().Machine(m.id)
	if rec != nil && m.inst.staged {
		if l := rec.ActiveLease(time.Now()); l != nil {
			if _, err := m.a.o.Supervisor.Lease(ctx, m.inst.id(), orders.Lease{Until: l.ExpiresAt}); err != nil {
				return err
			}
		}
	}
	m.wantLease = false
	return nil
}

// restockDelay leaves the host to a machine that has just started, and to the
// request that woke it, before its next boot is prepared.
const restockDelay = 300 * time.Millisecond

// replenish keeps a next boot ready.
func (m *machine) replenish(ctx context.Context) error {
	c := &m.rec.Spec.Config
	oneShot := c.AutoDestroy && c.Restart.Policy == root.RestartNo
	if !m.inst.staged || m.inst.next || oneShot || m.wantGone {
		return nil
	}
	if wait := restockDelay - time.Since(m.inst.began); m.inst.running != 0 && wait > 0 {
		m.restock.Reset(wait)
		return nil
	}
	return m.a.prepare(ctx, m.inst)
}

// flush writes the status to the store.
func (m *machine) flush(ctx context.Context) error {
	if !m.dirty || m.gone {
		return nil
	}
	m.st.Instance, m.st.Generation = m.rec.Spec.Instance, m.rec.Spec.Generation
	rev, err := m.a.o.Store.PutStatus(ctx, m.id, m.st)
	if root.IsKind(err, root.NotFound) {
		m.gone = true // deleted by force: nothing to keep
		return nil
	}
	if err != nil {
		return fmt.Errorf("record status of %s: %w", m.id, err)
	}
	m.dirty, m.rev = false, rev
	m.publish()
	return nil
}

// event adds an event of our own to the status.
func (m *machine) event(typ string, s root.State, source orders.Source, reason string) {
	at := time.Now().UTC()
	m.st.Events = root.PushEvent(m.st.Events, root.Event{
		ID: eventID(at), Type: typ, Status: s, Source: string(source), Reason: reason, At: at,
	})
	m.st.UpdatedAt, m.dirty = at, true
}
