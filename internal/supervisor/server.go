package supervisor

import (
	"context"
	"net/http"
	"os"
	"strconv"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
)

// handler serves the orders; the paths are listed with orders.Client.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/host", ipc.Handler(func(context.Context, *http.Request, struct{}) (orders.HostStatus, error) { return s.host() }))
	mux.HandleFunc("GET /v1/instances", ipc.Handler(func(context.Context, *http.Request, struct{}) ([]orders.Instance, error) {
		out := []orders.Instance{}
		for _, sl := range s.slots.list() {
			out = append(out, sl.account())
		}
		return out, nil
	}))
	mux.HandleFunc("PUT /v1/instances/{instance}/next", ipc.Handler(func(_ context.Context, r *http.Request, b orders.Boot) (orders.Done, error) {
		if string(b.Instance) != r.PathValue("instance") {
			return orders.Done{}, root.Errorf(root.Invalid, "the boot is of instance %s", b.Instance)
		}
		return s.slots.prepare(b)
	}))
	mux.HandleFunc("GET /v1/instances/{instance}", verb(s, func(_ context.Context, sl *slot, _ struct{}) (orders.Instance, error) { return sl.account(), nil }))
	mux.HandleFunc("POST /v1/instances/{instance}/start", verb(s, func(ctx context.Context, sl *slot, o orders.Start) (orders.Started, error) { return sl.start(ctx, o) }))
	mux.HandleFunc("POST /v1/instances/{instance}/stop", verb(s, func(ctx context.Context, sl *slot, o orders.Stop) (orders.Done, error) { return sl.stop(ctx, o) }))
	mux.HandleFunc("POST /v1/instances/{instance}/suspend", verb(s, func(_ context.Context, sl *slot, o orders.Suspend) (orders.Done, error) { return sl.suspend(o) }))
	mux.HandleFunc("POST /v1/instances/{instance}/signal", verb(s, func(ctx context.Context, sl *slot, o orders.Signal) (orders.Done, error) { return sl.signal(ctx, o) }))
	mux.HandleFunc("POST /v1/instances/{instance}/note", verb(s, func(_ context.Context, sl *slot, o orders.Note) (orders.Done, error) {
		s.slots.logs.platform(sl.source(), o.Line)
		return sl.done(), nil
	}))
	mux.HandleFunc("POST /v1/instances/{instance}/lease", verb(s, func(_ context.Context, sl *slot, o orders.Lease) (orders.Done, error) { return sl.lease(o), nil }))
	mux.HandleFunc("POST /v1/instances/{instance}/reclaim", verb(s, func(ctx context.Context, sl *slot, _ struct{}) (orders.Done, error) {
		err := s.slots.reclaim(ctx, sl, false)
		return sl.done(), err
	}))
	mux.HandleFunc("GET /v1/instances/{instance}/stats", verb(s, func(_ context.Context, sl *slot, _ struct{}) (orders.Stats, error) { return sl.stats() }))
	mux.HandleFunc("GET /v1/instances/{instance}/inspect", verb(s, func(_ context.Context, sl *slot, _ struct{}) (orders.Inspection, error) { return sl.inspect() }))
	mux.HandleFunc("DELETE /v1/instances/{instance}", ipc.Handler(func(ctx context.Context, r *http.Request, _ struct{}) (orders.Done, error) {
		sl, err := s.slots.get(root.InstanceID(r.PathValue("instance")))
		if err != nil {
			return orders.Done{Phase: orders.PhaseStopped}, nil
		}
		return orders.Done{Phase: orders.PhaseStopped}, sl.remove(ctx)
	}))
	mux.HandleFunc("GET /v1/instances/{instance}/exec", s.exec)
	mux.HandleFunc("GET /v1/instances/{instance}/socket", s.machineSocket)
	mux.HandleFunc("GET /v1/listeners", s.listeners)
	mux.HandleFunc("GET /v1/journal", s.followJournal)
	mux.HandleFunc("POST /v1/builder", ipc.Handler(func(ctx context.Context, _ *http.Request, _ struct{}) (struct{}, error) {
		return struct{}{}, s.startBuilder(ctx)
	}))
	mux.HandleFunc("POST /v1/shutdown", ipc.Handler(func(ctx context.Context, _ *http.Request, o orders.Shutdown) (struct{}, error) {
		return struct{}{}, s.shutdown(ctx, o)
	}))
	return ipc.RequireRoot(mux)
}

// verb is a handler for one slot.
func verb[In, Out any](s *server, f func(context.Context, *slot, In) (Out, error)) http.HandlerFunc {
	return ipc.Handler(func(ctx context.Context, r *http.Request, in In) (out Out, err error) {
		sl, err := s.slots.get(root.InstanceID(r.PathValue("instance")))
		if err != nil {
			return out, err
		}
		return f(ctx, sl, in)
	})
}

func (s *server) followJournal(w http.ResponseWriter, r *http.Request) {
	var after root.Stamp
	q := r.URL.Query()
	for name, field := range map[string]*uint64{"boot": &after.Boot, "seq": &after.Seq} {
		if v := q.Get(name); v != "" {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				ipc.WriteError(w, root.Errorf(root.Invalid, "%s=%q is not a number", name, v))
				return
			}
			*field = n
		}
	}
	past, f := s.slots.journal.follow(after)
	defer s.slots.journal.unfollow(f)
	stream := ipc.NewStream(w)
	for _, e := range past {
		if stream.Send(e) != nil {
			return
		}
	}
	if stream.Send(orders.Entry{CaughtUp: true}) != nil {
		return
	}
	for {
		select {
		case e := <-f.entries:
			if stream.Send(e) != nil {
				return
			}
		case <-f.lost:
			return // too slow: it comes back with its last stamp
		case <-s.closing:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (s *server) listeners(w http.ResponseWriter, r *http.Request) {
	names, files := []orders.Listener{}, []*os.File{}
	for _, l := range s.sockets {
		names, files = append(names, l.Listener), append(files, l.file)
	}
	s.hand(w, r, names, files...)
}

func (s *server) machineSocket(w http.ResponseWriter, r *http.Request) {
	sl, err := s.slots.get(root.InstanceID(r.PathValue("instance")))
	if err != nil {
		ipc.WriteError(w, err)
		return
	}
	s.hand(w, r, orders.Listener{Kind: orders.ListenMachine, Address: string(sl.id)}, sl.api)
}

func (s *server) hand(w http.ResponseWriter, r *http.Request, v any, files ...*os.File) {
	c, err := ipc.Upgrade(w, r)
	if err != nil {
		ipc.WriteError(w, err)
		return
	}
	if err := c.Send(v, files...); err != nil {
		s.log.Warn("sockets not handed out", "err", err)
	}
	_ = c.Close() // everything was sent
}
