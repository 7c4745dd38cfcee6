package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newMachineCmd(f *factory) *cobra.Command {
	return group("machine", "Run and look after machines", []string{"machines", "m"},
		newMachineRunCmd(f), newMachineListCmd(f), newMachineStatusCmd(f), newMachineUpdateCmd(f),
		newMachineStartCmd(f), newMachineStopCmd(f), newMachineSuspendCmd(f), newMachineRestartCmd(f),
		newMachineExecCmd(f), newMachineLogsCmd(f), newMachineDestroyCmd(f),
	)
}

const (
	// waitTimeout is how long a verb waits for a machine to get where it
	// should: a large image on a slow disk, and the longest stop timeout.
	waitTimeout = 5*time.Minute + 30*time.Second
	// firstWait is how long nothing is said: most machines are there by then.
	firstWait = 2 * time.Second
	// eachWait is how often it is said what is waited for.
	eachWait = 10 * time.Second
)

// await waits until a machine is in a state. When that takes long it says what
// it waits for, for how long at most, and what the machine does meanwhile. A
// machine that ended up elsewhere is an error that says why.
func (f *factory) await(ctx context.Context, c *client.Client, app string, m *machines.Machine, want machines.State) error {
	ctx, cancel := context.WithTimeoutCause(ctx, waitTimeout, fmt.Errorf("machine %s is not %s after %s", m.ID, want, waitTimeout))
	defer cancel()
	for each := firstWait; ; each = eachWait {
		_, err := c.Wait(ctx, app, m.ID, machines.WaitOptions{State: want, Timeout: each})
		if err == nil {
			return nil
		}
		status := machines.StatusOf(err)
		if want == machines.StateDestroyed && status == http.StatusNotFound {
			return nil
		}
		if status != http.StatusRequestTimeout {
			return err
		}
		now, err := c.Get(ctx, app, m.ID)
		if err != nil {
			return err
		}
		if problem := failure(now, want); problem != "" {
			return hintError{fmt.Errorf("machine %s is %s instead of %s: %s", m.ID, now.State, want, problem), "`roost machine logs --app " + app + " " + m.ID + "` shows what it said"}
		}
		if deadline, ok := ctx.Deadline(); ok {
			f.io.Notef("Waiting for machine %s to be %s: it is %s; %s left", m.ID, want, now.State, time.Until(deadline).Round(time.Second))
		}
	}
}

// unknownMachine adds where to find ids to an error about one that there is not.
func unknownMachine(err error, app string) error {
	apiErr, ok := errors.AsType[*machines.Error](err)
	if !ok || !strings.Contains(apiErr.Message, "machine") {
		return err
	}
	if apiErr.Status == http.StatusNotFound || strings.HasPrefix(apiErr.Message, "invalid machine ID") {
		return hintError{err, "`roost machine list --app " + app + "` shows the machines"}
	}
	return err
}

// failure says why a machine will not get to the wanted state by itself, "" if
// it still may.
func failure(m *machines.Machine, want machines.State) string {
	if want != machines.StateStarted {
		return ""
	}
	switch m.State {
	case machines.StateFailed, machines.StateLaunchFailed, machines.StateDestroyed, machines.StateStopped:
		return lastExit(m.Events)
	}
	return ""
}

// lastExit tells how a machine last ended, in words.
func lastExit(events []machines.Event) string {
	for _, e := range events {
		if e.Type == "exit" && e.Request != nil && e.Request.ExitEvent != nil {
			return exitWords(e.Request.ExitEvent)
		}
		if e.Type == "launch" {
			break
		}
	}
	return "it did not start"
}

func exitWords(x *machines.ExitEvent) string {
	switch {
	case x.Error != "":
		return x.Error
	case x.OOMKilled:
		return fmt.Sprintf("out of memory (exit code %d)", x.ExitCode)
	case x.RequestedStop:
		return fmt.Sprintf("stopped on request (exit code %d)", x.ExitCode)
	case x.ExitCode < 0:
		return "exit code unknown: it ended while nobody watched"
	}
	return fmt.Sprintf("exit code %d", x.ExitCode)
}

// machineVerb makes a command that does one thing to some machines.
func machineVerb(f *factory, use, short string, act func(ctx context.Context, c *client.Client, app, id string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:     use + " ID...",
		Short:   short,
		Example: "  roost machine " + use + " --app shop 148e1234c56789",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			app, c, err := f.machineTarget(cmd.Context(), ids[0])
			if err != nil {
				return err
			}
			var failed []error
			for _, id := range ids {
				err := unknownMachine(act(cmd.Context(), c, app, id), app)
				if len(ids) == 1 {
					return err
				}
				if err != nil {
					failed = append(failed, aboutError{id, err})
				}
			}
			return errors.Join(failed...)
		},
	}
	return f.onApp(cmd)
}

func newMachineStartCmd(f *factory) *cobra.Command {
	var detach bool
	cmd := machineVerb(f, "start", "Start or resume machines", func(ctx context.Context, c *client.Client, app, id string) error {
		r, err := c.Start(ctx, app, id)
		if err != nil {
			return err
		}
		if !detach {
			if err := f.await(ctx, c, app, &machines.Machine{ID: id}, machines.StateStarted); err != nil {
				return err
			}
		}
		f.io.Notef("Machine %s started (was %s)", id, r.PreviousState)
		return nil
	})
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it runs")
	return cmd
}

func newMachineStopCmd(f *factory) *cobra.Command {
	var in machines.StopRequest
	var timeout time.Duration
	var sig string
	var detach bool
	cmd := machineVerb(f, "stop", "Stop machines", func(ctx context.Context, c *client.Client, app, id string) error {
		in.Signal, in.Timeout = machines.Signal(sig), machines.Duration(timeout)
		if err := c.Stop(ctx, app, id, in); err != nil {
			return err
		}
		if !detach {
			if err := f.await(ctx, c, app, &machines.Machine{ID: id}, machines.StateStopped); err != nil {
				return err
			}
		}
		f.io.Notef("Machine %s stopped", id)
		return nil
	})
	cmd.Flags().StringVarP(&sig, "signal", "s", "", "signal to send (default: the machine's own, else SIGINT)")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "kill it after this (default: the machine's own, else 5s)")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it has stopped")
	return cmd
}

func newMachineSuspendCmd(f *factory) *cobra.Command {
	return machineVerb(f, "suspend", "Freeze machines with their memory; a request or a start lets them go on", func(ctx context.Context, c *client.Client, app, id string) error {
		if err := c.Suspend(ctx, app, id); err != nil {
			return err
		}
		if err := f.await(ctx, c, app, &machines.Machine{ID: id}, machines.StateSuspended); err != nil {
			return err
		}
		f.io.Notef("Machine %s suspended", id)
		return nil
	})
}

func newMachineRestartCmd(f *factory) *cobra.Command {
	var in machines.StopRequest
	var timeout time.Duration
	var sig string
	var force bool
	cmd := machineVerb(f, "restart", "Stop and start machines; their root file systems are fresh then", func(ctx context.Context, c *client.Client, app, id string) error {
		in.Signal, in.Timeout = machines.Signal(sig), machines.Duration(timeout)
		if err := c.Restart(ctx, app, id, in, force); err != nil {
			return err
		}
		if err := f.await(ctx, c, app, &machines.Machine{ID: id}, machines.StateStarted); err != nil {
			return err
		}
		f.io.Notef("Machine %s restarted", id)
		return nil
	})
	cmd.Flags().StringVarP(&sig, "signal", "s", "", "signal to stop it with")
	cmd.Flags().DurationVar(&timeout, "time", 0, "kill it after this")
	cmd.Flags().BoolVar(&force, "force", false, "kill it at once")
	return cmd
}

func newMachineDestroyCmd(f *factory) *cobra.Command {
	var force, yes bool
	cmd := machineVerb(f, "destroy", "Remove machines for good", func(ctx context.Context, c *client.Client, app, id string) error {
		if err := f.confirm(yes, "Destroy machine "+id+" of "+app+"?"); err != nil {
			return err
		}
		if err := c.Destroy(ctx, app, id, force); err != nil {
			if machines.StatusOf(err) == http.StatusPreconditionFailed && !force {
				return hintError{err, "--force also destroys a machine that runs"}
			}
			return err
		}
		f.io.Notef("Machine %s destroyed", id)
		return nil
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also a machine that runs")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Aliases = []string{"remove", "rm"}
	return cmd
}

func newMachineListCmd(f *factory) *cobra.Command {
	var asJSON, all, quiet bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List an app's machines", Args: cobra.NoArgs,
		Example: "  roost machine list --app shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context(), app, machines.ListOptions{Deleted: all})
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(list)
			}
			return f.printMachines(list, quiet)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "machines that were destroyed lately too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func (f *factory) printMachines(list []machines.Machine, quiet bool) error {
	rows := make([][]string, 0, len(list))
	for _, m := range list {
		if quiet {
			rows = append(rows, []string{m.ID})
			continue
		}
		size, group := "-", "-"
		if m.Config != nil {
			group = first(m.Config.Metadata["fly_process_group"], group)
		}
		if m.Config != nil && m.Config.Guest != nil {
			g := m.Config.Guest
			size = fmt.Sprintf("%s-cpu-%dx:%dMB", g.CPUKind, g.CPUs, g.MemoryMB)
		}
		rows = append(rows, []string{m.ID, m.Name, string(m.State), m.Region, imageName(m.ImageRef), m.PrivateIP, size, f.io.Time(m.UpdatedAt), group, checksWord(m.Checks)})
	}
	if quiet {
		return f.io.Table([]string{"id"}, rows)
	}
	return f.table("No machines; `roost machine run --app APP IMAGE` makes one", []string{"id", "name", "state", "region", "image", "address", "size", "updated", "group", "checks"}, rows)
}

func imageName(r machines.ImageRef) string {
	name := r.Repository
	if r.Tag != "" {
		name += ":" + r.Tag
	} else if len(r.Digest) > shortDigest {
		name += "@" + r.Digest[:shortDigest]
	}
	return strings.TrimPrefix(name, "library/")
}

func newMachineStatusCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status ID", Aliases: []string{"show"}, Short: "Show one machine and its history", Args: cobra.ExactArgs(1),
		Example: "  roost machine status --app shop 148e1234c56789",
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, err := f.machineTarget(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			m, err := c.Get(cmd.Context(), app, args[0])
			if err != nil {
				return unknownMachine(err, app)
			}
			if asJSON {
				return f.io.JSON(m)
			}
			return f.printMachine(cmd.Context(), c, app, m)
		},
	}
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func (f *factory) printMachine(ctx context.Context, c *client.Client, app string, m *machines.Machine) error {
	rows := [][]string{
		{"id", m.ID}, {"name", m.Name}, {"state", string(m.State)}, {"region", m.Region}, {"version", m.InstanceID},
		{"image", m.ImageRef.Registry + "/" + imageName(m.ImageRef)}, {"digest", m.ImageRef.Digest}, {"address", m.PrivateIP},
		{"created", f.io.Time(m.CreatedAt)}, {"updated", f.io.Time(m.UpdatedAt)},
	}
	if m.Cordoned {
		rows = append(rows, []string{"cordoned", "yes: gets no traffic"})
	}
	// A machine without processes has no accounts: that is no failure.
	if in, err := c.Inspect(ctx, app, m.ID); err == nil && in.Usage != nil {
		rows = append(rows, []string{"memory", fmt.Sprintf("%.1f MB resident, %.1f MB swapped out", mb(in.Usage.Memory), mb(in.Usage.Swap))})
		for _, l := range in.Listens {
			rows = append(rows, []string{"listens on", l.Proto + " " + l.Address})
		}
	}
	if err := f.io.Table([]string{"machine", ""}, rows); err != nil {
		return err
	}
	if len(m.Checks) > 0 {
		f.io.Printf("\n")
		if err := f.printChecks(m.Checks); err != nil {
			return err
		}
	}
	if len(m.Events) == 0 {
		return nil
	}
	f.io.Printf("\n")
	rows = rows[:0]
	for _, e := range m.Events {
		detail := e.Reason
		if e.Request != nil && e.Request.ExitEvent != nil {
			detail = exitWords(e.Request.ExitEvent)
		}
		rows = append(rows, []string{f.io.Time(e.Time()), e.Type, e.Status, e.Source, detail})
	}
	return f.io.Table([]string{"when", "event", "state", "by", "detail"}, rows)
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }
