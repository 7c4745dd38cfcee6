package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/proxy/route"
)

// Refusals: why no machine can take a request, in the words that its client gets.

// crowded is the answer when no more requests may wait.
func (p *Proxy) crowded(x *exchange) *failure {
	return failf(http.StatusServiceUnavailable, "PR04", "too many requests are waiting for a machine of app %s", x.app).
		hint("Try again in a few seconds; if this lasts, raise the hard limit, add machines, or make them start faster.").retry()
}

// noCandidate says why nothing can take the request.
func (p *Proxy) noCandidate(x *exchange, table *route.Table, targets []route.Target, problem error) *failure {
	if x.last != nil {
		return x.last
	}
	if x.want.Only {
		if m := p.o.Catalog.Snapshot().Machine(x.want.Instance); m == nil || m.App != x.app {
			return failf(http.StatusBadGateway, "PR02", "app %s has no machine %s", x.app, x.want.Instance).
				hint("List its machines with: roost machine list -a %s", x.app)
		}
	}
	switch {
	case len(table.Machines) == 0:
		return failf(http.StatusServiceUnavailable, "PR03", "app %s has no machines yet", x.app).
			hint("Start one with: roost machine run IMAGE -a %s --port %d:8080/tcp:http", x.app, x.port).retry()
	case len(targets) == 0 && len(table.Port(x.port)) > 0:
		return failf(http.StatusServiceUnavailable, "PR03", "all machines of app %s with port %d are kept for the requests of its serverless routes, and this is none", x.app, x.port).
			hint("Scale up a process group that takes ordinary requests: roost scale count 1 -a %s", x.app).retry()
	case len(targets) == 0:
		return failf(http.StatusServiceUnavailable, "PR03", "no machine of app %s offers a service on port %d (they offer %s)", x.app, x.port, portList(table.Ports())).
			hint("Add the port to the services of its machines.")
	case x.wish != nil && x.wish.Elsewhere && x.src != nil && x.app == x.src.machine.App && len(x.excluded) == 1:
		return failf(http.StatusServiceUnavailable, "PR03", "machine %s wants the request to be answered elsewhere, but no other machine of app %s can take it", x.src.machine.ID, x.app).
			hint("Start a second machine, or one with autostart, that answers what this one does not.").retry()
	case problem != nil:
		if u, ok := errors.AsType[*unhealthy](problem); ok {
			return u.failure()
		}
		code, status := "PR03", http.StatusServiceUnavailable
		if root.KindOf(problem) == root.Unavailable && strings.Contains(problem.Error(), "listens on") {
			code, status = "PC01", http.StatusBadGateway
		}
		return failf(status, code, "%s", root.MessageOf(problem)).hint("See its log with: roost logs -a %s", x.app)
	case x.want.Only:
		m := p.o.Catalog.Snapshot().Machine(x.want.Instance)
		return failf(http.StatusServiceUnavailable, "PM08", "machine %s cannot take the request: it is %s", m.ID, p.condition(m)).
			hint("Start it with: roost machine start %s -a %s", m.ID, x.app)
	case x.want.Strict:
		return failf(http.StatusServiceUnavailable, "PR03", "app %s has no machine that can answer in the regions asked for (%s)", x.app, regionList(x.want.Regions))
	}
	states := make([]string, 0, len(targets))
	for _, t := range targets {
		if s := p.condition(t.Machine); !slices.Contains(states, s) {
			states = append(states, s)
		}
	}
	return failf(http.StatusServiceUnavailable, "PR03", "no machine of app %s can answer: its %d with port %d are %s", x.app, len(targets), x.port, strings.Join(states, ", ")).
		hint("A machine that is stopped wakes for a request only with autostart; start one with: roost machine start -a %s", x.app).retry()
}

// condition is a machine's state in words.
func (p *Proxy) condition(m *root.Machine) string {
	switch {
	case m.Spec.Destroy != nil:
		return "being destroyed"
	case m.Spec.Cordoned:
		return "cordoned"
	}
	return string(p.o.Live.State(m))
}

func portList(ports []int) string {
	if len(ports) == 0 {
		return "none"
	}
	slices.Sort(ports)
	var names []string
	for _, p := range slices.Compact(ports) {
		names = append(names, strconv.Itoa(p))
	}
	return strings.Join(names, ", ")
}

func regionList(regions []root.Region) string {
	var names []string
	for _, r := range regions {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// wakeFailure says why a machine could not be woken.
func wakeFailure(m *root.Machine, err error) *failure {
	code, status := "PM02", http.StatusServiceUnavailable
	switch root.KindOf(err) {
	case root.Timeout:
		code = "PM03"
	case root.Conflict:
		code = "PM01"
	case root.Precondition, root.NotFound:
		code = "PM08"
	}
	return failf(status, code, "machine %s could not be started: %s", m.ID, root.MessageOf(err)).
		hint("See its log with: roost logs -a %s", m.App).retry().cause(err)
}

// overdue says what a held request waited for.
func (p *Proxy) overdue(x *exchange, err error) *failure {
	if !errors.Is(err, errHold) {
		return failf(statusClientClosed, "", "the client went away").cause(err)
	}
	waited := time.Since(x.start).Round(100 * time.Millisecond)
	m := x.waitingFor.Machine
	if m == nil {
		if x.want.Only {
			return failf(http.StatusServiceUnavailable, "PR03", "machine %s had no room for the request within %s", x.want.Instance, waited).retry()
		}
		return failf(http.StatusServiceUnavailable, "PR03", "all machines of app %s are at their hard limit and none became free within %s", x.app, waited).
			hint("Raise the hard limit or add machines.").retry()
	}
	state := p.o.Live.State(m)
	if state != root.StateStarted {
		f := failf(http.StatusServiceUnavailable, "PM03", "machine %s did not come up within %s: it is %s", m.ID, waited, state)
		if e := p.o.Live.Ended(m); e != "" {
			f.Message += "; before, it " + e
		}
		return f.hint("See its log with: roost logs -a %s", m.App).retry()
	}
	port := x.waitingFor.Service.InternalPort
	st := p.o.Health.Status(m.Spec.Instance, port)
	if gate := p.gate(x.waitingFor); gate.State == health.Shut || gate.State != health.Open && st.Ready {
		f := (&unhealthy{m, gate}).failure()
		f.Message += fmt.Sprintf(" (waited %s)", waited)
		return f
	}
	text := fmt.Sprintf("machine %s did not answer on port %d within %s", m.ID, port, waited)
	if st.Listens != nil {
		text += ": " + health.Explain(m.ID, port, st.Listens)
	}
	if e := p.o.Live.Ended(m); e != "" {
		text += "; before, it " + e
	}
	return failf(http.StatusBadGateway, "PM05", "%s", text).hint("See its log with: roost logs -a %s", m.App).retry()
}

// unhealthy says that a machine does not pass a check.
type unhealthy struct {
	machine *root.Machine
	gate    health.Gate
}

func (u *unhealthy) Error() string { return u.failure().Message }

// failure is the answer to a request that only this machine could have taken.
func (u *unhealthy) failure() *failure {
	said, hint, _ := strings.Cut(u.gate.Output, "\n")
	text := fmt.Sprintf("machine %s has not passed its check %s yet", u.machine.ID, u.gate.Check)
	if u.gate.State == health.Shut {
		text = fmt.Sprintf("machine %s fails its check %s", u.machine.ID, u.gate.Check)
	}
	if said != "" {
		text += ": " + said
	}
	if hint == "" {
		hint = "See its log with: roost logs -a " + string(u.machine.App)
	}
	return failf(http.StatusServiceUnavailable, "PR01", "%s", text).hint("%s", hint).retry()
}
