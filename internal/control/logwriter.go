package control

import root "github.com/roost-run/roost"

// The providers of log lines, in the order of an app's life.
const (
	LogBuild   = "build"   // what a build prints
	LogRelease = "release" // what a release command prints
	LogDeploy  = "deploy"  // what a rollout does
	LogApp     = "app"     // what a machine prints
	LogRunner  = "runner"  // what the host does with a machine
	LogProxy   = "proxy"   // what the edge has to say
	LogHealth  = "health"  // what checks found
)

var logProviders = []string{LogApp, LogRunner, LogProxy, LogHealth, LogBuild, LogRelease, LogDeploy}

// LogEntry is a line for an app's log. The time is that of the call.
type LogEntry struct {
	App      root.AppName
	Provider string         // LogBuild, LogRelease or LogDeploy
	Machine  root.MachineID // "" where no machine is concerned
	Message  string         // one line; several are split
}

// LogWriter takes lines of the control plane itself into the apps' logs. It
// never waits and never fails: a line that cannot be kept is lost. Secrets have
// to be scrubbed before. It is safe for concurrent use.
type LogWriter interface {
	Log(e LogEntry)
}

// discardLog is the LogWriter of a Deps without one.
type discardLog struct{}

func (discardLog) Log(LogEntry) {}
