package appconfig

import (
	"slices"
	"time"

	root "github.com/roost-run/roost"
)

// The defaults of [deploy]: those of flyctl.
const (
	DefaultStrategy       = root.StrategyRolling
	DefaultMaxUnavailable = 0.33
	DefaultWaitTimeout    = 5 * time.Minute
	DefaultReleaseTimeout = 5 * time.Minute
	DefaultMaxConcurrent  = 8
)

// Deploy returns how the config wants to be rolled out, with defaults. The
// first machines of a group come alone (Standby is false) unless a deploy asks
// for two.
func (c *Config) Deploy() (root.Deploy, error) {
	d := root.Deploy{
		Strategy: DefaultStrategy, MaxUnavailable: DefaultMaxUnavailable, WaitTimeout: DefaultWaitTimeout,
		ReleaseTimeout: DefaultReleaseTimeout, Smoke: true, MaxConcurrent: DefaultMaxConcurrent,
	}
	r := c.Rollout
	if r == nil {
		return d, nil
	}
	if r.Strategy != "" {
		d.Strategy = root.Strategy(r.Strategy)
	}
	if r.MaxUnavailable != nil {
		d.MaxUnavailable = *r.MaxUnavailable
	}
	if r.WaitTimeout != nil {
		d.WaitTimeout = time.Duration(*r.WaitTimeout)
	}
	if r.ReleaseTimeout != nil {
		d.ReleaseTimeout = time.Duration(*r.ReleaseTimeout)
	}
	d.Webhook = r.Webhook
	var err error
	if d.ReleaseCommand, err = split(r.ReleaseCommand); err != nil {
		return d, root.Errorf(root.Invalid, "deploy.release_command: %v", err)
	}
	if d.SeedCommand, err = split(r.SeedCommand); err != nil {
		return d, root.Errorf(root.Invalid, "deploy.seed_command: %v", err)
	}
	if r.ReleaseVM != nil {
		guest, err := r.ReleaseVM.guest()
		if err != nil {
			return d, root.Errorf(root.Invalid, "deploy.release_command_vm: %v", err)
		}
		d.ReleaseGuest = &root.Guest{CPUKind: guest.CPUKind, CPUs: guest.CPUs, Memory: root.Bytes(guest.MemoryMB) * root.MiB}
	}
	return d, nil
}

// GroupMachineChecks returns what is run against each machine of a process group
// when it has been deployed: the app's own, then those of the group's services.
// KillSignal and KillTimeout are the app's where a check has none.
func (c *Config) GroupMachineChecks(group string) []MachineCheck {
	list := slices.Clone(c.MachineChecks)
	if s := c.HTTPService; s != nil && c.in(s.Processes, group) {
		list = append(list, s.MachineChecks...)
	}
	for i := range c.Services {
		if s := &c.Services[i]; c.in(s.Processes, group) {
			list = append(list, s.MachineChecks...)
		}
	}
	for i := range list {
		if list[i].KillSignal == "" {
			list[i].KillSignal = c.KillSignal
		}
		if list[i].KillTimeout == nil {
			list[i].KillTimeout = c.KillTimeout
		}
	}
	return list
}

// Routes returns the rules of [[serverless]], in the order of the file. A group
// that is named in http_service or services, too, also takes other requests.
func (c *Config) Routes() []root.Route {
	var routes []root.Route
	for _, s := range c.Serverless {
		if len(s.Processes) > 0 {
			routes = append(routes, root.Route{Paths: s.Paths, Methods: s.Methods, Group: s.Processes[0], Shared: c.serves(s.Processes[0])})
		}
	}
	return routes
}

// serves reports whether a service of the file is the group's, so that it
// takes ordinary requests, too.
func (c *Config) serves(group string) bool {
	return c.HTTPService != nil && c.in(c.HTTPService.Processes, group) ||
		slices.ContainsFunc(c.Services, func(s Service) bool { return c.in(s.Processes, group) })
}
