package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/metrics"
	"github.com/roost-run/roost/internal/orders"
)

// live is what the instances of this host do right now, by the server
// process's journal, which is ahead of the catalog. Safe for concurrent use.
type live struct {
	mu        sync.RWMutex
	instances map[root.InstanceID]*instance
	complete  bool // instances has all that the server process knows

	ready chan struct{} // closed when complete became true
}

// instance is a value: entries replace it.
type instance struct {
	machine root.MachineID
	app     root.AppName
	phase   orders.Phase
	stamp   root.Stamp
	since   time.Time
	started time.Time  // of the last boot
	boot    root.Stamp // of its start
	ended   string     // how it last ended by itself
	endedAt time.Time
}

// freshEnd is how long the way a machine ended explains what happens now.
const freshEnd = 2 * time.Minute

func newLive() *live {
	return &live{instances: make(map[root.InstanceID]*instance), ready: make(chan struct{})}
}

// State implements proxy.Live and nameserver's State: the newest news win.
func (l *live) State(m *root.Machine) root.State {
	l.mu.RLock()
	in, complete := l.instances[m.Spec.Instance], l.complete
	l.mu.RUnlock()
	st := &m.Status
	current := st.Instance == m.Spec.Instance
	switch {
	case in != nil && in.stamp != (root.Stamp{}) && (!current || st.Stamp.Before(in.stamp)):
		return in.phase.State()
	case !current && st.Instance != "":
		return root.StateUpdating // a new version is on its way
	case st.State == "":
		return root.StateCreating
	case in == nil && complete:
		switch st.State {
		case root.StateStarted, root.StateStarting, root.StateStopping, root.StateSuspending, root.StateSuspended:
			return root.StateRestarting // the host came up anew: the agent brings it back
		}
	}
	return st.State
}

// Ended implements proxy.Live.
func (l *live) Ended(m *root.Machine) string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if in := l.instances[m.Spec.Instance]; in != nil && time.Since(in.endedAt) < freshEnd {
		return in.ended
	}
	return ""
}

// get returns what is known of an instance.
func (l *live) get(id root.InstanceID) (instance, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if in := l.instances[id]; in != nil {
		return *in, true
	}
	return instance{}, false
}

// reset begins anew with the server process's account.
func (l *live) reset(all []orders.Instance) (newest root.Stamp) {
	next := make(map[root.InstanceID]*instance, len(all))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range all {
		in := &instance{machine: i.Machine, app: i.App, phase: i.Phase, stamp: i.Stamp, since: i.Since, started: i.StartedAt, boot: i.Stamp}
		if old := l.instances[i.Instance]; old != nil {
			in.ended, in.endedAt = old.ended, old.endedAt
			if !old.started.Before(i.StartedAt) {
				in.started, in.boot = old.started, old.boot
			}
			if in.stamp.Before(old.stamp) {
				in.phase, in.stamp, in.since = old.phase, old.stamp, old.since
			}
		}
		next[i.Instance] = in
		if newest.Before(i.Stamp) {
			newest = i.Stamp
		}
	}
	if !l.complete {
		close(l.ready)
	}
	l.instances, l.complete = next, true
	return newest
}

// apply takes news, from the journal or from the answer to an order.
func (l *live) apply(e orders.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Type == orders.EntryRemoved {
		delete(l.instances, e.Instance)
		return
	}
	in := instance{machine: e.Machine, app: e.App, phase: orders.PhaseStopped}
	if old := l.instances[e.Instance]; old != nil {
		in = *old
	}
	if phase := orders.PhaseAfter(e.Type); phase != "" && in.stamp.Before(e.Stamp) {
		in.phase, in.stamp, in.since = phase, e.Stamp, e.At
		if e.Type == orders.EntryStarted {
			in.started, in.boot = e.At, e.Stamp
		}
	}
	switch e.Type {
	case orders.EntryFailed:
		in.ended, in.endedAt = "could not start: "+e.Error, e.At
	case orders.EntryExited:
		if x := e.Exit; x != nil && !x.Requested {
			in.ended, in.endedAt = describeExit(x, e.At.Sub(in.started), in.started.IsZero()), e.At
		}
	}
	l.instances[e.Instance] = &in
}

func describeExit(x *orders.Exit, after time.Duration, unknown bool) string {
	how := fmt.Sprintf("exited with code %d", x.Code)
	switch {
	case x.OOMKilled:
		how = "was killed because it ran out of memory"
	case x.Code < 0:
		how = "ended while nobody watched"
	case x.Signal > 0:
		how = fmt.Sprintf("was killed by signal %d", x.Signal)
	}
	if unknown || after < 0 {
		return how
	}
	return fmt.Sprintf("%s %s after its start", how, after.Round(10*time.Millisecond))
}

const (
	minPause = 20 * time.Millisecond
	maxPause = time.Second
)

// journal is the part of orders.Client that follow uses.
type journal interface {
	Instances(ctx context.Context) ([]orders.Instance, error)
	Journal(ctx context.Context, after root.Stamp, f func(orders.Entry) error) error
}

// follow keeps l as the server process's journal says until ctx ends. begun is
// called after every account of everything, entry after every entry.
func (l *live) follow(ctx context.Context, j journal, begun func([]orders.Instance), entry func(orders.Entry)) error {
	pause := minPause
	for {
		all, err := j.Instances(ctx)
		if err == nil {
			pause = minPause
			after := l.reset(all)
			begun(all)
			err = j.Journal(ctx, after, func(e orders.Entry) error {
				if e.CaughtUp {
					return nil
				}
				l.apply(e)
				entry(e)
				return nil
			})
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_ = err // the server process restarts: connect again
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, maxPause)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// supervisor is the part of orders.Client that gives orders.
type supervisor interface {
	Start(ctx context.Context, id root.InstanceID, o orders.Start) (orders.Started, error)
	Stop(ctx context.Context, id root.InstanceID, o orders.Stop) (orders.Done, error)
	Suspend(ctx context.Context, id root.InstanceID, o orders.Suspend) (orders.Done, error)
	Inspect(ctx context.Context, id root.InstanceID) (orders.Inspection, error)
}

// waker implements proxy.Waker.
type waker struct {
	supervisor supervisor
	live       *live
	applied    func(orders.Entry)
	metrics    *metrics.Edge
	say        *machinelog.Apps // nil: nowhere
}

// Wake orders a start; while the server process is away, or does not know the
// instance yet, it asks again until ctx ends.
func (w *waker) Wake(ctx context.Context, m *root.Machine) (err error) {
	begin, result := time.Now(), "booted"
	defer func() {
		if err != nil {
			result = "failed"
		}
		w.metrics.Woke(result, time.Since(begin))
	}()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		s, err := w.supervisor.Start(ctx, m.Spec.Instance, orders.Start{Source: orders.SourceProxy, Reason: "a request came in"})
		if err == nil {
			t := orders.EntryStarted
			if s.Thawed {
				t, result = orders.EntryResumed, "thawed"
			}
			e := orders.Entry{Stamp: s.Stamp, At: time.Now(), Type: t, Machine: m.ID, App: m.App, Instance: m.Spec.Instance, Generation: m.Spec.Generation}
			w.live.apply(e)
			w.applied(e)
			if w.say != nil && s.Booted {
				w.say.Say(m.App, m.ID, machinelog.ProviderProxy, fmt.Sprintf("machine started in %s", time.Since(begin).Round(100*time.Microsecond)))
			}
			return nil
		}
		if !root.IsKind(err, root.NotFound) && !root.IsKind(err, root.Unavailable) {
			return err
		}
		if serr := sleep(ctx, pause); serr != nil {
			return errors.Join(serr, err)
		}
	}
}

// Listens implements health.Inspector.
func (w *waker) Listens(ctx context.Context, id root.InstanceID) ([]string, error) {
	in, err := w.supervisor.Inspect(ctx, id)
	if err != nil {
		return nil, err
	}
	listens := []string{}
	for _, l := range in.Listens {
		if l.Proto == "tcp" || l.Proto == "tcp6" {
			listens = append(listens, l.Address)
		}
	}
	return listens, nil
}
