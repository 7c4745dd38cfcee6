package control

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Rollback is what may be said about a rollback.
type Rollback struct {
	Description    string
	Detach         bool
	Strategy       root.Strategy // "" is the release's
	CurrentSecrets bool          // in place of those that the release ran with
}

// Rollback begins a release that is a former one again: its image, config and
// secrets; version 0 is the last complete one before the current. No command
// of it is run again. The warnings say what does not go back with it.
func (s *Releases) Rollback(ctx context.Context, a auth.Actor, app root.AppName, version int, o Rollback) (*root.Release, []string, error) {
	found, err := s.app(a, auth.ReleaseCreate, app)
	if err != nil {
		return nil, nil, err
	}
	list, err := s.Store.Releases(ctx, app)
	if err != nil {
		return nil, nil, err
	}
	now, err := s.Store.App(ctx, app)
	if err != nil {
		return nil, nil, err
	}
	to, err := rollbackTarget(app, list, now.Release, version)
	if err != nil {
		return nil, nil, err
	}
	if err := s.mayUse(a, found.Org, to.Image.Ref()); err != nil {
		return nil, nil, err
	}
	r := *to
	r.ID, r.Version, r.Reason, r.Author, r.CreatedAt = root.ReleaseID(ulid.Make().String()), 0, ReasonRollback, a.Name, s.Now().UTC()
	r.Progress = root.Progress{Status: root.ReleasePending}
	r.Description = o.Description
	if r.Description == "" {
		r.Description = fmt.Sprintf("back to v%d", to.Version)
	}
	d := &r.Deploy
	d.ReleaseCommand, d.SeedCommand, d.Ran, d.Detach = nil, nil, 0, o.Detach
	d.Restart, d.UpdateOnly, d.Regions, d.OnlyGroups, d.OnlyMachines = false, false, nil, nil, nil
	if o.Strategy != "" {
	d.Unchecked = true // they passed when it was new
		d.Strategy = o.Strategy
	}
	if d.Strategy == root.StrategyCanary { // it has proved itself
		d.Strategy = root.StrategyRolling
	}
	if err := checkDeploy(d); err != nil {
		return nil, nil, err
	}
	if r.Secrets, err = s.secretsOf(ctx, now, to, o.CurrentSecrets); err != nil {
		return nil, nil, err
	}
	warnings := between(list, to.Version, now.Release)
	if r.Secrets != to.Secrets && !o.CurrentSecrets && to.Secrets != 0 {
		warnings = append(warnings, fmt.Sprintf("the secrets that v%d ran with are not kept any more: it gets the current ones", to.Version))
	}
	made, err := s.begin(ctx, &r, warnings...)
	return made, warnings, err
}

// secretsOf is the version of the secrets that a rollback to r gets: r's own,
// while they are kept.
func (s *Releases) secretsOf(ctx context.Context, app root.App, r *root.Release, newest bool) (int, error) {
	if newest || r.Secrets == 0 {
		return app.Secrets, nil
	}
	_, err := s.Store.Secrets(ctx, app.Name, r.Secrets)
	if root.IsKind(err, root.NotFound) {
		return app.Secrets, nil
	}
	return r.Secrets, err
}

func rollbackTarget(app root.AppName, list []root.Release, now, version int) (*root.Release, error) {
	for i := range list { // the newest first
		r := &list[i]
		switch {
		case version == 0 && r.Version < now && r.Progress.Status == root.ReleaseComplete, version != 0 && r.Version == version:
			if !r.Progress.Status.Final() {
				return nil, root.Errorf(root.Conflict, "release v%d of %s is still being rolled out", r.Version, app)
			}
			if r.Progress.Status != root.ReleaseComplete {
				return nil, root.Errorf(root.Precondition, "release v%d of %s never served (%s): choose one that is complete", r.Version, app, r.Progress.Status)
			}
			return r, nil
		}
	}
	if version == 0 {
		return nil, root.Errorf(root.NotFound, "app %s has no complete release before v%d to go back to", app, now)
	}
	return nil, root.Errorf(root.NotFound, "app %s has no release v%d: \"roost releases\" lists those that are kept", app, version)
}

// between warns of what ran after release to and does not go back with it.
func between(list []root.Release, to, now int) []string {
	var commands []string
	for i := range slices.Backward(list) {
		r := &list[i]
		if r.Version > to && r.Version <= now && len(r.Deploy.ReleaseCommand) > 0 && r.Deploy.Ran == 0 {
			commands = append(commands, fmt.Sprintf("v%d ran %q", r.Version, strings.Join(r.Deploy.ReleaseCommand, " ")))
		}
	}
	if len(commands) == 0 {
		return nil
	}
	return []string{"the rollback does not undo release commands that ran since: " + strings.Join(commands, ", ")}
}
