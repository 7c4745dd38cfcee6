package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/orders"
)

// stopAll stops every machine by its own signal and timeout and forgets it.
func (a *slots) stopAll(ctx context.Context) error {
	var g errgroup.Group
	for _, s := range a.list() {
		g.Go(func() error {
			s.mu.Lock()
			s.removing = true
			s.notify()
			s.mu.Unlock()
			_, err := s.stop(ctx, orders.Stop{Source: orders.SourceHost, Reason: orders.ReasonHostShutdown})
			s.mu.Lock()
			r := s.run
			s.mu.Unlock()
			if r != nil {
				select {
				case <-r.ended:
				case <-ctx.Done():
					return errors.Join(err, s.gaveUp(ctx))
				}
			}
			return err
		})
	}
	return g.Wait()
}

// undo takes back everything that was made on the host; the machines have
// ended.
func (s *server) undo(ctx context.Context) error {
	var errs []error
	for _, sl := range s.slots.list() {
		s.slots.forget(sl)
	}
	s.closeFigures()
	existing, err := s.slots.driver.List(ctx)
	errs = append(errs, err)
	for _, e := range existing {
		errs = append(errs, s.slots.driver.Delete(ctx, e.ID, true))
	}
	// The agent's mounts: it is gone, and their processes too. The network
	// goes first, it unbinds its own namespaces.
	errs = append(errs, s.network.Close(ctx), unmountBelow(s.cfg.Run), s.cgroups.RemoveGroup(buildsGroup), s.cgroups.Remove(), s.swap.Close())
	for _, name := range []string{"slots", "machines", "views", "lxcfs", "lxcfs.pid", "lxcfs.log", "netns", "sockets.json", "children.json", "api.sock", "runtime", "server.lock"} {
		errs = append(errs, os.RemoveAll(filepath.Join(s.cfg.Run, name)))
	}
	return errors.Join(errs...)
}

// unmountBelow unmounts everything under dir, the last one mounted first.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, unescape(fields[4]))
		}
	}
	errs := []error{lines.Err(), f.Close()}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
