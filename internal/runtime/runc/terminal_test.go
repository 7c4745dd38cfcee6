package runc

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime"
)

// openTerminal makes a pseudo terminal (pty(7)).
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { _ = master.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// A command on a terminal sees the size of the caller's, also when it changes.
func TestExecTerminal(t *testing.T) {
	d := newDriver(t)
	id, _ := started(t, d, 64*root.MiB, 0, "sleep")
	master, slave := openTerminal(t)
	resize := func(rows, cols uint16) {
		if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
			t.Fatal(err)
		}
	}
	resize(40, 100)
	done := make(chan error, 1)
	go func() {
		code, err := d.Exec(t.Context(), id, runtime.Exec{Args: []string{"/payload", "size"}, Stdin: slave, Stdout: slave, Stderr: slave, TTY: true})
		if err == nil && code != 0 {
			t.Errorf("exit code: got %d", code)
		}
		done <- err
	}()
	if err := master.SetReadDeadline(patience.Deadline()); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	// The new size takes a moment to travel: ask until it is there.
	ask := func(want string) {
		t.Helper()
		for buf := make([]byte, 256); !strings.Contains(seen.String(), want); {
			if _, err := master.WriteString("\n"); err != nil {
				t.Fatal(err)
			}
			n, err := master.Read(buf)
			if err != nil {
				t.Fatalf("terminal: got %q, %v, want %q", seen.String(), err, want)
			}
			seen.Write(buf[:n])
		}
	}
	ask("size 40 100")
	resize(50, 120)
	ask("size 50 120")
	// End of input, until it is heeded; what is still printed has to be read.
	for end := patience.Deadline(); ; {
		if _, err := master.WriteString("\x04"); err != nil {
			t.Fatal(err)
		}
		if err := master.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := master.Read(make([]byte, 256)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("the command did not end; it printed %q", seen.String())
		}
	}
}
