package roost

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The types of a check.
const (
	CheckHTTP = "http"
	CheckTCP  = "tcp"
)

// The defaults of a check, and its bounds: what is beyond is taken for the bound.
const (
	DefaultCheckInterval = 15 * time.Second
	DefaultCheckTimeout  = 2 * time.Second
	DefaultCheckGrace    = time.Second // after a start, in which failures do not count
	MinCheckInterval     = 2 * time.Second
	MaxCheckTimeout      = 60 * time.Second
)

// NamedCheck is a check of a machine as it is run: with the name that its
// result has, and with every default filled in.
type NamedCheck struct {
	Check
	Name string
	// Service is the index of the service whose traffic the check gates, -1 of
	// a top-level one: that gates all services with Readiness, else none.
	Service int
	// Secure says that the service sends plain requests to https: the app may
	// do so, too, unless it is told that the request came that way.
	Secure bool
}

// Gates reports whether a machine that fails the check gets no traffic of the
// service with that index.
func (c *NamedCheck) Gates(service int) bool {
	return c.Service == service || c.Service < 0 && c.Readiness
}

// NamedChecks are the checks of c: those of services, in their order, then the
// top-level ones by name.
func (c *Config) NamedChecks() []NamedCheck {
	var list []NamedCheck
	for i := range c.Services {
		s := &c.Services[i]
		secure := slices.ContainsFunc(s.Ports, func(p Port) bool { return p.ForceHTTPS })
		for _, check := range s.Checks {
			n := NamedCheck{Check: check.withDefaults(s.InternalPort), Service: i, Secure: secure}
			n.Name = fmt.Sprintf("servicecheck-%02d-%s-%d", len(list), n.Type, n.Port)
			list = append(list, n)
		}
	}
	port := 0
	if len(c.Services) > 0 {
		port = c.Services[0].InternalPort
	}
	for _, name := range slices.Sorted(maps.Keys(c.Checks)) {
		check := c.Checks[name]
		list = append(list, NamedCheck{Check: check.withDefaults(port), Name: name, Service: -1})
	}
	return list
}

func (c Check) withDefaults(port int) Check {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&c.Interval, DefaultCheckInterval)
	or(&c.Timeout, DefaultCheckTimeout)
	or(&c.Grace, DefaultCheckGrace)
	c.Interval, c.Timeout = max(c.Interval, MinCheckInterval), min(c.Timeout, MaxCheckTimeout)
	if c.Port == 0 {
		c.Port = port
	}
	if c.Type != CheckHTTP {
		return c
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.Method = strings.ToUpper(c.Method); c.Method == "" {
		c.Method = "GET"
	}
	return c
}

// maxCheckName keeps names printable in a table.
const maxCheckName = 100

// validateChecks says what is wrong with the checks of services and the
// machine's own.
func (c *Config) validateChecks() error {
	port := 0
	for i := range c.Services {
		s := &c.Services[i]
		for j := range s.Checks {
			if err := s.Checks[j].validate(fmt.Sprintf("config.services[%d].checks[%d]", i, j), s.InternalPort); err != nil {
				return err
			}
		}
	}
	if len(c.Services) > 0 {
		port = c.Services[0].InternalPort
	}
	for _, name := range slices.Sorted(maps.Keys(c.Checks)) {
		if name == "" || len(name) > maxCheckName || strings.ContainsFunc(name, inPath) {
			return Errorf(Invalid, "config.checks: %q cannot be a check's name", clip(name))
		}
		check := c.Checks[name]
		if err := check.validate("config.checks."+name, port); err != nil {
			return err
		}
	}
	return nil
}

// validate says what is wrong with a check. At is its place in the config,
// port the one it has without naming one.
func (c *Check) validate(at string, port int) error {
	switch {
	case c.Type != CheckHTTP && c.Type != CheckTCP:
		return Errorf(Invalid, "%s.type: %q is not one of http, tcp", at, clip(c.Type))
	case c.Port < 0 || c.Port > 65535:
		return Errorf(Invalid, "%s.port: %d is not a port (1 to 65535)", at, c.Port)
	case c.Port == 0 && port == 0:
		return Errorf(Invalid, "%s.port is missing: name the port that the check connects to", at)
	case c.Interval < 0 || c.Timeout < 0 || c.Grace < 0:
		return Errorf(Invalid, "%s: interval, timeout and grace_period must not be negative", at)
	case c.Path != "" && (!strings.HasPrefix(c.Path, "/") || strings.ContainsFunc(c.Path, inPath)):
		return Errorf(Invalid, "%s.path: %q must begin with a slash, without spaces", at, clip(c.Path))
	case c.Method != "" && !token(c.Method):
		return Errorf(Invalid, "%s.method: %q is not a method such as GET", at, clip(c.Method))
	case c.RestartLimit < 0:
		return Errorf(Invalid, "%s.restart_limit: %d must not be negative", at, c.RestartLimit)
	}
	for name, values := range c.Headers {
		if !token(name) {
			return Errorf(Invalid, "%s.headers: %q is not the name of a header", at, clip(name))
		}
		if slices.ContainsFunc(values, func(v string) bool { return strings.ContainsAny(v, "\r\n\x00") }) {
			return Errorf(Invalid, "%s.headers: the value of %s must be one line", at, clip(name))
		}
	}
	return nil
}

// inPath reports whether r may not stand in a request's path.
func inPath(r rune) bool { return r <= ' ' || r == 0x7f }

// token reports whether s is a token in the sense of RFC 9110, section 5.6.2:
// the name of a header, a method.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}
