package appconfig

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/shlex"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

// The metadata and environment that mark a machine as a release's.
const (
	metadataPlatform = "fly_platform_version"
	platformVersion  = "v2"
	envGroup         = "FLY_PROCESS_GROUP"
	envRegion        = "PRIMARY_REGION"
)

// Machine returns the config of the machines of a process group, without what
// a release adds: the image (that of [build] is not used), the metadata that
// names the release. Guest is nil where no [[vm]] says a size. Files are given
// with their content, so the config has to come from Load or Decode.
func (c *Config) Machine(group string) (machines.Config, error) {
	if !slices.Contains(c.Groups(), group) {
		return machines.Config{}, root.Errorf(root.NotFound, "the app has no process group %q: it has %s", clip(group), strings.Join(c.Groups(), ", "))
	}
	m, err := c.base()
	if err != nil {
		return m, err
	}
	m.Init.Cmd, m.Init.Entrypoint, m.Init.Exec, m.Init.SwapSizeMB = nil, nil, nil, 0
	if e := c.Experimental; e != nil {
		m.Init.Cmd, m.Init.Entrypoint, m.Init.Exec = e.Cmd, e.Entrypoint, e.Exec
	}
	if command := c.Processes[group]; command != "" {
		if m.Init.Cmd, err = split(command); err != nil {
			return m, root.Errorf(root.Invalid, "processes.%s: %v", group, err)
		}
	}
	if c.SwapSizeMB != nil {
		m.Init.SwapSizeMB = *c.SwapSizeMB
	}
	if m.Metadata = maps.Clone(m.Metadata); m.Metadata == nil {
		m.Metadata = map[string]string{}
	}
	m.Metadata[metadataPlatform] = platformVersion
	m.Metadata[root.MetadataProcessGroup] = group
	m.Env = make(map[string]string, len(c.Env)+2)
	maps.Copy(m.Env, c.Env)
	m.Env[envGroup] = group
	if c.PrimaryRegion != "" {
		m.Env[envRegion] = c.PrimaryRegion
	}
	m.Services = c.services(group)
	m.Checks = c.checks(group)
	m.Statics = nil
	for _, s := range c.Statics {
		m.Statics = append(m.Statics, machines.Static{GuestPath: s.GuestPath, URLPrefix: s.URLPrefix, TigrisBucket: s.TigrisBucket, IndexDocument: s.IndexDocument})
	}
	m.Mounts = nil
	if mount := c.mount(group); mount != nil {
		m.Mounts = []machines.Mount{mount.machine()}
	}
	m.StopConfig = nil
	if c.KillTimeout != nil || c.KillSignal != "" {
		m.StopConfig = &machines.StopConfig{Signal: c.KillSignal}
		if c.KillTimeout != nil {
			m.StopConfig.Timeout = machines.Duration(*c.KillTimeout)
		}
	}
	if m.Files, err = c.files(m.Files, group); err != nil {
		return m, err
	}
	m.Metrics = nil
	for _, metrics := range c.Metrics {
		if c.in(metrics.Processes, group) {
			m.Metrics = &machines.Metrics{Port: metrics.Port, Path: metrics.Path, HTTPS: metrics.HTTPS}
			break
		}
	}
	if vm := c.vm(group); vm != nil {
		guest, err := vm.guest()
		if err != nil {
			return m, root.Errorf(root.Invalid, "vm: %v", err)
		}
		if guest.HostDedicationID == "" {
			guest.HostDedicationID = c.HostDedicationID
		}
		m.Guest = &guest
	}
	m.Restart = nil
	for _, r := range c.Restart {
		if c.in(r.Processes, group) {
			m.Restart = &machines.Restart{Policy: restartPolicies[r.Policy], MaxRetries: r.Retries}
		}
	}
	return m, nil
}

// restartPolicies maps the file's words to those of the API.
var restartPolicies = map[string]string{
	"always": root.RestartAlways, "on-failure": root.RestartOnFailure, "on-fail": root.RestartOnFailure, "never": root.RestartNo, "no": root.RestartNo,
}

// base is the machine config that machine_config begins with.
func (c *Config) base() (machines.Config, error) {
	var m machines.Config
	text := c.MachineConfig
	if e := c.Experimental; e != nil && e.MachineConfig != "" {
		text = e.MachineConfig
	}
	if text == "" {
		return m, nil
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, root.Errorf(root.Invalid, "machine_config is not a machine config: %v", err)
	}
	return m, nil
}

// split cuts a command line into words as a shell would, without expanding
// anything. It is what flyctl uses.
func split(command string) ([]string, error) {
	words, err := shlex.Split(command)
	if err != nil {
		return nil, fmt.Errorf("%q cannot be split into words: %w", clip(command), err)
	}
	return words, nil
}

// services are the group's own, or else that of a serverless group.
func (c *Config) services(group string) []machines.Service {
	if list := c.ownServices(group); len(list) > 0 {
		return list
	}
	for i := range c.Serverless {
		if s := &c.Serverless[i]; len(s.Processes) > 0 && s.Processes[0] == group {
			if service, ok := c.serverlessService(s); ok {
				return []machines.Service{service}
			}
		}
	}
	return nil
}

// ownServices are http_service, then services in the order of the file.
func (c *Config) ownServices(group string) []machines.Service {
	var list []machines.Service
	if s := c.HTTPService; s != nil && c.in(s.Processes, group) {
		list = append(list, s.machine())
	}
	for i := range c.Services {
		if s := &c.Services[i]; c.in(s.Processes, group) {
			list = append(list, s.machine())
		}
	}
	return list
}

// serverlessService is the service of a group that only [[serverless]] names:
// the app's own web service with its ports, that sleeps when idle.
func (c *Config) serverlessService(s *Serverless) (machines.Service, bool) {
	var service machines.Service
	switch web := c.webService(); {
	case c.HTTPService != nil:
		service = c.HTTPService.machine()
	case web != nil:
		service = web.machine()
	default:
		return service, false
	}
	yes := true
	service.Autostop, service.Autostart, service.MinRunning = machines.AutostopSuspend, &yes, 0
	service.AutoStopAfter, service.SuspendFor = nil, nil
	s.apply(&service)
	if s.InternalPort != 0 {
		service.InternalPort = s.InternalPort
	}
	return service, true
}

// webService is the first of [[services]] that speaks HTTP.
func (c *Config) webService() *Service {
	for i := range c.Services {
		for _, p := range c.Services[i].Ports {
			if slices.Contains(p.Handlers, "http") {
				return &c.Services[i]
			}
		}
	}
	return nil
}

// apply sets what the file says of sleeping and waking.
func (a *Autoscale) apply(s *machines.Service) {
	if a.Autostop != "" {
		s.Autostop = machines.Autostop(a.Autostop)
	}
	if a.Autostart != nil {
		s.Autostart = a.Autostart
	}
	if a.MinRunning != nil {
		s.MinRunning = *a.MinRunning
	}
	if a.AutoStopAfter != nil {
		s.AutoStopAfter = duration(a.AutoStopAfter)
	}
	if a.SuspendFor != nil {
		s.SuspendFor = duration(a.SuspendFor)
	}
}

// value is what p points to, or zero.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func duration(d *Duration) *machines.Duration {
	if d == nil {
		return nil
	}
	out := machines.Duration(*d)
	return &out
}

func (s *HTTPService) machine() machines.Service {
	out := machines.Service{
		Protocol: "tcp", InternalPort: s.InternalPort, Concurrency: s.Concurrency.machine(),
		Ports: []machines.Port{
			{Port: 80, Handlers: []string{"http"}, ForceHTTPS: s.ForceHTTPS, HTTPOptions: s.HTTPOptions.machine()},
			{Port: 443, Handlers: []string{"http", "tls"}, HTTPOptions: s.HTTPOptions.machine(), TLSOptions: s.TLSOptions.machine()},
		},
	}
	s.apply(&out)
	for i := range s.Checks {
		out.Checks = append(out.Checks, s.Checks[i].machine(root.CheckHTTP))
	}
	return out
}

func (s *Service) machine() machines.Service {
	out := machines.Service{Protocol: s.Protocol, InternalPort: s.InternalPort, Concurrency: s.Concurrency.machine()}
	if out.Protocol == "" {
		out.Protocol = "tcp"
	}
	s.apply(&out)
	for _, p := range s.Ports {
		port := machines.Port{Handlers: p.Handlers, ForceHTTPS: p.ForceHTTPS, HTTPOptions: p.HTTPOptions.machine(), TLSOptions: p.TLSOptions.machine()}
		port.Port, port.StartPort, port.EndPort = value(p.Port), value(p.StartPort), value(p.EndPort)
		if o := p.ProxyProtoOptions; o != nil {
			port.ProxyProtoOptions, _ = json.Marshal(o) // two strings: cannot fail
		}
		out.Ports = append(out.Ports, port)
	}
	for i := range s.TCPChecks {
		out.Checks = append(out.Checks, s.TCPChecks[i].machine(root.CheckTCP))
	}
	for i := range s.HTTPChecks {
		out.Checks = append(out.Checks, s.HTTPChecks[i].machine(root.CheckHTTP))
	}
	return out
}

func (c *Concurrency) machine() *machines.Concurrency {
	if c == nil {
		return nil
	}
	return &machines.Concurrency{Type: c.Type, SoftLimit: c.SoftLimit, HardLimit: c.HardLimit}
}

func (o *TLSOptions) machine() *machines.TLSOptions {
	if o == nil {
		return nil
	}
	return &machines.TLSOptions{ALPN: o.ALPN, Versions: o.Versions, DefaultSelfSigned: o.DefaultSelfSigned}
}

func (o *HTTPOptions) machine() *machines.HTTPOptions {
	if o == nil {
		return nil
	}
	out := &machines.HTTPOptions{Compress: o.Compress, H2Backend: o.H2Backend, IdleTimeout: o.IdleTimeout, HeadersReadTimeout: o.HeadersReadTimeout}
	if len(o.ReplayCache) > 0 {
		out.ReplayCache, _ = json.Marshal(o.ReplayCache) // strings and numbers: cannot fail
	}
	if r := o.Response; r != nil {
		out.Response = &machines.HTTPResponse{Pristine: r.Pristine}
		for name, v := range r.Headers {
			values, ok := headerValues(v)
			if !ok {
				continue // reported by validation
			}
			if out.Response.Headers == nil {
				out.Response.Headers = make(map[string]machines.HeaderValues, len(r.Headers))
			}
			out.Response.Headers[name] = values
		}
	}
	return out
}

// headerValues reads false, a string or a list of strings.
func headerValues(v any) (machines.HeaderValues, bool) {
	switch v := v.(type) {
	case bool:
		return machines.HeaderValues{}, !v
	case string:
		return machines.HeaderValues{v}, true
	case []any:
		values := make(machines.HeaderValues, 0, len(v))
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, false
			}
			values = append(values, s)
		}
		return values, true
	}
	return nil, false
}

// machine converts a check; kind is the type of a service's check, which does
// not name one itself.
func (c *Check) machine(kind string) machines.Check {
	out := machines.Check{
		Type: kind, Kind: c.Kind, Method: c.Method, Path: c.Path, Protocol: c.Protocol,
		Port: value(c.Port), Interval: machines.Duration(value(c.Interval)), Timeout: machines.Duration(value(c.Timeout)), GracePeriod: machines.Duration(value(c.GracePeriod)),
		TLSSkipVerify: c.TLSSkipVerify, TLSServerName: c.TLSServerName, RestartLimit: c.RestartLimit,
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		out.Headers = append(out.Headers, machines.Header{Name: name, Values: []string{c.Headers[name]}})
	}
	return out
}

// checks are the group's top-level checks.
func (c *Config) checks(group string) map[string]machines.Check {
	var out map[string]machines.Check
	for name, check := range c.Checks {
		if !c.in(check.Processes, group) {
			continue
		}
		m := check.machine(check.Type)
		m.Method = strings.ToUpper(m.Method)
		if m.Port == 0 && c.HTTPService != nil && c.in(c.HTTPService.Processes, group) {
			m.Port = c.HTTPService.InternalPort
		}
		if out == nil {
			out = make(map[string]machines.Check)
		}
		out[name] = m
	}
	return out
}

// mount is the group's mount, nil none.
func (c *Config) mount(group string) *Mount {
	for i := range c.Mounts {
		if c.in(c.Mounts[i].Processes, group) {
			return &c.Mounts[i]
		}
	}
	return nil
}

func (m *Mount) machine() machines.Mount {
	return machines.Mount{
		Name: m.Source, Path: m.Destination, ExtendThresholdPercent: value(m.AutoExtendSizeThreshold),
		AddSizeGB: int(value(m.AutoExtendSizeIncrement)), SizeGBLimit: int(value(m.AutoExtendSizeLimit)),
	}
}

// files adds the group's files to those of machine_config. An entry without a
// source removes the file of that path.
func (c *Config) files(have []machines.File, group string) ([]machines.File, error) {
	for i, f := range c.Files {
		if !c.in(f.Processes, group) {
			continue
		}
		have = slices.DeleteFunc(slices.Clone(have), func(old machines.File) bool { return old.GuestPath == f.GuestPath })
		file := machines.File{GuestPath: f.GuestPath}
		switch {
		case f.LocalPath != "":
			content, err := c.local(f.LocalPath)
			if err != nil {
				return nil, root.Errorf(root.Invalid, "files[%d].local_path: %v", i, err)
			}
			encoded := base64.StdEncoding.EncodeToString(content)
			file.RawValue = &encoded
		case f.RawValue != nil:
			file.RawValue = f.RawValue
		case f.SecretName != "":
			file.SecretName = &f.SecretName
		default:
			continue
		}
		have = append(have, file)
	}
	return have, nil
}

// vm is the entry of [[vm]] that sizes the group: one that names it, else one
// that names none; nil where neither is there.
func (c *Config) vm(group string) *VM {
	var general *VM
	for i := range c.VM {
		switch vm := &c.VM[i]; {
		case slices.Contains(vm.Processes, group):
			return vm
		case len(vm.Processes) == 0 && general == nil:
			general = vm
		}
	}
	return general
}

// The sizes of a [[vm]] that names none.
const (
	defaultSize    = "shared-cpu-1x"
	defaultGPUSize = "performance-8x"
)

// guest is the size that the entry says: preset, then memory, then the single
// keys.
func (v *VM) guest() (machines.Guest, error) {
	size := v.Size
	if size == "" {
		size = defaultSize
		if v.GPUKind != "" {
			size = defaultGPUSize
		}
	}
	guest, ok := machines.Preset(size)
	if !ok {
		return guest, fmt.Errorf("size %q is not one of %s", clip(size), strings.Join(machines.Presets(), ", "))
	}
	if v.Memory != nil {
		guest.MemoryMB = int(*v.Memory)
	}
	if v.MemoryMB != 0 {
		guest.MemoryMB = v.MemoryMB
	}
	if v.CPUs != 0 {
		guest.CPUs = v.CPUs
	}
	if v.CPUKind != "" {
		guest.CPUKind = v.CPUKind
	}
	if v.GPUs != 0 {
		guest.GPUs = v.GPUs
	}
	if v.GPUKind != "" {
		guest.GPUKind = v.GPUKind
		guest.GPUs = max(guest.GPUs, 1)
	}
	guest.KernelArgs = v.KernelArgs
	guest.HostDedicationID = v.HostDedicationID
	guest.PersistRootFS = machines.Persist(v.PersistRootFS)
	return guest, nil
}
