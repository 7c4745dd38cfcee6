package machines

import (
	"encoding/json"
	"time"
)

// Machine is one machine of an app, as the API tells it.
type Machine struct {
	ID         string    `json:"id"` // 14 hex digits, for the machine's life
	Name       string    `json:"name"`
	State      State     `json:"state"`
	Region     string    `json:"region"`
	ImageRef   ImageRef  `json:"image_ref,omitzero"`
	InstanceID string    `json:"instance_id"` // ULID, new for every version
	Version    string    `json:"version,omitempty"`
	PrivateIP  string    `json:"private_ip,omitempty"` // its address in the private network, IPv6
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
	Config     *Config   `json:"config,omitempty"` // nil when the host cannot be reached, or in a summary
	Events     []Event   `json:"events,omitempty"` // newest first
	Checks     []Status  `json:"checks,omitempty"` // empty until the first result
	// Nonce is set in the reply to a Create with LeaseTTL: the caller holds
	// the machine's lease (see Client.Holding).
	Nonce      string       `json:"nonce,omitempty"`
	Lease      *HeldLease   `json:"lease,omitempty"` // with ListOptions.Leases only
	HostStatus string       `json:"host_status,omitempty"`
	Cordoned   bool         `json:"cordoned"` // the proxy sends it nothing
	Warnings   []string     `json:"warnings,omitempty"`
	Incomplete *Config      `json:"incomplete_config,omitempty"`
	Containers []NamedState `json:"containers,omitempty"`
}

// State is where a machine is in its life.
type State string

// The states. The first group stays until something happens; the others are
// on their way to one of them.
const (
	StateCreated   State = "created"
	StateStarted   State = "started"
	StateStopped   State = "stopped"
	StateSuspended State = "suspended"
	StateFailed    State = "failed"
	StateDestroyed State = "destroyed"
	StateReplaced  State = "replaced"

	StateCreating     State = "creating"
	StateStarting     State = "starting"
	StateStopping     State = "stopping"
	StateRestarting   State = "restarting"
	StateSuspending   State = "suspending"
	StateUpdating     State = "updating"
	StateReplacing    State = "replacing"
	StateLaunchFailed State = "launch_failed"
	StateDestroying   State = "destroying"
)

// Gone reports whether the machine is destroyed or about to be.
func (s State) Gone() bool { return s == StateDestroyed || s == StateDestroying }

// Idle reports whether the machine runs nothing and could be woken.
func (s State) Idle() bool { return s == StateStopped || s == StateSuspended }

// NamedState is the state of a container of a machine with several.
type NamedState struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// ImageRef is a resolved image.
type ImageRef struct {
	Registry   string            `json:"registry,omitempty"`
	Repository string            `json:"repository,omitempty"`
	Tag        string            `json:"tag,omitempty"`
	Digest     string            `json:"digest,omitempty"`
	Labels     map[string]string `json:"labels"`
}

// Event is an entry of a machine's history.
type Event struct {
	ID        string        `json:"id,omitempty"`
	Type      string        `json:"type"`
	Status    string        `json:"status"`
	Source    string        `json:"source"`
	Timestamp int64         `json:"timestamp"` // milliseconds since 1970
	Request   *EventRequest `json:"request,omitempty"`
	Reason    string        `json:"reason,omitempty"` // Roost only: why
}

// Time returns when it happened.
func (e Event) Time() time.Time { return time.UnixMilli(e.Timestamp) }

// EventRequest carries what an exit was.
type EventRequest struct {
	ExitEvent    *ExitEvent `json:"exit_event,omitempty"`
	RestartCount int        `json:"restart_count,omitempty"`
}

// ExitEvent is how a machine's main process ended.
type ExitEvent struct {
	ExitCode      int       `json:"exit_code"`
	GuestExitCode int       `json:"guest_exit_code"`
	GuestSignal   int       `json:"guest_signal"` // -1: none
	Signal        int       `json:"signal"`       // -1: none
	OOMKilled     bool      `json:"oom_killed"`
	RequestedStop bool      `json:"requested_stop"`
	Restarting    bool      `json:"restarting"`
	ExitedAt      time.Time `json:"exited_at"`
	Error         string    `json:"error,omitempty"`
	GuestError    string    `json:"guest_error,omitempty"`
}

// Status is what a check last said.
type Status struct {
	Name      string    `json:"name"`
	Status    string    `json:"status"` // "passing", "warning", "critical"
	Output    string    `json:"output"`
	UpdatedAt time.Time `json:"updated_at"`
}

// CreateRequest asks for a machine.
type CreateRequest struct {
	Config Config `json:"config"`
	Name   string `json:"name,omitempty"`   // "": generated
	Region string `json:"region,omitempty"` // "": the nearest
	// LeaseTTL, in seconds, leases the machine to the caller; see Machine.Nonce.
	LeaseTTL                int  `json:"lease_ttl,omitempty"`
	SkipLaunch              bool `json:"skip_launch,omitempty"`               // prepare, do not start
	SkipServiceRegistration bool `json:"skip_service_registration,omitempty"` // create it cordoned
}

// UpdateRequest asks for a new version of a machine. Config replaces the old
// one as a whole.
type UpdateRequest struct {
	CreateRequest
	// CurrentVersion, if set, must be the live InstanceID, or the update is
	// refused with status 409.
	CurrentVersion string `json:"current_version,omitempty"`
}

// StopRequest says how to stop; its zero value means the machine's stop_config.
type StopRequest struct {
	Signal  Signal   `json:"signal,omitempty"`
	Timeout Duration `json:"timeout,omitzero"`
}

// StartReply answers a start.
type StartReply struct {
	PreviousState State  `json:"previous_state"`
	Migrated      bool   `json:"migrated"`
	NewHost       string `json:"new_host"`
}

// WaitReply answers a wait.
type WaitReply struct {
	OK      bool   `json:"ok"`
	State   State  `json:"state"`
	Version string `json:"version"`
	EventID string `json:"event_id,omitempty"`
}

// ExecRequest asks for a command to be run inside a running machine.
type ExecRequest struct {
	Command []string `json:"command,omitempty"`
	// Cmd is split as a shell splits words, and nothing more. Deprecated by
	// the API in favour of command.
	Cmd     string `json:"cmd,omitempty"`
	Stdin   string `json:"stdin,omitempty"`
	Timeout int    `json:"timeout,omitempty"` // seconds
	// Container and Machine are for machines with several containers.
	Container string `json:"container,omitempty"`
	Machine   bool   `json:"machine,omitempty"`
}

// ExecReply is what the command said. A command that fails is not an error of
// the call.
type ExecReply struct {
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	ExitCode   int    `json:"exit_code"`
	ExitSignal int    `json:"exit_signal"`
}

// ProcessStat is one process inside a machine.
type ProcessStat struct {
	PID           int            `json:"pid"`
	Stime         uint64         `json:"stime"` // seconds since 1970 at its start
	Rtime         uint64         `json:"rtime"` // seconds it has been running
	Command       string         `json:"command"`
	Directory     string         `json:"directory"`
	CPU           uint64         `json:"cpu"` // milliseconds used
	RSS           uint64         `json:"rss"` // bytes
	ListenSockets []ListenSocket `json:"listen_sockets"`
}

// ListenSocket is a listening socket inside a machine.
type ListenSocket struct {
	Proto   string `json:"proto"`
	Address string `json:"address"`
}

// Lease is an exclusive lock on one machine that expires by itself.
type Lease struct {
	Nonce       string `json:"nonce"`
	ExpiresAt   int64  `json:"expires_at"` // seconds since 1970
	Owner       string `json:"owner"`
	Description string `json:"description"`
	Version     string `json:"version"`
}

// HeldLease is a lease as others see it.
type HeldLease struct {
	Description string `json:"description"`
	ExpiresAt   int64  `json:"expires_at"`
	Owner       string `json:"owner"`
}

// MachineVersion is a version of a machine's config.
type MachineVersion struct {
	Version    string          `json:"version"`
	UserConfig json.RawMessage `json:"user_config"`
}

// App is a name under which machines run.
type App struct {
	ID                string       `json:"id"`
	InternalNumericID int32        `json:"internal_numeric_id"`
	Name              string       `json:"name"`
	Organization      Organization `json:"organization"`
	Status            string       `json:"status"` // "pending" until it has a machine, then "deployed"; "suspended" when all of them are down
	MachineCount      int          `json:"machine_count"`
	VolumeCount       int          `json:"volume_count"`
	Network           string       `json:"network"`
	CreatedAt         int64        `json:"created_at,omitempty"` // milliseconds since 1970
}

// Organization is who an app belongs to.
type Organization struct {
	Name              string `json:"name"`
	Slug              string `json:"slug"`
	InternalNumericID int32  `json:"internal_numeric_id,omitempty"`
}

// CreateAppRequest asks for an app.
type CreateAppRequest struct {
	Name           string `json:"name"`
	OrgSlug        string `json:"org_slug"`
	Network        string `json:"network,omitempty"`
	IdempotencyKey string `json:"idempotency_key,omitempty"` // same key: the first app is answered again
}

// Region is a place where machines run.
type Region struct {
	Code             string  `json:"code"`
	Name             string  `json:"name"`
	Latitude         float64 `json:"latitude"`
	Longitude        float64 `json:"longitude"`
	GatewayAvailable bool    `json:"gateway_available"`
	RequiresPaidPlan bool    `json:"requires_paid_plan"`
	Deprecated       bool    `json:"deprecated"`
	GeoRegion        string  `json:"geo_region,omitempty"`
}
