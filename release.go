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
	Repeats     int    // the version whose content a rollback brought back, 0 none
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
	Checks []MachineCheck
}

// MachineCheck is a command that a rollout runs in a temporary machine against
// each machine of a group that it starts; its exit code decides ("fly.toml",
// section 10.2).
type MachineCheck struct {
	Ref        string   // of its image, "" is that of the machine under test
	Image      Image    // what Ref named when the release was made
	Entrypoint []string // none: that of the machine under test, or else the image's
	Command    []string
	Stop       Stop // how it is ended when it takes too long; zero members: as the machine under test
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
	Ran            int      // release that ran both commands with the same image, config and secrets: they are not run again; 0 none
	Unchecked      bool     // run no machine checks
	Restart        bool     // machines keep their own config and get the release's secrets
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

// Rollout is the journal of a release on its way: what a control process needs
// to go on with it, or back, after the one before died. An app has one at
// most.
type Rollout struct {
	App     AppName
	Version int
	Former  int // the release that served when it began, 0 none
	// Done are the steps that are not to be repeated: "release_command".
	Done []string
	// Passed are machines that have the release and passed its gates.
	Passed []MachineID
	// Temporary is the machine of a release command under way, "" none.
	Temporary MachineID
	// Shifted: the new release serves; what is left is to clean up.
	Shifted bool
	// Returning: it failed and what it changed goes back.
	Returning bool
	Status    ReleaseStatus // how it ends, with Returning
	Cause     string        // why it returns, for people
}

// ReleaseEvent is something that happened in a rollout.
type ReleaseEvent struct {
	ID      string // ULID: events are in order of their ids
	At      time.Time
	Step    string // "release_command", "update" ...
	Group   string
	Machine MachineID
	Message string
	Warning bool
	Failed  bool
	URL     string    // where the app answered
	Lines   []string  // what the release command wrote
	Waiting string    // what is waited for
	Until   time.Time // and until when
	End     bool      // the last one
}

// The steps of a rollout.
const (
	StepPrepare        = "prepare"
	StepReleaseCommand = "release_command"
	StepSeedCommand    = "seed_command"
	StepCanary         = "canary"
	StepDestroy        = "destroy"
	StepCreate         = "create"
	StepUpdate         = "update"
	StepMachineCheck   = "machine_check"
	StepShift          = "shift"
	StepVerify         = "verify"
	StepRollback       = "rollback"
	StepNotice         = "notice"
	StepWebhook        = "webhook"
	StepEnd            = "end"
)

// Metadata of machines that belong to releases; the keys and values are Fly's.
const (
	MetadataPlatform       = "fly_platform_version"
	PlatformManaged        = "v2" // the value that makes a machine one of the app's releases
	MetadataReleaseID      = "fly_release_id"
	MetadataReleaseVersion = "fly_release_version"
	MetadataCanary         = "fly_canary"
	MetadataBlueGreenTag   = "fly_bluegreen_deployment_tag"

	GroupReleaseCommand = "fly_app_release_command"
	GroupConsole        = "fly_app_console"
	GroupTest           = "fly_app_test_machine_command"
)

// Managed reports whether deploys and scaling act on the machine.
func (m *Machine) Managed() bool {
	meta := m.Spec.Config.Metadata
	if meta[MetadataPlatform] != PlatformManaged || m.Spec.Destroy != nil || m.Status.State == StateDestroying || m.Status.State == StateDestroyed {
		return false
	}
	switch m.Group() {
	case GroupReleaseCommand, GroupConsole, GroupTest:
		return false
	}
	return meta[MetadataCanary] == ""
}
