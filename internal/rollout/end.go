package rollout

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
)

// clean removes what the release that now serves does not need.
func (e *Executor) clean(ctx context.Context) (root.ReleaseStatus, string, error) {
	machines, err := e.o.Cluster.Machines(ctx, e.r.App)
	if err != nil {
		return "", "", err
	}
	plan, err := Make(e.r, machines, e.journal())
	if err != nil {
		e.o.Log.Error("plan of a clean-up", "app", e.r.App, "release", e.r.Version, "err", err)
	}
	var left []string
	g := errgroup.Group{}
	g.SetLimit(stoppedPool)
	var mu sync.Mutex // guards left
	retire := func(group string, id root.MachineID, why string) {
		g.Go(func() error {
			e.say(root.StepDestroy, group, id, "machine %s is destroyed: %s", id, why)
			err := e.retry(ctx, cleanTries, func() error { return e.o.Cluster.Retire(ctx, e.r.App, id) })
			e.point("retired")
			if err != nil && ctx.Err() == nil {
				mu.Lock()
				left = append(left, string(id))
				mu.Unlock()
				e.tell(root.ReleaseEvent{Step: root.StepDestroy, Group: group, Machine: id, Warning: true, Message: fmt.Sprintf("machine %s could not be destroyed: %s", id, root.MessageOf(err))})
			}
			return nil
		})
	}
	for _, s := range plan.Gone {
		retire(s.Group, s.Machine, s.Why)
	}
	for _, id := range plan.Blues {
		retire("", id, "a new machine has its place")
	}
	_ = g.Wait() // its functions return nil
	if ctx.Err() != nil {
		return "", "", context.Cause(ctx)
	}
	e.foreign(plan)
	message := ""
	if len(left) > 0 {
		message = fmt.Sprintf("these machines could not be destroyed: %v", left)
	}
	return e.finish(ctx, root.ReleaseComplete, message)
}

// foreign names machines that still run another image and that no deploy
// touches.
func (e *Executor) foreign(plan Plan) {
	for _, m := range plan.Foreign {
		if m.Spec.Image.Digest == e.r.Image.Digest || m.Group() == root.GroupReleaseCommand || m.Group() == root.GroupTest || m.Status.State == root.StateDestroyed || m.Spec.Destroy != nil {
			continue
		}
		who := "made through the API"
		if m.Origin == root.OriginApp {
			who = "made by the app itself"
		}
		e.tell(root.ReleaseEvent{Step: root.StepNotice, Machine: m.ID, Warning: true, Message: fmt.Sprintf(
			"machine %s (%s), %s, still runs %s: deploys do not touch it", m.ID, m.Name, who, m.Spec.Image.Ref())})
	}
}

func (e *Executor) finish(ctx context.Context, status root.ReleaseStatus, message string) (root.ReleaseStatus, string, error) {
	if err := e.o.Memory.Finish(context.WithoutCancel(ctx), e.journal(), status, message); err != nil {
		return "", "", &journalError{err}
	}
	return status, message, nil
}

// turn notes that the rollout goes back, and why.
func (e *Executor) turn(ctx context.Context, cause error, work context.Context) error {
	status, why := root.ReleaseFailed, root.MessageOf(cause)
	c, ok := errors.AsType[*CancelledError](context.Cause(work))
	if !ok {
		c, ok = errors.AsType[*CancelledError](cause)
	}
	if ok {
		status, why = root.ReleaseInterrupted, c.Error()
	} else if root.KindOf(cause) == root.Internal {
		e.o.Log.Error("rollout failed", "app", e.r.App, "release", e.r.Version, "err", cause)
	}
	return e.save(ctx, func(j *root.Rollout) { j.Returning, j.Status, j.Cause = true, status, why })
}

// back undoes what the rollout changed: machines it made go, the others become
// what they were.
func (e *Executor) back(ctx context.Context) (root.ReleaseStatus, string, error) {
	e.point("return:begin")
	j := e.journal()
	were, err := e.o.Memory.Remembered(ctx, e.r.App)
	if err != nil {
		return "", "", &journalError{err}
	}
	machines, err := e.o.Cluster.Machines(ctx, e.r.App)
	if err != nil {
		return "", "", err
	}
	var undo []func() error
	var ids []root.MachineID
	// First what was: it serves before the new goes.
	for _, m := range sorted(machines) {
		was := were[m.ID]
		// One that another has changed since is no longer ours.
		if was == nil || m.Spec.Release != e.r.Version && (m.Spec.Instance != was.Spec.Instance || m.Spec.Cordoned == was.Spec.Cordoned) {
			continue
		}
		ids = append(ids, m.ID)
		undo = append(undo, func() error { return e.o.Cluster.Restore(ctx, e.r, was) })
	}
	restored := len(undo)
	for _, m := range sorted(machines) {
		if were[m.ID] == nil && (madeBy(e.r, m) || m.ID == j.Temporary) && m.Status.State != root.StateDestroyed {
			ids = append(ids, m.ID)
			undo = append(undo, func() error { return e.remove(ctx, m) })
		}
	}
	if restored > 0 {
		e.say(root.StepRollback, "", "", "%d %s", restored, plural(restored, "machine goes back to what it was", "machines go back to what they were"))
	}
	var left []string
	for i, f := range undo {
		if err := e.retry(ctx, returnTries, f); err != nil {
			if ctx.Err() != nil {
				return "", "", context.Cause(ctx)
			}
			left = append(left, string(ids[i]))
			e.tell(root.ReleaseEvent{Step: root.StepRollback, Machine: ids[i], Failed: true, Message: root.MessageOf(err)})
			continue
		}
		e.point("return:restored")
	}
	if ctx.Err() != nil {
		return "", "", context.Cause(ctx)
	}
	message := j.Cause
	if len(left) > 0 {
		message += fmt.Sprintf("; these machines could not be brought back: %v", left)
	}
	e.point("return:done")
	return e.finish(ctx, j.Status, message)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// retry repeats f, with pauses, until it succeeds, ctx ends or it was tried
// often, or long enough: one attempt may take the whole wait timeout, and
// nothing else is deployed meanwhile.
func (e *Executor) retry(ctx context.Context, tries int, f func() error) error {
	var err error
	began := time.Now()
	for i := range tries {
		if i > 0 {
			if time.Since(began) > retryTime {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(e.o.Pause):
			}
		}
		if err = f(); err == nil {
			return nil
		}
		e.o.Log.Warn("step of a rollout failed and is tried again", "app", e.r.App, "release", e.r.Version, "err", err)
	}
	return err
}
