package runc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	gorunc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// run calls the runtime binary through f. What the binary says in its log
// becomes the error.
func (d *Driver) run(ctx context.Context, binary, what string, f func(*gorunc.Runc) error) error {
	state := d.stateDir(binary)
	if err := os.MkdirAll(state, 0o711); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	log, err := os.CreateTemp("", "roost-runtime-*.log")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	r := &gorunc.Runc{Command: binary, Root: state, Log: log.Name(), LogFormat: gorunc.JSON}
	if strings.HasPrefix(filepath.Base(binary), "runsc") {
		// The sandbox uses the kernel's stack of the machine's namespace: with
		// its own it would take the addresses away from the interface there.
		r.ExtraArgs = []string{"--network=host"}
	}
	err = f(r)
	if err != nil {
		err = d.explain(ctx, binary, what, err, lastError(log))
	}
	return errors.Join(err, log.Close(), os.Remove(log.Name()))
}

// explain makes an error of what a runtime said. Its text is all there is to
// tell a user's mistake from ours.
func (d *Driver) explain(ctx context.Context, binary, what string, err error, said string) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return &root.Error{Kind: root.Precondition, Message: fmt.Sprintf("the OCI runtime %s is not installed on this host", binary), Err: err}
	case said == "":
		return fmt.Errorf("%s: %w", what, err)
	}
	cause := errors.New(said)
	switch {
	case has(said, "does not exist", "no such container", "container not running", "not exist in"):
		if !has(said, "exec:", "executable") {
			return &root.Error{Kind: root.NotFound, Message: what + ": it does not exist", Err: cause}
		}
		fallthrough
	case has(said, "executable file not found", "executable file `", "exec: \"", "unable to find user", "no such user", "permission denied: unknown"):
		_, message, ok := cutLast(said, "container process: ")
		if !ok {
			message = said
		}
		return &root.Error{Kind: root.Invalid, Message: "cannot run the command: " + message, Err: fmt.Errorf("%s: %w", what, cause)}
	}
	return fmt.Errorf("%s: %s: %w", what, binary, cause)
}

func has(s string, words ...string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// lastError reads the log of one call: lines of JSON, the last error of which
// is the reason. The binaries also write a line or two that is not JSON.
func lastError(log io.Reader) (said string) {
	for s := bufio.NewScanner(log); s.Scan(); {
		var line struct{ Level, Msg string }
		if json.Unmarshal(s.Bytes(), &line) == nil && (line.Level == "error" || line.Level == "fatal") {
			said = line.Msg
		}
	}
	return said
}

// stdio hands files to a process as they are.
type stdio struct {
	in, out, err *os.File
	tty          bool // in is a terminal that the process shall own
}

// or fills in the streams that are not given.
func (s stdio) or(f *os.File) stdio {
	for _, p := range []**os.File{&s.in, &s.out, &s.err} {
		if *p == nil {
			*p = f
		}
	}
	return s
}

// Set implements go-runc's IO. The streams are made blocking, which is a
// property that both ends of a descriptor's copies share: an app that prints
// does not expect to be told to try again.
func (s stdio) Set(cmd *exec.Cmd) {
	for _, f := range []*os.File{s.in, s.out, s.err} {
		_ = unix.SetNonblock(int(f.Fd()), false) // if it is closed, starting fails
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.in, s.out, s.err
	if s.tty {
		// The runtime passes on the changes of the window's size that only the
		// owner of the terminal is told of.
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Setpgid = false
		cmd.SysProcAttr.Setsid = true
		cmd.SysProcAttr.Setctty = true
		cmd.SysProcAttr.Ctty = 0
	}
}

// The rest of go-runc's interface is for pipes, which these are not.

func (stdio) Close() error          { return nil }
func (stdio) Stdin() io.WriteCloser { return nil }
func (stdio) Stdout() io.ReadCloser { return nil }
func (stdio) Stderr() io.ReadCloser { return nil }
