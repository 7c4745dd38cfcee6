package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/machines"
)

func newAppCmd(f *factory) *cobra.Command {
	return group("app", "Make and remove apps", []string{"apps"}, newAppCreateCmd(f), newAppListCmd(f), newAppRestartCmd(f), newAppDestroyCmd(f))
}

func newAppCreateCmd(f *factory) *cobra.Command {
	var org, network string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make an app", Args: cobra.ExactArgs(1), Example: "  roost app create shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := root.ParseAppName(args[0]); err != nil {
				return usageError{err}
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			app, err := c.CreateApp(cmd.Context(), machines.CreateAppRequest{Name: args[0], OrgSlug: org, Network: network})
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(app)
			}
			f.io.Notef("App %s created in organisation %s", args[0], org)
			return nil
		},
	}
	cmd.Flags().StringVarP(&org, "org", "o", string(root.DefaultOrg), "organisation")
	cmd.Flags().StringVar(&network, "network", "", "private network, made if it does not exist (default: the organisation's)")
	return jsonFlag(cmd, &asJSON)
}

func newAppListCmd(f *factory) *cobra.Command {
	var org string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List apps", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			apps, err := c.Apps(cmd.Context(), org)
			if err != nil {
				return err
			}
			return printList(f, asJSON, apps, "No apps in organisation "+org+" yet; `roost app create NAME` makes one",
				[]string{"name", "organisation", "status", "machines", "network"}, func(a machines.App) []string {
					return []string{a.Name, a.Organization.Slug, a.Status, strconv.Itoa(a.MachineCount), a.Network}
				})
		},
	}
	cmd.Flags().StringVarP(&org, "org", "o", string(root.DefaultOrg), "organisation")
	return jsonFlag(cmd, &asJSON)
}

func newAppDestroyCmd(f *factory) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "destroy NAME", Short: "Remove an app and all its machines", Args: cobra.ExactArgs(1), Example: "  roost app destroy shop --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			app, err := c.App(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := f.confirm(yes, fmt.Sprintf("Destroy %s with its %s for good?", app.Name, plural(app.MachineCount, "machine", "machines"))); err != nil {
				return err
			}
			if err := c.DeleteApp(cmd.Context(), args[0], true); err != nil {
				return err
			}
			f.io.Notef("App %s destroyed", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
