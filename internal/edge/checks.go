package edge

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/health/report"
)

// checks has the checks of the machines on this host made, and tells who
// routes, who waits and who records.
type checks struct {
	*health.Checker
	live    *live
	changed func(root.MachineID, root.InstanceID) // for the proxy
	sender  *report.Sender
	log     *slog.Logger

	file    string                                 // results for the next edge
	unsaved chan struct{}                          // capacity 1
	before  map[root.InstanceID][]root.CheckResult // from the edge before this one

	mu      sync.Mutex
	untold  map[root.InstanceID]bool          // to be saved, and then reported
	waiting map[root.InstanceID]chan struct{} // closed at the next change
}

// savePause is between two writes of the results.
const savePause = 50 * time.Millisecond

func (e *edge) newChecks(o health.CheckerOptions) *checks {
	c := &checks{
		live: e.live, changed: e.probed, untold: make(map[root.InstanceID]bool), waiting: make(map[root.InstanceID]chan struct{}),
		log: e.log, file: filepath.Join(e.cfg.Run, "checks.json"), unsaved: make(chan struct{}, 1),
	}
	if data, err := os.ReadFile(c.file); err == nil {
		if err := json.Unmarshal(data, &c.before); err != nil {
			e.log.Warn("results of checks before this edge are lost", "err", err)
		}
	}
	o.Host = func(app root.AppName) string { return string(app) + "." + e.cfg.Domain }
	o.Changed, o.Recorded = c.tell, c.recordedOf
	c.Checker = health.NewChecker(o)
	c.sender = report.New(e.control, c.report)
	return c
}

// recordedOf are the results of a machine from before this edge.
func (c *checks) recordedOf(m *root.Machine) []root.CheckResult {
	if known := c.before[m.Spec.Instance]; known != nil {
		return known
	}
	return health.InStatus(m)
}

func (c *checks) report(id root.InstanceID) (report.Report, bool) {
	r, ok := c.Results(id)
	return report.Report(r), ok
}

// tell passes on that results changed.
func (c *checks) tell(m root.MachineID, id root.InstanceID) {
	c.changed(m, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.untold[id] = true
	select {
	case c.unsaved <- struct{}{}:
	default:
	}
	if w := c.waiting[id]; w != nil {
		close(w)
		delete(c.waiting, id)
	}
}

// began: an instance runs. Resumed ones, and those from before this edge, keep
// the results that are recorded of them.
func (c *checks) began(m *root.Machine, keep bool) {
	in, ok := c.live.get(m.Spec.Instance)
	if !ok {
		return
	}
	s := health.Subject{Machine: m, Boot: in.boot, Started: in.started}
	if keep {
		for _, r := range c.recordedOf(m) {
			if !r.UpdatedAt.Before(in.started) {
				s.Known = append(s.Known, r)
			}
		}
	}
	c.Start(s)
	// What happened meanwhile, somebody else was told of.
	switch in, ok := c.live.get(m.Spec.Instance); {
	case !ok:
		c.Forget(m.Spec.Instance)
	case in.phase.State() != root.StateStarted:
		c.Pause(m.Spec.Instance)
	}
}

// save writes results down for the next edge until ctx ends: what the catalog
// has is older where control was away. Only then they are reported, so that no
// edge knows less than others were told.
func (c *checks) save(ctx context.Context) error {
	for {
		select {
		case <-c.unsaved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.mu.Lock()
		ids := slices.Collect(maps.Keys(c.untold))
		clear(c.untold)
		c.mu.Unlock()
		all := make(map[root.InstanceID][]root.CheckResult)
		for id, results := range c.before { // of those that sleep, or were not taken over yet
			if _, ok := c.live.get(id); ok {
				all[id] = results
			}
		}
		for _, id := range c.All() {
			if r, ok := c.Results(id); ok && len(r.Checks) > 0 {
				all[id] = r.Checks
			}
		}
		data, err := json.Marshal(all)
		if err == nil {
			err = atomicfile.Write(c.file, data, 0o600)
		}
		if err != nil {
			c.log.Warn("results of checks are not kept for another edge", "err", err)
		}
		c.sender.Changed(ids...)
		if err := sleep(ctx, savePause); err != nil {
			return err
		}
	}
}

// recorded: the catalog has news of machines. One that came up before its
// record was here is checked from now on.
func (c *checks) recorded(changes []root.Change) {
	for _, change := range changes {
		m := change.Machine
		if m == nil {
			continue
		}
		if in, ok := c.live.get(m.Spec.Instance); ok && in.phase.State() == root.StateStarted {
			c.began(m, true)
		}
	}
}

// candidate answers an agent about a version that does not serve yet: its
// checks are made from now on, and its ports watched, so that it can take
// requests the moment it does.
func (e *edge) candidate(ctx context.Context, m *root.Machine) (report.Answer, error) {
	if m == nil {
		return report.Answer{}, root.Errorf(root.Invalid, "no machine")
	}
	deadline := time.NewTimer(report.Wait)
	defer deadline.Stop()
	id := m.Spec.Instance
	for {
		news := e.checks.next(id)
		in, ok := e.live.get(id)
		if ok && in.phase.State() == root.StateStarted {
			e.watch(m)               //nolint:contextcheck // probing goes on when the question is answered
			e.checks.began(m, false) //nolint:contextcheck // as above
		}
		r, _ := e.checks.Results(id)
		a := report.Answer{Passing: e.checks.Passing(id), Checks: r.Checks, Pending: e.checks.Pending(id)}
		if a.Passing {
			return a, nil
		}
		if !ok { // it is gone, or not there yet
			defer e.checks.forget(id)
		}
		select {
		case <-news:
		case <-deadline.C:
			return a, nil
		case <-ctx.Done():
			return a, context.Cause(ctx)
		}
	}
}

// next returns what is closed when an instance's results change.
func (c *checks) next(id root.InstanceID) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[id]
	if w == nil {
		w = make(chan struct{})
		c.waiting[id] = w
	}
	return w
}

// forget: an instance's processes are gone.
func (c *checks) forget(id root.InstanceID) {
	c.Forget(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[id]; w != nil {
		close(w)
		delete(c.waiting, id)
	}
}

// resend tells a control process that has begun anew everything.
func (c *checks) resend() { c.sender.Changed(c.All()...) }
