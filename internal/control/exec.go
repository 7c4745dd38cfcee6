package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
)

// Bounds of an exec whose output is collected.
const (
	DefaultExecTimeout = 60 * time.Second
	MaxExecTimeout     = 10 * time.Minute
	MaxExecOutput      = 1 << 20 // of each stream
	// lingerTimeout is for output that is on its way when the command has
	// ended, on a busy host too; only a background process that keeps the
	// stream open makes a caller wait for it.
	lingerTimeout = 2 * time.Second
)

// Exec runs a command and returns its output; a non-zero exit is no error.
func (s *Machines) Exec(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, e ExecRequest) (_ ExecResult, err error) {
	if e.Timeout < 0 || e.Timeout > MaxExecTimeout {
		return ExecResult{}, root.Errorf(root.Invalid, "timeout: %s is out of range (0s to %s)", e.Timeout, MaxExecTimeout)
	}
	if e.Timeout == 0 {
		e.Timeout = DefaultExecTimeout
	}
	m, err := s.executable(ctx, a, app, id, nonce, e.Args)
	if err != nil {
		return ExecResult{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.Timeout, root.Errorf(root.Timeout, "the command did not end within %s and was killed", e.Timeout))
	defer cancel()

	inside, outside, err := pipes()
	if err != nil {
		return ExecResult{}, err
	}
	defer func() { err = errors.Join(err, closeAll(outside[:])) }()
	var out, errs clipped
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.WriteString(outside[0], e.Stdin)
		return errors.Join(ignoreBroken(err), outside[0].Close())
	})
	g.Go(func() error { return out.readFrom(outside[1]) })
	g.Go(func() error { return errs.readFrom(outside[2]) })
	r, runErr := s.Agent.Exec(ctx, id, orders.Exec{Args: e.Args}, inside[:]...)
	closeErr := closeAll(inside[:])
	deadline := time.Now().Add(lingerTimeout)
	for _, f := range outside {
		_ = f.SetDeadline(deadline) // a pipe has one; a closed stdin needs none
	}
	if err := errors.Join(g.Wait(), closeErr); err != nil && runErr == nil {
		return ExecResult{}, err
	}
	return ExecResult{
		Stdout: out.String(), Stderr: errs.String(), Code: r.Code, Signal: r.Signal, Truncated: out.cut || errs.cut,
	}, s.cutOff(ctx, m, runErr)
}

// newsPatience is how long the news that a machine ended may take to get here.
const newsPatience = 500 * time.Millisecond

// cutOff says why an exec failed where the cause is that the machine, which
// was as in m when it began, ended meanwhile.
func (s *Machines) cutOff(ctx context.Context, m *root.Machine, err error) error {
	if err == nil || root.KindOf(err) != root.Internal && root.KindOf(err) != root.NotFound {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, newsPatience)
	defer cancel()
	changed := s.Catalog.Wait(ctx, func(sn *root.Snapshot) bool {
		now := sn.Machine(m.ID)
		return now == nil || now.Status.Stamp != m.Status.Stamp
	})
	if changed != nil {
		return err
	}
	return &root.Error{Kind: root.Precondition, Message: "the machine stopped or was replaced while the command ran", Err: err}
}

// executable checks that the actor may run args inside the machine now.
func (s *Machines) executable(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, args []string) (*root.Machine, error) {
	if len(args) == 0 || args[0] == "" {
		return nil, root.Errorf(root.Invalid, "command: it is missing")
	}
	m, err := s.change(a, auth.MachineExec, app, id, nonce)
	if err != nil {
		return nil, err
	}
	_, err = root.CheckVerb(root.VerbExec, s.stateNow(ctx, m))
	return m, err
}

// ExecStream runs a command on the caller's files and returns when it ended.
func (s *Machines) ExecStream(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, e ExecStream) (ExecResult, error) {
	m, err := s.executable(ctx, a, app, id, nonce, e.Args)
	if err != nil {
		return ExecResult{}, err
	}
	defer s.keepAwake(ctx, m)()
	r, err := s.Agent.Exec(ctx, id, orders.Exec{Args: e.Args, Env: e.Env, Dir: e.Dir, User: e.User, TTY: e.TTY}, e.Files...)
	return ExecResult{Code: r.Code, Signal: r.Signal}, s.cutOff(ctx, m, err)
}

// pipes makes stdin, stdout and stderr: the command's ends and ours.
func pipes() (inside, outside [3]*os.File, err error) {
	var open []*os.File
	for i := range inside {
		r, w, err := os.Pipe()
		if err != nil {
			return inside, outside, errors.Join(err, closeAll(open))
		}
		open = append(open, r, w)
		if i == 0 {
			inside[i], outside[i] = r, w
		} else {
			inside[i], outside[i] = w, r
		}
	}
	return inside, outside, nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ignoreBroken: a command need not read its input, nor to its end.
func ignoreBroken(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

// clipped keeps the first MaxExecOutput bytes and counts the rest off.
type clipped struct {
	bytes.Buffer
	cut bool
}

func (c *clipped) readFrom(r io.Reader) error {
	_, err := io.Copy(&c.Buffer, io.LimitReader(r, MaxExecOutput))
	if err != nil {
		return ignoreBroken(err)
	}
	n, err := io.Copy(io.Discard, r) // the command must not block
	c.cut = n > 0
	return ignoreBroken(err)
}
