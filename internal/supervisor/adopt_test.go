package supervisor

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
)

// next ends w's process and returns the slots of its successor, which shares
// directories and driver, after adoption.
func (w *world) next(bootID string) *world {
	w.t.Helper()
	w.end()
	n := newWorld(w.t, w.driver)
	if err := n.journal.close(); err != nil {
		w.t.Fatal(err)
	}
	n.cfg = w.cfg
	j, rebooted, err := openJournal(w.cfg.Journal(), bootID, time.Now(), slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	n.journal = j
	n.t.Cleanup(func() { _ = j.close() })
	n.router = w.router
	n.slots.router = w.router
	if err := n.adopt(n.life, rebooted, &inherited{}); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// after lists the entries of the journal's second life.
func (w *world) after(s root.Stamp) (out []string) {
	past, f := w.journal.follow(s)
	w.journal.unfollow(f)
	for _, e := range past {
		line := string(e.Instance) + " " + string(e.Type)
		if e.Exit != nil && e.Exit.Code == -1 {
			line += " unknown"
		}
		out = append(out, line)
	}
	return out
}

func TestAdoptWhatRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	w.started("I1")
	asleep := w.started("I2")
	if _, err := asleep.suspend(orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	w.prepared("I3")
	leased := time.Now().Add(time.Hour).UTC()
	asleep.lease(orders.Lease{Until: leased})
	before := map[root.InstanceID]orders.Instance{}
	for _, s := range w.list() {
		before[s.id] = s.account()
	}
	last := w.journal.last()
	w = w.next("boot-1")
	for _, s := range w.list() {
		if diff := cmp.Diff(before[s.id], s.account()); diff != "" {
			t.Errorf("%s (-before +after):\n%s", s.id, diff)
		}
	}
	if len(w.list()) != 3 {
		t.Errorf("instances: got %d, want 3", len(w.list()))
	}
	if got := w.after(last); len(got) != 0 {
		t.Errorf("journal: got %v, want nothing new", got)
	}
	if !w.router.isMarked() {
		t.Error("first packet would not wake the suspended one")
	}
	s, err := w.get("I1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.stop(t.Context(), orders.Stop{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&orders.Exit{Code: 130, Signal: 2, Requested: true}, w.until(orders.EntryExited).Exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
}

func TestAdoptAfterAReboot(t *testing.T) {
	t.Parallel()
	f := fake("sleep")
	w := newWorld(t, f)
	w.started("I1")
	s := w.started("I2")
	if _, err := s.suspend(orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	w.prepared("I3")
	last := w.journal.last()
	// A reboot ends everything, whoever watches.
	list, err := f.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.end()
	for _, e := range list {
		if err := f.Delete(context.WithoutCancel(t.Context()), e.ID, true); err != nil {
			t.Fatal(err)
		}
	}
	w = w.next("boot-2")
	if got := w.list(); len(got) != 0 {
		t.Errorf("instances: got %d, want none", len(got))
	}
	got := map[string]bool{}
	for _, l := range w.after(last) {
		got[l] = true
	}
	want := map[string]bool{"I1 exited unknown": true, "I1 removed": true, "I2 exited unknown": true, "I2 removed": true, "I3 removed": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	if b := w.journal.last().Boot; b != last.Boot+1 {
		t.Errorf("boot: got %d, want %d", b, last.Boot+1)
	}
}

func TestAdoptStrays(t *testing.T) {
	t.Parallel()
	f := fake("sleep")
	w := newWorld(t, f)
	pid, err := f.Create(t.Context(), runtime.Container{ID: "stray-1", Bundle: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	exited := testReaper.watch(pid)
	w.next("boot-1")
	<-exited
	if list, err := f.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("containers: got %v, %v, want none", list, err)
	}
}

func TestAdoptHalfAStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.prepared("I1")
	s.record(orders.Entry{Type: orders.EntryStarting, Number: 1, Source: orders.SourceProxy})
	w = w.next("boot-1")
	if e := w.until(orders.EntryFailed); e.Number != 1 || e.Error == "" {
		t.Errorf("entry: got %+v", e)
	}
	s, err := w.get("I1")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.account(); got.Phase != orders.PhaseStopped || got.Next != nil {
		t.Errorf("account: got %+v, want stopped, its boot used", got)
	}
}

func TestAdoptHalfASuspend(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	s := w.started("I1")
	s.record(orders.Entry{Type: orders.EntrySuspending, Number: 1})
	if err := w.driver.Freeze("I1-1"); err != nil {
		t.Fatal(err)
	}
	w = w.next("boot-1")
	s, err := w.get("I1")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.account().Phase; got != orders.PhaseStarted {
		t.Errorf("phase: got %s, want started", got)
	}
	w.until(orders.EntryResumed)
}

func TestUnreadableSlotFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fake("sleep"))
	w.prepared("I1")
	w.prepared("I2")
	w.end()
	if err := os.WriteFile(w.slotDir("I1")+"/slot.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w = w.next("boot-1")
	if got := w.list(); len(got) != 1 || got[0].id != "I2" {
		t.Errorf("instances: got %v, want its neighbour", got)
	}
}
