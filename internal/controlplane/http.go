package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/origin"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/catalog/feed"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/registry"
)

// handler is all of control.sock: the platform's own paths, the registry, and
// the API for everything else.
func (p *process) handler() http.Handler {
	public := http.NewServeMux()
	public.Handle("/v2/", registry.Handler(p.images, p.authorizeRepository, p.log))
	public.Handle("/", p.api())
	internal := http.NewServeMux()
	internal.Handle("GET "+feed.Path, feed.Handler(p.catalog))
	p.certs.Register(internal)
	internal.Handle("POST "+report.Path, report.Handler(p.agent.Report))
	internal.Handle("/internal/", http.NotFoundHandler())
	internal.Handle("/", public)
	return apart(internal, public)
}

// apart keeps the platform's own paths, which ask for no token and answer with
// private keys and everybody's configuration, from requests that the edge only
// passes on. It marks those, and lets no client's mark through; all come over
// the same socket from the same user. The mark counts and not the path, which
// can be written in many ways.
func apart(internal, public http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, passedOn := origin.Of(r.Header); passedOn {
			public.ServeHTTP(w, r)
			return
		}
		internal.ServeHTTP(w, r)
	})
}

// authorizeRepository says whether a request may pull from or push to a
// repository of our registry, whose name is an app's.
func (p *process) authorizeRepository(r *http.Request, repo string, push bool) error {
	actor, err := p.registryActor(r)
	if err != nil {
		return err
	}
	permission := auth.ImageRead
	if push {
		permission = auth.ImagePush
	}
	if repo == "" { // the version check and the catalogue: any valid caller
		return nil
	}
	app := p.catalog.Snapshot().App(root.AppName(repo))
	if app == nil {
		if err := actor.Allow(permission, "", root.AppName(repo), ""); err != nil {
			return err
		}
		return root.Errorf(root.NotFound, "app %q not found: a repository is named after its app; create it with \"roost app create %s\"", repo, repo)
	}
	return actor.Allow(permission, app.Org, app.Name, "")
}

func (p *process) registryActor(r *http.Request) (auth.Actor, error) {
	if from, _ := origin.Of(r.Header); from.LocalRoot() && r.Header.Get("Authorization") == "" {
		return auth.LocalRoot(), nil
	}
	if _, password, ok := r.BasicAuth(); ok { // docker login: any user, the token as password
		return p.verifier.Verify(r.Context(), password)
	}
	return p.verifier.VerifyHeader(r.Context(), r.Header.Values("Authorization"))
}

// askEdge has the edge make a version's checks and tell how they stand.
func (p *process) askEdge(ctx context.Context, m *root.Machine) (report.Answer, error) {
	edge := ipc.NewClient(p.cfg.EdgeSocket())
	defer edge.Close()
	return report.Ask(ctx, edge, report.Question{Machine: m.Routable()})
}

// Bounds of the wait for a replaced version to have nothing in flight.
const (
	// switchGrace is for a request that was on its way to the version when the
	// edge saw the switch.
	switchGrace  = 100 * time.Millisecond
	drainPoll    = 50 * time.Millisecond
	maxDrainPoll = 500 * time.Millisecond
)

// load is what the edge's socket says of an instance.
type load struct {
	InFlight, Upgrades, Waiting int
	Routed                      bool // new requests may go there
}

// routedTimeout bounds how long a write waits for the edge. Its feed is local;
// after a restart of either process it is connected again within a second.
const routedTimeout = 5 * time.Second

// routed returns when the edge routes by a revision of the catalog. Of an edge
// that is not there nobody waits.
func (p *process) routed(ctx context.Context, revision int64) {
	wait, cancel := context.WithTimeout(ctx, routedTimeout)
	defer cancel()
	edge := ipc.NewClient(p.cfg.EdgeSocket())
	defer edge.Close()
	err := edge.Call(wait, http.MethodGet, "/revision/"+strconv.FormatInt(revision, 10), nil, nil)
	if err != nil && ctx.Err() == nil && !root.IsKind(err, root.Unavailable) {
		p.log.Warn("the edge does not follow the catalog", "revision", revision, "err", err)
	}
}

// keepBusy has the edge keep autostop away from a machine's version.
func (p *process) keepBusy(ctx context.Context, id root.InstanceID, until time.Time) error {
	edge := ipc.NewClient(p.cfg.EdgeSocket())
	defer edge.Close()
	return edge.Call(ctx, http.MethodPut, "/busy/"+string(id), struct{ Until time.Time }{until}, nil)
}

// drain returns when the edge sends nothing more to the machine's version, and
// has nothing in flight to it.
func (p *process) drain(ctx context.Context, m *root.Machine) error {
	edge := ipc.NewClient(p.cfg.EdgeSocket())
	defer edge.Close()
	for pause := switchGrace; ; pause = min(max(2*pause, drainPoll), maxDrainPoll) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		var l load
		err := edge.Call(ctx, http.MethodGet, "/load/"+string(m.Spec.Instance)+"?machine="+string(m.ID), nil, &l)
		if err != nil && !root.IsKind(err, root.Unavailable) { // an edge that is gone has nothing in flight, but may come back
			return fmt.Errorf("ask the edge for load: %w", err)
		}
		if err == nil && !l.Routed && l.InFlight == 0 && l.Upgrades == 0 {
			return nil
		}
	}
}
