package agent

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
)

// supervisor is a server process without processes: it takes orders, keeps
// instances and journal, and does at once what it is told.
type supervisor struct {
	mu        sync.Mutex
	boot      uint64
	instances map[root.InstanceID]*orders.Instance
	journal   []orders.Entry
	changed   chan struct{}
	listens   map[string][]orders.Listen // by the value of the boot's Command
	refuse    map[string]error           // starts, by the boot's Command
	exitAt    map[string]int             // a boot with this Command ends at once with the code
	notes     []string
	stopped   []root.InstanceID // order of stops
	stubborn  bool              // stops do not end anything
	quicker   bool              // what is to be stopped has just failed by itself
}

func newSupervisor() *supervisor {
	return &supervisor{
		boot: 1, instances: map[root.InstanceID]*orders.Instance{}, changed: make(chan struct{}),
		listens: map[string][]orders.Listen{}, refuse: map[string]error{}, exitAt: map[string]int{},
	}
}

// record appends an entry; the caller holds mu.
func (s *supervisor) record(i *orders.Instance, e orders.Entry) root.Stamp {
	e.Stamp = root.Stamp{Boot: s.boot, Seq: uint64(len(s.journal) + 1)}
	e.At, e.Machine, e.App, e.Instance, e.Generation = time.Now().UTC(), i.Machine, i.App, i.Instance, i.Generation
	s.journal = append(s.journal, e)
	if p := orders.PhaseAfter(e.Type); p != "" {
		i.Phase, i.Stamp, i.Since = p, e.Stamp, e.At
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return e.Stamp
}

// end ends a running boot; the caller holds mu.
func (s *supervisor) end(i *orders.Instance, x orders.Exit) {
	n := i.Running.Number
	i.Running = nil
	s.record(i, orders.Entry{Type: orders.EntryExited, Number: n, Exit: &x})
}

// crash ends the machine's running boot by itself.
func (s *supervisor) crash(t *testing.T, id root.InstanceID, code int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.instances[id]
	if i == nil || i.Running == nil {
		t.Fatalf("instance %s does not run", id)
	}
	s.end(i, orders.Exit{Code: code})
}

// reboot forgets everything but the journal.
func (s *supervisor) reboot() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.instances {
		if i.Running != nil {
			n := i.Running.Number
			i.Running = nil
			s.record(i, orders.Entry{Type: orders.EntryExited, Number: n, Exit: &orders.Exit{Code: -1}, Reason: orders.ReasonHostRestarted})
		}
	}
	s.boot++
	s.instances = map[root.InstanceID]*orders.Instance{}
}

func (s *supervisor) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.instances)
}

func (s *supervisor) said() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.notes...)
}

func order[In any](s *supervisor, f func(*orders.Instance, In) (any, error)) http.HandlerFunc {
	return ipc.Handler(func(_ context.Context, r *http.Request, in In) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := s.instances[root.InstanceID(r.PathValue("instance"))]
		if i == nil {
			return nil, root.Errorf(root.NotFound, "there is no instance %s here", r.PathValue("instance"))
		}
		return f(i, in)
	})
}

func (s *supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/instances", ipc.Handler(func(context.Context, *http.Request, struct{}) ([]orders.Instance, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		out := []orders.Instance{}
		for _, i := range s.instances {
			out = append(out, *i)
		}
		return out, nil
	}))
	mux.HandleFunc("GET /v1/instances/{instance}", order(s, func(i *orders.Instance, _ struct{}) (any, error) { return *i, nil }))
	mux.HandleFunc("PUT /v1/instances/{instance}/next", ipc.Handler(func(_ context.Context, r *http.Request, b orders.Boot) (orders.Done, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := s.instances[b.Instance]
		if i == nil {
			i = &orders.Instance{Machine: b.Machine, App: b.App, Instance: b.Instance, Generation: b.Generation, Phase: orders.PhaseStopped}
			s.instances[b.Instance] = i
		}
		i.Next = &b
		if at := s.record(i, orders.Entry{Type: orders.EntryPrepared, Number: b.Number}); i.Stamp == (root.Stamp{}) {
			i.Stamp = at
		}
		return orders.Done{Phase: i.Phase, Stamp: i.Stamp}, nil
	}))
	mux.HandleFunc("POST /v1/instances/{instance}/start", order(s, s.start))
	mux.HandleFunc("POST /v1/instances/{instance}/stop", order(s, func(i *orders.Instance, o orders.Stop) (any, error) {
		if i.Running != nil && s.quicker {
			s.end(i, orders.Exit{Code: 1})
		}
		if i.Running != nil {
			at := s.record(i, orders.Entry{Type: orders.EntryStopping, Number: i.Running.Number, Source: o.Source, Reason: o.Reason})
			s.stopped = append(s.stopped, i.Instance)
			if !s.stubborn {
				s.end(i, orders.Exit{Code: 130, Signal: 2, Requested: true})
			}
			return orders.Done{Phase: orders.PhaseStopping, Stamp: at}, nil
		}
		return orders.Done{Phase: i.Phase, Stamp: i.Stamp}, nil
	}))
	mux.HandleFunc("POST /v1/instances/{instance}/suspend", order(s, func(i *orders.Instance, o orders.Suspend) (any, error) {
		s.record(i, orders.Entry{Type: orders.EntrySuspending, Source: o.Source})
		return orders.Done{Phase: orders.PhaseSuspended, Stamp: s.record(i, orders.Entry{Type: orders.EntrySuspended, Source: o.Source})}, nil
	}))
	mux.HandleFunc("POST /v1/instances/{instance}/lease", order(s, func(i *orders.Instance, o orders.Lease) (any, error) {
		i.LeaseUntil = o.Until
		return orders.Done{}, nil
	}))
	mux.HandleFunc("POST /v1/instances/{instance}/note", order(s, func(_ *orders.Instance, o orders.Note) (any, error) {
		s.notes = append(s.notes, o.Line)
		return orders.Done{}, nil
	}))
	mux.HandleFunc("GET /v1/instances/{instance}/inspect", order(s, func(i *orders.Instance, _ struct{}) (any, error) {
		if i.Running == nil {
			return nil, root.Errorf(root.Precondition, "not running")
		}
		return orders.Inspection{Listens: s.listens[i.Running.Command]}, nil
	}))
	mux.HandleFunc("DELETE /v1/instances/{instance}", ipc.Handler(func(_ context.Context, r *http.Request, _ struct{}) (orders.Done, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		id := root.InstanceID(r.PathValue("instance"))
		if i := s.instances[id]; i != nil {
			if i.Running != nil {
				s.end(i, orders.Exit{Code: 137, Signal: 9, Requested: true})
			}
			delete(s.instances, id)
			s.record(i, orders.Entry{Type: orders.EntryRemoved})
		}
		return orders.Done{}, nil
	}))
	mux.HandleFunc("GET /v1/journal", s.follow)
	return mux
}

func (s *supervisor) start(i *orders.Instance, o orders.Start) (any, error) {
	switch {
	case i.Phase == orders.PhaseStarted:
		return orders.Started{Stamp: i.Stamp, Phase: orders.PhaseStarted}, nil
	case i.Phase == orders.PhaseSuspended:
		return orders.Started{Stamp: s.record(i, orders.Entry{Type: orders.EntryResumed, Number: i.Running.Number, Source: o.Source}), Phase: orders.PhaseStarted, Thawed: true}, nil
	case i.Next == nil:
		return nil, root.Errorf(root.Timeout, "no boot is prepared")
	}
	b := i.Next
	if err := s.refuse[b.Command]; root.IsKind(err, root.Exhausted) {
		return nil, err // not admitted: nothing begins
	}
	s.record(i, orders.Entry{Type: orders.EntryStarting, Number: b.Number, Source: o.Source, Reason: o.Reason})
	i.Next = nil
	if err := s.refuse[b.Command]; err != nil {
		s.record(i, orders.Entry{Type: orders.EntryFailed, Number: b.Number, Source: o.Source, Reason: o.Reason, Error: root.MessageOf(err)})
		return nil, err
	}
	i.Running = b
	at := s.record(i, orders.Entry{Type: orders.EntryStarted, Number: b.Number, Source: o.Source, Reason: o.Reason})
	if code, ok := s.exitAt[b.Command]; ok {
		s.end(i, orders.Exit{Code: code})
	}
	return orders.Started{Stamp: at, Phase: orders.PhaseStarted, Booted: true}, nil
}

func (s *supervisor) follow(w http.ResponseWriter, r *http.Request) {
	boot, _ := strconv.ParseUint(r.URL.Query().Get("boot"), 10, 64)
	seq, _ := strconv.ParseUint(r.URL.Query().Get("seq"), 10, 64)
	after, next, caughtUp := root.Stamp{Boot: boot, Seq: seq}, 0, false
	stream := ipc.NewStream(w)
	for {
		s.mu.Lock()
		entries, changed := s.journal[next:], s.changed
		next = len(s.journal)
		s.mu.Unlock()
		for _, e := range entries {
			if after.Before(e.Stamp) && stream.Send(e) != nil {
				return
			}
		}
		if !caughtUp {
			caughtUp = true
			if stream.Send(orders.Entry{CaughtUp: true}) != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// serve serves the supervisor at a socket until the test ends.
func (s *supervisor) serve(t *testing.T) *orders.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "roost-agent") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := ipc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := ipc.NewServer(s.handler())
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	c := orders.NewClient(path)
	t.Cleanup(func() {
		c.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return c
}
