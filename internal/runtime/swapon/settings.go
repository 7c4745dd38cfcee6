package swapon

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// settings are the container's own, in /proc/sys/vm, and what they say until
// the container writes them. Swappiness counts where the kernel knows it for
// each container (control groups version 1), from the next swapon on;
// overcommit_memory is remembered only: the host's, which every container
// shares, stays as it is.
var settings = map[string]string{"swappiness": "60\n", "overcommit_memory": "0\n"}

const (
	settingsDir = "/proc/sys/vm"
	// scratch is a directory that every container has and that nothing uses
	// before its first process runs.
	scratch = "/dev/shm"
)

// OwnSettings puts files that can be written over two settings of the host, in
// the mount namespace of a container that has been created and not started.
// OCI runtimes refuse such mounts in a bundle. The files live in a file system
// of their own, of the size of a few pages, so that nobody fills the host's.
func OwnSettings(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return fmt.Errorf("own settings: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go inNamespace(ns, done)
	if err := <-done; err != nil {
		return fmt.Errorf("own settings: %w", err)
	}
	return nil
}

// inNamespace never gives its thread back: it ends with the goroutine.
func inNamespace(ns *os.File, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread would not end, and it is what /proc/PID/root shows to
		// others. It is locked, so this one gets another.
		defer runtime.UnlockOSThread()
		inner := make(chan error, 1)
		go inNamespace(ns, inner)
		done <- <-inner
		return
	}
	done <- func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		return mountSettings()
	}()
}

func mountSettings() (err error) {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", scratch, "tmpfs", flags, "size=32k,nr_inodes=8,mode=0755"); err != nil {
		return err
	}
	defer func() {
		if uerr := unix.Unmount(scratch, unix.MNT_DETACH); err == nil {
			err = uerr
		}
	}()
	for name, value := range settings {
		file, target := filepath.Join(scratch, name), filepath.Join(settingsDir, name)
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return nil
}
