package health

import (
	"slices"
	"time"

	root "github.com/roost-run/roost"
)

// Gate says whether an instance may get a service's traffic.
type Gate struct {
	State  GateState
	Check  string    // the one that keeps it shut
	Output string    // what that said last
	Since  time.Time // since when it is known to fail; zero when it was not made yet
}

// GateState is the state of a Gate.
type GateState uint8

// The states of a Gate.
const (
	Open    GateState = iota // passing, or there is no such check
	Unknown                  // a check has no result yet
	Shut                     // a check fails
)

// Gate says whether a machine's instance may get traffic of the service with
// that index.
func (c *Checker) Gate(m *root.Machine, service int) Gate {
	config := &m.Spec.Config
	if len(config.Services[service].Checks) == 0 && len(config.Checks) == 0 {
		return Gate{}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if s := c.sets[m.Spec.Instance]; s != nil {
		g := Gate{}
		for _, k := range s.checks {
			if !k.Gates(service) {
				continue
			}
			switch {
			case k.status == "" && g.State != Shut:
				g = Gate{State: Unknown, Check: k.Name, Output: k.last.output()}
			case k.status == root.CheckCritical && g.State != Shut:
				g = Gate{State: Shut, Check: k.Name, Output: k.last.output(), Since: later(k.changed, s.since)}
			}
		}
		return g
	}
	// The edge has begun anew and the machine sleeps: what is recorded holds.
	recorded := c.o.Recorded
	if recorded == nil {
		recorded = InStatus
	}
	results := recorded(m)
	g := Gate{}
	for _, k := range config.NamedChecks() {
		if !k.Gates(service) {
			continue
		}
		r := root.CheckResult{}
		if i := slices.IndexFunc(results, func(r root.CheckResult) bool { return r.Name == k.Name }); i >= 0 {
			r = results[i]
		}
		switch {
		case r.Status == "" && g.State != Shut:
			g = Gate{State: Unknown, Check: k.Name}
		case r.Status == root.CheckCritical && g.State != Shut:
			g = Gate{State: Shut, Check: k.Name, Output: r.Output, Since: time.Now()}
		}
	}
	return g
}

// InStatus are the results that a machine's record has of its version.
func InStatus(m *root.Machine) []root.CheckResult {
	if m.Status.Instance != m.Spec.Instance {
		return nil
	}
	return m.Status.Checks
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
