package appconfig

import "slices"

// Config is an app's config, with the names of fly.toml. Sections that are not
// there are nil, as are settings that have a default of their own.
type Config struct {
	App              string        `json:"app,omitempty" toml:"app,omitempty"`
	PrimaryRegion    string        `json:"primary_region,omitempty" toml:"primary_region,omitempty"`
	ConsoleCommand   string        `json:"console_command,omitempty" toml:"console_command,omitempty"`
	KillSignal       string        `json:"kill_signal,omitempty" toml:"kill_signal,omitempty"`
	KillTimeout      *Duration     `json:"kill_timeout,omitempty" toml:"kill_timeout,omitempty" unit:"s"`
	SwapSizeMB       *int          `json:"swap_size_mb,omitempty" toml:"swap_size_mb,omitempty"`
	HostDedicationID string        `json:"host_dedication_id,omitempty" toml:"host_dedication_id,omitempty"`
	MachineConfig    string        `json:"machine_config,omitempty" toml:"machine_config,omitempty"`
	Container        string        `json:"container,omitempty" toml:"container,omitempty"`
	Build            *Build        `json:"build,omitempty" toml:"build,omitempty"`
	Rollout          *Rollout      `json:"deploy,omitempty" toml:"deploy,omitempty"`
	Env              Env           `json:"env,omitempty" toml:"env,omitempty"`
	Experimental     *Experimental `json:"experimental,omitempty" toml:"experimental,omitempty"`

	Processes     map[string]string `json:"processes,omitempty" toml:"processes,omitempty"`
	HTTPService   *HTTPService      `json:"http_service,omitempty" toml:"http_service,omitempty"`
	Services      []Service         `json:"services,omitempty" toml:"services,omitempty"`
	Serverless    []Serverless      `json:"serverless,omitempty" toml:"serverless,omitempty"`
	Checks        map[string]Check  `json:"checks,omitempty" toml:"checks,omitempty"`
	MachineChecks []MachineCheck    `json:"machine_checks,omitempty" toml:"machine_checks,omitempty"`
	Statics       []Static          `json:"statics,omitempty" toml:"statics,omitempty"`
	Files         []File            `json:"files,omitempty" toml:"files,omitempty"`
	Mounts        []Mount           `json:"mounts,omitempty" toml:"mounts,omitempty"`
	VM            []VM              `json:"vm,omitempty" toml:"vm,omitempty"`
	Restart       []Restart         `json:"restart,omitempty" toml:"restart,omitempty"`
	Metrics       []Metrics         `json:"metrics,omitempty" toml:"metrics,omitempty"`

	positions map[string]Position // of "services[0].internal_port" and the like
	dir       string              // paths in the file are relative to it
}

// Env is the environment of every machine. Numbers and booleans are read as
// what they print as.
type Env map[string]string

// Build is section [build].
type Build struct {
	Image            string         `json:"image,omitempty" toml:"image,omitempty"`
	Dockerfile       string         `json:"dockerfile,omitempty" toml:"dockerfile,omitempty"`
	Target           string         `json:"build-target,omitempty" toml:"build-target,omitempty"`
	IgnoreFile       string         `json:"ignorefile,omitempty" toml:"ignorefile,omitempty"`
	Args             Env            `json:"args,omitempty" toml:"args,omitempty"`
	Builder          string         `json:"builder,omitempty" toml:"builder,omitempty"`
	Buildpacks       []string       `json:"buildpacks,omitempty" toml:"buildpacks,omitempty"`
	Builtin          string         `json:"builtin,omitempty" toml:"builtin,omitempty"`
	Settings         map[string]any `json:"settings,omitempty" toml:"settings,omitempty"`
	Compose          *Compose       `json:"compose,omitempty" toml:"compose,omitempty"`
	Compression      string         `json:"compression,omitempty" toml:"compression,omitempty"`
	CompressionLevel *int           `json:"compression_level,omitempty" toml:"compression_level,omitempty"`
}

// Compose is section [build.compose].
type Compose struct {
	File string `json:"file,omitempty" toml:"file,omitempty"`
}

// Rollout is section [deploy].
type Rollout struct {
	Strategy       string    `json:"strategy,omitempty" toml:"strategy,omitempty"`
	MaxUnavailable *float64  `json:"max_unavailable,omitempty" toml:"max_unavailable,omitempty"`
	WaitTimeout    *Duration `json:"wait_timeout,omitempty" toml:"wait_timeout,omitempty"`
	ReleaseCommand string    `json:"release_command,omitempty" toml:"release_command,omitempty"`
	ReleaseTimeout *Duration `json:"release_command_timeout,omitempty" toml:"release_command_timeout,omitempty"`
	ReleaseVM      *VM       `json:"release_command_vm,omitempty" toml:"release_command_vm,omitempty"`
	SeedCommand    string    `json:"seed_command,omitempty" toml:"seed_command,omitempty"`
	// Webhook is told of the end of every release by POST. Roost only.
	Webhook string `json:"webhook,omitempty" toml:"webhook,omitempty"`
}

// Experimental is section [experimental]. The switches are kept, none of them
// has an effect.
type Experimental struct {
	Cmd            []string  `json:"cmd,omitempty" toml:"cmd,omitempty"`
	Entrypoint     []string  `json:"entrypoint,omitempty" toml:"entrypoint,omitempty"`
	Exec           []string  `json:"exec,omitempty" toml:"exec,omitempty"`
	AutoRollback   *bool     `json:"auto_rollback,omitempty" toml:"auto_rollback,omitempty"`
	EnableConsul   *bool     `json:"enable_consul,omitempty" toml:"enable_consul,omitempty"`
	EnableEtcd     *bool     `json:"enable_etcd,omitempty" toml:"enable_etcd,omitempty"`
	LazyLoadImages *bool     `json:"lazy_load_images,omitempty" toml:"lazy_load_images,omitempty"`
	MachineConfig  string    `json:"machine_config,omitempty" toml:"machine_config,omitempty"`
	Attached       *Attached `json:"attached,omitempty" toml:"attached,omitempty"`
}

// Attached is section [experimental.attached].
type Attached struct {
	Secrets struct {
		Export map[string]string `json:"export,omitempty" toml:"export,omitempty"`
	} `json:"secrets,omitzero" toml:"secrets,omitempty"`
}

// Autoscale are the settings that http_service and services share: when
// machines sleep and wake. The last two are Roost's own.
type Autoscale struct {
	Autostop      Autostop  `json:"auto_stop_machines,omitempty" toml:"auto_stop_machines,omitempty"`
	Autostart     *bool     `json:"auto_start_machines,omitempty" toml:"auto_start_machines,omitempty"`
	MinRunning    *int      `json:"min_machines_running,omitempty" toml:"min_machines_running,omitempty"`
	AutoStopAfter *Duration `json:"auto_stop_after,omitempty" toml:"auto_stop_after,omitempty"`
	SuspendFor    *Duration `json:"suspend_for,omitempty" toml:"suspend_for,omitempty"`
}

// HTTPService is section [http_service].
type HTTPService struct {
	Processes    []string `json:"processes,omitempty" toml:"processes,omitempty"`
	InternalPort int      `json:"internal_port,omitempty" toml:"internal_port,omitempty"`
	ForceHTTPS   bool     `json:"force_https,omitempty" toml:"force_https,omitempty"`
	Autoscale
	Concurrency   *Concurrency   `json:"concurrency,omitempty" toml:"concurrency,omitempty"`
	TLSOptions    *TLSOptions    `json:"tls_options,omitempty" toml:"tls_options,omitempty"`
	HTTPOptions   *HTTPOptions   `json:"http_options,omitempty" toml:"http_options,omitempty"`
	Checks        []Check        `json:"checks,omitempty" toml:"checks,omitempty"`
	MachineChecks []MachineCheck `json:"machine_checks,omitempty" toml:"machine_checks,omitempty"`
}

// Service is an entry of [[services]].
type Service struct {
	Processes    []string `json:"processes,omitempty" toml:"processes,omitempty"`
	Protocol     string   `json:"protocol,omitempty" toml:"protocol,omitempty"`
	InternalPort int      `json:"internal_port,omitempty" toml:"internal_port,omitempty"`
	Autoscale
	Concurrency   *Concurrency   `json:"concurrency,omitempty" toml:"concurrency,omitempty"`
	Ports         []Port         `json:"ports,omitempty" toml:"ports,omitempty"`
	TCPChecks     []Check        `json:"tcp_checks,omitempty" toml:"tcp_checks,omitempty"`
	HTTPChecks    []Check        `json:"http_checks,omitempty" toml:"http_checks,omitempty"`
	MachineChecks []MachineCheck `json:"machine_checks,omitempty" toml:"machine_checks,omitempty"`
}

// Port is an entry of [[services.ports]].
type Port struct {
	Port              *int               `json:"port,omitempty" toml:"port,omitempty"`
	StartPort         *int               `json:"start_port,omitempty" toml:"start_port,omitempty"`
	EndPort           *int               `json:"end_port,omitempty" toml:"end_port,omitempty"`
	Handlers          []string           `json:"handlers,omitempty" toml:"handlers,omitempty"`
	ForceHTTPS        bool               `json:"force_https,omitempty" toml:"force_https,omitempty"`
	TLSOptions        *TLSOptions        `json:"tls_options,omitempty" toml:"tls_options,omitempty"`
	HTTPOptions       *HTTPOptions       `json:"http_options,omitempty" toml:"http_options,omitempty"`
	ProxyProtoOptions *ProxyProtoOptions `json:"proxy_proto_options,omitempty" toml:"proxy_proto_options,omitempty"`
}

// Concurrency is a service's section [concurrency].
type Concurrency struct {
	Type      string `json:"type,omitempty" toml:"type,omitempty"`
	SoftLimit int    `json:"soft_limit,omitempty" toml:"soft_limit,omitempty"`
	HardLimit int    `json:"hard_limit,omitempty" toml:"hard_limit,omitempty"`
}

// TLSOptions are a port's tls_options.
type TLSOptions struct {
	ALPN              []string `json:"alpn,omitempty" toml:"alpn,omitempty"`
	Versions          []string `json:"versions,omitempty" toml:"versions,omitempty"`
	DefaultSelfSigned bool     `json:"default_self_signed,omitempty" toml:"default_self_signed,omitempty"`
}

// HTTPOptions are a port's http_options.
type HTTPOptions struct {
	Compress           *bool          `json:"compress,omitempty" toml:"compress,omitempty"`
	H2Backend          bool           `json:"h2_backend,omitempty" toml:"h2_backend,omitempty"`
	IdleTimeout        int            `json:"idle_timeout,omitempty" toml:"idle_timeout,omitempty"`
	HeadersReadTimeout int            `json:"headers_read_timeout,omitempty" toml:"headers_read_timeout,omitempty"`
	Response           *HTTPResponse  `json:"response,omitempty" toml:"response,omitempty"`
	ReplayCache        []ReplayCached `json:"replay_cache,omitempty" toml:"replay_cache,omitempty"`
}

// HTTPResponse is what is changed in answers. A header's value is false, a
// string, or a list of strings.
type HTTPResponse struct {
	Headers  map[string]any `json:"headers,omitempty" toml:"headers,omitempty"`
	Pristine bool           `json:"pristine,omitempty" toml:"pristine,omitempty"`
}

// ReplayCached is an entry of http_options.replay_cache.
type ReplayCached struct {
	PathPrefix  string `json:"path_prefix,omitempty" toml:"path_prefix,omitempty"`
	TTLSeconds  int    `json:"ttl_seconds,omitempty" toml:"ttl_seconds,omitempty"`
	Type        string `json:"type,omitempty" toml:"type,omitempty"`
	Name        string `json:"name,omitempty" toml:"name,omitempty"`
	AllowBypass *bool  `json:"allow_bypass,omitempty" toml:"allow_bypass,omitempty"`
}

// ProxyProtoOptions are a port's proxy_proto_options.
type ProxyProtoOptions struct {
	Version string `json:"version,omitempty" toml:"version,omitempty"`
}

// Check is a health check: of a service (then without type, port and
// processes), or an entry of [checks].
type Check struct {
	Type          string            `json:"type,omitempty" toml:"type,omitempty"`
	Port          *int              `json:"port,omitempty" toml:"port,omitempty"`
	Kind          string            `json:"kind,omitempty" toml:"kind,omitempty"`
	Interval      *Duration         `json:"interval,omitempty" toml:"interval,omitempty" unit:"ms"`
	Timeout       *Duration         `json:"timeout,omitempty" toml:"timeout,omitempty" unit:"ms"`
	GracePeriod   *Duration         `json:"grace_period,omitempty" toml:"grace_period,omitempty" unit:"ms"`
	Method        string            `json:"method,omitempty" toml:"method,omitempty"`
	Path          string            `json:"path,omitempty" toml:"path,omitempty"`
	Protocol      string            `json:"protocol,omitempty" toml:"protocol,omitempty"`
	TLSSkipVerify bool              `json:"tls_skip_verify,omitempty" toml:"tls_skip_verify,omitempty"`
	TLSServerName string            `json:"tls_server_name,omitempty" toml:"tls_server_name,omitempty"`
	Headers       map[string]string `json:"headers,omitempty" toml:"headers,omitempty"`
	RestartLimit  int               `json:"restart_limit,omitempty" toml:"restart_limit,omitempty"`
	Processes     []string          `json:"processes,omitempty" toml:"processes,omitempty"`
}

// MachineCheck is an entry of machine_checks.
type MachineCheck struct {
	Image       string    `json:"image,omitempty" toml:"image,omitempty"`
	Entrypoint  []string  `json:"entrypoint,omitempty" toml:"entrypoint,omitempty"`
	Command     []string  `json:"command,omitempty" toml:"command,omitempty"`
	KillSignal  string    `json:"kill_signal,omitempty" toml:"kill_signal,omitempty"`
	KillTimeout *Duration `json:"kill_timeout,omitempty" toml:"kill_timeout,omitempty" unit:"s"`
}

// Serverless is an entry of [[serverless]]: requests for these paths go to a
// process group of their own, whose machines sleep on their own. Roost only;
// Fly's tools ignore the section.
type Serverless struct {
	Paths     []string `json:"paths,omitempty" toml:"paths,omitempty"`
	Methods   []string `json:"methods,omitempty" toml:"methods,omitempty"`
	Processes []string `json:"processes,omitempty" toml:"processes,omitempty"` // one
	// InternalPort is the port of the group's machines that answers; 0 is that
	// of http_service, else of the first service that speaks HTTP.
	InternalPort int `json:"internal_port,omitempty" toml:"internal_port,omitempty"`
	Autoscale
}

// Static is an entry of [[statics]].
type Static struct {
	GuestPath     string `json:"guest_path,omitempty" toml:"guest_path,omitempty"`
	URLPrefix     string `json:"url_prefix,omitempty" toml:"url_prefix,omitempty"`
	TigrisBucket  string `json:"tigris_bucket,omitempty" toml:"tigris_bucket,omitempty"`
	IndexDocument string `json:"index_document,omitempty" toml:"index_document,omitempty"`
}

// File is an entry of [[files]].
type File struct {
	GuestPath  string   `json:"guest_path,omitempty" toml:"guest_path,omitempty"`
	LocalPath  string   `json:"local_path,omitempty" toml:"local_path,omitempty"`
	SecretName string   `json:"secret_name,omitempty" toml:"secret_name,omitempty"`
	RawValue   *string  `json:"raw_value,omitempty" toml:"raw_value,omitempty"` // base64
	Processes  []string `json:"processes,omitempty" toml:"processes,omitempty"`
}

// Mount is an entry of [[mounts]].
type Mount struct {
	Source                  string      `json:"source,omitempty" toml:"source,omitempty"`
	Destination             string      `json:"destination,omitempty" toml:"destination,omitempty"`
	InitialSize             *VolumeSize `json:"initial_size,omitempty" toml:"initial_size,omitempty"`
	SnapshotRetention       *int        `json:"snapshot_retention,omitempty" toml:"snapshot_retention,omitempty"`
	ScheduledSnapshots      *bool       `json:"scheduled_snapshots,omitempty" toml:"scheduled_snapshots,omitempty"`
	AutoExtendSizeThreshold *int        `json:"auto_extend_size_threshold,omitempty" toml:"auto_extend_size_threshold,omitempty"`
	AutoExtendSizeIncrement *VolumeSize `json:"auto_extend_size_increment,omitempty" toml:"auto_extend_size_increment,omitempty"`
	AutoExtendSizeLimit     *VolumeSize `json:"auto_extend_size_limit,omitempty" toml:"auto_extend_size_limit,omitempty"`
	Processes               []string    `json:"processes,omitempty" toml:"processes,omitempty"`
}

// VM is an entry of [[vm]], or release_command_vm.
type VM struct {
	Size             string   `json:"size,omitempty" toml:"size,omitempty"`
	Memory           *Memory  `json:"memory,omitempty" toml:"memory,omitempty"`
	CPUs             int      `json:"cpus,omitempty" toml:"cpus,omitempty"`
	CPUKind          string   `json:"cpu_kind,omitempty" toml:"cpu_kind,omitempty"`
	MemoryMB         int      `json:"memory_mb,omitempty" toml:"memory_mb,omitempty"`
	GPUs             int      `json:"gpus,omitempty" toml:"gpus,omitempty"`
	GPUKind          string   `json:"gpu_kind,omitempty" toml:"gpu_kind,omitempty"`
	KernelArgs       []string `json:"kernel_args,omitempty" toml:"kernel_args,omitempty"`
	HostDedicationID string   `json:"host_dedication_id,omitempty" toml:"host_dedication_id,omitempty"`
	PersistRootFS    string   `json:"persist_rootfs,omitempty" toml:"persist_rootfs,omitempty"`
	Processes        []string `json:"processes,omitempty" toml:"processes,omitempty"`
}

// Restart is an entry of [[restart]].
type Restart struct {
	Policy    string   `json:"policy,omitempty" toml:"policy,omitempty"`
	Retries   int      `json:"retries,omitempty" toml:"retries,omitempty"`
	Processes []string `json:"processes,omitempty" toml:"processes,omitempty"`
}

// Metrics is an entry of [[metrics]].
type Metrics struct {
	Port      int      `json:"port,omitempty" toml:"port,omitempty"`
	Path      string   `json:"path,omitempty" toml:"path,omitempty"`
	HTTPS     bool     `json:"https,omitempty" toml:"https,omitempty"`
	Processes []string `json:"processes,omitempty" toml:"processes,omitempty"`
}

// defaultGroup is the only process group of an app that defines none.
const defaultGroup = "app"

// Groups returns the names of the app's process groups, sorted: those of
// [processes], or "app".
func (c *Config) Groups() []string {
	if len(c.Processes) == 0 {
		return []string{defaultGroup}
	}
	groups := make([]string, 0, len(c.Processes))
	for name := range c.Processes {
		groups = append(groups, name)
	}
	slices.Sort(groups)
	return groups
}

// DefaultGroup is the group that sections belong to which name none: "app" if
// there is one, else the first by name (not by place in the file).
func (c *Config) DefaultGroup() string {
	groups := c.Groups()
	if slices.Contains(groups, defaultGroup) {
		return defaultGroup
	}
	return groups[0]
}

// in reports whether a section that names these groups applies to group.
func (c *Config) in(processes []string, group string) bool {
	if len(processes) == 0 {
		return group == c.DefaultGroup()
	}
	return slices.Contains(processes, group)
}
