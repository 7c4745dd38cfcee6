package builder

import (
	"context"
	"sync"
)

// queue says which builds run. Those of different scopes never do at a time:
// steps share the builder's network namespace, where one could listen on, or
// call, another's loopback. Otherwise builds begin in the order in which they
// came, so that no scope keeps another one waiting.
type queue struct {
	slots int

	mu      sync.Mutex
	running int    // guarded by mu
	scope   string // guarded by mu; of those that run
	waiting []*waiter
}

// waiter is a build that waits; begin is closed when it may run.
type waiter struct {
	scope string
	begin chan struct{}
}

// enter returns when a build of that scope may run, or ctx ends; done must be
// called after it. If it has to wait, told is called with the number of builds
// before it; its error ends the wait.
func (q *queue) enter(ctx context.Context, scope string, told func(before int) error) (done func(), err error) {
	q.mu.Lock()
	w := &waiter{scope: scope, begin: make(chan struct{})}
	q.waiting = append(q.waiting, w)
	before := len(q.waiting) - 1 + q.running
	q.next()
	q.mu.Unlock()
	select {
	case <-w.begin:
		return q.leave, nil
	default:
	}
	if err := told(before); err != nil {
		q.forget(w)
		return nil, err
	}
	select {
	case <-w.begin:
		return q.leave, nil
	case <-ctx.Done():
		q.forget(w)
		return nil, context.Cause(ctx)
	}
}

// next lets those begin that may. The caller holds mu.
func (q *queue) next() {
	for len(q.waiting) > 0 && q.running < q.slots {
		w := q.waiting[0]
		if q.running > 0 && w.scope != q.scope {
			return
		}
		q.waiting = q.waiting[1:]
		q.scope = w.scope
		q.running++
		close(w.begin)
	}
}

func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	q.next()
}

// forget is for a build that does not wait any more.
func (q *queue) forget(w *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-w.begin: // it was let in meanwhile
		q.running--
	default:
		for i, other := range q.waiting {
			if other == w {
				q.waiting = append(q.waiting[:i:i], q.waiting[i+1:]...)
				break
			}
		}
	}
	q.next()
}
