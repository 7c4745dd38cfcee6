package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/roost-run/roost/machines"
)

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

// aboutError says which of several things an error is about.
type aboutError struct {
	what string
	err  error
}

func (e aboutError) Error() string { return e.what + ": " + e.err.Error() }
func (e aboutError) Unwrap() error { return e.err }

// report prints what went wrong and returns the exit code.
func (f *factory) report(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok { // only what was joined at the top
		code := exitDone
		for _, e := range several.Unwrap() {
			code = max(code, f.report(ctx, cmd, e))
		}
		return code
	}
	if code, ok := errors.AsType[exitCodeError](err); ok {
		return int(code)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		f.io.Notef("Interrupted")
		if h, ok := errors.AsType[hintError](err); ok {
			f.io.Notef("Hint: %s", h.hint)
		}
		return exitInterrupted
	}
	message, hint := f.explain(err)
	if about, ok := errors.AsType[aboutError](err); ok {
		message = about.what + ": " + message
	}
	f.io.Notef("Error: %s", message)
	if h, ok := errors.AsType[hintError](err); ok {
		hint = h.hint
	}
	if hint != "" {
		f.io.Notef("Hint: %s", hint)
	}
	if apiErr, ok := errors.AsType[*machines.Error](err); ok {
		if apiErr.RequestID != "" {
			f.io.Notef("Request: %s", apiErr.RequestID)
		}
		if apiErr.Status == http.StatusUnauthorized {
			return exitUnauthenticated
		}
		return exitFailed
	}
	if _, ok := errors.AsType[usageError](err); ok {
		f.io.Notef("Run `%s --help` for usage.", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// explain words an error for a person, with a next step where there is one
// that holds whatever the command was.
func (f *factory) explain(err error) (message, hint string) {
	if apiErr, ok := errors.AsType[*machines.Error](err); ok {
		message = apiErr.Message
		if message == "" {
			message = apiErr.Error()
		}
		// The API's word for the status, which programs match on.
		message = strings.TrimPrefix(message, "failed_precondition: ")
		switch {
		case apiErr.Status == http.StatusUnauthorized:
			hint = "log in with `roost auth login`, or run as root on the host"
		case apiErr.Code == "name_taken":
			hint = "choose another name; `roost app list` shows your apps"
		}
		return message, hint
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && f.address != "" {
		return fmt.Sprintf("no Roost answers at %s: %v", f.address, op.Err), "is `roost server` running? --url or ROOST_URL name another address"
	}
	if op, ok := errors.AsType[*net.DNSError](err); ok && f.address != "" {
		return fmt.Sprintf("no Roost answers at %s: %v", f.address, op), "--url or ROOST_URL name another address"
	}
	return err.Error(), ""
}

// explainUsage makes the complaints about arguments of cmd and all below it say
// what the command takes, and marks them as usage errors.
func explainUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) == nil {
				return nil
			}
			_, takes, _ := strings.Cut(cmd.Use, " ")
			if takes == "" {
				return usageError{fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), strings.Join(args, " "))}
			}
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s needs %s", cmd.CommandPath(), takes)}
			}
			return usageError{fmt.Errorf("%s needs %s, got %q", cmd.CommandPath(), takes, strings.Join(args, " "))}
		}
	}
	for _, sub := range cmd.Commands() {
		explainUsage(sub)
	}
}

// runGroup is what a command does that only holds others.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	err := fmt.Errorf("%s has no command %q", cmd.CommandPath(), args[0])
	var verbs []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			verbs = append(verbs, append([]string{sub.Name()}, sub.Aliases...)...)
		}
	}
	if best := nearest(args[0], verbs); best != "" {
		return usageError{hintError{err, "did you mean `" + cmd.CommandPath() + " " + best + "`?"}}
	}
	return usageError{err}
}

// flagError names the flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	takesCommand := strings.Contains(cmd.Use, "COMMAND")
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usageError{err}
	}
	var names []string
	cmd.Flags().VisitAll(func(fl *pflag.Flag) {
		if !fl.Hidden {
			names = append(names, fl.Name)
		}
	})
	if best := nearest(unknown.GetSpecifiedName(), names); best != "" && unknown.GetSpecifiedShortnames() == "" {
		return usageError{hintError{err, "did you mean --" + best + "?"}}
	}
	if takesCommand {
		return usageError{hintError{err, "if it belongs to the COMMAND, put -- before that"}}
	}
	return usageError{err}
}

// nearest returns the name that was probably meant: one that it begins, or
// that is at most two edits away, and one where it is short; "" if there is none.
func nearest(typed string, names []string) string {
	const far = 3
	best, bestDistance := "", min(far, max(2, len(typed)/3+1))
	for _, name := range slices.Sorted(slices.Values(names)) {
		d := distance(typed, name)
		if len(typed) > 2 && strings.HasPrefix(name, typed) {
			d = 1
		}
		if d < bestDistance && d < len(typed) {
			best, bestDistance = name, d
		}
	}
	return best
}

// distance is how many letters have to be added, removed, changed or swapped
// with their neighbour.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// confirm asks before something that cannot be taken back, unless yes.
func (f *factory) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !f.io.InTTY || !f.io.ErrTTY {
		return usageError{hintError{errors.New("nothing was destroyed: there is no terminal to ask on"), "confirm with --yes"}}
	}
	ok, err := f.io.Confirm(question)
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("nothing was destroyed")
	}
	return nil
}
