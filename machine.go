package roost

import (
	"maps"
	"slices"
	"time"
)

// Machine is one machine of an app. Values that the catalog hands out are
// shared: never change one, copy it.
type Machine struct {
	ID        MachineID
	App       AppName
	Org       OrgSlug
	Network   NetworkName
	Name      string // unique in the app, for the machine's life
	Region    Region
	Host      HostID
	Origin    Origin
	CreatedAt time.Time

	Spec   Spec   // what should be; written by the control plane
	Status Status // what is; written by the agent of Host
	Lease  *Lease // nil: nobody holds one. May be expired.
}

// Origin says from where a machine was made. With everything asleep a plain
// request wakes a machine that the owner made before one that the app made.
type Origin string

// The origins.
const (
	OriginUser Origin = "user" // from outside: command line, deploy, API client
	OriginApp  Origin = "app"  // by a machine, through its own socket or _api.internal
)

// Spec is one version of a machine: immutable apart from Cordoned,
// Config.Metadata and Destroy.
type Spec struct {
	Instance   InstanceID
	Generation uint64 // 1 for the first version, then counts up
	Config     Config
	Source     []byte // the config as the client sent it (JSON), for read-back with unknown members
	Image      Image
	Launch     bool // start once prepared; false is skip_launch
	Secrets    int  // version of the app's secrets it runs with, 0 none
	Release    int  // version of the release it belongs to, 0 none
	Cordoned   bool
	Address    Address
	UpdatedAt  time.Time
	Destroy    *Destroy // set when the machine is to go
}

// Destroy is the wish that a machine goes away.
type Destroy struct {
	Force bool
	At    time.Time
}

// Address is where a machine's version is reached inside the private network.
type Address struct {
	Index uint32 // per host, from 1; the other two derive from it
	IPv4  string // "172.19.0.9"
	IPv6  string // "fdaa:0:1:a7b:..:2", the 6PN address
}

// Status is what the owning host knows of a machine.
type Status struct {
	State      State
	Instance   InstanceID // the version this is about
	Generation uint64     // that version's
	Stamp      Stamp
	Restarts   int // policy restarts since the last launch
	Exit       *Exit
	Checks     []CheckResult
	Events     []Event // newest first, at most MaxEvents
	Message    string  // why it failed, for people
	UpdatedAt  time.Time
}

// MaxEvents is how many events a machine keeps.
const MaxEvents = 50

// Stamp orders news about a machine, from whatever way they come: an older
// one never replaces a newer one. Zero is older than any.
type Stamp struct {
	Boot uint64 // counts starts of the host's journal
	Seq  uint64 // position in that journal
}

// Before reports whether s is older than t.
func (s Stamp) Before(t Stamp) bool {
	return s.Boot < t.Boot || s.Boot == t.Boot && s.Seq < t.Seq
}

// State is where a machine is in its life; the names are Fly's.
type State string

// The states. Persistent ones stay until something happens; the others are on
// their way to one.
const (
	StateCreating     State = "creating"
	StateCreated      State = "created"
	StateStarting     State = "starting"
	StateStarted      State = "started"
	StateStopping     State = "stopping"
	StateStopped      State = "stopped"
	StateRestarting   State = "restarting"
	StateSuspending   State = "suspending"
	StateSuspended    State = "suspended"
	StateUpdating     State = "updating"
	StateReplacing    State = "replacing"
	StateReplaced     State = "replaced"
	StateLaunchFailed State = "launch_failed"
	StateFailed       State = "failed"
	StateDestroying   State = "destroying"
	StateDestroyed    State = "destroyed"
)

// Settled reports whether s is not on its way to another state.
func (s State) Settled() bool {
	switch s {
	case StateCreated, StateStarted, StateStopped, StateSuspended, StateFailed, StateDestroyed, StateReplaced:
		return true
	}
	return false
}

// Running reports whether processes of the machine run and may answer.
func (s State) Running() bool { return s == StateStarted }

// Verb is a wish about a machine's life.
type Verb string

// The verbs.
const (
	VerbStart   Verb = "start"
	VerbStop    Verb = "stop"
	VerbRestart Verb = "restart"
	VerbSuspend Verb = "suspend"
	VerbUpdate  Verb = "update"
	VerbDestroy Verb = "destroy" // without force
	VerbExec    Verb = "exec"
	VerbSignal  Verb = "signal"
)

// Answer is what a verb means in a state.
type Answer uint8

// The answers.
const (
	Refuse Answer = iota // 412, see CheckVerb
	Do                   // act
	Noop                 // success without effect
)

// verbs is the table of "Machines API, which call in which state". States
// that a row does not name refuse.
var verbs = map[Verb]map[State]Answer{
	VerbStart: {StateStarting: Noop, StateStarted: Noop, StateStopped: Do, StateSuspending: Do, StateSuspended: Do, StateFailed: Do, StateRestarting: Noop},
	VerbStop:  {StateStarting: Do, StateStarted: Do, StateStopping: Noop, StateStopped: Noop, StateSuspending: Do, StateSuspended: Do, StateFailed: Do, StateRestarting: Do, StateCreated: Noop},
	VerbRestart: {
		StateStarting: Do, StateStarted: Do, StateStopped: Do, StateSuspended: Do, StateSuspending: Do, StateFailed: Do, StateRestarting: Noop,
	},
	VerbSuspend: {StateStarted: Do, StateSuspending: Noop, StateSuspended: Noop},
	VerbUpdate: {
		StateCreated: Do, StateStarting: Do, StateStarted: Do, StateStopping: Do, StateStopped: Do,
		StateSuspending: Do, StateSuspended: Do, StateFailed: Do, StateRestarting: Do, StateLaunchFailed: Do,
	},
	VerbDestroy: {StateCreated: Do, StateStopped: Do, StateSuspended: Do, StateFailed: Do, StateLaunchFailed: Do, StateDestroying: Noop},
	VerbExec:    {StateStarted: Do},
	VerbSignal:  {StateStarted: Do, StateStopping: Do},
}

// CheckVerb says whether verb acts on a machine in state s; the error of a
// refusal has kind Precondition and Fly's wording where that is known.
func CheckVerb(verb Verb, s State) (Answer, error) {
	if a := verbs[verb][s]; a != Refuse {
		return a, nil
	}
	switch {
	case s == StateDestroyed:
		return Refuse, Errorf(NotFound, "machine not found")
	case verb == VerbStart && s == StateStopping:
		return Refuse, Errorf(Precondition, "machine still active, refusing to start")
	case verb == VerbStart && (s == StateUpdating || s == StateReplacing):
		return Refuse, Errorf(Precondition, "machine getting replaced, refusing to start")
	case verb == VerbDestroy:
		return Refuse, Errorf(Precondition, "unable to destroy machine from current state: '%s'; stop it first or use force", s)
	}
	return Refuse, Errorf(Precondition, "unable to %s machine from current state: '%s'", verb, s)
}

// ActiveLease returns the machine's lease unless it has expired at now.
func (m *Machine) ActiveLease(now time.Time) *Lease {
	if m.Lease == nil || !now.Before(m.Lease.ExpiresAt) {
		return nil
	}
	return m.Lease
}

// Group is the machine's process group, "" if it has none.
func (m *Machine) Group() string { return m.Spec.Config.Metadata[MetadataProcessGroup] }

// MetadataProcessGroup is the metadata key that holds the process group.
const MetadataProcessGroup = "fly_process_group"

// Routable returns a copy of the machine for the data plane: without
// environment, files, command lines, the source document and the lease's nonce.
func (m *Machine) Routable() *Machine {
	r := *m
	r.Spec.Source = nil
	r.Spec.Config.Env = nil
	r.Spec.Config.Files = nil
	r.Spec.Config.Init = Init{}
	r.Spec.Config.Process = nil
	r.Status.Events = nil
	if m.Lease != nil {
		l := *m.Lease
		l.Nonce = ""
		r.Lease = &l
	}
	return &r
}

// Clone returns a copy that shares nothing changeable with m.
func (m *Machine) Clone() *Machine {
	c := *m
	c.Spec.Config = m.Spec.Config.Clone()
	c.Spec.Source = slices.Clone(m.Spec.Source)
	c.Spec.Image.Labels = maps.Clone(m.Spec.Image.Labels)
	c.Status.Events = slices.Clone(m.Status.Events)
	c.Status.Checks = slices.Clone(m.Status.Checks)
	if m.Spec.Destroy != nil {
		d := *m.Spec.Destroy
		c.Spec.Destroy = &d
	}
	if m.Status.Exit != nil {
		e := *m.Status.Exit
		c.Status.Exit = &e
	}
	if m.Lease != nil {
		l := *m.Lease
		c.Lease = &l
	}
	return &c
}
