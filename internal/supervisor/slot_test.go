package supervisor

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

func TestLifeInTheJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("catch", "7"))
	s := w.started("I1")
	if _, err := s.stop(t.Context(), orders.Stop{Source: orders.SourceUser}); err != nil {
		t.Fatal(err)
	}
	e := w.until(orders.EntryExited)
	want := &orders.Exit{Code: 7, Requested: true}
	// The payload may get the signal before it catches it.
	if e.Exit != nil && e.Exit.Signal == 2 {
		want = &orders.Exit{Code: 130, Signal: 2, Requested: true}
	}
	if diff := cmp.Diff(want, e.Exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]orders.EntryType{"prepared", "starting", "started", "stopping", "exited"}, w.types()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	f, err := s.claim(t.Context()) // whoever wrote the entry has landed
	if err != nil {
		t.Fatal(err)
	}
	s.land(f)
	if got := s.account(); got.Phase != orders.PhaseStopped || got.Running != nil || got.Stamp != e.Stamp {
		t.Errorf("account: got %+v, want stopped at %v", got, e.Stamp)
	}
}

func TestExitByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("exit", "4"))
	w.started("I1")
	if diff := cmp.Diff(&orders.Exit{Code: 4}, w.until(orders.EntryExited).Exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
}

func TestStartsShareOneFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.prepared("I1")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := s.start(t.Context(), orders.Start{Source: orders.SourceProxy}); err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	wg.Wait()
	if got := w.count(orders.EntryStarting); got != 1 {
		t.Errorf("starts in the journal: got %d, want 1", got)
	}
}

func TestFailureIsShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	b := w.boot("I1", 1)
	b.Problem = "command not found: nothing"
	w.prepareBoot(b)
	s, err := w.get("I1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.start(t.Context(), orders.Start{})
	if root.KindOf(err) != root.Invalid {
		t.Errorf("start: got %v, want kind invalid", err)
	}
	if e := w.until(orders.EntryFailed); e.Error != b.Problem {
		t.Errorf("entry: got %q, want %q", e.Error, b.Problem)
	}
	if got := s.account(); got.Phase != orders.PhaseStopped || got.Next != nil {
		t.Errorf("account: got %+v, want stopped and the boot used", got)
	}
}

func TestStartWaitsForTheNextBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("catch", "0"))
	s := w.started("I1")
	if _, err := s.stop(t.Context(), orders.Stop{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // while it stops, and without a boot
		_, err := s.start(t.Context(), orders.Start{})
		done <- err
	}()
	w.until(orders.EntryExited)
	w.prepareBoot(w.boot("I1", 2))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := s.account().Running; got == nil || got.Number != 2 {
		t.Errorf("running: got %+v, want boot 2", got)
	}
}

func TestStartGivesUpWithItsCaller(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("exit", "0"))
	s := w.started("I1")
	w.until(orders.EntryExited)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.start(ctx, orders.Start{}); root.KindOf(err) != root.Timeout {
		t.Errorf("start without a boot: got %v, want kind timeout", err)
	}
}

func TestLeaseHoldsWakesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.prepared("I1")
	s.lease(orders.Lease{Until: time.Now().Add(time.Hour)})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.start(ctx, orders.Start{Source: orders.SourceProxy}); root.KindOf(err) != root.Timeout {
		t.Errorf("wake of a leased machine: got %v, want kind timeout", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.start(t.Context(), orders.Start{Source: orders.SourceProxy})
		done <- err
	}()
	s.lease(orders.Lease{})
	if err := <-done; err != nil {
		t.Errorf("wake after the lease: %v", err)
	}
}

func TestGeneration(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.prepared("I1")
	if _, err := s.start(t.Context(), orders.Start{Generation: 2}); root.KindOf(err) != root.Conflict {
		t.Errorf("start of an older version: got %v, want kind conflict", err)
	}
	if _, err := s.start(t.Context(), orders.Start{Generation: 3}); err != nil {
		t.Error(err)
	}
}

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	seen := s.account().Stamp
	if _, err := s.suspend(orders.Suspend{Seen: root.Stamp{Boot: seen.Boot, Seq: seen.Seq - 1}}); root.KindOf(err) != root.Conflict {
		t.Errorf("suspend with older news: got %v, want kind conflict", err)
	}
	if _, err := s.enter(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.suspend(orders.Suspend{Seen: seen}); root.KindOf(err) != root.Conflict {
		t.Errorf("suspend during an exec: got %v, want kind conflict", err)
	}
	s.exit()
	if _, err := s.suspend(orders.Suspend{Seen: seen, Generation: 3, Source: orders.SourceProxy}); err != nil {
		t.Fatal(err)
	}
	if !w.router.isMarked() {
		t.Error("first packet would not wake it")
	}
	if _, err := s.enter(); root.KindOf(err) != root.Precondition {
		t.Errorf("exec while suspended: got %v, want kind precondition", err)
	}
	out, err := s.start(t.Context(), orders.Start{Source: orders.SourceProxy})
	if err != nil || !out.Thawed || out.Booted {
		t.Fatalf("resume: got %+v, %v, want thawed", out, err)
	}
	patience.Until(t, "its interface to be unmarked", func() bool { return !w.router.isMarked() })
	if out, err = s.start(t.Context(), orders.Start{}); err != nil || out.Thawed || out.Booted {
		t.Errorf("start of a started one: got %+v, %v, want neither thawed nor booted", out, err)
	}
}

func TestFirstPacket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	if _, err := s.suspend(orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	w.firstPacket(t.Context(), "m8")
	w.firstPacket(t.Context(), "m7")
	if e := w.until(orders.EntryResumed); e.Source != orders.SourceProxy || e.Reason != "private network traffic" {
		t.Errorf("entry: got %+v", e)
	}
}

func TestStopOfASuspendedMachine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	if _, err := s.suspend(orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.stop(t.Context(), orders.Stop{Signal: "SIGTERM"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&orders.Exit{Code: 143, Signal: 15, Requested: true}, w.until(orders.EntryExited).Exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
	if w.router.isMarked() {
		t.Error("its interface is still marked")
	}
}

func TestStopKillsAfterTheTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	// SIGURG is ignored by default, like a stop signal of an app that hangs.
	if _, err := s.stop(t.Context(), orders.Stop{Signal: "SIGURG", Timeout: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&orders.Exit{Code: 137, Signal: 9, Requested: true}, w.until(orders.EntryExited).Exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
}

func TestStopRefusesUnknownSignals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	if _, err := s.stop(t.Context(), orders.Stop{Signal: "SIGNOTHING"}); root.KindOf(err) != root.Invalid {
		t.Errorf("got %v, want kind invalid", err)
	}
	if got := s.account().Phase; got != orders.PhaseStarted {
		t.Errorf("phase: got %s, want started", got)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	if err := s.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.get("I1"); root.KindOf(err) != root.NotFound {
		t.Errorf("get: got %v, want kind not_found", err)
	}
	for _, dir := range []string{w.slotDir("I1"), w.apiDir("I1")} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there", dir)
		}
	}
	if err := s.remove(t.Context()); err != nil {
		t.Errorf("remove again: %v", err)
	}
	if got := w.count(orders.EntryRemoved); got != 1 {
		t.Errorf("removed entries: got %d, want 1", got)
	}
	if _, err := s.start(t.Context(), orders.Start{}); root.KindOf(err) != root.NotFound {
		t.Errorf("start: got %v, want kind not_found", err)
	}
}

func TestRemoveWakesThoseWhoWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("exit", "0"))
	s := w.started("I1")
	w.until(orders.EntryExited)
	done := make(chan error, 1)
	go func() {
		_, err := s.start(t.Context(), orders.Start{})
		done <- err
	}()
	if err := s.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; root.KindOf(err) != root.NotFound {
		t.Errorf("waiting start: got %v, want kind not_found", err)
	}
}

func TestMachineSocketFollowsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	w.prepared("I1")
	victim := t.TempDir() + "/victim"
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// What a machine could do to its /.fly while no server runs.
	api := w.apiDir("I1") + "/api"
	if err := errors.Join(os.Remove(api), os.Symlink(victim, api)); err != nil {
		t.Fatal(err)
	}
	w = w.next("boot-1")
	fi, err := os.Stat(victim)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("victim: got %v, %v, want untouched", fi, err)
	}
	if fi, err = os.Lstat(api); err != nil || fi.Mode()&os.ModeSocket == 0 || fi.Mode().Perm() != 0o666 {
		t.Errorf("socket: got %v, %v, want a socket for everybody", fi.Mode(), err)
	}
	if s, err := w.get("I1"); err != nil || inode(s.api) == 0 {
		t.Errorf("slot: got %v", err)
	}
}
