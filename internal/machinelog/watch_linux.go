package machinelog

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// retry is how often a directory that does not exist yet is looked for, when
// its own parent does not exist either, and how often a reader looks by itself
// when the kernel has no more inotify instances for the user (128 by default).
const retry = 500 * time.Millisecond

// changes tells when something happens in a directory (inotify(7)). While it
// does not exist its parent is watched.
type changes struct {
	dir      string
	inotify  *os.File // nil when there are none left
	fd       int
	watching bool // dir itself
}

func watch(dir string) (*changes, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return &changes{dir: dir}, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	c := &changes{dir: dir, fd: fd, inotify: os.NewFile(uintptr(fd), "inotify")}
	if err := c.add(); err != nil {
		return nil, errors.Join(err, c.inotify.Close())
	}
	return c, nil
}

// add watches the directory, or its parent until it is there.
func (c *changes) add() error {
	c.watching = false
	for range 2 { // it may appear between the two
		_, err := unix.InotifyAddWatch(c.fd, c.dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_ONLYDIR)
		if err == nil {
			c.watching = true
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return &fs.PathError{Op: "watch", Path: c.dir, Err: err}
		}
		_, err = unix.InotifyAddWatch(c.fd, filepath.Dir(c.dir), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &fs.PathError{Op: "watch", Path: filepath.Dir(c.dir), Err: err}
		}
	}
	return nil
}

// wait returns when something has changed, a moment after, so that a busy
// machine does not wake the reader for every line.
func (c *changes) wait(ctx context.Context) error {
	if c.inotify == nil {
		return sleep(ctx, retry)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = c.inotify.SetReadDeadline(time.Unix(1, 0)) // wakes the read below; fails only when closed
	})
	defer stop()
	buf := make([]byte, 16<<10)
	if !c.watching {
		if err := c.inotify.SetReadDeadline(time.Now().Add(retry)); err != nil {
			return err
		}
	}
	_, err := c.inotify.Read(buf)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if err := c.inotify.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	// It may have been made, or deleted and made anew; else this does nothing.
	if err := c.add(); err != nil {
		return err
	}
	return sleep(ctx, settle)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func (c *changes) close() {
	if c.inotify != nil {
		_ = c.inotify.Close() // only ever read from
	}
}
