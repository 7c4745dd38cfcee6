// Package metrics names and registers what the processes count, and serves it
// in Prometheus' text format. A process makes its own set; nothing is global.
// Names carry units; there are no labels for machines, apps or paths, which
// would grow without bound.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Edge is what the data plane counts. Its methods are safe for concurrent use,
// and do nothing on nil.
type Edge struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration prometheus.Histogram
	held     prometheus.Histogram
	replays  prometheus.Counter
	statics  prometheus.Counter
	wakes    *prometheus.HistogramVec
	stops    *prometheus.CounterVec
	shakes   *prometheus.CounterVec
	classes  [6]prometheus.Counter // by status / 100
}

// Gauges are read when somebody asks.
type Gauges struct {
	Held     func() int // requests that wait for a machine
	Upgrades func() int // open upgraded connections
	Revision func() int64
	// Certificates is how many certificates of public names there are, and when
	// the first of them expires.
	Certificates func() (n int, first time.Time)
}

// NewEdge returns the edge's set.
func NewEdge(g Gauges) *Edge {
	e := &Edge{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "roost_edge_requests_total", Help: "Requests answered, by class of status."}, []string{"class"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "roost_edge_failures_total", Help: "Requests that the edge could not deliver, by code."}, []string{"code"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "roost_edge_request_duration_seconds", Help: "From a request's head to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		held: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "roost_edge_hold_duration_seconds", Help: "How long requests that had to wait for a machine waited.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		replays: prometheus.NewCounter(prometheus.CounterOpts{Name: "roost_edge_replays_total", Help: "Times a machine had a request delivered elsewhere."}),
		statics: prometheus.NewCounter(prometheus.CounterOpts{Name: "roost_edge_statics_total", Help: "Requests answered with a file, without asking a machine."}),
		wakes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "roost_edge_wake_duration_seconds", Help: "From the order to wake a machine to its processes running, by result.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
		}, []string{"result"}),
		stops: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "roost_edge_autostops_total", Help: "Machines put to sleep because nobody needed them, by action."}, []string{"action"}),
	}
	e.shakes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "roost_edge_handshake_failures_total", Help: "TLS handshakes that failed, by code."}, []string{"code"})
	for i := range e.classes {
		class := "other"
		if i > 0 {
			class = string(rune('0'+i)) + "xx"
		}
		e.classes[i] = e.requests.WithLabelValues(class)
	}
	e.registry.MustRegister(e.requests, e.failures, e.duration, e.held, e.replays, e.statics, e.wakes, e.stops, e.shakes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "roost_edge_certificates", Help: "Certificates for public names."}, func() float64 { n, _ := g.certificates(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "roost_edge_certificate_expiry_timestamp_seconds", Help: "When the first of them expires; 0 without any."}, func() float64 {
			if _, first := g.certificates(); !first.IsZero() {
				return float64(first.Unix())
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "roost_edge_held_requests", Help: "Requests that wait for a machine now."}, func() float64 { return float64(g.Held()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "roost_edge_upgraded_connections", Help: "WebSockets and other upgraded connections open now."}, func() float64 { return float64(g.Upgrades()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "roost_edge_catalog_revision", Help: "The catalog revision that routing stands at."}, func() float64 { return float64(g.Revision()) }),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector(),
	)
	return e
}

func (g *Gauges) certificates() (int, time.Time) {
	if g.Certificates == nil {
		return 0, time.Time{}
	}
	return g.Certificates()
}

// Handshake counts a TLS handshake that failed.
func (e *Edge) Handshake(code string) {
	if e != nil {
		e.shakes.WithLabelValues(code).Inc()
	}
}

// Handler serves the set.
func (e *Edge) Handler() http.Handler { return promhttp.HandlerFor(e.registry, promhttp.HandlerOpts{}) }

// Request counts an answered request; code is set if the edge answered itself.
func (e *Edge) Request(status int, code string, took, held time.Duration, replays int) {
	if e == nil {
		return
	}
	class := status / 100
	if class < 1 || class >= len(e.classes) {
		class = 0
	}
	e.classes[class].Inc()
	if code != "" {
		e.failures.WithLabelValues(code).Inc()
	}
	e.duration.Observe(took.Seconds())
	if held > 0 {
		e.held.Observe(held.Seconds())
	}
	if replays > 0 {
		e.replays.Add(float64(replays))
	}
}

// Static counts a request that was answered with a file.
func (e *Edge) Static() {
	if e != nil {
		e.statics.Inc()
	}
}

// Woke counts a wake: "thawed", "booted" or "failed".
func (e *Edge) Woke(result string, took time.Duration) {
	if e != nil {
		e.wakes.WithLabelValues(result).Observe(took.Seconds())
	}
}

// Stopped counts a machine put to sleep: "stop" or "suspend".
func (e *Edge) Stopped(action string) {
	if e != nil {
		e.stops.WithLabelValues(action).Inc()
	}
}
