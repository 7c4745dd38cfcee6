package agent

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// opener is what happens while a version is staged.
type opener func()

func (f opener) Open(context.Context, root.AppName, int) (map[string]string, error) {
	f()
	return map[string]string{}, nil
}

// A machine that rests is to rest on in its new version, and a request wakes
// it while that is staged: the request is served, then by the new version.
func TestReplaceOfAMachineThatIsWoken(t *testing.T) {
	h := newHost(t)
	h.sup.listens["/app"] = []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}
	m := h.machine(1, webConfig(), false)
	h.kill()
	// Once: versions are staged after the test, too.
	h.options.Secrets = opener(sync.OnceFunc(func() {
		if _, err := h.options.Supervisor.Start(t.Context(), m.Spec.Instance, orders.Start{Source: orders.SourceProxy}); err != nil {
			t.Errorf("wake: %v", err)
		}
	}))
	h.begin()
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	h.waitState(m.ID, root.StateStopped)
	n, commit := h.next(m, webConfig(), false)
	n.Spec.Secrets = 1
	_, err = h.Replace(t.Context(), n, 0, nil, func(ctx context.Context) (int64, error) {
		for _, id := range []root.InstanceID{m.Spec.Instance, n.Spec.Instance} {
			if i, err := h.options.Supervisor.Instance(ctx, id); err != nil || i.Phase != orders.PhaseStarted {
				t.Errorf("at the switch %s is %s (%v), want started", id, i.Phase, err)
			}
		}
		return commit(ctx)
	})
	must(t, err)
	h.wait(m.ID, "the new version to run", func(m *root.Machine) bool {
		return m.Status.Instance == n.Spec.Instance && m.Status.State == root.StateStarted
	})
}

// A job ends, and whoever does not know yet that it ran starts it: a control
// process that died after the order does.
func TestJobIsNotDoneTwice(t *testing.T) {
	h := newHost(t)
	c := workerConfig()
	c.AutoDestroy, c.Restart.Policy = true, root.RestartNo
	h.sup.exitAt["/app"] = 0
	m := h.machine(1, c, false)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	_, err = h.do(t.Context(), m.ID, func(ctx context.Context, m *machine) error {
		o := orders.Start{Source: orders.SourceUser}
		if _, err := h.options.Supervisor.Start(ctx, m.inst.id(), o); err != nil {
			return err
		}
		m.catchUp(ctx, m.inst)
		return m.start(ctx, o)
	})
	if !root.IsKind(err, root.Conflict) {
		t.Errorf("started again: %v", err)
	}
	h.wait(m.ID, "its end", func(m *root.Machine) bool { return m == nil })
	graves, err := h.store.Tombstones(t.Context(), appName)
	must(t, err)
	starts := 0
	for _, e := range graves[0].Status.Events {
		if e.Type == "start" {
			starts++
		}
	}
	if len(graves) != 1 || starts != 1 {
		t.Errorf("tombstones: got %+v, want one with one start", graves)
	}
	h.nothingLeft()
}

// Nobody waits for a version that was given up, and the old one serves on.
func TestGiveUp(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, webConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	n, commit := h.next(m, webConfig(), true)
	failed := make(chan error, 1)
	go func() {
		_, err := h.Replace(context.WithoutCancel(t.Context()), n, time.Hour, nil, commit) // it listens on no port
		failed <- err
	}()
	h.eventually("the new version to start", func() bool {
		i, err := h.options.Supervisor.Instance(t.Context(), n.Spec.Instance)
		return err == nil && i.Phase == orders.PhaseStarted
	})
	h.GiveUp(m.ID, m.Spec.Instance) // not that one
	h.GiveUp(m.ID, n.Spec.Instance)
	if err := patience.Receive(t, "the update to end", failed); !root.IsKind(err, root.Conflict) || !strings.Contains(err.Error(), "keeps serving") {
		t.Errorf("got %v, want a conflict", err)
	}
	if got := h.waitState(m.ID, root.StateStarted); got.Spec.Instance != m.Spec.Instance {
		t.Errorf("got version %s, want the old one", got.Spec.Instance)
	}
	h.eventually("the new version to go", func() bool { return h.sup.count() == 1 })
}
