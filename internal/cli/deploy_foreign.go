package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// foreignFlag is a flag of flyctl's deploy that has no meaning here.
type foreignFlag struct {
	name   string
	why    string
	value  bool // it takes one
	refuse bool // to go on without it would not do what was asked for
}

// foreignFlags keep scripts written for flyctl working where that is right,
// and say what to do where it is not.
var foreignFlags = []foreignFlag{
	{name: "remote-only", why: "images are always built on the host"},
	{name: "now", why: "a deploy does not ask"},
	{name: "auto-confirm", why: "a deploy does not ask"},
	{name: "push", why: "the image is built where it runs"},
	{name: "depot", why: "images are built on the host", value: true},
	{name: "buildkit", why: "BuildKit builds all images"},
	{name: "recreate-builder", why: "the builder starts when it is needed"},
	{name: "dns-checks", why: "names are part of the platform", value: true},
	{name: "lease-timeout", why: "the platform holds its own leases", value: true},
	{name: "no-public-ips", why: "apps have no addresses of their own: remove [http_service] from an app that is private"},
	{name: "provision-extensions", why: "there are none"},
	{name: "no-extensions", why: "there are none"},

	{name: "local-only", why: "there is no build on this computer; `docker push` and --image deploy an image built here", refuse: true},
	{name: "nixpacks", why: "write a Dockerfile; `roost launch` writes one", refuse: true},
	{name: "flycast", why: "private apps are reached by their .internal name", refuse: true},
	{name: "exclude-regions", why: "name those you want with --regions", value: true, refuse: true},
	{name: "exclude-machines", why: "name those you want with --only-machines", value: true, refuse: true},
	{name: "deploy-retries", why: "a release that fails is taken back", value: true, refuse: true},
	{name: "signal", why: "machines are stopped with their own kill_signal", value: true, refuse: true},
	{name: "vm-size", why: "write [[vm]] into fly.toml, or use `roost scale vm`", value: true, refuse: true},
	{name: "vm-memory", why: "write [[vm]] into fly.toml, or use `roost scale memory`", value: true, refuse: true},
	{name: "vm-cpus", why: "write [[vm]] into fly.toml, or use `roost scale vm`", value: true, refuse: true},
	{name: "vm-cpu-kind", why: "write [[vm]] into fly.toml, or use `roost scale vm`", value: true, refuse: true},
	{name: "volume-initial-size", why: "there are no volumes yet", value: true, refuse: true},
}

// acceptForeign registers the flags, hidden.
func acceptForeign(cmd *cobra.Command) {
	for _, fl := range foreignFlags {
		cmd.Flags().String(fl.name, "", "no meaning here: "+fl.why)
		_ = cmd.Flags().MarkHidden(fl.name)
		if !fl.value {
			cmd.Flags().Lookup(fl.name).NoOptDefVal = "true"
		}
	}
}

// refuseForeign complains of the flags without which a deploy would be another
// one than was asked for.
func refuseForeign(cmd *cobra.Command) error {
	var complaints []string
	for _, fl := range foreignFlags {
		if given := cmd.Flags().Lookup(fl.name); given.Changed && fl.refuse && given.Value.String() != "false" && given.Value.String() != "0" {
			complaints = append(complaints, fmt.Sprintf("--%s is not supported: %s", fl.name, fl.why))
		}
	}
	if len(complaints) > 0 {
		return usageError{fmt.Errorf("%s", strings.Join(complaints, "; "))}
	}
	return nil
}
