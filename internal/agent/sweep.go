package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
)

// sweep removes what no machine of this host owns: versions that a crash left
// half replaced or half removed. What cannot be removed is logged and stays
// for the next start.
func (a *Agent) sweep(ctx context.Context, instances map[root.InstanceID]*orders.Instance) {
	owned := map[root.InstanceID]bool{}
	keys := map[string]bool{} // lower-case instances: the keys of mounts
	links := map[string]bool{}
	for _, m := range a.all() {
		id := m.rec.Spec.Instance
		owned[id] = true
		keys[strings.ToLower(string(id))] = true
		links[network.InterfaceFor(m.rec.Spec.Address.Index)] = true
	}
	var errs []error
	stuck := map[root.InstanceID]bool{}
	for id := range instances {
		if !owned[id] {
			a.log.Info("removing a version that no machine owns", "machine", instances[id].Machine)
			if err := a.o.Supervisor.Remove(ctx, id); err != nil {
				errs = append(errs, err)
				stuck[id] = true // its files are in use
			} else if m := a.get(instances[id].Machine); m != nil {
				errs = append(errs, a.release(ctx, m.rec))
			}
			delete(instances, id)
		}
	}
	mounted, err := a.o.Images.Mounted(ctx)
	errs = append(errs, err)
	for _, key := range mounted {
		id, n, ok := strings.Cut(key, "-")
		if !ok || keys[id] || len(id) != 26 { // a ULID; other keys are not ours
			continue
		}
		instance := root.InstanceID(strings.ToUpper(id))
		target := filepath.Join(a.bootDir(instance, 0), "..", n, "rootfs")
		if n == "rootfs" {
			target = filepath.Join(a.o.Config.MachineDir(instance), "rootfs")
		}
		if !stuck[instance] {
			errs = append(errs, a.o.Images.Unmount(ctx, key, target))
		}
	}
	attached, err := a.o.Network.Attachments(ctx)
	errs = append(errs, err)
	for _, link := range attached {
		if !links[link] {
			errs = append(errs, a.o.Network.Detach(ctx, network.Attachment{Interface: link}))
		}
	}
	errs = append(errs, a.sweepFiles(ctx, owned, stuck))
	if err := errors.Join(errs...); err != nil {
		a.log.Warn("remains of former machines could not be removed", "err", err)
	}
}

// release gives up what a machine kept for a version that is gone.
func (a *Agent) release(ctx context.Context, rec *root.Machine) error {
	err := a.protect(ctx, rec.ID, rec.Spec.Image.Digest)
	_, e := a.o.Store.ReleaseAddresses(ctx, rec.ID)
	return errors.Join(err, e)
}

func (a *Agent) sweepFiles(ctx context.Context, owned, stuck map[root.InstanceID]bool) error {
	var errs []error
	namespaces, err := os.ReadDir(filepath.Join(a.o.Config.Run, "netns"))
	if err == nil {
		for _, e := range namespaces {
			id := root.InstanceID(e.Name())
			if len(id) == 26 && !owned[id] && !stuck[id] {
				errs = append(errs, a.o.Network.Detach(ctx, network.Attachment{Namespace: a.namespace(id)}))
			}
		}
	}
	dirs, err := os.ReadDir(filepath.Dir(a.o.Config.MachineDir("x")))
	if err == nil {
		for _, e := range dirs {
			id := root.InstanceID(e.Name())
			if len(id) == 26 && !owned[id] && !stuck[id] {
				errs = append(errs, removeDir(a.o.Config.MachineDir(id)))
			}
		}
	}
	return errors.Join(errs...)
}

// keepLogs is how long the log of a machine that is gone can still be read,
// where the budgets of logs leave it so long.
const keepLogs = 7 * 24 * time.Hour

// SweepLogs removes the logs of machines that went away some time ago, and
// the oldest parts of those that are over budget.
func (a *Agent) SweepLogs(now time.Time) error {
	snapshot, cfg := a.o.Catalog.Snapshot(), &a.o.Config
	freed, err := machinelog.Enforce(filepath.Join(cfg.Data, "logs"), machinelog.Budget{
		App: cfg.AppLogs(), All: cfg.LogBudget, Age: keepLogs,
		Live: func(id root.MachineID) bool { return snapshot.Machine(id) != nil },
	}, now)
	if freed > 0 {
		a.log.Info("old logs removed", "freed", freed.String())
	}
	return err
}
