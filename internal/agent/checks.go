package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/orders"
)

// reasonUnhealthy begins the reason of a restart that a check's restart_limit
// asked for.
const reasonUnhealthy = "restart_limit reached: "

// askAgain is between questions to an edge that is away.
const askAgain = 100 * time.Millisecond

// isRestart reports whether a stop with that reason is half of a restart.
func isRestart(reason string) bool {
	return reason == reasonRestart || strings.HasPrefix(reason, reasonUnhealthy)
}

// Report takes what the edge says of the checks of this host's machines. It
// returns when the machines' goroutines have it before them.
func (a *Agent) Report(ctx context.Context, reports []report.Report) error {
	if err := a.waitSynced(ctx); err != nil {
		return err
	}
	for _, r := range reports {
		if m := a.get(r.Machine); m != nil {
			m.ear.add(news{report: &r})
		}
	}
	return nil
}

// checked is what is known of an instance's checks.
type checked struct {
	results []root.CheckResult
	boot    root.Stamp // the start they belong to
	asked   int        // the restarts asked for since then that were heard
}

// heed takes a report.
func (m *machine) heed(r *report.Report) {
	i := m.inst
	switch {
	case i.id() == r.Instance:
	case m.cand != nil && m.cand.id() == r.Instance:
		i = m.cand
	default:
		return
	}
	if r.Boot.Before(i.booted) || r.Boot.Before(i.checks.boot) {
		return // of a start before the current one
	}
	if i.checks.boot.Before(r.Boot) {
		i.checks = checked{boot: r.Boot}
	}
	i.checks.results = r.Checks
	if i != m.inst {
		return
	}
	m.showChecks()
	if r.Restart != "" && r.Asked > i.checks.asked {
		i.checks.asked, m.wantCure = r.Asked, r.Restart
	}
}

// showChecks brings the results into the status.
func (m *machine) showChecks() {
	same := func(a, b root.CheckResult) bool {
		return a.Name == b.Name && a.Status == b.Status && a.Output == b.Output && a.UpdatedAt.Equal(b.UpdatedAt)
	}
	if !slices.EqualFunc(m.st.Checks, m.inst.checks.results, same) {
		m.st.Checks, m.dirty = m.inst.checks.results, true
	}
}

// unchecked: a boot begins, whose checks have no results yet.
func (m *machine) unchecked(e orders.Entry) {
	m.wantCure = ""
	if m.inst.checks.boot.Before(e.Stamp) {
		m.inst.checks = checked{}
		m.st.Checks = nil
	}
}

// cure restarts a machine whose checks fail, where its config asks for that.
func (m *machine) cure(ctx context.Context) error {
	reason := m.wantCure
	m.wantCure = ""
	if reason == "" || m.st.State != root.StateStarted {
		return nil
	}
	m.a.log.Info("machine is restarted", "machine", m.id, "app", m.rec.App, "reason", reason)
	m.a.say(ctx, m.inst, "Restarting machine: "+reason)
	err := m.restartFor(ctx, orders.Stop{Source: orders.SourceHost}, reasonUnhealthy+reason)
	if err != nil {
		return fmt.Errorf("restart of machine %s whose checks fail: %w", m.id, err)
	}
	return nil
}

// gated reports whether a version of c gets traffic only once checks pass.
func gated(c *root.Config) bool {
	return slices.ContainsFunc(c.NamedChecks(), func(k root.NamedCheck) bool { return k.Service >= 0 || k.Readiness })
}

// ask has the edge make a version's checks and sends every answer until they
// pass or ctx ends.
func (a *Agent) ask(ctx context.Context, m *root.Machine, answers chan<- report.Answer) {
	for ctx.Err() == nil {
		answer, err := a.o.Checks(ctx, m)
		if err != nil { // the edge is coming up
			select {
			case <-time.After(askAgain):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case answers <- answer:
		case <-ctx.Done():
		}
		if answer.Passing {
			return
		}
	}
}

// unhealthy says why a version's checks do not pass.
func unhealthy(a report.Answer, within time.Duration) error {
	if len(a.Pending) == 0 {
		return root.Errorf(root.Precondition, "the new version's checks were not made within %s: the proxy does not answer; the old version keeps serving", within)
	}
	var said, hints []string
	for _, k := range a.Pending {
		output, hint, _ := strings.Cut(k.Output, "\n")
		if output == "" {
			output = "no answer yet"
		}
		said = append(said, fmt.Sprintf("%s (%s)", k.Name, output))
		if hint != "" && !slices.Contains(hints, hint) {
			hints = append(hints, hint)
		}
	}
	text := fmt.Sprintf("the new version did not pass its health check %s within %s; the old version keeps serving", strings.Join(said, ", "), within)
	if len(hints) > 0 {
		text += ". " + strings.TrimSuffix(strings.Join(hints, " "), ".")
	}
	return &root.Error{Kind: root.Precondition, Code: root.CodeUnhealthy, Message: text}
}
