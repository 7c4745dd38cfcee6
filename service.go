package roost

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Service is a port of a machine that the proxy serves.
type Service struct {
	Protocol     string // "tcp"; "udp" is not built yet
	InternalPort int
	Ports        []Port
	Concurrency  Concurrency
	Autostop     Autostop
	Autostart    bool
	MinRunning   int           // floor for the primary region
	StopAfter    time.Duration // idle time before autostop acts; DefaultStopAfter if unset
	SuspendFor   time.Duration // a suspended machine is stopped after this; 0 never
	Checks       []Check
}

// Port is an outside port of a service.
type Port struct {
	Port       int // the first, and the only one unless End is larger
	End        int
	Handlers   []string // "http", "tls"
	ForceHTTPS bool
	HTTP       HTTPOptions
	TLS        TLSOptions
}

// HTTPOptions are what the proxy does to the answers of a port.
type HTTPOptions struct {
	// Headers are set on every answer, in place of the app's; no values
	// remove the header. Names are in canonical form.
	Headers  map[string][]string
	Pristine bool // the proxy adds no headers of its own
	Compress *bool
	// IdleTimeout closes a connection without traffic; 0 is the default.
	IdleTimeout time.Duration
}

// TLSOptions are how a port terminates TLS.
type TLSOptions struct {
	ALPN              []string // none: "h2", "http/1.1"
	Versions          []string // none: "TLSv1.2", "TLSv1.3"
	DefaultSelfSigned bool
}

// Covers reports whether the port or range contains port.
func (p Port) Covers(port int) bool {
	return port == p.Port || port > p.Port && port <= p.End
}

// HasHandler reports whether the port lists the handler.
func (p Port) HasHandler(name string) bool {
	return slices.Contains(p.Handlers, name)
}

// Concurrency is how load on a service counts.
type Concurrency struct {
	Type string // "connections" or "requests"
	Soft int    // above it others are preferred; DefaultSoftLimit if unset
	Hard int    // never exceeded; 0 is unlimited
}

// Autostop is what happens to a machine in excess.
type Autostop string

// The values of Autostop.
const (
	AutostopOff     Autostop = "off"
	AutostopStop    Autostop = "stop"
	AutostopSuspend Autostop = "suspend"
)

// The defaults of a service.
const (
	DefaultSoftLimit  = 20
	DefaultStopAfter  = 5 * time.Minute
	DefaultSuspendFor = 24 * time.Hour
)

// maxIdleTimeout bounds HTTPOptions.IdleTimeout: no longer than a day.
const maxIdleTimeout = 24 * time.Hour

// PortFor returns the service's port entry that covers an outside port.
func (s *Service) PortFor(port int) (Port, bool) {
	for _, p := range s.Ports {
		if p.Covers(port) {
			return p, true
		}
	}
	return Port{}, false
}

func (s *Service) validate(i int) error {
	if s.Protocol != "tcp" {
		return Errorf(Invalid, "config.services[%d].protocol: %q is not supported: use \"tcp\"", i, clip(s.Protocol))
	}
	if s.InternalPort < 1 || s.InternalPort > 65535 {
		return Errorf(Invalid, "config.services[%d].internal_port: %d is not a port (1 to 65535)", i, s.InternalPort)
	}
	for j, p := range s.Ports {
		if p.Port < 1 || p.Port > 65535 || p.End > 65535 || p.End != 0 && p.End < p.Port {
			return Errorf(Invalid, "config.services[%d].ports[%d].port: %d is not a port (1 to 65535)", i, j, p.Port)
		}
		for _, h := range p.Handlers {
			switch h {
			case "http", "tls", "pg_tls", "proxy_proto", "tcp":
			default:
				return Errorf(Invalid, "config.services[%d].ports[%d].handlers: %q is not one of http, tls, pg_tls, proxy_proto", i, j, clip(h))
			}
		}
		if p.ForceHTTPS && !p.HasHandler("http") {
			return Errorf(Invalid, "config.services[%d].ports[%d].force_https needs the http handler", i, j)
		}
		if err := validateHeaders(fmt.Sprintf("config.services[%d].ports[%d].http_options.response.headers", i, j), p.HTTP.Headers); err != nil {
			return err
		}
		if p.HTTP.IdleTimeout < 0 || p.HTTP.IdleTimeout > maxIdleTimeout {
			return Errorf(Invalid, "config.services[%d].ports[%d].http_options.idle_timeout: %s is out of range (0 to %s)", i, j, p.HTTP.IdleTimeout, maxIdleTimeout)
		}
		for _, v := range p.TLS.Versions {
			if v != "TLSv1.2" && v != "TLSv1.3" {
				return Errorf(Invalid, "config.services[%d].ports[%d].tls_options.versions: %q is not one of TLSv1.2, TLSv1.3", i, j, clip(v))
			}
		}
		for _, name := range p.TLS.ALPN {
			if name == "" || len(name) > 255 { // RFC 7301, section 3.1
				return Errorf(Invalid, "config.services[%d].ports[%d].tls_options.alpn: %q is not the name of a protocol", i, j, clip(name))
			}
		}
	}
	switch s.Concurrency.Type {
	case "connections", "requests":
	default:
		return Errorf(Invalid, "config.services[%d].concurrency.type: %q is not one of connections, requests", i, clip(s.Concurrency.Type))
	}
	if c := s.Concurrency; c.Soft < 0 || c.Hard < 0 || c.Hard > 0 && c.Soft > c.Hard {
		return Errorf(Invalid, "config.services[%d].concurrency: soft_limit %d and hard_limit %d do not fit", i, c.Soft, c.Hard)
	}
	switch s.Autostop {
	case AutostopOff, AutostopStop, AutostopSuspend:
	default:
		return Errorf(Invalid, "config.services[%d].autostop: %q is not one of off, stop, suspend", i, clip(string(s.Autostop)))
	}
	if s.MinRunning < 0 {
		return Errorf(Invalid, "config.services[%d].min_machines_running: %d must not be negative", i, s.MinRunning)
	}
	if s.StopAfter < 0 || s.SuspendFor < 0 {
		return Errorf(Invalid, "config.services[%d]: auto_stop_after and suspend_for must not be negative", i)
	}
	return nil
}

// validateHeaders refuses what would break a message apart.
func validateHeaders(at string, headers map[string][]string) error {
	for name, values := range headers {
		if !token(name) {
			return Errorf(Invalid, "%s: %q is not the name of a header", at, clip(name))
		}
		if slices.ContainsFunc(values, func(v string) bool { return strings.ContainsAny(v, "\r\n\x00") }) {
			return Errorf(Invalid, "%s: the value of %s must be one line", at, clip(name))
		}
	}
	return nil
}
