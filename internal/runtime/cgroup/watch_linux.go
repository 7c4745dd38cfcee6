package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch calls f when it begins to watch, and at every event on file, until ctx
// ends or f fails. With a control file the kernel is asked to count events into an
// eventfd (version 1), else the file's changes are watched (version 2).
func watch(ctx context.Context, file, control string, f func() error) (err error) {
	var events *os.File
	if control != "" {
		events, err = oomEventFD(file, control)
	} else {
		events, err = modifications(file)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	stop := context.AfterFunc(ctx, func() {
		_ = events.SetReadDeadline(time.Unix(1, 0)) // wakes the read below; fails only when closed
	})
	defer stop()
	buf := make([]byte, 4096)
	for {
		if err := f(); err != nil {
			return err
		}
		if _, err := events.Read(buf); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("watch %s: %w", file, err)
		}
	}
}

func oomEventFD(file, control string) (_ *os.File, err error) {
	watched, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, watched.Close()) }()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	events := os.NewFile(uintptr(fd), "oom events")
	if err := writeFile(control, fmt.Sprintf("%d %d", fd, watched.Fd())); err != nil {
		return nil, errors.Join(err, events.Close())
	}
	return events, nil
}

func modifications(file string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY|unix.IN_DELETE_SELF); err != nil {
		return nil, errors.Join(&os.PathError{Op: "watch", Path: file, Err: err}, events.Close())
	}
	return events, nil
}
