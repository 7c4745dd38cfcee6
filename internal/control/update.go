package control

import (
	"context"
	"fmt"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Update brings a machine to a new version and returns when that version is
// in place: with services and running, the old one serves until the new one is
// ready, and goes on serving if it never is. A stopped machine starts, unless
// SkipLaunch.
func (s *Machines) Update(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, u UpdateMachine) (*root.Machine, error) {
	m, err := s.change(a, auth.MachineUpdate, app, id, u.Nonce)
	if err != nil {
		return nil, err
	}
	if u.CurrentVersion != "" && u.CurrentVersion != string(m.Spec.Instance) {
		return nil, &root.Error{
			Kind: root.Conflict, Code: "version_changed",
			Message: fmt.Sprintf("machine %s is at version %s, current_version says %s: read it again and repeat the change", id, m.Spec.Instance, u.CurrentVersion),
		}
	}
	if u.Name != "" && u.Name != m.Name {
		return nil, root.Errorf(root.Invalid, "name: a machine's name cannot change (it is %q)", m.Name)
	}
	if u.Region != "" && u.Region != string(m.Region) {
		return nil, root.Errorf(root.Invalid, "region: a machine's region cannot change (it is %q)", m.Region)
	}
	if _, err := root.CheckVerb(root.VerbUpdate, m.Status.State); err != nil {
		return nil, err
	}
	if err := u.Config.Validate(); err != nil {
		return nil, err
	}
	if err := s.mayUseAll(ctx, a, m.Org, u.Config); err != nil {
		return nil, err
	}
	img, err := s.image(ctx, u.Config.Image, u.Release)
	if err != nil {
		return nil, err
	}
	snapshot := s.Catalog.Snapshot()
	found, host := snapshot.App(app), snapshot.Host(m.Host)
	if found == nil || host == nil {
		return nil, root.Errorf(root.Unavailable, "app or host of machine %s is not known yet; try again", id)
	}
	address, err := s.addresses.next(s.Deps, snapshot, host, found.NetworkID)
	if err != nil {
		return nil, err
	}
	was := m.Spec
	next := m.Clone()
	next.Spec = root.Spec{
		Instance: root.InstanceID(ulid.Make().String()), Generation: was.Generation + 1,
		Config: u.Config, Source: u.Source, Image: img,
		Launch: !u.SkipLaunch, Cordoned: was.Cordoned || u.SkipServiceRegistration,
		Address: address, UpdatedAt: s.Now().UTC(),
	}
	pin(&next.Spec, found, u.Release, u.SkipSecrets)
	var prove func(context.Context) error
	if u.Prove != nil {
		prove = func(ctx context.Context) error { return u.Prove(ctx, next) }
	}
	rev, err := s.Agent.Replace(ctx, next, u.Timeout, prove, func(ctx context.Context) (int64, error) {
		return s.Store.UpdateSpec(ctx, id, was.Instance, next.Spec)
	})
	if err != nil {
		return nil, fmt.Errorf("update machine %s: %w", id, err)
	}
	if u.LeaseTTL > 0 {
		if _, err := s.Acquire(ctx, a, app, id, u.Nonce, "", u.LeaseTTL); err != nil {
			return nil, err
		}
	}
	if err := s.read(ctx, rev); err != nil {
		return nil, err
	}
	return s.current(ctx, app, id)
}
