package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/doctor"
)

func newDoctorCmd(f *factory) *cobra.Command {
	var asJSON bool
	var file string
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Check whether this host can run Roost, and how to mend what is missing",
		Example: "  roost doctor\n  roost doctor --data /srv/roost --json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file of the server (ROOST_CONFIG)")
	load := settingFlags(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		findings := doctor.Examine(cmd.Context(), c)
		if asJSON {
			if err := f.io.JSON(findings); err != nil {
				return err
			}
		} else {
			rows := make([][]string, 0, len(findings))
			for _, d := range findings {
				rows = append(rows, []string{string(d.Level), d.Check, d.Detail, d.Mend})
			}
			if err := f.io.Table([]string{"result", "check", "finding", "mend"}, rows); err != nil {
				return err
			}
		}
		fatal := 0
		for _, d := range findings {
			if d.Level == doctor.Fatal {
				fatal++
			}
		}
		if fatal > 0 {
			return root.Errorf(root.Precondition, "%s", plural(fatal, "problem keeps", "problems keep")+" Roost from running here")
		}
		return nil
	}
	return jsonFlag(cmd, &asJSON)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}
