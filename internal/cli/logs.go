package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newLogsCmd(f *factory) *cobra.Command {
	return logsCmd(f, "logs", "Follow an app's log", cobra.NoArgs)
}

func newMachineLogsCmd(f *factory) *cobra.Command {
	return logsCmd(f, "logs ID", "Follow one machine's log", cobra.ExactArgs(1))
}

// defaultLines is how much of the past a person sees first.
const defaultLines = 100

func logsCmd(f *factory, use, short string, args cobra.PositionalArgs) *cobra.Command {
	var noTail, asJSON bool
	var since string
	var o client.LogOptions
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args, Example: "  roost logs --app shop --provider proxy,deploy --since 1h --no-tail",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			o.Follow = !noTail
			if o.Since, err = sinceTime(since, time.Now()); err != nil {
				return err
			}
			if o.Providers, err = providers(o.Providers); err != nil {
				return err
			}
			if since != "" && !cmd.Flags().Changed("lines") {
				o.Lines = 0 // all of that time
			}
			var app string
			var c *client.Client
			if len(args) > 0 {
				o.Machine = args[0]
				app, c, err = f.machineTarget(cmd.Context(), o.Machine)
			} else {
				app, c, err = f.target()
			}
			if err != nil {
				return err
			}
			known := true
			if o.Machine != "" {
				if known, err = hasMachine(cmd.Context(), c, app, o.Machine); err != nil {
					return err
				}
				o.Follow = o.Follow && known // it writes nothing more
			}
			said := false
			err = c.Logs(cmd.Context(), app, o, func(l client.LogLine) error {
				said = true
				if asJSON {
					return f.io.JSONLine(l)
				}
				return f.printLog(l)
			})
			if o.Follow && errors.Is(err, context.Canceled) {
				return nil // a person has seen enough
			}
			if err == nil && !known && !said {
				return hintError{fmt.Errorf("app %s has no machine %s", app, o.Machine), "`roost machine list --app " + app + " --all` shows the machines"}
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&noTail, "no-tail", "n", false, "do not wait for new lines")
	cmd.Flags().IntVar(&o.Lines, "lines", defaultLines, "how many lines of the past; 0 is all")
	cmd.Flags().StringVar(&since, "since", "", "only lines from then on: a time such as 2026-01-02T03:04:05Z, or how long ago, such as 15m")
	cmd.Flags().StringSliceVar(&o.Providers, "provider", nil, "only lines of these: "+strings.Join(logProviders, ", "))
	cmd.Flags().StringSliceVar(&o.Providers, "source", nil, "the same as --provider")
	cmd.Flags().Lookup("source").Hidden = true
	if use == "logs" {
		cmd.Flags().StringVarP(&o.Machine, "machine", "i", "", "only this machine")
		cmd.Flags().StringSliceVarP(&o.Regions, "region", "r", nil, "only lines from these regions")
		cmd.Flags().StringVarP(&o.Group, "group", "g", "", "only machines of this process group")
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// logProviders are who writes lines.
var logProviders = []string{"app", "runner", "proxy", "health", "build", "release", "deploy"}

func providers(list []string) ([]string, error) {
	for _, p := range list {
		if !slices.Contains(logProviders, p) {
			return nil, usageError{fmt.Errorf("--provider: %q is not one of %s", p, strings.Join(logProviders, ", "))}
		}
	}
	return list, nil
}

// sinceTime reads a time, or how long ago it was.
func sinceTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usageError{fmt.Errorf("--since: %q is neither a time such as 2026-01-02T03:04:05Z nor a duration such as 15m", s)}
	}
	return t, nil
}

// hasMachine: also one that was destroyed lately.
func hasMachine(ctx context.Context, c *client.Client, app, id string) (bool, error) {
	list, err := c.List(ctx, app, machines.ListOptions{Deleted: true})
	return slices.ContainsFunc(list, func(m machines.Machine) bool { return m.ID == id }), err
}

func (f *factory) printLog(l client.LogLine) error {
	if !f.io.OutTTY {
		return f.io.Table(nil, [][]string{{l.At.UTC().Format("2006-01-02T15:04:05.000Z"), l.Provider, l.Machine, l.Message}})
	}
	provider := l.Provider
	if f.io.Color {
		provider = "\x1b[36m" + provider + "\x1b[0m"
	}
	if l.Machine != "" {
		provider += "[" + l.Machine + "]"
	}
	f.io.Printf("%s %s %s\n", l.At.Local().Format("15:04:05.000"), provider, l.Message)
	return nil
}
