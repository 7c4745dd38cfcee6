package state

import (
	"time"

	root "github.com/roost-run/roost"
)

// specRecord holds a machine's fixed facts and its current version.
type specRecord struct {
	V         int       `json:"v"`
	ID        string    `json:"id"`
	App       string    `json:"app"`
	Org       string    `json:"org"`
	Network   string    `json:"network,omitzero"`
	Name      string    `json:"name"`
	Region    string    `json:"region,omitzero"`
	Host      string    `json:"host,omitzero"`
	Origin    string    `json:"origin,omitzero"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	// Held are the address indexes that this machine keeps, the newest last:
	// versions before the current one may still be draining.
	Held []uint32 `json:"held,omitempty"`

	Instance   string         `json:"instance"`
	Generation uint64         `json:"generation,omitzero"`
	Config     configRecord   `json:"config"`
	Source     []byte         `json:"source,omitempty"`
	Image      imageRecord    `json:"image,omitzero"`
	Launch     bool           `json:"launch,omitzero"`
	Secrets    int            `json:"secrets,omitzero"`
	Release    int            `json:"release,omitzero"`
	Cordoned   bool           `json:"cordoned,omitzero"`
	Address    addressRecord  `json:"address,omitzero"`
	UpdatedAt  time.Time      `json:"updated_at,omitzero"`
	Destroy    *destroyRecord `json:"destroy,omitempty"`
}

type imageRecord struct {
	Registry   string            `json:"registry,omitzero"`
	Repository string            `json:"repository,omitzero"`
	Tag        string            `json:"tag,omitzero"`
	Digest     string            `json:"digest,omitzero"`
	Labels     map[string]string `json:"labels,omitempty"`
}

type addressRecord struct {
	Index uint32 `json:"index"`
	IPv4  string `json:"ipv4,omitzero"`
	IPv6  string `json:"ipv6,omitzero"`
}

type destroyRecord struct {
	Force bool      `json:"force,omitzero"`
	At    time.Time `json:"at,omitzero"`
}

type configRecord struct {
	Image       string                 `json:"image,omitzero"`
	Env         map[string]string      `json:"env,omitempty"`
	Init        initRecord             `json:"init,omitzero"`
	Guest       guestRecord            `json:"guest,omitzero"`
	Swap        int64                  `json:"swap_bytes,omitzero"`
	Metadata    map[string]string      `json:"metadata,omitempty"`
	Services    []serviceRecord        `json:"services,omitempty"`
	Checks      map[string]checkRecord `json:"checks,omitempty"`
	Files       []fileRecord           `json:"files,omitempty"`
	Statics     []staticRecord         `json:"statics,omitempty"`
	Restart     restartRecord          `json:"restart,omitzero"`
	AutoDestroy bool                   `json:"auto_destroy,omitzero"`
	Stop        stopRecord             `json:"stop,omitzero"`
	DNS         dnsRecord              `json:"dns,omitzero"`
	Process     *processRecord         `json:"process,omitempty"`
	Persist     string                 `json:"persist,omitzero"`
}

// The members of initRecord and of the other types that mirror a root type
// member by member have its order, so that a conversion is one expression
// which stops compiling when the two differ.
type initRecord struct {
	Exec       []string `json:"exec,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	TTY        bool     `json:"tty,omitzero"`
}

func (r initRecord) IsZero() bool {
	return r.Exec == nil && r.Entrypoint == nil && r.Cmd == nil && !r.TTY
}

type processRecord struct {
	Exec       []string          `json:"exec,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	User       string            `json:"user,omitzero"`
	Env        map[string]string `json:"env,omitempty"`
	Secrets    map[string]string `json:"secrets,omitempty"`
	NoSecrets  bool              `json:"no_secrets,omitzero"`
}

type guestRecord struct {
	CPUKind string     `json:"cpu_kind"`
	CPUs    int        `json:"cpus"`
	Memory  root.Bytes `json:"memory_bytes"`
}

type fileRecord struct {
	GuestPath   string `json:"guest_path"`
	Content     []byte `json:"content,omitempty"`
	Mode        uint32 `json:"mode,omitzero"`
	ImageConfig string `json:"image_config,omitzero"`
	Secret      string `json:"secret,omitzero"`
}

type staticRecord struct {
	GuestPath     string `json:"guest_path"`
	URLPrefix     string `json:"url_prefix"`
	IndexDocument string `json:"index_document,omitzero"`
}

type restartRecord struct {
	Policy     string `json:"policy"`
	MaxRetries int    `json:"max_retries,omitzero"`
}

// Durations in records are nanoseconds.
type stopRecord struct {
	Signal  string        `json:"signal"`
	Timeout time.Duration `json:"timeout_ns"`
}

type dnsRecord struct {
	SkipRegistration bool     `json:"skip_registration,omitzero"`
	Nameservers      []string `json:"nameservers,omitempty"`
	Searches         []string `json:"searches,omitempty"`
	Options          []string `json:"options,omitempty"`
	Hostname         string   `json:"hostname,omitzero"`
}

type serviceRecord struct {
	Protocol     string            `json:"protocol"`
	InternalPort int               `json:"internal_port"`
	Ports        []portRecord      `json:"ports,omitempty"`
	Concurrency  concurrencyRecord `json:"concurrency"`
	Autostop     string            `json:"autostop,omitzero"`
	Autostart    bool              `json:"autostart,omitzero"`
	MinRunning   int               `json:"min_running,omitzero"`
	StopAfter    time.Duration     `json:"stop_after_ns,omitzero"`
	SuspendFor   time.Duration     `json:"suspend_for_ns,omitzero"`
	Checks       []checkRecord     `json:"checks,omitempty"`
}

type portRecord struct {
	Port       int               `json:"port"`
	End        int               `json:"end,omitzero"`
	Handlers   []string          `json:"handlers,omitempty"`
	ForceHTTPS bool              `json:"force_https,omitzero"`
	HTTP       httpOptionsRecord `json:"http,omitzero"`
	TLS        tlsOptionsRecord  `json:"tls,omitzero"`
}

type httpOptionsRecord struct {
	Headers     map[string][]string `json:"headers,omitempty"`
	Pristine    bool                `json:"pristine,omitzero"`
	Compress    *bool               `json:"compress,omitempty"`
	IdleTimeout time.Duration       `json:"idle_timeout_ns,omitzero"`
}

func (r httpOptionsRecord) IsZero() bool {
	return r.Headers == nil && !r.Pristine && r.Compress == nil && r.IdleTimeout == 0
}

type tlsOptionsRecord struct {
	ALPN              []string `json:"alpn,omitempty"`
	Versions          []string `json:"versions,omitempty"`
	DefaultSelfSigned bool     `json:"default_self_signed,omitzero"`
}

func (r tlsOptionsRecord) IsZero() bool {
	return r.ALPN == nil && r.Versions == nil && !r.DefaultSelfSigned
}

func fromPort(p root.Port) portRecord {
	return portRecord{p.Port, p.End, p.Handlers, p.ForceHTTPS, httpOptionsRecord(p.HTTP), tlsOptionsRecord(p.TLS)}
}

func (r portRecord) root() root.Port {
	return root.Port{
		Port: r.Port, End: r.End, Handlers: r.Handlers, ForceHTTPS: r.ForceHTTPS, HTTP: root.HTTPOptions(r.HTTP), TLS: root.TLSOptions(r.TLS),
	}
}

type concurrencyRecord struct {
	Type string `json:"type"`
	Soft int    `json:"soft,omitzero"`
	Hard int    `json:"hard,omitzero"`
}

type checkRecord struct {
	Type          string              `json:"type"`
	Port          int                 `json:"port,omitzero"`
	Readiness     bool                `json:"readiness,omitzero"`
	Interval      time.Duration       `json:"interval_ns,omitzero"`
	Timeout       time.Duration       `json:"timeout_ns,omitzero"`
	Grace         time.Duration       `json:"grace_ns,omitzero"`
	Path          string              `json:"path,omitzero"`
	Method        string              `json:"method,omitzero"`
	TLS           bool                `json:"tls,omitzero"`
	TLSSkipVerify bool                `json:"tls_skip_verify,omitzero"`
	TLSServerName string              `json:"tls_server_name,omitzero"`
	Headers       map[string][]string `json:"headers,omitempty"`
	RestartLimit  int                 `json:"restart_limit,omitzero"`
}

type statusRecord struct {
	V          int                 `json:"v"`
	State      string              `json:"state"`
	Instance   string              `json:"instance,omitzero"`
	Generation uint64              `json:"generation,omitzero"`
	Stamp      stampRecord         `json:"stamp"`
	Restarts   int                 `json:"restarts,omitzero"`
	Exit       *exitRecord         `json:"exit,omitempty"`
	Checks     []checkResultRecord `json:"checks,omitempty"`
	Events     []eventRecord       `json:"events,omitempty"`
	Message    string              `json:"message,omitzero"`
	UpdatedAt  time.Time           `json:"updated_at,omitzero"`
}

type stampRecord struct {
	Boot uint64 `json:"boot"`
	Seq  uint64 `json:"seq"`
}

type exitRecord struct {
	Code          int       `json:"code"`
	Signal        int       `json:"signal"`
	OOMKilled     bool      `json:"oom_killed,omitzero"`
	RequestedStop bool      `json:"requested_stop,omitzero"`
	Restarting    bool      `json:"restarting,omitzero"`
	Error         string    `json:"error,omitzero"`
	At            time.Time `json:"at,omitzero"`
}

type checkResultRecord struct {
	Name      string    `json:"name"`
	Status    string    `json:"status"`
	Output    string    `json:"output,omitzero"`
	UpdatedAt time.Time `json:"updated_at,omitzero"`
}

type eventRecord struct {
	ID     string      `json:"id"`
	Type   string      `json:"type"`
	Status string      `json:"status,omitzero"`
	Source string      `json:"source,omitzero"`
	Reason string      `json:"reason,omitzero"`
	At     time.Time   `json:"at,omitzero"`
	Exit   *exitRecord `json:"exit,omitempty"`
	Count  int         `json:"count,omitzero"`
}

// fromMachine makes the spec record; status and lease have their own.
func fromMachine(m root.Machine, held []uint32) specRecord {
	r := specRecord{
		V: specVersion, ID: string(m.ID), App: string(m.App), Org: string(m.Org), Network: string(m.Network), Name: m.Name,
		Region: string(m.Region), Host: string(m.Host), Origin: string(m.Origin), CreatedAt: utc(m.CreatedAt), Held: held,
	}
	r.setSpec(m.Spec)
	return r
}

func (r *specRecord) setSpec(s root.Spec) {
	r.Instance, r.Generation, r.Config, r.Source = string(s.Instance), s.Generation, fromConfig(s.Config), s.Source
	r.Image = imageRecord{s.Image.Registry, s.Image.Repository, s.Image.Tag, string(s.Image.Digest), s.Image.Labels}
	r.Launch, r.Cordoned, r.Address, r.UpdatedAt = s.Launch, s.Cordoned, addressRecord(s.Address), utc(s.UpdatedAt)
	r.Secrets, r.Release = s.Secrets, s.Release
	r.Destroy = nil
	if s.Destroy != nil {
		r.Destroy = &destroyRecord{s.Destroy.Force, utc(s.Destroy.At)}
	}
}

func (r *specRecord) spec() root.Spec {
	s := root.Spec{
		Instance: root.InstanceID(r.Instance), Generation: r.Generation, Config: r.Config.root(), Source: r.Source,
		Image:  root.Image{Registry: r.Image.Registry, Repository: r.Image.Repository, Tag: r.Image.Tag, Digest: root.Digest(r.Image.Digest), Labels: r.Image.Labels},
		Launch: r.Launch, Cordoned: r.Cordoned, Address: root.Address(r.Address), UpdatedAt: r.UpdatedAt,
		Secrets: r.Secrets, Release: r.Release,
	}
	if r.Destroy != nil {
		s.Destroy = &root.Destroy{Force: r.Destroy.Force, At: r.Destroy.At}
	}
	return s
}

// root returns the machine without status and lease.
func (r *specRecord) root() *root.Machine {
	return &root.Machine{
		ID: root.MachineID(r.ID), App: root.AppName(r.App), Org: root.OrgSlug(r.Org), Network: root.NetworkName(r.Network), Name: r.Name,
		Region: root.Region(r.Region), Host: root.HostID(r.Host), Origin: root.Origin(r.Origin), CreatedAt: r.CreatedAt, Spec: r.spec(),
	}
}

func fromConfig(c root.Config) configRecord {
	r := configRecord{
		Image: c.Image, Env: c.Env, Init: initRecord(c.Init), Guest: guestRecord(c.Guest), Swap: int64(c.Swap), Metadata: c.Metadata,
		Services: convert(c.Services, fromService), Files: convert(c.Files, func(f root.File) fileRecord { return fileRecord(f) }),
		Restart: restartRecord(c.Restart), AutoDestroy: c.AutoDestroy, Stop: stopRecord(c.Stop), DNS: dnsRecord(c.DNS),
		Process: (*processRecord)(c.Process), Persist: string(c.Persist),
		Statics: convert(c.Statics, func(t root.Static) staticRecord { return staticRecord(t) }),
	}
	if c.Checks != nil {
		r.Checks = make(map[string]checkRecord, len(c.Checks))
		for name, k := range c.Checks {
			r.Checks[name] = checkRecord(k)
		}
	}
	return r
}

func (r configRecord) root() root.Config {
	c := root.Config{
		Image: r.Image, Env: r.Env, Init: root.Init(r.Init), Guest: root.Guest(r.Guest), Swap: root.Bytes(r.Swap), Metadata: r.Metadata,
		Services: convert(r.Services, serviceRecord.root), Files: convert(r.Files, func(f fileRecord) root.File { return root.File(f) }),
		Restart: root.Restart(r.Restart), AutoDestroy: r.AutoDestroy, Stop: root.Stop(r.Stop), DNS: root.DNS(r.DNS),
		Process: (*root.Process)(r.Process), Persist: root.Persist(r.Persist),
		Statics: convert(r.Statics, func(t staticRecord) root.Static { return root.Static(t) }),
	}
	if r.Checks != nil {
		c.Checks = make(map[string]root.Check, len(r.Checks))
		for name, k := range r.Checks {
			c.Checks[name] = root.Check(k)
		}
	}
	return c
}

func fromService(s root.Service) serviceRecord {
	return serviceRecord{
		s.Protocol, s.InternalPort, convert(s.Ports, fromPort),
		concurrencyRecord(s.Concurrency), string(s.Autostop), s.Autostart, s.MinRunning, s.StopAfter, s.SuspendFor,
		convert(s.Checks, func(c root.Check) checkRecord { return checkRecord(c) }),
	}
}

func (r serviceRecord) root() root.Service {
	return root.Service{
		Protocol: r.Protocol, InternalPort: r.InternalPort, Ports: convert(r.Ports, portRecord.root),
		Concurrency: root.Concurrency(r.Concurrency), Autostop: root.Autostop(r.Autostop), Autostart: r.Autostart,
		MinRunning: r.MinRunning, StopAfter: r.StopAfter, SuspendFor: r.SuspendFor,
		Checks: convert(r.Checks, func(c checkRecord) root.Check { return root.Check(c) }),
	}
}

func fromStatus(s root.Status) statusRecord {
	events := s.Events
	if len(events) > root.MaxEvents {
		events = events[:root.MaxEvents]
	}
	return statusRecord{
		V: statusVersion, State: string(s.State), Instance: string(s.Instance), Generation: s.Generation, Stamp: stampRecord(s.Stamp),
		Restarts: s.Restarts, Exit: fromExit(s.Exit), Checks: convert(s.Checks, fromCheckResult), Events: convert(events, fromEvent),
		Message: s.Message, UpdatedAt: utc(s.UpdatedAt),
	}
}

func (r *statusRecord) root() root.Status {
	return root.Status{
		State: root.State(r.State), Instance: root.InstanceID(r.Instance), Generation: r.Generation, Stamp: root.Stamp(r.Stamp),
		Restarts: r.Restarts, Exit: (*root.Exit)(r.Exit), Checks: convert(r.Checks, func(c checkResultRecord) root.CheckResult { return root.CheckResult(c) }),
		Events: convert(r.Events, eventRecord.root), Message: r.Message, UpdatedAt: r.UpdatedAt,
	}
}

func fromExit(e *root.Exit) *exitRecord {
	if e == nil {
		return nil
	}
	r := exitRecord(*e)
	r.At = utc(r.At)
	return &r
}

func fromCheckResult(c root.CheckResult) checkResultRecord {
	r := checkResultRecord(c)
	r.UpdatedAt = utc(r.UpdatedAt)
	return r
}

func fromEvent(e root.Event) eventRecord {
	return eventRecord{e.ID, e.Type, string(e.Status), e.Source, e.Reason, utc(e.At), fromExit(e.Exit), e.Count}
}

func (r eventRecord) root() root.Event {
	return root.Event{
		ID: r.ID, Type: r.Type, Status: root.State(r.Status), Source: r.Source, Reason: r.Reason, At: r.At,
		Exit: (*root.Exit)(r.Exit), Count: r.Count,
	}
}

// convert keeps nil nil.
func convert[A, B any](in []A, f func(A) B) []B {
	if in == nil {
		return nil
	}
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}
