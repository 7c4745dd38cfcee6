package control

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
)

// reasonUser is the reason of what somebody asked for by API.
const reasonUser = "requested"

// Start starts or resumes a machine and returns the state it was in.
func (s *Machines) Start(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) (previous root.State, err error) {
	m, err := s.change(a, auth.MachineStart, app, id, nonce)
	if err != nil {
		return "", err
	}
	previous = s.stateNow(ctx, m)
	answer, err := root.CheckVerb(root.VerbStart, previous)
	if err != nil || answer == root.Noop {
		return previous, err
	}
	rev, err := s.Agent.Start(ctx, id, orders.Start{Source: orders.SourceUser, Reason: reasonUser, Nonce: true})
	if err != nil {
		return previous, err
	}
	return previous, s.read(ctx, rev)
}

// stateNow is the machine's state by the newest news: wakes and autostops are
// answered before they are recorded.
func (s *Machines) stateNow(ctx context.Context, m *root.Machine) root.State {
	live, err := s.Agent.Instance(ctx, m.Spec.Instance)
	if err != nil || live.Instance != m.Spec.Instance || !m.Status.Stamp.Before(live.Stamp) {
		return m.Status.State // as good as any: the order itself will tell
	}
	return live.Phase.State()
}

// Stop asks a machine to stop; it returns when the intent is recorded.
func (s *Machines) Stop(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r StopRequest) error {
	if err := checkStop(r.Signal, r.Timeout); err != nil {
		return err
	}
	m, err := s.change(a, auth.MachineStop, app, id, nonce)
	if err != nil {
		return err
	}
	now := s.stateNow(ctx, m)
	answer, err := root.CheckVerb(root.VerbStop, now)
	if err != nil {
		return err
	}
	if answer == root.Noop && now == m.Status.State { // one that has just ended by itself may be about to be restarted
		return nil
	}
	if r.Reason == "" {
		r.Reason = reasonUser
	}
	rev, err := s.Agent.Stop(ctx, id, orders.Stop{Signal: r.Signal, Timeout: r.Timeout, Source: orders.SourceUser, Reason: r.Reason})
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}

func checkStop(signal string, timeout time.Duration) error {
	if signal != "" && !slices.Contains(root.StopSignals, signal) {
		return root.Errorf(root.Invalid, "signal: %q is not one of %s", signal, strings.Join(root.StopSignals, ", "))
	}
	if timeout < 0 || timeout > root.MaxStopTimeout {
		return root.Errorf(root.Invalid, "timeout: %s is out of range (0s to %s)", timeout, root.MaxStopTimeout)
	}
	return nil
}

// Restart stops and starts a machine; it returns when it runs again.
func (s *Machines) Restart(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r RestartRequest) error {
	if err := checkStop(r.Signal, r.Timeout); err != nil {
		return err
	}
	m, err := s.change(a, auth.MachineRestart, app, id, nonce)
	if err != nil {
		return err
	}
	answer, err := root.CheckVerb(root.VerbRestart, s.stateNow(ctx, m))
	if err != nil || answer == root.Noop {
		return err
	}
	o := orders.Stop{Signal: r.Signal, Timeout: r.Timeout, Source: orders.SourceUser}
	if r.Force {
		o.Signal = "SIGKILL"
	}
	rev, err := s.Agent.Restart(ctx, id, o)
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}

// Suspend freezes a machine.
func (s *Machines) Suspend(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	m, err := s.change(a, auth.MachineSuspend, app, id, nonce)
	if err != nil {
		return err
	}
	answer, err := root.CheckVerb(root.VerbSuspend, s.stateNow(ctx, m))
	if err != nil || answer == root.Noop {
		return err
	}
	rev, err := s.Agent.Suspend(ctx, id, orders.Suspend{Source: orders.SourceUser, Reason: reasonUser})
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}

// Signal sends a signal to a machine's main process.
func (s *Machines) Signal(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, signal int) error {
	if signal < 1 || signal > 31 {
		return root.Errorf(root.Invalid, "signal: %d is not a signal (1 to 31)", signal)
	}
	m, err := s.change(a, auth.MachineSignal, app, id, nonce)
	if err != nil {
		return err
	}
	if _, err := root.CheckVerb(root.VerbSignal, s.stateNow(ctx, m)); err != nil {
		return err
	}
	return s.Agent.Signal(ctx, id, signal)
}

// Cordon keeps new work away from a machine, or (on false) lets it come again.
func (s *Machines) Cordon(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, on bool) error {
	if _, err := s.change(a, auth.MachineCordon, app, id, nonce); err != nil {
		return err
	}
	rev, err := s.Store.EditSpec(ctx, id, func(spec *root.Spec) error {
		spec.Cordoned = on
		return nil
	})
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}

// Destroy removes a machine; one that runs only with force. It returns when
// nothing of it is left.
func (s *Machines) Destroy(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, force bool) error {
	m, err := s.change(a, auth.MachineDestroy, app, id, nonce)
	if err != nil {
		return err
	}
	if !force {
		if _, err := root.CheckVerb(root.VerbDestroy, m.Status.State); err != nil {
			return err
		}
	}
	return s.destroy(ctx, id, force)
}

// destroy commits the wish and has the agent fulfil it. A machine that is gone
// meanwhile is success.
func (s *Machines) destroy(ctx context.Context, id root.MachineID, force bool) error {
	at := s.Now().UTC()
	_, err := s.Store.EditSpec(ctx, id, func(spec *root.Spec) error {
		if spec.Destroy == nil || force && !spec.Destroy.Force {
			spec.Destroy = &root.Destroy{Force: force, At: at}
		}
		return nil
	})
	if err != nil {
		return err
	}
	rev, err := s.Agent.Destroy(ctx, id)
	if root.IsKind(err, root.NotFound) {
		return s.Catalog.Wait(ctx, func(sn *root.Snapshot) bool { return sn.Machine(id) == nil })
	}
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}

// Inspect says what runs and listens inside a machine.
func (s *Machines) Inspect(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Inspection, error) {
	m, err := s.machine(a, auth.MachineRead, app, id)
	if err != nil {
		return orders.Inspection{}, err
	}
	if !m.Status.State.Running() {
		return orders.Inspection{}, root.Errorf(root.Precondition, "machine is not running, its state is '%s'", m.Status.State)
	}
	return s.Agent.Inspect(ctx, id)
}

// Stats is what the kernel accounts to a machine.
func (s *Machines) Stats(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Stats, error) {
	if _, err := s.machine(a, auth.MachineRead, app, id); err != nil {
		return orders.Stats{}, err
	}
	return s.Agent.Stats(ctx, id)
}

// DefaultEvents is how many events are returned where the caller names no limit.
const DefaultEvents = 20

// Events returns a machine's history, newest first; limit 0 is DefaultEvents.
func (s *Machines) Events(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, limit int) ([]root.Event, error) {
	m, err := s.Get(ctx, a, app, id)
	if err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = DefaultEvents
	}
	return m.Status.Events[:min(limit, len(m.Status.Events))], nil
}

// Metadata returns a machine's metadata.
func (s *Machines) Metadata(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (map[string]string, error) {
	m, err := s.Get(ctx, a, app, id)
	if err != nil {
		return nil, err
	}
	if m.Spec.Config.Metadata == nil {
		return map[string]string{}, nil
	}
	return m.Spec.Config.Metadata, nil
}

// maxMetadata bounds a machine's metadata: it travels in every snapshot.
const maxMetadata = 64 << 10

// SetMetadata sets the keys given and removes those whose value is "" or nil;
// others stay. A version that is not "" must be the live one.
func (s *Machines) SetMetadata(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, version string, values map[string]*string) error {
	if _, err := s.machine(a, auth.MachineMetadata, app, id); err != nil {
		return err
	}
	rev, err := s.Store.EditSpec(ctx, id, func(spec *root.Spec) error {
		if version != "" && version != string(spec.Instance) {
			return root.Errorf(root.Precondition, "machine_version: the machine is at version %s, not at %s", spec.Instance, version)
		}
		next := map[string]string{}
		maps.Copy(next, spec.Config.Metadata)
		size := 0
		for k, v := range values {
			if k == "" {
				return root.Errorf(root.Invalid, "metadata: a key must not be empty")
			}
			if v == nil || *v == "" {
				delete(next, k)
			} else {
				next[k] = *v
			}
		}
		for k, v := range next {
			size += len(k) + len(v)
		}
		if size > maxMetadata {
			return root.Errorf(root.TooLarge, "metadata: keys and values together are larger than %s", root.Bytes(maxMetadata))
		}
		spec.Config.Metadata = next
		return nil
	})
	if err != nil {
		return err
	}
	return s.read(ctx, rev)
}
