package control

import (
	"context"
	"slices"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/rollout"
)

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
		if m.Group() != root.GroupReleaseCommand && m.Group() != root.GroupTest {
			out.Foreign = append(out.Foreign, m)
		}
	}
	return out, nil
}
