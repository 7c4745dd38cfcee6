package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
)

func TestConcurrentCreateOneWins(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var mu sync.Mutex
	won := 0
	var g errgroup.Group
	for i := range 20 {
		g.Go(func() error {
			m := testMachine(i + 1)
			m.Name = "serverless"
			_, err := s.CreateMachine(t.Context(), m)
			if err != nil && root.CodeOf(err) != "machine_name_taken" {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if won != 1 {
		t.Errorf("machines made: got %d, want 1", won)
	}
	if got := must[[]uint32](t)(s.Addresses(t.Context(), "5e1f00aa")); len(got) != 1 {
		t.Errorf("addresses: got %v, want one", got)
	}
}

func TestConcurrentEditsLoseNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	m := testMachine(1)
	must[int64](t)(s.CreateMachine(ctx, m))
	var g errgroup.Group
	const writers, edits = 4, 10
	for w := range writers {
		g.Go(func() error {
			for i := range edits {
				_, err := s.EditSpec(ctx, m.ID, func(spec *root.Spec) error {
					if spec.Config.Metadata == nil {
						spec.Config.Metadata = map[string]string{}
					}
					spec.Config.Metadata[fmt.Sprint(w, "-", i)] = "x"
					return nil
				})
				if err != nil {
					return err
				}
				// The agent writes meanwhile and must not be in the way.
				if _, err := s.PutStatus(ctx, m.ID, root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: uint64(w + 1), Seq: uint64(i + 2)}}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := must[*root.Machine](t)(s.Machine(ctx, m.ID))
	if len(got.Spec.Config.Metadata) != writers*edits {
		t.Errorf("edits: got %d, want %d", len(got.Spec.Config.Metadata), writers*edits)
	}
	if want := (root.Stamp{Boot: writers, Seq: edits + 1}); got.Status.Stamp != want {
		t.Errorf("status: got %+v, want the newest %+v", got.Status.Stamp, want)
	}
}

func TestEditSpec(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	m := testMachine(1)
	nothing := func(*root.Spec) error { return nil }
	_, err := s.EditSpec(ctx, m.ID, nothing)
	wantError(t, err, root.NotFound, "")
	rev := must[int64](t)(s.CreateMachine(ctx, m))
	if got := must[int64](t)(s.EditSpec(ctx, m.ID, nothing)); got != rev {
		t.Errorf("an edit that changes nothing: got revision %d, want %d", got, rev)
	}
	mine := root.Errorf(root.Precondition, "mine")
	if _, err := s.EditSpec(ctx, m.ID, func(*root.Spec) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("got %v, want the edit's own error", err)
	}
	_, err = s.EditSpec(ctx, m.ID, func(spec *root.Spec) error { spec.Instance = "01JOTHER"; return nil })
	wantError(t, err, root.Internal, "")
	attempts := 0
	_, err = s.EditSpec(ctx, m.ID, func(spec *root.Spec) error {
		attempts++
		spec.Cordoned = !spec.Cordoned
		_, err := s.client.Put(ctx, specKey(m.ID), encode(fromMachine(m, []uint32{uint32(attempts)})))
		return err
	})
	wantError(t, err, root.Unavailable, "")
	if attempts != maxAttempts {
		t.Errorf("attempts: got %d, want %d", attempts, maxAttempts)
	}
	must[int64](t)(s.EditSpec(ctx, m.ID, func(spec *root.Spec) error { spec.Destroy = &root.Destroy{Force: true, At: now}; return nil }))
	if got := must[*root.Machine](t)(s.Machine(ctx, m.ID)).Spec.Destroy; got == nil || !got.Force || !got.At.Equal(now) {
		t.Errorf("destroy: got %+v, want force at %s", got, now)
	}
}

func TestTombstonesAreCapped(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	const n = maxGraves + 5
	for i := 1; i <= n; i++ {
		must[int64](t)(s.CreateMachine(ctx, testMachine(i)))
		must[int64](t)(s.DeleteMachine(ctx, testMachine(i).ID))
	}
	got := must[[]*root.Machine](t)(s.Tombstones(ctx, "shop"))
	if len(got) != maxGraves || got[0].ID != testMachine(n).ID {
		t.Errorf("got %d, first %s, want %d, first %s", len(got), got[0].ID, maxGraves, testMachine(n).ID)
	}
	_, err := s.DeleteMachine(ctx, testMachine(1).ID)
	wantError(t, err, root.NotFound, "")
	lease, err := s.client.Get(ctx, graveKey("shop", testMachine(n).ID))
	if err != nil || len(lease.Kvs) != 1 || lease.Kvs[0].Lease == 0 {
		t.Errorf("tombstone: got %+v, %v, want one that expires", lease, err)
	}
}

func TestTokensAndMeta(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	token := root.Token{ID: "01J", Hash: root.TokenHash{1, 2, 3}, Name: "ci", Scope: root.ScopeDeploy, Org: "personal", App: "shop", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	if got := must[*root.Token](t)(s.Token(ctx, token.Hash)); got != nil {
		t.Errorf("before: got %+v, want none", got)
	}
	must[int64](t)(s.PutToken(ctx, token))
	if got := must[*root.Token](t)(s.Token(ctx, token.Hash)); got == nil || *got != token {
		t.Errorf("got %+v, want %+v", got, token)
	}
	if got := must[[]root.Token](t)(s.Tokens(ctx)); len(got) != 1 || got[0] != token {
		t.Errorf("all: got %+v, want the one", got)
	}
	must[int64](t)(s.DeleteToken(ctx, token.Hash))
	_, err := s.DeleteToken(ctx, token.Hash)
	wantError(t, err, root.NotFound, "")

	if got := must[[]byte](t)(s.Meta(ctx, "cluster")); got != nil {
		t.Errorf("meta before: got %q, want none", got)
	}
	for _, value := range []string{"first", "second"} {
		if got := must[[]byte](t)(s.EnsureMeta(ctx, "cluster", []byte(value))); string(got) != "first" {
			t.Errorf("ensure %s: got %q, want first", value, got)
		}
	}
	must[int64](t)(s.PutMeta(ctx, "cluster", []byte("third")))
	if got := must[[]byte](t)(s.Meta(ctx, "cluster")); string(got) != "third" {
		t.Errorf("meta: got %q, want third", got)
	}
	must[int64](t)(s.CreateOrg(ctx, root.Org{Slug: "acme", CreatedAt: now}))
	_, err = s.CreateOrg(ctx, root.Org{Slug: "acme"})
	wantError(t, err, root.Conflict, "name_taken")
	if got := must[[]root.Org](t)(s.Orgs(ctx)); len(got) != 1 || got[0].Slug != "acme" {
		t.Errorf("organisations: got %+v, want acme", got)
	}
}

// TestUnreadableRecords checks that a record nobody can read is reported and
// harms no other, in a load and in a watch.
func TestUnreadableRecords(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log syncBuffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	must[int64](t)(s.CreateMachine(ctx, testMachine(1)))
	for key, value := range map[string]string{
		"apps/bad": "{", "machines/00000000000009/spec": `{"v":99}`, "machines/00000000000009/odd": "x", "hosts/aaaaaaaa/record": "", "networks/personal/n": "1",
	} {
		if _, err := s.client.Put(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	snap := must[*root.Snapshot](t)(s.Load(ctx))
	if snap.App("shop") == nil || snap.Machine(testMachine(1).ID) == nil || snap.App("bad") != nil || snap.Machine("00000000000009") != nil {
		t.Error("load: want the readable records and no others")
	}
	for _, key := range []string{"apps/bad", "machines/00000000000009/spec", "hosts/aaaaaaaa/record"} {
		if !strings.Contains(log.String(), "key="+key) {
			t.Errorf("%s was not reported in %s", key, log.String())
		}
	}
	done := make(chan error, 1)
	changes := make(chan []root.Change, 10)
	go func() {
		done <- s.Watch(ctx, snap.Revision(), func(_ int64, c []root.Change) error { changes <- c; return nil })
	}()
	if _, err := s.client.Put(ctx, statusKey(testMachine(1).ID), "torn"); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; len(c) != 0 {
		t.Errorf("after a torn status: got %+v, want no change", c)
	}
	must[int64](t)(s.SetLease(ctx, testMachine(1).ID, "", root.Lease{Nonce: "a", ExpiresAt: now}, now))
	if c := <-changes; len(c) != 1 || c[0].Machine == nil || c[0].Machine.Status.State != root.StateCreated || c[0].Machine.Lease == nil {
		t.Errorf("after a lease: got %+v, want the machine with its last good status", c)
	}
	cancel()
	<-done
	// The agent's next word replaces the torn record.
	must[int64](t)(s.PutStatus(t.Context(), testMachine(1).ID, root.Status{State: root.StateStarted}))
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestWatchOverCompaction loses the history that a watch needs. It is not
// parallel: other tests share the member and need theirs.
func TestWatchOverCompaction(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	must[int64](t)(s.PutHost(ctx, root.Host{ID: "aaaaaaaa"}))
	must[int64](t)(s.CreateApp(ctx, root.App{Name: "old", Org: "personal"}))
	for i := 1; i <= 3; i++ {
		must[int64](t)(s.CreateMachine(ctx, testMachine(i)))
	}
	snap := must[*root.Snapshot](t)(s.Load(ctx))
	must[int64](t)(s.DeleteMachine(ctx, testMachine(1).ID))
	must[int64](t)(s.PutStatus(ctx, testMachine(2).ID, root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: 1, Seq: 5}}))
	must[int64](t)(s.CreateMachine(ctx, testMachine(4)))
	must[int64](t)(s.DeleteApp(ctx, "old"))
	must[int64](t)(s.DeleteHost(ctx, "aaaaaaaa"))
	rev := must[int64](t)(s.PutHost(ctx, root.Host{ID: "bbbbbbbb"}))
	if err := etcdtest.Member(t).Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("seen")
	calls := 0
	err := s.Watch(ctx, snap.Revision(), func(rev int64, changes []root.Change) error {
		calls++
		snap = snap.With(rev, changes...)
		if len(changes) != 6 {
			t.Errorf("got %d changes, want 6: two machines and one each of app and host gone or new, one status", len(changes))
		}
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		t.Fatalf("got %v after %d calls, want the callback's error after one", err, calls)
	}
	equalSnapshots(t, snap, must[*root.Snapshot](t)(s.Load(ctx)))

	// A revision that is gone and that this store did not just load.
	s = New(s.client)
	if err := s.Watch(ctx, 1, func(int64, []root.Change) error { return nil }); root.KindOf(err) != root.Unavailable {
		t.Errorf("from a revision that is gone: got %v, want kind unavailable", err)
	}
}

// TestWatchIsLoad does random things and checks that what a watch made of them
// is what a load finds.
func TestWatchIsLoad(t *testing.T) {
	t.Parallel()
	base := etcdtest.New(t)
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := clientv3.NewCtxClient(ctx)
		prefix := fmt.Sprint(runs, "/")
		c.KV, c.Watcher, c.Lease = namespace.NewKV(base.KV, prefix), namespace.NewWatcher(base.Watcher, prefix), namespace.NewLease(base.Lease, prefix)
		s := New(c)
		check := func(_ int64, err error) {
			if k := root.KindOf(err); err != nil && k != root.NotFound && k != root.Conflict && k != root.Precondition {
				rt.Fatal(err)
			}
		}
		check(s.CreateApp(ctx, root.App{Name: "shop", Org: "personal"}))
		snap, err := s.Load(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		// One watch has the parts of the load, the other reads its own.
		revisions := [2]chan int64{make(chan int64, 100), make(chan int64, 100)}
		views := [2]*root.Snapshot{snap, snap}
		var g errgroup.Group
		defer func() { cancel(); _ = g.Wait() }()
		for i, s := range []*Store{s, New(c)} {
			g.Go(func() error {
				defer close(revisions[i])
				return s.Watch(ctx, snap.Revision(), func(rev int64, changes []root.Change) error {
					views[i] = views[i].With(rev, changes...)
					revisions[i] <- rev
					return nil
				})
			})
		}
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			i := rapid.IntRange(1, 3).Draw(rt, "machine")
			m := testMachine(i)
			switch rapid.IntRange(0, 7).Draw(rt, "op") {
			case 0, 1:
				check(s.CreateMachine(ctx, m))
			case 2:
				check(s.PutStatus(ctx, m.ID, root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: 1, Seq: rapid.Uint64Range(0, 3).Draw(rt, "seq")}}))
			case 3:
				check(s.SetLease(ctx, m.ID, "", root.Lease{Nonce: "a", ExpiresAt: now}, now))
			case 4:
				check(s.DeleteMachine(ctx, m.ID))
			case 5:
				check(s.EditSpec(ctx, m.ID, func(spec *root.Spec) error { spec.Cordoned = !spec.Cordoned; return nil }))
			case 6:
				check(s.DeleteApp(ctx, "shop"))
			case 7:
				check(s.CreateApp(ctx, root.App{Name: "shop", Org: "personal"}))
			}
		}
		last, err := s.PutMeta(ctx, "end", nil)
		if err != nil {
			rt.Fatal(err)
		}
		want, err := s.Load(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		for i := range views {
			rev := int64(0)
			for rev = range revisions[i] {
				if rev == last {
					break
				}
			}
			if rev != last {
				rt.Fatalf("watch %d ended at revision %d, want %d: %v", i, rev, last, g.Wait())
			}
		}
		cancel()
		_ = g.Wait() // ends with the context's cause
		for _, view := range views {
			equalSnapshots(t, view, want)
		}
		if t.Failed() {
			rt.Fatal("see above")
		}
	})
}
