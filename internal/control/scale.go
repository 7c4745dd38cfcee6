package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/placement"
)

// Scale are the verbs on how many machines an app has, and how large they are.
type Scale struct {
	Deps
	machines *Machines

	mu   sync.Mutex
	busy map[root.AppName]bool // guarded by mu: apps that are being scaled
}

const (
	// scalesAtOnce bounds how many machines are made or removed at a time (Fly's).
	scalesAtOnce = 5
	// maxScale bounds a process group: a slip of the finger must not fill the host.
	maxScale = 1000
	// drainPatience is how long requests in flight keep a machine that is to go.
	drainPatience = 30 * time.Second
	// scaleLease outlasts the removal of a machine.
	scaleLease = 10 * time.Minute
)

// Unbounded, as ScaleCount's Bound, is none.
const Unbounded = placement.Unbounded

// DefaultGroup is the process group of an app that names none.
const DefaultGroup = "app"

// GroupCount is how many machines a process group is to have.
type GroupCount struct {
	Group    string
	Count    int
	Relative bool // Count is added to what there is in the regions
}

// ScaleCount asks for numbers of machines.
type ScaleCount struct {
	Groups  []GroupCount
	Regions []root.Region // none: those where the app has machines, else its primary one
	Bound   int           // of a group's machines in a region; or Unbounded
	Guest   *root.Guest   // size of the first machines of a group that nothing else gives one
}

// ScaleStep is one machine that comes or goes.
type ScaleStep struct {
	Group   string
	Region  root.Region
	Machine root.MachineID // that goes, or that came; "" before it did
	Remove  bool
}

// GroupSize is what there is of machines of one group and one size.
type GroupSize struct {
	Group   string
	Count   int
	Guest   root.Guest
	Regions map[root.Region]int
}

// Show says what an app's releases have in machines, by group and size.
func (s *Scale) Show(_ context.Context, a auth.Actor, app root.AppName) ([]GroupSize, error) {
	if _, err := s.app(a, auth.MachineRead, app); err != nil {
		return nil, err
	}
	var out []GroupSize
	for _, m := range s.managed(app) {
		group, guest := groupOf(m), m.Spec.Config.Guest
		i := slices.IndexFunc(out, func(g GroupSize) bool { return g.Group == group && g.Guest == guest })
		if i < 0 {
			i = len(out)
			out = append(out, GroupSize{Group: group, Guest: guest, Regions: map[root.Region]int{}})
		}
		out[i].Count++
		out[i].Regions[m.Region]++
	}
	slices.SortStableFunc(out, func(a, b GroupSize) int { return strings.Compare(a.Group, b.Group) })
	return out, nil
}

func groupOf(m *root.Machine) string { return cmp.Or(m.Group(), DefaultGroup) }

// managed are the machines of an app's releases, oldest first.
func (d *Deps) managed(app root.AppName) []*root.Machine {
	var out []*root.Machine
	for _, m := range d.Catalog.Snapshot().Machines(app) {
		if m.Managed() {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(out, func(a, b *root.Machine) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

// Plan says what Count would do.
func (s *Scale) Plan(ctx context.Context, a auth.Actor, app root.AppName, c ScaleCount) ([]ScaleStep, error) {
	found, err := s.app(a, auth.MachineCreate, app)
	if err != nil {
		return nil, err
	}
	release, err := s.release(ctx, found)
	if err != nil {
		return nil, err
	}
	return s.plan(found, release, c)
}

// release is the one that serves. Scaling needs one that is complete, and none
// that is on its way.
func (s *Scale) release(ctx context.Context, app *root.App) (*root.Release, error) {
	if app.Deleting {
		return nil, root.Errorf(root.Precondition, "app %s is being deleted", app.Name)
	}
	under, err := s.Store.Rollout(ctx, app.Name)
	if err != nil {
		return nil, err
	}
	if under != nil {
		return nil, &root.Error{Kind: root.Conflict, Code: "release_in_progress", Message: fmt.Sprintf("release v%d of %s is being rolled out: wait for its end, then scale", under.Version, app.Name)}
	}
	if app.Release == 0 {
		return nil, &root.Error{Kind: root.Precondition, Code: "no_release", Message: fmt.Sprintf("app %s has no complete release yet: deploy it before you scale it", app.Name)}
	}
	r, err := s.Store.Release(ctx, app.Name, app.Release)
	return &r, err
}

// plan finds the machines that come and go. New ones come first.
func (s *Scale) plan(app *root.App, release *root.Release, c ScaleCount) ([]ScaleStep, error) {
	machines := s.managed(app.Name)
	regions := c.Regions
	if len(regions) == 0 {
		for _, m := range machines {
			regions = append(regions, m.Region)
		}
	}
	if len(regions) == 0 {
		regions = []root.Region{s.primary(release)}
	}
	var add, remove []ScaleStep
	seen := map[string]bool{}
	for _, want := range c.Groups {
		if want.Group == "" {
			want.Group = DefaultGroup
		}
		of := slices.Collect(func(yield func(*root.Machine) bool) {
			for _, m := range machines {
				if groupOf(m) == want.Group && !yield(m) {
					return
				}
			}
		})
		if group(release, want.Group) == nil && len(of) == 0 {
			return nil, root.Errorf(root.Invalid, "app %s has no process group %q: it has %s", app.Name, want.Group, strings.Join(groupNames(release), ", "))
		}
		if seen[want.Group] {
			return nil, root.Errorf(root.Invalid, "process group %s is named twice", want.Group)
		}
		seen[want.Group] = true
		current := map[root.Region]int{}
		for _, m := range of {
			current[m.Region]++
		}
		total := want.Count
		if want.Relative {
			for _, r := range slices.Compact(slices.Sorted(slices.Values(regions))) {
				total += current[r]
			}
			total = max(total, 0)
		}
		if total > maxScale {
			return nil, root.Errorf(root.Invalid, "count: %d machines in one process group are more than %d", total, maxScale)
		}
		deltas, err := placement.Spread(total, current, regions, c.Bound)
		if err != nil {
			return nil, err
		}
		for _, d := range deltas {
			for range d.Delta {
				add = append(add, ScaleStep{Group: want.Group, Region: d.Region})
			}
			for _, m := range of {
				if m.Region == d.Region && d.Delta < 0 {
					remove = append(remove, ScaleStep{Group: want.Group, Region: d.Region, Machine: m.ID, Remove: true})
					d.Delta++
				}
			}
		}
	}
	return append(add, remove...), nil
}

// primary is where the release's first machines go.
func (s *Scale) primary(r *root.Release) root.Region {
	for _, g := range r.Groups {
		if g.Region != "" {
			return g.Region
		}
	}
	return s.region()
}

func group(r *root.Release, name string) *root.Group {
	i := slices.IndexFunc(r.Groups, func(g root.Group) bool { return g.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Groups[i]
}

func groupNames(r *root.Release) []string {
	var names []string
	for _, g := range r.Groups {
		names = append(names, g.Name)
	}
	slices.Sort(names)
	return names
}

// Count makes the groups as large as asked. done is told each step that is
// done, one at a time; machines that could not be made or removed are in the
// error, the others stay done. It returns when the last one is started, but
// does not wait for its checks.
func (s *Scale) Count(ctx context.Context, a auth.Actor, app root.AppName, c ScaleCount, done func(ScaleStep)) error {
	found, err := s.app(a, auth.MachineCreate, app)
	if err != nil {
		return err
	}
	release, err := s.begin(ctx, found)
	if err != nil {
		return err
	}
	defer s.end(app)
	steps, err := s.plan(found, release, c)
	if err != nil {
		return err
	}
	leases, err := s.lease(ctx, a, app, steps)
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards done and errs
	var errs []error
	var g errgroup.Group
	g.SetLimit(scalesAtOnce)
	for _, step := range steps {
		g.Go(func() error {
			err := ctx.Err()
			switch {
			case err != nil: // the caller went away: what has not begun does not begin
			case step.Remove:
				err = s.retire(ctx, a, app, step.Machine, leases[step.Machine])
			default:
				step.Machine, err = s.add(ctx, a, found, release, step, c.Guest)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, about(step, err))
			} else if done != nil {
				done(step)
			}
			return nil
		})
	}
	_ = g.Wait() // each keeps its own error
	if len(errs) == 0 {
		return nil
	}
	var said []string
	for _, err := range errs {
		if text := root.MessageOf(err); !slices.Contains(said, text) {
			said = append(said, text)
		}
	}
	return &root.Error{Kind: root.KindOf(errs[0]), Code: root.CodeOf(errs[0]), Message: fmt.Sprintf("%d of %d machines: %s", len(errs), len(steps), strings.Join(said, "; ")), Err: errors.Join(errs...)}
}

// about says which step an error is about.
func about(step ScaleStep, err error) error {
	what := "create a machine of " + step.Group + " in " + string(step.Region)
	if step.Remove {
		what = "remove machine " + string(step.Machine)
	}
	return &root.Error{Kind: root.KindOf(err), Code: root.CodeOf(err), Message: what + ": " + root.MessageOf(err), Err: err}
}

// begin keeps two from scaling an app at the same time.
func (s *Scale) begin(ctx context.Context, app *root.App) (*root.Release, error) {
	s.mu.Lock()
	taken := s.busy[app.Name]
	if !taken {
		s.busy[app.Name] = true
	}
	s.mu.Unlock()
	if taken {
		return nil, &root.Error{Kind: root.Conflict, Code: "scaling_in_progress", Message: fmt.Sprintf("app %s is being scaled already: wait for the end of that", app.Name)}
	}
	release, err := s.release(ctx, app)
	if err != nil {
		s.end(app.Name)
	}
	return release, err
}

func (s *Scale) end(app root.AppName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, app)
}

// lease takes the machines that are to go, all or none, so that nobody deploys
// to them meanwhile. The others are left alone: a leased machine does not wake.
func (s *Scale) lease(ctx context.Context, a auth.Actor, app root.AppName, steps []ScaleStep) (map[root.MachineID]string, error) {
	nonces := map[root.MachineID]string{}
	for _, step := range steps {
		if !step.Remove {
			continue
		}
		l, err := s.machines.Acquire(ctx, a, app, step.Machine, "", "scale count", scaleLease)
		if err != nil {
			for id, nonce := range nonces {
				if e := s.machines.Release(context.WithoutCancel(ctx), a, app, id, nonce); e != nil {
					s.Log.Warn("lease was not given back", "machine", id, "err", e)
				}
			}
			return nil, err
		}
		nonces[step.Machine] = l.Nonce
	}
	return nonces, nil
}

// retire takes a machine out of the proxy's choice, lets it finish what is in
// flight, stops it and destroys it.
func (s *Scale) retire(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	ctx = context.WithoutCancel(ctx) // half removed is worse than removed
	m, err := s.machine(a, auth.MachineDestroy, app, id)
	if root.IsKind(err, root.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Status.State.Running() {
		if err := s.machines.Cordon(ctx, a, app, id, nonce, true); err != nil {
			return err
		}
		if s.Drain != nil {
			drain, cancel := context.WithTimeout(ctx, drainPatience)
			if err := s.Drain(drain, m); err != nil {
				s.Log.Warn("requests were in flight to a machine that was scaled away", "machine", id, "err", err)
			}
			cancel()
		}
		if err := s.machines.Stop(ctx, a, app, id, nonce, StopRequest{Reason: "scaled down"}); err != nil {
			return err
		}
		_, err := s.machines.Wait(ctx, a, app, id, WaitRequest{States: []string{"stopped", "destroyed"}, Timeout: min(MaxWait, m.Spec.Config.Stop.Timeout+drainPatience)})
		if err != nil && !root.IsKind(err, root.Timeout) { // then it is killed
			return err
		}
	}
	err = s.machines.Destroy(ctx, a, app, id, nonce, true)
	if root.IsKind(err, root.NotFound) {
		return nil
	}
	return err
}

// add makes a machine like the group's first one, or, where there is none, as
// the release has it.
func (s *Scale) add(ctx context.Context, a auth.Actor, app *root.App, r *root.Release, step ScaleStep, guest *root.Guest) (root.MachineID, error) {
	c, source, image, err := s.template(app.Name, r, step.Group, guest)
	if err != nil {
		return "", err
	}
	a.Origin = root.OriginUser
	m, err := s.machines.Create(ctx, a, app.Name, CreateMachine{
		Region: string(step.Region), Config: c, Source: source,
		Release: &Pinned{Image: image, Release: r.Version, Secrets: r.Secrets},
	})
	if err != nil {
		return "", err
	}
	return m.ID, nil
}

func (s *Scale) template(app root.AppName, r *root.Release, name string, guest *root.Guest) (root.Config, []byte, root.Image, error) {
	machines := s.managed(app)
	for _, m := range machines {
		if groupOf(m) == name {
			c := m.Spec.Config.Clone()
			delete(c.Env, "FLY_STANDBY_FOR")
			return c, slices.Clone(m.Spec.Source), m.Spec.Image, nil
		}
	}
	g := group(r, name)
	if g == nil {
		return root.Config{}, nil, root.Image{}, root.Errorf(root.Conflict, "the last machine of process group %s has gone, and the release has no such group: deploy the app", name)
	}
	c := g.Config.Clone()
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	maps.Copy(c.Metadata, map[string]string{
		root.MetadataPlatform: root.PlatformManaged, root.MetadataProcessGroup: g.Name,
		root.MetadataReleaseID: string(r.ID), root.MetadataReleaseVersion: fmt.Sprint(r.Version),
	})
	if c.Env == nil {
		c.Env = map[string]string{}
	}
	c.Env["FLY_PROCESS_GROUP"] = g.Name
	if g.Region != "" {
		c.Env["PRIMARY_REGION"] = string(g.Region)
	}
	c.Image = r.Image.Ref()
	switch {
	case g.Sized:
	case guest != nil:
		c.Guest = *guest
	case len(machines) > 0:
		c.Guest = machines[0].Spec.Config.Guest
	}
	return c, slices.Clone(g.Source), r.Image, nil
}
