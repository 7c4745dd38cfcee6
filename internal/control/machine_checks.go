package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/rollout"
)

const (
	// checksAtOnce bounds the machines that test one machine at a time.
	checksAtOnce = 4
	// checkEnd is how long the removal of such a machine may take.
	checkEnd = time.Minute
	// codeCheckFailed marks an error that says all about a machine check.
	codeCheckFailed = "machine_check_failed"
)

// RunChecks runs the machine checks of the machine's group against it.
func (c *cluster) RunChecks(ctx context.Context, r *root.Release, id root.MachineID, tell rollout.Tell) error {
	m := c.s.Catalog.Snapshot().Machine(id)
	if m == nil {
		return root.Errorf(root.Conflict, "machine %s was destroyed while the release was rolled out", id)
	}
	c.mu.Lock()
	passed := c.checked[m.Spec.Instance]
	c.mu.Unlock()
	if passed || len(checksOf(r, m)) == 0 {
		return nil
	}
	if s := m.Status.State; !s.Running() && s != root.StateSuspended {
		tell(root.ReleaseEvent{
			Step: root.StepMachineCheck, Group: m.Group(), Machine: id, Warning: true,
			Message: fmt.Sprintf("machine %s is %s: its machine checks were not run", id, s),
		})
		return nil
	}
	return c.runChecks(ctx, r, m, tell)
}

// prove returns how a new version is tested beside the old one; nil where
// nothing tests it.
func (c *cluster) prove(r *root.Release) func(context.Context, *root.Machine) error {
	tested := slices.ContainsFunc(r.Groups, func(g root.Group) bool { return len(g.Checks) > 0 })
	if !tested || r.Deploy.Unchecked || r.Deploy.Detach || r.Deploy.Strategy == root.StrategyImmediate {
		return nil // the update need not have the time for it
	}
	return func(ctx context.Context, next *root.Machine) error { return c.runChecks(ctx, r, next, c.tell) }
}

// checksOf are the machine checks of a machine in release r.
func checksOf(r *root.Release, m *root.Machine) []root.MachineCheck {
	if r.Deploy.Unchecked {
		return nil
	}
	for i := range r.Groups {
		if r.Groups[i].Name == m.Group() {
			return r.Groups[i].Checks
		}
	}
	return nil
}

// runChecks runs the checks side by side; the first that fails ends the others.
func (c *cluster) runChecks(ctx context.Context, r *root.Release, m *root.Machine, tell rollout.Tell) error {
	checks := checksOf(r, m)
	if len(checks) == 0 {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(checksAtOnce)
	for i := range checks {
		g.Go(func() error { return c.runCheck(gctx, r, m, i, tell) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.mu.Lock()
	c.checked[m.Spec.Instance] = true
	c.mu.Unlock()
	return nil
}

// runCheck runs the group's check number n against m in a machine of its own,
// which is gone afterwards.
func (c *cluster) runCheck(ctx context.Context, r *root.Release, m *root.Machine, n int, tell rollout.Tell) error {
	k := checksOf(r, m)[n]
	what := fmt.Sprintf("machine check %q of machine %s", strings.Join(k.Command, " "), m.ID)
	img := k.Image
	if img.Digest == "" {
		img = m.Spec.Image
	}
	tell(root.ReleaseEvent{Step: root.StepMachineCheck, Group: m.Group(), Machine: m.ID, Message: what + " runs"})
	config := checkConfig(r, m, k, img)
	tester, err := c.s.machines.Create(ctx, c.actor, r.App, CreateMachine{
		Name: fmt.Sprintf("machine-check-v%d-%s-%d", r.Version, m.ID, n+1), Region: string(m.Region), Config: config, SkipLaunch: true,
		Release: &Pinned{Image: img, Release: r.Version, Secrets: r.Secrets},
	})
	if err != nil {
		return c.checkFailed(ctx, r, nil, what, err)
	}
	defer c.removeCheck(ctx, r, tester)
	began := c.s.Now()
	if _, err := c.s.machines.Start(ctx, c.actor, r.App, tester.ID, ""); err != nil {
		return c.checkFailed(ctx, r, tester, what, err)
	}
	if c.s.Failpoint != nil {
		c.s.Failpoint("machine_check:started")
	}
	err = c.outcome(ctx, r, tester, bounds{
		step: root.StepMachineCheck, what: what, began: began, timeout: r.Deploy.WaitTimeout,
		setting: "deploy.wait_timeout", memory: "[[vm]] of its process group",
	}, tell)
	if err != nil {
		return c.checkFailed(ctx, r, tester, what, err)
	}
	tell(root.ReleaseEvent{Step: root.StepMachineCheck, Group: m.Group(), Machine: m.ID, Message: what + " passed"})
	return nil
}

// checkFailed says why a check failed, unless nobody waits for it any more.
func (c *cluster) checkFailed(ctx context.Context, r *root.Release, tester *root.Machine, what string, cause error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f := failure{what: what + " failed", app: r.App, since: r.CreatedAt, err: cause}
	if tester != nil {
		f.machine, f.instance, f.config, f.since = tester.ID, tester.Spec.Instance, &tester.Spec.Config, tester.CreatedAt
	}
	err := c.s.diagnose(ctx, f)
	return &root.Error{Kind: root.KindOf(err), Code: codeCheckFailed, Message: root.MessageOf(err), Err: err}
}

// removeCheck ends a check's machine as it wants to be ended, and removes it.
// What cannot be removed now goes when the rollout ends.
func (c *cluster) removeCheck(ctx context.Context, r *root.Release, tester *root.Machine) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkEnd+tester.Spec.Config.Stop.Timeout)
	defer cancel()
	if err := c.Retire(ctx, r.App, tester.ID); err != nil {
		c.s.Log.Warn("machine of a machine check", "machine", tester.ID, "err", err)
	}
}

// sweepChecks removes the machines of machine checks that nobody waits for.
func (c *cluster) sweepChecks(ctx context.Context, app root.AppName) {
	if ctx.Err() != nil {
		return
	}
	machines, err := c.Machines(ctx, app)
	if err != nil {
		c.s.Log.Warn("machines of machine checks are not looked for", "app", app, "err", err)
		return
	}
	for _, m := range machines {
		// One without release is another client's: flyctl makes its own.
		if m.Group() != root.GroupTest || m.Spec.Release == 0 {
			continue
		}
		if err := c.Destroy(ctx, app, m.ID); err != nil && ctx.Err() == nil {
			c.s.Log.Warn("machine of a machine check is left", "machine", m.ID, "err", err)
		}
	}
}

// checkConfig is the machine that tests m.
func checkConfig(r *root.Release, m *root.Machine, k root.MachineCheck, img root.Image) root.Config {
	under := m.Spec.Config.Clone()
	out := root.Config{
		Image: img.Ref(), Env: maps.Clone(under.Env), Init: root.Init{Entrypoint: under.Init.Entrypoint, Cmd: k.Command}, Guest: under.Guest, Swap: under.Swap,
		Files: under.Files, Restart: root.Restart{Policy: root.RestartNo}, AutoDestroy: true, Stop: under.Stop, DNS: root.DNS{SkipRegistration: true},
		Metadata: map[string]string{
			root.MetadataPlatform: root.PlatformManaged, root.MetadataProcessGroup: root.GroupTest,
			root.MetadataReleaseID: string(r.ID), root.MetadataReleaseVersion: fmt.Sprint(r.Version),
		},
	}
	if len(k.Entrypoint) > 0 {
		out.Init.Entrypoint = k.Entrypoint
	}
	if k.Stop.Signal != "" {
		out.Stop.Signal = k.Stop.Signal
	}
	if k.Stop.Timeout > 0 {
		out.Stop.Timeout = k.Stop.Timeout
	}
	if out.Env == nil {
		out.Env = map[string]string{}
	}
	maps.Copy(out.Env, map[string]string{
		"FLY_TEST_COMMAND": "1", "FLY_TEST_MACHINE_IP": m.Spec.Address.IPv6, "FLY_PROCESS_GROUP": root.GroupTest,
	})
	return out
}
