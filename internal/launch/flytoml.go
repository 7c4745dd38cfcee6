package launch

import (
	"fmt"
	"strconv"
	"strings"
)

// flyConfig is what a fly.toml of ours says.
type flyConfig struct {
	app, region string
	about       string // first line
	port        int
	memory      string
	swap        int
	release     string
	releaseWhy  string
	signal      string
	signalWhy   string
	https       bool
	env         []pair
	processes   []pair
	web         string // process group that serves, "" without processes
	check       string // path, "" none
	checkHost   string
	statics     []static
	staticsWhy  string
}

type pair struct{ name, value string }

type static struct{ guest, prefix, index string }

// String is the file. It is written by hand, with comments where a person
// would wonder, so that it is read by people first.
func (c *flyConfig) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	q := strconv.Quote
	if c.about != "" {
		line("# %s", c.about)
	}
	line("app = %s", q(c.app))
	if c.region != "" {
		line("primary_region = %s", q(c.region))
	}
	if c.signal != "" {
		line("")
		line("# %s", c.signalWhy)
		line("kill_signal = %s", q(c.signal))
		line("kill_timeout = \"30s\"")
	}
	if c.swap > 0 {
		line("")
		line("# What the processes do not need at the moment leaves the memory.")
		line("swap_size_mb = %d", c.swap)
	}
	if c.release != "" {
		line("")
		line("# %s", c.releaseWhy)
		line("[deploy]")
		line("  release_command = %s", q(c.release))
	}
	table := func(name string, pairs []pair) {
		if len(pairs) == 0 {
			return
		}
		line("")
		line("[%s]", name)
		for _, p := range pairs {
			line("  %s = %s", p.name, q(p.value))
		}
	}
	table("env", c.env)
	table("processes", c.processes)
	line("")
	line("[http_service]")
	if c.web != "" {
		line("  processes = [%s]", q(c.web))
	}
	line("  internal_port = %d", c.port)
	if c.https {
		line("  force_https = true")
	}
	line("  auto_stop_machines = \"suspend\"")
	line("  auto_start_machines = true")
	line("  min_machines_running = 0")
	line("")
	line("  [http_service.concurrency]")
	line("    type = \"requests\"")
	line("    soft_limit = 20")
	if c.check != "" {
		line("")
		line("  [[http_service.checks]]")
		line("    method = \"GET\"")
		line("    path = %s", q(c.check))
		line("    interval = \"15s\"")
		line("    timeout = \"5s\"")
		line("    grace_period = \"30s\"")
		if c.checkHost != "" {
			line("    headers = { Host = %s }", q(c.checkHost))
		}
	}
	for i, s := range c.statics {
		line("")
		if i == 0 && c.staticsWhy != "" {
			line("# %s", c.staticsWhy)
		}
		line("[[statics]]")
		line("  guest_path = %s", q(s.guest))
		line("  url_prefix = %s", q(s.prefix))
		if s.index != "" {
			line("  index_document = %s", q(s.index))
		}
	}
	line("")
	line("[[vm]]")
	line("  size = \"shared-cpu-1x\"")
	line("  memory = %s", q(c.memory))
	return b.String()
}
