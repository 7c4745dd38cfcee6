package machines

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/wire"
	public "github.com/roost-run/roost/machines"
)

func (h *handlers) start(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	previous, err := h.Machines.Start(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader))
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, public.StartReply{PreviousState: public.State(previous)})
}

func (h *handlers) stop(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	var in public.StopRequest
	if err := route.ReadJSON(r, &in, true); err != nil {
		return err
	}
	signal, err := stopSignal(string(in.Signal))
	if err != nil {
		return err
	}
	timeout, err := stopTimeout(time.Duration(in.Timeout))
	if err != nil {
		return err
	}
	if err := h.Machines.Stop(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader), control.StopRequest{Signal: signal, Timeout: timeout}); err != nil {
		return err
	}
	return route.OK(w)
}

func (h *handlers) restart(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	var timeout time.Duration
	if s := q.Get("timeout"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 1<<20 {
			timeout = time.Duration(n) * time.Second
		} else if timeout, err = time.ParseDuration(s); err != nil {
			return root.Errorf(root.Invalid, "query timeout: %q is neither a duration such as \"10s\" nor a number of seconds", route.Clip(s))
		}
	}
	if timeout, err = stopTimeout(timeout); err != nil {
		return err
	}
	signal, err := stopSignal(q.Get("signal"))
	if err != nil {
		return err
	}
	force, err := route.Bool(q, "force_stop")
	if err != nil {
		return err
	}
	req := control.RestartRequest{Signal: signal, Timeout: timeout, Force: force}
	if err := h.Machines.Restart(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader), req); err != nil {
		return err
	}
	return route.OK(w)
}

func (h *handlers) suspend(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	if err := h.Machines.Suspend(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader)); err != nil {
		return err
	}
	return route.OK(w)
}

func (h *handlers) signal(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	var in struct {
		Signal public.Signal `json:"signal"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	number, ok := signalNumber(string(in.Signal))
	if !ok {
		return root.Errorf(root.Invalid, "signal: %q is neither a signal's name such as SIGUSR1 nor its number", route.Clip(string(in.Signal)))
	}
	if err := h.Machines.Signal(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader), number); err != nil {
		return err
	}
	return route.OK(w)
}

func (h *handlers) cordon(on bool) route.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		app, id, err := route.Machine(r)
		if err != nil {
			return err
		}
		if err := h.Machines.Cordon(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader), on); err != nil {
			return err
		}
		return route.OK(w)
	}
}

// maxWait is Fly's ceiling of one wait; longer ones are cut.
const maxWait = 60

func (h *handlers) wait(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	seconds, err := route.Int(q, "timeout", 0, 1<<20, maxWait)
	if err != nil {
		return err
	}
	req := control.WaitRequest{
		States:    commaList(q["state"]),
		Version:   cmp.Or(q.Get("version"), q.Get("instance_id")),
		FromEvent: q.Get("from_event_id"),
		Timeout:   time.Duration(min(max(seconds, 1), maxWait)) * time.Second,
	}
	for _, s := range req.States {
		switch s {
		case "started", "stopped", "suspended", "destroyed", "failed", "settled":
		default:
			return root.Errorf(root.Invalid, "query state: %q is not one of started, stopped, suspended, destroyed, failed, settled", route.Clip(s))
		}
	}
	res, err := h.Machines.Wait(r.Context(), route.Actor(r), app, id, req)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, public.WaitReply{OK: true, State: public.State(res.State), Version: string(res.Version), EventID: res.EventID})
}

// maxLease bounds a lease: an abandoned one keeps a machine asleep.
const maxLease = time.Hour

// defaultLease is the ttl of a request that names none.
const defaultLease = 30 * time.Second

type leaseReply struct {
	Status string `json:"status"`
	Data   any    `json:"data"`
}

func (h *handlers) getLease(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	l, err := h.Machines.Lease(r.Context(), route.Actor(r), app, id)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, leaseReply{"success", wire.FromLease(l)})
}

func (h *handlers) acquireLease(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	var in struct {
		Description string `json:"description"`
		TTL         int    `json:"ttl"`
	}
	if err := route.ReadJSON(r, &in, true); err != nil {
		return err
	}
	seconds, err := route.Int(r.URL.Query(), "ttl", 0, 1<<30, in.TTL)
	if err != nil {
		return err
	}
	if seconds < 0 {
		return root.Errorf(root.Invalid, "ttl: %d must not be negative", seconds)
	}
	ttl := time.Duration(min(seconds, int(maxLease/time.Second))) * time.Second
	if ttl == 0 {
		ttl = defaultLease
	}
	l, err := h.Machines.Acquire(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader), in.Description, ttl)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, leaseReply{"success", wire.FromLease(l)})
}

func (h *handlers) releaseLease(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	if err := h.Machines.Release(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader)); err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, leaseReply{"success", map[string]bool{"ok": true}})
}

// stopSignal checks a signal that a stop may use; "" is the machine's own.
func stopSignal(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		for name, number := range signals {
			if int(number) == n {
				s = name
			}
		}
	}
	if slices.Contains(root.StopSignals, s) {
		return s, nil
	}
	return "", root.Errorf(root.Invalid, "signal: %q is not one of %s", route.Clip(s), strings.Join(root.StopSignals, ", "))
}

func stopTimeout(d time.Duration) (time.Duration, error) {
	if d < 0 || d > root.MaxStopTimeout {
		return 0, root.Errorf(root.Invalid, "timeout: %s is out of range (0s, the machine's own, to %s)", d, root.MaxStopTimeout)
	}
	return d, nil
}

var signals = map[string]syscall.Signal{
	"SIGABRT": syscall.SIGABRT, "SIGALRM": syscall.SIGALRM, "SIGFPE": syscall.SIGFPE, "SIGHUP": syscall.SIGHUP,
	"SIGILL": syscall.SIGILL, "SIGINT": syscall.SIGINT, "SIGKILL": syscall.SIGKILL, "SIGPIPE": syscall.SIGPIPE,
	"SIGQUIT": syscall.SIGQUIT, "SIGSEGV": syscall.SIGSEGV, "SIGTERM": syscall.SIGTERM, "SIGTRAP": syscall.SIGTRAP,
	"SIGUSR1": syscall.SIGUSR1, "SIGUSR2": syscall.SIGUSR2,
}

func signalNumber(s string) (int, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return n, n > 0 && n < 65
	}
	n, ok := signals[s]
	return int(n), ok
}
