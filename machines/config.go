package machines

import "encoding/json"

// Config is what a machine runs and how: "Machine config" of the Machines
// API. Members left out take the platform's defaults. Source of names and
// meanings: fly.io/docs/machines/api/machines-resource.
type Config struct {
	Image       string            `json:"image,omitempty"` // OCI reference; the one member a machine cannot do without
	Env         map[string]string `json:"env,omitempty"`
	Init        Init              `json:"init"`
	Guest       *Guest            `json:"guest,omitempty"` // nil: shared, 1 CPU, 256 MB
	Metadata    map[string]string `json:"metadata,omitempty"`
	Mounts      []Mount           `json:"mounts,omitempty"`
	Services    []Service         `json:"services,omitempty"`
	Checks      map[string]Check  `json:"checks,omitempty"`
	Statics     []Static          `json:"statics,omitempty"`
	Files       []File            `json:"files,omitempty"`
	Metrics     *Metrics          `json:"metrics,omitempty"`
	Restart     *Restart          `json:"restart,omitempty"` // nil: on-failure, 10 retries
	AutoDestroy bool              `json:"auto_destroy,omitempty"`
	Schedule    string            `json:"schedule,omitempty"`
	StopConfig  *StopConfig       `json:"stop_config,omitempty"` // nil: SIGINT, 5s
	DNS         *DNS              `json:"dns,omitempty"`
	Standbys    []string          `json:"standbys,omitempty"`
	Processes   []Process         `json:"processes,omitempty"`
	Containers  json.RawMessage   `json:"containers,omitempty"`
	Volumes     json.RawMessage   `json:"volumes,omitempty"`
	RootFS      *RootFS           `json:"rootfs,omitempty"`
	CacheDrive  json.RawMessage   `json:"cache_drive,omitempty"`
	Spot        json.RawMessage   `json:"spot,omitempty"`

	// Size is a preset such as "shared-cpu-2x", instead of Guest. Deprecated
	// by the API in favour of guest.
	Size string `json:"size,omitempty"`
	// DisableAutostart is autostart false on every service. Deprecated by the API.
	DisableAutostart bool `json:"disable_machine_autostart,omitempty"`
}

// Init overrides what the image runs.
type Init struct {
	Exec       []string `json:"exec,omitempty"` // replaces entrypoint and cmd
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	SwapSizeMB int      `json:"swap_size_mb,omitempty"`
	KernelArgs []string `json:"kernel_args,omitempty"`
}

// Guest is the size of a machine.
type Guest struct {
	CPUKind              string   `json:"cpu_kind,omitempty"` // "shared" or "performance"
	CPUs                 int      `json:"cpus,omitempty"`
	MemoryMB             int      `json:"memory_mb,omitempty"`
	MaxMemoryMB          int      `json:"max_memory_mb,omitempty"`
	GPUs                 int      `json:"gpus,omitempty"`
	GPUKind              string   `json:"gpu_kind,omitempty"`
	HostDedicationID     string   `json:"host_dedication_id,omitempty"`
	PersistRootFS        Persist  `json:"persist_rootfs,omitempty"`
	KernelArgs           []string `json:"kernel_args,omitempty"`
	RequiredHostFeatures []string `json:"required_host_features,omitempty"`
}

// Mount puts a volume into the machine.
type Mount struct {
	Volume                 string `json:"volume,omitempty"` // id
	Name                   string `json:"name,omitempty"`   // or any free one of that name
	Path                   string `json:"path,omitempty"`
	Encrypted              bool   `json:"encrypted,omitempty"`
	SizeGB                 int    `json:"size_gb,omitempty"`
	ExtendThresholdPercent int    `json:"extend_threshold_percent,omitempty"`
	AddSizeGB              int    `json:"add_size_gb,omitempty"`
	SizeGBLimit            int    `json:"size_gb_limit,omitempty"`
}

// Service is a port of the machine that the proxy serves.
type Service struct {
	Protocol     string       `json:"protocol,omitempty"` // "tcp"
	InternalPort int          `json:"internal_port,omitempty"`
	Ports        []Port       `json:"ports,omitempty"`
	Concurrency  *Concurrency `json:"concurrency,omitempty"` // nil: connections, soft 20, no hard limit
	Autostop     Autostop     `json:"autostop,omitempty"`
	Autostart    *bool        `json:"autostart,omitempty"` // nil is true
	MinRunning   int          `json:"min_machines_running,omitempty"`
	// AutoStopAfter is the idle time before autostop acts; zero is 5m. Roost only.
	AutoStopAfter *Duration `json:"auto_stop_after,omitempty"`
	// SuspendFor is how long a machine stays suspended before it is stopped;
	// nil is 24h, zero is for ever. Roost only.
	SuspendFor *Duration `json:"suspend_for,omitempty"`
	Checks     []Check   `json:"checks,omitempty"`

	ForceInstanceKey         *string `json:"force_instance_key"`
	ForceInstanceDescription *string `json:"force_instance_description,omitempty"`
}

// Port is an outside port of a service, or a range of them.
type Port struct {
	Port              int             `json:"port,omitempty"`
	StartPort         int             `json:"start_port,omitempty"`
	EndPort           int             `json:"end_port,omitempty"`
	Handlers          []string        `json:"handlers,omitempty"` // "http", "tls", "pg_tls", "proxy_proto"
	ForceHTTPS        bool            `json:"force_https,omitempty"`
	TLSOptions        *TLSOptions     `json:"tls_options,omitempty"`
	HTTPOptions       *HTTPOptions    `json:"http_options,omitempty"`
	ProxyProtoOptions json.RawMessage `json:"proxy_proto_options,omitempty"`
}

// TLSOptions are how a port terminates TLS.
type TLSOptions struct {
	ALPN              []string `json:"alpn,omitempty"`     // none: h2, http/1.1
	Versions          []string `json:"versions,omitempty"` // of "TLSv1.2", "TLSv1.3"; none: both
	DefaultSelfSigned bool     `json:"default_self_signed,omitempty"`
}

// HTTPOptions are what the proxy does to the requests and answers of a port.
type HTTPOptions struct {
	Compress           *bool           `json:"compress,omitempty"` // nil: the platform's choice
	Response           *HTTPResponse   `json:"response,omitempty"`
	H2Backend          bool            `json:"h2_backend,omitempty"`
	IdleTimeout        int             `json:"idle_timeout,omitempty"`         // seconds
	HeadersReadTimeout int             `json:"headers_read_timeout,omitempty"` // seconds
	ReplayCache        json.RawMessage `json:"replay_cache,omitempty"`
}

// HTTPResponse changes the headers of answers.
type HTTPResponse struct {
	Headers  map[string]HeaderValues `json:"headers,omitempty"`
	Pristine bool                    `json:"pristine,omitempty"` // the proxy adds no headers of its own
}

// Concurrency is how load on a service counts.
type Concurrency struct {
	Type      string `json:"type,omitempty"` // "connections" or "requests"
	SoftLimit int    `json:"soft_limit,omitempty"`
	HardLimit int    `json:"hard_limit,omitempty"` // 0: none
}

// Check is a health check, of a service or of the machine.
type Check struct {
	Type          string   `json:"type,omitempty"` // "http" or "tcp"
	Port          int      `json:"port,omitempty"`
	Kind          string   `json:"kind,omitempty"` // "informational" or "readiness"
	Interval      Duration `json:"interval,omitzero"`
	Timeout       Duration `json:"timeout,omitzero"`
	GracePeriod   Duration `json:"grace_period,omitzero"`
	Method        string   `json:"method,omitempty"`
	Path          string   `json:"path,omitempty"`
	Protocol      string   `json:"protocol,omitempty"` // "http" or "https"
	TLSSkipVerify bool     `json:"tls_skip_verify,omitempty"`
	TLSServerName string   `json:"tls_server_name,omitempty"`
	Headers       []Header `json:"headers,omitempty"`
	// RestartLimit restarts the machine after so many failures in a row; 0
	// never. It is ours, with the meaning it once had in fly.toml.
	RestartLimit int `json:"restart_limit,omitempty"`
}

// Header is a header of a check's request.
type Header struct {
	Name   string   `json:"name,omitempty"`
	Values []string `json:"values,omitempty"`
}

// Static is a directory of the image that the proxy serves.
type Static struct {
	GuestPath     string `json:"guest_path"`
	URLPrefix     string `json:"url_prefix"`
	TigrisBucket  string `json:"tigris_bucket,omitempty"`
	IndexDocument string `json:"index_document,omitempty"`
}

// File is written into the machine before it starts. Exactly one of RawValue,
// SecretName and ImageConfig is set.
type File struct {
	GuestPath   string  `json:"guest_path,omitempty"`
	RawValue    *string `json:"raw_value,omitempty"` // base64
	SecretName  *string `json:"secret_name,omitempty"`
	ImageConfig *string `json:"image_config,omitempty"`
	Mode        uint32  `json:"mode,omitempty"` // permission bits; 0: 0644
}

// Metrics is where the machine's own metrics are scraped.
type Metrics struct {
	Port  int    `json:"port,omitempty"`
	Path  string `json:"path,omitempty"`
	HTTPS bool   `json:"https,omitempty"`
}

// Restart is what happens when the main process ends by itself.
type Restart struct {
	Policy     string `json:"policy,omitempty"` // "no", "on-failure", "always"
	MaxRetries int    `json:"max_retries,omitempty"`
}

// StopConfig is how the machine is asked to stop; after Timeout it is killed.
type StopConfig struct {
	Signal  string   `json:"signal,omitempty"`
	Timeout Duration `json:"timeout,omitzero"`
}

// DNS is the machine's name service.
type DNS struct {
	SkipRegistration bool            `json:"skip_registration,omitempty"`
	Nameservers      []string        `json:"nameservers,omitempty"`
	Searches         []string        `json:"searches,omitempty"`
	Options          []DNSOption     `json:"options,omitempty"`
	ForwardRules     json.RawMessage `json:"dns_forward_rules,omitempty"`
	Hostname         string          `json:"hostname,omitempty"`
	HostnameFQDN     string          `json:"hostname_fqdn,omitempty"`
}

// DNSOption is an option of resolv.conf: {"ndots", "2"} or {"rotate", ""}.
type DNSOption struct {
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// Process is what to run instead of what Init and the image say.
type Process struct {
	Exec             []string          `json:"exec,omitempty"`
	Entrypoint       []string          `json:"entrypoint,omitempty"`
	Cmd              []string          `json:"cmd,omitempty"`
	User             string            `json:"user,omitempty"`
	Env              map[string]string `json:"env,omitempty"`
	Secrets          json.RawMessage   `json:"secrets,omitempty"`
	IgnoreAppSecrets bool              `json:"ignore_app_secrets,omitempty"`
	EnvFrom          json.RawMessage   `json:"env_from,omitempty"`
}

// RootFS says what of the root file system outlives a stop.
type RootFS struct {
	Persist Persist `json:"persist,omitempty"`
	SizeGB  int     `json:"size_gb,omitempty"`
}
