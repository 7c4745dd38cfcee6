// Package runtime is the contract between the supervisor and what runs
// containers: an OCI runtime, and the kernel's control groups. It is the only
// place where the word container is used. It knows nothing of apps, services
// or the store.
//
// runtime/runc drives any OCI runtime binary; runtime/cgroup limits, freezes,
// reclaims and measures; runtime/swap sets up where suspended memory goes;
// runtime/bundle makes the OCI spec; runtime/runtimetest has the suite that
// every Driver passes, and a fake.
package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	root "github.com/roost-run/roost"
)

// Driver runs containers. Ids are unique on the host. Every method may be
// called concurrently for different ids; the caller serialises calls for one
// id, except that Signal, Exec, Freeze and Thaw may run beside each other.
// Errors carry a root.Kind where the user's input is the cause (Invalid:
// command not found, no such user); otherwise they are Internal and carry
// what the runtime binary said.
type Driver interface {
	// Create sets a container up from its bundle and returns the process id of
	// its first process, which waits for Start. The caller, or the subreaper
	// above it, becomes its parent. On failure nothing is left.
	Create(ctx context.Context, c Container) (pid int, err error)
	// Start lets the first process run.
	Start(ctx context.Context, id string) error
	// Signal sends sig to the first process; with all to every process inside.
	// A container without processes gives NotFound.
	Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error
	// Delete removes what is left of a container; with force it kills it first.
	// One that does not exist is success.
	Delete(ctx context.Context, id string, force bool) error
	// Exec starts a command inside and waits for its end; ctx kills it.
	Exec(ctx context.Context, id string, e Exec) (code int, err error)

	// Freeze stops every process inside; it returns when all stand still.
	// Thaw lets them go on. Both are idempotent.
	Freeze(id string) error
	Thaw(id string) error
	// Reclaim gives up to amount of the container's memory back to the host
	// and returns how much; ctx stops it between steps of at most 8 MB.
	Reclaim(ctx context.Context, id string, amount root.Bytes) (root.Bytes, error)
	// Stats reads the kernel's accounts.
	Stats(id string) (Stats, error)
	// PIDs lists the processes inside, in the host's numbering.
	PIDs(id string) ([]int, error)
	// List names the containers that exist, for adoption after a restart.
	List(ctx context.Context) ([]Existing, error)
}

// Sandboxed reports whether an OCI runtime runs the processes in a kernel of
// their own; the host sees the sandbox only.
func Sandboxed(binary string) bool {
	name := filepath.Base(binary)
	return strings.HasPrefix(name, "runsc") || strings.HasPrefix(name, "kata")
}

// Container is what Create needs.
type Container struct {
	ID     string
	Bundle string // directory with config.json
	// Runtime is the OCI runtime binary; "" is the driver's default.
	Runtime string
	// Stdin, Stdout and Stderr become the first process's streams; the
	// driver does not close them. With a Terminal they are not used.
	Stdin, Stdout, Stderr *os.File
	// Terminal, if set, is called with the master end of the container's
	// terminal, which it then owns.
	Terminal func(master *os.File)
}

// Existing is a container that List found.
type Existing struct {
	ID      string
	PID     int // 0 when its first process is gone
	Running bool
}

// Exec is a command to run inside a container.
type Exec struct {
	Args                  []string
	Env                   []string
	Dir                   string
	User                  string
	Stdin, Stdout, Stderr *os.File // with TTY all three are the slave end of a terminal
	TTY                   bool
	// PIDFile, if set, gets the process id as soon as it is known.
	PIDFile string
}

// Stats is what the kernel accounts to a container.
type Stats struct {
	Memory    root.Bytes // resident: anonymous and cache
	Anon      root.Bytes
	Swap      root.Bytes
	CPUMicros uint64
	OOMKills  uint64
	Processes int
}
