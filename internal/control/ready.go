package control

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/rollout"
)

const (
	// smokeTime is how long a machine that neither listens nor is checked is
	// watched after its start: a worker that cannot run ends within it.
	smokeTime = 5 * time.Second
	// listenPoll and maxListenPoll are between looks at a machine's sockets.
	listenPoll    = 20 * time.Millisecond
	maxListenPoll = 500 * time.Millisecond
	// crashLoop is how many restarts of its policy a machine may need before it
	// is ready: one that crashes at every start is not worth the whole wait, one
	// that crashed once because something else was not there yet is.
	crashLoop = 3
)

// errNotReady is the cause of a wait that took too long.
var errNotReady = root.Errorf(root.Timeout, "it took too long")

// Ready waits for the gates of a machine one after the other: started,
// listening, checks, and for one without any of these, a moment of life.
func (c *cluster) Ready(ctx context.Context, r *root.Release, id root.MachineID, smoke bool, tell rollout.Tell) error {
	g := &gate{c: c, r: r, id: id, tell: tell, began: c.s.Now(), smokes: smoke}
	g.until = g.began.Add(r.Deploy.WaitTimeout)
	whole := ctx // the moment of life comes on top
	ctx, cancel := context.WithTimeoutCause(ctx, r.Deploy.WaitTimeout, errNotReady)
	defer cancel()
	m, err := g.started(ctx)
	if err != nil {
		return err
	}
	if finished(m) {
		g.finished(m)
		return nil
	}
	if m.Status.State != root.StateStarted { // it sleeps already: nothing of it can be seen
		return nil
	}
	if err := g.listening(ctx, m); err != nil {
		return err
	}
	if err := g.healthy(ctx); err != nil {
		return err
	}
	if g.smokes && !rollout.Served(&m.Spec.Config) && checkCount(&m.Spec.Config) == 0 {
		return g.smoke(whole, m)
	}
	return nil
}

// gate is one machine's way to being ready.
type gate struct {
	c     *cluster
	r     *root.Release
	id    root.MachineID
	tell  rollout.Tell
	began time.Time
	until time.Time

	smokes bool // whether a start that fails again and again ends the wait
}

// wait returns the machine once done holds of it. done's error ends the wait.
func (g *gate) wait(ctx context.Context, what string, done func(*root.Machine) (bool, error)) (*root.Machine, error) {
	var m *root.Machine
	var stop error
	told := false
	err := g.c.s.Catalog.Wait(ctx, func(sn *root.Snapshot) bool {
		now := sn.Machine(g.id)
		if now == nil {
			stop = root.Errorf(root.Conflict, "machine %s was destroyed while it was waited for %s", g.id, what)
			return true
		}
		m = now
		ok, err := done(now)
		stop = err
		if !ok && err == nil && !told {
			told = true
			g.tell(waiting(now, fmt.Sprintf("machine %s %s", g.id, what), g.until))
		}
		return ok || err != nil
	})
	if err == nil {
		err = stop
	}
	if err != nil {
		return m, g.failed(ctx, m, what, err)
	}
	return m, nil
}

// failed says why a machine is not ready.
func (g *gate) failed(ctx context.Context, m *root.Machine, what string, err error) error {
	if m == nil || ctx.Err() != nil && context.Cause(ctx) != errNotReady { //nolint:errorlint // our own value
		return err
	}
	text := fmt.Sprintf("machine %s did not %s", g.id, strings.TrimPrefix(what, "to "))
	if state, ok := strings.CutPrefix(what, "to be "); ok {
		text = fmt.Sprintf("machine %s was not %s", g.id, state)
	}
	if err == errNotReady { //nolint:errorlint // our own value
		text += fmt.Sprintf(" within %s", g.r.Deploy.WaitTimeout)
		err = root.Errorf(root.Precondition, "state %s", m.Status.State)
	}
	return g.c.s.diagnose(context.WithoutCancel(ctx), failure{
		what: text, machine: g.id, app: g.r.App, instance: m.Spec.Instance, config: &m.Spec.Config, since: g.began, err: err,
	})
}

// resting reports whether a machine was put to rest: the proxy stops one that
// nobody asks, also before its checks pass. The public route wakes it, and tells.
func resting(m *root.Machine) bool {
	return m.Status.State == root.StateStopped && m.Status.Exit != nil && m.Status.Exit.RequestedStop
}

// finished reports whether a machine that serves nobody did what it had to do.
func finished(m *root.Machine) bool {
	st, e := &m.Status, m.Status.Exit
	return st.State == root.StateStopped && e != nil && !e.RequestedStop && !e.Restarting && e.Code == 0 && !e.OOMKilled && e.Error == "" && !rollout.Served(&m.Spec.Config)
}

// finished warns of it: people may have meant it to run on.
func (g *gate) finished(m *root.Machine) {
	g.tell(root.ReleaseEvent{
		Step: root.StepUpdate, Group: m.Group(), Machine: g.id, Warning: true,
		Message: fmt.Sprintf("machine %s of process group %s ended with exit code 0 and does not run: that is right for a job, not for a worker", g.id, m.Group()),
	})
}

// ended says that a machine ended by itself and nothing will start it again,
// or only to see it end once more.
func (g *gate) ended(m *root.Machine) error {
	if n := m.Status.Restarts; g.smokes && m.Status.Instance == m.Spec.Instance && n >= crashLoop {
		return root.Errorf(root.Precondition, "%s, and again after each of %d restarts", exitText(m), n)
	}
	return ended(m)
}

// ended says that a machine ended by itself and nothing will start it again.
func ended(m *root.Machine) error {
	st := &m.Status
	switch {
	case finished(m):
	case st.State == root.StateFailed || st.State == root.StateLaunchFailed,
		st.State == root.StateStopped && st.Exit != nil && !st.Exit.RequestedStop && !st.Exit.Restarting:
		return root.Errorf(root.Precondition, "%s", exitText(m))
	}
	return nil
}

func exitText(m *root.Machine) string {
	e := m.Status.Exit
	switch {
	case e == nil && m.Status.Message != "":
		return m.Status.Message
	case e == nil:
		return "it is " + string(m.Status.State)
	case e.OOMKilled:
		return fmt.Sprintf("it ran out of memory (%s) and was killed", m.Spec.Config.Guest.Memory)
	case e.Error != "":
		return e.Error
	}
	return fmt.Sprintf("it ended with exit code %d", e.Code)
}

func (g *gate) started(ctx context.Context) (*root.Machine, error) {
	return g.wait(ctx, "to be started", func(m *root.Machine) (bool, error) {
		if m.Status.Instance != m.Spec.Instance {
			return false, nil
		}
		if err := g.ended(m); err != nil {
			return false, err
		}
		switch m.Status.State {
		case root.StateStarted, root.StateSuspending, root.StateSuspended:
			return true, nil
		case root.StateStopped: // put to rest: it had nothing to do
			return resting(m) || finished(m), nil
		}
		return false, nil
	})
}

// listening waits until every service's port takes connections.
func (g *gate) listening(ctx context.Context, m *root.Machine) error {
	ports := map[string]bool{}
	for i := range m.Spec.Config.Services {
		ports[strconv.Itoa(m.Spec.Config.Services[i].InternalPort)] = true
	}
	told := false
	for pause := listenPoll; len(ports) > 0; pause = min(2*pause, maxListenPoll) {
		seen, err := g.c.s.Agent.Inspect(ctx, g.id)
		if err == nil {
			for port := range ports {
				if listens(seen.Listens, port, m.Spec.Address) {
					delete(ports, port)
				}
			}
		}
		if len(ports) == 0 {
			break
		}
		what := "to listen on port " + strings.Join(names(ports), ", ")
		if !told {
			told = true
			g.tell(waiting(m, fmt.Sprintf("machine %s %s", g.id, what), g.until))
		}
		if now := g.c.s.Catalog.Snapshot().Machine(g.id); now != nil {
			if err := g.ended(now); err != nil {
				return g.failed(ctx, now, what, err)
			}
			if !now.Status.State.Running() && now.Status.State != root.StateRestarting && now.Status.State != root.StateStarting {
				return nil // put to rest meanwhile
			}
		}
		select {
		case <-ctx.Done():
			return g.failed(ctx, m, what, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
	return nil
}

// listens reports whether a socket takes connections from the edge on port.
func listens(all []orders.Listen, port string, ad root.Address) bool {
	for _, l := range all {
		host, p, err := net.SplitHostPort(l.Address)
		if err != nil || !strings.HasPrefix(l.Proto, "tcp") || p != port {
			continue
		}
		if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() || host == ad.IPv4 || host == ad.IPv6 {
			return true
		}
	}
	return false
}

func checkCount(c *root.Config) int {
	n := len(c.Checks)
	for i := range c.Services {
		n += len(c.Services[i].Checks)
	}
	return n
}

// healthy waits until all checks have a result and pass.
func (g *gate) healthy(ctx context.Context) error {
	_, err := g.wait(ctx, "to pass its checks", func(m *root.Machine) (bool, error) {
		n := checkCount(&m.Spec.Config)
		if n == 0 || m.Status.State == root.StateSuspended || finished(m) || resting(m) {
			return true, nil
		}
		if m.Status.Instance != m.Spec.Instance {
			return false, nil
		}
		if err := g.ended(m); err != nil {
			return false, err
		}
		if len(m.Status.Checks) < n {
			return false, nil
		}
		for _, k := range m.Status.Checks {
			if k.Status != root.CheckPassing {
				return false, nil
			}
		}
		return true, nil
	})
	return err
}

// smoke watches a machine for a moment.
func (g *gate) smoke(ctx context.Context, first *root.Machine) error {
	what := fmt.Sprintf("to run for %s", smokeTime)
	moment, cancel := context.WithTimeoutCause(ctx, smokeTime, errAlive)
	defer cancel()
	var bad error
	var m *root.Machine
	g.tell(waiting(first, fmt.Sprintf("machine %s %s", g.id, what), g.c.s.Now().Add(smokeTime)))
	err := g.c.s.Catalog.Wait(moment, func(sn *root.Snapshot) bool {
		if m = sn.Machine(g.id); m == nil || m.Status.Instance != m.Spec.Instance {
			return m == nil
		}
		if bad = ended(m); bad == nil && m.Status.Restarts > first.Status.Restarts {
			bad = root.Errorf(root.Precondition, "%s, and was started again", exitText(m))
		}
		return bad != nil || finished(m)
	})
	switch {
	case bad == nil && err == nil && m != nil && finished(m):
		g.finished(m)
		return nil
	case bad != nil:
		return g.failed(ctx, m, what, bad)
	case err == errAlive || err == nil: //nolint:errorlint // our own value
		return nil
	}
	return err
}

// errAlive ends the watch over a machine that did well.
var errAlive = root.Errorf(root.Timeout, "it runs")
