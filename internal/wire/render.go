package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

// FromConfig is the inverse of ParseConfig, without members the product does
// not know; see MarshalConfig.
func FromConfig(c root.Config) machines.Config {
	out := machines.Config{
		Image:       c.Image,
		Env:         c.Env,
		Init:        machines.Init{Exec: c.Init.Exec, Entrypoint: c.Init.Entrypoint, Cmd: c.Init.Cmd, TTY: c.Init.TTY, SwapSizeMB: c.Swap.MiB()},
		Guest:       &machines.Guest{CPUKind: c.Guest.CPUKind, CPUs: c.Guest.CPUs, MemoryMB: c.Guest.Memory.MiB()},
		Metadata:    c.Metadata,
		Restart:     &machines.Restart{Policy: c.Restart.Policy, MaxRetries: c.Restart.MaxRetries},
		StopConfig:  &machines.StopConfig{Signal: c.Stop.Signal, Timeout: machines.Duration(c.Stop.Timeout)},
		AutoDestroy: c.AutoDestroy,
	}
	for _, s := range c.Services {
		out.Services = append(out.Services, fromService(s))
	}
	for name, check := range c.Checks {
		if out.Checks == nil {
			out.Checks = make(map[string]machines.Check, len(c.Checks))
		}
		out.Checks[name] = fromCheck(check)
	}
	for _, f := range c.Files {
		file := machines.File{GuestPath: f.GuestPath, Mode: f.Mode}
		switch {
		case f.ImageConfig != "":
			file.ImageConfig = &f.ImageConfig
		case f.Secret != "":
			file.SecretName = &f.Secret
		default:
			raw := base64.StdEncoding.EncodeToString(f.Content)
			file.RawValue = &raw
		}
		out.Files = append(out.Files, file)
	}
	for _, s := range c.Statics {
		out.Statics = append(out.Statics, machines.Static{GuestPath: s.GuestPath, URLPrefix: s.URLPrefix, IndexDocument: s.IndexDocument})
	}
	if d := fromDNS(c.DNS); d.SkipRegistration || d.Hostname != "" || len(d.Nameservers)+len(d.Searches)+len(d.Options) > 0 {
		out.DNS = &d
	}
	if p := c.Process; p != nil {
		out.Processes = []machines.Process{{
			Exec: p.Exec, Entrypoint: p.Entrypoint, Cmd: p.Cmd, User: p.User, Env: p.Env,
			Secrets: fromProcessSecrets(p.Secrets), IgnoreAppSecrets: p.NoSecrets,
		}}
	}
	if c.Persist != root.PersistNever && c.Persist != "" {
		out.RootFS = &machines.RootFS{Persist: machines.Persist(c.Persist)}
	}
	return out
}

func fromDNS(d root.DNS) machines.DNS {
	out := machines.DNS{SkipRegistration: d.SkipRegistration, Nameservers: d.Nameservers, Searches: d.Searches, Hostname: d.Hostname}
	for _, o := range d.Options {
		name, value, _ := strings.Cut(o, ":")
		out.Options = append(out.Options, machines.DNSOption{Name: name, Value: value})
	}
	return out
}

func fromService(s root.Service) machines.Service {
	after, suspend := machines.Duration(s.StopAfter), machines.Duration(s.SuspendFor)
	out := machines.Service{
		Protocol:     s.Protocol,
		InternalPort: s.InternalPort,
		Concurrency:  &machines.Concurrency{Type: s.Concurrency.Type, SoftLimit: s.Concurrency.Soft, HardLimit: s.Concurrency.Hard},
		Autostop:     machines.Autostop(s.Autostop),
		Autostart:    &s.Autostart,
		MinRunning:   s.MinRunning,
	}
	if s.StopAfter != root.DefaultStopAfter {
		out.AutoStopAfter = &after
	}
	if s.SuspendFor != root.DefaultSuspendFor {
		out.SuspendFor = &suspend
	}
	for _, p := range s.Ports {
		port := machines.Port{Port: p.Port, Handlers: p.Handlers, ForceHTTPS: p.ForceHTTPS, HTTPOptions: fromHTTPOptions(p.HTTP)}
		if t := p.TLS; t.DefaultSelfSigned || len(t.ALPN)+len(t.Versions) > 0 {
			port.TLSOptions = &machines.TLSOptions{ALPN: t.ALPN, Versions: t.Versions, DefaultSelfSigned: t.DefaultSelfSigned}
		}
		if p.End != 0 {
			port.Port, port.StartPort, port.EndPort = 0, p.Port, p.End
		}
		out.Ports = append(out.Ports, port)
	}
	for _, c := range s.Checks {
		out.Checks = append(out.Checks, fromCheck(c))
	}
	return out
}

// fromHTTPOptions returns nil for options that say nothing.
func fromHTTPOptions(o root.HTTPOptions) *machines.HTTPOptions {
	if o.Compress == nil && o.IdleTimeout == 0 && !o.Pristine && len(o.Headers) == 0 {
		return nil
	}
	out := &machines.HTTPOptions{Compress: o.Compress, IdleTimeout: int(o.IdleTimeout / time.Second)}
	if o.Pristine || len(o.Headers) > 0 {
		out.Response = &machines.HTTPResponse{Pristine: o.Pristine}
	}
	for name, values := range o.Headers {
		if out.Response.Headers == nil {
			out.Response.Headers = make(map[string]machines.HeaderValues, len(o.Headers))
		}
		out.Response.Headers[name] = append(machines.HeaderValues{}, values...)
	}
	return out
}

func fromCheck(c root.Check) machines.Check {
	out := machines.Check{
		Type: c.Type, Port: c.Port, Path: c.Path, Method: c.Method,
		Interval: machines.Duration(c.Interval), Timeout: machines.Duration(c.Timeout), GracePeriod: machines.Duration(c.Grace),
		TLSSkipVerify: c.TLSSkipVerify, TLSServerName: c.TLSServerName, RestartLimit: c.RestartLimit,
	}
	if c.Readiness {
		out.Kind = kindReadiness
	}
	if c.TLS {
		out.Protocol = protocolHTTPS
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		out.Headers = append(out.Headers, machines.Header{Name: name, Values: c.Headers[name]})
	}
	return out
}

// MarshalConfig renders a config for reading back: c as it is now, with
// defaults, and beside it whatever source (the document of Parsed) has that
// the product does not know.
func MarshalConfig(c root.Config, source []byte) (json.RawMessage, error) {
	known, err := json.Marshal(FromConfig(c))
	if err != nil {
		return nil, err
	}
	if len(source) == 0 {
		return known, nil
	}
	var have, sent map[string]any
	if err := unmarshalExact(known, &have); err != nil {
		return nil, err
	}
	if err := unmarshalExact(source, &sent); err != nil {
		return nil, err
	}
	// These are c's alone: metadata changes without a new version, and the
	// deprecated two have become members of guest and services.
	for key := range sent {
		switch strings.ToLower(key) {
		case "env", "metadata", "size", "disable_machine_autostart":
			delete(sent, key)
		}
	}
	return json.Marshal(merge(have, sent))
}

// unmarshalExact keeps numbers as they are written.
func unmarshalExact(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return dec.Decode(v)
}

// merge adds to have what only sent has.
func merge(have, sent any) any {
	switch h := have.(type) {
	case map[string]any:
		s, ok := sent.(map[string]any)
		if !ok {
			return have
		}
		known := make(map[string]bool, len(h))
		for key := range h {
			known[strings.ToLower(key)] = true
		}
		for key, value := range s {
			if old, ok := h[key]; ok {
				h[key] = merge(old, value)
			} else if value != nil && !known[strings.ToLower(key)] {
				h[key] = value
			}
		}
	case []any:
		s, ok := sent.([]any)
		if !ok || len(s) != len(h) {
			return have
		}
		for i := range h {
			h[i] = merge(h[i], s[i])
		}
	}
	return have
}

// Machine is a machine's document, with its config as MarshalConfig has it.
type Machine struct {
	machines.Machine
	Config json.RawMessage `json:"config,omitempty"`
}

// maxEvents is how many events a machine's document embeds.
const maxEvents = 20

// FromMachine renders a machine. A summary is without config, checks and events.
func FromMachine(m *root.Machine, summary bool) (Machine, error) {
	updated := m.Spec.UpdatedAt
	if m.Status.UpdatedAt.After(updated) {
		updated = m.Status.UpdatedAt
	}
	out := Machine{Machine: machines.Machine{
		ID:         string(m.ID),
		Name:       m.Name,
		State:      state(m),
		Region:     string(m.Region),
		ImageRef:   FromImage(m.Spec.Image),
		InstanceID: string(m.Spec.Instance),
		Version:    string(m.Spec.Instance),
		PrivateIP:  m.Spec.Address.IPv6,
		CreatedAt:  m.CreatedAt.UTC(),
		UpdatedAt:  updated.UTC(),
		Cordoned:   m.Spec.Cordoned,
	}}
	if summary {
		return out, nil
	}
	out.HostStatus = "ok"
	var err error
	if out.Config, err = MarshalConfig(m.Spec.Config, m.Spec.Source); err != nil {
		return Machine{}, err
	}
	for _, c := range m.Status.Checks {
		out.Checks = append(out.Checks, machines.Status{Name: c.Name, Status: c.Status, Output: c.Output, UpdatedAt: c.UpdatedAt.UTC()})
	}
	out.Events = FromEvents(m.Status.Events, maxEvents)
	return out, nil
}

func state(m *root.Machine) machines.State {
	switch s := m.Status.State; {
	case s == root.StateDestroyed:
		return machines.StateDestroyed
	case m.Spec.Destroy != nil:
		return machines.StateDestroying
	case s == "":
		return machines.StateCreating
	default:
		return machines.State(s)
	}
}

// FromImage renders a resolved image.
func FromImage(i root.Image) machines.ImageRef {
	labels := i.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	return machines.ImageRef{Registry: i.Registry, Repository: i.Repository, Tag: i.Tag, Digest: string(i.Digest), Labels: labels}
}

// FromEvents renders the newest limit events.
func FromEvents(events []root.Event, limit int) []machines.Event {
	out := make([]machines.Event, 0, min(len(events), limit))
	for _, e := range events[:min(len(events), limit)] {
		event := machines.Event{ID: e.ID, Type: e.Type, Status: string(e.Status), Source: e.Source, Timestamp: e.At.UnixMilli(), Reason: e.Reason}
		if x := e.Exit; x != nil {
			event.Request = &machines.EventRequest{RestartCount: e.Count, ExitEvent: &machines.ExitEvent{
				ExitCode: x.Code, GuestExitCode: x.Code, GuestSignal: x.Signal, Signal: x.Signal,
				OOMKilled: x.OOMKilled, RequestedStop: x.RequestedStop, Restarting: x.Restarting,
				ExitedAt: x.At.UTC(), Error: x.Error,
			}}
		}
		out = append(out, event)
	}
	return out
}

// FromLease renders a lease for its holder.
func FromLease(l *root.Lease) machines.Lease {
	return machines.Lease{Nonce: l.Nonce, ExpiresAt: l.ExpiresAt.Unix(), Owner: l.Owner, Description: l.Description, Version: string(l.Version)}
}

// FromHeldLease renders a lease for everybody else.
func FromHeldLease(l *root.Lease) *machines.HeldLease {
	return &machines.HeldLease{Description: l.Description, ExpiresAt: l.ExpiresAt.Unix(), Owner: l.Owner}
}
