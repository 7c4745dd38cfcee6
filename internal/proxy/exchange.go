package proxy

import (
	"context"
	"errors"
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
		c.Readiness, c.Waking = balance.Frozen, p.flights.Underway(m.Spec.Instance)
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
		c.Readiness, c.Late, c.Waking = balance.Asleep, state == root.StateStopping, p.flights.Underway(m.Spec.Instance)
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

// steer sets where a request goes from the headers that steer routing (Fly
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

// url is what a delivery asks a machine for.
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
