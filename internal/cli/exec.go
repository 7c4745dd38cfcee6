package cli

import (
	"errors"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

func newMachineExecCmd(f *factory) *cobra.Command {
	var start client.ExecStart
	var tty, stdin bool
	cmd := &cobra.Command{
		Use:   "exec ID COMMAND...",
		Short: "Run a command inside a running machine; its exit code becomes this command's",
		Example: "  roost machine exec --app shop 148e1234c56789 -- ls -l /app\n" +
			"  roost machine exec --app shop --tty 148e1234c56789 sh",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, c, err := f.machineTarget(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			start.Args = args[1:]
			streams := client.ExecIO{Stdout: f.io.Out, Stderr: f.io.Err}
			if stdin || tty {
				streams.Stdin = f.io.In
			}
			if tty {
				if !f.io.InTTY || !f.io.OutTTY {
					return usageError{errors.New("--tty needs a terminal")}
				}
				restore, err := rawTerminal(&start, &streams)
				if err != nil {
					return err
				}
				defer restore()
			}
			end, err := c.ExecStream(cmd.Context(), app, args[0], start, streams)
			if machines.StatusOf(err) == http.StatusPreconditionFailed {
				return hintError{err, "start it with `roost machine start --app " + app + " " + args[0] + "`"}
			}
			if err != nil {
				return unknownMachine(err, app)
			}
			if end.Code != 0 {
				return exitCodeError(end.Code)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "on a terminal of its own, with input")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().StringArrayVarP(&start.Env, "env", "e", nil, "environment variable `NAME=VALUE` (repeatable)")
	cmd.Flags().StringVar(&start.Dir, "dir", "", "directory to run in (default: the machine's)")
	cmd.Flags().StringVar(&start.User, "user", "", "user to run as (default: root)")
	return f.onApp(cmd)
}

// rawTerminal hands our terminal over: keys go through as they are, and its
// size follows. restore gives it back.
func rawTerminal(start *client.ExecStart, streams *client.ExecIO) (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	start.TTY = true
	if s, ok := terminalSize(fd); ok {
		start.Size = &s
	}
	sizes := make(chan client.Size, 1)
	changed := make(chan os.Signal, 1)
	stopped := make(chan struct{})
	done := make(chan struct{})
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer close(done)
		for {
			select {
			case <-changed:
				if s, ok := terminalSize(fd); ok {
					select {
					case sizes <- s:
					case <-stopped:
						return
					}
				}
			case <-stopped:
				return
			}
		}
	}()
	streams.Resize = sizes
	return func() {
		signal.Stop(changed)
		close(stopped)
		<-done
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, old) // nothing better can be done on the way out
	}, nil
}

func terminalSize(fd int) (client.Size, bool) {
	ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return client.Size{}, false
	}
	return client.Size{Rows: ws.Row, Cols: ws.Col}, true
}
