package builder

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/network"
)

// ownMounts arranges the process's mount namespace, if the server gave it one:
// what it mounts stays in it, what others have mounted below the run and data
// directories is let go, and names are asked where the network of builds can ask.
func ownMounts(cfg *config.Config) (own bool, err error) {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, fmt.Errorf("own mounts: %w", err)
	}
	parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid()))
	if err != nil || ours == parents {
		return false, nil // run by hand or by a test
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return true, fmt.Errorf("own mounts: %w", err)
	}
	if err := errors.Join(letGo(cfg.Run), letGo(cfg.Data)); err != nil {
		return true, fmt.Errorf("own mounts: %w", err)
	}
	dir := filepath.Join(cfg.Data, "builder")
	file := filepath.Join(dir, "resolv.conf")
	text := "nameserver " + network.GatewayIPv4 + "\n"
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		return true, fmt.Errorf("own mounts: %w", err)
	}
	if err := unix.Mount(file, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true, fmt.Errorf("own mounts: resolv.conf: %w", err)
	}
	return true, nil
}

// letGo unmounts, for this process, everything below dir: or a machine's files
// and volumes would stay mounted here after it has gone.
func letGo(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	if err := errors.Join(lines.Err(), f.Close()); err != nil {
		return err
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}
