package agent

import (
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// Reasons that mean something when they come back in the journal.
const (
	reasonLaunch  = "launch"
	reasonRestart = "restart requested"
	reasonPolicy  = "restart policy"
	reasonReboot  = "started again with the host"
	reasonUpdate  = "update"
)

// Delays between policy restarts.
const (
	firstRestartDelay = time.Second
	maxRestartDelay   = 30 * time.Second
)

// step is what a machine's goroutine has to do after an entry.
type step uint8

const (
	stepNone    step = iota
	stepStart        // a requested restart: start at once
	stepReboot       // it ended with the host: start as soon as the host is back
	stepRetry        // a policy restart: start after the delay
	stepDestroy      // auto_destroy
)

// turn is what one journal entry means.
type turn struct {
	step  step
	delay time.Duration // stepRetry
	line  string        // for the machine's log, "" none
}

// retries counts policy restarts within root.RestartWindow.
type retries struct{ at []time.Time }

// next says whether one more restart is due at now, and after which delay.
func (r *retries) next(policy root.Restart, failed bool, now time.Time) (delay time.Duration, due, exhausted bool) {
	keep := r.at[:0]
	for _, t := range r.at {
		if now.Sub(t) < root.RestartWindow {
			keep = append(keep, t)
		}
	}
	r.at = keep
	switch policy.Policy {
	case root.RestartAlways:
	case root.RestartOnFailure:
		if !failed {
			return 0, false, false
		}
		if len(r.at) >= policy.MaxRetries {
			return 0, false, true
		}
	default:
		return 0, false, false
	}
	delay = min(firstRestartDelay<<min(len(r.at), 10), maxRestartDelay)
	r.at = append(r.at, now)
	// always has no limit: the window alone bounds the list.
	if extra := len(r.at) - maxRetriesKept; extra > 0 {
		r.at = r.at[extra:]
	}
	return delay, true, false
}

// maxRetriesKept is more restarts than fit into the window once the delay has
// grown, but for a policy with more max_retries than that.
const maxRetriesKept = 1000

// tell moves st on by one entry of its instance's journal. It is pure apart
// from the ids of new events. An entry that st has seen changes nothing.
func tell(st *root.Status, c *root.Config, r *retries, e orders.Entry, problem bool) turn {
	if !st.Stamp.Before(e.Stamp) {
		return turn{}
	}
	st.Stamp = e.Stamp
	st.UpdatedAt = e.At
	switch e.Type {
	case orders.EntryStarting:
		st.State = root.StateStarting
		switch e.Source {
		case orders.SourceUser, orders.SourceProxy:
			st.Restarts = 0
			*r = retries{}
		}
		if e.Reason == reasonPolicy || isRestart(e.Reason) {
			push(st, e, "restart", root.StateStarting, orders.SourceHost)
		}
	case orders.EntryStarted:
		st.State, st.Message = root.StateStarted, ""
		push(st, e, "start", root.StateStarted, e.Source)
	case orders.EntryResumed:
		st.State, st.Message = root.StateStarted, ""
		push(st, e, "start", root.StateStarted, e.Source)
	case orders.EntrySuspending:
		st.State = root.StateSuspending
		push(st, e, "suspend", root.StateSuspending, e.Source)
	case orders.EntrySuspended:
		st.State = root.StateSuspended
		push(st, e, "suspend", root.StateSuspended, e.Source)
	case orders.EntryStopping:
		if e.Reason == orders.ReasonHostShutdown && ran(st.State) {
			st.State = root.StateRestarting
			push(st, e, "stop", root.StateStopping, e.Source)
			break
		}
		st.State = root.StateStopping
		if isRestart(e.Reason) {
			push(st, e, "restart", root.StateStopping, e.Source)
		} else {
			push(st, e, "stop", root.StateStopping, e.Source)
		}
	case orders.EntryExited:
		return exited(st, c, r, e)
	case orders.EntryFailed:
		return failed(st, c, r, e, problem)
	}
	return turn{}
}

func exited(st *root.Status, c *root.Config, r *retries, e orders.Entry) turn {
	x := root.Exit{Code: -1, Signal: -1, At: e.At, Error: e.Error}
	if e.Exit != nil {
		x.Code, x.OOMKilled, x.RequestedStop = e.Exit.Code, e.Exit.OOMKilled, e.Exit.Requested
		if e.Exit.Signal > 0 {
			x.Signal = e.Exit.Signal
		}
	}
	if x.OOMKilled && !x.RequestedStop {
		st.Message = fmt.Sprintf("a process was killed because the machine used up its %d MB of memory; a larger guest.memory_mb or init.swap_size_mb may help", c.Guest.Memory.MiB())
	}
	newest := root.Event{}
	if len(st.Events) > 0 {
		newest = st.Events[0]
	}
	withHost := e.Reason == orders.ReasonHostRestarted && ran(st.State) ||
		newest.Reason == orders.ReasonHostShutdown && st.State == root.StateRestarting
	switch {
	case withHost && c.AutoDestroy: // a job that was cut off is not done twice
		st.State = root.StateStopped
		pushExit(st, e, x)
		return turn{step: stepDestroy}
	case withHost:
		st.State = root.StateRestarting
		x.Restarting = true
		pushExit(st, e, x)
		return turn{step: stepReboot}
	case e.Reason == orders.ReasonHostRestarted:
		x.RequestedStop = true // it was suspended, or about to stop
	}
	if x.RequestedStop && newest.Type == "restart" {
		st.State = root.StateRestarting
		pushExit(st, e, x)
		return turn{step: stepStart}
	}
	if !x.RequestedStop {
		if t, again := policy(st, c, r, e, x); again {
			return t
		}
	}
	st.State = root.StateStopped
	pushExit(st, e, x)
	t := turn{}
	if !x.RequestedStop {
		t.line = "machine exited with exit code " + code(x.Code) + ", not restarting"
		if c.Restart.Policy == root.RestartOnFailure && x.Code != 0 {
			t.line = fmt.Sprintf("machine has reached its max restart count of %d", c.Restart.MaxRetries)
		}
	}
	if c.AutoDestroy {
		t.step = stepDestroy
	}
	return t
}

// ran reports whether a machine in state s was meant to run.
func ran(s root.State) bool {
	switch s {
	case root.StateStarting, root.StateStarted, root.StateRestarting, root.StateReplacing, root.StateUpdating:
		return true
	}
	return false
}

// failed: a start did not work. Who ordered it was told; only a start of ours
// is tried again.
func failed(st *root.Status, c *root.Config, r *retries, e orders.Entry, problem bool) turn {
	x := root.Exit{Code: -1, Signal: -1, At: e.At, Error: e.Error}
	st.Message = e.Error
	if e.Source == orders.SourceHost && e.Reason != reasonLaunch && !problem {
		if t, again := policy(st, c, r, e, x); again {
			return t
		}
	}
	st.State = root.StateStopped
	if problem {
		st.State = root.StateFailed
	}
	pushExit(st, e, x)
	return turn{line: "machine did not start: " + e.Error}
}

func policy(st *root.Status, c *root.Config, r *retries, e orders.Entry, x root.Exit) (turn, bool) {
	delay, due, _ := r.next(c.Restart, x.Code != 0, e.At)
	if !due {
		return turn{}, false
	}
	x.Restarting = true
	st.Restarts++
	st.State = root.StateRestarting
	pushExit(st, e, x)
	return turn{
		step: stepRetry, delay: delay,
		line: fmt.Sprintf("machine exited with exit code %s, restarting in %s", code(x.Code), delay),
	}, true
}

func code(c int) string {
	if c < 0 {
		return "unknown"
	}
	return fmt.Sprint(c)
}

func push(st *root.Status, e orders.Entry, typ string, s root.State, source orders.Source) {
	if source == "" {
		source = orders.SourceHost
	}
	st.Events = root.PushEvent(st.Events, root.Event{
		ID: eventID(e.At), Type: typ, Status: s, Source: string(source), Reason: e.Reason, At: e.At,
	})
}

func pushExit(st *root.Status, e orders.Entry, x root.Exit) {
	st.Exit = &x
	shown := x
	st.Events = root.PushEvent(st.Events, root.Event{
		ID: eventID(e.At), Type: "exit", Status: root.StateStopped, Source: string(orders.SourceHost), Reason: e.Reason,
		At: e.At, Exit: &shown, Count: st.Restarts,
	})
}

// eventID is a ULID of the event's time, or of now for a time that is none.
func eventID(at time.Time) string {
	id, err := ulid.New(ulid.Timestamp(at), ulid.DefaultEntropy())
	if err != nil {
		id = ulid.Make()
	}
	return id.String()
}
