package suite

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"

	"github.com/roost-run/roost/e2e/instance"
)

// A guard is a second process of the test binary, which outlives it: when the
// tests end without closing their instances (a panic, the time-out of go test,
// an interrupt, kill -9), the guard closes them. It learns of that by the end
// of its input, of which the test binary has the only other end. It is in a
// session of its own, so that an interrupt on a terminal does not reach it.
type guard struct {
	cmd *exec.Cmd

	mu sync.Mutex // guards in
	in io.WriteCloser
}

// guardVariable makes a test binary a guard.
const guardVariable = "E2E_GUARD"

// order is a line of a guard's input: what to close, or, with Done, what
// needs it no more.
type order struct {
	Instance *instance.Handle // an instance of the platform
	Dir      string           // or just a directory
	Done     bool
}

func (o order) is(other order) bool {
	if o.Instance != nil && other.Instance != nil {
		return o.Instance.Dir == other.Instance.Dir
	}
	return o.Instance == nil && other.Instance == nil && o.Dir == other.Dir
}

func startGuard() (*guard, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	g := &guard{cmd: exec.Command(self)}
	g.cmd.Env = append(os.Environ(), guardVariable+"=1")
	// With the test binary's own output: go test waits for who has that.
	g.cmd.Stdout, g.cmd.Stderr = os.Stderr, os.Stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return g, g.cmd.Start()
}

func (g *guard) tell(o order) error {
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err = g.in.Write(append(line, '\n'))
	return err
}

// end ends the guard, which closes what nobody else has closed.
func (g *guard) end() error { return errors.Join(g.in.Close(), g.cmd.Wait()) }

// keepGuard is the guard's main program.
func keepGuard(ctx context.Context, orders io.Reader, say io.Writer) error {
	var left []order
	lines := bufio.NewScanner(orders)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("the guard's input: %w", err)
		}
		if o.Done {
			left = slices.DeleteFunc(left, o.is)
		} else {
			left = append(left, o)
		}
	}
	err := lines.Err()
	for _, o := range left {
		if o.Instance == nil {
			err = errors.Join(err, os.RemoveAll(o.Dir))
			continue
		}
		if _, statErr := os.Stat(o.Instance.Dir); errors.Is(statErr, fs.ErrNotExist) {
			continue // it was closed
		}
		tail := o.Instance.LogTail(lastWords)
		closeErr := o.Instance.Reclaim(ctx)
		err = errors.Join(err, closeErr)
		fmt.Fprintf(say, "The tests ended without closing the instance in %s. Closed now: %v. The platform's last words before:\n%s\n", o.Instance.Dir, closeErr == nil, tail)
	}
	return err
}
