// Package catalog is the read model: it keeps the current root.Snapshot, lets
// readers have it with one atomic load, and tells who waits that it changed.
//
// In the control process Follow feeds it from package state; in the edge
// package feed does, from control's stream and the last state on disk. It
// writes nothing, knows no storage and starts no goroutine.
package catalog

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	root "github.com/roost-run/roost"
)

// Catalog is safe for concurrent use.
type Catalog struct {
	current atomic.Pointer[version]

	mu          sync.Mutex                 // one writer at a time
	subscribers map[chan struct{}]struct{} // guarded by mu; capacity 1, closed by cancel only
}

// version is a snapshot and the end of its time.
type version struct {
	snapshot *root.Snapshot
	replaced chan struct{} // closed when the next version stands
}

// New returns a catalog that stands at s.
func New(s *root.Snapshot) *Catalog {
	c := &Catalog{subscribers: map[chan struct{}]struct{}{}}
	c.current.Store(&version{snapshot: s, replaced: make(chan struct{})})
	return c
}

// Snapshot returns the current snapshot: one atomic load.
func (c *Catalog) Snapshot() *root.Snapshot { return c.current.Load().snapshot }

// Apply brings changes in. A status older than the one that is there does not
// replace it; a revision lower than the current one does not count.
func (c *Catalog) Apply(revision int64, changes ...root.Change) {
	c.update(func(s *root.Snapshot) *root.Snapshot {
		return s.With(max(revision, s.Revision()), changes...)
	})
}

// Replace makes next the current snapshot: what it does not have is gone. Of
// machines that both have, the newer status survives.
func (c *Catalog) Replace(next *root.Snapshot) {
	c.update(func(s *root.Snapshot) *root.Snapshot {
		var newer []root.Change
		for m := range next.AllMachines() {
			if old := s.Machine(m.ID); old != nil && m.Status.Stamp.Before(old.Status.Stamp) {
				merged := *m
				merged.Status = old.Status
				newer = append(newer, root.Change{Machine: &merged})
			}
		}
		return next.With(next.Revision(), newer...)
	})
}

// PutStatus brings in news about one machine that came another way than the
// rest, at the current revision; it reports whether they were new. News about
// unknown machines are dropped: their record will bring its own.
func (c *Catalog) PutStatus(id root.MachineID, status root.Status) bool {
	fresh := false
	c.update(func(s *root.Snapshot) *root.Snapshot {
		m := s.Machine(id)
		if m == nil || !m.Status.Stamp.Before(status.Stamp) {
			return s
		}
		fresh = true
		merged := *m
		merged.Status = status
		return s.With(s.Revision(), root.Change{Machine: &merged})
	})
	return fresh
}

func (c *Catalog) update(f func(*root.Snapshot) *root.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.current.Load()
	next := f(old.snapshot)
	if next == old.snapshot {
		return
	}
	c.current.Store(&version{snapshot: next, replaced: make(chan struct{})})
	close(old.replaced)
	for ch := range c.subscribers {
		select {
		case ch <- struct{}{}:
		default: // full: the subscriber has yet to look and will see this too
		}
	}
}

// Changed returns a channel that is closed at the next change. To miss none,
// take it before the snapshot.
func (c *Catalog) Changed() <-chan struct{} { return c.current.Load().replaced }

// Subscribe returns a channel that holds a value whenever something changed
// since it was last emptied; many changes make one value. cancel ends it.
func (c *Catalog) Subscribe() (changed <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subscribers[ch] = struct{}{}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.subscribers, ch)
	}
}

// Wait returns nil as soon as done holds of the current snapshot, which it is
// asked after each change, or the cause of ctx's end.
func (c *Catalog) Wait(ctx context.Context, done func(*root.Snapshot) bool) error {
	for {
		v := c.current.Load()
		if done(v.snapshot) {
			return nil
		}
		select {
		case <-v.replaced:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WaitRevision returns nil once the catalog has seen revision: reads see the
// write that returned it.
func (c *Catalog) WaitRevision(ctx context.Context, revision int64) error {
	err := c.Wait(ctx, func(s *root.Snapshot) bool { return s.Revision() >= revision })
	if err != nil {
		return fmt.Errorf("wait for revision %d (now %d): %w", revision, c.Snapshot().Revision(), err)
	}
	return nil
}

// Store is what Follow reads; package state has it.
type Store interface {
	// Load returns the cluster as it is.
	Load(ctx context.Context) (*root.Snapshot, error)
	// Watch calls f with each later revision's changes until it fails.
	Watch(ctx context.Context, after int64, f func(revision int64, changes []root.Change) error) error
}

// Pauses between attempts to reach the store: it is in this process or near.
const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// Follow keeps the catalog as the store is until ctx ends, whose cause it
// returns. After a failure it loads everything again, with growing pauses.
func (c *Catalog) Follow(ctx context.Context, store Store, log *slog.Logger) error {
	pause := minPause
	for {
		err := c.follow(ctx, store, func() { pause = minPause })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		log.Warn("catalog lost its store and tries again", "err", err, "pause", pause)
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxPause)
	}
}

func (c *Catalog) follow(ctx context.Context, store Store, works func()) error {
	s, err := store.Load(ctx)
	if err != nil {
		return err
	}
	c.Replace(s)
	return store.Watch(ctx, s.Revision(), func(revision int64, changes []root.Change) error {
		works()
		c.Apply(revision, changes...)
		return nil
	})
}
