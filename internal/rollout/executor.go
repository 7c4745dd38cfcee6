package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
)

// Cluster acts on machines. Its errors are for people: they say what was
// waited for, for how long, and the likely cause.
type Cluster interface {
	// Machines returns all machines of the app, as of now: what was written
	// before the call is in it.
	Machines(ctx context.Context, app root.AppName) ([]*root.Machine, error)
	// Create makes a machine and returns it when it runs (or, without launch,
	// rests); after an error nothing of it is left.
	Create(ctx context.Context, r *root.Release, t Target, n NewMachine) (*root.Machine, error)
	// Update brings m to t. With services the old version serves until the new
	// one is ready, and after an error it serves on. When work ends, that is not
	// waited for any longer.
	Update(ctx, work context.Context, r *root.Release, m *root.Machine, t Target, launch bool) error
	// Keep gives m the release's metadata, and nothing else.
	Keep(ctx context.Context, r *root.Release, m *root.Machine, t Target) error
	// Ready returns when the machine is started, listens and passes its checks.
	Ready(ctx context.Context, r *root.Release, id root.MachineID, smoke bool, tell Tell) error
	// RunChecks runs the machine checks of the machine's group against it, unless
	// this version passed them before it took the place of the one before.
	RunChecks(ctx context.Context, r *root.Release, id root.MachineID, tell Tell) error
	Cordon(ctx context.Context, app root.AppName, id root.MachineID, on bool) error
	// Retire waits until nothing is in flight to the machine, stops it and
	// destroys it; one that is gone is success.
	Retire(ctx context.Context, app root.AppName, id root.MachineID) error
	// Destroy removes the machine at once; one that is gone is success.
	Destroy(ctx context.Context, app root.AppName, id root.MachineID) error
	// Restore brings a machine back to what it was.
	Restore(ctx context.Context, r *root.Release, was *root.Machine) error
	// Command runs a command of the release in a temporary machine. temporary
	// is that of an attempt that a crash cut short, "" none; made is told the
	// id before the command begins.
	Command(ctx context.Context, r *root.Release, step string, args []string, temporary root.MachineID, made func(root.MachineID) error, tell Tell) error
	// Verify asks the app through its public route, where it has one. notice is
	// what people should know although it answers.
	Verify(ctx context.Context, r *root.Release, tell Tell) (notice string, err error)
}

// NewMachine is what Create needs besides the target.
type NewMachine struct {
	Region    root.Region
	Launch    bool
	Cordoned  bool
	Temporary bool // a canary: without name in the private network
}

// Tell reports what happens. It never blocks for long and cannot fail.
type Tell func(root.ReleaseEvent)

// Memory keeps the journal of one rollout.
type Memory interface {
	Begin(ctx context.Context, app root.AppName, version int) error
	Save(ctx context.Context, j root.Rollout) error
	// Remember keeps what m was; only the first call for a machine counts.
	Remember(ctx context.Context, m *root.Machine) error
	Remembered(ctx context.Context, app root.AppName) (map[root.MachineID]*root.Machine, error)
	// Shift makes the release the one that serves, and saves j; a
	// *CancelledError when somebody asked for the end before it could. It is the
	// point of no return: nobody can ask afterwards.
	Shift(ctx context.Context, r *root.Release, j root.Rollout) error
	// Finish ends the rollout; nothing of the journal is left.
	Finish(ctx context.Context, j root.Rollout, status root.ReleaseStatus, message string) error
	Tell(e root.ReleaseEvent)
}

// CancelledError is the cause of a context that somebody ended on purpose: the
// rollout goes back.
type CancelledError struct{ By string }

func (c *CancelledError) Error() string { return "cancelled by " + c.By }

// Options of an Executor.
type Options struct {
	Cluster Cluster
	Memory  Memory
	// Failpoint, if not nil, is called with the name of each point at which a
	// crash must do no harm; see Failpoints.
	Failpoint func(name string)
	// Pause is between attempts to undo or remove something; 0 is two seconds.
	Pause time.Duration
	Log   *slog.Logger
}

// Failpoints are the names of the points at which tests end the process.
var Failpoints = []string{
	"begin", "command:made", "command:done", "canary:made", "canary:passed", "remembered", "created", "updated", "passed",
	"green:made", "machine_check:started", "uncordoned", "cordoned", "verified", "shifted", "retired", "return:begin", "return:restored", "return:done",
}

const (
	// laneBound is how many process groups are worked on at a time (Fly's).
	laneBound = 16
	// returnTries and returnPause: going back is tried hard, it is the way out
	// of a failure.
	returnTries = 5
	returnPause = 2 * time.Second
	// retryTime is after how long nothing is tried once more.
	retryTime = time.Minute
	// cleanTries bounds the removal of what is no longer needed.
	cleanTries = 3
	// planRounds bounds how often machines that others made meanwhile are
	// brought to the release, too.
	planRounds = 4
)

// Executor carries out one rollout.
type Executor struct {
	o Options
	r *root.Release

	mu sync.Mutex
	j  root.Rollout // guarded by mu
}

// New returns an executor of release r whose journal is j.
func New(o Options, r *root.Release, j root.Rollout) *Executor {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Pause == 0 {
		o.Pause = returnPause
	}
	return &Executor{o: o, r: r, j: j}
}

// Run carries the rollout on to its end and returns its status. When ctx ends
// it stops where it is and returns the cause: another Run goes on. When work,
// which descends from ctx, ends with a *CancelledError, the rollout goes back. Any
// other error is one of the journal, and another Run is to try again.
func (e *Executor) Run(ctx, work context.Context) (root.ReleaseStatus, string, error) {
	var err error
	if !e.j.Shifted && !e.j.Returning {
		err = e.forward(ctx, work)
		if ctx.Err() != nil {
			return "", "", context.Cause(ctx)
		}
		if e.broken(err) {
			return "", "", err
		}
		if err != nil {
			if err := e.turn(ctx, err, work); err != nil {
				return "", "", err
			}
		}
	}
	if e.j.Returning {
		return e.back(ctx)
	}
	return e.clean(ctx)
}

// journalError is a failure to keep the journal: the rollout must not go on,
// and not back, without it.
type journalError struct{ err error }

func (e *journalError) Error() string { return "keep the rollout's journal: " + e.err.Error() }
func (e *journalError) Unwrap() error { return e.err }

func (e *Executor) broken(err error) bool {
	_, ok := errors.AsType[*journalError](err)
	return ok
}

// save changes the journal and stores it.
func (e *Executor) save(ctx context.Context, change func(*root.Rollout)) error {
	e.mu.Lock()
	defer e.mu.Unlock() // one write after the other: the last one stored is the newest
	next := e.j
	next.Done, next.Passed = slices.Clone(e.j.Done), slices.Clone(e.j.Passed)
	change(&next)
	// What has happened is written down even if the rollout is being cancelled.
	if err := e.o.Memory.Save(context.WithoutCancel(ctx), next); err != nil {
		return &journalError{err}
	}
	e.j = next
	return nil
}

func (e *Executor) journal() root.Rollout {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.j
}

func (e *Executor) point(name string) {
	if e.o.Failpoint != nil {
		e.o.Failpoint(name)
	}
}

func (e *Executor) tell(ev root.ReleaseEvent) { e.o.Memory.Tell(ev) }

func (e *Executor) say(step, group string, m root.MachineID, format string, args ...any) {
	e.tell(root.ReleaseEvent{Step: step, Group: group, Machine: m, Message: fmt.Sprintf(format, args...)})
}

// forward does everything up to the shift. What changes a machine runs under
// ctx: it goes on without its caller, so it is waited for, also when work ends.
func (e *Executor) forward(ctx, work context.Context) error {
	if err := e.o.Memory.Begin(ctx, e.r.App, e.r.Version); err != nil {
		return &journalError{err}
	}
	e.point("begin")
	if err := e.commands(work); err != nil {
		return err
	}
	if err := e.machines(ctx, work); err != nil {
		return err
	}
	notice := ""
	if !e.r.Deploy.Detach {
		var err error
		if notice, err = e.o.Cluster.Verify(work, e.r, e.tell); err != nil {
			e.tell(root.ReleaseEvent{Step: root.StepVerify, Failed: true, Message: root.MessageOf(err)})
			return err
		}
	}
	if notice != "" {
		e.tell(root.ReleaseEvent{Step: root.StepNotice, Warning: true, Message: notice})
	}
	e.point("verified")
	if work.Err() != nil {
		return context.Cause(work)
	}
	e.mu.Lock()
	next := e.j
	next.Shifted = true
	e.mu.Unlock()
	if err := e.o.Memory.Shift(ctx, e.r, next); err != nil {
		if cancelled, ok := errors.AsType[*CancelledError](err); ok { // just before it
			return cancelled
		}
		return &journalError{err}
	}
	e.mu.Lock()
	e.j = next
	e.mu.Unlock()
	e.point("shifted")
	return nil
}

// machines brings the machines to the release. Others may make and destroy some
// meanwhile (scaling, the Machines API): it looks again until nothing is left.
func (e *Executor) machines(ctx, work context.Context) error {
	for round := range planRounds {
		machines, err := e.o.Cluster.Machines(ctx, e.r.App)
		if err != nil {
			return err
		}
		plan, err := Make(e.r, machines, e.journal())
		if err != nil {
			return err
		}
		if round > 0 && len(plan.Canaries)+len(plan.Creates)+len(plan.Updates)+len(plan.Greens) == 0 {
			return nil
		}
		for _, s := range plan.Canaries {
			if err := e.canary(ctx, work, s); err != nil {
				return err
			}
		}
		if err := e.lanes(ctx, work, slices.Concat(plan.Creates, plan.Updates)); err != nil {
			return err
		}
		if len(plan.Blues) > 0 {
			if err := e.bluegreen(ctx, work, plan); err != nil {
				return err
			}
		}
	}
	return nil
}

// commands runs the release and the seed command, each once.
func (e *Executor) commands(ctx context.Context) error {
	for _, c := range []struct {
		step string
		args []string
	}{{root.StepReleaseCommand, e.r.Deploy.ReleaseCommand}, {root.StepSeedCommand, e.r.Deploy.SeedCommand}} {
		j := e.journal()
		if len(c.args) == 0 || slices.Contains(j.Done, c.step) {
			continue
		}
		made := func(id root.MachineID) error {
			err := e.save(ctx, func(j *root.Rollout) { j.Temporary = id })
			e.point("command:made")
			return err
		}
		if err := e.o.Cluster.Command(ctx, e.r, c.step, c.args, j.Temporary, made, e.tell); err != nil {
			if ctx.Err() == nil && !e.broken(err) {
				e.tell(root.ReleaseEvent{Step: c.step, Failed: true, Message: root.MessageOf(err)})
			}
			return err
		}
		if err := e.done(ctx, c.step); err != nil {
			return err
		}
		e.point("command:done")
	}
	return nil
}

func (e *Executor) done(ctx context.Context, step string) error {
	return e.save(ctx, func(j *root.Rollout) { j.Done, j.Temporary = append(j.Done, step), "" })
}

func (e *Executor) group(name string) *root.Group {
	for i := range e.r.Groups {
		if e.r.Groups[i].Name == name {
			return &e.r.Groups[i]
		}
	}
	return &root.Group{Name: name} // of a restart: its machines keep their config
}

// remove ends a machine that nobody needs. One that serves may have requests,
// which it is given time for.
func (e *Executor) remove(ctx context.Context, m *root.Machine) error {
	if Served(&m.Spec.Config) && !m.Spec.Cordoned && m.Status.State.Running() {
		return e.o.Cluster.Retire(ctx, e.r.App, m.ID)
	}
	return e.o.Cluster.Destroy(ctx, e.r.App, m.ID)
}

// canary tries the release on a machine of its own.
func (e *Executor) canary(ctx, work context.Context, s Step) error {
	if work.Err() != nil {
		return context.Cause(work)
	}
	machines, err := e.o.Cluster.Machines(ctx, e.r.App)
	if err != nil {
		return err
	}
	g := e.group(s.Group)
	t := TargetOf(e.r, g, nil)
	for _, m := range machines {
		if m.Group() != s.Group {
			continue
		}
		if m.Spec.Config.Metadata[root.MetadataCanary] != "" { // of an attempt before a crash
			if err := e.remove(ctx, m); err != nil {
				return err
			}
			continue
		}
		if m.Managed() && !g.Sized { // as large as those that it stands for
			t.Config.Guest = m.Spec.Config.Guest
		}
	}
	t.Config.Metadata[root.MetadataCanary] = "true"
	e.say(root.StepCanary, s.Group, "", "a canary machine tries the release")
	m, err := e.o.Cluster.Create(ctx, e.r, t, NewMachine{Region: s.Region, Launch: true, Temporary: true})
	if err == nil {
		e.point("canary:made")
		if err = e.o.Cluster.Ready(work, e.r, m.ID, e.r.Deploy.Smoke, e.tell); err == nil {
			err = e.o.Cluster.RunChecks(work, e.r, m.ID, e.tell)
		}
		err = errors.Join(err, e.o.Cluster.Retire(ctx, e.r.App, m.ID))
	}
	if err != nil {
		if work.Err() == nil {
			e.tell(root.ReleaseEvent{Step: root.StepCanary, Group: s.Group, Failed: true, Message: root.MessageOf(err)})
		}
		return err
	}
	e.say(root.StepCanary, s.Group, m.ID, "the canary is healthy")
	e.point("canary:passed")
	return e.done(ctx, root.StepCanary+"/"+s.Group)
}

// lanes runs lanes side by side. After the first error no step begins, and
// none waits for its gates any longer.
func (e *Executor) lanes(ctx, work context.Context, lanes []Lane) error {
	g, gates := errgroup.WithContext(work)
	g.SetLimit(laneBound)
	for _, l := range lanes {
		g.Go(func() error { return e.lane(ctx, gates, l) })
	}
	return g.Wait()
}

func (e *Executor) lane(ctx, work context.Context, l Lane) error {
	steps := l.Steps
	if l.Alone && len(steps) > 0 {
		if err := e.step(ctx, work, steps[0]); err != nil {
			return err
		}
		steps = steps[1:]
	}
	g, gates := errgroup.WithContext(work)
	g.SetLimit(max(1, l.Pool))
	for _, s := range steps {
		g.Go(func() error { return e.step(ctx, gates, s) })
	}
	return g.Wait()
}

// step does one step, with its gates.
func (e *Executor) step(ctx, work context.Context, s Step) error {
	if work.Err() != nil {
		return context.Cause(work)
	}
	planned := s.Machine
	err := e.act(ctx, work, &s)
	if err == nil && s.Launch && !e.r.Deploy.Detach && e.r.Deploy.Strategy != root.StrategyImmediate {
		err = e.o.Cluster.Ready(work, e.r, s.Machine, e.r.Deploy.Smoke && s.Action != Keep, e.tell)
		if err == nil && s.Action != Keep {
			err = e.o.Cluster.RunChecks(work, e.r, s.Machine, e.tell)
		}
	}
	kind := root.StepUpdate
	if s.Action == Create || s.Action == Green {
		kind = root.StepCreate
	}
	if err != nil && work.Err() == nil && !e.broken(err) && s.Machine == planned && e.vanished(ctx, planned) {
		e.tell(root.ReleaseEvent{
			Step: kind, Group: s.Group, Machine: planned, Warning: true,
			Message: fmt.Sprintf("machine %s was destroyed meanwhile: the release goes on without it", planned),
		})
		return nil
	}
	if err != nil {
		if work.Err() == nil && !e.broken(err) {
			e.tell(root.ReleaseEvent{Step: kind, Group: s.Group, Machine: s.Machine, Failed: true, Message: root.MessageOf(err)})
		}
		return err
	}
	if err := e.save(ctx, func(j *root.Rollout) { j.Passed = append(j.Passed, s.Machine) }); err != nil {
		return err
	}
	e.point("passed")
	how := "is healthy"
	switch {
	case s.Action == Keep:
		how = "is up to date"
	case !s.Launch:
		how = "is updated and rests"
	case e.r.Deploy.Detach, e.r.Deploy.Strategy == root.StrategyImmediate:
		how = "is updated"
	}
	e.say(kind, s.Group, s.Machine, "machine %s %s", s.Machine, how)
	return nil
}

// act makes the change of a step and fills in the machine it made.
func (e *Executor) act(ctx, work context.Context, s *Step) error {
	g := e.group(s.Group)
	var m *root.Machine
	if s.Action == Update || s.Action == Keep || s.Action == Green {
		var err error
		if m, err = e.find(ctx, s.Machine); err != nil {
			return err
		}
	}
	switch s.Action {
	case Create, Green:
		t, n := TargetOf(e.r, g, m), NewMachine{Region: s.Region, Launch: s.Launch}
		if s.Action == Green {
			t.Config.Metadata[MetadataBlue] = string(m.ID)
			t.Config.Metadata[root.MetadataBlueGreenTag] = strconv.FormatInt(e.r.CreatedAt.Unix(), 10)
			n.Cordoned = true
		}
		e.say(root.StepCreate, s.Group, "", "a machine is created: %s", s.Why)
		made, err := e.o.Cluster.Create(ctx, e.r, t, n)
		if err != nil {
			return err
		}
		s.Machine = made.ID
		if s.Action == Green {
			e.point("green:made")
		}
		e.point("created")
		return nil
	case Update, Keep:
		if err := e.o.Memory.Remember(ctx, m); err != nil {
			return &journalError{err}
		}
		e.point("remembered")
		// A request may have woken it since the plan was made.
		s.Launch = s.Launch || launches(m)
		t := TargetOf(e.r, g, m)
		if s.Action == Keep {
			return e.o.Cluster.Keep(ctx, e.r, m, t)
		}
		e.say(root.StepUpdate, s.Group, s.Machine, "updating machine %s: %s", s.Machine, s.Why)
		err := e.o.Cluster.Update(ctx, work, e.r, m, t, s.Launch)
		e.point("updated")
		return err
	}
	return nil // Check: the gates only
}

func (e *Executor) find(ctx context.Context, id root.MachineID) (*root.Machine, error) {
	machines, err := e.o.Cluster.Machines(ctx, e.r.App)
	if err != nil {
		return nil, err
	}
	for _, m := range machines {
		if m.ID == id && m.Spec.Destroy == nil {
			return m, nil
		}
	}
	return nil, root.Errorf(root.Conflict, "machine %s was destroyed while the release was rolled out", id)
}

// vanished reports whether somebody destroyed a machine that was planned for.
func (e *Executor) vanished(ctx context.Context, id root.MachineID) bool {
	if id == "" {
		return false
	}
	machines, err := e.o.Cluster.Machines(ctx, e.r.App)
	return err == nil && !slices.ContainsFunc(machines, func(m *root.Machine) bool { return m.ID == id && m.Managed() })
}

// bluegreen makes the greens and, when all are healthy, gives them the
// traffic. The blues wait, cordoned, until it is sure that nothing goes back.
func (e *Executor) bluegreen(ctx, work context.Context, plan Plan) error {
	if err := e.lanes(ctx, work, plan.Greens); err != nil {
		return err
	}
	machines, err := e.o.Cluster.Machines(ctx, e.r.App)
	if err != nil {
		return err
	}
	e.say(root.StepShift, "", "", "the new machines take over")
	for _, m := range machines {
		if madeBy(e.r, m) && m.Spec.Cordoned && m.Managed() {
			if err := e.o.Cluster.Cordon(ctx, e.r.App, m.ID, false); err != nil {
				return err
			}
		}
	}
	e.point("uncordoned")
	for _, m := range machines {
		if !slices.Contains(plan.Blues, m.ID) {
			continue
		}
		if err := e.o.Memory.Remember(ctx, m); err != nil {
			return &journalError{err}
		}
		if err := e.o.Cluster.Cordon(ctx, e.r.App, m.ID, true); err != nil && !root.IsKind(err, root.NotFound) {
			return err
		}
	}
	e.point("cordoned")
	return nil
}
