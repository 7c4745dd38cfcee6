package supervisor

import (
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// keepInMemory makes sure that what is written below dir never gets to a disk:
// bundles hold the machines' secrets in the clear. The run directory of a host
// is in memory already; one that is not gets a file system in memory at dir,
// which goes with the directory (undo). A directory that is in use stays as it
// is: its machines run from it.
func keepInMemory(dir string, log *slog.Logger) error {
	inMemory, err := isInMemory(dir)
	if err != nil || inMemory {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		log.Warn("the run directory is on a disk, and so are the secrets of the machines in it until the host restarts; use one in memory, such as /run/roost", "dir", dir)
		return nil
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err = unix.Mount("roost", dir, "tmpfs", flags, "mode=0700,noswap")
	if err == unix.EINVAL { //nolint:errorlint // a plain errno; kernels before 6.4 do not know noswap
		err = unix.Mount("roost", dir, "tmpfs", flags, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("keep %s in memory: %w", dir, err)
	}
	return nil
}

func isInMemory(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}
