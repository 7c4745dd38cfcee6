// Package serverless runs some routes of a web app on a machine of their own,
// which sleeps until one of them is asked for: net/http middleware for heavy
// work such as rendering documents.
//
//	s := serverless.New(serverless.Options{
//		Routes: []string{"GET /purchases/receipts", "GET /purchases/{id}/receipt"},
//	})
//	defer s.Close()
//	http.ListenAndServe("0.0.0.0:8080", s.Wrap(mux))
//
// On an app machine a request for one of the routes is answered with
// "fly-replay: instance=<id>": the proxy takes it to the serverless machine,
// waking it if it sleeps. That machine is found by its name, "serverless-" and
// the first 12 digits of the image's digest, or made through the Machines API
// from the app machine's own image and config. Every version of an app so has
// its own, and however many processes ask first, there is one: the API takes a
// name only once. On the serverless machine, which runs the same program, the
// routes are served, and everything else is sent back with "elsewhere=true".
//
// When that cannot work, the app machine serves the request itself, says why
// in the header Serverless-Fallback, and logs it: the API does not answer, the
// machine cannot be made, the replay did not reach it, the body is too large to
// be replayed. Outside of a machine everything is served locally.
//
// When no app machine runs an older image any more, that image's serverless
// machine is removed as soon as it is idle.
//
// The package needs FLY_APP_NAME, FLY_MACHINE_ID and FLY_IMAGE_REF, which every
// machine has, and a token in FLY_API_TOKEN that may create machines.
package serverless

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/roost-run/roost/machines"
)

// The headers that the package adds for people and tests.
const (
	// HeaderFallback is on a response that was to come from the serverless
	// machine and did not: it says why.
	HeaderFallback = "Serverless-Fallback"
	// HeaderMachine is on a response that came from the serverless machine: its id.
	HeaderMachine = "Serverless-Machine"
)

// envMarker tells a process that it runs on a serverless machine.
const envMarker = "SERVERLESS_MACHINE"

// replayState travels with a replay, so that one that comes back is known.
const replayState = "serverless"

// maxBody is what the proxy keeps of a request's body for a replay.
const maxBody = 10 << 20

// The defaults of Options.
const (
	DefaultPatience      = 10 * time.Second
	DefaultReplayTimeout = 30 * time.Second
)

// Options say what runs on the serverless machine, and how.
type Options struct {
	// Routes are patterns of http.ServeMux: "GET /purchases/{id}/receipt".
	Routes []string
	// Client calls the Machines API; nil: machines.New's defaults.
	Client *machines.Client
	// IdleStop is how long the machine idles before it is suspended; 0: the
	// platform's default, 5 minutes.
	IdleStop time.Duration
	// SuspendFor is how long it then stays suspended before it is stopped;
	// 0: the platform's default, 24 hours.
	SuspendFor time.Duration
	// Guest is the machine's size; nil: that of the app machine.
	Guest *machines.Guest
	// Env is added to the app machine's env.
	Env map[string]string
	// Patience is how long a request waits for the machine to be found or
	// made before it is served locally; 0: DefaultPatience.
	Patience time.Duration
	// ReplayTimeout is how long the proxy may take to reach the machine, waking
	// included, before it sends the request back; 0: DefaultReplayTimeout.
	ReplayTimeout time.Duration
	// Logger is where fallbacks are reported; nil: nowhere.
	Logger *slog.Logger
	// Getenv reads the machine's environment; nil: os.Getenv.
	Getenv func(string) string
}

// Serverless is the middleware. It is safe for concurrent use.
type Serverless struct {
	routes   *http.ServeMux
	self     identity
	patience time.Duration
	replay   time.Duration
	log      *slog.Logger
	pool     *pool // nil unless on an app machine
}

// identity is what the environment says of the machine the process runs on.
type identity struct {
	app, machine, image string
	serverless          bool
}

func (i identity) onMachine() bool { return i.app != "" && i.machine != "" }

// New returns the middleware; it connects to nothing. It panics if a route is
// not a pattern or two of them conflict, as http.ServeMux does.
func New(o Options) *Serverless {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.ReplayTimeout == 0 {
		o.ReplayTimeout = DefaultReplayTimeout
	}
	s := &Serverless{
		routes:   http.NewServeMux(),
		patience: o.Patience,
		replay:   o.ReplayTimeout,
		log:      o.Logger,
		self: identity{
			app: o.Getenv("FLY_APP_NAME"), machine: o.Getenv("FLY_MACHINE_ID"), image: o.Getenv("FLY_IMAGE_REF"),
			serverless: o.Getenv(envMarker) != "",
		},
	}
	for _, pattern := range o.Routes {
		s.routes.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) {})
	}
	if s.self.onMachine() && !s.self.serverless {
		if o.Client == nil {
			o.Client = machines.New(machines.Options{UserAgent: "roost-serverless"})
		}
		s.pool = newPool(o, s.self)
	}
	return s
}

// Close ends the work in the background: looking for older machines. Requests
// are served on.
func (s *Serverless) Close() {
	if s.pool != nil {
		s.pool.close()
	}
}

// Wrap returns next behind the middleware.
func (s *Serverless) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, pattern := s.routes.Handler(r)
		switch matches := pattern != ""; {
		case r.Header.Get("Fly-Request-Id") == "":
			// Not from the proxy, which alone replays: a health check, or a
			// neighbour by its private name.
			next.ServeHTTP(w, r)
		case s.self.serverless && matches:
			w.Header().Set(HeaderMachine, s.self.machine)
			next.ServeHTTP(w, r)
		case s.self.serverless:
			s.sendBack(w, r, next)
		case matches:
			s.sendOver(w, r, next)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// sendBack lets an app machine answer what has no business here.
func (s *Serverless) sendBack(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if failed := r.Header.Get("Fly-Replay-Failed"); failed != "" {
		s.fallback(w, r, next, reason("no app machine took it: "+failedReason(failed)))
		return
	}
	replay(w, "elsewhere=true;fallback=prefer_self", "This is the serverless machine; an app machine answers this path.")
}

// sendOver lets the serverless machine answer.
func (s *Serverless) sendOver(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if failed := r.Header.Get("Fly-Replay-Failed"); failed != "" {
		if s.pool != nil {
			s.pool.forget()
		}
		s.fallback(w, r, next, reason("replay failed: "+failedReason(failed)))
		return
	}
	switch {
	case s.pool == nil:
		s.fallback(w, r, next, reason("not on a machine"))
		return
	case strings.Contains(r.Header.Get("Fly-Replay-Src"), "state="+replayState):
		s.fallback(w, r, next, reason("the replay came back"))
		return
	case r.ContentLength > maxBody:
		s.fallback(w, r, next, reason("the body is too large to be replayed"))
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.patience, errPatience)
	defer cancel()
	id, err := s.pool.machine(ctx)
	if err != nil {
		if r.Context().Err() != nil {
			return // the client went away
		}
		s.fallback(w, r, next, err)
		return
	}
	replay(w, fmt.Sprintf("instance=%s;timeout=%s;fallback=prefer_self;state=%s", id, s.replay, replayState),
		"This path is answered by serverless machine "+id+"; the proxy takes the request there.")
}

const errPatience = reason("the serverless machine is still being made")

// reason is an error that the client may read too.
type reason string

func (r reason) Error() string { return string(r) }

// reasonOf says in public what err is: without addresses, ids or texts of the
// platform, which are for the log.
func reasonOf(err error) string {
	if r, ok := errors.AsType[reason](err); ok {
		return string(r)
	}
	switch status := machines.StatusOf(err); {
	case status == 0:
		return "the machines API does not answer"
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return "the machines API refuses the app's token"
	case status >= http.StatusInternalServerError:
		return "the machines API is unavailable"
	}
	return "the serverless machine could not be made"
}

// replay answers for the proxy, which swallows the response. Whoever reads it
// all the same has reached the app past the proxy.
func replay(w http.ResponseWriter, value, text string) {
	w.Header().Set("Fly-Replay", value)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusTemporaryRedirect)
	_, _ = fmt.Fprintln(w, text) // nobody to tell
}

// fallback serves locally and says so: all to the log, the reason to the client.
func (s *Serverless) fallback(w http.ResponseWriter, r *http.Request, next http.Handler, err error) {
	s.log.WarnContext(r.Context(), "served locally instead of on the serverless machine",
		"app", s.self.app, "machine", s.self.machine, "path", r.URL.Path, "request_id", r.Header.Get("Fly-Request-Id"), "err", err)
	w.Header().Set(HeaderFallback, headerText(reasonOf(err)))
	next.ServeHTTP(w, r)
}

// headerText makes a text fit into a header.
func headerText(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s)
	return s[:min(len(s), most)]
}

// failedReason reads the reason of a fly-replay-failed header.
func failedReason(header string) string {
	for field := range strings.SplitSeq(header, ";") {
		if reason, ok := strings.CutPrefix(strings.TrimSpace(field), "reason="); ok {
			return reason
		}
	}
	return "no reason given"
}
