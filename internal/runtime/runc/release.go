package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// execFIFO is where runc holds a created container's first process, in the
// directory of the container's state: the process opens it for writing, says
// so by one byte, and becomes the program.
const execFIFO = "exec.fifo"

// release lets a created container go by doing what `runc start` does, which
// is to read that FIFO and to remove it. Starting a process for that takes
// longer than all else between a request and the program that it wakes. false
// means that nothing was done and the runtime itself has to start it, or say
// why it cannot: it is another one than runc, or the container is not one that
// waits.
func (d *Driver) release(ctx context.Context, id string, c *container) (released bool, err error) {
	if filepath.Base(c.binary) != "runc" || c.pidfd == nil {
		return false, nil
	}
	path := filepath.Join(d.stateDir(c.binary), id, execFIFO)
	// For reading and writing: opening it does not wait for the process, and
	// reading does not end before it came.
	fifo, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("start container %s: open %s: %w", id, path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fifo)) }()
	wait := []unix.PollFd{{Fd: int32(fifo), Events: unix.POLLIN}, {Fd: int32(c.pidfd.Fd()), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		_, err := unix.Poll(wait, 50) // milliseconds, to notice ctx
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("start container %s: %w", id, err)
		case err != nil:
		case wait[0].Revents != 0:
			// Should this process end before it is removed, the next one finds a
			// container that was never noted as started, and deletes it.
			if err := os.Remove(path); err != nil {
				return true, fmt.Errorf("start container %s: %w", id, err)
			}
			return true, nil
		case wait[1].Revents != 0:
			return false, nil // it ended instead
		}
	}
	return false, fmt.Errorf("start container %s: %w", id, context.Cause(ctx))
}
