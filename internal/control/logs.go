package control

import (
	"context"
	"slices"
	"strings"
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
	// Providers, Regions and Group each narrow it further, unless empty.
	Providers []string
	Regions   []root.Region
	Group     string // process group of machines that exist
	// Match is what a LogReader goes by instead of the three.
	Match func(LogLine) bool
}

// LogLine is a line of an app's log.
type LogLine struct {
	At       time.Time
	App      root.AppName
	Machine  root.MachineID
	Instance root.InstanceID
	Region   root.Region
	Provider string // LogApp and the like
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
	found, err := s.d.app(a, auth.LogRead, app)
	if err != nil {
		return err
	}
	if f.Since.Before(found.CreatedAt) {
		f.Since = found.CreatedAt // lines of an app that had the name before are not this one's
	}
	for _, p := range f.Providers {
		if !slices.Contains(logProviders, p) {
			return root.Errorf(root.Invalid, "provider: %q is not one of %s", p, strings.Join(logProviders, ", "))
		}
	}
	if len(f.Providers)+len(f.Regions) > 0 || f.Group != "" {
		f.Match = func(l LogLine) bool {
			return (len(f.Providers) == 0 || slices.Contains(f.Providers, l.Provider)) &&
				(len(f.Regions) == 0 || slices.Contains(f.Regions, l.Region)) &&
				(f.Group == "" || s.group(l.Machine) == f.Group)
		}
	}
	return s.d.Logs.Tail(ctx, app, f, follow, line)
}

func (s *Logs) group(id root.MachineID) string {
	if m := s.d.Catalog.Snapshot().Machine(id); m != nil {
		return m.Group()
	}
	return ""
}
