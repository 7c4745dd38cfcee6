package edge

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/proxy/load"
)

const (
	// parkedPatience bounds the wait for what autostop is about to do.
	parkedPatience = time.Second
	parkedPoll     = 5 * time.Millisecond
)

// Status is the edge's account of itself, at /status of its socket.
type Status struct {
	PID      int
	Revision int64 // of the catalog
	Held     int   // requests that wait for a machine
	Machines []MachineLoad
}

// MachineLoad is what keeps a machine busy.
type MachineLoad struct {
	Machine   root.MachineID
	App       root.AppName
	Instance  root.InstanceID
	State     root.State
	InFlight  int
	Upgrades  int
	Waiting   int
	IdleSince time.Time
	BusyUntil time.Time
	Routed    bool // new requests may go there; only where one is asked for
}

func (e *edge) serveStatus(ctx context.Context) error {
	l, err := ipc.Listen(e.cfg.EdgeSocket(), 0o600)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", ipc.Handler(func(context.Context, *http.Request, struct{}) (Status, error) { return e.status(), nil }))
	mux.HandleFunc("GET /load/{instance}", ipc.Handler(func(_ context.Context, r *http.Request, _ struct{}) (MachineLoad, error) {
		id, machine := root.InstanceID(r.PathValue("instance")), root.MachineID(r.URL.Query().Get("machine"))
		c := e.loads.Unit(id).Counts()
		return MachineLoad{Machine: machine, Instance: id, InFlight: c.InFlight, Upgrades: c.Upgrades, Waiting: c.Waiting, Routed: e.routes(machine, id)}, nil
	}))
	mux.HandleFunc("GET /revision/{revision}", ipc.Handler(func(ctx context.Context, r *http.Request, _ struct{}) (struct{}, error) {
		revision, err := strconv.ParseInt(r.PathValue("revision"), 10, 64)
		if err != nil {
			return struct{}{}, root.Errorf(root.Invalid, "%q is no revision", r.PathValue("revision"))
		}
		return struct{}{}, e.catalog.WaitRevision(ctx, revision)
	}))
	mux.HandleFunc("PUT /busy/{instance}", ipc.Handler(func(ctx context.Context, r *http.Request, q struct{ Until time.Time }) (struct{}, error) {
		return struct{}{}, keepBusy(ctx, e.loads.Unit(root.InstanceID(r.PathValue("instance"))), q.Until)
	}))
	mux.HandleFunc(report.CandidatePattern, ipc.Handler(func(ctx context.Context, _ *http.Request, q report.Question) (report.Answer, error) {
		return e.candidate(ctx, q.Machine)
	}))
	mux.Handle("GET /metrics", e.metrics.Handler())
	s := ipc.NewServer(ipc.RequireRoot(mux))
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return context.Cause(ctx)
}

// routes reports whether new requests may go to a machine's instance: whether
// it is the current version, and not taken out of the choice.
func (e *edge) routes(machine root.MachineID, id root.InstanceID) bool {
	m := e.catalog.Snapshot().Machine(machine)
	return m != nil && m.Spec.Instance == id && !m.Spec.Cordoned && m.Spec.Destroy == nil
}

func (e *edge) status() Status {
	s := Status{PID: os.Getpid(), Revision: e.catalog.Snapshot().Revision(), Held: e.proxy.Held()}
	for m := range e.catalog.Snapshot().AllMachines() {
		c := e.loads.Counts(m.Spec.Instance)
		s.Machines = append(s.Machines, MachineLoad{
			Machine: m.ID, App: m.App, Instance: m.Spec.Instance, State: e.live.State(m),
			InFlight: c.InFlight, Upgrades: c.Upgrades, Waiting: c.Waiting, IdleSince: c.IdleSince, BusyUntil: c.BusyUntil,
		})
	}
	return s
}

// keepBusy keeps autostop away for a session of a person, which the proxy does
// not see. The app's own busy lease may last longer. What autostop had begun
// before comes first, so that who asked sees it.
func keepBusy(ctx context.Context, u *load.Unit, until time.Time) error {
	if u.Counts().BusyUntil.Before(until) {
		u.Busy(until)
	}
	for deadline := time.Now().Add(parkedPatience); u.Counts().Parked && time.Now().Before(deadline); {
		if err := sleep(ctx, parkedPoll); err != nil {
			return err
		}
	}
	return nil
}
