package roost

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
)

// nonceHeader proves that the caller holds the machine's lease.
const nonceHeader = "Fly-Machine-Lease-Nonce"

// How long a client may take to say what to run, and how long output may
// still come after the command ended: a child it left behind keeps the pipe.
const (
	startTimeout = 10 * time.Second
	drainTimeout = time.Second
)

// exec runs a command on streams that travel over the upgraded connection;
// see client.ExecProtocol.
func (h *handlers) exec(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	return h.interactive(w, r, func(ctx context.Context, s *execSession) (client.ExecEnd, error) {
		if len(s.start.Args) == 0 {
			return client.ExecEnd{}, root.Errorf(root.Invalid, "exec: the first frame must say what to run")
		}
		return h.run(ctx, r, app, id, s)
	})
}

// execSession is an upgraded connection on which a client waits for a command.
type execSession struct {
	start  client.ExecStart
	in     *bufio.Reader
	out    *client.FrameWriter
	cancel context.CancelCauseFunc // of the command's context
}

// interactive upgrades the connection, reads what to run, and tells the client
// how run ended.
func (h *handlers) interactive(w http.ResponseWriter, r *http.Request, run func(context.Context, *execSession) (client.ExecEnd, error)) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), client.ExecProtocol) {
		return root.Errorf(root.Invalid, "this route needs the header \"Upgrade: %s\"; POST /v1/apps/{app}/machines/{machine}/exec runs a command without streams", client.ExecProtocol)
	}
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", client.ExecProtocol)
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer conn.Close()
	// The request's context ends when the handler returns; a client that goes
	// away is seen by the reader below.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer cancel(nil)
	out := client.NewFrameWriter(conn)
	if err := conn.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	start, err := readStart(buffered.Reader)
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	var end client.ExecEnd
	if err == nil {
		end, err = run(ctx, &execSession{start, buffered.Reader, out, cancel})
	}
	if err == nil {
		return out.JSON(client.FrameEnd, end)
	}
	end.Error = failure(err)
	err = errors.Join(err, out.JSON(client.FrameEnd, end))
	// What the client still sends would break the connection, and the reason
	// with it: it is read until the client, which has the reason, closes.
	if conn.SetReadDeadline(time.Now().Add(lingerTimeout)) == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
	return err
}

// lingerTimeout bounds the wait for a client to take a refusal.
const lingerTimeout = 2 * time.Second

func readStart(r io.Reader) (client.ExecStart, error) {
	var start client.ExecStart
	kind, data, err := client.ReadFrame(r)
	if err != nil {
		return start, &root.Error{Kind: root.Invalid, Message: "exec: the client did not say what to run", Err: err}
	}
	if kind != client.FrameStart || json.Unmarshal(data, &start) != nil {
		return start, root.Errorf(root.Invalid, "exec: the first frame must say what to run")
	}
	return start, nil
}

// run connects the streams, runs the command and waits until all of its
// output is on its way.
func (h *handlers) run(ctx context.Context, r *http.Request, app root.AppName, id root.MachineID, s *execSession) (client.ExecEnd, error) {
	start := s.start
	streams, err := openStreams(start)
	if err != nil {
		return client.ExecEnd{}, fmt.Errorf("exec: %w", err)
	}
	defer streams.close()
	var outputs sync.WaitGroup
	for kind, f := range streams.outputs {
		outputs.Go(func() { _, _ = io.Copy(s.out.Stream(kind), f) })
	}
	// Ends with the connection, which exec closes after run has returned.
	go func() {
		s.cancel(readInput(s.in, streams))
	}()
	res, err := h.Machines.ExecStream(ctx, route.Actor(r), app, id, r.Header.Get(nonceHeader), control.ExecStream{
		Args: start.Args, Env: start.Env, Dir: start.Dir, User: start.User, TTY: start.TTY, Files: streams.guest,
	})
	streams.closeGuest()
	drained := make(chan struct{})
	go func() { outputs.Wait(); close(drained) }()
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		streams.close() // ends the copies
		<-drained
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return client.ExecEnd{Code: res.Code, Signal: res.Signal}, err
}

var errClientGone = &root.Error{Kind: root.Timeout, Message: "exec: the client went away"}

// readInput passes the client's frames on until the connection ends, and
// returns why it did.
func readInput(in io.Reader, s *streams) error {
	for {
		kind, data, err := client.ReadFrame(in)
		if err != nil {
			return errClientGone
		}
		switch kind {
		case client.FrameStdin:
			if len(data) == 0 {
				s.endInput()
				continue
			}
			// A command that does not read its input is no reason to stop.
			_, _ = s.input.Write(data)
		case client.FrameResize:
			var size client.Size
			if json.Unmarshal(data, &size) == nil {
				_ = s.resize(size) // not a terminal: nothing to resize
			}
		}
	}
}

// streams are both ends of a command's standard streams: guest's go into the
// machine, the others stay here.
type streams struct {
	tty     bool
	guest   []*os.File
	input   *os.File
	outputs map[byte]*os.File // by the frame they leave in
	once    sync.Once
	inputMu sync.Mutex // guards closing input against a second end
	ended   bool
}

func openStreams(start client.ExecStart) (*streams, error) {
	if start.TTY {
		master, slave, err := openTerminal()
		if err != nil {
			return nil, err
		}
		s := &streams{tty: true, guest: []*os.File{slave}, input: master, outputs: map[byte]*os.File{client.FrameStdout: master}}
		if start.Size != nil {
			if err := s.resize(*start.Size); err != nil {
				s.close()
				return nil, err
			}
		}
		return s, nil
	}
	s := &streams{outputs: make(map[byte]*os.File, 2)}
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, err
		}
		switch i {
		case 0:
			s.guest, s.input = append(s.guest, r), w
		case 1:
			s.guest, s.outputs[client.FrameStdout] = append(s.guest, w), r
		case 2:
			s.guest, s.outputs[client.FrameStderr] = append(s.guest, w), r
		}
	}
	return s, nil
}

// endInput tells the command that nothing more comes.
func (s *streams) endInput() {
	s.inputMu.Lock()
	defer s.inputMu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if s.tty {
		_, _ = s.input.Write([]byte{4}) // end of transmission, as a terminal says it
		return
	}
	_ = s.input.Close()
}

func (s *streams) closeGuest() {
	for _, f := range s.guest {
		_ = f.Close()
	}
}

func (s *streams) close() {
	s.once.Do(func() {
		s.closeGuest()
		if s.input != nil {
			_ = s.input.Close()
		}
		for _, f := range s.outputs {
			_ = f.Close()
		}
	})
}
