package roost

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Config is what a client asks of a machine, with defaults filled in.
type Config struct {
	Image       string // as asked for: "registry.example/demo:1"
	Env         map[string]string
	Init        Init
	Guest       Guest
	Swap        Bytes
	Metadata    map[string]string
	Services    []Service
	Checks      map[string]Check // top-level; the key is the check's name
	Files       []File
	Statics     []Static
	Restart     Restart
	AutoDestroy bool
	Stop        Stop
	DNS         DNS
	Process     *Process // the one entry of processes, or nil
	Persist     Persist
}

// Init overrides what the image runs.
type Init struct {
	Exec       []string // the whole argument list; beats the other two
	Entrypoint []string
	Cmd        []string
	TTY        bool
}

// Process is an entry of processes.
type Process struct {
	Exec       []string
	Entrypoint []string
	Cmd        []string
	User       string
	Env        map[string]string
	// Secrets are those of the app's secrets that it gets, by the name of the
	// variable; none: all of them, unless NoSecrets.
	Secrets   map[string]string
	NoSecrets bool
}

// Guest is the size of a machine.
type Guest struct {
	CPUKind string // "shared" or "performance"
	CPUs    int
	Memory  Bytes
}

// DefaultGuest is the size of a machine whose config names none.
func DefaultGuest() Guest { return Guest{CPUKind: "shared", CPUs: 1, Memory: 256 * MiB} }

// File is written into the machine before its process starts.
type File struct {
	GuestPath   string
	Content     []byte
	Mode        uint32 // permission bits; 0 means 0644
	ImageConfig string // "" or the reference of the image whose OCI config is the content
	Secret      string // "" or the app secret whose value, base64, is the content
}

// Static is a directory of the image, or of a volume, that the proxy serves
// below a path without asking the machine.
type Static struct {
	GuestPath     string // "/app/static"
	URLPrefix     string // "/static/"
	IndexDocument string // "" or what a directory's path serves: "index.html"
}

// Restart is what happens when the main process ends by itself.
type Restart struct {
	Policy     string // "no", "on-failure" or "always"
	MaxRetries int    // within RestartWindow, for on-failure
}

// The restart policies, and the window in which retries count.
const (
	RestartNo        = "no"
	RestartOnFailure = "on-failure"
	RestartAlways    = "always"

	RestartWindow = 5 * time.Minute
	MaxRetries    = 10
)

// Stop is how a machine is asked to stop.
type Stop struct {
	Signal  string        // "SIGINT" by default
	Timeout time.Duration // then SIGKILL; 5 s by default
}

// The defaults of Stop, and its ceiling.
const (
	DefaultStopSignal  = "SIGINT"
	DefaultStopTimeout = 5 * time.Second
	MaxStopTimeout     = 300 * time.Second
)

// DNS is a machine's name service.
type DNS struct {
	SkipRegistration bool
	Nameservers      []string
	Searches         []string
	Options          []string // "ndots:2", "rotate"
	Hostname         string
}

// Persist says what of the root file system outlives a stop.
type Persist string

// The values of Persist.
const (
	PersistNever   Persist = "never"
	PersistRestart Persist = "restart"
	PersistAlways  Persist = "always"
)

// StopSignals are the signals a stop may use.
var StopSignals = []string{"SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM"}

// Validate reports the first thing in c that can never work, with the path of
// the member in the API's spelling.
func (c *Config) Validate() error {
	if c.Image == "" {
		return Errorf(Invalid, "config.image is missing: name the image to run, for example \"docker.io/library/debian:bookworm-slim\"")
	}
	for name, value := range c.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return Errorf(Invalid, "config.env: %q cannot be an environment variable", clip(name))
		}
		if strings.HasPrefix(name, "FLY_") && !allowedFlyEnv(name) {
			return Errorf(Invalid, "config.env: %s is reserved; names beginning FLY_ are set by the platform", clip(name))
		}
	}
	if err := c.Guest.validate(); err != nil {
		return err
	}
	if c.Swap < 0 || c.Swap > 64*GiB {
		return Errorf(Invalid, "config.init.swap_size_mb: %d is out of range (0 to 65536)", c.Swap.MiB())
	}
	for i := range c.Services {
		if err := c.Services[i].validate(i); err != nil {
			return err
		}
	}
	if err := c.validateChecks(); err != nil {
		return err
	}
	for i, f := range c.Files {
		if !path.IsAbs(f.GuestPath) || path.Clean(f.GuestPath) == "/" {
			return Errorf(Invalid, "config.files[%d].guest_path: %q must be an absolute path of a file", i, clip(f.GuestPath))
		}
		if f.Secret != "" && (f.ImageConfig != "" || len(f.Content) > 0) {
			return Errorf(Invalid, "config.files[%d]: use one of raw_value, secret_name, image_config", i)
		}
		if f.Mode > 0o7777 {
			return Errorf(Invalid, "config.files[%d].mode: %o is not a file mode", i, f.Mode)
		}
	}
	if err := validateStatics(c.Statics); err != nil {
		return err
	}
	switch c.Restart.Policy {
	case RestartNo, RestartOnFailure, RestartAlways:
	default:
		return Errorf(Invalid, "config.restart.policy: %q is not one of no, on-failure, always", clip(c.Restart.Policy))
	}
	if c.Restart.MaxRetries < 0 {
		return Errorf(Invalid, "config.restart.max_retries: %d must not be negative", c.Restart.MaxRetries)
	}
	if !slices.Contains(StopSignals, c.Stop.Signal) {
		return Errorf(Invalid, "config.stop_config.signal: %q is not one of %s", clip(c.Stop.Signal), strings.Join(StopSignals, ", "))
	}
	if c.Stop.Timeout < 0 || c.Stop.Timeout > MaxStopTimeout {
		return Errorf(Invalid, "config.stop_config.timeout: %s is out of range (0s to %s)", c.Stop.Timeout, MaxStopTimeout)
	}
	return nil
}

// MaxStatics is how many statics a machine may have.
const MaxStatics = 10

func validateStatics(statics []Static) error {
	if len(statics) > MaxStatics {
		return Errorf(Invalid, "config.statics: %d are too many (at most %d)", len(statics), MaxStatics)
	}
	seen := make(map[string]bool, len(statics))
	for i, s := range statics {
		if !path.IsAbs(s.GuestPath) {
			return Errorf(Invalid, "config.statics[%d].guest_path: %q must be an absolute path", i, clip(s.GuestPath))
		}
		if !strings.HasPrefix(s.URLPrefix, "/") || strings.ContainsFunc(s.URLPrefix, inPath) {
			return Errorf(Invalid, "config.statics[%d].url_prefix: %q must begin with a slash, without spaces", i, clip(s.URLPrefix))
		}
		prefix := strings.TrimRight(s.URLPrefix, "/")
		if seen[prefix] {
			return Errorf(Invalid, "config.statics[%d].url_prefix: %q is there twice", i, clip(s.URLPrefix))
		}
		seen[prefix] = true
		if strings.Contains(s.IndexDocument, "/") {
			return Errorf(Invalid, "config.statics[%d].index_document: %q must be a file's name", i, clip(s.IndexDocument))
		}
	}
	return nil
}

// allowedFlyEnv lists the FLY_ names that a client may set: those that tools
// read to reach the API.
func allowedFlyEnv(name string) bool {
	switch name {
	case "FLY_API_TOKEN", "FLY_API_HOSTNAME", "FLY_FLAPS_BASE_URL", "FLY_PROCESS_GROUP", "FLY_STANDBY_FOR", "FLY_TEST_COMMAND", "FLY_TEST_MACHINE_IP":
		return true // clients that deploy set the last ones
	}
	return false
}

func (g *Guest) validate() error {
	perCPU := Bytes(0)
	step, floor := 256*MiB, 256*MiB
	var cpus []int
	switch g.CPUKind {
	case "shared":
		cpus, perCPU = []int{1, 2, 4, 6, 8}, 2048*MiB
	case "performance":
		cpus, perCPU = []int{1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64, 128}, 8192*MiB
		step, floor = 1024*MiB, Bytes(g.CPUs)*2048*MiB
	default:
		return Errorf(Invalid, "config.guest.cpu_kind: %q is not one of shared, performance", clip(g.CPUKind))
	}
	if !slices.Contains(cpus, g.CPUs) {
		return Errorf(Invalid, "config.guest.cpus: %d is not a size of kind %s (%v)", g.CPUs, g.CPUKind, cpus)
	}
	if g.CPUKind == "shared" {
		floor = 256 * MiB
	}
	if g.Memory < floor || g.Memory > Bytes(g.CPUs)*perCPU || g.Memory%step != 0 {
		return Errorf(Invalid, "config.guest.memory_mb: %d is not a size of %s-cpu-%dx: use a multiple of %d from %d to %d",
			g.Memory.MiB(), g.CPUKind, g.CPUs, step.MiB(), floor.MiB(), (Bytes(g.CPUs) * perCPU).MiB())
	}
	return nil
}

// Clone returns a copy that shares nothing changeable with c.
func (c Config) Clone() Config {
	c.Env = maps.Clone(c.Env)
	c.Metadata = maps.Clone(c.Metadata)
	c.Services = slices.Clone(c.Services)
	for i := range c.Services {
		c.Services[i].Ports = slices.Clone(c.Services[i].Ports)
		c.Services[i].Checks = slices.Clone(c.Services[i].Checks)
	}
	c.Checks = maps.Clone(c.Checks)
	c.Files = slices.Clone(c.Files)
	c.Statics = slices.Clone(c.Statics)
	if c.Process != nil {
		p := *c.Process
		p.Env, p.Secrets = maps.Clone(p.Env), maps.Clone(p.Secrets)
		c.Process = &p
	}
	return c
}
