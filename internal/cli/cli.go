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
	cmd := newRootCmd(f, p)
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
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.PersistentFlags().StringVar(&f.url, "url", "", "address of the API (ROOST_URL; default: this host's own)")
	cmd.PersistentFlags().StringVar(&f.token, "token", "", "token (ROOST_TOKEN or FLY_API_TOKEN; root on the host needs none)")
	cmd.AddCommand(
		newServerCmd(f, p), newDoctorCmd(f), newStatusCmd(f),
		newOrgCmd(f), newAppCmd(f), newMachineCmd(f), newImageCmd(f), newLogsCmd(f),
		newAuthCmd(f), newTokenCmd(f),
	)
	cmd.AddCommand(newProcessCmds(p)...)
	return cmd
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

// usageError marks a mistake in how a command was called.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitCodeError passes a program's exit code on; there is nothing to print.
type exitCodeError int

func (e exitCodeError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// hintError is an error with a next step.
type hintError struct {
	err  error
	hint string
}

func (e hintError) Error() string { return e.err.Error() }
func (e hintError) Unwrap() error { return e.err }

// report prints what went wrong and returns the exit code.
func (f *factory) report(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	if code, ok := errors.AsType[exitCodeError](err); ok {
		return int(code)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		f.io.Notef("Interrupted")
		return exitInterrupted
	}
	apiErr, fromAPI := errors.AsType[*machines.Error](err)
	message := err.Error()
	if fromAPI && apiErr.Message != "" {
		message = apiErr.Message
	}
	f.io.Notef("Error: %s", message)
	if h, ok := errors.AsType[hintError](err); ok {
		f.io.Notef("Hint: %s", h.hint)
	}
	switch {
	case fromAPI && apiErr.Status == http.StatusUnauthorized:
		f.io.Notef("Hint: log in with `roost auth login --token TOKEN`, or run as root on the host")
		f.requestID(apiErr)
		return exitUnauthenticated
	case fromAPI:
		f.requestID(apiErr)
		return exitFailed
	}
	if isUsage(err) {
		f.io.Notef("Run `%s --help` for usage.", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

func (f *factory) requestID(e *machines.Error) {
	if e.RequestID != "" {
		f.io.Notef("Request: %s", e.RequestID)
	}
}

// isUsage: cobra's own complaints about arguments have no type.
func isUsage(err error) bool {
	if _, ok := errors.AsType[usageError](err); ok {
		return true
	}
	for _, text := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "requires at least", "required flag"} {
		if strings.HasPrefix(err.Error(), text) {
			return true
		}
	}
	return false
}

// client connects to the API: at --url or ROOST_URL, else, for root on the
// host, through the unix socket, else at the address of `roost auth login`.
func (f *factory) client() (*client.Client, error) {
	stored, err := readCredentials()
	if err != nil {
		return nil, err
	}
	o := machines.Options{BaseURL: first(f.url, os.Getenv("ROOST_URL")), Token: first(f.token, os.Getenv("ROOST_TOKEN"), os.Getenv("FLY_API_TOKEN")), UserAgent: "roost-cli/" + buildVersion()}
	if o.BaseURL == "" {
		c := config.Default()
		socket := c.APISocket()
		if fi, err := os.Stat(socket); err == nil && fi.Mode()&os.ModeSocket != 0 && os.Getuid() == 0 {
			o.BaseURL = "unix://" + socket
		} else {
			o.BaseURL = first(stored.URL, "http://"+c.API)
		}
	}
	if strings.HasPrefix(o.BaseURL, "/") {
		o.BaseURL = "unix://" + o.BaseURL
	}
	if o.Token == "" && (stored.URL == "" || stored.URL == o.BaseURL) {
		o.Token = stored.Token
	}
	return client.New(o), nil
}

// appName is the app that a command is about.
func (f *factory) appName() (string, error) {
	name := first(f.app, os.Getenv("ROOST_APP"))
	if name == "" {
		return "", usageError{hintError{errors.New("no app was named"), "name it with --app NAME (or ROOST_APP); `roost app list` shows them"}}
	}
	if _, err := root.ParseAppName(name); err != nil {
		return "", usageError{err}
	}
	return name, nil
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

// group is a command that only holds others.
func group(use, short string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Aliases: aliases, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(verbs...)
	return cmd
}
