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
		if err := s.mayUse(a, found.Org, n.Image); err != nil {
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
		if err := s.mayUseAll(a, found.Org, c); err != nil {
			return nil, err
		}
		r.Groups[i].Config = c
	}
	return r, nil
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
func (s *Releases) begin(ctx context.Context, r *root.Release, notices ...string) (*root.Release, error) {
	if _, err := rollout.Make(r, s.Catalog.Snapshot().Machines(r.App), root.Rollout{}); err != nil {
		return nil, err
	}
	made, rev, err := s.record(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, text := range notices {
		e := root.ReleaseEvent{ID: ulid.Make().String(), At: s.Now().UTC(), Step: root.StepNotice, Warning: true, Message: text}
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

// record stores a release whose image is here and stays here.
func (s *Releases) record(ctx context.Context, r *root.Release) (root.Release, int64, error) {
	s.protecting.Lock()
	defer s.protecting.Unlock()
	err := s.protect(ctx, r.App, r.Image.Digest)
	if root.IsKind(err, root.NotFound) {
		err = &root.Error{Kind: root.Precondition, Code: "image_gone", Err: err,
			Message: fmt.Sprintf("the image of the release, %s, is no longer on this host: build or pull it again and deploy that (roost deploy, or roost deploy --image REF)", r.Image.Ref())}
	}
	if err != nil {
		return root.Release{}, 0, err
	}
	return s.Store.CreateRelease(ctx, *r)
}

// protect keeps the images of an app's releases, and of more, on this host.
// Kind NotFound when one of more is not there.
func (s *Releases) protect(ctx context.Context, app root.AppName, more ...root.Digest) error {
	list, err := s.Store.Releases(ctx, app)
	if err != nil {
		return err
	}
	seen := map[root.Digest]bool{}
	var digests []root.Digest
	add := func(d root.Digest) {
		if d != "" && !seen[d] {
			seen[d] = true
			digests = append(digests, d)
		}
	}
	for _, d := range more {
		add(d)
	}
	for i := range list {
		add(list[i].Image.Digest)
	}
	err = s.Images.Protect(ctx, protectOwner(app), digests...)
	if !root.IsKind(err, root.NotFound) {
		return err
	}
	// One that is lost must not keep the others from being kept.
	probe := protectOwner(app) + "/probe"
	var here []root.Digest
	for i, d := range digests {
		switch err := s.Images.Protect(ctx, probe, d); {
		case err == nil:
			here = append(here, d)
		case !root.IsKind(err, root.NotFound) || i < len(more) && slices.Contains(more, d):
			return errors.Join(err, s.Images.Protect(ctx, probe))
		default:
			s.Log.Warn("the image of a release is not on this host", "app", app, "digest", d)
		}
	}
	return errors.Join(s.Images.Protect(ctx, protectOwner(app), here...), s.Images.Protect(ctx, probe))
}

func protectOwner(app root.AppName) string { return "releases/" + string(app) }

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
	r.Progress, r.Secrets = root.Progress{Status: root.ReleasePending}, fresh.Secrets
	d := &r.Deploy
	d.ReleaseCommand, d.SeedCommand, d.Ran, d.Restart, d.Detach, d.UpdateOnly = nil, nil, 0, true, false, false
	d.Regions, d.OnlyGroups, d.OnlyMachines = nil, nil, nil
	if r.Reason == "" {
		r.Reason = ReasonSecrets
	}
	return s.begin(ctx, &r)
}

// Cancel ends a rollout; what it changed goes back. It returns when that is
// asked for. Kind NotFound when that version is not being rolled out.
func (s *Releases) Cancel(ctx context.Context, a auth.Actor, app root.AppName, version int) error {
	if _, err := s.app(a, auth.ReleaseCreate, app); err != nil {
		return err
	}
	if err := s.Store.CancelRollout(ctx, app, version, a.Name); err != nil {
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

// ReleasePlan is what a release would change.
type ReleasePlan struct {
	Former  *root.Release // nil without one
	Release *root.Release // version 0: it is not recorded
	Steps   []PlannedStep // machine by machine
	Foreign []*root.Machine
}

// PlannedStep is what would be done to one machine.
type PlannedStep struct {
	Action  string // "create", "update", "keep", "canary", "green", "destroy"
	Group   string
	Machine *root.Machine // nil: one that is made
	Region  root.Region
	Why     string
	Config  root.Config // what it becomes, unless it is destroyed
	Source  []byte
}

// Plan says what Create would do.
func (s *Releases) Plan(ctx context.Context, a auth.Actor, app root.AppName, n NewRelease) (*ReleasePlan, error) {
	r, err := s.prepare(ctx, a, app, n)
	if err != nil {
		return nil, err
	}
	out := &ReleasePlan{Release: r}
	fresh, err := s.Store.App(ctx, app)
	if err != nil {
		return nil, err
	}
	// As if it were recorded: no machine may look like one of its own.
	r.Version = fresh.Release + 1<<30
	if now, err := s.current(ctx, &fresh); err == nil {
		out.Former = now
	} else if root.CodeOf(err) != root.CodeNoRelease {
		return nil, err
	}
	snapshot := s.Catalog.Snapshot()
	plan, err := rollout.Make(r, snapshot.Machines(app), root.Rollout{})
	if err != nil {
		return nil, err
	}
	groups := map[string]*root.Group{}
	for i := range r.Groups {
		groups[r.Groups[i].Name] = &r.Groups[i]
	}
	add := func(steps []rollout.Step) {
		for _, st := range steps {
			p := PlannedStep{Action: string(st.Action), Group: st.Group, Region: st.Region, Why: st.Why}
			if st.Machine != "" {
				p.Machine = snapshot.Machine(st.Machine)
			}
			if g := groups[st.Group]; g != nil {
				t := rollout.TargetOf(r, g, p.Machine)
				p.Config, p.Source = t.Config, t.Source
			}
			out.Steps = append(out.Steps, p)
		}
	}
	add(plan.Canaries)
	for _, l := range slices.Concat(plan.Creates, plan.Updates, plan.Greens) {
		add(l.Steps)
	}
	add(plan.Gone)
	r.Version = 0
	for _, m := range plan.Foreign {
		if m.Group() != root.GroupReleaseCommand {
			out.Foreign = append(out.Foreign, m)
		}
	}
	return out, nil
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

var _ rollout.Memory = (*journal)(nil)

// journal keeps one rollout in the store.
type journal struct {
	s    *Releases
	r    *root.Release
	ctx  context.Context //nolint:containedctx // Tell has none: it is called from everywhere and may not fail
	host root.HostID
}

func (j *journal) Begin(ctx context.Context, app root.AppName, version int) error {
	now := j.r.Progress
	if now.Status != root.ReleasePending {
		return nil
	}
	j.r.Progress = root.Progress{Status: root.ReleaseRunning, StartedAt: j.s.Now().UTC()}
	_, err := j.s.Store.SetProgress(ctx, app, version, j.r.Progress)
	return err
}

func (j *journal) Save(ctx context.Context, r root.Rollout) error {
	_, err := j.s.Store.SaveRollout(ctx, j.host, r)
	return err
}

func (j *journal) Remember(ctx context.Context, m *root.Machine) error {
	return j.s.Store.RememberMachine(ctx, j.host, m)
}

func (j *journal) Remembered(ctx context.Context, app root.AppName) (map[root.MachineID]*root.Machine, error) {
	return j.s.Store.RememberedMachines(ctx, app)
}

func (j *journal) Shift(ctx context.Context, r *root.Release, next root.Rollout) error {
	rev, err := j.s.Store.ShiftRollout(ctx, j.host, next, func(app *root.App) {
		app.Release = r.Version
		app.Routes = r.Routes
	})
	if err != nil {
		return err
	}
	return j.s.read(ctx, rev)
}

func (j *journal) Finish(ctx context.Context, r root.Rollout, status root.ReleaseStatus, message string) error {
	p := root.Progress{Status: status, Message: message, StartedAt: j.r.Progress.StartedAt, FinishedAt: j.s.Now().UTC()}
	j.r.Progress = p
	j.s.webhook(ctx, j.r, j.Tell)
	text := fmt.Sprintf("release v%d is %s", r.Version, status)
	if first, _, _ := strings.Cut(message, "\n"); first != "" { // the rest was told with the step that failed
		text += ": " + first
	}
	last := root.ReleaseEvent{
		ID: ulid.Make().String(), At: j.s.Now().UTC(), Step: root.StepEnd, Failed: status != root.ReleaseComplete, Message: text, End: true,
	}
	if _, err := j.s.Store.FinishRollout(ctx, j.host, r, p, last); err != nil {
		return err
	}
	j.s.Journal.Log(LogEntry{App: r.App, Provider: LogDeploy, Message: text})
	return nil
}

// Tell adds an event to the release's, and to the app's log.
func (j *journal) Tell(e root.ReleaseEvent) {
	e.ID, e.At = ulid.Make().String(), j.s.Now().UTC()
	if err := j.s.Store.AddReleaseEvent(context.WithoutCancel(j.ctx), j.r.App, j.r.Version, e); err != nil {
		j.s.Log.Warn("event of a release is lost", "app", j.r.App, "release", j.r.Version, "err", err)
	}
	if e.Message != "" {
		j.s.Journal.Log(LogEntry{App: j.r.App, Provider: LogDeploy, Machine: e.Machine, Message: e.Message})
	}
}

// Run carries out rollouts until ctx ends, those first that a process before
// this one left. What fails for reasons of the platform is tried again.
func (s *Releases) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	s.resume(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-s.wake:
		}
		timer.Reset(lookForRollouts)
		all, err := s.Store.Rollouts(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.Log.Warn("rollouts under way", "err", err)
				timer.Reset(retryRollout)
			}
			continue
		}
		for _, r := range all {
			s.mu.Lock()
			if s.running[r.App] == nil {
				work, cancel := context.WithCancelCause(ctx)
				s.running[r.App] = cancel
				wg.Go(func() { s.carry(ctx, work, r.App, cancel) })
			}
			s.mu.Unlock()
		}
	}
}

const (
	// lookForRollouts is how often others' abandoned rollouts are looked for.
	lookForRollouts = 30 * time.Second
	// retryRollout is the pause after a rollout that could not go on.
	retryRollout = time.Second
)

// resume protects the images of all releases again: a crash may have come
// between a record and its protection.
func (s *Releases) resume(ctx context.Context) {
	for app := range s.Catalog.Snapshot().Apps() {
		if app.Release == 0 {
			continue
		}
		s.protecting.Lock()
		err := s.protect(ctx, app.Name)
		s.protecting.Unlock()
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("images of releases are not protected", "app", app.Name, "err", err)
		}
	}
}

// carry carries out one rollout until it ends.
func (s *Releases) carry(ctx, work context.Context, app root.AppName, cancel context.CancelCauseFunc) {
	err := s.Store.HoldRollout(ctx, app, s.Host, func(ctx context.Context) error { return s.rollout(ctx, work, app, cancel) })
	cancel(nil)
	if err != nil && ctx.Err() == nil && !root.IsKind(err, root.Conflict) {
		if !root.IsKind(err, root.NotFound) { // it has ended, or its app has gone
			s.Log.Error("rollout could not go on and is tried again", "app", app, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryRollout):
		}
	}
	s.mu.Lock()
	delete(s.running, app)
	s.mu.Unlock()
	if ctx.Err() == nil && !root.IsKind(err, root.Conflict) { // the next one may have been recorded meanwhile
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *Releases) rollout(ctx, work context.Context, app root.AppName, cancel context.CancelCauseFunc) error {
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) }) // work ends with the ownership, too
	defer stop()
	j, err := s.Store.Rollout(ctx, app)
	if err != nil {
		return err
	}
	if j == nil {
		return nil
	}
	r, err := s.Store.Release(ctx, app, j.Version)
	if err != nil {
		return err
	}
	by, err := s.Store.Cancelled(ctx, app)
	if err != nil {
		return err
	}
	if by != "" {
		cancel(&rollout.CancelledError{By: by})
	}
	c := &cluster{s: s, actor: s.actor(&r)}
	memory := &journal{s: s, r: &r, ctx: ctx, host: s.Host}
	status, message, err := rollout.New(rollout.Options{Cluster: c, Memory: memory, Failpoint: s.Failpoint, Log: s.Log}, &r, *j).Run(ctx, work)
	if err != nil {
		return err
	}
	s.Log.Info("release ended", "app", app, "release", r.Version, "status", status, "message", message)
	if err := s.trim(ctx, app); err != nil && ctx.Err() == nil {
		s.Log.Warn("old releases are not removed", "app", app, "err", err)
	}
	return nil
}

// actor is who a rollout acts as: whoever asked was checked when the release
// was made.
func (s *Releases) actor(r *root.Release) auth.Actor {
	a := auth.LocalRoot()
	a.Name = fmt.Sprintf("release v%d of %s", r.Version, r.App)
	return a
}
