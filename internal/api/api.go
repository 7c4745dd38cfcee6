// Package api is the HTTP face of the control process: one mux built from the
// route tables of the surfaces (api/machines: the Machines API as Fly has it,
// api/roost: Roost's own routes), with what all of them share: request ids,
// authentication, body limits, recovery from panics, the log line.
//
// Requests come from the edge, which owns the sockets and says on which one a
// request arrived. The package decides nothing about apps and machines: it
// decodes, authenticates, calls control, and renders. It starts no goroutine.
package api

import (
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/machines"
	"github.com/roost-run/roost/internal/api/origin"
	"github.com/roost-run/roost/internal/api/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/control"
)

// Options are what the API stands on.
type Options struct {
	Control *control.Control
	Auth    *auth.Verifier
	// Catalog tells whose socket a machine's socket is.
	Catalog interface{ Snapshot() *root.Snapshot }
	Region  root.Region // this host's
	Log     *slog.Logger
}

// New returns the handler of the whole API.
func New(o Options) http.Handler {
	return newHandler(o, append(
		machines.Routes(machines.Options{Apps: o.Control.Apps, Certs: o.Control.Certs, Machines: o.Control.Machines, Hosts: o.Control.Hosts, Secrets: o.Control.Secrets, Region: o.Region}),
		roost.Routes(roost.Options{
			Certs: o.Control.Certs,
			Orgs:  o.Control.Orgs, Tokens: o.Control.Tokens, Images: o.Control.Images, Logs: o.Control.Logs,
			Hosts: o.Control.Hosts, Machines: o.Control.Machines, Releases: o.Control.Releases, Secrets: o.Control.Secrets, Scale: o.Control.Scale, Dialer: o.Control.Machines, Consoles: o.Control.Consoles, Log: o.Log,
		})...))
}

type handler struct {
	Options
	mux *http.ServeMux
}

func newHandler(o Options, routes []route.Route) http.Handler {
	h := &handler{Options: o, mux: http.NewServeMux()}
	for _, r := range routes {
		h.mux.Handle(r.Method+" "+r.Pattern, h.serve(r))
	}
	return h
}

// ServeHTTP gives the request its id and owns its panics.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := ulid.Make().String() + "-" + string(h.Region)
	w.Header().Set("Fly-Request-Id", id)
	w.Header().Set("Server", "roost")
	sent := &sentWriter{ResponseWriter: w}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p) // the way to end a connection
		}
		h.Log.Error("request panicked", "request_id", id, "method", r.Method, "path", r.URL.Path, "err", p, "stack", string(debug.Stack()))
		if sent.status == 0 {
			route.WriteError(sent, root.Errorf(root.Internal, "internal error"))
		}
	}()
	h.mux.ServeHTTP(sent, r.WithContext(route.WithRequestID(r.Context(), id)))
}

// serve is one row of the table: authenticate, bound the body, answer, log.
func (h *handler) serve(row route.Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		err := h.answer(row, w, r)
		status := 0
		if sent, ok := w.(*sentWriter); ok {
			status = sent.status
		}
		switch {
		case err == nil:
		case r.Context().Err() != nil:
			status = 499 // the client went away: nobody to tell
		case status == 0:
			status = route.WriteError(w, err)
		}
		level := slog.LevelDebug
		switch {
		case status >= http.StatusInternalServerError && root.KindOf(err) == root.Internal:
			level = slog.LevelError
		case err != nil && status != 499:
			level = slog.LevelInfo
		}
		h.Log.Log(r.Context(), level, "api request", "request_id", route.RequestID(r.Context()), "method", r.Method,
			"path", r.URL.Path, "status", status, "took", time.Since(began), "err", err)
	})
}

func (h *handler) answer(row route.Route, w http.ResponseWriter, r *http.Request) error {
	actor, err := h.actor(r)
	if err != nil {
		return err
	}
	if !actor.Can(row.Permission) {
		// The target does not matter: say it before it is even looked at.
		return actor.Allow(row.Permission, "", "", "")
	}
	if row.Body >= 0 && r.Body != nil {
		limit := row.Body
		if limit == 0 {
			limit = route.DefaultBody
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
	}
	return row.Handler(w, r.WithContext(auth.WithActor(r.Context(), actor)))
}

// actor says who calls: whoever the token names, else root on root's socket,
// else the machine on its own.
func (h *handler) actor(r *http.Request) (auth.Actor, error) {
	from, _ := origin.Of(r.Header)
	if header := r.Header.Values("Authorization"); len(header) > 0 || from.Front != origin.Socket && from.Front != origin.Machine {
		a, err := h.Auth.VerifyHeader(r.Context(), header)
		if from.Front == origin.Internal || from.Front == origin.Machine {
			a.Origin = root.OriginApp
		}
		return a, err
	}
	if from.LocalRoot() {
		return auth.LocalRoot(), nil
	}
	if m := h.Catalog.Snapshot().Machine(from.Machine); m != nil && from.Front == origin.Machine {
		return auth.MachineActor(m), nil
	}
	return h.Auth.VerifyHeader(r.Context(), nil) // says that a token is missing
}

// sentWriter remembers the status, so that a late error does not answer twice.
type sentWriter struct {
	http.ResponseWriter
	status int
}

func (w *sentWriter) WriteHeader(status int) {
	if w.status == 0 || w.status < 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *sentWriter) Write(data []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(data)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *sentWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
