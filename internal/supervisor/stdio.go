package supervisor

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is what a machine can print while no server process reads: the most
// that the kernel gives without raising its own limits.
const pipeSize = 1 << 20

// readBuffers are shared: a machine that prints nothing holds none.
var readBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// makeFIFO makes the FIFO that a machine's stdout and stderr share, so that
// their order is kept.
func makeFIFO(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make fifo %s: %w", path, err)
	}
	return nil
}

// openFIFO opens one end of a FIFO. Both ends are opened for reading and
// writing: then neither sees the other one go.
func openFIFO(path string, nonblock bool) (*os.File, error) {
	flags := os.O_RDWR | unix.O_CLOEXEC
	if nonblock {
		flags |= unix.O_NONBLOCK
	}
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open fifo %s: %w", path, err)
	}
	// A host may allow less; what it has by default will do.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	return os.NewFile(uintptr(fd), path), nil
}

// output carries what a boot prints to its log.
type output struct {
	f    *os.File
	to   io.WriteCloser
	done chan struct{} // closed when the reader has ended

	stopping atomic.Bool // a machine that never pauses must not keep the reader
}

// carry starts the reader of f, which must not block; output owns both.
func carry(f *os.File, to io.WriteCloser) *output {
	o := &output{f: f, to: to, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		raw, err := f.SyscallConn()
		if err != nil {
			return
		}
		// The callback waits without a buffer in its hands.
		_ = raw.Read(func(fd uintptr) bool { return o.drain(fd, math.MaxInt) })
	}()
	return o
}

// drain copies what is there, up to about limit; true means that no more is to
// be read.
func (o *output) drain(fd uintptr, limit int) bool {
	buf := readBuffers.Get().(*[32 << 10]byte)
	defer readBuffers.Put(buf)
	for !o.stopping.Load() && limit > 0 {
		n, err := unix.Read(int(fd), buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return false
		case err != nil || n <= 0: // a terminal whose other end is closed
			return true
		}
		_, _ = o.to.Write(buf[:n]) // a log never fails its writer
		limit -= n
	}
	return true
}

// finish takes what is left after the last process has ended and closes both
// sides.
func (o *output) finish() error {
	o.stop()
	if raw, err := o.f.SyscallConn(); err == nil {
		o.stopping.Store(false)
		_ = raw.Control(func(fd uintptr) { o.drain(fd, 2*pipeSize) })
	}
	return errors.Join(o.to.Close(), o.f.Close())
}

// stop ends the reader and leaves what is not read to a successor.
func (o *output) stop() {
	o.stopping.Store(true)
	_ = o.f.SetReadDeadline(time.Unix(1, 0))
	<-o.done
}

// pollable returns a copy of f that the reader can wait on, and closes f.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copy %s: %w", f.Name(), err), f.Close())
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd), f.Close())
	}
	return os.NewFile(uintptr(fd), f.Name()), f.Close()
}
