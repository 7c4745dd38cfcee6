package health

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	root "github.com/roost-run/roost"
)

// patient plays a machine whose tcp checks pass or fail as told.
type patient struct {
	mu      sync.Mutex
	well    bool
	silent  bool // connections hang
	dials   []time.Time
	changes int
	turns   []string
}

func (p *patient) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	p.dials = append(p.dials, time.Now())
	well, silent := p.well, p.silent
	p.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if !well {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	a, b := net.Pipe()
	_ = b.Close()
	return a, nil
}

func (p *patient) Listens(context.Context, root.InstanceID) ([]string, error) {
	return []string{"127.0.0.1:8080"}, nil
}

func (p *patient) set(well bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.well = well
}

// probes returns the times of the probes since the last call.
func (p *patient) probes() []time.Time {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.dials
	p.dials = nil
	return list
}

func newChecker(t *testing.T, p *patient) *Checker {
	t.Helper()
	c := NewChecker(CheckerOptions{
		Dial: p.dial, Inspector: p, Host: func(a root.AppName) string { return string(a) + ".localhost" },
		Changed: func(root.MachineID, root.InstanceID) { p.mu.Lock(); p.changes++; p.mu.Unlock() },
		Turned: func(_ *root.Machine, k root.NamedCheck, old string, now root.CheckResult) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.turns = append(p.turns, k.Name+" "+old+">"+now.Status)
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(c.Close)
	return c
}

// checked is a machine with one tcp check of its service.
func checked(edit func(*root.Check)) *root.Machine {
	k := root.Check{Type: "tcp", Interval: 10 * time.Second, Timeout: time.Second, Grace: 5 * time.Second}
	if edit != nil {
		edit(&k)
	}
	m := &root.Machine{ID: "148e1234c56789", App: "shop", Spec: root.Spec{Instance: "01A", Address: root.Address{IPv4: "172.19.0.4"}}}
	m.Spec.Config.Services = []root.Service{{InternalPort: 8080, Checks: []root.Check{k}}, {InternalPort: 9090}}
	return m
}

func start(c *Checker, m *root.Machine, seq uint64) {
	c.Start(Subject{Machine: m, Boot: root.Stamp{Boot: 1, Seq: seq}, Started: time.Now()})
}

// sees waits until the gate of service 0 is in state.
func sees(t *testing.T, c *Checker, m *root.Machine, state GateState) (after time.Duration) {
	t.Helper()
	begin := time.Now()
	for c.Gate(m, 0).State != state {
		time.Sleep(time.Millisecond)
		if time.Since(begin) > time.Hour {
			t.Fatalf("gate is %+v, want %d", c.Gate(m, 0), state)
		}
	}
	return time.Since(begin)
}

func TestFirstPass(t *testing.T) {
	for _, after := range []time.Duration{0, 30 * time.Millisecond, time.Second, 4 * time.Second, 40 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := &patient{}
			c, m := newChecker(t, p), checked(nil)
			start(c, m, 1)
			if g := c.Gate(m, 0); g.State != Unknown || g.Check != "servicecheck-00-tcp-8080" {
				t.Errorf("before the first result: %+v", g)
			}
			time.AfterFunc(after, func() { p.set(true) })
			if took := sees(t, c, m, Open); took > after+maxFirst+5*time.Millisecond {
				t.Errorf("well after %s was seen after %s", after, took)
			}
			if n := len(p.probes()); n > 110 {
				t.Errorf("%d probes within %s", n, after)
			}
		})
	}
}

func TestPortOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		time.Sleep(3 * time.Second) // probes are 300 ms apart now
		synctest.Wait()
		p.set(true)
		c.Opened("01A", func(int) bool { return false })
		c.Opened("01A", func(port int) bool { return port == 8080 })
		if took := sees(t, c, m, Open); took > minPause+2*time.Millisecond {
			t.Errorf("the check was made %s after its port opened", took)
		}
	})
}

func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		time.Sleep(4900 * time.Millisecond)
		synctest.Wait()
		if r, _ := c.Results("01A"); len(r.Checks) != 0 {
			t.Errorf("a failure within the grace period counts: %+v", r)
		}
		if list := c.Pending("01A"); len(list) != 1 || !strings.Contains(list[0].Output, "connection refused") {
			t.Errorf("pending: %+v, want what the check said", list)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		r, ok := c.Results("01A")
		if !ok || len(r.Checks) != 1 || r.Checks[0].Status != root.CheckCritical {
			t.Fatalf("after the grace period: %+v", r)
		}
		if out := r.Checks[0].Output; !strings.Contains(out, "connection refused") || !strings.Contains(out, "listens on 127.0.0.1:8080 only") {
			t.Errorf("output %q does not say why", out)
		}
		if g := c.Gate(m, 0); g.State != Shut || g.Check != r.Checks[0].Name || g.Since.IsZero() {
			t.Errorf("gate %+v", g)
		}
		if g := c.Gate(m, 1); g.State != Open {
			t.Errorf("the check gates a service that is not its own: %+v", g)
		}
	})
}

func TestInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{well: true}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		time.Sleep(1001 * time.Second)
		times := p.probes()
		if n := len(times); n < 90 || n > 110 {
			t.Errorf("%d probes in 1,000 s at an interval of 10 s", n)
		}
		even := 0
		for i := 2; i < len(times); i++ {
			d := times[i].Sub(times[i-1])
			if d < 9*time.Second || d > 11*time.Second {
				t.Errorf("pause of %s", d)
			}
			if d == 10*time.Second {
				even++
			}
		}
		if even > 10 {
			t.Error("no jitter")
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.changes != 1 {
			t.Errorf("%d changes reported, want the first result only", p.changes)
		}
	})
}

// TestBlip: one bad answer shuts the gate at once, and for a moment only.
func TestBlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{well: true}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		time.Sleep(time.Minute)
		p.set(false)
		sees(t, c, m, Shut)
		p.set(true)
		if took := sees(t, c, m, Open); took > firstRetry+10*time.Millisecond {
			t.Errorf("one bad answer took the machine out for %s", took)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if got := strings.Join(p.turns, ", "); got != "servicecheck-00-tcp-8080 >passing, servicecheck-00-tcp-8080 passing>critical, servicecheck-00-tcp-8080 critical>passing" {
			t.Errorf("turns: %s", got)
		}
	})
}

func TestBackoffAndHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{well: true}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		time.Sleep(time.Minute)
		p.set(false)
		sees(t, c, m, Shut)
		time.Sleep(time.Minute)
		p.probes()
		time.Sleep(100 * time.Second)
		if n := len(p.probes()); n < 9 || n > 12 {
			t.Errorf("%d probes in 100 s of a machine nobody waits for", n)
		}
		p.set(true)
		c.Hurry("01A")
		if took := sees(t, c, m, Open); took > maxFirst {
			t.Errorf("somebody waits, and it took %s", took)
		}
		p.set(false)
		sees(t, c, m, Shut)
		time.Sleep(5 * time.Minute)
		c.Hurry("01A")
		p.probes()
		for range 100 {
			c.Hurry("01A")
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(p.probes()); n < 15 || n > 25 {
			t.Errorf("%d probes in 10 s with somebody waiting, want about 20", n)
		}
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{well: true}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		time.Sleep(time.Minute)
		p.probes()
		p.mu.Lock()
		p.silent = true // a frozen machine accepts and says nothing
		p.mu.Unlock()
		for len(p.probes()) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		c.Pause("01A") // with a probe under way
		time.Sleep(time.Hour)
		if n := len(p.probes()); n != 0 {
			t.Errorf("%d probes of a suspended machine", n)
		}
		if g := c.Gate(m, 0); g.State != Open {
			t.Errorf("the suspended machine's last state does not hold: %+v", g)
		}
		p.mu.Lock()
		p.silent = false
		p.mu.Unlock()
		if !c.Resume("01A") || c.Resume("01B") {
			t.Error("Resume does not tell whether it knows the instance")
		}
		thawed := time.Now()
		if g := c.Gate(m, 0); g.State != Open {
			t.Errorf("after the thaw: %+v", g)
		}
		time.Sleep(12 * time.Second)
		times := p.probes()
		if len(times) == 0 || times[0].Sub(thawed) < afterThaw {
			t.Errorf("probes after the thaw: %v", times)
		}
	})
}

// TestSickResume: one that slept while it failed is probed at once.
func TestSickResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		sees(t, c, m, Shut)
		c.Pause("01A")
		time.Sleep(time.Hour)
		p.set(true)
		c.Resume("01A")
		if took := sees(t, c, m, Open); took > time.Millisecond {
			t.Errorf("seen after %s", took)
		}
	})
}

func TestNewBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{well: true}
		c, m := newChecker(t, p), checked(nil)
		start(c, m, 1)
		sees(t, c, m, Open)
		p.set(false)
		start(c, m, 1) // the same news again
		if g := c.Gate(m, 0); g.State != Open {
			t.Errorf("old news changed the gate to %+v", g)
		}
		start(c, m, 2)
		if g := c.Gate(m, 0); g.State != Unknown {
			t.Errorf("a new boot begins with %+v", g)
		}
		c.Forget("01A")
		p.probes()
		time.Sleep(time.Minute)
		if n := len(p.probes()); n != 0 {
			t.Errorf("%d probes of a forgotten machine", n)
		}
	})
}

// TestRecorded: an edge that has begun anew goes by what is recorded.
func TestRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{well: true}
		c, m := newChecker(t, p), checked(nil)
		if g := c.Gate(m, 0); g.State != Unknown {
			t.Errorf("nothing recorded: %+v", g)
		}
		m.Status.Instance = "01A"
		m.Status.Checks = []root.CheckResult{{Name: "servicecheck-00-tcp-8080", Status: root.CheckPassing}}
		if g := c.Gate(m, 0); g.State != Open {
			t.Errorf("passing is recorded: %+v", g)
		}
		m.Status.Checks[0].Status = root.CheckCritical
		if g := c.Gate(m, 0); g.State != Shut {
			t.Errorf("critical is recorded: %+v", g)
		}
		c.Start(Subject{Machine: m, Started: time.Now().Add(-time.Hour), Known: m.Status.Checks})
		if g := c.Gate(m, 0); g.State != Shut {
			t.Errorf("taken over: %+v", g)
		}
		sees(t, c, m, Open)
	})
}

func TestRestartLimit(t *testing.T) {
	for _, limit := range []int{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			p := &patient{}
			c, m := newChecker(t, p), checked(func(k *root.Check) { k.RestartLimit = limit })
			begin := time.Now()
			start(c, m, 1)
			asked := func() Results { r, _ := c.Results("01A"); return r }
			for asked().Asked == 0 && time.Since(begin) < time.Hour {
				c.Hurry("01A") // probes are frequent; the limit means intervals
				time.Sleep(100 * time.Millisecond)
			}
			if limit == 0 {
				if r := asked(); r.Asked != 0 || r.Restart != "" {
					t.Errorf("without limit: %+v", r)
				}
				return
			}
			if took := time.Since(begin); took < 5*time.Second+2*9*time.Second || took > 30*time.Second {
				t.Errorf("restart after %s, want grace and two intervals", took)
			}
			if r := asked(); !strings.Contains(r.Restart, "failed 3 times in a row") || !strings.Contains(r.Restart, "connection refused") {
				t.Errorf("reason %q", r.Restart)
			}
			p.set(true)
			sees(t, c, m, Open)
			if r := asked(); r.Restart != "" {
				t.Errorf("it passes, and is to be restarted: %q", r.Restart)
			}
		})
	}
}

func TestInformational(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{}
		c, m := newChecker(t, p), checked(nil)
		m.Spec.Config.Services[0].Checks = nil
		m.Spec.Config.Checks = map[string]root.Check{"up": {Type: "tcp", Port: 8080}}
		start(c, m, 1)
		time.Sleep(time.Minute)
		if g := c.Gate(m, 0); g.State != Open || !c.Passing("01A") {
			t.Errorf("an informational check gates: %+v", g)
		}
		if r, _ := c.Results("01A"); len(r.Checks) != 1 || r.Checks[0].Name != "up" || r.Checks[0].Status != root.CheckCritical {
			t.Errorf("results %+v", r)
		}
		m.Spec.Config.Checks = map[string]root.Check{"up": {Type: "tcp", Port: 8080, Readiness: true}}
		start(c, m, 2)
		time.Sleep(time.Minute)
		for i := range 2 {
			if g := c.Gate(m, i); g.State != Shut {
				t.Errorf("a readiness check does not gate service %d: %+v", i, g)
			}
		}
		if c.Passing("01A") {
			t.Error("passing")
		}
	})
}

// TestManyProbes: probes that hang do not pile up without bound, and close ends them.
func TestManyProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{silent: true}
		c := newChecker(t, p)
		for i := range 2 * maxProbes {
			m := checked(func(k *root.Check) { k.Timeout = time.Minute })
			m.Spec.Instance = root.InstanceID(strings.Repeat("x", i+1))
			start(c, m, 1)
		}
		if n := len(p.probes()); n != maxProbes {
			t.Errorf("%d probes under way, want %d", n, maxProbes)
		}
		c.Close()
	})
}
