package health

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	root "github.com/roost-run/roost"
)

// Times of checks beside those in their configs.
const (
	// Until a check passes for the first time after a start it is made this
	// often, at first the one, then the other, for as long as somebody may wait.
	minFirst = 100 * time.Millisecond
	maxFirst = 500 * time.Millisecond
	// firstFor is how long that goes on, beyond the grace period.
	firstFor = time.Minute
	// firstRetry is when a check that failed after it had passed is made again;
	// the pause doubles up to the interval. One bad answer costs no more than
	// this much.
	firstRetry = 500 * time.Millisecond
	// minPause is between two probes whoever is in a hurry.
	minPause = 20 * time.Millisecond
	// afterThaw leaves a machine that has just been thawed to its request.
	afterThaw = 500 * time.Millisecond
	// jitter spreads probes of machines that started together: a tenth.
	jitter = 10
	// maxProbes bounds probes under way.
	maxProbes = 256
)

// Subject is an instance whose checks are to be made.
type Subject struct {
	Machine *root.Machine
	Boot    root.Stamp // of its start: results belong to that
	Started time.Time  // grace periods count from here
	// Known are results from before the Checker knew the instance.
	Known []root.CheckResult
}

// Results are what an instance's checks say.
type Results struct {
	Machine  root.MachineID
	Instance root.InstanceID
	Boot     root.Stamp
	Checks   []root.CheckResult
	// Restart says why the machine is to be restarted (restart_limit), "" not;
	// Asked counts how often that came up since the start.
	Restart string
	Asked   int
}

// Passing reports whether every check that gates traffic passes.
func (c *Checker) Passing(id root.InstanceID) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := c.sets[id]
	return s != nil && !slices.ContainsFunc(s.checks, func(k *check) bool { return k.gates() && k.status != root.CheckPassing })
}

// CheckerOptions are the options of a Checker.
type CheckerOptions struct {
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	Inspector Inspector // nil: nobody looks why a port is shut
	// Host is what probes of an app send as Host unless the check says so.
	Host func(root.AppName) string
	// Recorded are the results of a machine's version from before the Checker
	// was told to Start with it. Nil: those of its status.
	Recorded func(m *root.Machine) []root.CheckResult
	// Changed is called, without a lock, after a check's status or the cause
	// of its failure changed, and when a machine is to be restarted.
	Changed func(root.MachineID, root.InstanceID)
	// Turned is called when a check begins or ceases to fail; old is "" at the
	// first result. Nil: nobody.
	Turned func(m *root.Machine, c root.NamedCheck, old string, now root.CheckResult)
	Logger *slog.Logger
}

// Checker makes the checks of instances and knows their results. A check that
// waits for its time costs a timer, no goroutine. Use NewChecker and Close;
// safe for concurrent use.
//
// One success is passing, one failure after the grace period is critical:
// users see a failing machine before a third probe does. What keeps that from
// flapping is the other direction: a check that fails is made again after half
// a second, so that requests wait for a moment instead of failing.
type Checker struct {
	o      CheckerOptions
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // of maxProbes

	mu   sync.RWMutex
	sets map[root.InstanceID]*set
}

// set is the checks of one instance. Guarded by Checker.mu.
type set struct {
	subject Subject
	paused  bool
	ctx     context.Context // of the probes since the last pause
	cancel  context.CancelFunc
	since   time.Time // of the start, or the end of the last pause: older results may be out of date
	hurried time.Time // when somebody last waited for it
	checks  []*check
	restart string
	asked   int
}

// check is one check of a set. Guarded by Checker.mu, but for probe.
type check struct {
	root.NamedCheck
	probe *prober

	status   string
	last     outcome
	changed  time.Time // of status
	passed   bool      // at least once since the start
	failures int       // in a row, as restart_limit counts: one an interval
	counted  time.Time // the last of them
	retries  int       // probes in a row that failed after one that passed
	probed   time.Time // when the last probe began
	running  bool
	timer    *time.Timer
}

func (k *check) gates() bool { return k.Service >= 0 || k.Readiness }

// NewChecker returns a Checker of nothing.
func NewChecker(o CheckerOptions) *Checker {
	ctx, cancel := context.WithCancel(context.Background())
	return &Checker{o: o, ctx: ctx, cancel: cancel, slots: make(chan struct{}, maxProbes), sets: make(map[root.InstanceID]*set)}
}

// Close ends all probing and waits for it.
func (c *Checker) Close() {
	c.mu.Lock()
	c.cancel()
	for _, s := range c.sets {
		s.stop()
	}
	c.mu.Unlock()
	c.wg.Wait()
}

// Start begins to make an instance's checks. For the boot that is known already
// it does nothing; another boot begins without results.
func (c *Checker) Start(s Subject) {
	named := s.Machine.Spec.Config.NamedChecks()
	if len(named) == 0 {
		return
	}
	id := s.Machine.Spec.Instance
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	if old := c.sets[id]; old != nil {
		if !old.subject.Boot.Before(s.Boot) {
			return
		}
		old.stop()
	}
	n := &set{subject: s, since: time.Now()}
	n.ctx, n.cancel = context.WithCancel(c.ctx)
	for _, k := range named {
		e := &check{NamedCheck: k, probe: newProbe(k, s.Machine.Spec.Address.IPv4, c.o.Host(s.Machine.App), c.o.Dial)}
		for _, r := range s.Known {
			if r.Name == k.Name {
				e.status, e.changed, e.last = r.Status, r.UpdatedAt, outcome{passed: r.Status == root.CheckPassing, headline: r.Output}
				e.passed = e.last.passed
			}
		}
		n.checks = append(n.checks, e)
	}
	c.sets[id] = n
	for _, e := range n.checks {
		first := time.Duration(0)
		if e.status == root.CheckPassing { // many machines may be taken over at once
			first = rand.N(time.Second)
		}
		c.schedule(n, e, first)
	}
}

// Pause ends probing of an instance that stands still; its results hold.
func (c *Checker) Pause(id root.InstanceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sets[id]; s != nil && !s.paused {
		s.paused = true
		s.stop()
	}
}

// Resume goes on after a Pause. It reports whether the instance is known.
func (c *Checker) Resume(id root.InstanceID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[id]
	if s == nil {
		return false
	}
	c.resume(s)
	return true
}

func (c *Checker) resume(s *set) {
	if !s.paused || c.ctx.Err() != nil {
		return
	}
	s.paused, s.since = false, time.Now()
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	for _, k := range s.checks {
		k.running = false // what ran was cut off
		delay := time.Duration(0)
		if k.status == root.CheckPassing {
			delay = max(afterThaw, k.Interval-time.Since(k.probed))
			delay = min(delay, spread(k.Interval))
		}
		c.schedule(s, k, delay)
	}
}

// Forget ends probing of an instance and drops what was known: its processes
// are gone.
func (c *Checker) Forget(id root.InstanceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sets[id]; s != nil {
		s.stop()
		delete(c.sets, id)
	}
}

// Hurry says that somebody waits for an instance to pass its checks: those
// that do not are made soon, and often for a while.
func (c *Checker) Hurry(id root.InstanceID) { c.hasten(id, nil, maxFirst) }

// Opened says that ports of an instance accept connections now: checks of them
// that have not passed are made at once.
func (c *Checker) Opened(id root.InstanceID, open func(port int) bool) {
	c.hasten(id, open, minPause)
}

// hasten has the checks of some ports made within pause; of all with nil,
// which means that somebody waits.
func (c *Checker) hasten(id root.InstanceID, open func(port int) bool, pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[id]
	if s == nil || s.paused {
		return
	}
	now := time.Now()
	was := s.hurried
	if open == nil {
		s.hurried = now
	}
	for _, k := range s.checks {
		if k.status == root.CheckPassing || k.running || open != nil && !open(k.Port) {
			continue
		}
		if open == nil && now.Sub(was) < hurryFor && k.delay(s, now) <= pause {
			continue // it is in a hurry already
		}
		c.schedule(s, k, max(0, pause-now.Sub(k.probed)))
	}
}

// Results returns what is known of an instance; ok is false when nothing is.
func (c *Checker) Results(id root.InstanceID) (r Results, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := c.sets[id]
	if s == nil {
		return r, false
	}
	m := s.subject.Machine
	r = Results{Machine: m.ID, Instance: id, Boot: s.subject.Boot, Restart: s.restart, Asked: s.asked}
	for _, k := range s.checks {
		if k.status != "" {
			r.Checks = append(r.Checks, root.CheckResult{Name: k.Name, Status: k.status, Output: k.last.output(), UpdatedAt: k.changed})
		}
	}
	return r, true
}

// Pending are the checks of an instance that do not pass, with what they said
// last even where that does not count yet.
func (c *Checker) Pending(id root.InstanceID) []root.CheckResult {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var list []root.CheckResult
	if s := c.sets[id]; s != nil {
		for _, k := range s.checks {
			if k.gates() && k.status != root.CheckPassing {
				list = append(list, root.CheckResult{Name: k.Name, Status: k.status, Output: k.last.output(), UpdatedAt: k.changed})
			}
		}
	}
	return list
}

// All yields the instances that are known.
func (c *Checker) All() []root.InstanceID {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ids := make([]root.InstanceID, 0, len(c.sets))
	for id := range c.sets {
		ids = append(ids, id)
	}
	return ids
}

// stop ends the timers and probes of a set.
func (s *set) stop() {
	s.cancel()
	for _, k := range s.checks {
		if k.timer != nil {
			k.timer.Stop()
		}
	}
}

// schedule has a check made after delay; the caller holds mu.
func (c *Checker) schedule(s *set, k *check, delay time.Duration) {
	if k.timer != nil {
		k.timer.Stop()
	}
	ctx := s.ctx
	k.timer = time.AfterFunc(delay, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if ctx.Err() != nil || k.running {
			return
		}
		k.running = true
		c.wg.Go(func() { c.run(ctx, s, k) })
	})
}

// run makes one check.
func (c *Checker) run(ctx context.Context, s *set, k *check) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	began := time.Now()
	o := k.probe.probe(ctx)
	<-c.slots
	if ctx.Err() != nil {
		return // paused or forgotten meanwhile: it says nothing
	}
	c.look(ctx, s, k, &o)
	c.mu.Lock()
	if ctx.Err() != nil {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	k.running, k.probed = false, began
	old := k.status
	changed := k.take(s, o, now)
	if o.passed {
		s.restart = "" // who was not there to hear of it need not act any more
	}
	if k.RestartLimit > 0 && k.failures >= k.RestartLimit {
		s.restart = fmt.Sprintf("check %s failed %d times in a row: %s", k.Name, k.failures, o.headline)
		s.asked++
		k.failures, changed = 0, true
	}
	c.schedule(s, k, max(0, k.delay(s, now)-now.Sub(began))) //nolint:contextcheck // the set's own, which ctx is, unless it began anew
	m := s.subject.Machine
	result := root.CheckResult{Name: k.Name, Status: k.status, Output: k.last.output(), UpdatedAt: k.changed}
	c.mu.Unlock()
	if changed && c.o.Turned != nil && old != result.Status {
		c.o.Turned(m, k.NamedCheck, old, result)
	}
	if changed {
		c.o.Changed(m.ID, m.Spec.Instance)
	}
}

// look finds out why nobody listens, once in a row of failures.
func (c *Checker) look(ctx context.Context, s *set, k *check, o *outcome) {
	c.mu.RLock()
	last, early := k.last, time.Since(s.subject.Started) < k.Grace
	c.mu.RUnlock()
	if !o.refused || early || c.o.Inspector == nil {
		return
	}
	if last.headline == o.headline && last.hint != "" {
		o.hint = last.hint
		return
	}
	ctx, cancel := context.WithTimeout(ctx, inspectEvery)
	defer cancel()
	m := s.subject.Machine
	listens, err := c.o.Inspector.Listens(ctx, m.Spec.Instance)
	if err != nil {
		c.o.Logger.Debug("cannot look into machine", "machine", m.ID, "err", err)
		return
	}
	o.hint = Explain(m.ID, k.Port, listens)
}

// take counts an outcome. It reports whether there is news.
func (k *check) take(s *set, o outcome, now time.Time) (changed bool) {
	was := k.last
	k.last = o
	if o.passed {
		k.passed, k.failures, k.retries = true, 0, 0
		if k.status == root.CheckPassing {
			k.last = was // what it said first is as good
			return false
		}
		k.status, k.changed = root.CheckPassing, now.UTC()
		return true
	}
	k.retries++
	if now.Sub(s.subject.Started) < k.Grace {
		if k.status != "" {
			k.last = was // it does not count
		}
		return false
	}
	// Probes in a hurry are not failures of their own: the limit means intervals.
	if k.failures == 0 || now.Sub(k.counted) >= k.Interval-k.Interval/jitter {
		k.failures++
		k.counted = now
	}
	if k.status != root.CheckCritical {
		k.status, k.changed = root.CheckCritical, now.UTC()
		return true
	}
	return was.headline != o.headline
}

// delay is the time between the begin of the last probe and the next one.
func (k *check) delay(s *set, now time.Time) time.Duration {
	if k.status == root.CheckPassing {
		return spread(k.Interval)
	}
	since := now.Sub(s.subject.Started)
	hurry := now.Sub(s.hurried) < hurryFor
	if !k.passed && (hurry || since < k.Grace+firstFor) {
		return min(max(since/10, minFirst), maxFirst, k.Interval)
	}
	if hurry {
		return maxFirst
	}
	if !k.passed {
		return spread(k.Interval)
	}
	return min(firstRetry<<min(max(k.retries-1, 0), 16), k.Interval)
}

// spread is d, give or take a little.
func spread(d time.Duration) time.Duration {
	return d - d/(2*jitter) + rand.N(d/jitter+1)
}
