package edge

import (
	"context"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/metrics"
	"github.com/roost-run/roost/internal/orders"
)

// stopper implements autostop.Stopper with orders that the server process
// refuses when news crossed them.
type stopper struct {
	supervisor supervisor
	live       *live
	applied    func(orders.Entry)
	metrics    *metrics.Edge
	checks     *checks
}

func (s *stopper) Stop(ctx context.Context, m *root.Machine, reason string) error {
	d, err := s.supervisor.Stop(ctx, m.Spec.Instance, orders.Stop{Source: orders.SourceProxy, Reason: reason})
	return s.took(m, orders.EntryStopping, d, err)
}

func (s *stopper) Suspend(ctx context.Context, m *root.Machine, reason string) error {
	seen, ok := s.live.get(m.Spec.Instance)
	if !ok {
		return root.Errorf(root.Conflict, "machine %s is not known to run", m.ID)
	}
	s.checks.Pause(m.Spec.Instance) // a probe under way would be answered after the thaw
	d, err := s.supervisor.Suspend(ctx, m.Spec.Instance, orders.Suspend{
		Generation: m.Spec.Generation, Seen: seen.stamp, Source: orders.SourceProxy, Reason: reason,
	})
	if now, _ := s.live.get(m.Spec.Instance); err != nil && now.phase.State() == root.StateStarted {
		s.checks.Resume(m.Spec.Instance) //nolint:contextcheck // probing outlives the order
	}
	return s.took(m, orders.EntrySuspended, d, err)
}

// took applies an order's result at once: the journal brings it a little later.
func (s *stopper) took(m *root.Machine, t orders.EntryType, d orders.Done, err error) error {
	if err != nil {
		return err
	}
	if t == orders.EntrySuspended {
		s.metrics.Stopped("suspend")
	} else {
		s.metrics.Stopped("stop")
	}
	if d.Phase != orders.PhaseAfter(t) {
		return nil // further on already: the journal tells
	}
	e := orders.Entry{Stamp: d.Stamp, At: time.Now(), Type: t, Machine: m.ID, App: m.App, Instance: m.Spec.Instance, Generation: m.Spec.Generation}
	s.live.apply(e)
	s.applied(e)
	return nil
}
