package control

import (
	"bytes"
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
	DryRun         bool          // only say what it would be
}

// RolledBack is a rollback that has begun, or (DryRun) would be.
type RolledBack struct {
	Release  *root.Release // version 0 with DryRun
	To       int           // the former release
	Why      string        // that one, where nobody named it
	Warnings []string      // of what does not go back
}

// Rollback begins a release that is a former one again: its image, config and
// secrets. Version 0 is the newest complete one that is older than what serves,
// so that each goes further back. No command of it is run again.
func (s *Releases) Rollback(ctx context.Context, a auth.Actor, app root.AppName, version int, o Rollback) (*RolledBack, error) {
	found, err := s.app(a, auth.ReleaseCreate, app)
	if err != nil {
		return nil, err
	}
	list, err := s.Store.Releases(ctx, app)
	if err != nil {
		return nil, err
	}
	now, err := s.Store.App(ctx, app)
	if err != nil {
		return nil, err
	}
	to, why, err := rollbackTarget(app, list, now.Release, version)
	if err != nil {
		return nil, err
	}
	if to.Image.Repository != "" { // else root gave the app something by its digest
		if err := s.mayUse(ctx, a, found.Org, to.Image.Ref()); err != nil {
			return nil, err
		}
	}
	r := *to
	r.ID, r.Version, r.Reason, r.Author, r.CreatedAt = root.ReleaseID(ulid.Make().String()), 0, ReasonRollback, a.Name, s.Now().UTC()
	r.Progress = root.Progress{Status: root.ReleasePending}
	r.Repeats = contentOf(list, to)
	r.Description = o.Description
	if r.Description == "" {
		r.Description = fmt.Sprintf("back to v%d", to.Version)
		if r.Repeats != to.Version {
			r.Description += fmt.Sprintf(", which is v%d again", r.Repeats)
		}
	}
	d := &r.Deploy
	d.ReleaseCommand, d.SeedCommand, d.Ran, d.Detach = nil, nil, 0, o.Detach
	d.Unchecked = true // they passed when it was new
	d.Restart, d.UpdateOnly, d.Regions, d.OnlyGroups, d.OnlyMachines = false, false, nil, nil, nil
	if o.Strategy != "" {
		d.Strategy = o.Strategy
	}
	if d.Strategy == root.StrategyCanary { // it has proved itself
		d.Strategy = root.StrategyRolling
	}
	if err := checkDeploy(d); err != nil {
		return nil, err
	}
	if r.Secrets, err = s.secretsOf(ctx, now, to, o.CurrentSecrets); err != nil {
		return nil, err
	}
	out := &RolledBack{Release: &r, To: to.Version, Why: why, Warnings: between(list, r.Repeats, now.Release)}
	switch {
	case r.Secrets != to.Secrets && !o.CurrentSecrets:
		out.Warnings = append(out.Warnings, fmt.Sprintf("the secrets that v%d ran with are not kept any more: it gets the current ones", to.Version))
	case r.Secrets != now.Secrets:
		out.Warnings = append(out.Warnings, fmt.Sprintf("it runs with the secrets that v%d had; what was set since waits for the next deploy, or \"roost secrets deploy\"", to.Version))
	}
	if o.DryRun {
		return out, nil
	}
	var notices []root.ReleaseEvent
	if why != "" {
		notices = append(notices, root.ReleaseEvent{Message: why})
	}
	for _, w := range out.Warnings {
		notices = append(notices, root.ReleaseEvent{Warning: true, Message: w})
	}
	out.Release, err = s.begin(ctx, &r, notices...)
	return out, err
}

// secretsOf is the version of the secrets that a rollback to r gets: r's own,
// while they are kept.
func (s *Releases) secretsOf(ctx context.Context, app root.App, r *root.Release, newest bool) (int, error) {
	switch {
	case newest:
		return app.Secrets, nil
	case r.Secrets == 0: // the app had none
		return 0, nil
	}
	_, err := s.Store.Secrets(ctx, app.Name, r.Secrets)
	if root.IsKind(err, root.NotFound) {
		return app.Secrets, nil
	}
	return r.Secrets, err
}

// rollbackTarget finds the release to go back to, and says why that one where
// the caller names none. list has the newest first; now is what serves.
func rollbackTarget(app root.AppName, list []root.Release, now, version int) (to *root.Release, why string, err error) {
	if version != 0 {
		to, err := namedTarget(app, list, version)
		return to, "", err
	}
	i := slices.IndexFunc(list, func(r root.Release) bool { return r.Version == now })
	if i < 0 {
		return nil, "", &root.Error{Kind: root.NotFound, Code: root.CodeNoRelease, Message: fmt.Sprintf("app %s has no release that serves, and so none to go back from: name one (\"roost releases\" lists them)", app)}
	}
	current := &list[i]
	content := contentOf(list, current)
	serves := fmt.Sprintf("v%d, which serves", now)
	if content != now {
		serves = fmt.Sprintf("v%d, which serves again as v%d", content, now)
	}
	var same []string
	for i := range list {
		r := &list[i]
		switch {
		case r.Version >= content || r.Progress.Status != root.ReleaseComplete:
		case sameContent(r, current) && r.Secrets == current.Secrets:
			same = append(same, fmt.Sprintf("v%d", r.Version))
		default:
			why := fmt.Sprintf("v%d is the newest complete release before %s", r.Version, serves)
			if len(same) > 0 {
				why += fmt.Sprintf(" (%s would change nothing)", strings.Join(same, ", "))
			}
			return r, why, nil
		}
	}
	return nil, "", root.Errorf(root.NotFound, "app %s has no other complete release before %s, to go back to: name the one that you want (\"roost releases\" lists those that are kept)", app, serves)
}

func namedTarget(app root.AppName, list []root.Release, version int) (*root.Release, error) {
	for i := range list {
		r := &list[i]
		switch {
		case r.Version != version:
		case !r.Progress.Status.Final():
			return nil, root.Errorf(root.Conflict, "release v%d of %s is still being rolled out", r.Version, app)
		case r.Progress.Status != root.ReleaseComplete:
			return nil, root.Errorf(root.Precondition, "release v%d of %s never served (%s): choose one that is complete", r.Version, app, r.Progress.Status)
		default:
			return r, nil
		}
	}
	return nil, root.Errorf(root.NotFound, "app %s has no release v%d: \"roost releases\" lists those that are kept", app, version)
}

// contentOf is the version that r's image and config were made for: r's own,
// but for a rollback.
func contentOf(list []root.Release, r *root.Release) int {
	switch {
	case r.Repeats != 0:
		return r.Repeats
	case r.Reason == ReasonRollback: // recorded before releases said what they repeat
		for i := range list {
			if o := &list[i]; o.Version < r.Version && o.Reason != ReasonRollback && sameContent(o, r) {
				return o.Version
			}
		}
	}
	return r.Version
}

// sameContent reports whether two releases run the same, but for secrets.
func sameContent(a, b *root.Release) bool {
	return a.Image.Digest == b.Image.Digest && bytes.Equal(a.Definition, b.Definition)
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
