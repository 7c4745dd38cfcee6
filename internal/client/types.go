package client

import (
	"encoding/json"
	"time"
)

// Org is an organisation.
type Org struct {
	Slug      string    `json:"slug"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// Token is a token without its secret.
type Token struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Scope     string     `json:"scope"`
	Org       string     `json:"org,omitempty"`
	App       string     `json:"app,omitempty"`
	Machine   string     `json:"machine,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"` // nil: never
}

// CreateToken asks for a token.
type CreateToken struct {
	Name   string `json:"name"`
	Scope  string `json:"scope"`
	Org    string `json:"org,omitempty"`
	App    string `json:"app,omitempty"`
	Expiry string `json:"expiry,omitempty"` // Go duration; "" never
}

// CreatedToken is a new token. Secret is shown this once.
type CreatedToken struct {
	Token
	Secret string `json:"token"`
}

// Image is an image on the host.
type Image struct {
	Ref       string    `json:"ref"` // registry/repository:tag@digest
	Digest    string    `json:"digest"`
	Size      int64     `json:"size,omitempty"` // bytes
	CreatedAt time.Time `json:"created_at,omitzero"`
	InUse     bool      `json:"in_use,omitempty"`
}

// RegistryLogin is who pulls an image.
type RegistryLogin struct {
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
}

// Failure ends a stream that went wrong.
type Failure struct {
	Message string `json:"message"`
	Status  int    `json:"status"` // what the reply's status would have been
	Code    string `json:"code,omitempty"`
}

// Progress is a line of a pull or a build. The last one has Image or Error.
type Progress struct {
	Layer string  `json:"layer,omitempty"` // pull: digest, "" for the whole
	State string  `json:"state,omitempty"` // pull: "resolving", "downloading", "unpacking", "done"
	Done  int64   `json:"done,omitempty"`
	Total int64   `json:"total,omitempty"`
	Log   *string `json:"log,omitempty"` // build: a line of its output
	// Status is a build's news as BuildKit has them: its client.SolveStatus.
	Status json.RawMessage `json:"status,omitempty"`
	// Upload is told by the client itself, before the build.
	Upload *Upload  `json:"upload,omitempty"`
	Image  *Image   `json:"image,omitempty"`
	Error  *Failure `json:"error,omitempty"`
}

// LogLine is a line of an app's log. The last one of a stream that went wrong
// has Error.
type LogLine struct {
	At       time.Time `json:"timestamp"`
	App      string    `json:"app,omitempty"`
	Machine  string    `json:"machine,omitempty"`
	Instance string    `json:"instance,omitempty"`
	Region   string    `json:"region,omitempty"`
	Provider string    `json:"provider,omitempty"` // "app", "runner", "proxy", "health", "build", "release", "deploy"
	Stream   string    `json:"stream,omitempty"`   // "stdout", "stderr"
	Message  string    `json:"message"`
	Error    *Failure  `json:"error,omitempty"`
}

// Host is a host and what it says of itself.
type Host struct {
	ID       string         `json:"id"`
	Name     string         `json:"name"`
	Region   string         `json:"region"`
	Arch     string         `json:"arch"`
	CPUs     int            `json:"cpus"`
	Memory   int64          `json:"memory"`             // bytes that machines may use together
	Machines map[string]int `json:"machines,omitempty"` // by state
	Local    *LocalHost     `json:"local,omitempty"`    // of the host that answers
}

// LocalHost is what only the host itself knows.
type LocalHost struct {
	PID           int            `json:"pid"` // of roost server
	Boot          uint64         `json:"boot"`
	CgroupVersion int            `json:"cgroup_version"`
	Memory        int64          `json:"memory"` // bytes that machines may use together
	Free          int64          `json:"free"`   // of it now
	Swap          string         `json:"swap"`   // where suspended memory goes: "zram", "file", "none"
	Children      map[string]int `json:"children,omitempty"`
	Domain        string         `json:"domain,omitempty"` // apps answer at <app>.<domain>
}

// Inspection is what runs and listens inside a machine, and what it uses.
type Inspection struct {
	Processes []Process `json:"processes"`
	Listens   []Listen  `json:"listens"`
	Usage     *Usage    `json:"usage,omitempty"`
}

// Process is one process inside a machine.
type Process struct {
	PID       int           `json:"pid"`
	Command   string        `json:"command"`
	CPU       time.Duration `json:"cpu"` // nanoseconds used
	RSS       int64         `json:"rss"` // bytes
	StartedAt time.Time     `json:"started_at,omitzero"`
}

// Listen is a listening socket inside a machine.
type Listen struct {
	Proto   string `json:"proto"`
	Address string `json:"address"`
}

// Usage is what the kernel accounts to a machine.
type Usage struct {
	Memory    int64         `json:"memory"` // bytes resident
	Anon      int64         `json:"anon"`
	Swap      int64         `json:"swap"`
	CPU       time.Duration `json:"cpu"` // nanoseconds used
	OOMKills  uint64        `json:"oom_kills"`
	Processes int           `json:"processes"`
}

// ExecStart begins an interactive exec.
type ExecStart struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	User string   `json:"user,omitempty"`
	TTY  bool     `json:"tty,omitempty"`
	Size *Size    `json:"size,omitempty"` // with TTY
}

// Size is that of a terminal.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ExecEnd ends an interactive exec.
type ExecEnd struct {
	Code   int      `json:"code"` // 128 + signal when killed by one
	Signal int      `json:"signal,omitempty"`
	Error  *Failure `json:"error,omitempty"` // the command did not run
}
