package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

// configFlags are the flags that make or change a machine's config.
type configFlags struct {
	env, ports, metadata, entrypoint   []string
	files                              []string
	memory, cpus, swap                 int
	cpuKind, user, restart, stopSignal string
	autostop                           string
	autostart, skipDNS                 bool
	stopAfter, suspendFor, stopTimeout time.Duration
	softLimit, hardLimit, minRunning   int
	concurrency                        string
	command                            []string
	rm                                 bool
}

func (o *configFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVarP(&o.env, "env", "e", nil, "environment variable `NAME=VALUE` (repeatable)")
	fl.StringArrayVarP(&o.ports, "port", "p", nil, "serve a port: `OUTSIDE[:INSIDE][/tcp[:HANDLER]...]` (repeatable); handlers default to http")
	fl.StringArrayVarP(&o.metadata, "metadata", "m", nil, "metadata `NAME=VALUE` (repeatable)")
	fl.StringArrayVar(&o.files, "file-local", nil, "put a local file into the machine: `GUEST_PATH=LOCAL_PATH` (repeatable)")
	fl.StringSliceVar(&o.entrypoint, "entrypoint", nil, "replaces the image's entrypoint (comma-separated words)")
	fl.IntVar(&o.memory, "vm-memory", 0, "memory in MB (default 256)")
	fl.IntVar(&o.cpus, "vm-cpus", 0, "CPUs (default 1)")
	fl.StringVar(&o.cpuKind, "vm-cpu-kind", "", "shared or performance (default shared)")
	fl.IntVar(&o.swap, "swap", 0, "swap in MB")
	fl.StringVar(&o.user, "user", "", "user[:group] to run as (default: the image's)")
	fl.StringVar(&o.restart, "restart", "", "what happens when it ends by itself: no, on-failure (default) or always")
	fl.StringVar(&o.stopSignal, "kill-signal", "", "signal that stops it (default SIGINT)")
	fl.DurationVar(&o.stopTimeout, "kill-timeout", 0, "kill it this long after the signal (default 5s)")
	fl.StringVar(&o.autostop, "autostop", "", "when idle: off (default), stop or suspend")
	fl.BoolVar(&o.autostart, "autostart", true, "a request starts it")
	fl.DurationVar(&o.stopAfter, "auto-stop-after", 0, "idle time before autostop acts (default 5m)")
	fl.DurationVar(&o.suspendFor, "suspend-for", -1, "a suspended machine is stopped after this (default 24h; 0 never)")
	fl.IntVar(&o.minRunning, "min-machines-running", 0, "autostop leaves at least so many of the app's machines running")
	fl.StringVar(&o.concurrency, "concurrency", "requests", "what counts as load: requests or connections")
	fl.IntVar(&o.softLimit, "soft-limit", 0, "load above which other machines are preferred (default 20)")
	fl.IntVar(&o.hardLimit, "hard-limit", 0, "load a machine never exceeds (default: none)")
	fl.BoolVar(&o.skipDNS, "skip-dns-registration", false, "no .internal name")
}

// apply changes config by the flags that were given.
func (o *configFlags) apply(cmd *cobra.Command, c *machines.Config) error {
	given := cmd.Flags().Changed
	for _, list := range []struct {
		flag   string
		values []string
		into   *map[string]string
	}{{"env", o.env, &c.Env}, {"metadata", o.metadata, &c.Metadata}} {
		for _, kv := range list.values {
			k, v, ok := strings.Cut(kv, "=")
			if !ok || k == "" {
				return usageError{fmt.Errorf("--%s %q is not NAME=VALUE", list.flag, kv)}
			}
			if *list.into == nil {
				*list.into = map[string]string{}
			}
			(*list.into)[k] = v
		}
	}
	for _, kv := range o.files {
		guest, local, ok := strings.Cut(kv, "=")
		if !ok {
			return usageError{fmt.Errorf("--file-local %q is not GUEST_PATH=LOCAL_PATH", kv)}
		}
		data, err := os.ReadFile(local)
		if err != nil {
			return usageError{err}
		}
		raw := base64.StdEncoding.EncodeToString(data)
		c.Files = append(c.Files, machines.File{GuestPath: guest, RawValue: &raw})
	}
	if given("vm-memory") || given("vm-cpus") || given("vm-cpu-kind") {
		if c.Guest == nil {
			c.Guest = &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 256}
		}
		if given("vm-memory") {
			c.Guest.MemoryMB = o.memory
		}
		if given("vm-cpus") {
			c.Guest.CPUs = o.cpus
		}
		if given("vm-cpu-kind") {
			c.Guest.CPUKind = o.cpuKind
		}
	}
	if given("swap") {
		c.Init.SwapSizeMB = o.swap
	}
	if given("entrypoint") {
		c.Init.Entrypoint = o.entrypoint
	}
	if len(o.command) > 0 {
		c.Init.Cmd = o.command
	}
	if given("user") {
		if len(c.Processes) == 0 {
			c.Processes = []machines.Process{{}}
		}
		c.Processes[0].User = o.user
	}
	if given("restart") {
		c.Restart = &machines.Restart{Policy: o.restart}
	}
	if given("kill-signal") || given("kill-timeout") {
		if c.StopConfig == nil {
			c.StopConfig = &machines.StopConfig{}
		}
		c.StopConfig.Signal = first(o.stopSignal, c.StopConfig.Signal)
		if given("kill-timeout") {
			c.StopConfig.Timeout = machines.Duration(o.stopTimeout)
		}
	}
	if o.skipDNS {
		c.DNS = &machines.DNS{SkipRegistration: true}
	}
	if o.rm {
		c.AutoDestroy = true
		if !given("restart") {
			c.Restart = &machines.Restart{Policy: "no"}
		}
	}
	if len(o.ports) > 0 {
		c.Services = nil
		for _, p := range o.ports {
			s, err := parsePort(p)
			if err != nil {
				return usageError{err}
			}
			c.Services = append(c.Services, s)
		}
	}
	return o.applyServices(cmd, c)
}

func (o *configFlags) applyServices(cmd *cobra.Command, c *machines.Config) error {
	given := cmd.Flags().Changed
	for i := range c.Services {
		s := &c.Services[i]
		if given("autostop") {
			if err := s.Autostop.UnmarshalJSON([]byte(strconv.Quote(o.autostop))); err != nil {
				return usageError{fmt.Errorf("--autostop %q is not one of off, stop, suspend", o.autostop)}
			}
		}
		if given("autostart") || s.Autostart == nil {
			on := o.autostart
			s.Autostart = &on
		}
		if given("auto-stop-after") {
			d := machines.Duration(o.stopAfter)
			s.AutoStopAfter = &d
		}
		if given("suspend-for") {
			d := machines.Duration(o.suspendFor)
			s.SuspendFor = &d
		}
		if given("min-machines-running") {
			s.MinRunning = o.minRunning
		}
		if given("soft-limit") || given("hard-limit") || given("concurrency") || s.Concurrency == nil {
			s.Concurrency = &machines.Concurrency{Type: o.concurrency, SoftLimit: o.softLimit, HardLimit: o.hardLimit}
		}
	}
	if len(c.Services) == 0 && (given("autostop") || given("auto-stop-after") || given("suspend-for")) {
		return usageError{errors.New("autostop needs a port: add --port")}
	}
	return nil
}

// parsePort reads OUTSIDE[:INSIDE][/PROTOCOL[:HANDLER]...], as flyctl has it.
func parsePort(s string) (machines.Service, error) {
	bad := func(why string) (machines.Service, error) {
		return machines.Service{}, fmt.Errorf("--port %q: %s; the form is OUTSIDE[:INSIDE][/tcp[:HANDLER]...], for example 80:8080/tcp:http", s, why)
	}
	numbers, rest, _ := strings.Cut(s, "/")
	outside, inside, both := strings.Cut(numbers, ":")
	if !both {
		inside = outside
	}
	out, err := strconv.Atoi(outside)
	if err != nil {
		return bad(fmt.Sprintf("%q is not a port", outside))
	}
	in, err := strconv.Atoi(inside)
	if err != nil {
		return bad(fmt.Sprintf("%q is not a port", inside))
	}
	service := machines.Service{Protocol: "tcp", InternalPort: in}
	port := machines.Port{Port: out, Handlers: []string{"http"}}
	if rest != "" {
		parts := strings.Split(rest, ":")
		service.Protocol = parts[0]
		if len(parts) > 1 {
			port.Handlers = parts[1:]
		}
	}
	if port.Port == 443 && rest == "" {
		port.Handlers = []string{"tls", "http"}
	}
	service.Ports = []machines.Port{port}
	return service, nil
}

func newMachineRunCmd(f *factory) *cobra.Command {
	var o configFlags
	var name, region string
	var detach, asJSON, skipLaunch bool
	cmd := &cobra.Command{
		Use:   "run IMAGE [COMMAND...]",
		Short: "Make a machine from an image and start it",
		Long: `Make a machine from an image and start it.

With --rm the machine is destroyed when its command ends; without --detach its
output is shown meanwhile and its exit code becomes this command's.`,
		Example: "  roost machine run --app shop --port 80:8080 --autostop suspend \"$(roost image build . --app shop)\"\n" +
			"  roost machine run --app shop --rm debian:bookworm-slim -- sh -c 'echo hello'",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := f.appName()
			if err != nil {
				return err
			}
			o.command = args[1:]
			req := machines.CreateRequest{Name: name, Region: region, SkipLaunch: skipLaunch, Config: machines.Config{Image: args[0]}}
			if err := o.apply(cmd, &req.Config); err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			m, err := c.Create(cmd.Context(), app, req)
			if err != nil {
				return f.noMachine(cmd.Context(), c, app, err)
			}
			f.printWarnings(m)
			if o.rm && !detach && !skipLaunch {
				return f.attach(cmd.Context(), c, app, m)
			}
			if !detach {
				want := machines.StateStarted
				if skipLaunch {
					want = machines.StateStopped
				}
				if err := f.await(cmd.Context(), c, app, m, want); err != nil {
					return err
				}
				if m, err = c.Get(cmd.Context(), app, m.ID); err != nil {
					return err
				}
			}
			if asJSON {
				return f.io.JSON(m)
			}
			f.io.Notef("Machine %s (%s) is %s", m.ID, m.Name, m.State)
			f.io.Printf("%s\n", m.ID)
			return nil
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&o.rm, "rm", false, "destroy the machine when its command ends")
	cmd.Flags().StringVarP(&name, "name", "n", "", "the machine's name (default: generated)")
	cmd.Flags().StringVarP(&region, "region", "r", "", "where to run it (default: here)")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it runs")
	cmd.Flags().BoolVar(&skipLaunch, "skip-launch", false, "make it, do not start it")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

// noMachine explains why a machine was not made: a missing app and a missing
// image are both "not found".
func (f *factory) noMachine(ctx context.Context, c *client.Client, app string, err error) error {
	if machines.StatusOf(err) != http.StatusNotFound {
		return err
	}
	if _, appErr := c.App(ctx, app); machines.StatusOf(appErr) == http.StatusNotFound {
		return hintError{err, "make it with `roost app create " + app + "`"}
	}
	return hintError{err, "`roost image list` shows the images on the host"}
}

func (f *factory) printWarnings(m *machines.Machine) {
	for _, w := range m.Warnings {
		f.io.Notef("Warning: %s", w)
	}
}

// attach shows a one-off machine's output until it has ended and passes its
// exit code on.
func (f *factory) attach(ctx context.Context, c *client.Client, app string, m *machines.Machine) error {
	logs, stop := context.WithCancel(ctx)
	defer stop()
	shown := make(chan error, 1)
	go func() {
		shown <- c.Logs(logs, app, client.LogOptions{Machine: m.ID, Follow: true}, func(l client.LogLine) error {
			if l.Provider == "app" {
				f.io.Printf("%s\n", l.Message)
			}
			if l.Provider == "runner" && lastWord(l.Message) {
				return errEnded
			}
			return nil
		})
	}()
	ended := awaitEnd(ctx, c, app, m.ID)
	var exit machines.ExitEvent
	var err error
	// The last lines may still be on their way: the runner's own is the end.
	patience := noLines
	if ended == nil {
		if exit, err = exitOf(ctx, c, app, m.ID); err == nil && exit.Error == "" {
			patience = lastLines
		}
	}
	timer := time.AfterFunc(patience, stop)
	defer timer.Stop()
	if err := <-shown; err != nil && !errors.Is(err, errEnded) && logs.Err() == nil {
		f.io.Notef("Warning: the output may be incomplete: %v", err)
	}
	if ended != nil && ctx.Err() != nil {
		return hintError{ended, "machine " + m.ID + " runs on; `roost machine destroy --app " + app + " --force --yes " + m.ID + "` ends it"}
	}
	if ended != nil {
		return ended
	}
	if err != nil {
		return err
	}
	if exit.Error != "" {
		return errors.New(exit.Error)
	}
	if exit.OOMKilled {
		f.io.Notef("Error: %s", exitWords(&exit))
	}
	if exit.ExitCode != 0 {
		return exitCodeError(max(exit.ExitCode, 1))
	}
	return nil
}

// awaitEnd waits until a one-off machine is gone, however long it takes.
func awaitEnd(ctx context.Context, c *client.Client, app, id string) error {
	for {
		_, err := c.Wait(ctx, app, id, machines.WaitOptions{State: machines.StateDestroyed, Timeout: time.Minute})
		switch machines.StatusOf(err) {
		case http.StatusRequestTimeout:
			continue
		case http.StatusNotFound:
			return nil
		}
		return err
	}
}

// exitOf reads how a destroyed machine ended.
func exitOf(ctx context.Context, c *client.Client, app, id string) (machines.ExitEvent, error) {
	list, err := c.List(ctx, app, machines.ListOptions{Deleted: true})
	if err != nil {
		return machines.ExitEvent{}, err
	}
	for _, m := range list {
		for _, e := range m.Events {
			if m.ID == id && e.Request != nil && e.Request.ExitEvent != nil {
				return *e.Request.ExitEvent, nil
			}
		}
	}
	return machines.ExitEvent{}, fmt.Errorf("machine %s is gone and how it ended was not recorded", id)
}

// lastLines is how long an ended machine's last output may take to arrive,
// and noLines that of one of which it is not known that it ran.
const (
	lastLines = 15 * time.Second
	noLines   = 2 * time.Second
)

// lastWord reports whether the runner says that the command has ended.
func lastWord(line string) bool {
	return strings.HasPrefix(line, "Main child exited") || strings.HasPrefix(line, "Main child ended") || strings.HasPrefix(line, "Out of memory: ")
}

var errEnded = errors.New("the machine ended")

func newMachineUpdateCmd(f *factory) *cobra.Command {
	var o configFlags
	var image string
	var skipStart, yes bool
	cmd := &cobra.Command{
		Use:     "update ID",
		Short:   "Change a machine: it keeps its id and gets a new version",
		Example: "  roost machine update --app shop 148e1234c56789 --image registry.localhost/shop:v2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, err := f.machineTarget(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			m, err := c.Get(cmd.Context(), app, args[0])
			if err != nil {
				return unknownMachine(err, app)
			}
			if m.Config == nil {
				return errors.New("the machine's host cannot be reached, so its config is not known")
			}
			config := *m.Config
			if image != "" {
				config.Image = image
			}
			if err := o.apply(cmd, &config); err != nil {
				return err
			}
			u := machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: config, SkipLaunch: skipStart}, CurrentVersion: m.InstanceID}
			next, err := c.Update(cmd.Context(), app, m.ID, u)
			if err != nil {
				return err
			}
			f.printWarnings(next)
			if !skipStart {
				if err := f.await(cmd.Context(), c, app, next, machines.StateStarted); err != nil {
					return err
				}
			}
			f.io.Notef("Machine %s updated to version %s", m.ID, next.InstanceID)
			return nil
		},
	}
	o.register(cmd)
	cmd.Flags().StringVarP(&image, "image", "i", "", "image of the new version (default: the same)")
	cmd.Flags().BoolVar(&skipStart, "skip-start", false, "do not start a machine that is stopped")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "accepted for scripts written for flyctl; nothing is asked")
	return f.onApp(cmd)
}
