package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// MaxWait is the longest one call of Wait takes, and what it takes by default.
const MaxWait = 60 * time.Second

var waitStates = []string{"started", "stopped", "suspended", "destroyed", "failed", "settled", "created", "replaced", "launch_failed"}

// Wait returns when the machine is in one of the states, or with kind Timeout.
// A version before the current one counts as replaced.
func (s *Machines) Wait(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, w WaitRequest) (WaitResult, error) {
	if len(w.States) == 0 {
		w.States = []string{string(root.StateStarted)}
	}
	for _, want := range w.States {
		if !slices.Contains(waitStates, want) {
			return WaitResult{}, root.Errorf(root.Invalid, "state: %q is not one of started, stopped, suspended, destroyed, failed, settled", want)
		}
	}
	if w.Timeout <= 0 || w.Timeout > MaxWait {
		w.Timeout = MaxWait
	}
	m, err := s.Get(ctx, a, app, id)
	if err != nil {
		return WaitResult{}, err
	}
	timeout := root.Errorf(root.Timeout, "waited %s", w.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, w.Timeout, timeout)
	defer cancel()
	var result WaitResult
	gone := false
	err = s.Catalog.Wait(ctx, func(sn *root.Snapshot) bool {
		now := sn.Machine(id)
		if now == nil {
			gone = true
			return true
		}
		m = now
		var reached bool
		result, reached = w.reached(now)
		return reached
	})
	if gone {
		return s.waitedForGone(ctx, app, id, m, w)
	}
	if err == timeout { //nolint:errorlint // our own value: the caller's own deadline is another
		return WaitResult{}, w.missed(m.Status.State, m.Status.Message)
	}
	return result, err
}

// waitedForGone answers when the machine is no more.
func (s *Machines) waitedForGone(ctx context.Context, app root.AppName, id root.MachineID, m *root.Machine, w WaitRequest) (WaitResult, error) {
	if g, err := s.grave(context.WithoutCancel(ctx), app, id); err == nil {
		m = g
	}
	if slices.Contains(w.States, "destroyed") || slices.Contains(w.States, "settled") {
		return WaitResult{State: root.StateDestroyed, Version: m.Spec.Instance, EventID: newestEvent(m)}, nil
	}
	if w.FromEvent != "" { // it may have passed through the state
		if result, reached := w.reached(m); reached {
			return result, nil
		}
	}
	return WaitResult{}, w.missed(root.StateDestroyed, m.Status.Message)
}

func (w *WaitRequest) missed(now root.State, why string) error {
	text := fmt.Sprintf("machine failed to reach desired state, %s, currently %s", strings.Join(w.States, " or "), now)
	if why != "" {
		text += ": " + why
	}
	return root.Errorf(root.Timeout, "%s", text)
}

// reached reports whether the machine is where w wants it.
func (w *WaitRequest) reached(m *root.Machine) (WaitResult, bool) {
	r := WaitResult{State: m.Status.State, Version: m.Spec.Instance, EventID: newestEvent(m)}
	if w.Version != "" && w.Version < string(m.Spec.Instance) { // ULIDs: the older one is the smaller one
		r.State, r.Version = root.StateReplaced, root.InstanceID(w.Version)
		for _, want := range w.States {
			switch want {
			case "replaced", "settled", "stopped", "destroyed":
				return r, true
			}
		}
		return r, false
	}
	if w.Version != "" && w.Version != string(m.Spec.Instance) || m.Status.Instance != m.Spec.Instance {
		return r, false
	}
	if w.FromEvent == "" {
		return r, w.wants(m.Status.State)
	}
	for _, e := range m.Status.Events { // newest first
		if e.ID <= w.FromEvent {
			break
		}
		if w.wants(e.Status) {
			r.State, r.EventID = e.Status, e.ID
			return r, true
		}
	}
	return r, r.EventID > w.FromEvent && w.wants(m.Status.State)
}

func (w *WaitRequest) wants(state root.State) bool {
	return slices.Contains(w.States, string(state)) || slices.Contains(w.States, "settled") && state.Settled()
}

func newestEvent(m *root.Machine) string {
	if len(m.Status.Events) == 0 {
		return ""
	}
	return m.Status.Events[0].ID
}
