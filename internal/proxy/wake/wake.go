// Package wake holds requests whose machine sleeps: a bounded queue per app,
// and one flight per instance that all its waiters share. It does not know how
// a machine starts.
package wake

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	root "github.com/roost-run/roost"
)

// Waker brings a machine's current version up; it returns when its processes
// run. Readiness of a port is not its business.
type Waker interface {
	Wake(ctx context.Context, m *root.Machine) error
}

// Flights starts each instance at most once at a time. Use New; safe for
// concurrent use.
type Flights struct {
	waker    Waker
	deadline time.Duration

	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	flights map[root.InstanceID]*Flight
	running sync.WaitGroup
}

// New returns Flights whose wakes may take up to deadline each.
func New(w Waker, deadline time.Duration) *Flights {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Flights{waker: w, deadline: deadline, ctx: ctx, cancel: cancel, flights: make(map[root.InstanceID]*Flight)}
}

// Flight is one wake under way.
type Flight struct {
	done chan struct{} // closed when err is set
	err  error
}

// Done is closed when the wake ended.
func (f *Flight) Done() <-chan struct{} { return f.done }

// Err says how it ended; call it after Done.
func (f *Flight) Err() error { return f.err }

// Start joins the flight of the machine's current version, or begins one. It
// goes on when the caller leaves: whoever comes next profits.
func (fs *Flights) Start(m *root.Machine) *Flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	id := m.Spec.Instance
	if f := fs.flights[id]; f != nil {
		return f
	}
	f := &Flight{done: make(chan struct{})}
	if fs.ctx.Err() != nil {
		f.err = root.Errorf(root.Unavailable, "the edge is shutting down")
		close(f.done)
		return f
	}
	fs.flights[id] = f
	fs.running.Go(func() {
		ctx, cancel := context.WithTimeoutCause(fs.ctx, fs.deadline, root.Errorf(root.Timeout, "machine %s did not start within %s", m.ID, fs.deadline))
		defer cancel()
		err := fs.waker.Wake(ctx, m)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		fs.mu.Lock()
		delete(fs.flights, id)
		fs.mu.Unlock()
		f.err = err
		close(f.done)
	})
	return f
}

// Underway reports whether a wake of the instance is under way.
func (fs *Flights) Underway(id root.InstanceID) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.flights[id] != nil
}

// Close ends all flights and waits for them.
func (fs *Flights) Close() {
	fs.mu.Lock() // no Start is between its check and its Go
	fs.cancel(root.Errorf(root.Unavailable, "the edge is shutting down"))
	fs.mu.Unlock()
	fs.running.Wait()
}

// Queue bounds how many requests wait, per app and together.
type Queue struct {
	perApp, all int64
	total       atomic.Int64

	mu   sync.Mutex
	apps map[root.AppName]int64
}

// NewQueue returns a queue with the two bounds.
func NewQueue(perApp, all int) *Queue {
	return &Queue{perApp: int64(perApp), all: int64(all), apps: make(map[root.AppName]int64)}
}

// Enter takes a place, or returns false if the queue is full.
func (q *Queue) Enter(app root.AppName) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.apps[app] >= q.perApp || q.total.Load() >= q.all {
		return false
	}
	q.apps[app]++
	q.total.Add(1)
	return true
}

// Leave gives the place back.
func (q *Queue) Leave(app root.AppName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.apps[app]--; q.apps[app] <= 0 {
		delete(q.apps, app)
	}
	q.total.Add(-1)
}

// Len is how many wait now.
func (q *Queue) Len() int { return int(q.total.Load()) }
