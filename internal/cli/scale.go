package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newScaleCmd(f *factory) *cobra.Command {
	return group("scale", "How many machines an app has, and how large they are", nil,
		newScaleCountCmd(f), newScaleVMCmd(f), newScaleMemoryCmd(f), newScaleShowCmd(f))
}

func newScaleCountCmd(f *factory) *cobra.Command {
	var in client.ScaleCount
	var bound int
	var processGroup string
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use: "count COUNT|GROUP=COUNT...", Short: "Make process groups larger or smaller", Args: cobra.MinimumNArgs(1),
		Long: `Make process groups larger or smaller. COUNT alone is for the group "app", or for
--process-group; +N and -N add to what there is. New machines are spread over the
regions in turn; of those that go, requests in flight are finished first.

Without --region the regions are those where the app has machines already.`,
		Example: "  roost scale count --app shop 2\n  roost scale count --app shop web=2 worker=1 --max-per-region 1\n  roost scale count --app shop web=+1",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := f.appName()
			if err != nil {
				return err
			}
			if in.Groups, err = parseCounts(args, processGroup); err != nil {
				return usageError{err}
			}
			if cmd.Flags().Changed("max-per-region") {
				in.MaxPerRegion = &bound
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			return f.scaleCount(cmd.Context(), c, app, in, yes, asJSON)
		},
	}
	cmd.Flags().StringSliceVarP(&in.Regions, "region", "r", nil, "regions to put the machines into, in this order")
	cmd.Flags().IntVar(&bound, "max-per-region", -1, "at most so many machines of a group in one region (default: any number)")
	cmd.Flags().StringVar(&processGroup, "process-group", "", "the group that a COUNT alone is for")
	cmd.Flags().StringVar(&in.Size, "vm-size", "", "size of a group's first machines, where nothing else gives one")
	cmd.Flags().IntVar(&in.MemoryMB, "vm-memory", 0, "their memory, in MB")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before machines are removed")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// parseCounts reads "2", "web=2", "web=+1".
func parseCounts(args []string, processGroup string) ([]client.GroupCount, error) {
	var out []client.GroupCount
	for _, arg := range args {
		name, number, named := strings.Cut(arg, "=")
		if !named {
			name, number = processGroup, arg
		} else if name == "" {
			return nil, fmt.Errorf("%q names no process group: use GROUP=COUNT", arg)
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("%q is not COUNT or GROUP=COUNT, such as 2, web=2 or web=+1", arg)
		}
		relative := strings.HasPrefix(number, "+") || strings.HasPrefix(number, "-")
		if relative && n == 0 {
			return nil, fmt.Errorf("%q changes nothing", arg)
		}
		for _, g := range out {
			if g.Group == name {
				return nil, fmt.Errorf("%q: process group %s has a count already", arg, first(name, "app"))
			}
		}
		out = append(out, client.GroupCount{Group: name, Count: n, Relative: relative})
	}
	return out, nil
}

func (f *factory) scaleCount(ctx context.Context, c *client.Client, app string, in client.ScaleCount, yes, asJSON bool) error {
	plan := in
	plan.DryRun = true
	var steps []client.ScaleEvent
	if err := c.SetCount(ctx, app, plan, func(e client.ScaleEvent) { steps = append(steps, e) }); err != nil {
		return f.unscaled(app, err)
	}
	removes := 0
	counts := map[string]int{}
	for _, s := range steps {
		what := fmt.Sprintf("%+d %s in %s", 1, s.Group, s.Region)
		if s.Action == "remove" {
			removes++
			what = fmt.Sprintf("%+d %s in %s", -1, s.Group, s.Region)
		}
		counts[what]++
	}
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		f.io.Notef("%s%d%s", what[:1], counts[what], what[2:])
	}
	if len(steps) == 0 {
		f.io.Notef("The app has these machines already")
		if asJSON {
			return f.io.JSON([]client.ScaleEvent{})
		}
		return nil
	}
	if removes > 0 {
		question := fmt.Sprintf("Remove %s of %s?", plural(removes, "machine", "machines"), app)
		if err := f.confirm(yes, question); err != nil {
			return err
		}
	}
	var done []client.ScaleEvent
	err := c.SetCount(ctx, app, in, func(e client.ScaleEvent) {
		done = append(done, e)
		verb := "created"
		if e.Action == "remove" {
			verb = "removed"
		}
		f.io.Notef("Machine %s (%s, %s) %s", e.Machine, e.Group, e.Region, verb)
	})
	if err != nil {
		return f.unscaled(app, err)
	}
	if asJSON {
		return f.io.JSON(done)
	}
	return nil
}

// unscaled adds the next step to an error.
func (f *factory) unscaled(app string, err error) error {
	switch codeOf(err) {
	case "no_release":
		return hintError{err, "`roost deploy --app " + app + "` makes a release; `roost machine run` makes single machines"}
	case "release_in_progress":
		return hintError{err, "`roost releases --app " + app + "` shows it"}
	}
	return err
}

// codeOf is the API's code for an error, "" if it has none.
func codeOf(err error) string {
	if e, ok := errors.AsType[*machines.Error](err); ok {
		return e.Code
	}
	return ""
}

func newScaleVMCmd(f *factory) *cobra.Command {
	var in client.ScaleSize
	cmd := &cobra.Command{
		Use: "vm SIZE", Short: "Give machines another size: shared-cpu-2x, performance-1x ...", Args: cobra.ExactArgs(1),
		Long: `Give machines another size, one after the other; a machine with services has its
new version up before the old one goes. A size sets the memory, too, unless
--vm-memory names it. The next deploy overrules it where fly.toml has [[vm]].

Sizes: shared-cpu-1x, -2x, -4x, -6x, -8x (256 MB for each CPU, up to 2048),
performance-1x, -2x, -4x, -6x, -8x, -10x, -12x, -14x, -16x (2048 MB, up to 8192).`,
		Example: "  roost scale vm --app shop shared-cpu-2x --vm-memory 1024",
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Size = args[0]
			return f.resize(cmd.Context(), in)
		},
	}
	cmd.Flags().IntVar(&in.MemoryMB, "vm-memory", 0, "memory in MB (default: the size's own)")
	cmd.Flags().IntVar(&in.MemoryMB, "memory", 0, "same as --vm-memory")
	cmd.Flags().StringVar(&in.Group, "process-group", "", "which machines, where the app has several groups")
	return f.onApp(cmd)
}

func newScaleMemoryCmd(f *factory) *cobra.Command {
	var in client.ScaleSize
	cmd := &cobra.Command{
		Use: "memory MB", Short: "Give machines another amount of memory", Args: cobra.ExactArgs(1),
		Example: "  roost scale memory --app shop 512",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.ToLower(args[0]), "mb"))
			if err != nil || n <= 0 {
				return usageError{fmt.Errorf("%q is not a number of MB, such as 512", args[0])}
			}
			in.MemoryMB = n
			return f.resize(cmd.Context(), in)
		},
	}
	cmd.Flags().StringVar(&in.Group, "process-group", "", "which machines, where the app has several groups")
	return f.onApp(cmd)
}

func (f *factory) resize(ctx context.Context, in client.ScaleSize) error {
	app, c, err := f.target()
	if err != nil {
		return err
	}
	n := 0
	err = c.SetSize(ctx, app, in, func(e client.ScaleEvent) {
		n++
		f.io.Notef("Machine %s (%s) has the new size; it is %s", e.Machine, e.Group, e.State)
	})
	if err != nil {
		return f.unscaled(app, err)
	}
	if n == 0 {
		f.io.Notef("The machines have that size already")
	}
	return nil
}

func newScaleShowCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show", Aliases: []string{"list"}, Short: "Show how many machines there are, and how large they are", Args: cobra.NoArgs,
		Example: "  roost scale show --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			sizes, err := c.Scale(cmd.Context(), app)
			if err != nil {
				return err
			}
			return printList(f, asJSON, sizes, "No machines of a release; `roost deploy` makes them",
				[]string{"group", "count", "cpu kind", "cpus", "memory", "regions"}, func(s client.GroupSize) []string {
					var regions []string
					for _, r := range slices.Sorted(maps.Keys(s.Regions)) {
						regions = append(regions, fmt.Sprintf("%s(%d)", r, s.Regions[r]))
					}
					return []string{s.Group, strconv.Itoa(s.Count), s.CPUKind, strconv.Itoa(s.CPUs), fmt.Sprintf("%d MB", s.MemoryMB), strings.Join(regions, ",")}
				})
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func newAppRestartCmd(f *factory) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "restart [NAME]", Short: "Restart the machines that run, one after the other, without a lost request", Args: cobra.MaximumNArgs(1),
		Example: "  roost app restart shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := first(append(args, f.app, os.Getenv("ROOST_APP"))...)
			f.app = name
			app, c, err := f.target()
			if err != nil {
				return err
			}
			return c.RestartApp(cmd.Context(), app, force, func(e client.ScaleEvent) {
				f.io.Notef("Machine %s restarted", e.Machine)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force-stop", false, "kill them instead of waiting for what they do")
	return f.onApp(cmd)
}
