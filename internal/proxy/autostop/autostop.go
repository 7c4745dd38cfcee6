// Package autostop puts machines to sleep that nobody needs. Fly's formula
// (docs, "Autostop/autostart Machines") says whether a machine is in excess;
// an exact timer for each machine says when: a set time after its last load
// went. A machine that is suspended for long is stopped.
//
// The loop is one goroutine, Run; it sleeps until the next timer. Requests
// never wait for it: a timer that finds its machine was used since is set anew.
package autostop

import (
	"container/heap"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/load"
)

// Stopper acts on machines. Both calls return when the order was taken; an
// error of kind Conflict means that news crossed it.
type Stopper interface {
	Stop(ctx context.Context, m *root.Machine, reason string) error
	Suspend(ctx context.Context, m *root.Machine, reason string) error
}

// Options of a Loop.
type Options struct {
	Catalog interface{ Snapshot() *root.Snapshot }
	State   func(*root.Machine) root.State
	Loads   *load.Table
	Stopper Stopper
	Primary root.Region // where min_machines_running counts
	// Quiet is called before a machine is put to sleep: close what is open
	// towards it and idle.
	Quiet func(root.InstanceID)
	// Changed is called when requests may come to an instance again.
	Changed func(root.AppName)
	Logger  *slog.Logger
}

const (
	// actTimeout bounds one order; a freeze takes milliseconds.
	actTimeout = 15 * time.Second
	// A machine that is idle but not in excess, or whose record is not there
	// yet, is looked at again after a quarter of its idle time within these.
	minRecheck = time.Second
	maxRecheck = 30 * time.Second
	// drainTimeout is how long a machine in excess may take to finish what it
	// has; it goes on if that does not suffice. Requests for this very machine
	// wait so long.
	drainTimeout = 2 * time.Second
	// maxUnknown is how often a machine may be missing in the catalog: its
	// record may be a moment behind the journal.
	maxUnknown = 30
)

// Loop watches machines. Use New, then Run; the other methods may be called at
// any time, by any goroutine.
type Loop struct {
	o    Options
	kick chan struct{} // capacity 1: a coalescing signal that the heap changed

	mu      sync.Mutex
	timers  timers
	tracked map[root.InstanceID]*timer
	groups  map[groupKey]*timer

	drains sync.WaitGroup
}

// groupKey names machines that share their work: those of a process group in a
// region. Machines that the app made itself are a group apart: they are not
// spare capacity for plain requests.
type groupKey struct {
	app    root.AppName
	region root.Region
	group  string
	origin root.Origin
}

func keyOf(m *root.Machine) groupKey { return groupKey{m.App, m.Region, m.Group(), m.Origin} }

// timer is the next look at one instance.
type timer struct {
	at        time.Time
	instance  root.InstanceID
	machine   root.MachineID
	suspended time.Time // when it was suspended; zero: it runs
	unknown   int
	index     int // in the heap, -1 outside

	// For the timer of a group instead of an instance.
	group   *groupKey
	members map[root.InstanceID]bool // at the last look
}

// New returns a Loop that tracks nothing.
func New(o Options) *Loop {
	return &Loop{o: o, kick: make(chan struct{}, 1), tracked: make(map[root.InstanceID]*timer), groups: make(map[groupKey]*timer)}
}

// Started tracks an instance that runs.
func (l *Loop) Started(id root.MachineID, instance root.InstanceID) {
	l.track(&timer{machine: id, instance: instance, at: time.Now()})
}

// Suspended tracks an instance that is suspended since a moment.
func (l *Loop) Suspended(id root.MachineID, instance root.InstanceID, since time.Time) {
	l.track(&timer{machine: id, instance: instance, suspended: since, at: time.Now()})
}

// Stopped ends tracking.
func (l *Loop) Stopped(instance root.InstanceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(instance)
}

func (l *Loop) track(t *timer) {
	l.mu.Lock()
	l.remove(t.instance)
	l.tracked[t.instance] = t
	heap.Push(&l.timers, t)
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *Loop) remove(instance root.InstanceID) {
	if t := l.tracked[instance]; t != nil {
		if t.index >= 0 {
			heap.Remove(&l.timers, t.index)
		}
		delete(l.tracked, instance)
	}
}

// Run acts until ctx ends; it returns the cause.
func (l *Loop) Run(ctx context.Context) error {
	defer l.drains.Wait()
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		t, next := l.due(time.Now())
		if t != nil && t.group != nil {
			l.lookAtGroup(ctx, t)
			continue
		}
		if t != nil {
			l.look(ctx, t)
			continue
		}
		wait.Reset(next)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.kick:
		case <-wait.C:
		}
	}
}

// due takes the first timer out that is due at now, or says how long the next
// one takes.
func (l *Loop) due(now time.Time) (*timer, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.timers) == 0 {
		return nil, time.Hour
	}
	if d := l.timers[0].at.Sub(now); d > 0 {
		return nil, d
	}
	return heap.Pop(&l.timers).(*timer), 0
}

// again sets t anew, unless its instance was tracked anew or no more meanwhile.
func (l *Loop) again(t *timer, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tracked[t.instance] == t {
		t.at = at
		heap.Push(&l.timers, t)
	}
}

func (l *Loop) look(ctx context.Context, t *timer) {
	now := time.Now()
	m := l.o.Catalog.Snapshot().Machine(t.machine)
	if m == nil {
		if t.unknown++; t.unknown < maxUnknown {
			l.again(t, now.Add(minRecheck))
		}
		return
	}
	if m.Spec.Instance != t.instance {
		// An old version that is on its way out is told of when it has gone; a new
		// one beside it takes its place when it is ready, and nobody tells.
		l.again(t, now.Add(minRecheck))
		return
	}
	p := PolicyOf(m)
	state := l.o.State(m)
	if !t.suspended.IsZero() {
		if state != root.StateSuspended || p.SuspendFor <= 0 {
			return
		}
		if at := t.suspended.Add(p.SuspendFor); at.After(now) {
			l.again(t, at)
			return
		}
		l.act(ctx, t, m, Policy{Action: root.AutostopStop}, fmt.Sprintf("suspended for %s", p.SuspendFor))
		return
	}
	if p.Action == root.AutostopOff || state != root.StateStarted {
		return
	}
	l.watchGroup(keyOf(m), now.Add(p.After))
	c := l.o.Loads.Unit(t.instance).Counts()
	if c.InFlight > 0 || c.Waiting > 0 {
		l.again(t, now.Add(p.After)) // not sooner than that
		return
	}
	if c.BusyUntil.After(now) {
		// Its end may be moved, to now as well, and nobody tells.
		l.again(t, earlier(c.BusyUntil.Add(p.After), now.Add(min(max(p.After, minRecheck), maxRecheck))))
		return
	}
	idle := c.IdleSince
	if c.BusyUntil.After(idle) {
		idle = c.BusyUntil
	}
	if at := idle.Add(p.After); at.After(now) {
		l.again(t, at)
		return
	}
	running, over := l.group(m)
	if !InExcess(running, over, l.floor(m, p)) {
		l.again(t, now.Add(min(max(p.After/4, minRecheck), maxRecheck)))
		return
	}
	l.act(ctx, t, m, p, reasonFor(m, running))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// reasonFor is Fly's log line.
func reasonFor(m *root.Machine, running int) string {
	return fmt.Sprintf("App %s has excess capacity, autostopping machine %s. %d out of %d machines left running (region=%s, process group=%s)",
		m.App, m.ID, running-1, running, m.Region, groupName(m))
}

func groupName(m *root.Machine) string {
	if g := m.Group(); g != "" {
		return g
	}
	return "app"
}

// floor is how many machines of the group have to go on.
func (l *Loop) floor(m *root.Machine, p Policy) int {
	if m.Region != l.o.Primary {
		return 0
	}
	return p.MinRunning
}

// group counts m's group and how many of it are above their soft limit.
func (l *Loop) group(m *root.Machine) (running, over int) {
	for o := range l.members(keyOf(m)) {
		running++
		unit := l.o.Loads.Unit(o.Spec.Instance)
		for i := range o.Spec.Config.Services {
			if n, _ := unit.Load(i); n > softLimit(&o.Spec.Config.Services[i]) {
				over++
				break
			}
		}
	}
	return running, over
}

func softLimit(s *root.Service) int {
	if s.Concurrency.Soft == 0 {
		return root.DefaultSoftLimit
	}
	return s.Concurrency.Soft
}

// members yields the machines of a group that run and may be stopped.
func (l *Loop) members(k groupKey) iter.Seq[*root.Machine] {
	return func(yield func(*root.Machine) bool) {
		for _, o := range l.o.Catalog.Snapshot().Machines(k.app) {
			if keyOf(o) == k && l.o.State(o) == root.StateStarted && PolicyOf(o).Action != root.AutostopOff && !yield(o) {
				return
			}
		}
	}
}

// watchGroup begins to look at a group as a whole, unless that goes on.
func (l *Loop) watchGroup(k groupKey, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.groups[k] == nil {
		t := &timer{at: at, group: &k}
		l.groups[k] = t
		heap.Push(&l.timers, t)
	}
}

// lookAtGroup stops one machine of a group that had more of them than its
// highest load needed, all the idle time long: little work that is spread over
// many machines leaves none of them idle.
func (l *Loop) lookAtGroup(ctx context.Context, t *timer) {
	now := time.Now()
	members := make(map[root.InstanceID]bool)
	changed := false
	running, over, lowest := 0, 0, 0
	var victim *root.Machine
	var p Policy
	for m := range l.members(*t.group) {
		id := m.Spec.Instance
		members[id] = true
		changed = changed || !t.members[id]
		running++
		unit := l.o.Loads.Unit(id)
		peak := unit.Peak()
		soft := softLimit(&m.Spec.Config.Services[0])
		for i := range m.Spec.Config.Services {
			soft = min(soft, softLimit(&m.Spec.Config.Services[i]))
		}
		if peak > soft {
			over++
		}
		mp := PolicyOf(m)
		p.After, p.MinRunning = max(p.After, mp.After), max(p.MinRunning, mp.MinRunning)
		if c := unit.Counts(); c.Upgrades > 0 || c.BusyUntil.After(now) {
			continue
		}
		if victim == nil || peak < lowest {
			victim, lowest = m, peak
		}
	}
	l.mu.Lock()
	if running < 2 {
		delete(l.groups, *t.group) // the next look at a member begins anew
		l.mu.Unlock()
		return
	}
	changed = changed || len(members) != len(t.members)
	t.members, t.at = members, now.Add(p.After)
	heap.Push(&l.timers, t)
	l.mu.Unlock()
	if changed || victim == nil || !InExcess(running, over, l.floor(victim, p)) {
		return
	}
	l.drains.Go(func() { l.drain(ctx, victim, running) })
}

// drain lets a machine finish, then puts it to sleep.
func (l *Loop) drain(ctx context.Context, m *root.Machine, running int) {
	unit := l.o.Loads.Unit(m.Spec.Instance)
	drained, ok := unit.Drain(time.Now())
	if !ok {
		return
	}
	defer func() {
		unit.Unpark()
		l.o.Changed(m.App)
	}()
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-drained:
		_ = l.sleep(ctx, m, PolicyOf(m).Action, reasonFor(m, running)) // logged there; the next look tries again
	case <-timer.C:
	case <-ctx.Done():
	}
}

// InExcess is Fly's formula: of several machines one more than those above
// their soft limit is kept, a single one may go when it has no load. floor of
// them always stay.
func InExcess(running, over, floor int) bool {
	if running <= floor {
		return false
	}
	if running == 1 {
		return over == 0
	}
	return running-(over+1) >= 1
}

// Policy is what a machine's services say together.
type Policy struct {
	Action     root.Autostop
	After      time.Duration
	MinRunning int
	SuspendFor time.Duration // 0: for ever
}

// PolicyOf combines a machine's services: the most restrictive one wins (off,
// then stop, then suspend), and the longest time.
func PolicyOf(m *root.Machine) Policy {
	services := m.Spec.Config.Services
	if len(services) == 0 {
		return Policy{Action: root.AutostopOff}
	}
	p := Policy{Action: root.AutostopSuspend, SuspendFor: services[0].SuspendFor}
	for i := range services {
		s := &services[i]
		switch s.Autostop {
		case root.AutostopSuspend:
		case root.AutostopStop:
			if p.Action == root.AutostopSuspend {
				p.Action = root.AutostopStop
			}
		default:
			p.Action = root.AutostopOff
		}
		after := s.StopAfter
		if after == 0 {
			after = root.DefaultStopAfter
		}
		p.After = max(p.After, after)
		p.MinRunning = max(p.MinRunning, s.MinRunning)
		if s.SuspendFor == 0 || p.SuspendFor == 0 {
			p.SuspendFor = 0
		} else {
			p.SuspendFor = max(p.SuspendFor, s.SuspendFor)
		}
	}
	return p
}

// act puts a machine to sleep, unless load came meanwhile.
func (l *Loop) act(ctx context.Context, t *timer, m *root.Machine, p Policy, reason string) {
	unit := l.o.Loads.Unit(t.instance)
	if !unit.Park(time.Now(), p.After) {
		l.again(t, time.Now().Add(minRecheck))
		return
	}
	defer func() {
		unit.Unpark()
		l.o.Changed(m.App)
	}()
	if err := l.sleep(ctx, m, p.Action, reason); err != nil {
		l.again(t, time.Now().Add(minRecheck))
	}
}

// sleep gives the order and logs what became of it.
func (l *Loop) sleep(ctx context.Context, m *root.Machine, action root.Autostop, reason string) error {
	l.o.Quiet(m.Spec.Instance)
	ctx, cancel := context.WithTimeoutCause(ctx, actTimeout, root.Errorf(root.Timeout, "no answer within %s", actTimeout))
	defer cancel()
	var err error
	begin := time.Now()
	if action == root.AutostopSuspend {
		err = l.o.Stopper.Suspend(ctx, m, reason)
		if root.IsKind(err, root.Precondition) || root.IsKind(err, root.Unimplemented) {
			l.o.Logger.Info("machine cannot be suspended, stopping it", "machine", m.ID, "app", m.App, "err", err)
			action = root.AutostopStop
		}
	}
	if action == root.AutostopStop {
		err = l.o.Stopper.Stop(ctx, m, reason)
	}
	if err != nil {
		if !root.IsKind(err, root.Conflict) && ctx.Err() == nil {
			l.o.Logger.Warn("machine not put to sleep", "machine", m.ID, "app", m.App, "err", err)
		}
		return err
	}
	l.o.Logger.Info("machine put to sleep", "machine", m.ID, "app", m.App, "action", action, "reason", reason, "took", time.Since(begin))
	return nil
}

// timers is a heap by time.
type timers []*timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timers) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timers) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
