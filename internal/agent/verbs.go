package agent

import (
	"context"
	"fmt"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// exitSlack is what an exit may take beyond the stop's own timeout: the kill,
// the runtime's clean-up.
const exitSlack = 15 * time.Second

// launch makes a new machine be and, if its spec says so, starts it.
func (m *machine) launch(ctx context.Context) error {
	if m.inst.staged {
		return nil // taken over by a start of the agent meanwhile
	}
	if err := m.set(ctx); err != nil {
		m.launchFailed(ctx, err)
		return err
	}
	if !m.rec.Spec.Launch {
		m.st.State, m.st.UpdatedAt, m.dirty = root.StateStopped, time.Now().UTC(), true
		return nil
	}
	if err := m.start(ctx, orders.Start{Source: orders.SourceHost, Reason: reasonLaunch}); err != nil {
		m.launchFailed(ctx, err)
		return err
	}
	return nil
}

// set stages the version in the spec.
func (m *machine) set(ctx context.Context) error {
	i, err := m.a.stage(ctx, m.rec, m.rec.Spec.Image.Digest)
	if err != nil {
		return err
	}
	m.inst = i
	return nil
}

func (m *machine) launchFailed(ctx context.Context, err error) {
	at := time.Now().UTC()
	m.st.State, m.st.Message = root.StateLaunchFailed, root.MessageOf(err)
	if len(m.st.Events) == 0 || m.st.Events[0].Type != "exit" {
		pushExit(&m.st, orders.Entry{At: at, Reason: reasonLaunch}, root.Exit{Code: -1, Signal: -1, Error: m.st.Message, At: at})
	}
	m.st.UpdatedAt, m.dirty = at, true
	m.a.say(ctx, m.inst, "machine could not be launched: "+m.st.Message)
}

// start orders a boot or a thaw and returns when the status says so.
func (m *machine) start(ctx context.Context, o orders.Start) error {
	m.policy.Stop()
	m.wantStart = ""
	m.listen(ctx)
	if m.wantGone { // a job that has ended is not done twice
		return root.Errorf(root.Conflict, "machine %s has ended and is being removed", m.id)
	}
	if !m.inst.staged {
		if err := m.set(ctx); err != nil {
			return err
		}
	}
	if !m.inst.next && (m.inst.phase == orders.PhaseStopped || m.inst.phase == orders.PhaseStopping) {
		if err := m.a.prepare(ctx, m.inst); err != nil {
			return err
		}
	}
	started, err := m.a.o.Supervisor.Start(ctx, m.inst.id(), o)
	if err != nil {
		m.catchUp(ctx, m.inst)
		return err
	}
	if err := m.awaitNews(ctx, started.Stamp); err != nil {
		return err
	}
	if m.inst.phase == orders.PhaseStarted && m.st.State != root.StateStarted {
		// It ran already and the order changed nothing: no entry tells.
		m.st.State, m.st.UpdatedAt, m.dirty = root.StateStarted, time.Now().UTC(), true
	}
	return nil
}

// catchUp takes the news up to the supervisor's account of i: what failed has
// been told when it returns.
func (m *machine) catchUp(ctx context.Context, i *instance) {
	account, err := m.a.o.Supervisor.Instance(ctx, i.id())
	if err != nil {
		return // what it was asked for is told later
	}
	if err := m.await(ctx, newsTimeout, "the journal's news", func() bool { return !i.heard.Before(account.Stamp) }); err != nil {
		m.a.log.Warn("journal is behind", "machine", m.id, "err", err)
	}
}

// stop orders a stop and returns when the intent is in the status.
func (m *machine) stop(ctx context.Context, o orders.Stop) error {
	m.listen(ctx)
	if m.rest(o) || !m.inst.staged {
		return nil
	}
	done, err := m.a.o.Supervisor.Stop(ctx, m.inst.id(), o)
	if err != nil {
		return err
	}
	if err := m.awaitNews(ctx, done.Stamp); err != nil {
		return err
	}
	m.rest(o) // it may have ended by itself just before
	return nil
}

// rest ends what would start the machine again. It reports whether it was
// about to be, and is stopped now.
func (m *machine) rest(o orders.Stop) bool {
	m.policy.Stop()
	m.wantStart = ""
	if m.inst.running != 0 || m.st.State != root.StateRestarting && m.st.State != root.StateStarting && m.st.State != root.StateFailed {
		return false
	}
	m.st.State, m.st.UpdatedAt, m.dirty = root.StateStopped, time.Now().UTC(), true
	m.event("stop", root.StateStopped, o.Source, o.Reason)
	return true
}

// halt stops i and waits for its exit; one that does not go is killed by the
// supervisor when its time is over.
func (m *machine) halt(ctx context.Context, i *instance, o orders.Stop) error {
	if _, err := m.a.o.Supervisor.Stop(ctx, i.id(), o); err != nil {
		return err
	}
	timeout := o.Timeout
	if timeout == 0 {
		timeout = i.machine.Spec.Config.Stop.Timeout
	}
	m.catchUp(ctx, i)
	return m.await(ctx, timeout+exitSlack, "the exit", func() bool { return i.phase == orders.PhaseStopped })
}

// Another operation that is just ending does not make a suspend fail.
const (
	busyPatience = time.Second
	busyPause    = 20 * time.Millisecond
)

// suspend orders a freeze and returns when the status says so.
func (m *machine) suspend(ctx context.Context, o orders.Suspend) error {
	for end := time.Now().Add(busyPatience); ; {
		done, err := m.a.o.Supervisor.Suspend(ctx, m.inst.id(), o)
		if err == nil {
			return m.awaitNews(ctx, done.Stamp)
		}
		if !root.IsKind(err, root.Conflict) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(busyPause):
		}
	}
}

// restart stops the machine, if it runs, and starts it.
func (m *machine) restart(ctx context.Context, o orders.Stop) error {
	return m.restartFor(ctx, o, reasonRestart)
}

// restartFor restarts the machine for a reason that isRestart knows.
func (m *machine) restartFor(ctx context.Context, o orders.Stop, reason string) error {
	m.listen(ctx)
	if m.inst.running != 0 {
		o.Reason = reason
		if err := m.halt(ctx, m.inst, o); err != nil {
			return err
		}
	}
	return m.start(ctx, orders.Start{Source: orders.SourceHost, Reason: reason})
}

// destroy removes everything of the machine, the record last.
func (m *machine) destroy(ctx context.Context) error {
	m.policy.Stop()
	m.wantStart = ""
	m.mu.Lock()
	m.cancel = nil // a second destroy must not cut the first one short
	m.mu.Unlock()
	if m.st.State != root.StateDestroying {
		source := orders.SourceUser
		if m.wantGone {
			source = orders.SourceHost
		}
		m.st.State = root.StateDestroying
		m.event("destroy", root.StateDestroying, source, "")
		if err := m.flush(ctx); err != nil {
			return err
		}
	}
	m.wantGone = true // until it is done
	if m.cand != nil {
		if err := m.a.discard(ctx, m.cand); err != nil {
			return err
		}
		m.cand = nil
	}
	if m.inst.network == 0 {
		if app := m.a.o.Catalog.Snapshot().App(m.rec.App); app != nil {
			m.inst.network = app.NetworkID
		}
	}
	if err := m.a.discard(ctx, m.inst); err != nil {
		return err
	}
	m.inst.running = 0
	if err := m.a.protect(ctx, m.id); err != nil {
		return err
	}
	m.st.State = root.StateDestroyed
	m.event("destroy", root.StateDestroyed, orders.SourceHost, "")
	if err := m.flush(ctx); err != nil {
		return err
	}
	rev, err := m.a.o.Store.DeleteMachine(ctx, m.id)
	if err != nil && !root.IsKind(err, root.NotFound) {
		return fmt.Errorf("delete machine %s: %w", m.id, err)
	}
	m.rev = max(m.rev, rev)
	m.gone = true
	return nil
}
