package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/rollout"
)

// cluster is what a rollout acts on: the verbs on machines, as the actor of
// its release.
type cluster struct {
	s     *Releases
	actor auth.Actor
	tell  rollout.Tell

	mu      sync.Mutex
	checked map[root.InstanceID]bool // versions that passed their machine checks; guarded by mu
}

var _ rollout.Cluster = (*cluster)(nil)

const (
	// drainLimit is how long requests in flight may hold up the end of a
	// machine that is no longer needed.
	drainLimit = 30 * time.Second
	// exitSlack is what an exit may take beyond the stop's own timeout.
	exitSlack = 15 * time.Second
	// leasePause is between looks whether another's lease has ended.
	leasePause = time.Second
)

func (c *cluster) Machines(ctx context.Context, app root.AppName) ([]*root.Machine, error) {
	rev, err := c.s.Store.Revision(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.s.read(ctx, rev); err != nil {
		return nil, err
	}
	return c.s.Catalog.Snapshot().Machines(app), nil
}

func pinned(r *root.Release, t rollout.Target) *Pinned {
	return &Pinned{Image: t.Image, Release: r.Version, Secrets: t.Secrets}
}

func (c *cluster) Create(ctx context.Context, r *root.Release, t rollout.Target, n rollout.NewMachine) (*root.Machine, error) {
	if n.Temporary {
		t.Config.DNS.SkipRegistration = true
	}
	return c.s.machines.Create(ctx, c.actor, r.App, CreateMachine{
		Region: string(n.Region), Config: t.Config, Source: t.Source, SkipLaunch: !n.Launch, SkipServiceRegistration: n.Cordoned, Release: pinned(r, t),
	})
}

// Update waits for a lease that another holds, for a while.
func (c *cluster) Update(ctx, work context.Context, r *root.Release, m *root.Machine, t rollout.Target, launch bool) error {
	p := pinned(r, t)
	p.Instance = root.InstanceID(ulid.Make().String())
	began := c.s.Now()
	stop := context.AfterFunc(work, func() { c.s.Agent.GiveUp(m.ID, p.Instance) })
	defer stop()
	err := c.leased(work, m, r.Deploy.WaitTimeout, func() error {
		_, err := c.s.machines.Update(ctx, c.actor, r.App, m.ID, UpdateMachine{
			Config: t.Config, Source: t.Source, SkipLaunch: !launch, Timeout: r.Deploy.WaitTimeout, Release: p, Prove: c.prove(r),
		})
		return err
	})
	if err == nil || work.Err() != nil || root.CodeOf(err) == codeCheckFailed {
		return err
	}
	return c.s.diagnose(ctx, failure{machine: m.ID, app: r.App, instance: p.Instance, config: &t.Config, since: began, err: err,
		what: fmt.Sprintf("machine %s could not be updated", m.ID)})
}

// leased runs f again as long as somebody else holds the machine's lease.
func (c *cluster) leased(ctx context.Context, m *root.Machine, patience time.Duration, f func() error) error {
	told := false
	for deadline := c.s.Now().Add(patience); ; {
		err := f()
		if root.CodeOf(err) != root.CodeLeaseHeld || c.s.Now().After(deadline) {
			return err
		}
		if !told {
			told = true
			c.tell(waiting(m, "others to give machine "+string(m.ID)+" back: "+root.MessageOf(err), deadline))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(leasePause):
		}
	}
}

func (c *cluster) Keep(ctx context.Context, r *root.Release, m *root.Machine, t rollout.Target) error {
	return c.edit(ctx, m.ID, func(spec *root.Spec) error {
		if spec.Instance != m.Spec.Instance {
			return root.Errorf(root.Conflict, "machine %s was changed while the release was rolled out", m.ID)
		}
		spec.Config.Metadata, spec.Release = maps.Clone(t.Config.Metadata), r.Version
		return nil
	})
}

func (c *cluster) edit(ctx context.Context, id root.MachineID, f func(*root.Spec) error) error {
	rev, err := c.s.Store.EditSpec(ctx, id, f)
	if err != nil {
		return err
	}
	return c.s.read(ctx, rev)
}

func (c *cluster) Cordon(ctx context.Context, _ root.AppName, id root.MachineID, on bool) error {
	return c.edit(ctx, id, func(spec *root.Spec) error {
		spec.Cordoned = on
		return nil
	})
}

func (c *cluster) Retire(ctx context.Context, app root.AppName, id root.MachineID) error {
	m := c.s.Catalog.Snapshot().Machine(id)
	if m == nil {
		return nil
	}
	if err := c.Cordon(ctx, app, id, true); err != nil {
		return gone(err)
	}
	if c.s.Drain != nil && m.Status.State.Running() {
		drain, cancel := context.WithTimeout(ctx, drainLimit)
		err := c.s.Drain(drain, m)
		cancel()
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			c.s.Log.Warn("drain", "machine", id, "err", err)
		}
	}
	if m.Status.State != root.StateStopped {
		err := c.leased(ctx, m, drainLimit, func() error {
			return c.s.machines.Stop(ctx, c.actor, app, id, "", StopRequest{Reason: "release"})
		})
		if err != nil && !root.IsKind(err, root.Precondition) && gone(err) != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, m.Spec.Config.Stop.Timeout+exitSlack)
		_ = c.s.Catalog.Wait(wait, func(sn *root.Snapshot) bool { // if it does not: it is killed
			now := sn.Machine(id)
			return now == nil || now.Status.State == root.StateStopped || now.Status.State == root.StateFailed
		})
		cancel()
	}
	return c.Destroy(ctx, app, id)
}

func (c *cluster) Destroy(ctx context.Context, _ root.AppName, id root.MachineID) error {
	return gone(c.s.machines.destroy(ctx, id, true))
}

// gone makes a machine that is no more a success.
func gone(err error) error {
	if root.IsKind(err, root.NotFound) {
		return nil
	}
	return err
}

func (c *cluster) Restore(ctx context.Context, r *root.Release, was *root.Machine) error {
	m := c.s.Catalog.Snapshot().Machine(was.ID)
	if m == nil {
		return root.Errorf(root.NotFound, "machine %s is gone", was.ID)
	}
	if m.Spec.Instance != was.Spec.Instance && m.Spec.Release == r.Version {
		// What its spec once said is not it: one that was updated at rest may
		// have been woken before the rollout, or by a request during it.
		launch := rollout.Launches(was) || rollout.Served(&was.Spec.Config) && m.Status.State.Running()
		err := c.leased(ctx, m, r.Deploy.WaitTimeout, func() error {
			_, err := c.s.machines.Update(ctx, c.actor, m.App, m.ID, UpdateMachine{
				Config: was.Spec.Config.Clone(), Source: was.Spec.Source, SkipLaunch: !launch, Timeout: r.Deploy.WaitTimeout,
				Release: &Pinned{Image: was.Spec.Image, Release: was.Spec.Release, Secrets: was.Spec.Secrets},
			})
			return err
		})
		if err != nil {
			return err
		}
	}
	return gone(c.edit(ctx, was.ID, func(spec *root.Spec) error {
		if spec.Instance == was.Spec.Instance {
			spec.Config.Metadata, spec.Release = maps.Clone(was.Spec.Config.Metadata), was.Spec.Release
		}
		spec.Cordoned = was.Spec.Cordoned
		return nil
	}))
}

// say is an event's beginning.
func waiting(m *root.Machine, what string, until time.Time) root.ReleaseEvent {
	return root.ReleaseEvent{Step: root.StepUpdate, Group: m.Group(), Machine: m.ID, Waiting: what, Until: until}
}

// names joins names for people, in order.
func names(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
