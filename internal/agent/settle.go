package agent

import (
	"context"
	"slices"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// settled compares what the status says with the supervisor's account, after
// the journal was taken up to it: at the agent's start, and whenever the
// supervisor came back. Account is nil when the supervisor has no such
// instance: it was never made, or the host was restarted. It only notes what
// is to be done; tidy does it.
func (m *machine) settled(ctx context.Context, account *orders.Instance) {
	if m.gone {
		return
	}
	m.wantLease = true
	if m.rec.Spec.Destroy != nil || m.st.State == root.StateDestroying {
		m.wantGone, m.inst.running = true, 0
		return
	}
	if account == nil && m.inst.staged {
		// Known once: it is gone, or was made after the list was taken.
		ctx, cancel := context.WithTimeout(ctx, newsTimeout)
		defer cancel()
		now, err := m.a.o.Supervisor.Instance(ctx, m.inst.id())
		if err == nil {
			account = &now
		} else if !root.IsKind(err, root.NotFound) {
			return // the supervisor has gone again: its return settles it
		}
	}
	if account == nil {
		m.inst.staged, m.inst.running, m.inst.next = false, 0, false
		m.inst.phase = orders.PhaseStopped
		m.unknown()
		return
	}
	m.known(ctx, account)
}

// known: the supervisor has the instance.
func (m *machine) known(ctx context.Context, acc *orders.Instance) {
	i := m.inst
	i.staged = true
	if i.heard.Before(acc.Stamp) {
		i.heard = acc.Stamp
	}
	if !acc.Stamp.Before(i.stamp) { // else the journal has told more since
		i.stamp, i.phase, i.running = acc.Stamp, acc.Phase, 0
		if acc.Running != nil {
			i.running = acc.Running.Number
		}
	}
	i.last = max(i.last, i.running, i.seen)
	i.next, i.problem = false, ""
	if n := acc.Next; n != nil && n.Number > i.seen && n.Number > i.running {
		i.next, i.last, i.problem = true, max(i.last, n.Number), n.Problem
	}
	// Boots that neither the account nor the journal since then names are used
	// up. What the account has running may have ended since: its entry says so.
	keep := map[uint64]bool{i.running: true}
	if acc.Running != nil {
		keep[acc.Running.Number] = true
	}
	if acc.Next != nil {
		keep[acc.Next.Number] = true
	}
	for _, n := range m.a.bootsOf(i.id()) {
		i.last = max(i.last, n)
		if !keep[n] && !slices.Contains(m.used, n) {
			m.used = append(m.used, n)
		}
	}
	if i.next && i.last != acc.Next.Number {
		i.last = acc.Next.Number // a later one was begun and never handed over
	}
	at := acc.Since
	if i.phase != orders.PhaseStopped {
		if s := i.phase.State(); m.st.State != s {
			m.st.State, m.st.UpdatedAt, m.dirty = s, at, true
			if m.st.Stamp.Before(i.stamp) {
				m.st.Stamp = i.stamp
			}
		}
		return
	}
	switch m.st.State {
	case root.StateStopped, root.StateFailed, root.StateLaunchFailed:
	case root.StateCreating, root.StateCreated:
		m.begun()
	case root.StateRestarting:
		m.wantStart = reasonPolicy
	case root.StateReplacing, root.StateUpdating:
		m.wantStart = reasonUpdate
	default: // it ended, and no entry is left that tells how
		requested := m.st.State == root.StateStopping
		m.lost(ctx, orders.Entry{At: at, Reason: "it ended unseen", Exit: &orders.Exit{Code: -1, Requested: requested}})
	}
}

// unknown: the supervisor has no such instance.
func (m *machine) unknown() {
	now := time.Now().UTC()
	switch m.st.State {
	case root.StateLaunchFailed:
	case root.StateCreating, root.StateCreated:
		m.begun()
	case root.StateStopped, root.StateFailed:
		m.wantSet = true
	case root.StateRestarting:
		m.wantStart = reasonReboot
	case root.StateStopping, root.StateSuspending, root.StateSuspended:
		m.st.State = root.StateStopped
		pushExit(&m.st, orders.Entry{At: now, Reason: orders.ReasonHostRestarted}, root.Exit{Code: -1, Signal: -1, RequestedStop: true, Error: orders.ReasonHostRestarted, At: now})
		m.st.UpdatedAt, m.dirty = now, true
		m.wantSet = true
	default: // it ran
		if m.rec.Spec.Config.AutoDestroy { // a job that was cut off is not done twice
			m.st.State = root.StateStopped
			pushExit(&m.st, orders.Entry{At: now, Reason: orders.ReasonHostRestarted}, root.Exit{Code: -1, Signal: -1, Error: orders.ReasonHostRestarted, At: now})
			m.st.UpdatedAt, m.dirty, m.wantGone = now, true, true
			return
		}
		m.st.State = root.StateRestarting
		pushExit(&m.st, orders.Entry{At: now, Reason: orders.ReasonHostRestarted}, root.Exit{Code: -1, Signal: -1, Restarting: true, Error: orders.ReasonHostRestarted, At: now})
		m.st.UpdatedAt, m.dirty = now, true
		m.wantStart = reasonReboot
	}
}

// begun: control died while it made the machine.
func (m *machine) begun() {
	if m.rec.Spec.Launch {
		m.st.State, m.dirty = root.StateStarting, true
		m.wantStart = reasonReboot
		return
	}
	m.st.State, m.dirty = root.StateStopped, true
	m.wantSet = !m.inst.staged
}

// lost takes an exit that the journal has no entry of.
func (m *machine) lost(ctx context.Context, e orders.Entry) {
	e.Stamp = m.st.Stamp
	t := exited(&m.st, &m.rec.Spec.Config, &m.tries, e)
	m.st.UpdatedAt, m.dirty = e.At, true
	m.a.say(ctx, m.inst, t.line)
	switch t.step {
	case stepStart:
		m.wantStart = reasonRestart
	case stepReboot:
		m.wantStart = reasonReboot
	case stepRetry:
		m.policy.Reset(t.delay)
	case stepDestroy:
		m.wantGone = true
	}
}
