package state

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	root "github.com/roost-run/roost"
)

// parts is everything that a Snapshot is made of, as last seen: machines in
// their three parts, so that an event about one part yields a whole machine.
type parts struct {
	revision int64
	apps     map[root.AppName]*root.App
	hosts    map[root.HostID]*root.Host
	machines map[root.MachineID]*machineParts
}

type machineParts struct {
	spec   *root.Machine // without status and lease; nil while only those are known
	status *root.Status
	lease  *root.Lease
}

func newParts() *parts {
	return &parts{
		apps:     map[root.AppName]*root.App{},
		hosts:    map[root.HostID]*root.Host{},
		machines: map[root.MachineID]*machineParts{},
	}
}

// machine puts a machine together, or returns nil without its spec.
func (p *parts) machine(id root.MachineID) *root.Machine {
	mp := p.machines[id]
	if mp == nil || mp.spec == nil {
		return nil
	}
	m := *mp.spec
	if mp.status != nil {
		m.Status = *mp.status
	}
	m.Lease = mp.lease
	return &m
}

// subject is what an event is about: exactly one member is set, or none for
// keys that no Snapshot shows.
type subject struct {
	app     root.AppName
	host    root.HostID
	machine root.MachineID
}

func subjectOf(key string) (s subject, part string) {
	kind, rest, _ := strings.Cut(key, "/")
	switch kind {
	case "apps":
		return subject{app: root.AppName(rest)}, ""
	case "hosts":
		if id, part, _ := strings.Cut(rest, "/"); part == "record" {
			return subject{host: root.HostID(id)}, part
		}
	case "machines":
		id, part, _ := strings.Cut(rest, "/")
		return subject{machine: root.MachineID(id)}, part
	}
	return subject{}, ""
}

// put takes in one record. On an error the last good one stays.
func (p *parts) put(kv *mvccpb.KeyValue) error {
	s, part := subjectOf(string(kv.Key))
	switch {
	case s.app != "":
		var r appRecord
		if err := decode(kv.Value, appVersion, &r); err != nil {
			return err
		}
		a := r.root()
		p.apps[s.app] = &a
	case s.host != "":
		var r hostRecord
		if err := decode(kv.Value, hostVersion, &r); err != nil {
			return err
		}
		h := r.root()
		p.hosts[s.host] = &h
	case s.machine != "":
		mp := p.machines[s.machine]
		if mp == nil {
			mp = &machineParts{}
		}
		if err := mp.put(part, kv.Value); err != nil {
			return err
		}
		p.machines[s.machine] = mp
	}
	return nil
}

func (mp *machineParts) put(part string, value []byte) error {
	switch part {
	case "spec":
		var r specRecord
		if err := decode(value, specVersion, &r); err != nil {
			return err
		}
		mp.spec = r.root()
	case "status":
		var r statusRecord
		if err := decode(value, statusVersion, &r); err != nil {
			return err
		}
		st := r.root()
		mp.status = &st
	case "lease":
		var r leaseRecord
		if err := decode(value, leaseVersion, &r); err != nil {
			return err
		}
		l := r.root()
		mp.lease = &l
	default:
		return fmt.Errorf("unknown part %q of a machine", part)
	}
	return nil
}

// remove takes in that a key is gone.
func (p *parts) remove(key string) {
	s, part := subjectOf(key)
	switch {
	case s.app != "":
		delete(p.apps, s.app)
	case s.host != "":
		delete(p.hosts, s.host)
	case s.machine != "":
		mp := p.machines[s.machine]
		if mp == nil {
			return
		}
		switch part {
		case "spec":
			mp.spec = nil
		case "status":
			mp.status = nil
		case "lease":
			mp.lease = nil
		}
		if *mp == (machineParts{}) {
			delete(p.machines, s.machine)
		}
	}
}

// change says how s stands now.
func (p *parts) change(s subject) root.Change {
	switch {
	case s.app != "":
		if a := p.apps[s.app]; a != nil {
			return root.Change{App: a}
		}
		return root.Change{AppDeleted: s.app}
	case s.host != "":
		if h := p.hosts[s.host]; h != nil {
			return root.Change{Host: h}
		}
		return root.Change{HostForgotten: s.host}
	}
	if m := p.machine(s.machine); m != nil {
		return root.Change{Machine: m}
	}
	return root.Change{MachineGone: s.machine}
}

// all returns everything as changes.
func (p *parts) all() []root.Change {
	changes := make([]root.Change, 0, len(p.apps)+len(p.hosts)+len(p.machines))
	for name := range p.apps {
		changes = append(changes, p.change(subject{app: name}))
	}
	for id := range p.hosts {
		changes = append(changes, p.change(subject{host: id}))
	}
	for id, mp := range p.machines {
		if mp.spec != nil {
			changes = append(changes, p.change(subject{machine: id}))
		}
	}
	return changes
}

// since returns the changes that lead from old to p.
func (p *parts) since(old *parts) []root.Change {
	var changes []root.Change
	for name := range old.apps {
		if p.apps[name] == nil {
			changes = append(changes, root.Change{AppDeleted: name})
		}
	}
	for id := range old.hosts {
		if p.hosts[id] == nil {
			changes = append(changes, root.Change{HostForgotten: id})
		}
	}
	for id, mp := range old.machines {
		if now := p.machines[id]; mp.spec != nil && (now == nil || now.spec == nil) {
			changes = append(changes, root.Change{MachineGone: id})
		}
	}
	for name, a := range p.apps {
		if o := old.apps[name]; o == nil || !reflect.DeepEqual(o, a) {
			changes = append(changes, root.Change{App: a})
		}
	}
	for id, h := range p.hosts {
		if o := old.hosts[id]; o == nil || *o != *h {
			changes = append(changes, root.Change{Host: h})
		}
	}
	for id := range p.machines {
		if m := p.machine(id); m != nil && !reflect.DeepEqual(m, old.machine(id)) {
			changes = append(changes, root.Change{Machine: m})
		}
	}
	return changes
}

// snapshotPrefixes hold what a Snapshot shows.
var snapshotPrefixes = []string{"apps/", "hosts/", machinesPrefix}

// pageSize is how many records one read of a load asks for: a message stays
// well under gRPC's and our limits.
const pageSize = 1000

// loadParts reads everything as of revision, 0 for now. A revision that is
// compacted gives rpctypes.ErrCompacted.
func (s *Store) loadParts(ctx context.Context, revision int64) (*parts, error) {
	p := newParts()
	p.revision = revision
	for _, prefix := range snapshotPrefixes {
		key, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
		for more := true; more; {
			resp, err := s.client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(p.revision))
			if err != nil {
				return nil, err
			}
			if p.revision == 0 {
				p.revision = resp.Header.Revision
			}
			for _, kv := range resp.Kvs {
				if err := p.put(kv); err != nil {
					s.unreadable(kv, err)
				}
			}
			if more = resp.More; more {
				key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
			}
		}
	}
	return p, nil
}

// Load reads the cluster as it is now.
func (s *Store) Load(ctx context.Context) (*root.Snapshot, error) {
	p, err := s.loadParts(ctx, 0)
	if err != nil {
		return nil, wrap("load state", err)
	}
	s.mu.Lock()
	s.loaded = p
	s.mu.Unlock()
	return root.NewSnapshot().With(p.revision, p.all()...), nil
}

// Watch calls f for each revision later than after, in order, with the changes
// it brought to the snapshot: none for one that changed something else. It
// goes on over reconnections; when history that it needs is gone it reads
// everything and reports the differences at once. It returns the error of f
// or of the watch, or the cause of ctx's end; kind Unavailable: Load, then
// Watch again. Calls of f do not overlap.
func (s *Store) Watch(ctx context.Context, after int64, f func(revision int64, changes []root.Change) error) error {
	p, err := s.partsAt(ctx, after)
	if errors.Is(err, rpctypes.ErrCompacted) {
		return root.Errorf(root.Unavailable, "watch state: history before revision %d is gone, load again", after)
	}
	if err != nil {
		return wrap("watch state", err)
	}
	for {
		err := s.watch(ctx, p, f)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			if ctx.Err() != nil {
				return fmt.Errorf("watch state: %w", context.Cause(ctx))
			}
			return wrap("watch state", err)
		}
		now, err := s.loadParts(ctx, 0)
		if err != nil {
			return wrap("watch state", err)
		}
		s.log.Info("state watch fell behind and read everything again", "revision", now.revision)
		if err := f(now.revision, now.since(p)); err != nil {
			return err
		}
		p = now
	}
}

// partsAt returns what was at a revision: from the last Load if that was it.
func (s *Store) partsAt(ctx context.Context, revision int64) (*parts, error) {
	s.mu.Lock()
	p := s.loaded
	s.loaded = nil
	s.mu.Unlock()
	if p != nil && p.revision == revision {
		return p, nil
	}
	return s.loadParts(ctx, revision)
}

// watch follows from p's revision and keeps p current.
func (s *Store) watch(ctx context.Context, p *parts, f func(int64, []root.Change) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch on the server
	for resp := range s.client.Watch(clientv3.WithRequireLeader(ctx), "", clientv3.WithPrefix(), clientv3.WithRev(p.revision+1)) {
		if err := resp.Err(); err != nil {
			return err
		}
		events := resp.Events
		for len(events) > 0 {
			rev, n := events[0].Kv.ModRevision, 1
			for n < len(events) && events[n].Kv.ModRevision == rev {
				n++
			}
			changes := s.take(p, events[:n])
			p.revision = rev
			if err := f(rev, changes); err != nil {
				return err
			}
			events = events[n:]
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return root.Errorf(root.Unavailable, "the watch ended")
}

// take brings the events of one revision into p and returns the changes.
func (s *Store) take(p *parts, events []*clientv3.Event) []root.Change {
	var subjects []subject
	seen := map[subject]bool{}
	for _, e := range events {
		sub, _ := subjectOf(string(e.Kv.Key))
		if sub == (subject{}) {
			continue
		}
		if e.Type == clientv3.EventTypeDelete {
			p.remove(string(e.Kv.Key))
		} else if err := p.put(e.Kv); err != nil {
			s.unreadable(e.Kv, err)
			continue
		}
		if !seen[sub] {
			seen[sub] = true
			subjects = append(subjects, sub)
		}
	}
	changes := make([]root.Change, 0, len(subjects))
	for _, sub := range subjects {
		changes = append(changes, p.change(sub))
	}
	return changes
}
