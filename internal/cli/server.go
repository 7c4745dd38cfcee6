package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/doctor"
	"github.com/roost-run/roost/internal/ipc"
)

// newServerCmd is `roost server`: the root of the process tree.
func newServerCmd(f *factory, p Processes) *cobra.Command {
	var file string
	var dump bool
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run Roost on this host",
		Long: `Run Roost on this host, in the foreground.

Each setting can be a flag, an environment variable (ROOST_DOMAIN), or a key of
the configuration file; the first of these that is there counts.

When it is told to stop (SIGTERM, systemctl stop) the platform's processes end
and machines run on; the next start takes them back. ` + "`roost server stop --machines`" + `
stops the machines as well and leaves the host as it was.`,
		Example: "  roost server --domain apps.example --listen :80\n  roost server --config ./roost.toml",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (ROOST_CONFIG; default "+config.DefaultFile+", if it exists)")
	cmd.Flags().BoolVar(&dump, "print-config", false, "print the configuration in force and exit")
	load := settingFlags(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if dump {
			f.io.Printf("%s", c.String())
			return nil
		}
		if err := doctor.Refuse(doctor.Examine(cmd.Context(), c)); err != nil {
			return hintError{err, "`roost doctor` shows everything about this host"}
		}
		f.announce(c)
		err = p.Server(cmd.Context(), c)
		if errors.Is(err, unix.EADDRINUSE) {
			return hintError{err, "`--listen :8080=80` serves port 80's apps on 8080, `--api 127.0.0.1:4281` moves the API"}
		}
		return err
	}
	cmd.AddCommand(newServerStopCmd(f))
	return cmd
}

// announce says where a server will be found.
func (f *factory) announce(c config.Config) {
	f.io.Notef("Starting Roost %s; its state is in %s", buildVersion(), c.Data)
	for _, l := range c.Listen {
		host, port, err := net.SplitHostPort(l.Addr)
		if err != nil {
			continue // it was checked
		}
		scheme, own := "http", "80"
		if l.Port == 443 || l.Port == 0 && port == "443" {
			scheme, own = "https", "443"
		}
		name := "<app>." + c.Domain
		if port != own {
			name = net.JoinHostPort(name, port)
		}
		f.io.Notef("  apps   %s://%s (on %s)", scheme, name, first(host, "every address"))
	}
	if c.API != "" {
		f.io.Notef("  API    http://%s, its first token in %s", c.API, c.AdminToken())
	}
	f.io.Notef("  root   %s, without token", c.APISocket())
}

// stopTimeout is how long stopping every machine may take: the longest
// stop_config timeout, and some.
const stopTimeout = 6 * time.Minute

func newServerStopCmd(f *factory) *cobra.Command {
	var all bool
	var run string
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the server of this host, with --machines also every machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := config.Default()
			c.Run = run
			sup := ipc.NewClient(c.SupervisorSocket())
			defer sup.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), stopTimeout)
			defer cancel()
			var host struct{ PID int }
			err := sup.Call(ctx, http.MethodGet, "/v1/host", nil, &host)
			if err != nil {
				return hintError{err, "is `roost server` running with --run " + run + "?"}
			}
			// Opened before it is told, so that the number is still its own.
			pidfd, err := unix.PidfdOpen(host.PID, 0)
			if err != nil {
				return fmt.Errorf("watch the server process %d: %w", host.PID, err)
			}
			ended := os.NewFile(uintptr(pidfd), "server")
			defer ended.Close()
			if err := sup.Call(ctx, http.MethodPost, "/v1/shutdown", struct{ Machines bool }{all}, nil); err != nil {
				return err
			}
			if err := waitEnd(ctx, pidfd); err != nil {
				return err
			}
			if all {
				f.io.Notef("Stopped the server and every machine")
			} else {
				f.io.Notef("Stopped the server; machines run on until the next start takes them back")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "machines", false, "stop machines too and remove everything Roost set up on the host")
	cmd.Flags().StringVar(&run, "run", first(os.Getenv("ROOST_RUN"), config.Default().Run), "the server's run directory (ROOST_RUN)")
	return cmd
}

// waitEnd waits until the process of a pidfd has ended.
func waitEnd(ctx context.Context, pidfd int) error {
	for ctx.Err() == nil {
		// In slices, so that ctx can end it.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the server process: %w", err)
		}
	}
	return context.Cause(ctx)
}

// settingFlags adds a flag for every setting; load reads all sources.
func settingFlags(cmd *cobra.Command, file *string) (load func() (config.Config, error)) {
	settings := config.Settings()
	for _, s := range settings {
		cmd.Flags().Var(&settingValue{text: s.Default()}, s.Flag(), s.Usage)
		if s.ForTests() {
			cmd.Flags().Lookup(s.Flag()).Hidden = true
		}
	}
	return func() (config.Config, error) {
		given := map[string]string{}
		for _, s := range settings {
			if fl := cmd.Flags().Lookup(s.Flag()); fl.Changed {
				given[s.Key] = fl.Value.String()
			}
		}
		return config.Load(given, os.Environ(), first(*file, os.Getenv("ROOST_CONFIG")))
	}
}

// settingValue is a setting's flag. Given again it adds to the list; of a
// setting that is none, config.Load refuses that.
type settingValue struct {
	text  string
	given bool
}

func (v *settingValue) Set(text string) error {
	if v.given {
		text = v.text + "," + text
	}
	v.text, v.given = text, true
	return nil
}

func (v *settingValue) String() string { return v.text }
func (v *settingValue) Type() string   { return "string" }

// newProcessCmds are the server's children; people never call them.
func newProcessCmds(p Processes) []*cobra.Command {
	child := func(name string, main func(context.Context, string) error) *cobra.Command {
		var run string
		cmd := &cobra.Command{
			Use: name, Short: "Started by roost server", Hidden: true, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return main(cmd.Context(), run) },
		}
		cmd.Flags().StringVar(&run, "run", config.Default().Run, "the server's run directory")
		return cmd
	}
	return []*cobra.Command{child("control", p.Control), child("edge", p.Edge), child("builder", p.Builder)}
}
