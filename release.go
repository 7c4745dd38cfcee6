package roost

import "time"

// ReleaseID is a ULID: "01J0ABCDEFGHJKMNPQRSTVWXYZ".
type ReleaseID string

// Release is one version of what an app runs. What it is never changes; only
// Progress does.
type Release struct {
	ID          ReleaseID
	App         AppName
	Version     int    // 1, 2, 3 ... in the app
	Image       Image  // pinned to a digest
	Definition  []byte // the app's config as JSON: fly.toml with the names it has there
	Groups      []Group
	Routes      []Route
	Deploy      Deploy
	Secrets     int    // version of the app's secrets its machines run with, 0 none
	Reason      string // "deploy", "rollback", "secrets", "env", "scale"
	Description string
	Author      string
	CreatedAt   time.Time

	Progress Progress
}

// Group is what a process group runs in a release.
type Group struct {
	Name   string
	Config Config // image, release metadata and secrets are filled in by the rollout
	Source []byte // Config as a document of the Machines API
	Sized  bool   // the app's config names a size ([[vm]]); else machines keep theirs
	Region Region // primary region, "" any
}

// Deploy is how a release is rolled out.
type Deploy struct {
	Strategy       Strategy
	MaxUnavailable float64       // from 1 on machines, below 1 a share of them, rounded up
	WaitTimeout    time.Duration // for each machine's change of state and health
	ReleaseCommand []string      // none: no release machine
	ReleaseTimeout time.Duration // 0 is unlimited
	ReleaseGuest   *Guest        // nil: see "fly.toml", section 10.1
	SeedCommand    []string
	Smoke          bool     // watch machines for a moment after they have started
	Detach         bool     // do not wait for machines to start and be healthy
	UpdateOnly     bool     // make no new machines
	Standby        bool     // first machines come in twos (ha)
	MaxConcurrent  int      // of strategy immediate and bluegreen
	Regions        []Region // only these, none: all
	OnlyGroups     []string // only these, none: all
	OnlyMachines   []MachineID
	Webhook        string // told of the end by POST, "" nobody
}

// Strategy is the order in which machines get a release.
type Strategy string

// The strategies.
const (
	StrategyRolling   Strategy = "rolling"
	StrategyImmediate Strategy = "immediate"
	StrategyCanary    Strategy = "canary"
	StrategyBlueGreen Strategy = "bluegreen"
)

// Progress is how far a release has come.
type Progress struct {
	Status     ReleaseStatus
	Message    string // why it failed, for people
	StartedAt  time.Time
	FinishedAt time.Time
}

// ReleaseStatus is the state of a release, in Fly's words.
type ReleaseStatus string

// The statuses. The last three are final.
const (
	ReleasePending     ReleaseStatus = "pending"
	ReleaseRunning     ReleaseStatus = "running"
	ReleaseComplete    ReleaseStatus = "complete"
	ReleaseFailed      ReleaseStatus = "failed"
	ReleaseInterrupted ReleaseStatus = "interrupted"
)

// Final reports whether nothing more happens to a release in this status.
func (s ReleaseStatus) Final() bool {
	return s == ReleaseComplete || s == ReleaseFailed || s == ReleaseInterrupted
}
