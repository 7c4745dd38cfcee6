package roost_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	root "github.com/roost-run/roost"
)

// model is a Snapshot done with plain maps, copied whole at each step.
type model struct {
	apps     map[root.AppName]*root.App
	machines map[root.MachineID]*root.Machine
	hosts    map[root.HostID]*root.Host
}

func (m model) with(changes ...root.Change) model {
	n := model{map[root.AppName]*root.App{}, map[root.MachineID]*root.Machine{}, map[root.HostID]*root.Host{}}
	maps.Copy(n.apps, m.apps)
	maps.Copy(n.machines, m.machines)
	maps.Copy(n.hosts, m.hosts)
	for _, c := range changes {
		switch {
		case c.App != nil:
			n.apps[c.App.Name] = c.App
		case c.AppDeleted != "":
			delete(n.apps, c.AppDeleted)
		case c.Host != nil:
			n.hosts[c.Host.ID] = c.Host
		case c.HostForgotten != "":
			delete(n.hosts, c.HostForgotten)
		case c.MachineGone != "":
			delete(n.machines, c.MachineGone)
		case c.Machine != nil:
			merged := *c.Machine
			if old := n.machines[merged.ID]; old != nil && merged.Status.Stamp.Before(old.Status.Stamp) {
				merged.Status = old.Status
			}
			n.machines[merged.ID] = &merged
		}
	}
	return n
}

// equal compares everything that a snapshot can be asked.
func (m model) equal(t *rapid.T, what string, s *root.Snapshot) {
	t.Helper()
	apps, machines, hosts := map[root.AppName]*root.App{}, map[root.MachineID]*root.Machine{}, map[root.HostID]*root.Host{}
	for a := range s.Apps() {
		apps[a.Name] = a
		if s.App(a.Name) != a {
			t.Errorf("%s: App(%s) is not what Apps yields", what, a.Name)
		}
	}
	for m := range s.AllMachines() {
		machines[m.ID] = m
		if s.Machine(m.ID) != m {
			t.Errorf("%s: Machine(%s) is not what AllMachines yields", what, m.ID)
		}
	}
	for h := range s.Hosts() {
		hosts[h.ID] = h
		if s.Host(h.ID) != h {
			t.Errorf("%s: Host(%s) is not what Hosts yields", what, h.ID)
		}
	}
	if diff := cmp.Diff(m, model{apps, machines, hosts}, cmp.AllowUnexported(model{})); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
	byApp := map[root.AppName][]root.MachineID{}
	for id, machine := range m.machines {
		byApp[machine.App] = append(byApp[machine.App], id)
	}
	for i := range appCount {
		app := appName(i)
		var got []root.MachineID
		for _, machine := range s.Machines(app) {
			got = append(got, machine.ID)
			if s.Machine(machine.ID) != machine {
				t.Errorf("%s: Machines(%s) has another %s than Machine", what, app, machine.ID)
			}
		}
		want := byApp[app]
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%s: Machines(%s): got %v, want %v", what, app, got, want)
		}
		if s.App(app) != nil && m.apps[app] == nil {
			t.Errorf("%s: App(%s) exists, want none", what, app)
		}
	}
}

const appCount = 4

func appName(i int) root.AppName { return root.AppName(fmt.Sprint("app", i)) }

// change draws one. A machine's app follows from its id: it never changes.
func change(t *rapid.T) root.Change {
	i := rapid.IntRange(0, 19).Draw(t, "which")
	id := root.MachineID(fmt.Sprintf("%014x", i))
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return root.Change{App: &root.App{Name: appName(i % appCount), NetworkID: rapid.Uint32().Draw(t, "network")}}
	case 1:
		return root.Change{AppDeleted: appName(i % appCount)}
	case 2:
		return root.Change{MachineGone: id}
	case 3:
		return root.Change{Host: &root.Host{ID: root.HostID(fmt.Sprint("host", i%3)), CPUs: i}}
	case 4:
		return root.Change{HostForgotten: root.HostID(fmt.Sprint("host", i%3))}
	}
	return root.Change{Machine: &root.Machine{
		ID: id, App: appName(i % appCount), Name: rapid.StringN(0, 3, 3).Draw(t, "name"),
		Status: root.Status{State: rapid.SampledFrom([]root.State{root.StateStarted, root.StateStopped}).Draw(t, "state"),
			Stamp: root.Stamp{Boot: rapid.Uint64Range(0, 2).Draw(t, "boot"), Seq: rapid.Uint64Range(0, 2).Draw(t, "seq")}},
	}}
}

// TestSnapshotIsAMap compares snapshots with plain maps over random changes:
// each is right, none changes afterwards, and Since leads from any to any.
func TestSnapshotIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		snapshots, models := []*root.Snapshot{root.NewSnapshot()}, []model{model{}.with()}
		for i := range rapid.IntRange(1, 8).Draw(t, "steps") {
			var changes []root.Change
			for range rapid.IntRange(0, 12).Draw(t, "changes") {
				changes = append(changes, change(t))
			}
			rev := int64(i + 1)
			snapshots = append(snapshots, snapshots[i].With(rev, changes...))
			models = append(models, models[i].with(changes...))
			if got := snapshots[i+1].Revision(); got != rev {
				t.Errorf("revision: got %d, want %d", got, rev)
			}
		}
		for i, s := range snapshots {
			models[i].equal(t, fmt.Sprint("snapshot ", i), s)
		}
		from := rapid.IntRange(0, len(snapshots)-1).Draw(t, "from")
		to := rapid.IntRange(from, len(snapshots)-1).Draw(t, "to")
		models[to].equal(t, "since", withStatuses(snapshots[from], snapshots[to]))
		if changes := snapshots[to].Since(snapshots[to]); len(changes) != 0 {
			t.Errorf("since itself: got %d changes, want none", len(changes))
		}
	})
}

// withStatuses applies what Since says. A machine that went and came back with
// an older stamp would keep its status under With, so it goes first.
func withStatuses(from, to *root.Snapshot) *root.Snapshot {
	var changes []root.Change
	for _, c := range to.Since(from) {
		if c.Machine != nil {
			changes = append(changes, root.Change{MachineGone: c.Machine.ID})
		}
		changes = append(changes, c)
	}
	return from.With(to.Revision(), changes...)
}

func TestStampBefore(t *testing.T) {
	order := []root.Stamp{{}, {Seq: 1}, {Seq: 2}, {Boot: 1}, {Boot: 1, Seq: 1}, {Boot: 2}, {Boot: 2, Seq: 9}, {Boot: 3, Seq: 1}}
	for i, a := range order {
		for j, b := range order {
			if got, want := a.Before(b), i < j; got != want {
				t.Errorf("%+v before %+v: got %v, want %v", a, b, got, want)
			}
		}
	}
}

func TestRoutableHasNoSecrets(t *testing.T) {
	const secret = "hunter2"
	m := &root.Machine{
		ID: "00000000000001", App: "shop", Name: "web",
		Spec: root.Spec{
			Source: []byte(secret), Address: root.Address{Index: 3, IPv4: "172.19.0.3"},
			Config: root.Config{
				Env: map[string]string{"KEY": secret}, Files: []root.File{{Content: []byte(secret)}}, Init: root.Init{Cmd: []string{secret}, Exec: []string{secret}},
				Process: &root.Process{Cmd: []string{secret}, Env: map[string]string{"KEY": secret}}, Services: []root.Service{{InternalPort: 8080}},
				Metadata: map[string]string{root.MetadataProcessGroup: "web"},
			},
		},
		Status: root.Status{State: root.StateStarted, Events: []root.Event{{Reason: secret}}},
		Lease:  &root.Lease{Nonce: secret, Owner: "me"},
	}
	before := m.Clone()
	r := m.Routable()
	for _, part := range []any{r.Spec.Source, r.Spec.Config, r.Status, *r.Lease} {
		if dump := fmt.Sprintf("%+v", part); strings.Contains(dump, secret) {
			t.Errorf("secret in %s", dump)
		}
	}
	if r.Group() != "web" || r.Spec.Address.Index != 3 || len(r.Spec.Config.Services) != 1 || r.Status.State != root.StateStarted || r.Lease.Owner != "me" {
		t.Errorf("routable lacks what routing needs: %+v", r)
	}
	if diff := cmp.Diff(before, m); diff != "" {
		t.Errorf("the machine itself changed (-before +after):\n%s", diff)
	}
}

func TestPushEvent(t *testing.T) {
	var events []root.Event
	for i := range root.MaxEvents + 10 {
		before := slices.Clone(events)
		old := events
		events = root.PushEvent(events, root.Event{ID: fmt.Sprint(i)})
		if !slices.Equal(old, before) {
			t.Fatal("the old slice changed")
		}
		if events[0].ID != fmt.Sprint(i) {
			t.Errorf("first: got %s, want %d", events[0].ID, i)
		}
	}
	if len(events) != root.MaxEvents || events[len(events)-1].ID != "10" {
		t.Errorf("got %d events, last %s, want %d, last 10", len(events), events[len(events)-1].ID, root.MaxEvents)
	}
}

func bigSnapshot() *root.Snapshot {
	var changes []root.Change
	for a := range 10_000 {
		app := root.AppName(fmt.Sprintf("app-%05d", a))
		changes = append(changes, root.Change{App: &root.App{Name: app}})
		for m := range 5 {
			changes = append(changes, root.Change{Machine: &root.Machine{ID: root.MachineID(fmt.Sprintf("%014x", a*5+m)), App: app}})
		}
	}
	return root.NewSnapshot().With(1, changes...)
}

func BenchmarkSnapshotWith(b *testing.B) {
	s := bigSnapshot()
	m := *s.Machine("00000000001234")
	b.ReportAllocs()
	for b.Loop() {
		s = s.With(2, root.Change{Machine: &m})
	}
}

func BenchmarkSnapshotMachine(b *testing.B) {
	s := bigSnapshot()
	b.ReportAllocs()
	for b.Loop() {
		if s.Machine("00000000001234") == nil {
			b.Fatal("lost")
		}
	}
}

func BenchmarkSnapshotSince(b *testing.B) {
	old := bigSnapshot()
	m := *old.Machine("00000000001234")
	s := old.With(2, root.Change{Machine: &m})
	b.ReportAllocs()
	for b.Loop() {
		if len(s.Since(old)) != 1 {
			b.Fatal("lost")
		}
	}
}

func BenchmarkSnapshotBuild(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		bigSnapshot()
	}
}
