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
	v.gates()
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
