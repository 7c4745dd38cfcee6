package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	root "github.com/roost-run/roost"
)

// views are the read-only mounts of images from which the edge serves statics.
// A mount outlives this process; one that nobody needs any more is removed
// after lingerView.
type views struct {
	work *semaphore.Weighted // of 1: mounting and unmounting

	mu    sync.Mutex
	known map[root.Digest]*view
}

type view struct {
	mounted bool      // by this process, or found to be so by it
	needed  time.Time // when a machine was last known to need it
}

func newViews() *views {
	return &views{work: semaphore.NewWeighted(1), known: map[root.Digest]*view{}}
}

const (
	// lingerView is longer than the edge looks for files of a former release
	// (statics.Linger).
	lingerView = 15 * time.Minute
	// maxLinger is how many linger at most, the latest: each keeps its image.
	maxLinger = 8
	// viewsPeriod is between looks at what is needed.
	viewsPeriod = time.Minute
)

func showsFiles(m *root.Machine) bool {
	return len(m.Spec.Config.Statics) > 0 && m.Spec.Image.Digest != "" && m.Spec.Destroy == nil
}

// show has the files of the machine's image readable for the edge if the
// machine has statics. It costs a look into a map when they are already.
func (a *Agent) show(ctx context.Context, m *root.Machine) error {
	if !showsFiles(m) {
		return nil
	}
	d, v := m.Spec.Image.Digest, a.views
	if v.note(d, time.Now()) {
		return nil
	}
	if err := v.work.Acquire(ctx, 1); err != nil {
		return err
	}
	defer v.work.Release(1)
	if v.note(d, time.Now()) {
		return nil
	}
	if err := a.o.Images.View(ctx, d, a.o.Config.View(d)); err != nil {
		return fmt.Errorf("show the files of %s for statics: %w", m.Spec.Image.Ref(), err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[d] = &view{mounted: true, needed: time.Now()}
	return nil
}

// note says that d is needed; it reports whether d is mounted.
func (v *views) note(d root.Digest, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if have := v.known[d]; have != nil {
		have.needed = now
		return have.mounted
	}
	return false
}

// keepViews removes views that no machine needs any more, until ctx ends.
func (a *Agent) keepViews(ctx context.Context) {
	if a.waitSynced(ctx) != nil {
		return
	}
	if err := a.adoptViews(ctx, time.Now()); err != nil {
		a.log.Warn("views of images that an earlier process made are not known", "err", err)
	}
	tick := time.NewTicker(viewsPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			a.removeViews(ctx, now)
		}
	}
}

// adoptViews takes over what the process before left; it lingers from now on.
// Whether it is still mounted shows when a machine needs it.
func (a *Agent) adoptViews(ctx context.Context, now time.Time) error {
	targets, err := a.o.Images.Views(ctx)
	if err != nil {
		return err
	}
	a.views.mu.Lock()
	defer a.views.mu.Unlock()
	for target, d := range targets {
		if a.views.known[d] == nil && target == a.o.Config.View(d) {
			a.views.known[d] = &view{needed: now}
		}
	}
	return nil
}

// removeViews removes the views that have not been needed for a while.
func (a *Agent) removeViews(ctx context.Context, now time.Time) {
	v := a.views
	if !v.any() {
		return
	}
	for m := range a.o.Catalog.Snapshot().AllMachines() {
		if m.Host == a.o.Host && showsFiles(m) {
			v.note(m.Spec.Image.Digest, now)
		}
	}
	if v.work.Acquire(ctx, 1) != nil {
		return
	}
	defer v.work.Release(1)
	for _, d := range v.lapsed(now) {
		if err := a.o.Images.Unview(ctx, a.o.Config.View(d)); err != nil {
			a.log.Warn("view of an image could not be removed", "image", d, "err", err)
			v.mu.Lock()
			v.known[d] = &view{needed: now}
			v.mu.Unlock()
		}
	}
}

func (v *views) any() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.known) > 0
}

// lapsed takes out what has not been needed for lingerView, and what is too
// much of what is not needed at now.
func (v *views) lapsed(now time.Time) []root.Digest {
	v.mu.Lock()
	defer v.mu.Unlock()
	var spare []root.Digest
	for d, have := range v.known {
		if have.needed.Before(now) {
			spare = append(spare, d)
		}
	}
	slices.SortFunc(spare, func(a, b root.Digest) int { return v.known[b].needed.Compare(v.known[a].needed) })
	keep := 0
	for keep < min(len(spare), maxLinger) && now.Sub(v.known[spare[keep]].needed) < lingerView {
		keep++
	}
	for _, d := range spare[keep:] {
		delete(v.known, d)
	}
	return spare[keep:]
}
