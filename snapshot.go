package roost

import (
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Snapshot is the cluster at one revision. It never changes; With returns the
// next one and shares with it everything that stayed, so that a change costs
// the same in a small cluster and in a large one.
type Snapshot struct {
	revision int64
	apps     shardMap[AppName, *appEntry]
	machines shardMap[MachineID, *Machine]
	hosts    shardMap[HostID, *Host]
	// names finds the app of a hostname; a wildcard stands without its star:
	// ".example.com".
	names shardMap[string, AppName]
}

type appEntry struct {
	app      *App // nil while only machines are known
	machines []*Machine
	// own is that of the With which made the entry and its slice: until it
	// ends both may be changed in place.
	own *ownership
}

// Change is one difference between two snapshots: exactly one field is set.
type Change struct {
	App           *App
	Machine       *Machine
	Host          *Host
	AppDeleted    AppName
	MachineGone   MachineID
	HostForgotten HostID
}

// NewSnapshot returns the empty snapshot.
func NewSnapshot() *Snapshot { return &Snapshot{} }

// Revision is the store's revision the snapshot stands at.
func (s *Snapshot) Revision() int64 { return s.revision }

// App returns an app, or nil.
func (s *Snapshot) App(name AppName) *App {
	if e := s.apps.get(name); e != nil {
		return e.app
	}
	return nil
}

// AppAt returns the app that a hostname of somebody's own leads to: one that
// has the very name, else one that has it by a wildcard. The name is in lower
// case, without a dot at the end.
func (s *Snapshot) AppAt(hostname string) (AppName, bool) {
	if strings.HasPrefix(hostname, ".") {
		return "", false // no name; wildcards stand that way
	}
	if app := s.names.get(hostname); app != "" {
		return app, true
	}
	if i := strings.IndexByte(hostname, '.'); i > 0 {
		if app := s.names.get(hostname[i:]); app != "" {
			return app, true
		}
	}
	return "", false
}

// setNames brings the hostnames of an app from what they were to what they are.
func (s *Snapshot) setNames(name AppName, old, now []string) {
	if slices.Equal(old, now) {
		return
	}
	for _, h := range old {
		if key := strings.TrimPrefix(h, "*"); s.names.get(key) == name { // or it is another app's by now
			s.names.delete(key)
		}
	}
	for _, h := range now {
		s.names.set(strings.TrimPrefix(h, "*"), name)
	}
}

// Machines returns an app's machines in order of their ids. The slice is
// shared: do not change it.
func (s *Snapshot) Machines(app AppName) []*Machine {
	if e := s.apps.get(app); e != nil {
		return e.machines
	}
	return nil
}

// Machine returns a machine, or nil.
func (s *Snapshot) Machine(id MachineID) *Machine { return s.machines.get(id) }

// Host returns a host, or nil.
func (s *Snapshot) Host(id HostID) *Host { return s.hosts.get(id) }

// Apps yields every app, in no order.
func (s *Snapshot) Apps() iter.Seq[*App] {
	return func(yield func(*App) bool) {
		for e := range s.apps.all() {
			if e.app != nil && !yield(e.app) {
				return
			}
		}
	}
}

// AllMachines yields every machine, in no order.
func (s *Snapshot) AllMachines() iter.Seq[*Machine] { return s.machines.all() }

// Hosts yields every host, in no order.
func (s *Snapshot) Hosts() iter.Seq[*Host] { return s.hosts.all() }

// With returns the snapshot that follows s at the given revision. A machine
// whose status is older than the one in s keeps s's status.
func (s *Snapshot) With(revision int64, changes ...Change) *Snapshot {
	n := *s
	n.revision = revision
	if len(changes) > ownFrom {
		n.apps.own, n.machines.own, n.hosts.own, n.names.own = new(ownership), new(ownership), new(ownership), new(ownership)
	}
	for _, c := range changes {
		n.apply(c)
	}
	n.apps.own, n.machines.own, n.hosts.own, n.names.own = nil, nil, nil, nil // from here on it never changes
	return &n
}

// ownFrom is the number of changes from which on it pays to remember which
// parts are copied already.
const ownFrom = 4

// Since returns the changes that lead from old to s, in no order. Parts that
// both share cost nothing.
func (s *Snapshot) Since(old *Snapshot) []Change {
	var changes []Change
	since(old.machines, s.machines, func(id MachineID, m, was *Machine) {
		if m == nil {
			changes = append(changes, Change{MachineGone: id})
		} else if m != was {
			changes = append(changes, Change{Machine: m})
		}
	})
	since(old.apps, s.apps, func(name AppName, e, was *appEntry) {
		switch {
		case e != nil && e.app != nil:
			if was == nil || was.app != e.app {
				changes = append(changes, Change{App: e.app})
			}
		case was != nil && was.app != nil:
			changes = append(changes, Change{AppDeleted: name})
		}
	})
	since(old.hosts, s.hosts, func(id HostID, h, was *Host) {
		if h == nil {
			changes = append(changes, Change{HostForgotten: id})
		} else if h != was {
			changes = append(changes, Change{Host: h})
		}
	})
	return changes
}

// since calls f with every key of either map whose values may differ; the
// missing one is nil.
func since[K ~string, V any](old, now shardMap[K, *V], f func(key K, now, old *V)) {
	for i := range shardCount {
		o, n := old.shard(i), now.shard(i)
		if sameMap(o, n) {
			continue
		}
		for k, v := range n {
			if w := o[k]; w != v {
				f(k, v, w)
			}
		}
		for k, w := range o {
			if _, ok := n[k]; !ok {
				f(k, nil, w)
			}
		}
	}
}

// sameMap reports whether a and b are one map.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func (m shardMap[K, V]) shard(i int) map[K]V {
	if m.shards == nil {
		return nil
	}
	return m.shards[i]
}

func (s *Snapshot) apply(c Change) {
	switch {
	case c.App != nil:
		var old []string
		if app := s.App(c.App.Name); app != nil {
			old = app.Hostnames
		}
		s.setNames(c.App.Name, old, c.App.Hostnames)
		if e := s.ownEntry(c.App.Name); e != nil {
			e.app = c.App
		} else {
			s.apps.set(c.App.Name, &appEntry{app: c.App, machines: s.Machines(c.App.Name)})
		}
	case c.Machine != nil:
		m := c.Machine
		if old := s.machines.get(m.ID); old != nil && m.Status.Stamp.Before(old.Status.Stamp) {
			merged := *m
			merged.Status = old.Status
			m = &merged
		}
		s.machines.set(m.ID, m)
		if e := s.ownEntry(m.App); e != nil {
			e.machines = insertMachine(e.machines, m)
		} else {
			s.setAppMachines(m.App, insertMachine(slices.Clone(s.Machines(m.App)), m))
		}
	case c.Host != nil:
		s.hosts.set(c.Host.ID, c.Host)
	case c.AppDeleted != "":
		if app := s.App(c.AppDeleted); app != nil {
			s.setNames(c.AppDeleted, app.Hostnames, nil)
		}
		if ms := s.Machines(c.AppDeleted); len(ms) > 0 {
			s.apps.set(c.AppDeleted, &appEntry{machines: ms})
		} else {
			s.apps.delete(c.AppDeleted)
		}
	case c.MachineGone != "":
		if m := s.machines.get(c.MachineGone); m != nil {
			s.machines.delete(m.ID)
			s.setAppMachines(m.App, slices.DeleteFunc(slices.Clone(s.Machines(m.App)), func(o *Machine) bool { return o.ID == m.ID }))
		}
	case c.HostForgotten != "":
		s.hosts.delete(c.HostForgotten)
	}
}

// ownEntry returns the entry of an app if it may be changed in place, or nil.
func (s *Snapshot) ownEntry(app AppName) *appEntry {
	if e := s.apps.get(app); e != nil && e.own != nil && e.own == s.apps.own {
		return e
	}
	return nil
}

// setAppMachines takes over the slice.
func (s *Snapshot) setAppMachines(app AppName, machines []*Machine) {
	e := appEntry{app: s.App(app), machines: machines, own: s.apps.own}
	if e.app == nil && len(machines) == 0 {
		s.apps.delete(app)
		return
	}
	s.apps.set(app, &e)
}

// insertMachine puts m into its place in machines, which it changes.
func insertMachine(machines []*Machine, m *Machine) []*Machine {
	i, found := slices.BinarySearchFunc(machines, m.ID, func(o *Machine, id MachineID) int { return strings.Compare(string(o.ID), string(id)) })
	if found {
		machines[i] = m
		return machines
	}
	return slices.Insert(machines, i, m)
}

// shardMap is an immutable map: set and delete copy one of shardCount parts.
type shardMap[K ~string, V any] struct {
	shards *[shardCount]map[K]V
	own    *ownership // nil except within With
}

// ownership says which parts nobody else has seen yet: those may be changed in
// place.
type ownership struct {
	array  bool
	shards [shardCount]bool
}

// shardCount keeps a part near 200 entries with 50,000 machines.
const shardCount = 256

func shardOf[K ~string](key K) int {
	h := uint32(2166136261) // FNV-1a
	for i := 0; i < len(key); i++ {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int(h % shardCount)
}

func (m shardMap[K, V]) get(key K) V {
	if m.shards == nil {
		var zero V
		return zero
	}
	return m.shards[shardOf(key)][key]
}

func (m *shardMap[K, V]) set(key K, value V) {
	shard := m.copyShard(key, 1)
	shard[key] = value
}

func (m *shardMap[K, V]) delete(key K) {
	if m.shards == nil {
		return
	}
	delete(m.copyShard(key, 0), key)
}

// copyShard replaces the part that holds key by a copy that may be changed.
func (m *shardMap[K, V]) copyShard(key K, room int) map[K]V {
	i := shardOf(key)
	if m.own != nil && m.own.shards[i] {
		return m.shards[i]
	}
	if m.own == nil || !m.own.array {
		var next [shardCount]map[K]V
		if m.shards != nil {
			next = *m.shards
		}
		m.shards = &next
	}
	shard := make(map[K]V, len(m.shards[i])+room)
	maps.Copy(shard, m.shards[i])
	m.shards[i] = shard
	if m.own != nil {
		m.own.array, m.own.shards[i] = true, true
	}
	return shard
}

func (m shardMap[K, V]) all() iter.Seq[V] {
	return func(yield func(V) bool) {
		if m.shards == nil {
			return
		}
		for _, shard := range m.shards {
			for _, v := range shard {
				if !yield(v) {
					return
				}
			}
		}
	}
}
