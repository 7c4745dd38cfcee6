package state

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"

	root "github.com/roost-run/roost"
)

const (
	// graveLifetime is how long a destroyed machine can be read back.
	graveLifetime = time.Hour
	// maxGraves bounds what one app keeps of them.
	maxGraves = 100
	// maxHeld is how many address indexes a machine keeps: the current
	// version's and those of the ones before it that may still drain.
	maxHeld = 3
)

const machinesPrefix = "machines/"

func machineUnder(id root.MachineID) string { return machinesPrefix + string(id) + "/" }
func specKey(id root.MachineID) string      { return machineUnder(id) + "spec" }
func statusKey(id root.MachineID) string    { return machineUnder(id) + "status" }
func leaseKey(id root.MachineID) string     { return machineUnder(id) + "lease" }

func nameKey(app root.AppName, name string) string { return namesUnder(app) + name }

func addressKey(host root.HostID, index uint32) string {
	return addressesUnder(host) + strconv.FormatUint(uint64(index), 10)
}

func addressesUnder(host root.HostID) string { return "addresses/" + string(host) + "/" }

func graveKey(app root.AppName, id root.MachineID) string { return gravesUnder(app) + string(id) }

// CreateMachine stores a machine with its first version and status, all or
// nothing. The app must exist and take machines (NotFound, Precondition), the
// id (Conflict, "machine_exists"), the name in its app (Conflict,
// "machine_name_taken") and the address index on its host (Conflict,
// "address_taken") must be free. An index of 0 is no address and always free.
func (s *Store) CreateMachine(ctx context.Context, m root.Machine) (int64, error) {
	return attempt(ctx, "create machine "+string(m.ID), func() (int64, error) {
		app, appRev, err := s.app(ctx, m.App)
		if err != nil {
			return 0, err
		}
		if app.Deleting {
			return 0, root.Errorf(root.Precondition, "app %s is being deleted and takes no machines", m.App)
		}
		ifs := []condition{
			unchanged(appKey(m.App), appRev),
			absent(specKey(m.ID)).or(&root.Error{Kind: root.Conflict, Code: root.CodeMachineExists, Message: fmt.Sprintf("a machine %s exists already", m.ID)}),
			absent(nameKey(m.App, m.Name)).or(&root.Error{Kind: root.Conflict, Code: root.CodeMachineNameTaken, Message: fmt.Sprintf("app %s has a machine named %s already", m.App, m.Name)}),
		}
		var held []uint32
		if index := m.Spec.Address.Index; index != 0 {
			held = []uint32{index}
			ifs = append(ifs, free(m.Host, index))
		}
		then := []clientv3.Op{
			clientv3.OpPut(specKey(m.ID), encode(fromMachine(m, held))),
			clientv3.OpPut(statusKey(m.ID), encode(fromStatus(m.Status))),
			clientv3.OpPut(nameKey(m.App, m.Name), string(m.ID)),
			clientv3.OpDelete(graveKey(m.App, m.ID)),
		}
		for _, index := range held {
			then = append(then, clientv3.OpPut(addressKey(m.Host, index), string(m.ID)))
		}
		if m.Lease != nil {
			then = append(then, clientv3.OpPut(leaseKey(m.ID), encode(fromLease(*m.Lease))))
		}
		return s.commit(ctx, ifs, then...)
	})
}

// free holds while no machine has the address index.
func free(host root.HostID, index uint32) condition {
	return absent(addressKey(host, index)).or(
		&root.Error{Kind: root.Conflict, Code: root.CodeAddressTaken, Message: fmt.Sprintf("address %d of host %s is taken", index, host)})
}

// alive holds while the machine exists.
func alive(id root.MachineID) condition { return present(specKey(id)).or(errNoMachine(id)) }

// Machine reads one machine as it is stored; kind NotFound.
func (s *Store) Machine(ctx context.Context, id root.MachineID) (*root.Machine, error) {
	resp, err := s.client.Get(ctx, machineUnder(id), clientv3.WithPrefix())
	if err != nil {
		return nil, wrap("read machine "+string(id), err)
	}
	p := newParts()
	for _, kv := range resp.Kvs {
		if err := p.put(kv); err != nil {
			return nil, wrap("read machine "+string(id), err)
		}
	}
	m := p.machine(id)
	if m == nil {
		return nil, errNoMachine(id)
	}
	return m, nil
}

func errNoMachine(root.MachineID) error { return root.Errorf(root.NotFound, "machine not found") }

// spec reads a machine's spec record with its revision.
func (s *Store) spec(ctx context.Context, id root.MachineID) (specRecord, int64, error) {
	var r specRecord
	kv, err := s.get(ctx, specKey(id))
	if err != nil {
		return r, 0, err
	}
	if kv == nil {
		return r, 0, errNoMachine(id)
	}
	return r, kv.ModRevision, decode(kv.Value, specVersion, &r)
}

// UpdateSpec gives a machine its next version; kind Conflict, code
// "version_changed", when the live version is not was, and "address_taken"
// when the new version's address belongs to another machine. The addresses of
// earlier versions stay the machine's, at most three in all, until
// ReleaseAddresses.
func (s *Store) UpdateSpec(ctx context.Context, id root.MachineID, was root.InstanceID, spec root.Spec) (int64, error) {
	return attempt(ctx, "update machine "+string(id), func() (int64, error) {
		r, rev, err := s.spec(ctx, id)
		if err != nil {
			return 0, err
		}
		if r.Instance != string(was) {
			return 0, &root.Error{Kind: root.Conflict, Code: "version_changed", Message: fmt.Sprintf("machine %s is at version %s, not at %s: read it again and repeat the change", id, r.Instance, was)}
		}
		host := root.HostID(r.Host)
		ifs := []condition{unchanged(specKey(id), rev)}
		var then []clientv3.Op
		if index := spec.Address.Index; index != 0 && !slices.Contains(r.Held, index) {
			ifs = append(ifs, free(host, index))
			then = append(then, clientv3.OpPut(addressKey(host, index), string(id)))
			r.Held = append(r.Held, index)
			for len(r.Held) > maxHeld {
				then = append(then, clientv3.OpDelete(addressKey(host, r.Held[0])))
				r.Held = r.Held[1:]
			}
		}
		r.setSpec(spec)
		return s.commit(ctx, ifs, append(then, clientv3.OpPut(specKey(id), encode(r)))...)
	})
}

// ReleaseAddresses gives up the addresses of a machine's earlier versions:
// call it when nothing of them is left on the host.
func (s *Store) ReleaseAddresses(ctx context.Context, id root.MachineID) (int64, error) {
	return attempt(ctx, "release addresses of machine "+string(id), func() (int64, error) {
		r, rev, err := s.spec(ctx, id)
		if err != nil {
			return 0, err
		}
		var then []clientv3.Op
		for _, index := range r.Held {
			if index != r.Address.Index {
				then = append(then, clientv3.OpDelete(addressKey(root.HostID(r.Host), index)))
			}
		}
		if len(then) == 0 {
			return rev, nil
		}
		r.Held = []uint32{r.Address.Index}
		return s.commit(ctx, []condition{unchanged(specKey(id), rev)}, append(then, clientv3.OpPut(specKey(id), encode(r)))...)
	})
}

// Addresses returns the address indexes in use on a host, in order, those of
// versions that drain included.
func (s *Store) Addresses(ctx context.Context, host root.HostID) ([]uint32, error) {
	var taken []uint32
	err := s.list(ctx, addressesUnder(host), func(kv *mvccpb.KeyValue) error {
		index, err := strconv.ParseUint(strings.TrimPrefix(string(kv.Key), addressesUnder(host)), 10, 32)
		taken = append(taken, uint32(index))
		return err
	}, clientv3.WithKeysOnly())
	slices.Sort(taken)
	return taken, err
}

// EditSpec changes what may change within a version: metadata, cordon, destroy.
// f may run several times and gets a spec of its own; its error ends the
// edit. Changing Instance or Address is a mistake and gives kind Internal.
func (s *Store) EditSpec(ctx context.Context, id root.MachineID, f func(*root.Spec) error) (int64, error) {
	return attempt(ctx, "edit machine "+string(id), func() (int64, error) {
		r, rev, err := s.spec(ctx, id)
		if err != nil {
			return 0, err
		}
		before := encode(r)
		spec := r.spec()
		if err := f(&spec); err != nil {
			return 0, err
		}
		if string(spec.Instance) != r.Instance || addressRecord(spec.Address) != r.Address {
			return 0, fmt.Errorf("an edit must not change version or address")
		}
		r.setSpec(spec)
		after := encode(r)
		if after == before {
			return rev, nil
		}
		return s.commit(ctx, []condition{unchanged(specKey(id), rev)}, clientv3.OpPut(specKey(id), after))
	})
}

// PutStatus stores a status unless a newer one, by its stamp, is there
// already: that one stays, without error. Kind NotFound when the machine is
// gone.
func (s *Store) PutStatus(ctx context.Context, id root.MachineID, status root.Status) (int64, error) {
	return attempt(ctx, "store status of machine "+string(id), func() (int64, error) {
		kv, err := s.get(ctx, statusKey(id))
		if err != nil {
			return 0, err
		}
		rev := int64(0)
		if kv != nil {
			rev = kv.ModRevision
			var old statusRecord
			// An unreadable status is replaced: the agent's word is the truth.
			if err := decode(kv.Value, statusVersion, &old); err != nil {
				s.unreadable(kv, err)
			} else if status.Stamp.Before(root.Stamp(old.Stamp)) {
				return rev, nil
			}
		}
		return s.commit(ctx, []condition{alive(id), unchanged(statusKey(id), rev)},
			clientv3.OpPut(statusKey(id), encode(fromStatus(status))))
	})
}

// DeleteMachine removes a machine with its name and addresses and leaves a
// tombstone for an hour; kind NotFound.
func (s *Store) DeleteMachine(ctx context.Context, id root.MachineID) (int64, error) {
	what := "delete machine " + string(id)
	if _, _, err := s.spec(ctx, id); err != nil {
		return 0, wrap(what, err)
	}
	lease, err := s.client.Grant(ctx, int64(graveLifetime/time.Second))
	if err != nil {
		return 0, wrap(what, err)
	}
	rev, err := attempt(ctx, what, func() (int64, error) {
		r, rev, err := s.spec(ctx, id)
		if err != nil {
			return 0, err
		}
		grave := graveRecord{V: graveVersion, Spec: r}
		kv, err := s.get(ctx, statusKey(id))
		if err != nil {
			return 0, err
		}
		if kv != nil {
			if err := decode(kv.Value, statusVersion, &grave.Status); err != nil {
				s.unreadable(kv, err)
			}
		}
		app := root.AppName(r.App)
		then := []clientv3.Op{
			clientv3.OpDelete(machineUnder(id), clientv3.WithPrefix()),
			clientv3.OpDelete(nameKey(app, r.Name)),
			clientv3.OpPut(graveKey(app, id), encode(grave), clientv3.WithLease(lease.ID)),
		}
		for _, index := range r.Held {
			then = append(then, clientv3.OpDelete(addressKey(root.HostID(r.Host), index)))
		}
		old, err := s.client.Get(ctx, gravesUnder(app), clientv3.WithPrefix(), clientv3.WithKeysOnly(),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
		if err != nil {
			return 0, err
		}
		// Etcd bounds a transaction; what is left over goes with the next one.
		for _, kv := range old.Kvs[min(len(old.Kvs), maxGraves-1):min(len(old.Kvs), maxGraves+20)] {
			then = append(then, clientv3.OpDelete(string(kv.Key)))
		}
		return s.commit(ctx, []condition{unchanged(specKey(id), rev)}, then...)
	})
	return rev, err
}

// Tombstones returns the machines of an app that were destroyed lately, the
// newest first, in state destroyed.
func (s *Store) Tombstones(ctx context.Context, app root.AppName) ([]*root.Machine, error) {
	var machines []*root.Machine
	err := s.list(ctx, gravesUnder(app), func(kv *mvccpb.KeyValue) error {
		var r graveRecord
		if err := decode(kv.Value, graveVersion, &r); err != nil {
			return err
		}
		machines = append(machines, r.root())
		return nil
	}, clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	return machines, err
}

// SetLease gives the machine's lease to l's owner, at time now: when nobody
// holds it, its holder's has expired, or the caller shows the holder's nonce
// (was). Kind Conflict, code "lease_held", with the holder, otherwise;
// NotFound without machine.
func (s *Store) SetLease(ctx context.Context, id root.MachineID, was string, l root.Lease, now time.Time) (int64, error) {
	return attempt(ctx, "lease machine "+string(id), func() (int64, error) {
		held, rev, err := s.lease(ctx, id)
		if err != nil {
			return 0, err
		}
		if held != nil && held.Nonce != was && now.Before(held.ExpiresAt) {
			return 0, LeaseHeld(id, *held)
		}
		return s.commit(ctx, []condition{alive(id), unchanged(leaseKey(id), rev)},
			clientv3.OpPut(leaseKey(id), encode(fromLease(l))))
	})
}

// LeaseHeld is the error of whoever comes upon another's lease; its text is
// Fly's.
func LeaseHeld(id root.MachineID, held root.Lease) error {
	return &root.Error{Kind: root.Conflict, Code: root.CodeLeaseHeld,
		Message: fmt.Sprintf("machine ID %s lease currently held by %s, expires at %s", id, held.Owner, held.ExpiresAt.UTC().Format(time.RFC3339))}
}

// ClearLease ends the lease with that nonce; kind NotFound ("lease not found")
// when there is none or it has expired, Conflict when another holds it.
func (s *Store) ClearLease(ctx context.Context, id root.MachineID, nonce string, now time.Time) (int64, error) {
	return attempt(ctx, "release lease of machine "+string(id), func() (int64, error) {
		held, rev, err := s.lease(ctx, id)
		if err != nil {
			return 0, err
		}
		if held == nil || !now.Before(held.ExpiresAt) {
			return 0, root.Errorf(root.NotFound, "lease not found")
		}
		if held.Nonce != nonce {
			return 0, LeaseHeld(id, *held)
		}
		return s.commit(ctx, []condition{unchanged(leaseKey(id), rev)}, clientv3.OpDelete(leaseKey(id)))
	})
}

func (s *Store) lease(ctx context.Context, id root.MachineID) (*root.Lease, int64, error) {
	kv, err := s.get(ctx, leaseKey(id))
	if err != nil || kv == nil {
		return nil, 0, err
	}
	var r leaseRecord
	if err := decode(kv.Value, leaseVersion, &r); err != nil {
		s.unreadable(kv, err)
		return nil, kv.ModRevision, nil // it would block the machine for ever
	}
	l := r.root()
	return &l, kv.ModRevision, nil
}
