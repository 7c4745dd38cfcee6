package supervisor

import (
	"context"
	"errors"
	"net/http"
	"os"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
)

var errPeerGone = errors.New("the caller went away")

// exec runs a command for a peer that hands over its streams; when the peer
// goes away the command is killed.
func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	sl, err := s.slots.get(root.InstanceID(r.PathValue("instance")))
	if err != nil {
		ipc.WriteError(w, err)
		return
	}
	run, err := sl.enter()
	if err != nil {
		ipc.WriteError(w, err)
		return
	}
	defer sl.exit()
	s.slots.tasks.Add(1)
	defer s.slots.tasks.Done()
	c, err := ipc.Upgrade(w, r)
	if err != nil {
		ipc.WriteError(w, err)
		return
	}
	defer func() { _ = c.Close() }() // everything was sent
	var o orders.Exec
	files, err := c.Receive(&o)
	defer func() {
		for _, f := range files {
			_ = f.Close() // copies of the peer's
		}
	}()
	if err != nil {
		return
	}
	e, err := execOf(o, files)
	if err != nil {
		s.answerExec(c, 0, err)
		return
	}
	ctx, cancel := context.WithCancelCause(s.slots.detached(r.Context()))
	defer cancel(nil)
	go func() {
		var none struct{}
		_, err := c.Receive(&none) // nothing more is said: it ends with the connection
		cancel(errors.Join(errPeerGone, err))
	}()
	code, err := s.slots.driver.Exec(ctx, run.boot.Container, e)
	if ctx.Err() != nil {
		return
	}
	s.answerExec(c, code, err)
}

func execOf(o orders.Exec, files []*os.File) (runtime.Exec, error) {
	e := runtime.Exec{Args: o.Args, Env: o.Env, Dir: o.Dir, User: o.User, TTY: o.TTY}
	if len(o.Args) == 0 {
		return e, root.Errorf(root.Invalid, "there is no command to run")
	}
	switch {
	case o.TTY && len(files) == 1:
		e.Stdin, e.Stdout, e.Stderr = files[0], files[0], files[0]
	case !o.TTY && len(files) == 3:
		e.Stdin, e.Stdout, e.Stderr = files[0], files[1], files[2]
	default:
		return e, root.Errorf(root.Invalid, "an exec comes with 3 descriptors, or 1 with a terminal; got %d", len(files))
	}
	return e, nil
}

func (s *server) answerExec(c *ipc.Conn, code int, err error) {
	res := orders.ExecResult{Code: code}
	if code > 128 && code <= 128+64 {
		res.Signal = code - 128
	}
	if err != nil {
		res = orders.ExecResult{Error: messageOf(err), Kind: root.KindOf(err).String()}
	}
	_ = c.Send(res) // the peer went away: nobody to tell
}

// enter begins an exec: while one runs the instance is not suspended.
func (s *slot) enter() (*run, error) {
	s.mu.Lock()
	ok := s.phase == orders.PhaseStarted && s.run != nil && !s.run.dead
	if ok {
		s.execs++
	}
	r := s.run
	s.mu.Unlock()
	if !ok {
		return nil, s.notRunning("run a command in")
	}
	return r, nil
}

func (s *slot) exit() {
	s.mu.Lock()
	s.execs--
	s.mu.Unlock()
}
