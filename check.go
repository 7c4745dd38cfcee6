package roost

import "time"

// Check is a health check as configured.
type Check struct {
	Type      string // "http" or "tcp"
	Port      int    // 0: the service's internal port
	Readiness bool   // of the machine as a whole (kind "readiness"): it gates traffic, too
	Interval  time.Duration
	Timeout   time.Duration
	Grace     time.Duration
	// The rest is for "http".
	Path          string
	Method        string
	TLS           bool // protocol "https"
	TLSSkipVerify bool
	TLSServerName string
	Headers       map[string][]string
	// RestartLimit restarts the machine after so many failures in a row; 0 never.
	RestartLimit int
}

// The statuses of a check.
const (
	CheckPassing  = "passing"
	CheckWarning  = "warning"
	CheckCritical = "critical"
)

// CheckResult is what a check last said.
type CheckResult struct {
	Name      string // "servicecheck-00-http-8080", or a top-level check's own
	Status    string // "passing", "warning" or "critical"
	Output    string
	UpdatedAt time.Time // of the last change of Status
}
