package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/machines"
)

func newChecksCmd(f *factory) *cobra.Command {
	return group("checks", "Look at health checks", []string{"check"}, newChecksListCmd(f))
}

// checkRow is a check of a machine, as --json has it.
type checkRow struct {
	Machine string         `json:"machine"`
	State   machines.State `json:"state"`
	machines.Status
}

func newChecksListCmd(f *factory) *cobra.Command {
	var asJSON bool
	var name string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the health checks of an app's machines", Args: cobra.NoArgs,
		Long:    "List the health checks of an app's machines, with what each said last. The status of a\nmachine that is suspended or stopped is the one from before.",
		Example: "  roost checks list --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context(), app, machines.ListOptions{})
			if err != nil {
				return err
			}
			found := []checkRow{}
			for _, m := range list {
				for _, s := range m.Checks {
					if name == "" || s.Name == name {
						found = append(found, checkRow{m.ID, m.State, s})
					}
				}
			}
			return printList(f, asJSON, found, "No results of health checks; checks stand in the services of fly.toml",
				[]string{"check", "status", "machine", "state", "since", "output"}, func(r checkRow) []string {
					return []string{r.Name, r.Status.Status, r.Machine, string(r.State), f.io.Time(r.UpdatedAt), r.Output}
				})
		},
	}
	cmd.Flags().StringVar(&name, "check-name", "", "only the check with this name")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// checksWord sums a machine's checks up: "1 passing", "1 of 2 critical".
func checksWord(list []machines.Status) string {
	if len(list) == 0 {
		return "-"
	}
	var bad []string
	for _, s := range list {
		if s.Status != "passing" {
			bad = append(bad, s.Status)
		}
	}
	switch {
	case len(bad) == 0:
		return fmt.Sprintf("%d passing", len(list))
	case len(list) == 1:
		return "1 " + bad[0]
	}
	slices.Sort(bad)
	return fmt.Sprintf("%d of %d %s", len(bad), len(list), strings.Join(slices.Compact(bad), ", "))
}

func (f *factory) printChecks(list []machines.Status) error {
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		rows = append(rows, []string{s.Name, s.Status, f.io.Time(s.UpdatedAt), s.Output})
	}
	return f.io.Table([]string{"check", "status", "since", "output"}, rows)
}
