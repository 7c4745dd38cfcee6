package proxy

import (
	"container/list"
	"sync"
	"sync/atomic"

	root "github.com/roost-run/roost"
)

// waiters lets held requests look again when something about their app
// changed: all of them when a machine changed, one after the other when only a
// place became free. Its zero value is ready.
type waiters struct {
	count atomic.Int64 // so that a change nobody waits for costs one load

	mu   sync.Mutex
	apps map[root.AppName]*list.List // of *waiter, the longest waiting first
}

// waiter is one held request.
type waiter struct {
	app   root.AppName
	again chan struct{} // capacity 1: look again

	// Guarded by waiters.mu.
	place *list.Element // nil: taken out to be told of a free place
	baton int           // how many others may be told, should that place be no use to it
}

// join begins waiting for changes of an app; leave must follow.
func (ws *waiters) join(app root.AppName) *waiter {
	w := &waiter{app: app, again: make(chan struct{}, 1)}
	ws.count.Add(1)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.enqueue(w)
	return w
}

func (ws *waiters) enqueue(w *waiter) {
	if ws.apps == nil {
		ws.apps = make(map[root.AppName]*list.List)
	}
	l := ws.apps[w.app]
	if l == nil {
		l = list.New()
		ws.apps[w.app] = l
	}
	w.place = l.PushBack(w)
}

// arm makes sure that w hears of every change from now on; call it before
// looking.
func (ws *waiters) arm(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	select {
	case <-w.again:
	default:
	}
	if w.place == nil {
		ws.enqueue(w)
	}
}

// pass tells the next one of a place that was of no use to w.
func (ws *waiters) pass(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	n := w.baton
	w.baton = 0
	ws.tell(w.app, n)
}

// tell takes the first waiter out and tells it, unless n is 0.
func (ws *waiters) tell(app root.AppName, n int) {
	l := ws.apps[app]
	if n <= 0 || l == nil || l.Len() == 0 {
		return
	}
	w := l.Remove(l.Front()).(*waiter)
	w.place, w.baton = nil, min(n, l.Len()+1)-1
	w.signal()
}

func (w *waiter) signal() {
	select {
	case w.again <- struct{}{}:
	default:
	}
}

// leave ends waiting. served says that w found its place.
func (ws *waiters) leave(w *waiter, served bool) {
	ws.count.Add(-1)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	l := ws.apps[w.app]
	left := w.baton
	if w.place != nil {
		l.Remove(w.place)
	} else {
		left++ // it was told of a place and did not look
	}
	if !served {
		ws.tell(w.app, left)
	}
	if l != nil && l.Len() == 0 {
		delete(ws.apps, w.app)
	}
}

// freed tells one waiter of the app that a place is free.
func (ws *waiters) freed(app root.AppName) {
	if ws.count.Load() == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if l := ws.apps[app]; l != nil {
		ws.tell(app, l.Len())
	}
}

// wake tells all waiters of an app.
func (ws *waiters) wake(app root.AppName) {
	if ws.count.Load() == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.tellAll(ws.apps[app])
}

// wakeAll tells all waiters.
func (ws *waiters) wakeAll() {
	if ws.count.Load() == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, l := range ws.apps {
		ws.tellAll(l)
	}
}

func (ws *waiters) tellAll(l *list.List) {
	if l == nil {
		return
	}
	for e := l.Front(); e != nil; e = e.Next() {
		e.Value.(*waiter).signal()
	}
}
