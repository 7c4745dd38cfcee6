package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/machines"
)

func newStatusCmd(f *factory) *cobra.Command {
	var asJSON, hosts bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show an app and its machines; where no app is named, the hosts", Args: cobra.NoArgs,
		Long:    "Show an app and its machines: that of --app, else that of the fly.toml in this\ndirectory. Where there is neither, or with --hosts: the hosts.",
		Example: "  roost status\n  roost status --app shop\n  roost status --hosts",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if hosts || f.namedApp() == "" && appOf(".") == "" {
				return f.hostStatus(cmd, asJSON)
			}
			name, c, err := f.target()
			if err != nil {
				return err
			}
			app, err := c.App(cmd.Context(), name)
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context(), name, machines.ListOptions{})
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(map[string]any{"app": app, "machines": list})
			}
			if f.io.OutTTY {
				f.io.Printf("%s (%s): %s, %s\n\n", app.Name, app.Organization.Slug, app.Status, plural(len(list), "machine", "machines"))
			}
			return f.printMachines(list, false)
		},
	}
	cmd.Flags().BoolVar(&hosts, "hosts", false, "show the hosts, also in the folder of an app")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func (f *factory) hostStatus(cmd *cobra.Command, asJSON bool) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	hosts, err := c.Hosts(cmd.Context())
	if err != nil {
		return err
	}
	if asJSON {
		return f.io.JSON(hosts)
	}
	rows := make([][]string, 0, len(hosts))
	for _, h := range hosts {
		var states []string
		for _, s := range slices.Sorted(maps.Keys(h.Machines)) {
			states = append(states, fmt.Sprintf("%d %s", h.Machines[s], s))
		}
		memory := fmt.Sprintf("%.0f MB", mb(h.Memory))
		swap := "-"
		if h.Local != nil {
			memory = fmt.Sprintf("%.0f of %.0f MB free", mb(h.Local.Free), mb(h.Local.Memory))
			swap = h.Local.Swap
		}
		rows = append(rows, []string{h.ID, h.Name, h.Region, memory, swap, first(strings.Join(states, ", "), "no machines")})
	}
	return f.io.Table([]string{"host", "name", "region", "memory", "suspended memory to", "machines"}, rows)
}
