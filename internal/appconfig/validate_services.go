package appconfig

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

// served checks which groups a service is for.
func (v *validator) served(section, what string, processes []string) {
	if len(processes) == 0 && len(v.c.Processes) > 0 {
		groups := v.c.Groups()
		v.add(section, Problem{
			Message: what + " does not say which process group it is for",
			Hint:    fmt.Sprintf("add processes = [%q]; [processes] has %s", v.c.DefaultGroup(), strings.Join(groups, ", ")),
		})
	}
	v.groups(section, processes)
}

func (v *validator) httpService() {
	s := v.c.HTTPService
	if s == nil {
		return
	}
	const at = "http_service"
	v.served(at, "[http_service]", s.Processes)
	if s.InternalPort == 0 {
		v.errorf(at+".internal_port", "[http_service] needs internal_port: the port on which the app listens")
	} else {
		v.port(at+".internal_port", s.InternalPort)
	}
	v.autoscale(at, &s.Autoscale)
	v.concurrency(at, s.Concurrency)
	v.tls(at, s.TLSOptions)
	v.http(at, s.HTTPOptions)
	for i := range s.Checks {
		v.serviceCheck(index(at+".checks", i), &s.Checks[i])
	}
	v.machineChecks(at+".machine_checks", s.MachineChecks)
}

func (v *validator) service(i int) {
	s, at := &v.c.Services[i], index("services", i)
	v.served(at, "this service", s.Processes)
	v.oneOf(at+".protocol", "protocol", s.Protocol, "tcp", "udp")
	if s.InternalPort == 0 {
		v.errorf(at+".internal_port", "a service needs internal_port: the port on which the app listens")
	} else {
		v.port(at+".internal_port", s.InternalPort)
	}
	if len(s.Ports) == 0 {
		v.warnf(at, "this service has no ports: it cannot be reached from outside")
	}
	v.autoscale(at, &s.Autoscale)
	v.concurrency(at, s.Concurrency)
	for j := range s.Ports {
		v.servicePort(index(at+".ports", j), &s.Ports[j])
	}
	for j := range s.TCPChecks {
		v.serviceCheck(index(at+".tcp_checks", j), &s.TCPChecks[j])
	}
	for j := range s.HTTPChecks {
		v.serviceCheck(index(at+".http_checks", j), &s.HTTPChecks[j])
	}
	v.machineChecks(at+".machine_checks", s.MachineChecks)
}

func (v *validator) servicePort(at string, p *Port) {
	first, last := value(p.StartPort), value(p.EndPort)
	switch {
	case p.Port != nil && (p.StartPort != nil || p.EndPort != nil):
		v.errorf(at, "use port, or start_port and end_port, not both")
	case p.Port != nil:
		v.port(at+".port", *p.Port)
	case p.StartPort == nil || p.EndPort == nil:
		v.errorf(at, "an entry of ports needs port, or start_port and end_port")
	default:
		v.port(at+".start_port", first)
		v.port(at+".end_port", last)
		if first > last {
			v.errorf(at+".start_port", "start_port %d is behind end_port %d", first, last)
		}
	}
	for j, h := range p.Handlers {
		v.oneOf(index(at+".handlers", j), "handler", h, "http", "tls", "pg_tls", "proxy_proto", "tcp")
	}
	if p.ForceHTTPS && !slices.Contains(p.Handlers, "http") {
		v.errorf(at+".force_https", "force_https needs the http handler")
	}
	v.tls(at, p.TLSOptions)
	v.http(at, p.HTTPOptions)
	if o := p.ProxyProtoOptions; o != nil {
		v.oneOf(at+".proxy_proto_options.version", "version", o.Version, "v1", "v2")
	}
}

func (v *validator) autoscale(at string, a *Autoscale) {
	v.least(at+".min_machines_running", "min_machines_running", value(a.MinRunning), 0)
	if value(a.MinRunning) > 0 && (a.Autostop == "" || a.Autostop == "off") {
		v.warnf(at+".min_machines_running", "min_machines_running has no effect while auto_stop_machines is off")
	}
	v.timeout(at+".auto_stop_after", "auto_stop_after", a.AutoStopAfter, longest)
	v.timeout(at+".suspend_for", "suspend_for", a.SuspendFor, longest)
	if a.AutoStopAfter != nil && *a.AutoStopAfter == 0 {
		v.errorf(at+".auto_stop_after", "auto_stop_after must be more than 0s; auto_stop_machines = \"off\" keeps machines running")
	}
}

func (v *validator) concurrency(at string, c *Concurrency) {
	if c == nil {
		return
	}
	at += ".concurrency"
	v.oneOf(at+".type", "concurrency type", c.Type, "connections", "requests")
	v.least(at+".soft_limit", "soft_limit", c.SoftLimit, 0)
	v.least(at+".hard_limit", "hard_limit", c.HardLimit, 0)
	if c.HardLimit > 0 && c.SoftLimit > c.HardLimit {
		v.errorf(at+".soft_limit", "soft_limit %d is above hard_limit %d", c.SoftLimit, c.HardLimit)
	}
}

func (v *validator) tls(at string, o *TLSOptions) {
	if o == nil {
		return
	}
	for i, version := range o.Versions {
		v.oneOf(index(at+".tls_options.versions", i), "TLS version", version, "TLSv1.2", "TLSv1.3")
	}
	for i, name := range o.ALPN {
		if name == "" || len(name) > 255 {
			v.errorf(index(at+".tls_options.alpn", i), "%q is not the name of a protocol", clip(name))
		}
	}
}

func (v *validator) http(at string, o *HTTPOptions) {
	if o == nil {
		return
	}
	at += ".http_options"
	const day = 24 * 60 * 60
	v.between(at+".idle_timeout", "idle_timeout", o.IdleTimeout, 0, day)
	v.between(at+".headers_read_timeout", "headers_read_timeout", o.HeadersReadTimeout, 0, day)
	if o.Response == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(o.Response.Headers)) {
		at := join(at+".response.headers", name)
		values, ok := headerValues(o.Response.Headers[name])
		switch {
		case !ok:
			v.errorf(at, "header %s: want false, a string or a list of strings", clip(name))
		case !token(name):
			v.errorf(at, "%q is not the name of a header", clip(name))
		case slices.ContainsFunc(values, lineBreak):
			v.errorf(at, "the value of header %s must be one line", clip(name))
		}
	}
}

// token reports whether s can be a header's name: RFC 9110, section 5.6.2.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func lineBreak(s string) bool { return strings.ContainsAny(s, "\r\n\x00") }

func (v *validator) serviceCheck(at string, c *Check) {
	v.check(at, c)
	if c.Port != nil {
		v.port(at+".port", *c.Port)
	}
	if d := c.Interval; d != nil && *d >= 0 && *d < Duration(root.MinCheckInterval) {
		v.warnf(at+".interval", "interval: %s is less than %s, which is used in place of it", *d, Duration(root.MinCheckInterval))
	}
	if d := c.Timeout; d != nil && *d > Duration(root.MaxCheckTimeout) {
		v.warnf(at+".timeout", "timeout: %s is more than %s, which is used in place of it", *d, Duration(root.MaxCheckTimeout))
	}
	if len(c.Processes) > 0 {
		v.warnf(at+".processes", "processes has no effect here: the check belongs to its service")
	}
}

// check is what all checks have in common.
func (v *validator) check(at string, c *Check) {
	v.oneOf(at+".protocol", "protocol", c.Protocol, "http", "https")
	v.oneOf(at+".kind", "kind", c.Kind, "informational", "readiness")
	for _, d := range []struct {
		key   string
		value *Duration
	}{{"interval", c.Interval}, {"timeout", c.Timeout}, {"grace_period", c.GracePeriod}} {
		if d.value != nil && *d.value < 0 {
			v.errorf(at+"."+d.key, "%s: %s must not be negative", d.key, *d.value)
		}
	}
	if c.Path != "" && (!strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, " \t\r\n")) {
		v.errorf(at+".path", "path %q must begin with a slash, without spaces", clip(c.Path))
	}
	if c.Method != "" && !token(c.Method) {
		v.errorf(at+".method", "method %q is not one such as GET", clip(c.Method))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		if !token(name) || lineBreak(c.Headers[name]) {
			v.errorf(join(at+".headers", name), "%q is not a header that can be sent", clip(name))
		}
	}
	v.least(at+".restart_limit", "restart_limit", c.RestartLimit, 0)
}

func (v *validator) ownCheck(name string) {
	at, c := join("checks", name), v.c.Checks[name]
	if c.Type != "http" && c.Type != "tcp" {
		v.errorf(at+".type", "check %q needs type \"http\" or \"tcp\"", clip(name))
	}
	v.check(at, &c)
	v.groups(at, c.Processes)
	if c.Interval != nil && *c.Interval >= 0 && *c.Interval < Duration(root.MinCheckInterval) {
		v.errorf(at+".interval", "interval: %s is less than %s", *c.Interval, root.MinCheckInterval)
	}
	if c.Timeout != nil && *c.Timeout > Duration(root.MaxCheckTimeout) {
		v.errorf(at+".timeout", "timeout: %s is more than %s", *c.Timeout, Duration(root.MaxCheckTimeout))
	}
	switch {
	case c.Port != nil:
		v.port(at+".port", *c.Port)
	default:
		for _, group := range v.c.Groups() {
			if h := v.c.HTTPService; v.c.in(c.Processes, group) && (h == nil || !v.c.in(h.Processes, group)) {
				v.errorf(at, "check %q needs a port: group %q has no [http_service] whose port it could use", clip(name), clip(group))
				break
			}
		}
	}
}

// gates warns of checks that look as if a deploy waited for them, where none is
// there that gates traffic.
func (v *validator) gates() {
	c := v.c
	for _, name := range slices.Sorted(maps.Keys(c.Checks)) {
		if c.Checks[name].Kind != "" {
			continue
		}
		for _, group := range c.Groups() {
			services := c.services(group)
			if !c.in(c.Checks[name].Processes, group) || len(services) == 0 || slices.ContainsFunc(services, func(s machines.Service) bool { return len(s.Checks) > 0 }) {
				continue
			}
			v.add(join("checks", name), Problem{
				Message: fmt.Sprintf("check %q only informs: machines get traffic whatever it says", clip(name)), Warning: true,
				Hint: "a check of the service, such as [[http_service.checks]], or kind = \"readiness\" gates it; kind = \"informational\" says that this is meant",
			})
			break
		}
	}
}

func (v *validator) machineChecks(at string, checks []MachineCheck) {
	for i, c := range checks {
		at := index(at, i)
		if len(c.Command) == 0 {
			v.errorf(at, "a machine check needs command")
		}
		if c.KillSignal != "" && !slices.Contains(root.StopSignals, c.KillSignal) {
			v.errorf(at+".kill_signal", "kill_signal %q is not one of %s", clip(c.KillSignal), strings.Join(root.StopSignals, ", "))
		}
		v.timeout(at+".kill_timeout", "kill_timeout", c.KillTimeout, root.MaxStopTimeout)
	}
}

func (v *validator) serverless() {
	for i := range v.c.Serverless {
		s, at := &v.c.Serverless[i], index("serverless", i)
		switch len(s.Processes) {
		case 0:
			v.errorf(at, "[[serverless]] needs process: the process group whose machines answer")
		case 1:
			v.groups(at, s.Processes)
		default:
			v.errorf(at+".processes", "[[serverless]] sends requests to one process group: write one section for each")
		}
		if len(s.Paths) == 0 {
			v.errorf(at, "[[serverless]] needs paths, for example [\"/receipts/*\"]")
		}
		for j, p := range s.Paths {
			at := index(at+".paths", j)
			segments := strings.Split(p, "/")
			switch {
			case !strings.HasPrefix(p, "/") || strings.ContainsAny(p, " \t\r\n?#"):
				v.errorf(at, "path %q must begin with a slash, without spaces and query", clip(p))
			case slices.Contains(segments[:len(segments)-1], "**"):
				v.errorf(at, "path %q: ** may stand at the end only", clip(p))
			case slices.ContainsFunc(segments, func(s string) bool { return s != "*" && s != "**" && strings.Contains(s, "*") }):
				v.errorf(at, "path %q: * stands for a whole segment, ** at the end for any rest", clip(p))
			}
		}
		for j, m := range s.Methods {
			if !token(m) || strings.ToUpper(m) != m {
				v.errorf(index(at+".methods", j), "method %q is not one such as GET", clip(m))
			}
		}
		if s.InternalPort != 0 {
			v.port(at+".internal_port", s.InternalPort)
		}
		v.autoscale(at, &s.Autoscale)
		if len(s.Processes) == 1 && len(v.c.ownServices(s.Processes[0])) == 0 && v.c.HTTPService == nil && v.c.webService() == nil {
			v.errorf(at, "[[serverless]] needs a service that speaks HTTP: add [http_service] for the rest of the app")
		}
	}
}
