package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/rollout"
)

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
	if root.CodeOf(err) == root.CodeReleaseCancelled {
		by, err := j.s.Store.Cancelled(ctx, r.App)
		if err != nil {
			return err
		}
		return &rollout.CancelledError{By: by}
	}
	if err != nil {
		return err
	}
	return j.s.read(ctx, rev)
}

func (j *journal) Finish(ctx context.Context, r root.Rollout, status root.ReleaseStatus, message string) error {
	p := root.Progress{Status: status, Message: message, StartedAt: j.r.Progress.StartedAt, FinishedAt: j.s.Now().UTC()}
	j.r.Progress = p
	how := "is " + string(status)
	switch status {
	case root.ReleaseFailed:
		how = "failed"
	case root.ReleaseInterrupted:
		how = "was interrupted"
	}
	text := fmt.Sprintf("release v%d %s", r.Version, how)
	if first, _, _ := strings.Cut(message, "\n"); first != "" { // the rest was told with the step that failed
		text += ": " + first
	}
	last := root.ReleaseEvent{
		ID: ulid.Make().String(), At: j.s.Now().UTC(), Step: root.StepEnd, Failed: status != root.ReleaseComplete, Message: text, End: true,
	}
	if _, err := j.s.Store.FinishRollout(ctx, j.host, r, p, last, j.r.Deploy.Webhook != "" && j.s.Poster != nil); err != nil {
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
		s.tellWebhooks(ctx, &wg)
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
	memory := &journal{s: s, r: &r, ctx: ctx, host: s.Host}
	c := &cluster{s: s, actor: s.actor(&r), tell: memory.Tell, checked: map[root.InstanceID]bool{}}
	c.sweepChecks(ctx, app) // of a process that died
	defer c.sweepChecks(ctx, app)
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
