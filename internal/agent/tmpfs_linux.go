package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountTmpfs makes dir, which need not exist, a file system in memory of its
// own with that many bytes and files.
func mountTmpfs(dir string, bytes, files int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unmountTmpfs(dir); err != nil { // of a boot that was prepared before
		return err
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", bytes, files))
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// unmountTmpfs undoes mountTmpfs; it is idempotent. The last machine that uses
// it keeps it.
func unmountTmpfs(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
