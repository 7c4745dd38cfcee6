package metrics

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestEdge(t *testing.T) {
	e := NewEdge(Gauges{
		Certificates: func() (int, time.Time) { return 2, time.Unix(1800000000, 0) },
		Held:         func() int { return 3 }, Upgrades: func() int { return 0 }, Revision: func() int64 { return 7 }})
	e.Request(200, "", time.Millisecond, 0, 0)
	e.Request(503, "PR03", time.Second, time.Second, 2)
	e.Request(0, "", 0, 0, 0)
	e.Woke("thawed", time.Millisecond)
	e.Stopped("suspend")
	e.Handshake("PT05")
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	body := w.Body.String()
	for _, want := range []string{
		`roost_edge_requests_total{class="2xx"} 1`, `roost_edge_requests_total{class="5xx"} 1`, `roost_edge_requests_total{class="other"} 1`,
		`roost_edge_failures_total{code="PR03"} 1`, `roost_edge_request_duration_seconds_count 3`, `roost_edge_hold_duration_seconds_count 1`,
		`roost_edge_replays_total 2`, `roost_edge_wake_duration_seconds_count{result="thawed"} 1`, `roost_edge_autostops_total{action="suspend"} 1`,
		`roost_edge_held_requests 3`, `roost_edge_handshake_failures_total{code="PT05"} 1`,
		`roost_edge_certificates 2`, `roost_edge_certificate_expiry_timestamp_seconds 1.8e+09`, `roost_edge_catalog_revision 7`, "go_goroutines",
	} {
		if !strings.Contains(body, want+"\n") && !strings.Contains(body, want+" ") {
			t.Errorf("%q is missing in:\n%s", want, body)
		}
	}
	// Names are ours and carry a unit or what they count.
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (roost_\S+) (\S+)`).FindAllStringSubmatch(body, -1) {
		if name := m[1]; m[2] == "counter" && !strings.HasSuffix(name, "_total") || m[2] == "histogram" && !strings.HasSuffix(name, "_seconds") {
			t.Errorf("%s of type %s has a name without unit", name, m[2])
		}
	}
	var none *Edge
	none.Request(200, "", 0, 0, 0) // no metrics wanted
	none.Woke("booted", 0)
	none.Stopped("stop")
	none.Handshake("PT04")
}
