package edge

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// clinic is a machine whose check says what the test wants.
type clinic struct {
	sick   atomic.Bool
	slow   atomic.Bool // checks get no answer for a while
	probes atomic.Int32
	before atomic.Int32 // probes when the last other request came
}

func (c *clinic) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/ht/" {
		c.before.Store(c.probes.Load())
		_, _ = io.WriteString(w, "hello")
		return
	}
	c.probes.Add(1)
	if c.slow.Load() {
		<-time.After(time.Second)
	}
	if c.sick.Load() || r.Host != "shop.localhost" {
		http.Error(w, "no database", http.StatusInternalServerError)
	}
}

// checkedService is a service with a check, as often as one may be. That it
// takes long is no failure of a test.
func checkedService() root.Service {
	return root.Service{Autostop: root.AutostopOff, Checks: []root.Check{{Type: "http", Path: "/ht/", Interval: time.Second, Timeout: patience.Limit, Grace: time.Millisecond}}}
}

// reported waits until control knows that the machine's check has a status.
func (h *host) reported(status string) root.CheckResult {
	h.t.Helper()
	var r root.CheckResult
	patience.Until(h.t, "a report that the check is "+status, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		n := len(h.reports)
		if n == 0 || len(h.reports[n-1].Checks) != 1 {
			return false
		}
		r = h.reports[n-1].Checks[0]
		return r.Status == status
	})
	return r
}

// TestChecks: results reach control, now and after it was away, gate traffic
// meanwhile, and stand in the app's log.
func TestChecks(t *testing.T) {
	h := newHost(t)
	stopControl := h.startControl()
	var c clinic
	m := h.addMachineWith(c.ServeHTTP, checkedService(), root.StateStarted, orders.PhaseStarted)
	h.edge()
	h.wantHello()
	if r := h.reported(root.CheckPassing); !strings.HasPrefix(r.Name, "servicecheck-00-http-") || !strings.HasPrefix(r.Output, "200 OK") {
		t.Errorf("reported %+v", r)
	}
	stopControl()
	h.mu.Lock()
	h.reports = nil
	h.mu.Unlock()
	c.sick.Store(true)
	held := make(chan string, 1)
	log := machinelog.Filter{Machine: m.ID, Match: func(l machinelog.Line) bool { return l.Provider == machinelog.ProviderHealth }}
	var said []string
	patience.Until(t, "a line of the log", func() bool {
		if err := machinelog.Tail(t.Context(), h.cfg.LogDir("shop"), log, false, func(l machinelog.Line) error { said = append(said, l.Message); return nil }); err != nil {
			t.Fatal(err)
		}
		return len(said) > 0
	})
	if !strings.Contains(said[0], "has failed. Your app is not responding properly. Services exposed on ports [80]") || !strings.Contains(said[0], "no database") {
		t.Errorf("the log says %q", said)
	}
	go func() {
		_, body, err := h.get(t.Context(), h.http, "/")
		if err != nil {
			body = err.Error()
		}
		held <- body
	}()
	select {
	case body := <-held:
		t.Errorf("a request got %q from a machine that fails its check", body)
	case <-time.After(100 * time.Millisecond):
	}
	h.startControl()
	h.reported(root.CheckCritical)
	c.sick.Store(false)
	if body := <-held; body != "hello" {
		t.Errorf("the held request got %q", body)
	}
	h.reported(root.CheckPassing)
}

// TestCheckOfSleeper: checks do not keep a machine awake, and the result of one
// that is suspended holds.
func TestCheckOfSleeper(t *testing.T) {
	h := newHost(t)
	h.startControl()
	var c clinic
	service := checkedService()
	service.Autostop, service.StopAfter = root.AutostopSuspend, 300*time.Millisecond
	service.Checks[0].Interval = time.Minute // the next one is not due before the request is answered
	m := h.addMachineWith(c.ServeHTTP, service, root.StateStarted, orders.PhaseStarted)
	h.edge()
	h.wantHello() // it may not sleep before its check has passed once
	h.reported(root.CheckPassing)
	patience.Until(t, "its sleep: its checks are no load", func() bool { return h.phase(m.Spec.Instance) == orders.PhaseSuspended })
	n := c.probes.Load()
	c.sick.Store(true)
	h.wantHello() // it passed when it went to sleep
	if got := c.before.Load(); got != n {
		t.Errorf("%d probes before the request was answered", got-n)
	}
}

// TestCandidate: the edge makes the checks of a version that the catalog does
// not know yet, and goes on with them when it serves.
func TestCandidate(t *testing.T) {
	h := newHost(t)
	h.startControl()
	var c clinic
	old := h.addMachineWith(c.ServeHTTP, checkedService(), root.StateStarted, orders.PhaseStarted)
	h.edge()
	h.reported(root.CheckPassing)

	edge := ipc.NewClient(h.cfg.EdgeSocket())
	defer edge.Close()
	next := old.Clone()
	next.Spec.Instance, next.Spec.Generation = "01NEXT", 2
	c.sick.Store(true)
	a, err := report.Ask(t.Context(), edge, report.Question{Machine: next})
	if err != nil || a.Passing || len(a.Checks) > 0 {
		t.Errorf("of a version that does not run: %+v, %v", a, err)
	}
	h.mu.Lock()
	h.instances["01NEXT"] = orders.Instance{Machine: next.ID, App: "shop", Instance: "01NEXT", Generation: 2}
	h.mu.Unlock()
	h.log("01NEXT", orders.EntryStarted)
	patience.Until(t, "what a version that fails says", func() bool {
		if a, err = report.Ask(t.Context(), edge, report.Question{Machine: next}); err != nil || a.Passing {
			t.Fatalf("of a version that fails: %+v, %v", a, err)
		}
		return len(a.Pending) > 0 && a.Pending[0].Output != ""
	})
	if !strings.Contains(a.Pending[0].Output, "no database") {
		t.Errorf("it says %q", a.Pending[0].Output)
	}
	c.sick.Store(false)
	patience.Until(t, "a version that passes", func() bool {
		if a, err = report.Ask(t.Context(), edge, report.Question{Machine: next}); err != nil {
			t.Fatalf("of a version that passes: %+v, %v", a, err)
		}
		return a.Passing
	})
	if len(a.Checks) != 1 || a.Checks[0].Status != root.CheckPassing {
		t.Errorf("checks %+v", a.Checks)
	}
	next.Status.Instance = "01NEXT"
	h.control.Apply(2, root.Change{Machine: next})
	h.wantHello()
}

// TestChecksOutliveTheEdge: the next edge knows what this one found out while
// control was away.
func TestChecksOutliveTheEdge(t *testing.T) {
	h := newHost(t)
	stopControl := h.startControl()
	var c clinic
	m := h.addMachineWith(c.ServeHTTP, checkedService(), root.StateStarted, orders.PhaseStarted)
	stopEdge := h.edge()
	passing := h.reported(root.CheckPassing)
	m = m.Clone()
	m.Status.Checks = []root.CheckResult{passing}
	h.control.Apply(2, root.Change{Machine: m})
	stopControl()
	c.sick.Store(true)
	file := filepath.Join(h.cfg.Run, "checks.json")
	patience.Until(t, "the result to be written down", func() bool {
		data, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(data), root.CheckCritical)
	})
	stopEdge()
	c.slow.Store(true) // the next edge has to go by what is written
	h.edge()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, body, err := h.get(ctx, h.http, "/"); err == nil {
		t.Errorf("a request got %q from a machine that fails its check", body)
	}
	c.slow.Store(false)
	c.sick.Store(false)
	h.wantHello()
}
