// Package orders is the protocol of the server process, the parent of every
// machine: the orders it takes, the journal it keeps, and a typed client. The
// agent prepares and orders, the edge wakes and suspends, both follow the
// journal. Neither imports the supervisor.
//
// Everything is keyed by instance, the version of a machine, so that two
// versions of one machine can run side by side.
package orders

import (
	"time"

	root "github.com/roost-run/roost"
)

// Boot is a prepared start of an instance: the supervisor needs nothing else,
// and nobody else, to run it. One boot is used once; the agent prepares the
// next as soon as the journal shows that one was used.
type Boot struct {
	Machine    root.MachineID
	App        root.AppName
	Instance   root.InstanceID
	Generation uint64
	Number     uint64 // counts the boots of this instance, from 1
	Container  string // OCI container id, unique on the host: instance in lower case, dash, number
	Bundle     string // directory with config.json; mounts are in place
	Runtime    string // OCI runtime binary; "" is the host's default
	IPv4, IPv6 string // where the machine answers
	Interface  string // its end in the router namespace, for first-packet wakes
	Stop       root.Stop
	Memory     root.Bytes // for admission: guest memory, without swap
	Swap       root.Bytes
	TTY        bool
	Command    string // as logged: Preparing to run: `cmd` as root
	Log        string // the provider of what it prints; "" is "app"
	// Fallback: Problem says why this boot cannot run (command not found, no
	// such user). The supervisor records it as the reason of a failed start.
	Problem string
	// Restarting says that this boot follows a policy restart, for the journal.
	Restarting bool
}

// Phase is what an instance is doing, as the supervisor knows it.
type Phase string

// The phases. Transient ones end by themselves.
const (
	PhaseStopped    Phase = "stopped"
	PhaseStarting   Phase = "starting"
	PhaseStarted    Phase = "started"
	PhaseSuspending Phase = "suspending"
	PhaseSuspended  Phase = "suspended"
	PhaseStopping   Phase = "stopping"
)

// State is the machine's state that a phase means by itself.
func (p Phase) State() root.State {
	switch p {
	case PhaseStarting:
		return root.StateStarting
	case PhaseStarted:
		return root.StateStarted
	case PhaseSuspending:
		return root.StateSuspending
	case PhaseSuspended:
		return root.StateSuspended
	case PhaseStopping:
		return root.StateStopping
	}
	return root.StateStopped
}

// Instance is the supervisor's account of one instance.
type Instance struct {
	Machine    root.MachineID
	App        root.AppName
	Instance   root.InstanceID
	Generation uint64
	Phase      Phase
	Stamp      root.Stamp // of the journal entry that brought the phase
	Since      time.Time
	Running    *Boot     // set while processes exist
	Next       *Boot     // the prepared boot, nil while there is none
	PID        int       // of the container's first process, 0 when none
	StartedAt  time.Time // when Running was started; zero when none
	LeaseUntil time.Time // wakes wait until then
	Reclaimed  bool      // suspended and its memory given back
}

// Source says who wanted something, in the API's words.
type Source string

// The sources.
const (
	SourceUser  Source = "user"
	SourceProxy Source = "proxy"
	SourceHost  Source = "flyd"
)

// Start orders an instance to run: a boot if it is stopped, a thaw if it is
// suspended, nothing if it runs. A stopped one without prepared boot is waited
// for, and so is one that stops just now, until the caller's context ends.
type Start struct {
	Generation uint64 // 0: any; else the instance's, or the order is refused (Conflict)
	Source     Source
	Reason     string
	Nonce      bool // the caller holds the machine's lease: do not wait for it
}

// Started answers a Start: processes run when it arrives. Readiness of a port
// is the caller's to see.
type Started struct {
	Stamp  root.Stamp
	Phase  Phase // PhaseStarted
	Thawed bool  // it was suspended
	Booted bool  // it was stopped
	Took   time.Duration
}

// Stop orders an instance to stop. The answer comes when the intent is
// journalled and the signal sent; the exit follows in the journal.
type Stop struct {
	Signal  string        // "" is the boot's
	Timeout time.Duration // 0 is the boot's
	Source  Source
	Reason  string
}

// Suspend orders an instance to be frozen. It is refused with Conflict if
// Generation or Seen (unless zero) are not the instance's current ones: news
// crossed the order.
type Suspend struct {
	Generation uint64
	Seen       root.Stamp
	Source     Source
	Reason     string
}

// Signal orders a signal to the main process.
type Signal struct{ Signal int }

// Lease tells until when wakes of the machine have to wait; zero ends it.
type Lease struct{ Until time.Time }

// Done answers orders that change the phase.
type Done struct {
	Phase Phase
	Stamp root.Stamp
}

// Exec runs a command inside a running machine. Stdin, stdout and stderr
// travel beside the message, in this order; with TTY only one, the terminal's
// slave end.
type Exec struct {
	Args []string
	Env  []string // added to the machine's own
	Dir  string   // "" is the machine's
	User string   // "" is root
	TTY  bool
}

// ExecResult ends an exec.
type ExecResult struct {
	Code   int    // 128 + signal when killed by one
	Signal int    // 0 none
	Error  string // the command never ran: why
	Kind   string // root.Kind of Error
}

// Stats is what the kernel accounts to an instance.
type Stats struct {
	Memory    root.Bytes // resident: anonymous and cache
	Anon      root.Bytes // anonymous only
	Swap      root.Bytes
	CPU       time.Duration
	OOMKills  uint64
	Processes int
}

// Process is one process inside a machine.
type Process struct {
	PID       int // in the machine's own namespace
	Command   string
	Directory string
	CPU       time.Duration
	RSS       root.Bytes
	StartedAt time.Time
	Listens   []Listen
}

// Listen is a listening socket inside a machine's network namespace.
type Listen struct {
	Proto   string // "tcp", "tcp6", "udp", "udp6"
	Address string // "0.0.0.0:8080", "[::]:8080"
}

// Inspection is what runs and listens inside an instance.
type Inspection struct {
	Processes []Process
	Listens   []Listen
}

// HostStatus is the supervisor's account of the host.
type HostStatus struct {
	Boot          uint64 // the journal's
	PID           int
	CgroupVersion int        // 1 or 2
	Total         root.Bytes // what machines may use together
	Free          root.Bytes // what is free of it now
	Swap          string     // "zram", "file" or "none": where suspended memory goes
	Children      map[string]int
}

// EntryType is what a journal entry says.
type EntryType string

// The entry types. Intents come before the deed, results after it.
const (
	EntryPrepared   EntryType = "prepared"   // a next boot is there
	EntryStarting   EntryType = "starting"   // intent
	EntryStarted    EntryType = "started"    // processes run
	EntryFailed     EntryType = "failed"     // the start did not work; Error says why
	EntrySuspending EntryType = "suspending" // intent
	EntrySuspended  EntryType = "suspended"
	EntryResumed    EntryType = "resumed" // thawed; running again
	EntryReclaimed  EntryType = "reclaimed"
	EntryStopping   EntryType = "stopping" // intent: the coming exit is asked for
	EntryExited     EntryType = "exited"
	EntryRemoved    EntryType = "removed"
)

// Entry is a line of the journal. Stamps grow without gaps within one Boot.
type Entry struct {
	Stamp      root.Stamp
	At         time.Time
	Type       EntryType
	Machine    root.MachineID
	App        root.AppName
	Instance   root.InstanceID
	Generation uint64
	Number     uint64 // the boot's
	PID        int    `json:",omitempty"`
	Source     Source `json:",omitempty"`
	Reason     string `json:",omitempty"`
	Error      string `json:",omitempty"`
	Exit       *Exit  `json:",omitempty"`
	// CaughtUp ends the entries that were there when the stream began; its
	// Type is empty.
	CaughtUp bool `json:",omitempty"`
}

// Exit is how the first process of a boot ended.
type Exit struct {
	Code      int  // 128 + signal when killed by one; -1 unknown: it ended while nobody watched
	Signal    int  // 0 none
	OOMKilled bool // the kernel killed for memory inside it
	Requested bool // a Stop came before
}

// PhaseAfter is the phase that an entry of type t brings, "" if it brings none.
func PhaseAfter(t EntryType) Phase {
	switch t {
	case EntryStarting:
		return PhaseStarting
	case EntryStarted, EntryResumed:
		return PhaseStarted
	case EntryFailed, EntryExited:
		return PhaseStopped
	case EntrySuspending:
		return PhaseSuspending
	case EntrySuspended:
		return PhaseSuspended
	case EntryStopping:
		return PhaseStopping
	}
	return ""
}

// Listener names a listening socket that the supervisor keeps open and hands
// to the edge, so that it outlives both.
type Listener struct {
	Kind    ListenerKind
	Address string // as configured
	Port    int    // ListenHTTP: the outside port it stands for
	TLS     bool
}

// ListenerKind says what is served on a listener.
type ListenerKind string

// The kinds of listeners.
const (
	ListenEdge     ListenerKind = "edge"     // public traffic to apps
	ListenAPI      ListenerKind = "api"      // API and registry, TCP on the host
	ListenAPISock  ListenerKind = "api-sock" // API for root, unix socket on the host
	ListenInternal ListenerKind = "internal" // _api.internal:4280 in the router namespace
	ListenDNS      ListenerKind = "dns"      // stream sockets, in the router namespace
	ListenDNSUDP   ListenerKind = "dns-udp"  // datagram sockets, in the router namespace
	ListenMachine  ListenerKind = "machine"  // one machine's /.fly/api
)
