package load

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTake(t *testing.T) {
	u := (&Table{}).Unit("A")
	for i, want := range []bool{true, true, false} {
		if got := u.Take(1, 2); got != want {
			t.Errorf("%d: got %v, want %v", i, got, want)
		}
	}
	if !u.Take(0, 2) {
		t.Error("the limit of one service holds back another")
	}
	u.Wait(1)
	if n, _ := u.Load(1); n != 3 {
		t.Errorf("load with one waiting: got %d, want 3", n)
	}
	u.Release(1)
	if !u.Take(1, 2) {
		t.Error("a released slot is not free")
	}
}

func TestPark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := (&Table{}).Unit("A")
		park := func() bool { return u.Park(time.Now(), time.Minute) }
		time.Sleep(time.Minute)
		for name, c := range map[string]struct{ begin, end func() }{
			"a request":         {func() { u.Take(0, 0) }, func() { u.Release(0) }},
			"a waiting request": {func() { u.Wait(1) }, func() { u.Wait(-1) }},
			"a busy lease":      {func() { u.Busy(time.Now().Add(time.Hour)) }, func() { u.Busy(time.Time{}) }},
			"recent traffic":    {func() { u.Touch(time.Now()) }, func() {}},
		} {
			c.begin()
			if park() {
				t.Errorf("parked beside %s", name)
				u.Unpark()
			}
			c.end()
			time.Sleep(time.Minute)
		}
		if !park() || park() {
			t.Error("want to park an idle unit, once")
		}
		if u.Take(0, 0) {
			t.Error("a parked unit was taken")
		}
		u.Unpark()
		if !u.Take(0, 0) {
			t.Error("an unparked unit was not")
		}
	})
}

// TestParkRace checks that a unit is never both parked and taken.
func TestParkRace(t *testing.T) {
	u := (&Table{}).Unit("A")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if u.Take(0, 0) {
					if _, parked := u.Load(0); parked {
						t.Error("parked while taken")
					}
					u.Release(0)
				}
			}
		})
	}
	for range 1000 {
		if u.Park(time.Now(), 0) {
			if n, _ := u.Load(0); n != 0 {
				t.Errorf("parked with load %d", n)
			}
			u.Unpark()
		}
	}
	wg.Wait()
}

func TestForget(t *testing.T) {
	var table Table
	table.Unit("A").Take(0, 0)
	if got := table.Counts("A").InFlight; got != 1 {
		t.Errorf("got %d, want 1", got)
	}
	table.Forget("A")
	if got := table.Counts("A").InFlight; got != 0 {
		t.Errorf("forgotten: got %d, want 0", got)
	}
}

func BenchmarkTakeRelease(b *testing.B) {
	u := (&Table{}).Unit("A")
	b.ReportAllocs()
	for b.Loop() {
		if !u.Take(0, 10) {
			b.Fatal("full")
		}
		u.Release(0)
	}
}
