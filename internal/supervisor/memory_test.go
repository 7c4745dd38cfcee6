package supervisor

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

func never(context.Context) bool { return false }

func fixed(free root.Bytes) *memory {
	return newMemory(func() (root.Bytes, error) { return free, nil }, func() root.Bytes { return root.GiB })
}

func TestAdmitRefuses(t *testing.T) {
	t.Parallel()
	_, err := fixed(100*root.MiB).admit(t.Context(), 256*root.MiB, "148e", never)
	if root.KindOf(err) != root.Exhausted {
		t.Fatalf("got %v, want kind exhausted", err)
	}
	for _, want := range []string{"256.0 MB", "100.0 MB", "1.0 GB", "148e"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("message %q does not say %q", err, want)
		}
	}
}

func TestAdmitWaitsForReservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fixed(300 * root.MiB)
		held, err := m.admit(t.Context(), 256*root.MiB, "first", never)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		held.settle()
		if _, err := m.admit(t.Context(), 256*root.MiB, "second", never); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(begin); got != settle {
			t.Errorf("waited: got %v, want %v", got, settle)
		}
	})
}

// What ends before it has settled gives its memory back at once, and only once.
func TestReservationEndsWithItsMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fixed(300 * root.MiB)
		begin := time.Now()
		for range 3 {
			held, err := m.admit(t.Context(), 256*root.MiB, "job", never)
			if err != nil {
				t.Fatal(err)
			}
			held.settle()
			held.end()
		}
		if got := time.Since(begin); got != 0 {
			t.Errorf("waited: got %v, want no time", got)
		}
		<-time.After(2 * settle)
		if m.reserved != 0 {
			t.Errorf("reserved in the end: got %s", m.reserved)
		}
	})
}

// One job after the other starts at once where there is room for one only.
func TestJobsFollowAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("exit", "0"))
	w.memory.free = func() (root.Bytes, error) { return root.GiB, nil }
	s := w.started("I1")
	w.until(orders.EntryExited)
	s.all.memory.mu.Lock()
	defer s.all.memory.mu.Unlock()
	if s.all.memory.reserved != 0 {
		t.Errorf("reserved after the exit: got %s", s.all.memory.reserved)
	}
}

func TestAdmitGivesUpWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := fixed(300 * root.MiB)
		if _, err := m.admit(t.Context(), 256*root.MiB, "first", never); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.admit(ctx, 256*root.MiB, "second", never); root.KindOf(err) != root.Exhausted {
			t.Errorf("got %v, want kind exhausted", err)
		}
	})
}

func TestReclaimWhenDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	w.reclaimAfter = 0
	s := w.started("I1")
	if _, err := s.suspend(orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	w.until(orders.EntryReclaimed)
	if got := s.account(); !got.Reclaimed || got.Phase != orders.PhaseSuspended {
		t.Errorf("account: got %+v, want suspended and reclaimed", got)
	}
	if out, err := s.start(t.Context(), orders.Start{}); err != nil || !out.Thawed {
		t.Errorf("wake: got %+v, %v", out, err)
	}
	if s.account().Reclaimed {
		t.Error("reclaimed after the wake")
	}
}

func TestPressureReclaimsTheLongestAsleep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	old, young := w.started("I1"), w.started("I2")
	for _, s := range []*slot{old, young} {
		if _, err := s.suspend(orders.Suspend{}); err != nil {
			t.Fatal(err)
		}
	}
	// Free only once something was given back.
	w.memory.free = func() (root.Bytes, error) {
		if old.account().Reclaimed {
			return root.GiB, nil
		}
		return 0, nil
	}
	w.started("I3")
	if !old.account().Reclaimed || young.account().Reclaimed {
		t.Errorf("reclaimed: got %v and %v, want the one that sleeps longer", old.account().Reclaimed, young.account().Reclaimed)
	}
}

// TestDiskKeepsTheHotPart: what would come back from a disk stays in part,
// until the memory is needed.
func TestDiskKeepsTheHotPart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	w.onDisk = true
	s := w.started("I1")
	if _, err := s.suspend(orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	before, err := s.stats()
	if err != nil {
		t.Fatal(err)
	}
	resident := func() root.Bytes {
		t.Helper()
		st, err := s.stats()
		if err != nil {
			t.Fatal(err)
		}
		return st.Memory
	}
	for range 2 { // the second has nothing left to take
		if err := w.reclaim(t.Context(), s, false); err != nil {
			t.Fatal(err)
		}
		if got, want := resident(), before.Memory/hotPart; !s.account().Reclaimed || got < want/2 || got > want {
			t.Errorf("resident: got %s of %s, want about %s", got, before.Memory, want)
		}
	}
	if !w.reclaimOne(t.Context()) || resident() != 0 {
		t.Errorf("under pressure: %s stay, want none", resident())
	}
	if w.reclaimOne(t.Context()) {
		t.Error("under pressure: memory was found where there is none")
	}
}

func TestStartWithoutMemoryKeepsItsBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	w.memory.free = func() (root.Bytes, error) { return 0, nil }
	s := w.prepared("I1")
	if _, err := s.start(t.Context(), orders.Start{}); root.KindOf(err) != root.Exhausted {
		t.Errorf("start: got %v, want kind exhausted", err)
	}
	if got := s.account(); got.Phase != orders.PhaseStopped || got.Next == nil {
		t.Errorf("account: got %+v, want stopped with its boot", got)
	}
}

func TestReclaimOfARunningMachine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	if err := w.reclaim(t.Context(), s, false); root.KindOf(err) != root.Precondition {
		t.Errorf("got %v, want kind precondition", err)
	}
}
