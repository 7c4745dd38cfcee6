package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/textproto"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

// Parsed is a machine config as a client sent it.
type Parsed struct {
	Config   root.Config // with defaults, validated
	Source   []byte      // what was sent, compacted; see MarshalConfig
	Warnings []string    // members that are kept but not acted upon
}

// ParseConfig reads a machine config. Its errors name the member: kind Invalid
// for what can never work, Unimplemented for what is known and not built yet.
func ParseConfig(raw json.RawMessage) (Parsed, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return Parsed{}, root.Errorf(root.Invalid, "config is missing: send at least {\"config\": {\"image\": \"...\"}}")
	}
	var c machines.Config
	if err := decode(raw, &c); err != nil {
		return Parsed{}, jsonError("config", raw, err)
	}
	if err := refuse(&c); err != nil {
		return Parsed{}, err
	}
	cfg, err := toConfig(&c)
	if err != nil {
		return Parsed{}, err
	}
	if err := cfg.Validate(); err != nil {
		return Parsed{}, err
	}
	var source bytes.Buffer
	if err := json.Compact(&source, raw); err != nil {
		return Parsed{}, root.Errorf(root.Invalid, "config is not valid JSON: %v", err)
	}
	return Parsed{Config: cfg, Source: source.Bytes(), Warnings: warnings(&c)}, nil
}

// Decode reads one JSON document into v, with nothing behind it; errors have
// kind Invalid and name the member.
func Decode(data []byte, v any) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return root.Errorf(root.Invalid, "the request has no body: send a JSON object")
	}
	if err := decode(data, v); err != nil {
		return jsonError("", data, err)
	}
	return nil
}

func decode(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON document")
	}
	return nil
}

// jsonError makes an error of the JSON package readable: what member, what
// was wanted. prefix is the path at which the document stands.
func jsonError(prefix string, raw []byte, err error) error {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		path := joinPath(prefix, te.Field)
		if path == "" {
			path = "the request body"
		}
		return root.Errorf(root.Invalid, "%s: want %s, got %s", path, typeName(te), strings.TrimSuffix(te.Value, " "))
	}
	if se, ok := errors.AsType[*json.SyntaxError](err); ok {
		return root.Errorf(root.Invalid, "%s is not valid JSON: %v (at byte %d)", orBody(prefix), se, se.Offset)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return root.Errorf(root.Invalid, "%s is not valid JSON: it ends too early", orBody(prefix))
	}
	if path, err := blame(prefix, raw); err != nil {
		return root.Errorf(root.Invalid, "%s: %v", path, err)
	}
	return root.Errorf(root.Invalid, "%s: %v", orBody(prefix), err)
}

func orBody(prefix string) string {
	if prefix == "" {
		return "the request body"
	}
	return prefix
}

func joinPath(prefix, field string) string {
	if prefix == "" || field == "" {
		return prefix + field
	}
	return prefix + "." + field
}

func typeName(te *json.UnmarshalTypeError) string {
	switch te.Type.Kind().String() {
	case "string":
		return "a string"
	case "bool":
		return "true or false"
	case "struct", "map":
		return "an object"
	case "slice":
		return "a list"
	}
	return "a whole number"
}

// odd lists the members whose types read several forms; the JSON package
// does not say where such a type failed.
var odd = map[string]func() any{
	"interval":        func() any { return new(machines.Duration) },
	"timeout":         func() any { return new(machines.Duration) },
	"grace_period":    func() any { return new(machines.Duration) },
	"auto_stop_after": func() any { return new(machines.Duration) },
	"suspend_for":     func() any { return new(machines.Duration) },
	"autostop":        func() any { return new(machines.Autostop) },
	"persist":         func() any { return new(machines.Persist) },
	"persist_rootfs":  func() any { return new(machines.Persist) },
	"signal":          func() any { return new(machines.Signal) },
}

// blame finds the member that one of the odd types refused.
func blame(path string, raw []byte) (string, error) {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) == nil {
		for _, key := range slices.Sorted(maps.Keys(object)) {
			at := joinPath(path, key)
			if v, ok := odd[strings.ToLower(key)]; ok {
				if err := json.Unmarshal(object[key], v()); err != nil {
					return at, err
				}
			}
			if at, err := blame(at, object[key]); err != nil {
				return at, err
			}
		}
		return path, nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		for i, item := range list {
			if at, err := blame(fmt.Sprintf("%s[%d]", path, i), item); err != nil {
				return at, err
			}
		}
	}
	return path, nil
}

func toConfig(c *machines.Config) (root.Config, error) {
	cfg := root.Config{
		Image:       c.Image,
		Env:         c.Env,
		Init:        root.Init{Exec: c.Init.Exec, Entrypoint: c.Init.Entrypoint, Cmd: c.Init.Cmd, TTY: c.Init.TTY},
		Swap:        mib(c.Init.SwapSizeMB),
		Metadata:    metadata(c.Metadata),
		AutoDestroy: c.AutoDestroy,
		Restart:     root.Restart{Policy: root.RestartOnFailure, MaxRetries: root.MaxRetries},
		Stop:        root.Stop{Signal: root.DefaultStopSignal, Timeout: root.DefaultStopTimeout},
		Persist:     root.PersistNever,
	}
	var err error
	if cfg.Guest, err = toGuest(c); err != nil {
		return root.Config{}, err
	}
	if g := c.Guest; g != nil && g.PersistRootFS != "" {
		cfg.Persist = root.Persist(g.PersistRootFS)
	}
	if r := c.RootFS; r != nil && r.Persist != "" {
		cfg.Persist = root.Persist(r.Persist)
	}
	if r := c.Restart; r != nil {
		if r.Policy != "" {
			cfg.Restart.Policy = r.Policy
		}
		if r.MaxRetries != 0 {
			cfg.Restart.MaxRetries = r.MaxRetries
		}
	}
	if s := c.StopConfig; s != nil {
		if s.Signal != "" {
			cfg.Stop.Signal = s.Signal
		}
		if s.Timeout != 0 {
			cfg.Stop.Timeout = time.Duration(s.Timeout)
		}
	}
	for i, s := range c.Services {
		service, err := toService(i, s, c.DisableAutostart)
		if err != nil {
			return root.Config{}, err
		}
		cfg.Services = append(cfg.Services, service)
	}
	for name, check := range c.Checks {
		if cfg.Checks == nil {
			cfg.Checks = make(map[string]root.Check, len(c.Checks))
		}
		if err := checkCheck("config.checks."+clip(name), check); err != nil {
			return root.Config{}, err
		}
		cfg.Checks[name] = toCheck(check)
	}
	for _, s := range c.Statics {
		cfg.Statics = append(cfg.Statics, root.Static{GuestPath: s.GuestPath, URLPrefix: s.URLPrefix, IndexDocument: s.IndexDocument})
	}
	for i, f := range c.Files {
		file, err := toFile(i, f)
		if err != nil {
			return root.Config{}, err
		}
		cfg.Files = append(cfg.Files, file)
	}
	if d := c.DNS; d != nil {
		cfg.DNS = root.DNS{SkipRegistration: d.SkipRegistration, Nameservers: d.Nameservers, Searches: d.Searches, Hostname: d.Hostname}
		for _, o := range d.Options {
			if o.Value != "" {
				o.Name += ":" + o.Value
			}
			cfg.DNS.Options = append(cfg.DNS.Options, o.Name)
		}
	}
	if len(c.Processes) == 1 {
		p := c.Processes[0]
		cfg.Process = &root.Process{Exec: p.Exec, Entrypoint: p.Entrypoint, Cmd: p.Cmd, User: p.User, Env: p.Env, NoSecrets: p.IgnoreAppSecrets}
		if cfg.Process.Secrets, err = toProcessSecrets(p.Secrets); err != nil {
			return root.Config{}, err
		}
	}
	return cfg, nil
}

// metadata drops keys without value: that is how clients remove one.
func metadata(m map[string]string) map[string]string {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(_, v string) bool { return v == "" })
	return m
}

func toGuest(c *machines.Config) (root.Guest, error) {
	guest := root.DefaultGuest()
	if c.Guest == nil {
		if c.Size == "" {
			return guest, nil
		}
		return preset(c.Size)
	}
	if c.Guest.CPUKind != "" {
		guest.CPUKind = c.Guest.CPUKind
	}
	if c.Guest.CPUs != 0 {
		guest.CPUs = c.Guest.CPUs
	}
	guest.Memory = mib(c.Guest.MemoryMB)
	if guest.Memory == 0 {
		guest.Memory = leastMemory(guest)
	}
	return guest, nil
}

// preset reads a deprecated size: "shared-cpu-2x", "performance-1x".
func preset(size string) (root.Guest, error) {
	bad := root.Errorf(root.Invalid, "config.size: %q is not a size such as shared-cpu-1x or performance-2x", clip(size))
	guest := root.Guest{CPUKind: "performance"}
	count, ok := strings.CutPrefix(size, "performance-")
	if !ok {
		guest.CPUKind = "shared"
		if count, ok = strings.CutPrefix(size, "shared-cpu-"); !ok {
			return guest, bad
		}
	}
	if n, err := fmt.Sscanf(count, "%dx", &guest.CPUs); n != 1 || err != nil || count != fmt.Sprintf("%dx", guest.CPUs) || guest.CPUs > 1024 {
		return guest, bad
	}
	guest.Memory = leastMemory(guest)
	return guest, nil
}

func leastMemory(g root.Guest) root.Bytes {
	cpus := root.Bytes(min(max(g.CPUs, 1), 1024)) // out of range is Validate's to refuse
	if g.CPUKind == "performance" {
		return cpus * 2048 * root.MiB
	}
	return cpus * 256 * root.MiB
}

// mib makes a size of a number of mebibytes; absurd numbers stay absurd
// instead of wrapping around.
func mib(n int) root.Bytes {
	const most = 1 << 40
	return root.Bytes(min(max(n, -most), most)) * root.MiB
}

func toService(i int, s machines.Service, noAutostart bool) (root.Service, error) {
	service := root.Service{
		Protocol:     s.Protocol,
		InternalPort: s.InternalPort,
		Concurrency:  root.Concurrency{Type: "connections", Soft: root.DefaultSoftLimit},
		Autostop:     root.AutostopOff,
		Autostart:    !noAutostart && (s.Autostart == nil || *s.Autostart),
		MinRunning:   s.MinRunning,
		StopAfter:    root.DefaultStopAfter,
		SuspendFor:   root.DefaultSuspendFor,
	}
	if s.Autostop != machines.AutostopUnset {
		service.Autostop = root.Autostop(s.Autostop)
	}
	if d := s.AutoStopAfter; d != nil && *d != 0 {
		service.StopAfter = time.Duration(*d)
	}
	if s.SuspendFor != nil {
		service.SuspendFor = time.Duration(*s.SuspendFor)
	}
	if c := s.Concurrency; c != nil {
		if c.Type != "" {
			service.Concurrency.Type = c.Type
		}
		if c.HardLimit != 0 {
			service.Concurrency.Hard = c.HardLimit
			service.Concurrency.Soft = min(service.Concurrency.Soft, c.HardLimit)
		}
		if c.SoftLimit != 0 {
			service.Concurrency.Soft = c.SoftLimit
		}
	}
	for j, p := range s.Ports {
		port := root.Port{Port: p.Port, Handlers: p.Handlers, ForceHTTPS: p.ForceHTTPS}
		if p.Port == 0 && (p.StartPort != 0 || p.EndPort != 0) {
			port.Port, port.End = p.StartPort, p.EndPort
			if port.End == 0 {
				return service, root.Errorf(root.Invalid, "config.services[%d].ports[%d].end_port is missing", i, j)
			}
		}
		if p.Port != 0 && (p.StartPort != 0 || p.EndPort != 0) {
			return service, root.Errorf(root.Invalid, "config.services[%d].ports[%d]: use port, or start_port and end_port, not both", i, j)
		}
		port.HTTP = toHTTPOptions(p.HTTPOptions)
		if t := p.TLSOptions; t != nil {
			port.TLS = root.TLSOptions{ALPN: t.ALPN, Versions: t.Versions, DefaultSelfSigned: t.DefaultSelfSigned}
		}
		service.Ports = append(service.Ports, port)
	}
	for j, check := range s.Checks {
		if err := checkCheck(fmt.Sprintf("config.services[%d].checks[%d]", i, j), check); err != nil {
			return service, err
		}
		c := toCheck(check)
		c.Readiness = false // it gates its service anyway
		if c.Port == 0 {
			c.Port = s.InternalPort
		}
		service.Checks = append(service.Checks, c)
	}
	return service, nil
}

func toHTTPOptions(o *machines.HTTPOptions) root.HTTPOptions {
	if o == nil {
		return root.HTTPOptions{}
	}
	out := root.HTTPOptions{Compress: o.Compress, IdleTimeout: seconds(o.IdleTimeout)}
	if r := o.Response; r != nil {
		out.Pristine = r.Pristine
		for name, values := range r.Headers {
			if values == nil { // null is as good as absent
				continue
			}
			if out.Headers == nil {
				out.Headers = make(map[string][]string, len(r.Headers))
			}
			out.Headers[textproto.CanonicalMIMEHeaderKey(name)] = values
		}
	}
	return out
}

// seconds makes a duration of a number of seconds; absurd numbers stay absurd
// instead of wrapping around.
func seconds(n int) time.Duration {
	const most = 1 << 30
	return time.Duration(min(max(n, -most), most)) * time.Second
}

// Values of a check's members.
const (
	kindReadiness     = "readiness"
	kindInformational = "informational"
	protocolHTTP      = "http"
	protocolHTTPS     = "https"
)

func checkCheck(at string, c machines.Check) error {
	switch {
	case c.Kind != "" && c.Kind != kindReadiness && c.Kind != kindInformational:
		return root.Errorf(root.Invalid, "%s.kind: %q is not one of informational, readiness", at, clip(c.Kind))
	case c.Protocol != "" && c.Protocol != protocolHTTP && c.Protocol != protocolHTTPS:
		return root.Errorf(root.Invalid, "%s.protocol: %q is not one of http, https", at, clip(c.Protocol))
	}
	return nil
}

func toCheck(c machines.Check) root.Check {
	check := root.Check{
		Type: c.Type, Port: c.Port, Path: c.Path, Method: c.Method,
		Interval: time.Duration(c.Interval), Timeout: time.Duration(c.Timeout), Grace: time.Duration(c.GracePeriod),
		Readiness: c.Kind == kindReadiness, TLS: c.Protocol == protocolHTTPS,
		TLSSkipVerify: c.TLSSkipVerify, TLSServerName: c.TLSServerName, RestartLimit: c.RestartLimit,
	}
	for _, h := range c.Headers {
		if check.Headers == nil {
			check.Headers = make(map[string][]string)
		}
		check.Headers[h.Name] = append(check.Headers[h.Name], h.Values...)
	}
	return check
}

func toFile(i int, f machines.File) (root.File, error) {
	file := root.File{GuestPath: f.GuestPath, Mode: f.Mode}
	sources := 0
	for _, s := range []*string{f.RawValue, f.SecretName, f.ImageConfig} {
		if s != nil {
			sources++
		}
	}
	switch {
	case sources > 1:
		return file, root.Errorf(root.Invalid, "config.files[%d]: use one of raw_value, secret_name, image_config", i)
	case f.SecretName != nil && *f.SecretName != "":
		file.Secret = *f.SecretName
	case f.ImageConfig != nil && *f.ImageConfig != "":
		file.ImageConfig = *f.ImageConfig
	case f.RawValue != nil:
		content, err := base64.StdEncoding.DecodeString(*f.RawValue)
		if err != nil {
			return file, root.Errorf(root.Invalid, "config.files[%d].raw_value is not base64: %v", i, err)
		}
		file.Content = content
	default:
		return file, root.Errorf(root.Invalid, "config.files[%d].raw_value is missing: send the content in base64", i)
	}
	return file, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
