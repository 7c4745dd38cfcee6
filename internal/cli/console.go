package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/appconfig"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

// sessionFlags are those of an interactive session.
type sessionFlags struct {
	command string
	pty     bool
	start   client.ExecStart
}

func (o *sessionFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.command, "command", "C", "", "command to run, in one argument (default: a shell)")
	cmd.Flags().BoolVar(&o.pty, "pty", false, "on a terminal of its own, also for a command")
	cmd.Flags().StringVarP(&o.start.User, "user", "u", "", "user to run as (default: root)")
}

// open makes the streams of the session: a shell for a person has a terminal;
// a command, and whatever is piped, has plain streams.
func (o *sessionFlags) open(f *factory) (client.ExecStart, client.ExecIO, func(), error) {
	start, streams, none := o.start, client.ExecIO{Stdin: f.io.In, Stdout: f.io.Out, Stderr: f.io.Err}, func() {}
	if o.command != "" {
		args, err := appconfig.Words(o.command)
		if err != nil || len(args) == 0 {
			return start, streams, none, usageError{fmt.Errorf("--command %q is not a command", o.command)}
		}
		start.Args = args
	}
	if !o.pty && (o.command != "" || !f.io.InTTY || !f.io.OutTTY) {
		return start, streams, none, nil
	}
	if !f.io.InTTY || !f.io.OutTTY {
		return start, streams, none, usageError{errors.New("--pty needs a terminal")}
	}
	restore, err := rawTerminal(&start, &streams)
	return start, streams, restore, err
}

func newConsoleCmd(f *factory) *cobra.Command {
	var o sessionFlags
	var place client.ConsoleOptions
	cmd := &cobra.Command{
		Use: "console", Short: "Run the app's console command, or a shell, in a temporary machine", Args: cobra.NoArgs,
		Long: `Run the app's console_command (in fly.toml), or a shell, in a machine that is made
for it from the release's image, with the app's environment and secrets. Nothing is
served there. The machine is destroyed at the end, also when the connection is lost.`,
		Example: "  roost console --app shop\n  roost console --app shop -C 'python manage.py shell'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			f.io.Notef("Making a temporary machine of %s; it goes with this session", app)
			start, streams, restore, err := o.open(f)
			if err != nil {
				return err
			}
			defer restore()
			end, err := c.Console(cmd.Context(), app, place, start, streams)
			if err != nil {
				return err
			}
			if end.Code != 0 {
				return exitCodeError(end.Code)
			}
			return nil
		},
	}
	o.register(cmd)
	cmd.Flags().StringVarP(&place.Image, "image", "i", "", "image to run (default: the release's)")
	cmd.Flags().StringVarP(&place.Region, "region", "r", "", "where to run it (default: here)")
	cmd.Flags().StringVar(&place.Size, "vm-size", "", "size of the machine, such as shared-cpu-2x (default: the app's)")
	cmd.Flags().IntVar(&place.MemoryMB, "vm-memory", 0, "memory in MB (default: the size's)")
	return f.onApp(cmd)
}

func newSSHCmd(f *factory) *cobra.Command {
	return group("ssh", "Get into a running machine", nil, newSSHConsoleCmd(f))
}

func newSSHConsoleCmd(f *factory) *cobra.Command {
	var o sessionFlags
	var machine, processGroup, region string
	var choose bool
	cmd := &cobra.Command{
		Use: "console", Short: "Open a shell, or run a command, in one of the app's machines", Args: cobra.NoArgs,
		Long: `Open a shell, or run a command, in one of the app's machines: one that runs, else one
that is suspended, which is woken. No ssh is involved: the session goes through the API.`,
		Example: "  roost ssh console --app shop\n  roost ssh console --app shop -C 'ls -l /app'\n  roost ssh console --app shop --machine 148e1234c56789",
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, c, err := f.target()
			if err != nil {
				return err
			}
			m, err := f.sessionMachine(cmd.Context(), c, app, machine, func(list []machines.Machine) []machines.Machine {
				return matching(list, processGroup, region)
			}, choose)
			if err != nil {
				return err
			}
			start, streams, restore, err := o.open(f)
			if err != nil {
				return err
			}
			defer restore()
			if len(start.Args) == 0 {
				start.Args = client.Shell()
			}
			end, err := c.ExecStream(cmd.Context(), app, m.ID, start, streams)
			if err != nil {
				return unknownMachine(err, app)
			}
			if end.Code != 0 {
				return exitCodeError(end.Code)
			}
			return nil
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&machine, "machine", "", "id of the machine")
	cmd.Flags().BoolVarP(&choose, "select", "s", false, "choose from a list")
	cmd.Flags().StringVarP(&processGroup, "process-group", "g", "", "only machines of this process group")
	cmd.Flags().StringVarP(&region, "region", "r", "", "only machines in this region")
	return f.onApp(cmd)
}

func matching(list []machines.Machine, processGroup, region string) []machines.Machine {
	var out []machines.Machine
	for _, m := range list {
		group := ""
		if m.Config != nil {
			group = first(m.Config.Metadata["fly_process_group"], "app")
		}
		if (processGroup == "" || group == processGroup) && (region == "" || m.Region == region) {
			out = append(out, m)
		}
	}
	return out
}

// sessionMachine finds the machine of a session, and wakes it if it rests.
func (f *factory) sessionMachine(ctx context.Context, c *client.Client, app, id string, filter func([]machines.Machine) []machines.Machine, choose bool) (*machines.Machine, error) {
	var m *machines.Machine
	if id != "" {
		found, err := c.Get(ctx, app, id)
		if err != nil {
			return nil, unknownMachine(err, app)
		}
		m = found
	} else {
		list, err := c.List(ctx, app, machines.ListOptions{})
		if err != nil {
			return nil, err
		}
		if list = filter(list); len(list) == 0 {
			return nil, hintError{fmt.Errorf("app %s has no such machine", app), "`roost console --app " + app + "` runs in a temporary one; `roost machine list --app " + app + "` shows those that there are"}
		}
		if m, err = f.chooseMachine(list, choose); err != nil {
			return nil, err
		}
	}
	switch m.State {
	case machines.StateStarted:
		return m, nil
	case machines.StateSuspended, machines.StateStarting:
	default:
		return nil, hintError{fmt.Errorf("machine %s is %s", m.ID, m.State), "start it with `roost machine start --app " + app + " " + m.ID + "`"}
	}
	f.io.Notef("Waking machine %s", m.ID)
	if _, err := c.Start(ctx, app, m.ID); err != nil {
		return nil, err
	}
	return m, f.await(ctx, c, app, m, machines.StateStarted)
}

// chooseMachine asks a person, or takes the first one that runs, else the
// first that is suspended.
func (f *factory) chooseMachine(list []machines.Machine, ask bool) (*machines.Machine, error) {
	if !ask {
		for _, want := range []machines.State{machines.StateStarted, machines.StateStarting, machines.StateSuspended} {
			for i := range list {
				if list[i].State == want {
					return &list[i], nil
				}
			}
		}
		return &list[0], nil
	}
	if !f.io.InTTY || !f.io.ErrTTY {
		return nil, usageError{hintError{errors.New("there is no terminal to choose on"), "name the machine with --machine"}}
	}
	for i, m := range list {
		f.io.Notef("%3d  %s  %s  %s  %s", i+1, m.ID, m.Name, m.State, m.Region)
	}
	fmt.Fprintf(f.io.Err, "Machine [1-%d]: ", len(list))
	line, err := bufio.NewReader(f.io.In).ReadString('\n')
	if err != nil && line == "" {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || n < 1 || n > len(list) {
		return nil, usageError{fmt.Errorf("%q is not a number from 1 to %d", strings.TrimSpace(line), len(list))}
	}
	return &list[n-1], nil
}
