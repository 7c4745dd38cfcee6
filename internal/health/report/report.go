// Package report is how the results of checks travel: from the edge, which
// makes the checks, to control, whose agent records them; and from the edge to
// an agent that brings up a new version beside the one that serves.
//
// Reports are states, not events: what could not be delivered is sent again as
// it is then, and a control process that has begun anew gets all of them. One
// goroutine in the edge, Sender.Run.
package report

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
)

// Path is where control takes reports, on its socket.
const Path = "/internal/checks"

const (
	// gather lets results of machines that started together travel together.
	gather = 20 * time.Millisecond
	// maxBatch bounds one call.
	maxBatch = 500
	// minPause and maxPause are between attempts to reach control.
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
	// sendTimeout is for one call: control only queues what it gets.
	sendTimeout = 10 * time.Second
)

// Report is what an instance's checks say.
type Report struct {
	Machine  root.MachineID
	Instance root.InstanceID
	Boot     root.Stamp // of the start that the results belong to
	Checks   []root.CheckResult
	Restart  string // why the machine is to be restarted, "" not
	Asked    int    // how often that came up since that start
}

// Handler takes reports in control.
func Handler(take func(context.Context, []Report) error) http.Handler {
	return ipc.Handler(func(ctx context.Context, _ *http.Request, in []Report) (struct{}, error) {
		return struct{}{}, take(ctx, in)
	})
}

// Sender sends reports of instances that changed. Use New; safe for concurrent
// use.
type Sender struct {
	send func(context.Context, []Report) error
	read func(root.InstanceID) (Report, bool)

	mu      sync.Mutex
	changed map[root.InstanceID]bool
	wake    chan struct{} // capacity 1
}

// New returns a Sender to control's socket; read returns an instance's report
// as it is now, or false when there is none.
func New(control *ipc.Client, read func(root.InstanceID) (Report, bool)) *Sender {
	return newSender(read, func(ctx context.Context, batch []Report) error {
		return control.Call(ctx, http.MethodPost, Path, batch, nil)
	})
}

func newSender(read func(root.InstanceID) (Report, bool), send func(context.Context, []Report) error) *Sender {
	return &Sender{send: send, read: read, changed: make(map[root.InstanceID]bool), wake: make(chan struct{}, 1)}
}

// Changed says that instances have a new report.
func (s *Sender) Changed(ids ...root.InstanceID) {
	if len(ids) == 0 {
		return
	}
	s.mu.Lock()
	for _, id := range ids {
		s.changed[id] = true
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends.
func (s *Sender) Run(ctx context.Context) error {
	pause := minPause
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		select {
		case <-s.wake:
			timer.Reset(gather)
			continue
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		err := s.flush(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			timer.Reset(pause)
			pause = min(2*pause, maxPause)
		default:
			pause = minPause
		}
	}
}

// flush sends what changed; what does not arrive counts as changed again.
func (s *Sender) flush(ctx context.Context) error {
	for {
		s.mu.Lock()
		ids := make([]root.InstanceID, 0, min(len(s.changed), maxBatch))
		for id := range s.changed {
			if len(ids) == maxBatch {
				break
			}
			ids = append(ids, id)
			delete(s.changed, id)
		}
		s.mu.Unlock()
		batch := make([]Report, 0, len(ids))
		for _, id := range ids {
			if r, ok := s.read(id); ok {
				batch = append(batch, r)
			}
		}
		if len(batch) == 0 {
			if len(ids) == 0 {
				return nil
			}
			continue
		}
		call, cancel := context.WithTimeout(ctx, sendTimeout)
		err := s.send(call, batch)
		cancel()
		if err != nil {
			s.mu.Lock()
			for _, id := range ids {
				s.changed[id] = true
			}
			s.mu.Unlock()
			return err
		}
	}
}

// candidates is the edge's path for versions that do not serve yet.
const candidates = "/candidates"

// CandidatePattern is that path for the edge's mux.
const CandidatePattern = "POST " + candidates

// Question asks how far a version is from taking requests.
type Question struct {
	// Machine is the machine as it will be: with the version's instance,
	// address and config. It runs.
	Machine *root.Machine
}

// Answer is how far it is.
type Answer struct {
	// Passing says that every check that gates traffic passes.
	Passing bool
	Checks  []root.CheckResult // those with a result that counts
	// Pending are those that gate and do not pass; one without Status has
	// failed so far, or was not made yet, and may still.
	Pending []root.CheckResult
}

// Wait is how long the edge waits for a version to pass before it answers that
// it does not yet.
const Wait = time.Second

// Ask has the edge make a version's checks from now on, whether or not it
// serves yet, and asks for their results. It answers when they pass, or after
// Wait.
func Ask(ctx context.Context, edge *ipc.Client, q Question) (Answer, error) {
	if q.Machine == nil {
		return Answer{}, errors.New("ask the edge about no machine")
	}
	var a Answer
	return a, edge.Call(ctx, http.MethodPost, candidates, q, &a)
}
