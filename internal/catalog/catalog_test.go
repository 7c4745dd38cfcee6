package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	root "github.com/roost-run/roost"
)

func machine(id root.MachineID, state root.State, seq uint64) *root.Machine {
	return &root.Machine{ID: id, App: "shop", Status: root.Status{State: state, Stamp: root.Stamp{Boot: 1, Seq: seq}}}
}

func with(revision int64, machines ...*root.Machine) *root.Snapshot {
	s := root.NewSnapshot()
	for _, m := range machines {
		s = s.With(revision, root.Change{Machine: m})
	}
	return s.With(revision)
}

func TestApply(t *testing.T) {
	c := New(with(5, machine("a", root.StateStopped, 1)))
	before := c.Snapshot()
	c.Apply(6, root.Change{Machine: machine("a", root.StateStarted, 2)}, root.Change{App: &root.App{Name: "shop"}})
	if got := c.Snapshot(); got.Machine("a").Status.State != root.StateStarted || got.App("shop") == nil || got.Revision() != 6 {
		t.Errorf("got %+v at %d, want started at 6", got.Machine("a"), got.Revision())
	}
	if before.Machine("a").Status.State != root.StateStopped || before.Revision() != 5 {
		t.Error("a snapshot that was handed out changed")
	}
	c.Apply(4, root.Change{Machine: machine("a", root.StateStopped, 1)})
	if got := c.Snapshot(); got.Machine("a").Status.State != root.StateStarted || got.Revision() != 6 {
		t.Errorf("after old news: got %s at %d, want started at 6", got.Machine("a").Status.State, got.Revision())
	}
}

func TestPutStatus(t *testing.T) {
	c := New(with(5, machine("a", root.StateStopped, 3)))
	for _, test := range []struct {
		id    root.MachineID
		seq   uint64
		fresh bool
	}{{"a", 2, false}, {"a", 3, false}, {"a", 4, true}, {"none", 9, false}} {
		changed := c.Changed()
		got := c.PutStatus(test.id, root.Status{State: root.StateStarted, Stamp: root.Stamp{Boot: 1, Seq: test.seq}})
		if got != test.fresh {
			t.Errorf("%s at %d: got %v, want %v", test.id, test.seq, got, test.fresh)
		}
		if closed := isClosed(changed); closed != test.fresh {
			t.Errorf("%s at %d: signalled %v, want %v", test.id, test.seq, closed, test.fresh)
		}
	}
	if got := c.Snapshot(); got.Machine("a").Status.State != root.StateStarted || got.Revision() != 5 {
		t.Errorf("got %s at %d, want started at 5", got.Machine("a").Status.State, got.Revision())
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// TestReplaceIsAuthoritative: what the new snapshot lacks is gone, newer
// statuses of what it has survive.
func TestReplaceIsAuthoritative(t *testing.T) {
	c := New(with(5, machine("a", root.StateStarted, 9), machine("b", root.StateStarted, 1), machine("gone", root.StateStarted, 99)))
	c.Replace(with(3, machine("a", root.StateStopped, 2), machine("b", root.StateStopped, 2), machine("new", root.StateStopped, 1)))
	s := c.Snapshot()
	for id, want := range map[root.MachineID]root.State{"a": root.StateStarted, "b": root.StateStopped, "new": root.StateStopped} {
		if m := s.Machine(id); m == nil || m.Status.State != want {
			t.Errorf("%s: got %+v, want %s", id, m, want)
		}
	}
	if s.Machine("gone") != nil || len(s.Machines("shop")) != 3 || s.Revision() != 3 {
		t.Errorf("got %d machines at %d, want 3 at 3", len(s.Machines("shop")), s.Revision())
	}
}

func TestSubscribeCoalesces(t *testing.T) {
	c := New(root.NewSnapshot())
	one, cancelOne := c.Subscribe()
	two, cancelTwo := c.Subscribe()
	defer cancelTwo()
	for i := range 10 {
		c.Apply(int64(i + 1))
	}
	for _, ch := range []<-chan struct{}{one, two} {
		if len(ch) != 1 {
			t.Errorf("waiting signals: got %d, want 1", len(ch))
		}
	}
	<-one
	cancelOne()
	c.Apply(11)
	if len(one) != 0 {
		t.Error("a cancelled subscription was signalled")
	}
	if len(c.subscribers) != 1 {
		t.Errorf("subscribers: got %d, want 1", len(c.subscribers))
	}
}

func TestWaitRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(with(5))
		if err := c.WaitRevision(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- c.WaitRevision(t.Context(), 8) }()
		for _, rev := range []int64{6, 7} {
			c.Apply(rev)
			synctest.Wait()
			if len(done) != 0 {
				t.Fatalf("returned at revision %d, want 8", rev)
			}
		}
		c.Apply(9)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		cause := errors.New("the client left")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { done <- c.WaitRevision(ctx, 100) }()
		synctest.Wait()
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) || !strings.Contains(err.Error(), "100") {
			t.Errorf("got %v, want the cause and the revision", err)
		}
	})
}

// TestReadersSeeWholeSnapshots runs readers beside writers; with -race it also
// proves that they share nothing that changes.
func TestReadersSeeWholeSnapshots(t *testing.T) {
	c := New(root.NewSnapshot())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := int64(0)
			for {
				s := c.Snapshot()
				// Both machines are always written together.
				a, b := s.Machine("a"), s.Machine("b")
				if (a == nil) != (b == nil) || a != nil && a.Status.Stamp != b.Status.Stamp || s.Revision() < last {
					t.Errorf("torn snapshot: %+v and %+v at %d after %d", a, b, s.Revision(), last)
					return
				}
				last = s.Revision()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 2000 {
		seq := uint64(i + 1)
		c.Apply(int64(seq), root.Change{Machine: machine("a", root.StateStarted, seq)}, root.Change{Machine: machine("b", root.StateStarted, seq)})
	}
	close(stop)
	wg.Wait()
}

// script is a Store whose watches end as told.
type script struct {
	loads   []error // of each Load, the last repeats
	watches []error
	load    int
	watch   int
	at      []time.Duration // of each Load since the start
	start   time.Time
}

func (s *script) Load(context.Context) (*root.Snapshot, error) {
	s.at = append(s.at, time.Since(s.start))
	err := s.loads[min(s.load, len(s.loads)-1)]
	s.load++
	if err != nil {
		return nil, err
	}
	return with(int64(10 * s.load)), nil
}

func (s *script) Watch(ctx context.Context, after int64, f func(int64, []root.Change) error) error {
	if err := f(after+1, []root.Change{{App: &root.App{Name: root.AppName(fmt.Sprint("app", after))}}}); err != nil {
		return err
	}
	if s.watch < len(s.watches) {
		s.watch++
		return s.watches[s.watch-1]
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestFollowRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		s := &script{loads: []error{away, away, away, nil}, watches: []error{away}, start: time.Now()}
		var log bytes.Buffer
		c := New(root.NewSnapshot())
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Follow(ctx, s, slog.New(slog.NewTextHandler(&log, nil))) }()
		if err := c.WaitRevision(t.Context(), 51); err != nil { // the fifth load's watch
			t.Fatal(err)
		}
		if c.Snapshot().App("app50") == nil || c.Snapshot().App("app40") != nil {
			t.Error("want what the fifth load and its watch brought, and nothing from before")
		}
		stop := errors.New("stop")
		cancel(stop)
		if err := <-done; !errors.Is(err, stop) {
			t.Errorf("got %v, want the cause", err)
		}
		if n := strings.Count(log.String(), "catalog lost its store"); n != 4 {
			t.Errorf("reports: got %d, want 4:\n%s", n, log.String())
		}
		// Pauses grow and, after a success, begin small again.
		first, third, last := s.at[1]-s.at[0], s.at[3]-s.at[2], s.at[4]-s.at[3]
		if first < minPause/2 || first > minPause || third < 2*minPause || last > minPause {
			t.Errorf("pauses: got %s, ..., %s, then %s", first, third, last)
		}
	})
}

// full is a catalog of the size that the design promises.
func full(apps, machinesEach int) *root.Snapshot {
	changes := make([]root.Change, 0, apps*(machinesEach+1))
	for a := range apps {
		app := root.AppName(fmt.Sprintf("app-%05d", a))
		changes = append(changes, root.Change{App: &root.App{Name: app, Org: "personal"}})
		for m := range machinesEach {
			changes = append(changes, root.Change{Machine: &root.Machine{
				ID: root.MachineID(fmt.Sprintf("%014x", a*machinesEach+m)), App: app, Org: "personal", Name: fmt.Sprint("m", m), Region: "loc",
				Spec: root.Spec{Instance: "01J0ABCDEFGHJKMNPQRSTVWXYZ", Config: root.Config{
					Guest:    root.DefaultGuest(),
					Services: []root.Service{{Protocol: "tcp", InternalPort: 8080, Ports: []root.Port{{Port: 80, Handlers: []string{"http"}}, {Port: 443, Handlers: []string{"http", "tls"}}}}},
					Metadata: map[string]string{"fly_process_group": "app"},
				}},
				Status: root.Status{State: root.StateStopped, Stamp: root.Stamp{Boot: 1, Seq: 1}},
			}})
		}
	}
	return root.NewSnapshot().With(1, changes...)
}

func BenchmarkApply(b *testing.B) {
	for _, size := range []struct{ apps, each int }{{10, 5}, {10_000, 5}} {
		b.Run(fmt.Sprintf("apps=%d/machines=%d", size.apps, size.apps*size.each), func(b *testing.B) {
			c := New(full(size.apps, size.each))
			rev := int64(1)
			b.ReportAllocs()
			for b.Loop() {
				rev++
				old := c.Snapshot().Machine(root.MachineID(fmt.Sprintf("%014x", rev%int64(size.apps*size.each))))
				m := *old
				m.Status.Stamp.Seq++
				c.Apply(rev, root.Change{Machine: &m})
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, apps := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("apps=%d", apps), func(b *testing.B) {
			c := New(full(apps, 5))
			name := root.AppName(fmt.Sprintf("app-%05d", apps/2))
			b.ReportAllocs()
			for b.Loop() {
				s := c.Snapshot()
				if s.App(name) == nil || len(s.Machines(name)) != 5 {
					b.Fatal("lost")
				}
			}
		})
	}
}

// BenchmarkFill builds the whole catalog and reports what it holds in memory.
func BenchmarkFill(b *testing.B) {
	var s *root.Snapshot
	var before, after runtime.MemStats
	for b.Loop() {
		s = nil
		runtime.GC()
		runtime.ReadMemStats(&before)
		s = full(10_000, 5)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB-held")
	runtime.KeepAlive(s)
}
