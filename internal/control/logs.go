package control

import (
	"context"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Logs are the verbs on logs.
type Logs struct{ d Deps }

// LogFilter narrows a log; the zero value is everything there is.
type LogFilter struct {
	Machine root.MachineID // "" is all of the app
	Since   time.Time
	Lines   int // the last so many; 0 all
}

// LogLine is a line of an app's log.
type LogLine struct {
	At       time.Time
	App      root.AppName
	Machine  root.MachineID
	Instance root.InstanceID
	Region   root.Region
	Provider string // "app", "runner" or "proxy"
	Stream   string // "stdout", "stderr" or ""
	Message  string
}

// LogReader reads logs; with follow until ctx ends.
type LogReader interface {
	Tail(ctx context.Context, app root.AppName, f LogFilter, follow bool, line func(LogLine) error) error
}

// Tail calls f with each line in order; with follow it waits for new ones
// until ctx ends.
func (s *Logs) Tail(ctx context.Context, a auth.Actor, app root.AppName, f LogFilter, follow bool, line func(LogLine) error) error {
	if _, err := s.d.app(a, auth.LogRead, app); err != nil {
		return err
	}
	return s.d.Logs.Tail(ctx, app, f, follow, line)
}
