package control

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/state"
)

// Machines are the verbs on machines. A machine comes back as its own copy:
// the caller may change it.
//
// nonce is that of the machine's lease; a verb that changes a leased machine
// without it gives Conflict, code "lease_held".
type Machines struct {
	Deps
	addresses *addresses
}

// CreateMachine asks for a machine.
type CreateMachine struct {
	Name   string // "" makes one
	Region string // "", a code, an alias, or a list of them in order of preference
	Config root.Config
	Source []byte // the config as the client sent it
	// SkipSecrets leaves the app's secrets out.
	SkipSecrets bool
	// SkipLaunch prepares the machine and leaves it stopped.
	SkipLaunch bool
	// SkipServiceRegistration creates it cordoned.
	SkipServiceRegistration bool
	// LeaseTTL, if not zero, creates it leased to the caller: the machine's
	// Lease has the nonce.
	LeaseTTL time.Duration
	Release  *Pinned // nil: the machine belongs to no release
}

// Pinned is what a version that belongs to a release takes from it.
type Pinned struct {
	Image   root.Image // in place of what the config's reference says now
	Release int
	Secrets int // in place of the app's version
	// Instance, if not "", is the new version's id.
	Instance root.InstanceID
}

// UpdateMachine asks for a new version of a machine.
type UpdateMachine struct {
	CurrentVersion          string // "" or the version that must be live
	Nonce                   string
	Config                  root.Config
	Source                  []byte
	SkipSecrets             bool
	SkipLaunch              bool
	SkipServiceRegistration bool
	Name, Region            string // "" or the current ones: they cannot change
	// Timeout is how long the new version may take to be ready, its checks
	// passing, before the old one is kept; zero is the agent's default.
	Timeout time.Duration
	// Prove, if not nil, is called with the new version when it is ready beside
	// the old one, which serves on if it fails.
	Prove func(ctx context.Context, next *root.Machine) error
	// LeaseTTL, if not zero, leaves it leased to the caller.
	LeaseTTL time.Duration
	Release  *Pinned // nil: the new version belongs to no release
}

// Filter narrows a list of machines; the zero value lists all that live.
type Filter struct {
	IncludeDeleted bool
	Region         string
	States         []root.State
	Metadata       map[string]string // all of them
}

// StopRequest says how to stop; zero members mean the machine's own config.
type StopRequest struct {
	Signal  string
	Timeout time.Duration
	Reason  string // "" is "requested"
}

// RestartRequest says how to restart; zero members mean the machine's own config.
type RestartRequest struct {
	Signal  string
	Timeout time.Duration
	Force   bool // kill instead of asking
}

// WaitRequest says what to wait for.
type WaitRequest struct {
	States    []string // of started, stopped, suspended, destroyed, failed, settled; none: started
	Version   string   // "" is the current one
	FromEvent string   // "" or an event's id: only what came after it counts
	Timeout   time.Duration
}

// WaitResult is what was reached.
type WaitResult struct {
	State   root.State
	Version root.InstanceID
	EventID string
}

// ExecRequest is a command to run inside a machine.
type ExecRequest struct {
	Args    []string
	Stdin   string
	Timeout time.Duration // 0 is DefaultExecTimeout
}

// ExecResult is what came of it. An output longer than MaxExecOutput is cut.
type ExecResult struct {
	Stdout, Stderr string
	Code, Signal   int
	Truncated      bool
}

// ExecStream is a command whose streams are the caller's files: stdin,
// stdout, stderr, or with TTY one, the terminal's slave end.
type ExecStream struct {
	Args  []string
	Env   []string
	Dir   string
	User  string
	TTY   bool
	Files []*os.File
}

// Get returns a machine, also one that was destroyed a short while ago.
func (s *Machines) Get(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Machine, error) {
	m, err := s.machine(a, auth.MachineRead, app, id)
	if root.IsKind(err, root.NotFound) {
		return s.grave(ctx, app, id)
	}
	if err != nil {
		return nil, err
	}
	return m.Clone(), nil
}

// grave finds a machine that was destroyed lately.
func (s *Machines) grave(ctx context.Context, app root.AppName, id root.MachineID) (*root.Machine, error) {
	graves, err := s.Store.Tombstones(ctx, app)
	if err != nil {
		return nil, err
	}
	for _, m := range graves {
		if m.ID == id {
			return m, nil
		}
	}
	return nil, root.Errorf(root.NotFound, "machine not found")
}

// List returns an app's machines in order of their ids.
func (s *Machines) List(ctx context.Context, a auth.Actor, app root.AppName, f Filter) ([]*root.Machine, error) {
	if _, err := s.app(a, auth.AppRead, app); err != nil {
		return nil, err
	}
	out := []*root.Machine{}
	for _, m := range s.Catalog.Snapshot().Machines(app) {
		if m.Status.State == root.StateDestroyed && !f.IncludeDeleted {
			continue // its record goes in a moment
		}
		if f.matches(m) {
			out = append(out, m.Clone())
		}
	}
	if !f.IncludeDeleted {
		return out, nil
	}
	graves, err := s.Store.Tombstones(ctx, app)
	if err != nil {
		return nil, err
	}
	for _, m := range graves {
		// A machine destroyed this very moment may still be in the catalog.
		if f.matches(m) && !slices.ContainsFunc(out, func(o *root.Machine) bool { return o.ID == m.ID }) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *root.Machine) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, nil
}

func (f *Filter) matches(m *root.Machine) bool {
	if f.Region != "" && f.Region != string(m.Region) {
		return false
	}
	if len(f.States) > 0 && !slices.Contains(f.States, m.Status.State) {
		return false
	}
	for k, v := range f.Metadata {
		if got, ok := m.Spec.Config.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// change finds a machine that the actor may change with p and whose lease, if
// somebody holds one, the caller holds.
func (s *Machines) change(a auth.Actor, p auth.Permission, app root.AppName, id root.MachineID, nonce string) (*root.Machine, error) {
	m, err := s.machine(a, p, app, id)
	if err != nil {
		return nil, err
	}
	if l := m.ActiveLease(s.Now()); l != nil && l.Nonce != nonce {
		return nil, state.LeaseHeld(id, *l)
	}
	return m, nil
}

// current returns what reads see of a machine now.
func (s *Machines) current(ctx context.Context, app root.AppName, id root.MachineID) (*root.Machine, error) {
	if m := s.Catalog.Snapshot().Machine(id); m != nil {
		return m.Clone(), nil
	}
	return s.grave(ctx, app, id)
}
