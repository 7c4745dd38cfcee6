package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
)

const (
	// dialTimeout bounds one attempt: the machine is on this host.
	dialTimeout = 5 * time.Second
	// wakePatience is how long a machine that had to be woken may take until
	// its port answers.
	wakePatience = 60 * time.Second
	dialPause    = 20 * time.Millisecond
	maxDialPause = 500 * time.Millisecond
	// busyFor is how long autostop stays away after the last sign of a session,
	// which gives one every busyEvery.
	busyFor   = 30 * time.Second
	busyEvery = 10 * time.Second
	// firstBusy bounds the first sign, which a session waits for.
	firstBusy = 2 * time.Second
	// wokenFor is the reason of a start for a connection.
	wokenFor = "proxy"
)

// Pick finds the machine of an app that a session goes to: one that runs, else
// one that is suspended, else one that is stopped; in group, if that is not "".
func (s *Machines) Pick(ctx context.Context, a auth.Actor, app root.AppName, p auth.Permission, group string) (*root.Machine, error) {
	if _, err := s.app(a, p, app); err != nil {
		return nil, err
	}
	rank := map[root.State]int{root.StateStarted: 3, root.StateSuspended: 2, root.StateStopped: 1}
	var best *root.Machine
	bestRank := 0
	for _, m := range s.Catalog.Snapshot().Machines(app) {
		if m.Spec.Destroy != nil || strings.HasPrefix(m.Group(), temporaryGroups) || group != "" && groupOf(m) != group {
			continue
		}
		r := 2 * rank[s.stateNow(ctx, m)]
		if r > 0 && m.Managed() {
			r++ // the app's own before those that it made
		}
		if r > bestRank {
			best, bestRank = m, r
		}
	}
	if best == nil {
		in := ""
		if group != "" {
			in = " in process group " + group
		}
		return nil, root.Errorf(root.Precondition, "app %s has no machine%s that runs or could be woken", app, in)
	}
	return best, nil
}

// Wake starts or resumes a machine that rests and returns when it runs. woken
// says that it did not run before.
func (s *Machines) Wake(ctx context.Context, a auth.Actor, p auth.Permission, app root.AppName, id root.MachineID, why string) (m *root.Machine, woken bool, err error) {
	if m, err = s.machine(a, p, app, id); err != nil {
		return nil, false, err
	}
	state := s.stateNow(ctx, m)
	answer, err := root.CheckVerb(root.VerbStart, state)
	if err != nil {
		return nil, false, err
	}
	if answer == root.Do {
		if m, err = s.change(a, p, app, id, ""); err != nil { // leased: its holder says when it starts
			return nil, false, err
		}
		rev, err := s.Agent.Start(ctx, id, orders.Start{Source: orders.SourceUser, Reason: why})
		if err != nil {
			return nil, false, err
		}
		return m, true, s.read(ctx, rev)
	}
	return m, state != root.StateStarted, nil
}

// Dial connects to a port of a machine, past the proxy; id "" picks one. A
// machine that rests is woken, and kept awake until the connection is closed.
func (s *Machines) Dial(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, port int) (net.Conn, *root.Machine, error) {
	if port < 1 || port > 65535 {
		return nil, nil, root.Errorf(root.Invalid, "port: %d is not a port (1 to 65535)", port)
	}
	if s.Deps.Dial == nil {
		return nil, nil, root.Errorf(root.Unimplemented, "this host has no private network")
	}
	if id == "" {
		m, err := s.Pick(ctx, a, app, auth.MachineDial, "")
		if err != nil {
			return nil, nil, err
		}
		id = m.ID
	}
	m, err := s.machine(a, auth.MachineDial, app, id)
	if err != nil {
		return nil, nil, err
	}
	// Kept awake before it is woken: autostop would find it idle until the
	// connection is there.
	awake := s.keepAwake(ctx, m)
	conn, m, err := s.wakeAndDial(ctx, a, app, id, port)
	if err != nil {
		awake()
		return nil, m, err
	}
	return &session{Conn: conn, end: awake}, m, nil
}

// wakeAndDial connects to a machine that autostop leaves alone by now.
func (s *Machines) wakeAndDial(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, port int) (net.Conn, *root.Machine, error) {
	m, woken, err := s.Wake(ctx, a, auth.MachineDial, app, id, wokenFor)
	if err != nil {
		return nil, nil, err
	}
	conn, err := s.dial(ctx, m, port, woken)
	if err != nil {
		return nil, m, err
	}
	// Autostop may have decided just before: a suspended machine takes the
	// connection and never answers.
	if m, err = s.machine(a, auth.MachineDial, app, id); err == nil {
		switch s.stateNow(ctx, m) {
		case root.StateSuspending, root.StateSuspended:
			m, _, err = s.Wake(ctx, a, auth.MachineDial, app, id, wokenFor)
		}
	}
	if err != nil {
		return nil, m, errors.Join(err, conn.Close())
	}
	return conn, m, nil
}

// dial tries until the port answers, if the machine has only just begun.
func (s *Machines) dial(ctx context.Context, m *root.Machine, port int, woken bool) (net.Conn, error) {
	host := m.Spec.Address.IPv4
	if host == "" {
		host = m.Spec.Address.IPv6
	}
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	deadline := time.Now()
	if woken {
		deadline = deadline.Add(wakePatience)
	}
	for pause := dialPause; ; pause = min(2*pause, maxDialPause) {
		try, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := s.Deps.Dial(try, "tcp", addr)
		cancel()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if time.Now().After(deadline) {
			return nil, s.unreachable(ctx, m, port, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// unreachable says why a port does not answer.
func (s *Machines) unreachable(ctx context.Context, m *root.Machine, port int, err error) error {
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return &root.Error{Kind: root.Unavailable, Message: fmt.Sprintf("machine %s does not answer on port %d", m.ID, port), Err: err}
	}
	var listens []string
	if in, e := s.Agent.Inspect(ctx, m.ID); e == nil {
		for _, l := range in.Listens {
			if strings.HasPrefix(l.Proto, "tcp") {
				listens = append(listens, l.Address)
			}
		}
	}
	has := "it listens on no port"
	if len(listens) > 0 {
		has = "it listens on " + strings.Join(listens, ", ")
	}
	return &root.Error{Kind: root.Precondition, Message: fmt.Sprintf("machine %s refuses connections on port %d: %s", m.ID, port, has), Err: err}
}

// keepAwake keeps autostop away from a machine's version, from when it returns
// until the returned function is called, which then waits for what it started.
func (s *Machines) keepAwake(caller context.Context, m *root.Machine) (end func()) {
	if s.Busy == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(caller))
	busy := func(ctx context.Context, limit time.Duration) {
		call, stop := context.WithTimeout(ctx, limit)
		defer stop()
		if err := s.Busy(call, m.Spec.Instance, s.Now().Add(busyFor)); err != nil && ctx.Err() == nil {
			s.Log.Warn("a session may not keep its machine awake", "machine", m.ID, "err", err)
		}
	}
	busy(caller, firstBusy)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(busyEvery):
				busy(ctx, busyEvery)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// session is a connection that keeps its machine awake.
type session struct {
	net.Conn
	end func()
}

func (c *session) Close() error {
	err := c.Conn.Close()
	c.end()
	return err
}

// CloseWrite passes a half-close on.
func (c *session) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.New("no half-close")
}
