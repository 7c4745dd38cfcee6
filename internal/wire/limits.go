package wire

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

// refuse names the first member whose silent loss would cost data or meaning.
func refuse(c *machines.Config) error {
	no := func(member, why string) error {
		return &root.Error{Kind: root.Unimplemented, Code: root.CodeUnsupported,
			Message: fmt.Sprintf("%s is not supported yet: %s", member, why)}
	}
	switch {
	case len(c.Mounts) > 0:
		return no("config.mounts", "what the app writes there would be lost; remove it, or keep data in an app outside")
	case given(c.Containers):
		return no("config.containers", "run one image per machine (config.image)")
	case given(c.Volumes):
		return no("config.volumes", "it belongs to containers; remove it")
	case len(c.Standbys) > 0:
		return no("config.standbys", "nothing would start this machine in place of the others; remove it")
	case c.Schedule != "":
		return no("config.schedule", "nothing would start this machine on schedule; remove it and start it from outside")
	case given(c.Spot):
		return no("config.spot", "there are no spot prices here; remove it")
	case len(c.Processes) > 1:
		return no("config.processes", "run one process per machine; keep one entry")
	case c.Guest != nil && (c.Guest.GPUs > 0 || c.Guest.GPUKind != ""):
		return no("config.guest.gpus", "this platform has none; remove gpus and gpu_kind")
	}
	for i, s := range c.Services {
		if s.Protocol == "udp" {
			return no(fmt.Sprintf("config.services[%d].protocol \"udp\"", i), "use \"tcp\"")
		}
	}
	for i, p := range c.Processes {
		if given(p.EnvFrom) {
			return no(fmt.Sprintf("config.processes[%d].env_from", i), "the process finds FLY_MACHINE_ID, FLY_APP_NAME, FLY_REGION, FLY_IMAGE_REF and FLY_PRIVATE_IP in its environment")
		}
	}
	for i, s := range c.Statics {
		if s.TigrisBucket != "" {
			return no(fmt.Sprintf("config.statics[%d].tigris_bucket", i), "the files are not read from buckets; keep them in the image")
		}
	}
	return nil
}

type persist struct{ member, value string }

// persists lists where a config says what outlives a stop.
func persists(c *machines.Config) []persist {
	var list []persist
	if c.RootFS != nil {
		list = append(list, persist{"config.rootfs.persist", string(c.RootFS.Persist)})
	}
	if c.Guest != nil {
		list = append(list, persist{"config.guest.persist_rootfs", string(c.Guest.PersistRootFS)})
	}
	return list
}

// given reports whether an undecoded member says anything.
func given(raw json.RawMessage) bool {
	switch string(raw) {
	case "", "null", "[]", "{}", `""`:
		return false
	}
	return true
}

// warnings lists the members that are kept and read back but not acted upon.
func warnings(c *machines.Config) []string {
	var list []string
	warn := func(member, meaning string) {
		if line := member + " is kept but not acted upon yet: " + meaning; !slices.Contains(list, line) {
			list = append(list, line)
		}
	}
	partly := func(member, meaning string) {
		list = append(list, member+" is acted upon in part: "+meaning)
	}
	for i, s := range c.Services {
		for j, p := range s.Ports {
			at := fmt.Sprintf("config.services[%d].ports[%d]", i, j)
			switch {
			case !slices.Contains(p.Handlers, "http"):
				warn(at, "only ports with the http handler are served")
			case slices.Contains(p.Handlers, "proxy_proto"):
				warn(at+".handlers", "no PROXY header is sent")
			}
			if o := p.HTTPOptions; o != nil && (o.H2Backend || o.HeadersReadTimeout != 0 || given(o.ReplayCache)) {
				warn(at+".http_options", "h2_backend, headers_read_timeout and replay_cache have no effect")
			}
		}
	}
	bounds := func(at string, check machines.Check) {
		if d := time.Duration(check.Interval); d != 0 && d < root.MinCheckInterval {
			list = append(list, fmt.Sprintf("%s.interval: %s is used in place of %s, the least there is", at, root.MinCheckInterval, d))
		}
		if d := time.Duration(check.Timeout); d > root.MaxCheckTimeout {
			list = append(list, fmt.Sprintf("%s.timeout: %s is used in place of %s, the most there is", at, root.MaxCheckTimeout, d))
		}
	}
	for i, s := range c.Services {
		for j, check := range s.Checks {
			bounds(fmt.Sprintf("config.services[%d].checks[%d]", i, j), check)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Checks)) {
		bounds("config.checks."+clip(name), c.Checks[name])
	}
	if c.Metrics != nil {
		warn("config.metrics", "they are not scraped")
	}
	if d := c.DNS; d != nil && given(d.ForwardRules) {
		warn("config.dns.dns_forward_rules", "names go to the usual servers")
	}
	if d := c.DNS; d != nil && d.HostnameFQDN != "" {
		warn("config.dns.hostname_fqdn", "the machine's host name is config.dns.hostname")
	}
	if g := c.Guest; g != nil && (g.MaxMemoryMB != 0 || g.HostDedicationID != "" || len(g.KernelArgs) > 0 || len(g.RequiredHostFeatures) > 0) {
		warn("config.guest", "max_memory_mb, host_dedication_id, kernel_args and required_host_features have no effect")
	}
	if len(c.Init.KernelArgs) > 0 {
		warn("config.init.kernel_args", "machines share the host's kernel")
	}
	for _, p := range persists(c) {
		switch p.value {
		case string(root.PersistRestart):
			partly(p.member, "the files outlive stops and starts, but not a restart of the host")
		case string(root.PersistAlways):
			partly(p.member, "the files outlive stops and starts, but neither an update nor a restart of the host")
		}
	}
	if c.RootFS != nil && c.RootFS.SizeGB != 0 {
		warn("config.rootfs.size_gb", "the root file system is as large as the host's disk")
	}
	if given(c.CacheDrive) {
		warn("config.cache_drive", "there is none")
	}
	return list
}
