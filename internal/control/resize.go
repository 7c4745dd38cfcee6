package control

import (
	"context"
	"fmt"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Resize asks for another size of a group's machines; what is zero stays.
type Resize struct {
	Group  string // "" is the only one that the app has
	Guest  *root.Guest
	Memory root.Bytes
}

// Resize gives a group's machines another size, one after the other; a machine
// that rests goes on resting. done is told of each. A deploy whose config has
// sizes overrules it.
func (s *Scale) Resize(ctx context.Context, a auth.Actor, app root.AppName, c Resize, done func(*root.Machine)) error {
	found, err := s.app(a, auth.MachineUpdate, app)
	if err != nil {
		return err
	}
	if c.Guest == nil && c.Memory == 0 {
		return root.Errorf(root.Invalid, "name a size, or an amount of memory")
	}
	release, err := s.begin(ctx, found)
	if err != nil {
		return err
	}
	defer s.end(app)
	machines := s.managed(app)
	var groups []string
	for _, m := range machines {
		if !slices.Contains(groups, groupOf(m)) {
			groups = append(groups, groupOf(m))
		}
	}
	slices.Sort(groups)
	switch {
	case len(machines) == 0:
		return root.Errorf(root.Precondition, "app %s has no machines: deploy it, or scale it up first", app)
	case c.Group == "" && len(groups) > 1:
		return root.Errorf(root.Invalid, "app %s has several process groups (%s): name one", app, strings.Join(groups, ", "))
	case c.Group != "" && !slices.Contains(groups, c.Group):
		return root.Errorf(root.Invalid, "app %s has no machines of process group %q: it has %s", app, c.Group, strings.Join(groups, ", "))
	}
	for _, m := range machines {
		if c.Group != "" && groupOf(m) != c.Group {
			continue
		}
		next := m.Clone()
		if c.Guest != nil {
			next.Spec.Config.Guest = *c.Guest
		}
		if c.Memory > 0 {
			next.Spec.Config.Guest.Memory = c.Memory
		}
		if next.Spec.Config.Guest == m.Spec.Config.Guest {
			continue
		}
		updated, err := s.machines.Update(ctx, a, app, m.ID, UpdateMachine{
			CurrentVersion: string(m.Spec.Instance), Config: next.Spec.Config, Source: next.Spec.Source,
			SkipLaunch: !m.Status.State.Running() && m.Status.State != root.StateStarting,
			Release:    &Pinned{Image: m.Spec.Image, Release: max(m.Spec.Release, release.Version), Secrets: m.Spec.Secrets},
		})
		if err != nil {
			return &root.Error{Kind: root.KindOf(err), Code: root.CodeOf(err), Message: fmt.Sprintf("machine %s: %s", m.ID, root.MessageOf(err)), Err: err}
		}
		if done != nil {
			done(updated)
		}
	}
	return nil
}

// Restart restarts the machines of an app's release that run, one after the
// other; those that rest are left alone. A machine with services gets its new
// version up beside the old one: no request is lost.
func (s *Scale) Restart(ctx context.Context, a auth.Actor, app root.AppName, force bool, done func(*root.Machine)) error {
	found, err := s.app(a, auth.MachineRestart, app)
	if err != nil {
		return err
	}
	running := 0
	machines := s.managed(app)
	if len(machines) == 0 { // an app that was made by API alone
		machines = s.Catalog.Snapshot().Machines(app)
	}
	for _, m := range machines {
		if !m.Status.State.Running() || m.Spec.Destroy != nil {
			continue
		}
		running++
		if err := s.restart(ctx, a, found, m, force); err != nil {
			return &root.Error{Kind: root.KindOf(err), Code: root.CodeOf(err), Message: fmt.Sprintf("machine %s: %s", m.ID, root.MessageOf(err)), Err: err}
		}
		if done != nil {
			done(m)
		}
	}
	if running == 0 {
		return root.Errorf(root.Precondition, "no machine of app %s runs: those that rest start fresh anyway", app)
	}
	return nil
}

func (s *Scale) restart(ctx context.Context, a auth.Actor, app *root.App, m *root.Machine, force bool) error {
	if len(m.Spec.Config.Services) == 0 || force {
		if err := s.machines.Restart(ctx, a, app.Name, m.ID, "", RestartRequest{Force: force}); err != nil {
			return err
		}
		_, err := s.machines.Wait(ctx, a, app.Name, m.ID, WaitRequest{States: []string{"started"}})
		return err
	}
	same := m.Clone()
	_, err := s.machines.Update(ctx, a, app.Name, m.ID, UpdateMachine{
		CurrentVersion: string(m.Spec.Instance), Config: same.Spec.Config, Source: same.Spec.Source,
		Release: &Pinned{Image: m.Spec.Image, Release: m.Spec.Release, Secrets: m.Spec.Secrets},
	})
	return err
}
