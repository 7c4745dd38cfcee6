package proxy_test

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/proxy"
)

// withChecks gives a world a checker; what its machines do it learns from them.
func withChecks(t *testing.T, options ...option) (*world, *health.Checker) {
	t.Helper()
	var w *world
	var dialer net.Dialer
	c := health.NewChecker(health.CheckerOptions{
		Dial: dialer.DialContext, Host: func(a root.AppName) string { return string(a) + ".localhost" },
		Changed: func(root.MachineID, root.InstanceID) { w.proxy.ChangedAll() },
	})
	w = newWorld(t, append(options, func(o *proxy.Options) { o.Checks = c })...)
	t.Cleanup(c.Close)
	return w, c
}

// doctor decides what a machine's health check says, and counts what else it got.
type doctor struct {
	well   atomic.Bool
	served atomic.Int32
	probed atomic.Int32
	before atomic.Int32 // probed when the last other request came
}

func (d *doctor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/ht/" {
		d.before.Store(d.probed.Load())
		d.served.Add(1)
		return
	}
	d.probed.Add(1)
	if !d.well.Load() {
		http.Error(w, "no database", http.StatusInternalServerError)
	}
}

// checked gives a machine's service a check.
func checked(m *root.Machine) {
	m.Spec.Config.Services[0].Checks = []root.Check{{Type: "http", Path: "/ht/", Grace: time.Millisecond, Interval: 2 * time.Second, Timeout: 10 * time.Second}}
}

var boots atomic.Uint64

func (f *fakeMachine) booted(c *health.Checker) {
	c.Start(health.Subject{Machine: f.record, Boot: root.Stamp{Boot: 1, Seq: boots.Add(1)}, Started: time.Now()})
}

func TestFailingMachineGetsNothing(t *testing.T) {
	w, c := withChecks(t)
	var good, bad doctor
	good.well.Store(true)
	a := w.machine("shop", root.StateStarted, good.ServeHTTP, checked)
	b := w.machine("shop", root.StateStarted, bad.ServeHTTP, checked)
	a.booted(c)
	b.booted(c)
	for range 40 {
		if r, body := w.get("/"); r.StatusCode != 200 {
			t.Fatalf("%d %s", r.StatusCode, body)
		}
	}
	if n := bad.served.Load(); n != 0 {
		t.Errorf("the machine that fails its check got %d requests", n)
	}
	bad.well.Store(true)
	patience.Until(t, "the machine to get requests again", func() bool {
		w.get("/")
		return bad.served.Load() > 0
	})
	bad.well.Store(false)
	patience.Until(t, "the gate to shut", func() bool { return c.Gate(b.record, 0).State == health.Shut })
	bad.served.Store(0)
	for range 20 {
		w.get("/")
	}
	if n := bad.served.Load(); n != 0 {
		t.Errorf("it got %d requests after it had failed", n)
	}
}

func TestRequestWaitsForTheCheck(t *testing.T) {
	w, c := withChecks(t)
	var d doctor
	m := w.machine("shop", root.StateStopped, d.ServeHTTP, checked)
	m.onWake = func() { m.booted(c) }
	time.AfterFunc(300*time.Millisecond, func() { d.well.Store(true) })
	if r, body := w.get("/"); r.StatusCode != 200 {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if !d.well.Load() || d.served.Load() != 1 || m.woken() != 1 {
		t.Errorf("served %d requests, woken %d times, well %v", d.served.Load(), m.woken(), d.well.Load())
	}
}

func TestNobodyPasses(t *testing.T) {
	w, c := withChecks(t, hold(3*time.Second))
	var d doctor
	m := w.machine("shop", root.StateStarted, d.ServeHTTP, checked)
	m.booted(c)
	for _, name := range []string{"held", "at once"} {
		r, body := w.get("/")
		if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Roost-Error") != "PR01" || r.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %q", name, r.StatusCode, r.Header)
		}
		for _, want := range []string{"servicecheck-00-http-", "500 Internal Server Error: no database"} {
			if !strings.Contains(body, want) {
				t.Errorf("%s: body %q does not have %q", name, body, want)
			}
		}
	}
	if d.served.Load() != 0 {
		t.Error("it got a request")
	}
	d.well.Store(true)
	patience.Until(t, "the machine to serve", func() bool { r, _ := w.get("/"); return r.StatusCode == 200 })
}

// TestSickSleeper: a machine that slept while it failed is woken and has to
// pass before it gets the request.
func TestSickSleeper(t *testing.T) {
	w, c := withChecks(t)
	var d doctor
	m := w.machine("shop", root.StateStarted, d.ServeHTTP, checked)
	m.booted(c)
	patience.Until(t, "the check to fail", func() bool { return c.Gate(m.record, 0).State == health.Shut })
	c.Pause(m.record.Spec.Instance)
	m.suspend()
	n := d.probed.Load()
	m.onWake = func() {
		if d.probed.Load() != n {
			t.Error("it was probed while it was suspended")
		}
		d.well.Store(true)
		c.Resume(m.record.Spec.Instance)
	}
	if r, body := w.get("/"); r.StatusCode != 200 {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if d.probed.Load() == n || m.woken() != 1 {
		t.Errorf("probed %d times before and %d times after the wake, woken %d times", n, d.probed.Load(), m.woken())
	}
}

// TestHealthySleeper: one that passed takes the request at once, checks or not.
func TestHealthySleeper(t *testing.T) {
	w, c := withChecks(t)
	var d doctor
	d.well.Store(true)
	m := w.machine("shop", root.StateStarted, d.ServeHTTP, checked, func(m *root.Machine) {
		m.Spec.Config.Services[0].Checks[0].Interval = time.Minute // the next one is not due before the request is answered
	})
	m.booted(c)
	patience.Until(t, "the check to pass", func() bool { return c.Gate(m.record, 0).State == health.Open })
	c.Pause(m.record.Spec.Instance)
	m.suspend()
	d.well.Store(false) // nobody asks before the request
	n := d.probed.Load()
	m.onWake = func() { c.Resume(m.record.Spec.Instance) }
	if r, body := w.get("/"); r.StatusCode != 200 || d.before.Load() != n {
		t.Errorf("%d %s, probed %d times more", r.StatusCode, body, d.before.Load()-n)
	}
}
