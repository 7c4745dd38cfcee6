package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/proxy/balance"
	"github.com/roost-run/roost/internal/proxy/replay"
	"github.com/roost-run/roost/internal/proxy/route"
)

// exchange is one request of a client and what becomes of it.
type exchange struct {
	id    string
	start time.Time
	r     *http.Request
	port  int // the outside port
	app   root.AppName
	want  balance.Want
	body  *body

	// What was tried.
	excluded   []root.MachineID // not for this request again
	woken      map[root.MachineID]int
	last       *failure // why the last candidate did not do
	attempts   int
	deadline   time.Time // of holding
	held       time.Duration
	waitingFor route.Target // what it last waited for

	// Replays.
	hops         int
	src          *issuer // who replayed last
	wish         *replay.Replay
	failed       string // value of fly-replay-failed
	noReplay     bool   // delivered as a fallback
	path         string // replaced by a transform; "" keeps the client's
	transforms   []replay.Transform
	start0       time.Time      // of the last replay
	preferredOut root.MachineID // preferred machine that was not used
	unrouted     bool           // the app's routes do not count any more

	rec Record
}

// issuer is the machine that answered with a replay.
type issuer struct {
	machine *root.Machine
	state   string
	at      time.Time
}

// slot is a place at a machine; release gives it back, once.
type slot struct {
	route.Target
	b      *backend
	frozen bool
	once   sync.Once
	p      *Proxy
}

func (s *slot) release() {
	s.once.Do(func() {
		s.b.unit.Release(s.Index)
		s.p.waiters.freed(s.Machine.App)
	})
}

func (s *slot) address() string {
	return net.JoinHostPort(s.Machine.Spec.Address.IPv4, strconv.Itoa(s.Service.InternalPort))
}

// unknownFor is how long a machine that a replay names may be unknown: it may
// have been created a moment ago.
const unknownFor = time.Second

// outlook is what try found when it found no slot.
type outlook struct {
	wake   *root.Machine // the flight to join
	target route.Target  // waited for; Machine nil: for any change
	until  time.Time     // look again then at the latest; zero: no limit of its own
}

// acquire gets a slot at a machine for x, waking and waiting as needed.
func (p *Proxy) acquire(ctx context.Context, x *exchange) (s *slot, f *failure) {
	//nolint:contextcheck // probing and wakes serve whoever comes next, too: they do not end with this request
	if s, _, f := p.try(x); s != nil || f != nil {
		return s, f
	}
	if !p.queue.Enter(x.app) {
		return nil, p.crowded(x)
	}
	defer p.queue.Leave(x.app)
	w := p.waiters.join(x.app)
	defer func() { p.waiters.leave(w, s != nil) }()
	begin := time.Now()
	defer func() { x.held += time.Since(begin) }()
	for {
		p.waiters.arm(w)
		s, o, f := p.try(x) //nolint:contextcheck // as above
		if s != nil || f != nil {
			return s, f
		}
		p.waiters.pass(w)
		x.waitingFor = o.target
		var landed <-chan struct{}
		var landing interface{ Err() error }
		if o.wake != nil {
			flight := p.flights.Start(o.wake) //nolint:contextcheck // as above
			landed, landing = flight.Done(), flight
		}
		if err := p.await(ctx, x, o, w.again, landed); err != nil {
			return nil, p.overdue(x, err)
		}
		if landing == nil {
			continue
		}
		select {
		case <-landed:
			if x.woken == nil {
				x.woken = make(map[root.MachineID]int)
			}
			x.woken[o.wake.ID]++
			if err := landing.Err(); err != nil {
				x.last = wakeFailure(o.wake, err)
				x.excluded = append(x.excluded, o.wake.ID)
			}
		default:
		}
	}
}

// crowded is the answer when no more requests may wait.
func (p *Proxy) crowded(x *exchange) *failure {
	return failf(http.StatusServiceUnavailable, "PR04", "too many requests are waiting for a machine of app %s", x.app).
		hint("Try again in a few seconds; if this lasts, raise the hard limit, add machines, or make them start faster.").retry()
}

// errHold is the cause of a wait that took too long.
var errHold = errors.New("held too long")

// await sleeps until something changed.
func (p *Proxy) await(ctx context.Context, x *exchange, o outlook, changed, landed <-chan struct{}) error {
	if m := o.target.Machine; m != nil {
		u := p.o.Loads.Unit(m.Spec.Instance)
		u.Wait(1)
		defer u.Wait(-1)
	}
	until := x.deadline
	if !o.until.IsZero() && o.until.Before(until) {
		until = o.until
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-changed:
	case <-landed:
	case <-timer.C:
		if !time.Now().Before(x.deadline) {
			return errHold
		}
	}
	return nil
}

// recounts is how often a choice among several machines is made anew since
// others came in between.
const recounts = 3

// try looks once: it returns a slot, or what to wait for, or why there is
// nothing to wait for.
func (p *Proxy) try(x *exchange) (*slot, outlook, *failure) {
	for tries := 0; ; tries++ {
		table := p.router.Table(p.o.Catalog.Snapshot(), x.app)
		if table == nil && p.o.Synced != nil && !p.o.Synced() {
			return nil, outlook{until: time.Now().Add(unknownFor)}, nil // it may only not be known yet
		}
		if table == nil {
			return nil, outlook{}, failf(http.StatusNotFound, "PA04", "there is no app named %s here", x.app).
				hint("Check the name, or create it with: roost app create %s", x.app)
		}
		targets := x.targets(table)
		buf := candidates.Get().(*[]balance.Candidate)
		cs := (*buf)[:0]
		var problem error
		found := x.want.Instance == ""
		for _, t := range targets {
			c, why := p.candidate(x, t)
			if why != nil {
				problem = why
			}
			found = found || t.Machine.ID == x.want.Instance
			cs = append(cs, c)
		}
		x.want.Exclude = nil
		if len(x.excluded) > 0 {
			x.want.Exclude = x.excludes
		}
		d := balance.Decide(cs, x.want, rand.IntN)
		var frozen, starts bool
		var seen int
		if d.Index >= 0 {
			seen = cs[d.Index].Load
			frozen = cs[d.Index].Readiness == balance.Frozen
			starts = cs[d.Index].Readiness == balance.Asleep
		}
		*buf = cs
		candidates.Put(buf)

		switch d.Step {
		case balance.Send:
			t := targets[d.Index]
			if d.Wake >= 0 && d.Wake != d.Index {
				p.flights.Start(targets[d.Wake].Machine) // for those who come later
			}
			b := p.backend(t.Machine)
			limit := t.Service.Concurrency.Hard
			if len(targets) > 1 && tries < recounts && (limit == 0 || seen < limit) {
				// Requests that come at once see the same loads: only one of them
				// may go to the least loaded machine for that.
				limit = seen + 1
			}
			if !b.unit.Take(t.Index, limit) {
				continue // somebody was quicker, or it is being put to sleep: look again
			}
			if frozen {
				b.frozen.Store(true)
			}
			if x.want.Instance != "" && t.Machine.ID != x.want.Instance {
				x.preferredOut = x.want.Instance
			}
			return &slot{Target: t, b: b, frozen: frozen, p: p}, outlook{}, nil
		case balance.Wait:
			o := outlook{}
			if d.Index >= 0 {
				o.target = targets[d.Index]
				if starts {
					o.wake = o.target.Machine
				}
			}
			return nil, o, nil
		}
		if !found && (x.want.Only || len(targets) == 0) && time.Since(x.start) < unknownFor {
			return nil, outlook{until: x.start.Add(unknownFor)}, nil
		}
		return nil, outlook{}, p.noCandidate(x, table, targets, problem)
	}
}

// targets are the machines that the request may go to: those that the app's
// routes say, unless it names one itself.
func (x *exchange) targets(table *route.Table) []route.Target {
	if x.want.Only {
		return table.Port(x.port)
	}
	group := ""
	if !x.unrouted {
		group = table.Group(x.r.Method, x.r.URL.Path)
	}
	targets := table.Within(group, x.port)
	if x.want.Instance == "" {
		return targets
	}
	is := func(t route.Target) bool { return t.Machine.ID == x.want.Instance }
	if all := table.Port(x.port); !slices.ContainsFunc(targets, is) {
		if i := slices.IndexFunc(all, is); i >= 0 {
			targets = append(targets[:len(targets):len(targets)], all[i])
		}
	}
	return targets
}

// candidates are reused: one slice per decision.
var candidates = sync.Pool{New: func() any { return new([]balance.Candidate) }}

func (x *exchange) excludes(id root.MachineID) bool { return slices.Contains(x.excluded, id) }

// candidate reads the state of a target. The error says why it will not
// answer as it is.
func (p *Proxy) candidate(x *exchange, t route.Target) (balance.Candidate, error) {
	m := t.Machine
	unit := p.o.Loads.Unit(m.Spec.Instance)
	n, parked := unit.Load(t.Index)
	c := balance.Candidate{
		Machine: m.ID, Region: m.Region, Autostart: t.Service.Autostart, Origin: m.Origin,
		Load: n, Soft: t.Service.Concurrency.Soft, Hard: t.Service.Concurrency.Hard,
	}
	if c.Soft == 0 {
		c.Soft = root.DefaultSoftLimit
	}
	if m.Spec.Cordoned || m.Spec.Destroy != nil {
		return c, nil
	}
	state := p.o.Live.State(m)
	switch state {
	case root.StateStarted:
		if parked {
			c.Readiness = balance.Coming
			return c, nil
		}
		return p.running(c, t)
	case root.StateSuspended, root.StateSuspending:
		c.Readiness = balance.Frozen
		if p.gate(t).State != health.Open {
			c.Readiness = balance.Asleep // it has to pass its checks first
		}
		if parked {
			c.Readiness = balance.Coming
		}
	case root.StateStopped, root.StateStopping:
		if x.woken[m.ID] >= maxWakes {
			return c, root.Errorf(root.Unavailable, "machine %s %s", m.ID, orText(p.o.Live.Ended(m), "stops each time it is started"))
		}
		c.Readiness, c.Late = balance.Asleep, state == root.StateStopping
		if parked {
			c.Readiness = balance.Coming
		}
	case root.StateCreating, root.StateStarting, root.StateRestarting, root.StateUpdating, root.StateReplacing, "":
		c.Readiness = balance.Coming
	case root.StateCreated:
		if m.Spec.Launch {
			c.Readiness = balance.Coming
		}
	case root.StateFailed, root.StateLaunchFailed:
		return c, root.Errorf(root.Unavailable, "machine %s failed: %s", m.ID, orText(m.Status.Message, "it did not start"))
	}
	return c, nil
}

// running reads how far a target that runs is from answering.
func (p *Proxy) running(c balance.Candidate, t route.Target) (balance.Candidate, error) {
	id := t.Machine.Spec.Instance
	st, gate := p.o.Health.Status(id, t.Service.InternalPort), p.gate(t)
	if !st.Ready && st.Problem == nil {
		p.o.Health.Watch(probeTarget(t))
	}
	if gate.State != health.Open {
		p.o.Checks.Hurry(id)
	}
	switch {
	case st.Problem != nil:
		c.Readiness = balance.Broken
		return c, st.Problem
	case gate.State == health.Shut && time.Since(gate.Since) > p.o.HoldTimeout:
		// Waiting as long as a request may has not helped those that came before.
		c.Readiness = balance.Broken
		return c, &unhealthy{t.Machine, gate}
	case gate.State == health.Shut:
		c.Readiness = balance.Sick
	case !st.Ready || gate.State == health.Unknown:
		c.Readiness = balance.Coming
	default:
		c.Readiness = balance.Ready
	}
	return c, nil
}

// gate says whether a target passes its checks.
func (p *Proxy) gate(t route.Target) health.Gate {
	if p.o.Checks == nil {
		return health.Gate{}
	}
	return p.o.Checks.Gate(t.Machine, t.Index)
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

// maxWakes is how often one request starts a machine that ends before it answers.
const maxWakes = 2

func orText(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func probeTarget(t route.Target) health.Target {
	return health.Target{Machine: t.Machine.ID, Instance: t.Machine.Spec.Instance, Address: t.Machine.Spec.Address.IPv4, Port: t.Service.InternalPort}
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
	return failf(http.StatusServiceUnavailable, "PR03", "no machine of app %s can answer: its %d with port %d %s", x.app, len(targets), x.port, "are "+strings.Join(states, ", ")).
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
	return failf(status, code, "machine %s could not be started: %s", m.ID, reasonOf(err)).
		hint("See its log with: roost logs -a %s", m.App).retry().cause(err)
}

func reasonOf(err error) string {
	if msg := root.MessageOf(err); msg != "internal error" {
		return msg
	}
	return "internal error"
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

// target sets where a request goes from the headers that steer routing (Fly
// docs, "Request headers that steer routing").
func (x *exchange) steer(h http.Header, local root.Region) *failure {
	x.want = balance.Want{Local: local}
	for _, s := range []struct {
		name   string
		strict bool
	}{{"Fly-Force-Region", true}, {"Fly-Prefer-Region", false}} {
		v := h.Get(s.name)
		if v == "" || len(x.want.Regions) > 0 {
			continue
		}
		names, err := replay.ParseRegions(v)
		if err != nil {
			return failf(http.StatusBadRequest, "PR02", "%s: %s", strings.ToLower(s.name), root.MessageOf(err))
		}
		regions, every := replay.Expand(names)
		x.want.Regions, x.want.Strict = regions, s.strict && !every
	}
	for _, s := range []struct {
		name string
		only bool
	}{{"Fly-Force-Instance-Id", true}, {"Fly-Prefer-Instance-Id", false}} {
		v := h.Get(s.name)
		if v == "" || x.want.Instance != "" {
			continue
		}
		id, err := root.ParseMachineID(v)
		if err != nil {
			if s.only {
				return failf(http.StatusBadGateway, "PR02", "%s: %s", strings.ToLower(s.name), root.MessageOf(err))
			}
			continue
		}
		x.want.Instance, x.want.Only = id, s.only
	}
	return nil
}

// target returns the URL that a delivery asks a machine for.
func (x *exchange) url(s *slot) *url.URL {
	u := *x.r.URL
	if x.path != "" {
		if t, err := url.ParseRequestURI(x.path); err == nil {
			u = *t
		}
	}
	u.Scheme, u.Host = "http", s.address()
	return &u
}
