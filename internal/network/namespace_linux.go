package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// openNamespace opens the network namespace that path is bound to. A path
// without one, an empty file left by a crash included, gives os.ErrNotExist.
func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("%s is not bound to a namespace: %w", path, os.ErrNotExist), f.Close())
	}
	return f, nil
}

// bindNamespace binds the calling goroutine's network namespace to path, or
// with fresh a new one, in which it calls setup first. It returns it opened.
func bindNamespace(path string, fresh bool, setup func() error) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	err = onThread(func() error {
		if fresh {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			if err := setup(); err != nil {
				return err
			}
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind a network namespace to %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, removeNamespace(path))
	}
	return openNamespace(path)
}

// removeNamespace undoes bindNamespace; the namespace goes when its last
// process does. It is idempotent.
func removeNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unbind %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// within runs f on a thread inside the namespace.
func within(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which f may move to another network
// namespace, and waits for it. A thread that cannot be moved back is ended.
func onThread(f func() error) error {
	done := make(chan error, 1) // one result, written once
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, own.Close())
	}()
	return <-done
}

// sysctl is a kernel setting of the calling thread's network namespace, as a
// path below /proc/sys/net.
type sysctl struct{ path, value string }

func setSysctls(settings ...sysctl) error {
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", s.path), []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("set %s: %w", s.path, err)
		}
	}
	return nil
}

func getSysctl(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net", path))
	if err != nil {
		return "", err
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b), nil
}
