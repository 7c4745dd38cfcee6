package agent

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/orders"
)

const checkName = "servicecheck-00-http-8080"

func checkedConfig() root.Config {
	c := webConfig()
	c.Services[0].Checks = []root.Check{{Type: "http", Port: 8080, Path: "/ht/"}}
	return c
}

// result is what the check says.
func result(status, output string) []root.CheckResult {
	return []root.CheckResult{{Name: checkName, Status: status, Output: output, UpdatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
}

// boot is the stamp of an instance's last start.
func (h *host) boot(id root.InstanceID) root.Stamp {
	h.t.Helper()
	h.sup.mu.Lock()
	defer h.sup.mu.Unlock()
	at := root.Stamp{}
	for _, e := range h.sup.journal {
		if e.Instance == id && e.Type == orders.EntryStarted {
			at = e.Stamp
		}
	}
	return at
}

func TestReport(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, checkedConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	tell := func(r report.Report) {
		t.Helper()
		r.Machine, r.Instance = m.ID, m.Spec.Instance
		must(t, h.Report(t.Context(), []report.Report{r, {Machine: "000000000000ff"}}))
	}
	shows := func(want []root.CheckResult) {
		t.Helper()
		got := h.wait(m.ID, "the checks in the status", func(m *root.Machine) bool { return cmp.Equal(m.Status.Checks, want) })
		if got.Status.Instance != m.Spec.Instance {
			t.Errorf("the status is of %s", got.Status.Instance)
		}
	}
	first := h.boot(m.Spec.Instance)
	tell(report.Report{Boot: first, Checks: result(root.CheckCritical, "500 Internal Server Error")})
	shows(result(root.CheckCritical, "500 Internal Server Error"))

	// What does not change is not written.
	before := h.catalog.Snapshot().Revision()
	for range 3 {
		tell(report.Report{Boot: first, Checks: result(root.CheckCritical, "500 Internal Server Error")})
	}
	tell(report.Report{Boot: first, Checks: result(root.CheckPassing, "200 OK")})
	shows(result(root.CheckPassing, "200 OK"))
	if n := h.catalog.Snapshot().Revision() - before; n > 1 {
		t.Errorf("%d writes for one change", n)
	}

	// A boot begins without results, and results of the one before are none of its.
	_, err = h.Restart(t.Context(), m.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	shows(nil)
	tell(report.Report{Boot: first, Checks: result(root.CheckPassing, "200 OK")})
	tell(report.Report{Boot: h.boot(m.Spec.Instance), Checks: result(root.CheckCritical, "connection refused")})
	shows(result(root.CheckCritical, "connection refused"))

	// Another agent knows what is recorded, and takes the edge's word again.
	h.kill()
	h.begin()
	shows(result(root.CheckCritical, "connection refused"))
	tell(report.Report{Boot: h.boot(m.Spec.Instance), Checks: result(root.CheckPassing, "200 OK")})
	shows(result(root.CheckPassing, "200 OK"))
}

func TestRestartLimit(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, checkedConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	first := h.boot(m.Spec.Instance)
	why := "check " + checkName + " failed 3 times in a row: 500 Internal Server Error"
	// The edge repeats itself until it knows that it was heard.
	for range 3 {
		must(t, h.Report(t.Context(), []report.Report{{Machine: m.ID, Instance: m.Spec.Instance, Boot: first, Checks: result(root.CheckCritical, "500"), Restart: why, Asked: 1}}))
	}
	h.wait(m.ID, "a restart", func(m *root.Machine) bool {
		return m.Status.State == root.StateStarted && len(m.Status.Events) > 0 && m.Status.Events[0].Type == "start" && len(m.Status.Events) > 2
	})
	must(t, h.Report(t.Context(), []report.Report{{Machine: m.ID, Instance: m.Spec.Instance, Boot: first, Checks: result(root.CheckCritical, "500"), Restart: why, Asked: 1}}))
	must(t, h.Report(t.Context(), []report.Report{{Machine: m.ID, Instance: m.Spec.Instance, Boot: h.boot(m.Spec.Instance), Checks: result(root.CheckPassing, "200 OK")}}))
	got := h.wait(m.ID, "the new boot's result", func(m *root.Machine) bool { return cmp.Equal(m.Status.Checks, result(root.CheckPassing, "200 OK")) })
	want := []event{
		{"start", "started", "flyd"}, {"restart", "stopping", "flyd"}, {"exit", "stopped", "flyd"}, {"restart", "starting", "flyd"}, {"start", "started", "flyd"},
	}
	if d := cmp.Diff(want, events(&got.Status)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if e := got.Status.Events[1]; !strings.Contains(e.Reason, why) {
		t.Errorf("the restart's reason is %q", e.Reason)
	}
	if said := strings.Join(h.sup.said(), "\n"); !strings.Contains(said, why) {
		t.Errorf("the machine's log does not say why: %q", said)
	}
}

// TestReplaceWaitsForChecks: a new version gets no traffic before its checks
// pass, and none at all if they never do.
func TestReplaceWaitsForChecks(t *testing.T) {
	h := newHost(t)
	h.kill()
	var mu sync.Mutex
	var asked []root.InstanceID
	answer := report.Answer{Pending: result("", "400 Bad Request: DisallowedHost\nAllow the host.")}
	h.options.Checks = func(ctx context.Context, m *root.Machine) (report.Answer, error) {
		mu.Lock()
		asked = append(asked, m.Spec.Instance)
		a, n := answer, len(asked)
		mu.Unlock()
		if n == 1 {
			return report.Answer{}, root.Errorf(root.Unavailable, "the edge is coming up")
		}
		if !a.Passing {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return a, nil
	}
	h.begin()
	h.sup.listens["/app"] = []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}
	m := h.machine(1, checkedConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)

	n, commit := h.next(m, checkedConfig(), true)
	_, err = h.Replace(t.Context(), n, 2*time.Second, nil, commit)
	if root.CodeOf(err) != root.CodeUnhealthy || !root.IsKind(err, root.Precondition) {
		t.Fatalf("got %v, want it refused as unhealthy", err)
	}
	for _, want := range []string{checkName, "400 Bad Request: DisallowedHost", "2s", "the old version keeps serving", "Allow the host"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not have %q", err, want)
		}
	}
	if got := h.catalog.Snapshot().Machine(m.ID); got.Spec.Instance != m.Spec.Instance || got.Status.State != root.StateStarted {
		t.Errorf("got version %s in state %s, want the old one started", got.Spec.Instance, got.Status.State)
	}
	h.eventually("the candidate to go", func() bool { return h.sup.count() == 1 })

	n, commit = h.next(m, checkedConfig(), true)
	time.AfterFunc(50*time.Millisecond, func() {
		mu.Lock()
		defer mu.Unlock()
		answer = report.Answer{Passing: true, Checks: result(root.CheckPassing, "200 OK")}
	})
	rev, err := h.Replace(t.Context(), n, 0, nil, func(ctx context.Context) (int64, error) {
		mu.Lock()
		defer mu.Unlock()
		if !answer.Passing {
			t.Error("switched before the checks passed")
		}
		return commit(ctx)
	})
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	got := h.catalog.Snapshot().Machine(m.ID)
	if d := cmp.Diff(result(root.CheckPassing, "200 OK"), got.Status.Checks); d != "" || got.Spec.Instance != n.Spec.Instance {
		t.Errorf("version %s, checks (-want +got):\n%s", got.Spec.Instance, d)
	}
	mu.Lock()
	defer mu.Unlock()
	if asked[len(asked)-1] != n.Spec.Instance {
		t.Errorf("asked about %s, want the new version", asked[len(asked)-1])
	}
}
