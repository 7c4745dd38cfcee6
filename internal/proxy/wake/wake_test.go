package wake

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	root "github.com/roost-run/roost"
)

// sleeper takes its time, or for ever.
type sleeper struct {
	takes time.Duration // 0: until ctx ends
	err   error
	calls atomic.Int32
}

func (s *sleeper) Wake(ctx context.Context, _ *root.Machine) error {
	s.calls.Add(1)
	if s.takes == 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	time.Sleep(s.takes)
	return s.err
}

func machine(instance root.InstanceID) *root.Machine {
	return &root.Machine{ID: "148e1234c56789", Spec: root.Spec{Instance: instance}}
}

func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sleeper{takes: time.Second}
		fs := New(s, time.Minute)
		defer fs.Close()
		a, b, other := fs.Start(machine("A")), fs.Start(machine("A")), fs.Start(machine("B"))
		if a != b || a == other {
			t.Error("want one flight for each instance")
		}
		<-a.Done()
		<-other.Done()
		if got := s.calls.Load(); got != 2 || a.Err() != nil {
			t.Errorf("got %d wakes, %v, want 2", got, a.Err())
		}
		if again := fs.Start(machine("A")); again == a {
			t.Error("a flight that landed was joined")
		}
	})
}

func TestError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := errors.New("no memory")
		fs := New(&sleeper{takes: time.Second, err: want}, time.Minute)
		defer fs.Close()
		f := fs.Start(machine("A"))
		<-f.Done()
		if !errors.Is(f.Err(), want) {
			t.Errorf("got %v, want %v", f.Err(), want)
		}
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := New(&sleeper{}, 5*time.Second)
		defer fs.Close()
		begin := time.Now()
		f := fs.Start(machine("A"))
		<-f.Done()
		if got := root.KindOf(f.Err()); got != root.Timeout {
			t.Errorf("kind: got %v, want %v", got, root.Timeout)
		}
		if got := time.Since(begin); got != 5*time.Second {
			t.Errorf("waited: got %s, want 5s", got)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := New(&sleeper{}, time.Hour)
		f := fs.Start(machine("A"))
		fs.Close()
		<-f.Done()
		late := fs.Start(machine("A"))
		<-late.Done()
		for _, err := range []error{f.Err(), late.Err()} {
			if root.KindOf(err) != root.Unavailable {
				t.Errorf("got %v, want kind unavailable", err)
			}
		}
	})
}

func TestQueue(t *testing.T) {
	q := NewQueue(2, 3)
	for i, c := range []struct {
		app  root.AppName
		want bool
	}{{"a", true}, {"a", true}, {"a", false}, {"b", true}, {"b", false}} {
		if got := q.Enter(c.app); got != c.want {
			t.Errorf("%d: %s: got %v, want %v", i, c.app, got, c.want)
		}
	}
	q.Leave("a")
	if got := q.Len(); got != 2 || !q.Enter("b") || q.Enter("b") {
		t.Errorf("after one left: %d wait, want room for one more", got)
	}
}
