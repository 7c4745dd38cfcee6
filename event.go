package roost

import "time"

// Event is an entry of a machine's history.
type Event struct {
	ID     string // ULID
	Type   string // "launch", "update", "start", "restart", "exit", "stop", "suspend", "resume", "destroy"
	Status State
	Source string // "user", "proxy", "flyd"
	Reason string // ours: why, in a few words
	At     time.Time
	Exit   *Exit // type exit only
	Count  int   // type exit only: restart count
}

// Exit is how a machine's main process ended.
type Exit struct {
	Code          int  // 128 + signal when killed by one; -1 unknown
	Signal        int  // -1 none
	OOMKilled     bool // a process of the machine was killed for memory
	RequestedStop bool
	Restarting    bool
	Error         string // why it never ran, for people
	At            time.Time
}

// PushEvent returns events with e first, cut to MaxEvents; events is not changed.
func PushEvent(events []Event, e Event) []Event {
	n := min(len(events), MaxEvents-1)
	return append(append(make([]Event, 0, n+1), e), events[:n]...)
}
