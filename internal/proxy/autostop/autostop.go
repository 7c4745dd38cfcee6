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
}

// timer is the next look at one instance.
type timer struct {
	at        time.Time
	instance  root.InstanceID
	machine   root.MachineID
	suspended time.Time // when it was suspended; zero: it runs
	unknown   int
	index     int // in the heap, -1 outside
}

// New returns a Loop that tracks nothing.
func New(o Options) *Loop {
	return &Loop{o: o, kick: make(chan struct{}, 1), tracked: make(map[root.InstanceID]*timer)}
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
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		t, next := l.due(time.Now())
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
		return // another version; this one is on its way out
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
	c := l.o.Loads.Unit(t.instance).Counts()
	if c.InFlight > 0 || c.Waiting > 0 {
		l.again(t, now.Add(p.After)) // not sooner than that
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
	reason := fmt.Sprintf("App %s has excess capacity, autostopping machine %s. %d out of %d machines left running (region=%s, process group=%s)",
		m.App, m.ID, running-1, running, m.Region, groupName(m))
	l.act(ctx, t, m, p, reason)
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

// group counts the machines that m shares its work with: those of its process
// group in its region that may be stopped. Machines that the app made itself
// are a group apart: they are not spare capacity for plain requests.
func (l *Loop) group(m *root.Machine) (running, over int) {
	for _, o := range l.o.Catalog.Snapshot().Machines(m.App) {
		if o.Region != m.Region || o.Group() != m.Group() || o.Origin != m.Origin || l.o.State(o) != root.StateStarted {
			continue
		}
		p := PolicyOf(o)
		if p.Action == root.AutostopOff {
			continue
		}
		running++
		unit := l.o.Loads.Unit(o.Spec.Instance)
		for i := range o.Spec.Config.Services {
			soft := o.Spec.Config.Services[i].Concurrency.Soft
			if soft == 0 {
				soft = root.DefaultSoftLimit
			}
			if n, _ := unit.Load(i); n > soft {
				over++
				break
			}
		}
	}
	return running, over
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
	l.o.Quiet(t.instance)
	ctx, cancel := context.WithTimeoutCause(ctx, actTimeout, root.Errorf(root.Timeout, "no answer within %s", actTimeout))
	defer cancel()
	var err error
	begin := time.Now()
	if p.Action == root.AutostopSuspend {
		err = l.o.Stopper.Suspend(ctx, m, reason)
		switch root.KindOf(err) {
		case root.Precondition, root.Unimplemented:
			if err != nil {
				l.o.Logger.Info("machine cannot be suspended, stopping it", "machine", m.ID, "app", m.App, "err", err)
				err = l.o.Stopper.Stop(ctx, m, reason)
			}
		}
	} else {
		err = l.o.Stopper.Stop(ctx, m, reason)
	}
	if err != nil {
		if !root.IsKind(err, root.Conflict) && ctx.Err() == nil {
			l.o.Logger.Warn("machine not put to sleep", "machine", m.ID, "app", m.App, "err", err)
		}
		l.again(t, time.Now().Add(minRecheck))
		return
	}
	l.o.Logger.Info("machine put to sleep", "machine", m.ID, "app", m.App, "action", p.Action, "reason", reason, "took", time.Since(begin))
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
