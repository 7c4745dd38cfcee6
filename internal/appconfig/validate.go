package appconfig

import (
	"encoding/base64"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
)

// validator collects what is wrong with a config.
type validator struct {
	c        *Config
	problems Problems
}

// validate finds everything that can never work, and what works otherwise than
// it seems.
func (c *Config) validate() Problems {
	v := validator{c: c}
	v.top()
	v.build()
	v.rollout()
	v.processes()
	v.httpService()
	for i := range c.Services {
		v.service(i)
	}
	v.serverless()
	for _, name := range slices.Sorted(maps.Keys(c.Checks)) {
		v.ownCheck(name)
	}
	v.machineChecks("machine_checks", c.MachineChecks)
	v.statics()
	v.files()
	v.mounts()
	for i := range c.VM {
		v.vm(index("vm", i), &c.VM[i])
		v.groups(index("vm", i), c.VM[i].Processes)
	}
	for i, r := range c.Restart {
		at := index("restart", i)
		if _, ok := restartPolicies[r.Policy]; !ok {
			v.errorf(at+".policy", "restart policy %q is not one of always, never, on-failure", clip(r.Policy))
		}
		v.least(at+".retries", "retries", r.Retries, 0)
		v.groups(at, r.Processes)
	}
	for i, m := range c.Metrics {
		v.port(index("metrics", i)+".port", m.Port)
		v.groups(index("metrics", i), m.Processes)
	}
	return v.problems
}

func (v *validator) add(at string, p Problem) {
	p.Position, p.Path = v.c.at(at), at
	v.problems = append(v.problems, p)
}

func (v *validator) errorf(at, format string, args ...any) {
	v.add(at, Problem{Message: fmt.Sprintf(format, args...)})
}

func (v *validator) warnf(at, format string, args ...any) {
	v.add(at, Problem{Message: fmt.Sprintf(format, args...), Warning: true})
}

func (v *validator) oneOf(at, what, value string, values ...string) {
	if value != "" && !slices.Contains(values, value) {
		v.errorf(at, "%s %q is not one of %s", what, clip(value), strings.Join(values, ", "))
	}
}

func (v *validator) least(at, what string, n, least int) {
	if n < least {
		v.errorf(at, "%s: %d is less than %d", what, n, least)
	}
}

func (v *validator) between(at, what string, n, least, most int) {
	if n < least || n > most {
		v.errorf(at, "%s: %d is out of range (%d to %d)", what, n, least, most)
	}
}

func (v *validator) port(at string, port int) { v.between(at, "port", port, 1, 65535) }

// command checks that a command line can be split into words.
func (v *validator) command(at, what, command string) {
	if _, err := split(command); err != nil {
		v.errorf(at, "%s: %v", what, err)
	}
}

// groups checks that the process groups that a section names exist.
func (v *validator) groups(section string, names []string) {
	all := v.c.Groups()
	for i, name := range names {
		if slices.Contains(all, name) {
			continue
		}
		at := index(section+".processes", i)
		p := Problem{Message: fmt.Sprintf("there is no process group %q", clip(name)), Hint: "[processes] has " + strings.Join(all, ", ")}
		if len(v.c.Processes) == 0 {
			p.Hint = "without [processes] the only one is \"app\""
		}
		if best := nearest(name, all); best != "" {
			p.Hint = fmt.Sprintf("did you mean %q?", best)
		}
		v.add(at, p)
	}
}

func (v *validator) top() {
	c := v.c
	if c.App != "" {
		if _, err := root.ParseAppName(c.App); err != nil {
			v.errorf("app", "%s", root.MessageOf(err))
		}
	}
	if c.KillSignal != "" && !slices.Contains(root.StopSignals, c.KillSignal) {
		v.errorf("kill_signal", "kill_signal %q is not one of %s", clip(c.KillSignal), strings.Join(root.StopSignals, ", "))
	}
	v.timeout("kill_timeout", "kill_timeout", c.KillTimeout, root.MaxStopTimeout)
	if c.SwapSizeMB != nil {
		v.between("swap_size_mb", "swap_size_mb", *c.SwapSizeMB, 0, 65536)
	}
	v.command("console_command", "console_command", c.ConsoleCommand)
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		at := join("env", name)
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(c.Env[name], 0):
			v.errorf(at, "%q cannot be an environment variable", clip(name))
		case strings.HasPrefix(name, "FLY_") && !slices.Contains(settableFly, name):
			v.errorf(at, "%s cannot be set: the platform sets the names that begin with FLY_", clip(name))
		}
	}
	if _, err := c.base(); err != nil {
		v.errorf("machine_config", "%s", root.MessageOf(err))
	}
	if c.Container != "" {
		v.warnf("container", "container has no effect: a machine runs one image")
	}
	if e := c.Experimental; e != nil {
		for key, on := range map[string]*bool{"enable_consul": e.EnableConsul, "enable_etcd": e.EnableEtcd} {
			if on != nil && *on {
				v.warnf("experimental."+key, "%s has no effect", key)
			}
		}
	}
}

// settableFly are the FLY_ names that apps may set: those that tools read to
// reach the API.
var settableFly = []string{"FLY_API_TOKEN", "FLY_API_HOSTNAME", "FLY_FLAPS_BASE_URL", "FLY_PROCESS_GROUP"}

// timeout checks a duration that may not be negative.
func (v *validator) timeout(at, what string, d *Duration, most time.Duration) {
	if d == nil {
		return
	}
	if *d < 0 || time.Duration(*d) > most {
		v.errorf(at, "%s: %s is out of range (0s to %s)", what, *d, Duration(most))
	}
}

// longest bounds durations that have no bound of their own: some years.
const longest = 100000 * time.Hour

func (v *validator) build() {
	b := v.c.Build
	if b == nil {
		return
	}
	var ways []string
	for _, way := range []struct {
		name string
		set  bool
	}{{"image", b.Image != ""}, {"dockerfile", b.Dockerfile != ""}, {"builder", b.Builder != ""}, {"builtin", b.Builtin != ""}, {"compose", b.Compose != nil}} {
		if way.set {
			ways = append(ways, way.name)
		}
	}
	if len(ways) > 1 {
		v.warnf("build", "[build] says %s: only the first counts", strings.Join(ways, " and "))
	}
	for _, way := range []string{"builder", "builtin", "compose"} {
		if len(ways) > 0 && ways[0] == way {
			v.warnf("build."+way, "build.%s is not supported: a deploy builds the Dockerfile in place of it", way)
		}
	}
	v.oneOf("build.compression", "compression", b.Compression, "gzip", "zstd")
	if n := b.CompressionLevel; n != nil {
		most := 9
		if b.Compression == "zstd" {
			most = 22
		}
		v.between("build.compression_level", "compression_level", *n, 0, most)
	}
}

// strategies in the order in which people should think of them.
var strategies = []string{string(root.StrategyRolling), string(root.StrategyBlueGreen), string(root.StrategyCanary), string(root.StrategyImmediate)}

func (v *validator) rollout() {
	r := v.c.Rollout
	if r == nil {
		return
	}
	v.oneOf("deploy.strategy", "strategy", r.Strategy, strategies...)
	if len(v.c.Mounts) > 0 {
		switch root.Strategy(r.Strategy) {
		case root.StrategyCanary:
			v.errorf("deploy.strategy", "strategy canary cannot be used with [mounts]: a volume has room for one machine")
		case root.StrategyBlueGreen:
			v.warnf("deploy.strategy", "strategy bluegreen needs a free volume for each new machine of [mounts]")
		}
	}
	if root.Strategy(r.Strategy) == root.StrategyBlueGreen && !v.anyCheck() {
		v.errorf("deploy.strategy", "strategy bluegreen needs a health check: without one nothing says when traffic may move")
	}
	if r.MaxUnavailable != nil && *r.MaxUnavailable <= 0 {
		v.errorf("deploy.max_unavailable", "max_unavailable: %v must be more than 0: a number of machines, or a share such as 0.33", *r.MaxUnavailable)
	}
	v.timeout("deploy.wait_timeout", "wait_timeout", r.WaitTimeout, longest)
	v.timeout("deploy.release_command_timeout", "release_command_timeout", r.ReleaseTimeout, longest)
	v.command("deploy.release_command", "release_command", r.ReleaseCommand)
	v.command("deploy.seed_command", "seed_command", r.SeedCommand)
	if r.ReleaseVM != nil {
		v.vm("deploy.release_command_vm", r.ReleaseVM)
	}
	if r.Webhook != "" && !strings.HasPrefix(r.Webhook, "https://") && !strings.HasPrefix(r.Webhook, "http://") {
		v.errorf("deploy.webhook", "webhook %q is not a URL", clip(r.Webhook))
	}
}

func (v *validator) anyCheck() bool {
	c := v.c
	if len(c.Checks) > 0 || c.HTTPService != nil && len(c.HTTPService.Checks) > 0 {
		return true
	}
	return slices.ContainsFunc(c.Services, func(s Service) bool { return len(s.TCPChecks)+len(s.HTTPChecks) > 0 })
}

// reservedGroups are those of machines that a deploy makes for itself.
var reservedGroups = []string{"fly_app_release_command", "fly_app_test_machine_command", "fly_app_console"}

func (v *validator) processes() {
	for _, name := range slices.Sorted(maps.Keys(v.c.Processes)) {
		at := join("processes", name)
		switch {
		case name == "":
			v.errorf(at, "a process group needs a name")
		case slices.Contains(reservedGroups, name):
			v.errorf(at, "%q is a name that deploys use for machines of their own: choose another", name)
		case len(name) > 63 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`"'\,/`, r) }):
			v.errorf(at, "%q cannot be the name of a process group", clip(name))
		}
		v.command(at, "the command of "+clip(name), v.c.Processes[name])
	}
}

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

func (v *validator) machineChecks(at string, checks []MachineCheck) {
	for i, c := range checks {
		at := index(at, i)
		if len(c.Command) == 0 {
			v.errorf(at, "a machine check needs command")
		}
		v.warnf(at, "machine_checks are not run yet")
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

func (v *validator) statics() {
	if n := len(v.c.Statics); n > root.MaxStatics {
		v.errorf(index("statics", root.MaxStatics), "%d statics are too many (at most %d)", n, root.MaxStatics)
	}
	seen := make(map[string]bool)
	for i, s := range v.c.Statics {
		at := index("statics", i)
		if !path.IsAbs(s.GuestPath) && s.TigrisBucket == "" {
			v.errorf(at+".guest_path", "guest_path %q must be an absolute path in the image", clip(s.GuestPath))
		}
		if !strings.HasPrefix(s.URLPrefix, "/") || strings.ContainsAny(s.URLPrefix, " \t\r\n") {
			v.errorf(at+".url_prefix", "url_prefix %q must begin with a slash", clip(s.URLPrefix))
		}
		prefix := strings.TrimRight(s.URLPrefix, "/")
		if seen[prefix] {
			v.errorf(at+".url_prefix", "url_prefix %q is there twice", clip(s.URLPrefix))
		}
		seen[prefix] = true
		if s.TigrisBucket != "" {
			v.errorf(at+".tigris_bucket", "tigris_bucket is not supported: keep the files in the image")
		}
		if strings.Contains(s.IndexDocument, "/") {
			v.errorf(at+".index_document", "index_document %q must be a file's name", clip(s.IndexDocument))
		}
	}
}

func (v *validator) files() {
	for i, f := range v.c.Files {
		at := index("files", i)
		if !path.IsAbs(f.GuestPath) || path.Clean(f.GuestPath) == "/" {
			v.errorf(at+".guest_path", "guest_path %q must be an absolute path of a file", clip(f.GuestPath))
		}
		sources := 0
		for _, set := range []bool{f.LocalPath != "", f.SecretName != "", f.RawValue != nil} {
			if set {
				sources++
			}
		}
		if sources > 1 {
			v.errorf(at, "use one of local_path, secret_name, raw_value")
		}
		if f.LocalPath != "" {
			if _, err := v.c.local(f.LocalPath); err != nil {
				v.errorf(at+".local_path", "local_path: %v", err)
			}
		}
		if f.RawValue != nil {
			if _, err := base64.StdEncoding.DecodeString(*f.RawValue); err != nil {
				v.errorf(at+".raw_value", "raw_value must be base64: %v", err)
			}
		}
		v.groups(at, f.Processes)
	}
}

func (v *validator) mounts() {
	owner := make(map[string]int)
	for i := range v.c.Mounts {
		m, at := &v.c.Mounts[i], index("mounts", i)
		v.groups(at, m.Processes)
		if m.Source == "" {
			v.errorf(at, "a mount needs source: the name of the volume")
		}
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
			v.errorf(at+".destination", "destination %q must be an absolute path, and not /", clip(m.Destination))
		}
		for _, group := range v.c.Groups() {
			if !v.c.in(m.Processes, group) {
				continue
			}
			if first, taken := owner[group]; taken {
				v.errorf(at, "process group %q has a mount already (line %d): a machine takes one", clip(group), v.c.at(index("mounts", first)).Line)
			} else {
				owner[group] = i
			}
		}
		if m.InitialSize != nil {
			v.least(at+".initial_size", "initial_size in GB", int(*m.InitialSize), 1)
		}
		if m.SnapshotRetention != nil {
			v.between(at+".snapshot_retention", "snapshot_retention", *m.SnapshotRetention, 1, 60)
		}
		if m.AutoExtendSizeThreshold != nil {
			v.between(at+".auto_extend_size_threshold", "auto_extend_size_threshold", *m.AutoExtendSizeThreshold, 50, 99)
			if m.AutoExtendSizeIncrement == nil {
				v.errorf(at+".auto_extend_size_threshold", "auto_extend_size_threshold needs auto_extend_size_increment")
			}
		}
		if n := m.AutoExtendSizeIncrement; n != nil {
			v.between(at+".auto_extend_size_increment", "auto_extend_size_increment in GB", int(*n), 1, 100)
		}
		if n := m.AutoExtendSizeLimit; n != nil {
			v.between(at+".auto_extend_size_limit", "auto_extend_size_limit in GB", int(*n), 1, 500)
		}
	}
}

func (v *validator) vm(at string, vm *VM) {
	if vm.Memory != nil && *vm.Memory == 0 {
		v.errorf(at+".memory", "memory must be more than 0")
		return
	}
	v.oneOf(at+".persist_rootfs", "persist_rootfs", vm.PersistRootFS, "never", "restart", "always")
	guest, err := vm.guest()
	if err != nil {
		v.errorf(at+".size", "%v", err)
		return
	}
	if guest.GPUs > 0 || guest.GPUKind != "" {
		v.errorf(at, "there are no GPUs here: remove gpus and gpu_kind")
		return
	}
	if err := guest.Check(); err != nil {
		v.errorf(at, "%v", err)
	}
}
