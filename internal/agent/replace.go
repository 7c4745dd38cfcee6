package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/orders"
)

const (
	// readyTimeout is how long a new version may take until it answers unless
	// the caller says otherwise: as long as a request is held for a machine,
	// beyond the time in which its checks may fail.
	readyTimeout = 60 * time.Second
	// readyPoll and maxReadyPoll are between looks at its listening sockets.
	readyPoll    = 20 * time.Millisecond
	maxReadyPoll = 500 * time.Millisecond
	// drainTimeout is how long requests in flight may hold up the end of the
	// version they run on.
	drainTimeout = 30 * time.Second
	// drainGrace is how long the old version serves on where nobody can tell
	// what is in flight.
	drainGrace = 2 * time.Second
	// maxProof bounds what a new version has to prove beside the old one.
	maxProof = time.Hour
)

// replace brings the machine to the version in rec.Spec. Until commit has
// succeeded the old version is untouched, or (a machine nobody routes to) is
// started again.
func (m *machine) replace(ctx context.Context, rec *root.Machine, ready time.Duration, prove func(context.Context) error, commit func(context.Context) (int64, error)) error {
	m.listen(ctx)
	next := rec.Clone()
	old := m.inst
	rested := old.running == 0 || old.phase == orders.PhaseSuspended
	cand, err := m.a.stage(ctx, next, m.rec.Spec.Image.Digest, next.Spec.Image.Digest)
	if err != nil {
		return errors.Join(err, m.a.protect(context.WithoutCancel(ctx), m.id, m.rec.Spec.Image.Digest))
	}
	m.cand = cand
	if rested && old.staged {
		m.catchUp(ctx, old)
	}
	m.listen(ctx)
	served := len(m.rec.Spec.Config.Services) > 0 && len(next.Spec.Config.Services) > 0
	// Whoever leaves a resting machine at rest did not mean to stop the one that
	// a request has just woken.
	launch := next.Spec.Launch || served && rested && (old.phase == orders.PhaseStarted || old.phase == orders.PhaseStarting)
	if launch && served && old.phase == orders.PhaseStarted {
		err = m.beside(ctx, ready, prove, commit)
	} else {
		err = m.afterwards(ctx, commit, served, launch)
	}
	if m.cand != nil { // not switched
		ctx := context.WithoutCancel(ctx)
		if e := m.a.discard(ctx, m.cand); e != nil {
			m.a.log.Error("new version could not be removed", "machine", m.id, "err", e)
			m.a.retire(m.cand) //nolint:contextcheck // it outlives the command and ends with Run
		}
		m.cand = nil
		return errors.Join(err, m.a.protect(ctx, m.id, m.rec.Spec.Image.Digest))
	}
	m.a.retire(old) //nolint:contextcheck // it outlives the command and ends with Run
	return errors.Join(err, m.a.protect(context.WithoutCancel(ctx), m.id, m.rec.Spec.Image.Digest))
}

// beside starts the new version next to the old one, switches when it is
// ready, and leaves the old one to drain.
func (m *machine) beside(ctx context.Context, ready time.Duration, prove func(context.Context) error, commit func(context.Context) (int64, error)) error {
	began := time.Now().UTC()
	started, err := m.a.o.Supervisor.Start(ctx, m.cand.id(), orders.Start{Source: orders.SourceHost, Reason: reasonUpdate})
	if err != nil {
		if root.IsKind(err, root.Exhausted) {
			return &root.Error{
				Kind: root.Exhausted, Code: "insufficient_capacity", Err: err,
				Message: fmt.Sprintf("could not reserve resource for machine: both versions run for a moment and the host has no room for the new one (%s); the old version keeps serving", root.MessageOf(err)),
			}
		}
		return &root.Error{Kind: root.KindOf(err), Message: "the new version did not start: " + root.MessageOf(err) + "; the old version keeps serving", Err: err}
	}
	cand := m.cand
	if err := m.await(ctx, newsTimeout, "the journal's news", func() bool { return !cand.heard.Before(started.Stamp) }); err != nil {
		return err
	}
	if err := m.untilReady(ctx, cand, ready); err != nil {
		return err
	}
	if err := m.proven(ctx, cand, prove); err != nil {
		return err
	}
	rev, err := commit(ctx)
	if err != nil {
		return err
	}
	m.rev = max(m.rev, rev)
	m.switchOver(began, false)
	if m.st.Stamp.Before(cand.stamp) {
		m.st.Stamp = cand.stamp
	}
	m.st.State = cand.phase.State()
	m.event("start", root.StateStarted, orders.SourceHost, reasonUpdate)
	if cand.phase == orders.PhaseStopped { // it ended just after it was ready
		m.lost(ctx, orders.Entry{At: time.Now().UTC(), Exit: cand.exit, Error: cand.failure})
	}
	return nil
}

// afterwards stops the old version, if it runs, and then starts the new one.
// One that is suspended and has only requests to serve does nothing and can
// wait for its end.
func (m *machine) afterwards(ctx context.Context, commit func(context.Context) (int64, error), served, launch bool) error {
	began := time.Now().UTC()
	wasRunning := m.inst.running != 0 && (!served || m.inst.phase != orders.PhaseSuspended)
	m.policy.Stop()
	m.wantStart = ""
	if wasRunning {
		m.st.State = root.StateReplacing
		m.event("update", root.StateReplacing, orders.SourceUser, "")
		if err := m.flush(ctx); err != nil {
			return err
		}
		if err := m.halt(ctx, m.inst, orders.Stop{Source: orders.SourceUser, Reason: reasonUpdate}); err != nil {
			return err
		}
	}
	m.wantGone, m.wantStart = false, ""
	rev, err := commit(ctx)
	if err != nil {
		if wasRunning {
			m.wantStart = reasonUpdate
		}
		return err
	}
	m.rev = max(m.rev, rev)
	m.switchOver(began, wasRunning)
	m.st.State = root.StateStopped
	if !launch {
		return nil
	}
	m.st.State = root.StateStarting
	if err := m.start(ctx, orders.Start{Source: orders.SourceHost, Reason: reasonUpdate}); err != nil {
		if m.st.State == root.StateStarting {
			m.st.State, m.st.Message, m.dirty = root.StateFailed, root.MessageOf(err), true
			if k := root.KindOf(err); k == root.Exhausted || k == root.Unavailable || k == root.Timeout {
				m.st.State = root.StateStopped // it may work later: a request may wake it
			}
		}
		return &root.Error{Kind: root.KindOf(err), Message: "the new version did not start: " + root.MessageOf(err), Err: err}
	}
	return nil
}

// switchOver makes the candidate the machine's version. What was left to do
// for the old one goes with it. told says that the update is an event already.
func (m *machine) switchOver(began time.Time, told bool) {
	m.inst, m.cand = m.cand, nil
	m.wantLease = true
	m.rec = m.inst.machine
	m.used, m.wantGone, m.wantStart = nil, false, ""
	m.policy.Stop()
	m.tries = retries{}
	m.st.Restarts, m.st.Exit, m.st.Checks, m.st.Message = 0, nil, m.inst.checks.results, ""
	m.wantCure = ""
	if !told {
		m.event("update", root.StateReplacing, orders.SourceUser, "")
	}
	m.event("launch", root.StateCreated, orders.SourceUser, "")
	m.publish()
	m.a.log.Info("machine replaced", "machine", m.id, "app", m.rec.App, "took", time.Since(began))
}

// readyTime is how long a version of c may take to be ready by default.
func readyTime(c *root.Config) time.Duration {
	grace := time.Duration(0)
	for _, k := range c.NamedChecks() {
		grace = max(grace, k.Grace)
	}
	return readyTimeout + grace
}

// untilReady returns when every service of i has its port open and i passes the
// checks that gate its traffic.
func (m *machine) untilReady(ctx context.Context, i *instance, ready time.Duration) error {
	ports := map[int]bool{}
	for _, s := range i.machine.Spec.Config.Services {
		ports[s.InternalPort] = true
	}
	passing := m.a.o.Checks == nil || !gated(&i.machine.Spec.Config)
	answers, answer := make(chan report.Answer), report.Answer{}
	if !passing {
		asking, stop := context.WithCancel(ctx)
		var asker sync.WaitGroup
		defer asker.Wait()
		defer stop()
		asker.Go(func() { m.a.ask(asking, i.machine, answers) })
	}
	deadline := time.Now().Add(ready)
	poll := time.NewTimer(0)
	defer poll.Stop()
	pause := readyPoll
	var seen orders.Inspection
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.ear.wake:
			m.listen(ctx)
			if err := m.flush(ctx); err != nil { // of the version that serves; tried again with the rest
				m.a.log.Warn("status", "machine", m.id, "err", err)
			}
		case <-poll.C:
			got, err := m.a.o.Supervisor.Inspect(ctx, i.id())
			if err == nil {
				seen = got
				for port := range ports {
					if reachable(got.Listens, port, i.machine.Spec.Address) {
						delete(ports, port)
					}
				}
			}
			pause = min(2*pause, maxReadyPoll)
			poll.Reset(pause)
		case answer = <-answers:
			passing = answer.Passing
			i.checks.results = answer.Checks
		}
		if len(ports) == 0 && passing {
			return nil
		}
		if m.gaveUpOn(i.id()) {
			return root.Errorf(root.Conflict, "the update was given up; the old version keeps serving")
		}
		if i.phase == orders.PhaseStopped {
			before := "before it passed its health checks"
			if len(ports) > 0 {
				before = "before it listened on port " + portList(ports)
			}
			return root.Errorf(root.Precondition, "the new version ended (%s) %s; the old version keeps serving. Its log says more", ending(i), before)
		}
		if time.Now().After(deadline) && len(ports) == 0 {
			return unhealthy(answer, ready)
		}
		if time.Now().After(deadline) {
			return root.Errorf(root.Precondition, "the new version did not listen on port %s within %s (%s); the old version keeps serving",
				portList(ports), ready, hint(seen.Listens, ports))
		}
	}
}

// proven returns when prove has, which talks to i as it likes; the machine goes
// on hearing of its versions meanwhile.
func (m *machine) proven(ctx context.Context, i *instance, prove func(context.Context) error) error {
	if prove == nil {
		return nil
	}
	trial, end := context.WithTimeoutCause(ctx, maxProof, root.Errorf(root.Timeout, "it took more than %s", maxProof))
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- prove(trial) }()
	stop := func(err error) error {
		end()
		<-ended
		return err
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return stop(context.Cause(ctx))
		case <-m.ear.wake:
			m.listen(ctx)
			if err := m.flush(ctx); err != nil { // of the version that serves; tried again with the rest
				m.a.log.Warn("status", "machine", m.id, "err", err)
			}
		}
		switch {
		case m.gaveUpOn(i.id()):
			return stop(root.Errorf(root.Conflict, "the update was given up; the old version keeps serving"))
		case i.phase == orders.PhaseStopped:
			return stop(root.Errorf(root.Precondition, "the new version ended (%s) while its machine checks ran; the old version keeps serving. Its log says more", ending(i)))
		}
	}
}

// giveUp ends untilReady and proven for a version that nobody wants any more; it may come
// before the version does.
func (m *machine) giveUp(id root.InstanceID) {
	m.mu.Lock()
	m.givenUp = id
	m.mu.Unlock()
	select {
	case m.ear.wake <- struct{}{}:
	default:
	}
}

func (m *machine) gaveUpOn(id root.InstanceID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.givenUp == id
}

func ending(i *instance) string {
	switch {
	case i.exit == nil:
		return i.failure
	case i.exit.OOMKilled:
		return "out of memory"
	}
	return "exit code " + code(i.exit.Code)
}

func portList(ports map[int]bool) string {
	var out []string
	for p := range ports {
		out = append(out, strconv.Itoa(p))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// reachable reports whether a socket takes connections that come from the
// edge to port at the machine's addresses.
func reachable(listens []orders.Listen, port int, ad root.Address) bool {
	for _, l := range listens {
		host, p, err := net.SplitHostPort(l.Address)
		if err != nil || !strings.HasPrefix(l.Proto, "tcp") || p != strconv.Itoa(port) {
			continue
		}
		ip := net.ParseIP(host)
		if ip == nil || ip.IsUnspecified() || host == ad.IPv4 || host == ad.IPv6 {
			return true
		}
	}
	return false
}

// hint guesses why a port does not answer.
func hint(listens []orders.Listen, ports map[int]bool) string {
	var other []string
	for _, l := range listens {
		if !strings.HasPrefix(l.Proto, "tcp") {
			continue
		}
		host, p, err := net.SplitHostPort(l.Address)
		if err != nil {
			continue
		}
		n, _ := strconv.Atoi(p)
		if ip := net.ParseIP(host); ports[n] && ip != nil && ip.IsLoopback() {
			return fmt.Sprintf("it listens on %s only: make it listen on 0.0.0.0:%d", l.Address, n)
		}
		other = append(other, l.Address)
	}
	if len(other) > 0 {
		return "it listens on " + strings.Join(other, ", ") + ", and internal_port has to name the port that it uses"
	}
	return "it listens on no port"
}

// retire sees a replaced version off: when nothing is in flight to it any
// more, or after a while, it is stopped and removed.
func (a *Agent) retire(i *instance) {
	ended := make(chan struct{})
	a.mu.Lock()
	a.leaving[i.id()] = ended
	ctx := a.ctx
	a.mu.Unlock()
	a.wg.Go(func() {
		defer func() {
			a.mu.Lock()
			delete(a.leaving, i.id())
			a.mu.Unlock()
		}()
		if i.staged && i.phase == orders.PhaseStarted {
			a.drain(ctx, i)
		}
		if i.staged && i.phase != orders.PhaseStopped && ctx.Err() == nil {
			timeout := i.machine.Spec.Config.Stop.Timeout + exitSlack
			if _, err := a.o.Supervisor.Stop(ctx, i.id(), orders.Stop{Source: orders.SourceHost, Reason: reasonUpdate}); err != nil {
				timeout = 0
			}
			select {
			case <-ended:
			case <-time.After(timeout):
			case <-ctx.Done():
				return // the next start removes it
			}
		}
		delay := retryDelay
		for {
			err := a.discard(ctx, i)
			if err == nil {
				_, err = a.o.Store.ReleaseAddresses(ctx, i.machine.ID)
			}
			if err == nil || root.IsKind(err, root.NotFound) || ctx.Err() != nil {
				return
			}
			a.log.Warn("replaced version could not be removed", "machine", i.machine.ID, "err", err, "again", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return
			}
			delay = min(2*delay, maxRetryDelay)
		}
	})
}

func (a *Agent) drain(ctx context.Context, i *instance) {
	if a.o.Drain == nil {
		select {
		case <-ctx.Done():
		case <-time.After(drainGrace):
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := a.o.Drain(ctx, i.machine); err != nil && ctx.Err() == nil {
		a.log.Warn("drain", "machine", i.machine.ID, "err", err)
	}
}

// left tells the goroutine that sees instance off that its processes ended.
func (a *Agent) left(id root.InstanceID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ended := a.leaving[id]
	if ended == nil {
		return
	}
	select {
	case <-ended:
	default:
		close(ended)
	}
}
