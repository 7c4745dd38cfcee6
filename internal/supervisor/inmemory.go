package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// keepInMemory makes sure that what is written below dir never gets to a disk:
// bundles hold the machines' secrets in the clear. It gets a file system of its
// own, in memory, which goes with the directory (undo): that of the run
// directory may be in memory already, but is swapped out, and is the host's.
// Machines can write to some of their files here, and must not fill that. A
// directory that is in use stays as it is: its machines run from it.
func keepInMemory(dir string, log *slog.Logger) error {
	inMemory, err := isInMemory(dir)
	if err != nil {
		return err
	}
	own, err := isMounted(dir)
	if err != nil || inMemory && own {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		if !inMemory {
			log.Warn("the run directory is on a disk, and so are the secrets of the machines in it until the host restarts; use one in memory, such as /run/roost", "dir", dir)
		}
		return nil
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err = unix.Mount("roost", dir, "tmpfs", flags, "mode=0700,size=25%,noswap")
	if err == unix.EINVAL { //nolint:errorlint // a plain errno; kernels before 6.4 do not know noswap
		err = unix.Mount("roost", dir, "tmpfs", flags, "mode=0700,size=25%")
	}
	if err != nil {
		return fmt.Errorf("keep %s in memory: %w", dir, err)
	}
	return nil
}

// isMounted reports whether dir is the top of a file system.
func isMounted(dir string) (bool, error) {
	var st, above unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &st), unix.Stat(filepath.Dir(dir), &above)); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	return st.Dev != above.Dev, nil
}

func isInMemory(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}
