package state

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
)

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// wantError checks kind and code.
func wantError(t *testing.T, err error, kind root.Kind, code string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want kind %v", kind)
	}
	if got := root.KindOf(err); got != kind {
		t.Errorf("kind: got %v (%v), want %v", got, err, kind)
	}
	if got := root.CodeOf(err); got != code {
		t.Errorf("code: got %q (%v), want %q", got, err, code)
	}
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s := New(etcdtest.New(t))
	must[int64](t)(s.CreateApp(t.Context(), root.App{Name: "shop", ID: "0123456789abcdef", Org: "personal", CreatedAt: now}))
	return s
}

func testMachine(i int) root.Machine {
	return root.Machine{
		ID: root.MachineID(fmt.Sprintf("%014x", i)), App: "shop", Org: "personal", Name: fmt.Sprintf("m%d", i), Host: "5e1f00aa", CreatedAt: now,
		Spec: root.Spec{
			Instance: root.InstanceID(fmt.Sprintf("01J%023d", i)), Generation: 1, Address: root.Address{Index: uint32(i)},
			Config: root.Config{Image: "debian", Guest: root.DefaultGuest()},
		},
		Status: root.Status{State: root.StateCreated, Stamp: root.Stamp{Boot: 1, Seq: 1}},
	}
}

func TestCreateMachineConflicts(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	must[int64](t)(s.CreateMachine(ctx, testMachine(1)))

	other := func(change func(*root.Machine)) root.Machine {
		m := testMachine(2)
		change(&m)
		return m
	}
	tests := map[string]struct {
		m    root.Machine
		kind root.Kind
		code string
	}{
		"no such app":   {other(func(m *root.Machine) { m.App = "none" }), root.NotFound, ""},
		"id taken":      {other(func(m *root.Machine) { m.ID = testMachine(1).ID }), root.Conflict, "machine_exists"},
		"name taken":    {other(func(m *root.Machine) { m.Name = "m1" }), root.Conflict, "machine_name_taken"},
		"address taken": {other(func(m *root.Machine) { m.Spec.Address.Index = 1 }), root.Conflict, "address_taken"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := s.CreateMachine(ctx, test.m)
			wantError(t, err, test.kind, test.code)
			if _, err := s.Machine(ctx, testMachine(2).ID); root.KindOf(err) != root.NotFound {
				t.Errorf("after a refused creation: got %v, want that nothing is left", err)
			}
		})
	}
	must[int64](t)(s.CreateMachine(ctx, other(func(m *root.Machine) { m.Host = "aaaaaaaa"; m.Spec.Address.Index = 1 })))
}

func TestAppLife(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	_, err := s.CreateApp(ctx, root.App{Name: "shop", Org: "other"})
	wantError(t, err, root.Conflict, "name_taken")
	must[int64](t)(s.CreateMachine(ctx, testMachine(1)))
	_, err = s.DeleteApp(ctx, "shop")
	wantError(t, err, root.Precondition, "")
	a := must[root.App](t)(s.App(ctx, "shop"))
	a.Deleting = true
	must[int64](t)(s.UpdateApp(ctx, a))
	_, err = s.CreateMachine(ctx, testMachine(2))
	wantError(t, err, root.Precondition, "")
	must[int64](t)(s.DeleteMachine(ctx, testMachine(1).ID))
	if got := must[[]*root.Machine](t)(s.Tombstones(ctx, "shop")); len(got) != 1 || got[0].Status.State != root.StateDestroyed || got[0].Name != "m1" {
		t.Errorf("tombstones: got %+v, want m1, destroyed", got)
	}
	must[int64](t)(s.DeleteApp(ctx, "shop"))
	_, err = s.DeleteApp(ctx, "shop")
	wantError(t, err, root.NotFound, "")
	if got := must[[]*root.Machine](t)(s.Tombstones(ctx, "shop")); len(got) != 0 {
		t.Errorf("tombstones of a deleted app: got %d, want 0", len(got))
	}
	// An app whose name begins with another's must not keep that one alive.
	must[int64](t)(s.CreateApp(ctx, root.App{Name: "a", Org: "personal"}))
	must[int64](t)(s.CreateApp(ctx, root.App{Name: "a-b", Org: "personal"}))
	m := testMachine(3)
	m.App = "a-b"
	must[int64](t)(s.CreateMachine(ctx, m))
	must[int64](t)(s.DeleteApp(ctx, "a"))
}

func TestPutStatusKeepsNewer(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	id := testMachine(1).ID
	_, err := s.PutStatus(ctx, id, root.Status{State: root.StateStarted})
	wantError(t, err, root.NotFound, "")
	must[int64](t)(s.CreateMachine(ctx, testMachine(1)))
	must[int64](t)(s.PutStatus(ctx, id, root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: 2, Seq: 1}}))
	must[int64](t)(s.PutStatus(ctx, id, root.Status{State: root.StateStopped, Stamp: root.Stamp{Boot: 1, Seq: 9}}))
	if got, want := must[*root.Machine](t)(s.Machine(ctx, id)).Status.State, root.StateStarted; got != want {
		t.Errorf("after an older status: got %s, want %s", got, want)
	}
	events := make([]root.Event, root.MaxEvents+10)
	must[int64](t)(s.PutStatus(ctx, id, root.Status{State: root.StateStopped, Stamp: root.Stamp{Boot: 2, Seq: 2}, Events: events}))
	m := must[*root.Machine](t)(s.Machine(ctx, id))
	if m.Status.State != root.StateStopped || len(m.Status.Events) != root.MaxEvents {
		t.Errorf("got state %s with %d events, want stopped with %d", m.Status.State, len(m.Status.Events), root.MaxEvents)
	}
}

func TestUpdateSpec(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	m := testMachine(1)
	must[int64](t)(s.CreateMachine(ctx, m))
	must[int64](t)(s.CreateMachine(ctx, testMachine(2)))
	next := m.Spec
	next.Instance, next.Generation, next.Address.Index = "01JNEXT", 2, 2
	_, err := s.UpdateSpec(ctx, m.ID, "01JWRONG", next)
	wantError(t, err, root.Conflict, "version_changed")
	_, err = s.UpdateSpec(ctx, m.ID, m.Spec.Instance, next)
	wantError(t, err, root.Conflict, "address_taken")
	next.Address.Index = 3
	must[int64](t)(s.UpdateSpec(ctx, m.ID, m.Spec.Instance, next))
	addresses := func(want ...uint32) {
		t.Helper()
		if got := must[[]uint32](t)(s.Addresses(ctx, m.Host)); !slices.Equal(got, want) {
			t.Errorf("addresses: got %v, want %v", got, want)
		}
	}
	addresses(1, 2, 3)
	must[int64](t)(s.ReleaseAddresses(ctx, m.ID))
	addresses(2, 3)
	for i := range 5 {
		was := next.Instance
		next.Instance, next.Address.Index = root.InstanceID(fmt.Sprint("01J", i)), uint32(10+i)
		must[int64](t)(s.UpdateSpec(ctx, m.ID, was, next))
	}
	addresses(2, 12, 13, 14)
	must[int64](t)(s.DeleteMachine(ctx, m.ID))
	addresses(2)
}

func TestLease(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	id := testMachine(1).ID
	lease := func(nonce string) root.Lease {
		return root.Lease{Nonce: nonce, Owner: "me", ExpiresAt: now.Add(time.Minute)}
	}
	_, err := s.SetLease(ctx, id, "", lease("a"), now)
	wantError(t, err, root.NotFound, "")
	must[int64](t)(s.CreateMachine(ctx, testMachine(1)))
	_, err = s.ClearLease(ctx, id, "a", now)
	wantError(t, err, root.NotFound, "")
	must[int64](t)(s.SetLease(ctx, id, "", lease("a"), now))
	_, err = s.SetLease(ctx, id, "", lease("b"), now)
	wantError(t, err, root.Conflict, "lease_held")
	_, err = s.ClearLease(ctx, id, "b", now)
	wantError(t, err, root.Conflict, "lease_held")
	must[int64](t)(s.SetLease(ctx, id, "a", lease("c"), now))                   // the holder
	must[int64](t)(s.SetLease(ctx, id, "", lease("d"), now.Add(2*time.Minute))) // expired
	must[int64](t)(s.ClearLease(ctx, id, "d", now))
	if m := must[*root.Machine](t)(s.Machine(ctx, id)); m.Lease != nil {
		t.Errorf("after release: got %+v, want none", m.Lease)
	}
}

func TestNetworkIDsAreNeverReused(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ids := map[uint32]bool{}
	for i := range 5 {
		n, err := s.EnsureNetwork(t.Context(), "personal", root.NetworkName(fmt.Sprint("n", i)), now)
		if err != nil {
			t.Fatal(err)
		}
		ids[n.ID] = true
		again := must[root.Network](t)(s.EnsureNetwork(t.Context(), "personal", n.Name, now.Add(time.Hour)))
		if again != n {
			t.Errorf("again: got %+v, want %+v", again, n)
		}
	}
	if len(ids) != 5 || ids[0] {
		t.Errorf("ids: got %v, want 5 different ones, none 0", ids)
	}
}

// TestWatch follows changes of every sort and compares with a fresh load.
func TestWatch(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	snap := must[*root.Snapshot](t)(s.Load(ctx))
	got := make(chan int64, 100)
	done := make(chan error, 1)
	current := snap
	go func() {
		done <- s.Watch(ctx, snap.Revision(), func(rev int64, changes []root.Change) error {
			current = current.With(rev, changes...)
			got <- rev
			return nil
		})
	}()
	for i := 1; i <= 3; i++ {
		must[int64](t)(s.CreateMachine(ctx, testMachine(i)))
	}
	must[int64](t)(s.PutStatus(ctx, testMachine(1).ID, root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: 1, Seq: 2}}))
	must[int64](t)(s.SetLease(ctx, testMachine(2).ID, "", root.Lease{Nonce: "a", ExpiresAt: now.Add(time.Hour)}, now))
	must[int64](t)(s.DeleteMachine(ctx, testMachine(3).ID))
	last := must[int64](t)(s.PutMeta(ctx, "x", []byte("y"))) // changes nothing in the snapshot
	for rev := range got {
		if rev == last {
			break
		}
	}
	cancel()
	if err := <-done; root.KindOf(err) != root.Internal || err == nil {
		t.Errorf("end of watch: got %v, want the context's cause", err)
	}
	equalSnapshots(t, current, must[*root.Snapshot](t)(s.Load(t.Context())))
}

// equalSnapshots ignores the revision: other tests move it.
func equalSnapshots(t *testing.T, got, want *root.Snapshot) {
	t.Helper()
	if diff := cmp.Diff(everything(want), everything(got)); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

// everything is a snapshot's content in a form to compare.
func everything(s *root.Snapshot) map[string]any {
	all := map[string]any{}
	for a := range s.Apps() {
		all["app "+string(a.Name)] = a
	}
	for m := range s.AllMachines() {
		all["machine "+string(m.ID)] = m
	}
	for h := range s.Hosts() {
		all["host "+string(h.ID)] = h
	}
	return all
}
