// Package cli is the command line: one file per verb or per family of equal
// verbs. It talks to the API like any other client; the processes of a host
// are handed in by main, so that it links none of them.
//
// Answers go to standard output, everything else to standard error. Exit codes:
// 0 done, 1 failed, 2 wrong usage, 4 not authenticated, 130 interrupted; an
// attached one-off machine's and an exec's own exit code is passed on.
package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/cli/term"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/machines"
)

// Processes are the entry points of the processes of a host.
type Processes struct {
	Server                 func(ctx context.Context, c config.Config) error
	Control, Edge, Builder func(ctx context.Context, runDir string) error
}

// The exit codes.
const (
	exitDone            = 0
	exitFailed          = 1
	exitUsage           = 2
	exitUnauthenticated = 4
	exitInterrupted     = 130
)

// version is set by the linker; empty in a plain go build.
var version string

// factory makes what commands need when they need it, so that a command that
// only prints help opens nothing.
type factory struct {
	io *term.IO

	url, token string // flags
	app        string

	address string // of the API, once there is a client
}

// Main runs the command line and returns the exit code.
func Main(args []string, p Processes) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Run(ctx, term.System(), args, p)
}

// Run is Main with streams and context of the caller's.
func Run(ctx context.Context, t *term.IO, args []string, p Processes) int {
	f := &factory{io: t}
	cmd := newRootCmd(f, p) //nolint:contextcheck // commands get it from cobra
	cmd.SetArgs(args)
	cmd.SetOut(t.Out)
	cmd.SetErr(t.Err)
	executed, err := cmd.ExecuteContextC(ctx)
	return f.report(ctx, executed, err)
}

func newRootCmd(f *factory, p Processes) *cobra.Command {
	cmd := &cobra.Command{
		Use:           "roost",
		Short:         "Your own Fly.io on servers you own",
		Long:          "Roost turns a Linux host into a platform where apps are container images\nthat run as machines, sleep when idle, and wake while the request waits.",
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd: true,
		},
	}
	cmd.SetFlagErrorFunc(flagError)
	cmd.SetVersionTemplate("roost {{.Version}}\n")
	cmd.PersistentFlags().StringVar(&f.url, "url", "", "address of the API (ROOST_URL; default: this host's own)")
	cmd.PersistentFlags().StringVar(&f.token, "token", "", "token (ROOST_TOKEN or FLY_API_TOKEN; root on the host needs none)")
	cmd.AddCommand(
		newServerCmd(f, p), newDoctorCmd(f), newStatusCmd(f),
		newLaunchCmd(f), newDeployCmd(f), newReleaseCmd(f), newRollbackCmd(f), newConfigCmd(f),
		newOrgCmd(f), newAppCmd(f), newMachineCmd(f), newImageCmd(f), newCertsCmd(f), newSecretsCmd(f), newScaleCmd(f), newProxyCmd(f), newConsoleCmd(f), newSSHCmd(f), newLogsCmd(f), newChecksCmd(f),
		newAuthCmd(f), newTokenCmd(f),
	)
	cmd.AddCommand(newProcessCmds(p)...)
	cmd.AddCommand(newVersionCmd(f))
	cmd.SetHelpCommand(newHelpCmd(cmd))
	cmd.Args, cmd.RunE = cobra.ArbitraryArgs, runGroup
	explainUsage(cmd)
	return cmd
}

func newVersionCmd(f *factory) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use: "version", Short: "Print the version of this binary", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return f.io.JSON(map[string]string{"version": buildVersion(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
			}
			f.io.Printf("roost %s\n", buildVersion())
			return nil
		},
	}, &asJSON)
}

// newHelpCmd is cobra's, but for a command that does not exist: that is a
// mistake, and no answer.
func newHelpCmd(rootCmd *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command", Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := rootCmd.Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 && cmd.HasSubCommands() {
				return runGroup(cmd, rest)
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// client connects to the API.
func (f *factory) client() (*client.Client, error) {
	stored, err := readCredentials()
	if err != nil {
		return nil, err
	}
	c := config.Default()
	c.Run = first(os.Getenv("ROOST_RUN"), c.Run)
	place := connection{url: f.url, token: f.token, env: os.Getenv, stored: stored, fallback: "http://" + c.API}
	if fi, err := os.Stat(c.APISocket()); err == nil && fi.Mode()&os.ModeSocket != 0 && os.Getuid() == 0 {
		place.socket = c.APISocket()
	}
	o := place.choose()
	f.address = o.BaseURL
	return client.New(o), nil
}

// connection is all that decides where the API is and who calls it.
type connection struct {
	url, token string // flags
	env        func(string) string
	stored     credentials
	socket     string // of this host's API, if we may use it
	fallback   string
}

// choose: --url or ROOST_URL, else, for root on the host, the unix socket,
// else the address of `roost auth login`, else this host's own.
func (c connection) choose() machines.Options {
	o := machines.Options{
		BaseURL:   normalURL(first(c.url, c.env("ROOST_URL"), c.socket, c.stored.URL, c.fallback)),
		Token:     first(c.token, c.env("ROOST_TOKEN"), c.env("FLY_API_TOKEN")),
		UserAgent: "roost-cli/" + buildVersion(),
	}
	// A stored token goes nowhere but where it was accepted.
	if o.Token == "" && normalURL(c.stored.URL) == o.BaseURL {
		o.Token = c.stored.Token
	}
	return o
}

// normalURL reads an address of the API as people write it: a URL, HOST:PORT,
// or the path of a socket.
func normalURL(s string) string {
	switch {
	case s == "":
		return ""
	case strings.HasPrefix(s, "/"):
		return "unix://" + s
	case !strings.Contains(s, "://"):
		s = "http://" + s
	}
	return strings.TrimRight(s, "/")
}

// appName is the app that a command is about: the flag, the environment, the
// fly.toml of the working directory.
func (f *factory) appName() (string, error) {
	name := f.namedApp()
	if name == "" {
		name = appOf(".")
	}
	if name == "" {
		return "", usageError{hintError{errors.New("no app was named"), "name it with --app NAME (or ROOST_APP), or go to a folder whose fly.toml names it; `roost app list` shows them"}}
	}
	if _, err := root.ParseAppName(name); err != nil {
		return "", usageError{err}
	}
	return name, nil
}

// target is what most commands begin with: the app they are about, and the API.
func (f *factory) target() (app string, c *client.Client, err error) {
	if app, err = f.appName(); err != nil {
		return "", nil, err
	}
	c, err = f.client()
	return app, c, err
}

// machineTarget is target for a command about a machine, as its id alone says
// which app that is: where none is named, it is looked for.
func (f *factory) machineTarget(ctx context.Context, machine string) (app string, c *client.Client, err error) {
	app, c, err = f.target()
	if f.namedApp() != "" || appOf(".") != "" {
		return app, c, err
	}
	if _, bad := root.ParseMachineID(machine); bad != nil {
		return "", nil, err
	}
	if c, err = f.client(); err != nil {
		return "", nil, err
	}
	app, err = c.AppOfMachine(ctx, machine)
	if machines.StatusOf(err) == http.StatusForbidden { // a token for one app: it sees no others
		_, err = f.appName()
		return "", nil, err
	}
	if err == nil && app == "" {
		err = hintError{fmt.Errorf("no app has a machine %s", machine), "`roost machine list --app APP` shows an app's"}
	}
	return app, c, err
}

// namedApp is the app that was named, "" none: FLY_APP is flyctl's variable.
func (f *factory) namedApp() string {
	return first(f.app, os.Getenv("ROOST_APP"), os.Getenv("FLY_APP"))
}

// onApp adds the --app flag.
func (f *factory) onApp(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&f.app, "app", "a", "", "the app (ROOST_APP)")
	return cmd
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// jsonFlag adds --json to a command that reads.
func jsonFlag(cmd *cobra.Command, on *bool) *cobra.Command {
	cmd.Flags().BoolVar(on, "json", false, "print JSON")
	return cmd
}

// table prints rows, and to a person, when there are none, what to do.
func (f *factory) table(none string, header []string, rows [][]string) error {
	if len(rows) == 0 && f.io.OutTTY {
		f.io.Notef("%s", none)
		return nil
	}
	return f.io.List(header, rows)
}

// printList prints what a command found: as JSON, or as table does, with a row
// for each.
func printList[T any](f *factory, asJSON bool, found []T, none string, header []string, row func(T) []string) error {
	if asJSON {
		return f.io.JSON(append([]T{}, found...)) // none are [], not null
	}
	rows := make([][]string, 0, len(found))
	for _, v := range found {
		rows = append(rows, row(v))
	}
	return f.table(none, header, rows)
}

// group is a command that only holds others.
func group(use, short string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Aliases: aliases, Args: cobra.ArbitraryArgs, RunE: runGroup}
	cmd.AddCommand(verbs...)
	return cmd
}
