package control

import (
	"context"
	"os"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
)

// Machines are the verbs on machines. A machine comes back as its own copy:
// the caller may change it.
//
// nonce is that of the machine's lease; a verb that changes a leased machine
// without it gives Conflict, code "lease_held".
type Machines struct{ Deps }

// CreateMachine asks for a machine.
type CreateMachine struct {
	Name   string // "" makes one
	Region string // "", a code, an alias, or a list of them in order of preference
	Config root.Config
	Source []byte // the config as the client sent it
	// SkipLaunch prepares the machine and leaves it stopped.
	SkipLaunch bool
	// SkipServiceRegistration creates it cordoned.
	SkipServiceRegistration bool
	// LeaseTTL, if not zero, creates it leased to the caller: the machine's
	// Lease has the nonce.
	LeaseTTL time.Duration
}

// UpdateMachine asks for a new version of a machine.
type UpdateMachine struct {
	CurrentVersion          string // "" or the version that must be live
	Nonce                   string
	Config                  root.Config
	Source                  []byte
	SkipLaunch              bool
	SkipServiceRegistration bool
	Name, Region            string // "" or the current ones: they cannot change
	// LeaseTTL, if not zero, leaves it leased to the caller.
	LeaseTTL time.Duration
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

// Create makes a machine and, unless SkipLaunch, starts it. It returns when
// the machine runs, or with the reason why it cannot, and then leaves nothing.
func (s *Machines) Create(ctx context.Context, a auth.Actor, app root.AppName, c CreateMachine) (*root.Machine, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Update brings a machine to a new version.
func (s *Machines) Update(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, u UpdateMachine) (*root.Machine, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Get returns a machine, also one that was destroyed a short while ago.
func (s *Machines) Get(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Machine, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// List returns an app's machines in order of their ids.
func (s *Machines) List(ctx context.Context, a auth.Actor, app root.AppName, f Filter) ([]*root.Machine, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Start starts or resumes a machine and returns the state it was in.
func (s *Machines) Start(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) (previous root.State, err error) {
	return "", root.Errorf(root.Unimplemented, "not built yet")
}

// Stop asks a machine to stop; it returns when the intent is recorded.
func (s *Machines) Stop(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r StopRequest) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Restart stops and starts a machine; it returns when it runs again.
func (s *Machines) Restart(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r RestartRequest) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Suspend freezes a machine.
func (s *Machines) Suspend(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Signal sends a signal to a machine's main process.
func (s *Machines) Signal(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, signal int) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Cordon keeps new work away from a machine, or (on false) lets it come again.
func (s *Machines) Cordon(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, on bool) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Destroy removes a machine; one that runs only with force. It returns when
// nothing of it is left.
func (s *Machines) Destroy(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, force bool) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Wait returns when the machine is in one of the states, or with kind Timeout.
func (s *Machines) Wait(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, w WaitRequest) (WaitResult, error) {
	return WaitResult{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Exec runs a command and returns its output; a non-zero exit is no error.
func (s *Machines) Exec(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, e ExecRequest) (ExecResult, error) {
	return ExecResult{}, root.Errorf(root.Unimplemented, "not built yet")
}

// ExecStream runs a command on the caller's files and returns when it ended.
func (s *Machines) ExecStream(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, e ExecStream) (ExecResult, error) {
	return ExecResult{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Inspect says what runs and listens inside a machine.
func (s *Machines) Inspect(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Inspection, error) {
	return orders.Inspection{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Stats is what the kernel accounts to a machine.
func (s *Machines) Stats(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Stats, error) {
	return orders.Stats{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Events returns a machine's history, newest first; limit 0 is DefaultEvents.
func (s *Machines) Events(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, limit int) ([]root.Event, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Lease returns the lease somebody holds on the machine; NotFound if nobody does.
func (s *Machines) Lease(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Lease, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Acquire takes the lease, or, with the nonce of the current one, extends it.
func (s *Machines) Acquire(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce, description string, ttl time.Duration) (*root.Lease, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Release gives the lease back.
func (s *Machines) Release(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}

// Metadata returns a machine's metadata.
func (s *Machines) Metadata(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (map[string]string, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// SetMetadata sets the keys given and removes those whose value is "" or nil;
// others stay. A version that is not "" must be the live one.
func (s *Machines) SetMetadata(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, version string, values map[string]*string) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}
