package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/rollout"
	"github.com/roost-run/roost/internal/state"
)

// Releases are the verbs on releases. A release is recorded and its rollout
// carried out by Run, whoever asked for it and whether or not they still
// watch.
type Releases struct {
	Deps
	machines *Machines
	wake     chan struct{} // capacity 1: a rollout is to be carried out

	// protecting keeps a release from being recorded between the reading of all
	// releases and the protection of just their images.
	protecting sync.Mutex

	mu      sync.Mutex
	running map[root.AppName]context.CancelCauseFunc // of rollouts this process carries out; guarded by mu
	telling map[state.Webhook]bool                   // webhooks that are being told; guarded by mu
}

// NewRelease asks for a release.
type NewRelease struct {
	Image       string // a reference; "" is the current release's
	Definition  []byte
	Groups      []root.Group // Config.Image is filled in
	Routes      []root.Route
	Deploy      root.Deploy
	Reason      string // "" is ReasonDeploy
	Description string
	// RunCommands runs the release's commands although nothing has changed
	// since they ran last.
	RunCommands bool
}

// The reasons of releases.
const (
	ReasonDeploy   = "deploy"
	ReasonRollback = "rollback"
	ReasonSecrets  = "secrets"
)

const (
	// DefaultKeep is how many releases of an app are kept, with their images.
	DefaultKeep        = 20
	defaultWaitTimeout = 5 * time.Minute
	maxWaitTimeout     = time.Hour
	maxDescription     = 1000
)

// Create records a release and begins its rollout; it returns at once. Kind
// Conflict, code "release_in_progress", while another one is rolled out.
func (s *Releases) Create(ctx context.Context, a auth.Actor, app root.AppName, n NewRelease) (*root.Release, error) {
	r, err := s.prepare(ctx, a, app, n)
	if err != nil {
		return nil, err
	}
	if !n.RunCommands {
		if r.Deploy.Ran, err = s.ran(ctx, r); err != nil {
			return nil, err
		}
	}
	return s.begin(ctx, r)
}

// ran is the version that ran r's commands, with r's image, config and
// secrets, and serves now; 0 if there is none.
func (s *Releases) ran(ctx context.Context, r *root.Release) (int, error) {
	app, err := s.Store.App(ctx, r.App)
	if err != nil || app.Release == 0 || len(r.Deploy.ReleaseCommand)+len(r.Deploy.SeedCommand) == 0 {
		return 0, err
	}
	now, err := s.Store.Release(ctx, r.App, app.Release)
	if err != nil {
		return 0, err
	}
	same := now.Progress.Status == root.ReleaseComplete && now.Image.Digest == r.Image.Digest && now.Secrets == r.Secrets &&
		slices.Equal(now.Deploy.ReleaseCommand, r.Deploy.ReleaseCommand) && slices.Equal(now.Deploy.SeedCommand, r.Deploy.SeedCommand) &&
		bytes.Equal(now.Definition, r.Definition)
	switch {
	case !same:
		return 0, nil
	case now.Deploy.Ran != 0:
		return now.Deploy.Ran, nil
	}
	return now.Version, nil
}

// prepare makes the release that n asks for, with everything checked that can
// be before it is recorded.
func (s *Releases) prepare(ctx context.Context, a auth.Actor, app root.AppName, n NewRelease) (*root.Release, error) {
	found, err := s.app(a, auth.ReleaseCreate, app)
	if err != nil {
		return nil, err
	}
	if found.Deleting {
		return nil, root.Errorf(root.Precondition, "app %s is being deleted", app)
	}
	r := &root.Release{
		ID: root.ReleaseID(ulid.Make().String()), App: app, Definition: n.Definition, Groups: slices.Clone(n.Groups), Routes: n.Routes, Deploy: n.Deploy,
		Secrets: found.Secrets, Reason: n.Reason, Description: n.Description, Author: a.Name, CreatedAt: s.Now().UTC(),
		Progress: root.Progress{Status: root.ReleasePending},
	}
	if r.Reason == "" {
		r.Reason = ReasonDeploy
	}
	if len(r.Description) > maxDescription {
		return nil, root.Errorf(root.Invalid, "description: longer than %d characters", maxDescription)
	}
	if err := checkDeploy(&r.Deploy); err != nil {
		return nil, err
	}
	if len(r.Groups) == 0 {
		return nil, root.Errorf(root.Invalid, "the app's config has no process group")
	}
	if err := s.checkOnly(r); err != nil {
		return nil, err
	}
	if n.Image == "" {
		now, err := s.current(ctx, found)
		if root.CodeOf(err) == root.CodeNoRelease {
			return nil, root.Errorf(root.Invalid, "image is missing: app %s has no release yet whose image could be used", app)
		}
		if err != nil {
			return nil, err
		}
		r.Image = now.Image
	} else {
		if err := s.mayUse(ctx, a, found.Org, n.Image); err != nil {
			return nil, err
		}
		if r.Image, err = s.Images.Resolve(ctx, n.Image); err != nil {
			return nil, fmt.Errorf("resolve image: %w", err)
		}
	}
	for i := range r.Groups {
		c := r.Groups[i].Config.Clone()
		c.Image = r.Image.Ref()
		if err := c.Validate(); err != nil {
			return nil, &root.Error{Kind: root.KindOf(err), Code: root.CodeOf(err), Message: "process group " + r.Groups[i].Name + ": " + root.MessageOf(err), Err: err}
		}
		if err := s.mayUseAll(ctx, a, found.Org, c); err != nil {
			return nil, err
		}
		r.Groups[i].Config = c
		if r.Groups[i].Checks, err = s.pinChecks(ctx, a, found.Org, r.Groups[i].Checks); err != nil {
			return nil, &root.Error{Kind: root.KindOf(err), Code: root.CodeOf(err), Message: "machine_checks of process group " + r.Groups[i].Name + ": " + root.MessageOf(err), Err: err}
		}
	}
	return r, nil
}

// checkOnly refuses what a deploy is to be about and that is not there: nothing
// would be deployed, and that be called a success.
func (s *Releases) checkOnly(r *root.Release) error {
	var groups []string
	for i := range r.Groups {
		groups = append(groups, r.Groups[i].Name)
	}
	machines := s.managed(r.App)
	for _, name := range r.Deploy.OnlyGroups {
		if !slices.Contains(groups, name) && !slices.ContainsFunc(machines, func(m *root.Machine) bool { return m.Group() == name }) {
			return root.Errorf(root.Invalid, "process_groups: app %s has no process group %q, it has %s", r.App, name, strings.Join(groups, ", "))
		}
	}
	for _, id := range r.Deploy.OnlyMachines {
		if !slices.ContainsFunc(machines, func(m *root.Machine) bool { return m.ID == id }) {
			return root.Errorf(root.Invalid, "only_machines: no machine %s belongs to a release of %s", id, r.App)
		}
	}
	regions := s.Regions()
	for _, region := range r.Deploy.Regions {
		if !slices.Contains(regions, region) {
			return root.Errorf(root.Invalid, "regions: no host is in %q, there are %s", region, regionNames(regions))
		}
	}
	return nil
}

func regionNames(regions []root.Region) string {
	var out []string
	for _, r := range regions {
		out = append(out, string(r))
	}
	return strings.Join(out, ", ")
}

func checkDeploy(d *root.Deploy) error {
	switch d.Strategy {
	case "":
		d.Strategy = root.StrategyRolling
	case root.StrategyRolling, root.StrategyImmediate, root.StrategyCanary, root.StrategyBlueGreen:
	default:
		return root.Errorf(root.Invalid, "deploy.strategy: %q is not one of rolling, canary, bluegreen, immediate", d.Strategy)
	}
	if d.MaxUnavailable < 0 {
		return root.Errorf(root.Invalid, "deploy.max_unavailable: %v must not be negative", d.MaxUnavailable)
	}
	if d.WaitTimeout < 0 || d.WaitTimeout > maxWaitTimeout {
		return root.Errorf(root.Invalid, "deploy.wait_timeout: %s is out of range (1s to %s)", d.WaitTimeout, maxWaitTimeout)
	}
	if d.WaitTimeout == 0 {
		d.WaitTimeout = defaultWaitTimeout
	}
	if d.ReleaseTimeout < 0 {
		return root.Errorf(root.Invalid, "deploy.release_command_timeout: %s must not be negative", d.ReleaseTimeout)
	}
	if d.MaxConcurrent < 0 {
		return root.Errorf(root.Invalid, "deploy.max_concurrent: %d must not be negative", d.MaxConcurrent)
	}
	return checkWebhook(d.Webhook)
}

// begin records a prepared release.
func (s *Releases) begin(ctx context.Context, r *root.Release, notices ...root.ReleaseEvent) (*root.Release, error) {
	if _, err := rollout.Make(r, s.Catalog.Snapshot().Machines(r.App), root.Rollout{}); err != nil {
		return nil, err
	}
	newer, err := s.newerSecrets(ctx, r)
	if err != nil {
		return nil, err
	}
	notices = append(notices, newer...)
	made, rev, err := s.record(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, e := range notices {
		e.ID, e.At, e.Step = ulid.Make().String(), s.Now().UTC(), root.StepNotice
		if err := s.Store.AddReleaseEvent(ctx, r.App, made.Version, e); err != nil {
			s.Log.Warn("notice of a release is lost", "app", r.App, "release", made.Version, "err", err)
		}
	}
	select {
	case s.wake <- struct{}{}:
	default: // it is told already
	}
	if err := s.read(ctx, rev); err != nil {
		return nil, err
	}
	s.Log.Info("release created", "app", r.App, "release", made.Version, "reason", r.Reason)
	return &made, nil
}

// newerSecrets warns of a release that brings the secrets back which a rollback
// had left behind.
func (s *Releases) newerSecrets(ctx context.Context, r *root.Release) ([]root.ReleaseEvent, error) {
	app, err := s.Store.App(ctx, r.App)
	if err != nil || app.Release == 0 || r.Reason == ReasonRollback {
		return nil, err
	}
	now, err := s.Store.Release(ctx, r.App, app.Release)
	if err != nil || now.Reason != ReasonRollback || now.Secrets >= r.Secrets {
		return nil, err
	}
	return []root.ReleaseEvent{{Warning: true, Message: fmt.Sprintf("v%d, a rollback, runs with older secrets: this release brings those of now", now.Version)}}, nil
}

// record stores a release whose image is here and stays here.
func (s *Releases) record(ctx context.Context, r *root.Release) (root.Release, int64, error) {
	s.protecting.Lock()
	defer s.protecting.Unlock()
	err := s.protect(ctx, r.App, imagesOf(r)...)
	if root.IsKind(err, root.NotFound) {
		err = &root.Error{Kind: root.Precondition, Code: "image_gone", Err: err,
			Message: fmt.Sprintf("the image of the release, %s, is no longer on this host: build or pull it again and deploy that (roost deploy, or roost deploy --image REF)", r.Image.Ref())}
	}
	if err != nil {
		return root.Release{}, 0, err
	}
	return s.Store.CreateRelease(ctx, *r)
}

// Regions are those that have hosts, this host's own first.
func (s *Releases) Regions() []root.Region {
	var list []root.Region
	now := s.Catalog.Snapshot()
	for h := range now.Hosts() {
		if !slices.Contains(list, h.Region) {
			list = append(list, h.Region)
		}
	}
	slices.Sort(list)
	if here := now.Host(s.Host); here != nil {
		i := slices.Index(list, here.Region)
		list = slices.Insert(slices.Delete(list, i, i+1), 0, here.Region)
	}
	return list
}

// List returns an app's releases, the newest first.
func (s *Releases) List(ctx context.Context, a auth.Actor, app root.AppName) ([]root.Release, error) {
	if _, err := s.app(a, auth.ReleaseRead, app); err != nil {
		return nil, err
	}
	return s.Store.Releases(ctx, app)
}

// Get returns one release; version 0 is the one that serves.
func (s *Releases) Get(ctx context.Context, a auth.Actor, app root.AppName, version int) (*root.Release, error) {
	found, err := s.app(a, auth.ReleaseRead, app)
	if err != nil {
		return nil, err
	}
	if version == 0 {
		return s.current(ctx, found)
	}
	r, err := s.Store.Release(ctx, app, version)
	return &r, err
}

// Current returns the release that serves; kind Precondition, code
// "no_release", without one.
func (s *Releases) Current(ctx context.Context, a auth.Actor, app root.AppName) (*root.Release, error) {
	return s.Get(ctx, a, app, 0)
}

func (s *Releases) current(ctx context.Context, app *root.App) (*root.Release, error) {
	// The store's word: the catalog may lag behind a rollout that just ended.
	now, err := s.Store.App(ctx, app.Name)
	if err != nil {
		return nil, err
	}
	if now.Release == 0 {
		return nil, &root.Error{Kind: root.Precondition, Code: root.CodeNoRelease, Message: fmt.Sprintf("app %s has no release yet: deploy it first", app.Name)}
	}
	r, err := s.Store.Release(ctx, app.Name, now.Release)
	return &r, err
}

// Events calls f with each event of a release behind the id after, in order;
// with follow until the last one.
func (s *Releases) Events(ctx context.Context, a auth.Actor, app root.AppName, version int, after string, follow bool, f func(root.ReleaseEvent) error) error {
	r, err := s.Get(ctx, a, app, version)
	if err != nil {
		return err
	}
	follow = follow && !r.Progress.Status.Final() // the last event came with the status
	err = s.Store.ReleaseEvents(ctx, app, version, after, follow, func(e root.ReleaseEvent) error {
		if err := f(e); err != nil {
			return err
		}
		if follow && e.End {
			return errLastEvent
		}
		return nil
	})
	if errors.Is(err, errLastEvent) {
		return nil
	}
	return err
}

var errLastEvent = errors.New("the last event")

// Redeploy restarts the machines of the current release one after another, by
// its strategy, with the app's current secrets: a release of its own. Kind
// Precondition, code "no_release", without a release.
func (s *Releases) Redeploy(ctx context.Context, a auth.Actor, app root.AppName, reason, description string) (*root.Release, error) {
	found, err := s.app(a, auth.ReleaseCreate, app)
	if err != nil {
		return nil, err
	}
	now, err := s.current(ctx, found)
	if err != nil {
		return nil, err
	}
	fresh, err := s.Store.App(ctx, app)
	if err != nil {
		return nil, err
	}
	r := *now
	r.ID, r.Version, r.Reason, r.Description, r.Author, r.CreatedAt = root.ReleaseID(ulid.Make().String()), 0, reason, description, a.Name, s.Now().UTC()
	r.Progress, r.Secrets, r.Repeats = root.Progress{Status: root.ReleasePending}, fresh.Secrets, 0
	d := &r.Deploy
	d.ReleaseCommand, d.SeedCommand, d.Ran, d.Restart, d.Detach, d.UpdateOnly, d.Unchecked = nil, nil, 0, true, false, false, false
	d.Regions, d.OnlyGroups, d.OnlyMachines = nil, nil, nil
	if r.Reason == "" {
		r.Reason = ReasonSecrets
	}
	return s.begin(ctx, &r)
}

// Cancel ends a rollout; what it changed goes back. It returns when that is
// asked for. From the moment that a release serves it cannot be cancelled any
// more: kind Precondition, code "release_serves". Kind NotFound when that
// version is not being rolled out.
func (s *Releases) Cancel(ctx context.Context, a auth.Actor, app root.AppName, version int) error {
	if _, err := s.app(a, auth.ReleaseCreate, app); err != nil {
		return err
	}
	if err := s.Store.CancelRollout(ctx, app, version, a.Name); err != nil {
		if root.IsKind(err, root.NotFound) {
			return s.notCancelled(ctx, app, version, err)
		}
		return err
	}
	s.mu.Lock()
	cancel := s.running[app]
	s.mu.Unlock()
	if cancel != nil {
		cancel(&rollout.CancelledError{By: a.Name})
	}
	return nil
}

// notCancelled says how a release ended that somebody wants to cancel.
func (s *Releases) notCancelled(ctx context.Context, app root.AppName, version int, absent error) error {
	r, err := s.Store.Release(ctx, app, version)
	if root.IsKind(err, root.NotFound) {
		return absent
	}
	if err != nil {
		return err
	}
	now, err := s.Store.App(ctx, app)
	if err != nil {
		return err
	}
	if now.Release == version {
		return state.ServesAlready(app, version)
	}
	return root.Errorf(root.Precondition, "release v%d of %s has ended already: it is %s", version, app, r.Progress.Status)
}

// trim removes releases beyond those that are kept, and the protection of
// their images. Failures do not push out what could be rolled back to: as many
// complete releases stay as releases of any end.
func (s *Releases) trim(ctx context.Context, app root.AppName) error {
	keep := s.KeepReleases
	if keep <= 0 {
		keep = DefaultKeep
	}
	now, err := s.Store.App(ctx, app)
	if err != nil {
		return err
	}
	list, err := s.Store.Releases(ctx, app)
	if err != nil {
		return err
	}
	spare := []int{now.Release}
	for i := range list { // newest first
		if list[i].Progress.Status == root.ReleaseComplete && len(spare) <= keep {
			spare = append(spare, list[i].Version)
		}
	}
	if _, err := s.Store.TrimReleases(ctx, app, keep, spare...); err != nil {
		return err
	}
	s.protecting.Lock()
	defer s.protecting.Unlock()
	return s.protect(ctx, app)
}
