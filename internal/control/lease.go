package control

import (
	"context"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/state"
)

// Bounds of a lease.
const (
	DefaultLease = 13 * time.Second // what deploy tools ask for
	MaxLease     = 24 * time.Hour   // an abandoned one blocks the machine until then
)

// Lease returns the lease somebody holds on the machine; NotFound if nobody does.
func (s *Machines) Lease(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Lease, error) {
	m, err := s.machine(a, auth.MachineLease, app, id)
	if err != nil {
		return nil, err
	}
	l := m.ActiveLease(s.Now())
	if l == nil {
		return nil, root.Errorf(root.NotFound, "lease not found")
	}
	held := *l
	return &held, nil
}

// Acquire takes the lease, or, with the nonce of the current one, extends it:
// same nonce, new end. One that somebody else holds gives Conflict, code
// "lease_held". A ttl of 0 is DefaultLease.
func (s *Machines) Acquire(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce, description string, ttl time.Duration) (*root.Lease, error) {
	if ttl < 0 {
		return nil, root.Errorf(root.Invalid, "ttl: %s must not be negative", ttl)
	}
	if ttl == 0 {
		ttl = DefaultLease
	}
	m, err := s.machine(a, auth.MachineLease, app, id)
	if err != nil {
		return nil, err
	}
	now := s.Now()
	l := newLease(a, ttl, description, m.Spec.Instance, now)
	if held := m.ActiveLease(now); held != nil {
		if held.Nonce != nonce {
			return nil, state.LeaseHeld(id, *held)
		}
		l.Nonce, l.Owner = held.Nonce, held.Owner
		if description == "" {
			l.Description = held.Description
		}
	}
	rev, err := s.Store.SetLease(ctx, id, nonce, *l, now)
	if err != nil {
		return nil, err
	}
	if err := s.Agent.Lease(ctx, id, l.ExpiresAt); err != nil && !root.IsKind(err, root.NotFound) {
		return nil, err
	}
	return l, s.read(ctx, rev)
}

// Release gives the lease back.
func (s *Machines) Release(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	if _, err := s.machine(a, auth.MachineLease, app, id); err != nil {
		return err
	}
	rev, err := s.Store.ClearLease(ctx, id, nonce, s.Now())
	if err != nil {
		return err
	}
	if err := s.Agent.Lease(ctx, id, time.Time{}); err != nil && !root.IsKind(err, root.NotFound) {
		return err
	}
	return s.read(ctx, rev)
}
