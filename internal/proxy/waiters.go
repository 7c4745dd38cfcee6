package proxy

import (
	"sync"
	"sync/atomic"

	root "github.com/roost-run/roost"
)

// waiters lets held requests look again when something about their app
// changed. Its zero value is ready.
type waiters struct {
	count atomic.Int64 // so that a change nobody waits for costs one load

	mu   sync.Mutex
	apps map[root.AppName]*appWaiters
}

type appWaiters struct {
	changed chan struct{} // closed at the next change
	n       int
}

// join begins waiting for changes of an app; leave must follow.
func (w *waiters) join(app root.AppName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.Add(1)
	if w.apps == nil {
		w.apps = make(map[root.AppName]*appWaiters)
	}
	a := w.apps[app]
	if a == nil {
		a = &appWaiters{changed: make(chan struct{})}
		w.apps[app] = a
	}
	a.n++
}

func (w *waiters) leave(app root.AppName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.Add(-1)
	if a := w.apps[app]; a != nil {
		if a.n--; a.n == 0 {
			delete(w.apps, app)
		}
	}
}

// changed is closed at the next change; get it before looking.
func (w *waiters) changed(app root.AppName) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.apps[app].changed
}

func (w *waiters) wake(app root.AppName) {
	if w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.apps[app]; a != nil {
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

func (w *waiters) wakeAll() {
	if w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.apps {
		close(a.changed)
		a.changed = make(chan struct{})
	}
}
