package rollout

import (
	"math"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// Action is what a step does.
type Action string

// The actions.
const (
	Create  Action = "create"
	Update  Action = "update"
	Keep    Action = "keep"  // it is what the release says: only its metadata change
	Check   Action = "check" // it has the release, but not passed its gates
	Canary  Action = "canary"
	Green   Action = "green" // a new machine beside Machine, cordoned
	Destroy Action = "destroy"
)

// Step is one thing to do.
type Step struct {
	Action  Action
	Group   string
	Machine root.MachineID // "" with Create and Canary
	Region  root.Region    // of Create, Canary and Green
	Launch  bool           // it ends started, with its gates passed; else it stays stopped
	Why     string         // for people
}

// Lane is steps that wait for each other; lanes run side by side.
type Lane struct {
	Group string
	Steps []Step
	Alone bool // the first step is done before any other
	Pool  int  // how many of the others at a time
	Total int  // steps that the lane had at the beginning of the rollout
}

// Plan is what a rollout does, part after part. A part is nil where nothing is
// to do.
type Plan struct {
	Canaries []Step
	Creates  []Lane
	Updates  []Lane
	// Greens are made in place of updates, and Blues go when they serve.
	Greens []Lane
	Blues  []root.MachineID
	// Gone are machines of groups that the release does not have.
	Gone []Step
	// Foreign are machines that no release manages.
	Foreign []*root.Machine
}

const (
	// DefaultMaxUnavailable and the others are Fly's.
	DefaultMaxUnavailable = 0.33
	DefaultMaxConcurrent  = 8
	// stoppedPool is how many machines that do not run are changed at a time:
	// each costs the disk a root file system.
	stoppedPool = 4
	// maxGreens bounds the machines that a bluegreen makes at a time.
	maxGreens = 8
)

// Make plans what is left of release r's rollout. machines are all of the
// app's. The error, of kind Invalid or Precondition, says why r cannot be
// rolled out like that.
func Make(r *root.Release, machines []*root.Machine, j root.Rollout) (Plan, error) {
	var p Plan
	groups := map[string]*root.Group{}
	have := map[string][]*root.Machine{} // by group: what the rollout found
	made := map[string][]*root.Machine{} // by group: what it made itself
	for i := range r.Groups {
		groups[r.Groups[i].Name] = &r.Groups[i]
	}
	for _, m := range sorted(machines) {
		if !m.Managed() {
			if m.Origin == root.OriginApp || m.Spec.Config.Metadata[root.MetadataPlatform] == "" {
				p.Foreign = append(p.Foreign, m)
			}
			continue
		}
		switch {
		case groups[m.Group()] == nil && !r.Deploy.Restart:
			if wanted(&r.Deploy, m) {
				p.Gone = append(p.Gone, Step{Action: Destroy, Group: m.Group(), Machine: m.ID, Why: "the release has no process group " + name(m.Group())})
			}
		case madeBy(r, m):
			made[m.Group()] = append(made[m.Group()], m)
		default:
			have[m.Group()] = append(have[m.Group()], m)
		}
	}
	first := true
	for _, ms := range have {
		first = first && len(ms) == 0
	}
	strategy := r.Deploy.Strategy
	if strategy == root.StrategyBlueGreen && !first {
		if err := mayBlueGreen(r, have); err != nil {
			return p, err
		}
	} else if strategy == root.StrategyBlueGreen {
		strategy = root.StrategyRolling // nothing to be blue
	}
	for i := range r.Groups {
		g := &r.Groups[i]
		if len(r.Deploy.OnlyGroups) > 0 && !slices.Contains(r.Deploy.OnlyGroups, g.Name) {
			continue
		}
		switch {
		case len(have[g.Name]) == 0:
			p.create(r, g, made[g.Name], j)
		case strategy == root.StrategyBlueGreen:
			p.bluegreen(r, g, have[g.Name], made[g.Name], j)
		default:
			if strategy == root.StrategyCanary && !slices.Contains(j.Done, root.StepCanary+"/"+g.Name) && !r.Deploy.Restart {
				p.Canaries = append(p.Canaries, Step{Action: Canary, Group: g.Name, Region: have[g.Name][0].Region, Launch: true, Why: "tried out before the others are touched"})
			}
			p.update(r, g, have[g.Name], j, strategy)
		}
	}
	if r.Deploy.Restart {
		p.strays(r, groups, have, j)
	}
	return p, nil
}

// sorted is machines in order of their ids.
func sorted(machines []*root.Machine) []*root.Machine {
	return slices.SortedFunc(slices.Values(machines), func(a, b *root.Machine) int { return strings.Compare(string(a.ID), string(b.ID)) })
}

func name(group string) string {
	if group == "" {
		return "without a name"
	}
	return group
}

// madeBy reports whether the rollout of r made the machine.
func madeBy(r *root.Release, m *root.Machine) bool {
	return m.Spec.Release == r.Version && m.Spec.Generation == 1
}

// wanted reports whether the deploy is about the machine.
func wanted(d *root.Deploy, m *root.Machine) bool {
	return (len(d.Regions) == 0 || slices.Contains(d.Regions, m.Region)) &&
		(len(d.OnlyGroups) == 0 || slices.Contains(d.OnlyGroups, m.Group())) &&
		(len(d.OnlyMachines) == 0 || slices.Contains(d.OnlyMachines, m.ID))
}

// Served reports whether the proxy sends requests to machines of this config.
func Served(c *root.Config) bool { return len(c.Services) > 0 }

// create plans the machines of a group that has none.
func (p *Plan) create(r *root.Release, g *root.Group, made []*root.Machine, j root.Rollout) {
	d := &r.Deploy
	if d.UpdateOnly || d.Restart || len(d.OnlyMachines) > 0 {
		return
	}
	want := 1
	if d.Standby && Served(&g.Config) {
		want = 2
	}
	l := Lane{Group: g.Name, Pool: 1, Total: want}
	for _, m := range made {
		if !slices.Contains(j.Passed, m.ID) {
			l.Steps = append(l.Steps, Step{Action: Check, Group: g.Name, Machine: m.ID, Launch: true, Why: "made before the control process restarted"})
		}
	}
	for range want - len(made) {
		l.Steps = append(l.Steps, Step{Action: Create, Group: g.Name, Region: g.Region, Launch: true, Why: "the process group has no machine"})
	}
	if len(l.Steps) > 0 {
		p.Creates = append(p.Creates, l)
	}
}

// update plans updates in place: machines that rest and machines that run side
// by side, in each the first alone.
func (p *Plan) update(r *root.Release, g *root.Group, have []*root.Machine, j root.Rollout, strategy root.Strategy) {
	running, resting := Lane{Group: g.Name, Alone: true}, Lane{Group: g.Name, Alone: true, Pool: stoppedPool}
	for _, m := range have {
		if !wanted(&r.Deploy, m) {
			continue
		}
		l := &resting
		if launches(m) {
			l = &running
		}
		l.Total++
		s, left := step(r, g, m, j)
		if left {
			l.Steps = append(l.Steps, s)
		}
	}
	running.Pool = Unavailable(r.Deploy.MaxUnavailable, running.Total)
	if strategy == root.StrategyImmediate {
		running.Alone, resting.Alone = false, false
		running.Pool, resting.Pool = concurrent(&r.Deploy), concurrent(&r.Deploy)
	}
	for _, l := range []*Lane{&running, &resting} {
		// Somebody was first before.
		l.Alone = l.Alone && len(l.Steps) == l.Total
		if len(l.Steps) > 0 {
			p.Updates = append(p.Updates, *l)
		}
	}
}

// step says what is left to do for one machine.
func step(r *root.Release, g *root.Group, m *root.Machine, j root.Rollout) (s Step, left bool) {
	s = Step{Group: g.Name, Machine: m.ID, Launch: launches(m)}
	if slices.Contains(j.Passed, m.ID) {
		return s, false
	}
	if m.Spec.Release == r.Version {
		s.Action, s.Why, s.Launch = Check, "changed before the control process restarted", m.Spec.Launch
		return s, true
	}
	t := TargetOf(r, g, m)
	s.Action = Update
	switch {
	case r.Deploy.Restart:
		s.Why = "new secrets"
		if m.Spec.Secrets == r.Secrets {
			s.Why = "restart"
		}
	case m.Status.State != root.StateFailed && t.Same(m):
		s.Action, s.Why = Keep, "nothing of it changes"
	case m.Spec.Image.Digest != t.Image.Digest:
		s.Why = "new image"
	default:
		s.Why = "new config"
	}
	return s, true
}

// Launches reports whether m is up, or meant to be: a change starts it again.
func Launches(m *root.Machine) bool { return launches(m) }

// launches says whether an update starts the machine ("fly.toml", section 8.2):
// one that rests is changed and rests on.
func launches(m *root.Machine) bool {
	switch m.Status.State {
	case root.StateStarted, root.StateStarting, root.StateFailed, root.StateRestarting, root.StateReplacing, root.StateUpdating:
		return true
	}
	return false
}

// Unavailable is how many of n machines may be worked on at a time.
func Unavailable(limit float64, n int) int {
	if limit <= 0 {
		limit = DefaultMaxUnavailable
	}
	if limit >= 1 {
		return int(min(math.Floor(limit), math.MaxInt32))
	}
	return max(1, int(math.Ceil(float64(n)*limit)))
}

func concurrent(d *root.Deploy) int {
	if d.MaxConcurrent > 0 {
		return d.MaxConcurrent
	}
	return DefaultMaxConcurrent
}

// mayBlueGreen checks what bluegreen needs.
func mayBlueGreen(r *root.Release, have map[string][]*root.Machine) error {
	for i := range r.Groups {
		if hasChecks(&r.Groups[i].Config) {
			return nil
		}
	}
	for _, ms := range have {
		for _, m := range ms {
			if r.Deploy.Restart && hasChecks(&m.Spec.Config) {
				return nil
			}
		}
	}
	return root.Errorf(root.Invalid, "deploy.strategy: bluegreen needs a health check to know when the new machines may serve: add one, for example [[http_service.checks]], or use rolling")
}

func hasChecks(c *root.Config) bool {
	return len(c.Checks) > 0 || slices.ContainsFunc(c.Services, func(s root.Service) bool { return len(s.Checks) > 0 })
}

// bluegreen plans a new machine beside each of the group's.
func (p *Plan) bluegreen(r *root.Release, g *root.Group, have, made []*root.Machine, j root.Rollout) {
	l := Lane{Group: g.Name, Total: len(have)}
	l.Pool = max(1, min((len(have)+2)/3, maxGreens))
	if n := r.Deploy.MaxConcurrent; n > 0 {
		l.Pool = n
	}
	// A green says which blue it is for.
	greenOf := map[root.MachineID]*root.Machine{}
	for _, m := range made {
		greenOf[root.MachineID(m.Spec.Config.Metadata[MetadataBlue])] = m
	}
	awake := 0
	for _, m := range have {
		if wanted(&r.Deploy, m) && launches(m) {
			awake++
		}
	}
	for _, m := range have {
		if !wanted(&r.Deploy, m) {
			continue
		}
		p.Blues = append(p.Blues, m.ID)
		// With everything asleep one green has to show that it works.
		launch := launches(m) || awake == 0 && hasChecks(&g.Config)
		awake++
		green := greenOf[m.ID]
		switch {
		case green == nil:
			l.Steps = append(l.Steps, Step{Action: Green, Group: g.Name, Machine: m.ID, Region: m.Region, Launch: launch, Why: "takes the place of machine " + string(m.ID)})
		case !slices.Contains(j.Passed, green.ID):
			l.Steps = append(l.Steps, Step{Action: Check, Group: g.Name, Machine: green.ID, Launch: green.Spec.Launch, Why: "made before the control process restarted"})
		}
	}
	if len(l.Steps) > 0 {
		p.Greens = append(p.Greens, l)
	}
}

// MetadataBlue is the key under which a green machine names the one whose
// place it takes.
const MetadataBlue = "roost_blue"

// strays plans the restart of managed machines whose group the release does
// not have: they keep their config, so that needs none.
func (p *Plan) strays(r *root.Release, groups map[string]*root.Group, have map[string][]*root.Machine, j root.Rollout) {
	var names []string
	for group := range have {
		if groups[group] == nil {
			names = append(names, group)
		}
	}
	slices.Sort(names)
	for _, group := range names {
		p.update(r, &root.Group{Name: group}, have[group], j, root.StrategyRolling)
	}
}
