// Package health finds out whether machines answer. It runs in the edge, so
// that gating goes on while the control process is away; what happens next is
// for others to decide.
//
// A Prober knows readiness: from the start of a machine until the first
// accepted TCP connection a port is probed, at first every few milliseconds,
// then less and less often. When that takes long it looks into the machine and
// says what is wrong there. One goroutine per port that is not ready yet.
//
// A Checker makes the checks that machines are configured with, from the start
// of a machine to its end, but not while it is suspended. One timer per check,
// and one goroutine per probe under way.
//
//	           +------- pass -------+
//	           v                    |
//	none --> passing --- fail --> critical
//	  |                             ^
//	  +---- fail, after grace ------+
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
)

// Probing: the interval follows the time already waited, so that a quick
// start is seen at once and a slow one at most a tenth later.
const (
	minInterval  = 2 * time.Millisecond
	maxInterval  = 15 * time.Second
	dialTimeout  = time.Second // the machine is on this host: an answer takes microseconds
	inspectAfter = 3 * time.Second
	inspectEvery = 5 * time.Second
	// While somebody waits, and for as long as a request is held by default,
	// the interval does not grow beyond hurryInterval.
	hurryFor      = time.Minute
	hurryInterval = 500 * time.Millisecond
)

// Inspector looks into a machine: the addresses it listens on, "127.0.0.1:8080".
type Inspector interface {
	Listens(ctx context.Context, id root.InstanceID) ([]string, error)
}

// Target is one port of one instance.
type Target struct {
	Machine  root.MachineID
	Instance root.InstanceID
	Address  string // the machine's own, without port
	Port     int
}

func (t Target) String() string { return net.JoinHostPort(t.Address, strconv.Itoa(t.Port)) }

// Status is what is known of a target.
type Status struct {
	Ready bool
	// Problem is set when the machine cannot answer as it is: it listens on
	// its loopback address only. It still is probed.
	Problem error
	Listens []string  // as last seen; nil while nobody looked
	Since   time.Time // when probing began
}

// Options of a Prober.
type Options struct {
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	Inspector Inspector
	Changed   func(root.MachineID, root.InstanceID) // after every change of a Status
	Logger    *slog.Logger
}

// Prober watches targets. Use New and Close; safe for concurrent use.
type Prober struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.RWMutex
	targets map[root.InstanceID]map[int]*target // by port
}

type target struct {
	status Status
	cancel context.CancelFunc // of its goroutine; nil when none runs
	hurry  chan struct{}      // capacity 1: somebody waits now
}

// New returns a Prober without targets.
func New(o Options) *Prober {
	ctx, cancel := context.WithCancel(context.Background())
	return &Prober{o: o, ctx: ctx, cancel: cancel, targets: make(map[root.InstanceID]map[int]*target)}
}

// Close ends all probing and waits for it.
func (p *Prober) Close() {
	p.mu.Lock() // no Watch is between its check and its Go
	p.cancel()
	p.mu.Unlock()
	p.wg.Wait()
}

// Watch probes t until it is ready, unless it is; if that goes on already, it
// is hurried up.
func (p *Prober) Watch(t Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ports := p.targets[t.Instance]
	if ports == nil {
		ports = make(map[int]*target)
		p.targets[t.Instance] = ports
	}
	e := ports[t.Port]
	if e == nil {
		e = &target{hurry: make(chan struct{}, 1)}
		ports[t.Port] = e
	}
	if e.cancel != nil {
		select {
		case e.hurry <- struct{}{}:
		default:
		}
	}
	if e.status.Ready || e.cancel != nil || p.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	e.cancel = cancel
	e.status = Status{Since: time.Now()}
	p.wg.Go(func() {
		defer cancel()
		p.probe(ctx, t, e)
	})
}

// Status returns what is known of a port; the zero Status if nothing is.
func (p *Prober) Status(id root.InstanceID, port int) Status {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if e := p.targets[id][port]; e != nil {
		return e.status
	}
	return Status{}
}

// Lost takes back that a port is ready: a connection to it failed. It returns
// whether it was.
func (p *Prober) Lost(id root.InstanceID, port int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.targets[id][port]
	if e == nil || !e.status.Ready {
		return false
	}
	e.status = Status{}
	return true
}

// Forget ends probing of all ports of an instance and what was known of them:
// its processes are gone.
func (p *Prober) Forget(id root.InstanceID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.targets[id] {
		if e.cancel != nil {
			e.cancel()
		}
	}
	delete(p.targets, id)
}

func (p *Prober) probe(ctx context.Context, t Target, e *target) {
	addr := t.String()
	start := time.Now()
	inspect := start.Add(inspectAfter)
	hurried := start
	var last time.Time // when it was last probed
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.hurry:
			hurried = time.Now()
			if left := interval(start, last, true) - hurried.Sub(last); left > 0 {
				timer.Reset(left)
				continue
			}
		case <-timer.C:
		}
		last = time.Now()
		if p.reach(ctx, addr) {
			p.set(ctx, t, e, Status{Ready: true, Since: start})
			return
		}
		now := time.Now()
		hurry := now.Sub(hurried) < hurryFor
		if now.After(inspect) && hurry {
			inspect = now.Add(inspectEvery)
			if s, ok := p.look(ctx, t); ok {
				s.Since = start
				p.set(ctx, t, e, s)
			}
		}
		timer.Reset(interval(start, now, hurry))
	}
}

// interval is the time between two probes.
func interval(start, now time.Time, hurry bool) time.Duration {
	limit := maxInterval
	if hurry {
		limit = hurryInterval
	}
	return min(max(now.Sub(start)/10, minInterval), limit)
}

// reach reports whether a connection is accepted.
func (p *Prober) reach(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := p.o.Dial(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = c.Close() // nothing was sent
	return true
}

func (p *Prober) set(ctx context.Context, t Target, e *target, s Status) {
	p.mu.Lock()
	if ctx.Err() != nil { // forgotten meanwhile
		p.mu.Unlock()
		return
	}
	e.status = s
	if s.Ready {
		e.cancel = nil
	}
	p.mu.Unlock()
	p.o.Changed(t.Machine, t.Instance)
}

func (p *Prober) look(ctx context.Context, t Target) (Status, bool) {
	ctx, cancel := context.WithTimeout(ctx, inspectEvery)
	defer cancel()
	listens, err := p.o.Inspector.Listens(ctx, t.Instance)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			p.o.Logger.Debug("cannot look into machine", "machine", t.Machine, "err", err)
		}
		return Status{}, false
	}
	s := Status{Listens: listens}
	if onlyLoopback(listens, t.Port) {
		s.Problem = root.Errorf(root.Unavailable, "%s", Explain(t.Machine, t.Port, listens))
	}
	return s, true
}

func onlyLoopback(listens []string, port int) bool {
	found := false
	for _, l := range listens {
		a, err := netip.ParseAddrPort(l)
		if err != nil || int(a.Port()) != port {
			continue
		}
		if !a.Addr().IsLoopback() {
			return false
		}
		found = true
	}
	return found
}

// Explain says in a sentence or two why nobody answers on port, from the
// addresses that the machine listens on, and what to do.
func Explain(m root.MachineID, port int, listens []string) string {
	if onlyLoopback(listens, port) {
		var at []string
		for _, l := range listens {
			if a, err := netip.ParseAddrPort(l); err == nil && int(a.Port()) == port {
				at = append(at, l)
			}
		}
		slices.Sort(at)
		return fmt.Sprintf("machine %s listens on %s only, which nobody outside of it can reach; make the app listen on 0.0.0.0:%d",
			m, strings.Join(slices.Compact(at), " and "), port)
	}
	var others []string
	for _, l := range listens {
		if a, err := netip.ParseAddrPort(l); err == nil && int(a.Port()) != port {
			others = append(others, l)
		}
	}
	if len(others) == 0 {
		return fmt.Sprintf("nobody in machine %s listens on port %d, nor on any other; make the app listen on 0.0.0.0:%d, or set internal_port to the port it uses", m, port, port)
	}
	slices.Sort(others)
	return fmt.Sprintf("nobody in machine %s listens on port %d; it listens on %s: make the app listen on 0.0.0.0:%d, or set internal_port to the port it uses",
		m, port, strings.Join(slices.Compact(others), ", "), port)
}
