package cli

import (
	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
)

func newOrgCmd(f *factory) *cobra.Command {
	return group("org", "Organisations", []string{"orgs"}, newOrgCreateCmd(f), newOrgListCmd(f))
}

func newOrgCreateCmd(f *factory) *cobra.Command {
	var name string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "create SLUG", Short: "Make an organisation", Args: cobra.ExactArgs(1), Example: "  roost org create acme --name 'Acme Ltd'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := root.ParseOrgSlug(args[0]); err != nil {
				return usageError{err}
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			org, err := c.CreateOrg(cmd.Context(), args[0], first(name, args[0]))
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(org)
			}
			f.io.Notef("Organisation %s created", org.Slug)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "its name for people")
	return jsonFlag(cmd, &asJSON)
}

func newOrgListCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List organisations", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			orgs, err := c.Orgs(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(orgs)
			}
			rows := make([][]string, 0, len(orgs))
			for _, o := range orgs {
				rows = append(rows, []string{o.Slug, o.Name, f.io.Time(o.CreatedAt)})
			}
			return f.io.Table([]string{"slug", "name", "created"}, rows)
		},
	}
	return jsonFlag(cmd, &asJSON)
}
