package supervisor

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

func mustJournal(t *testing.T, path, bootID string) (*journal, bool) {
	t.Helper()
	j, rebooted, err := openJournal(path, bootID, time.Unix(1000, 0), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() })
	return j, rebooted
}

func entry(id root.InstanceID, typ orders.EntryType) orders.Entry {
	return orders.Entry{Type: typ, Machine: "148e1234c56789", Instance: id, At: time.Unix(5, 0)}
}

func TestJournalStamps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustJournal(t, path, "a")
	first := j.append(entry("I1", orders.EntryStarted))
	if want := (root.Stamp{Boot: 1000, Seq: 1}); first.Stamp != want {
		t.Errorf("first stamp: got %v, want %v", first.Stamp, want)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	j, rebooted := mustJournal(t, path, "a")
	if e := j.append(entry("I1", orders.EntryExited)); rebooted || e.Stamp != (root.Stamp{Boot: 1000, Seq: 2}) {
		t.Errorf("after a restart: got %v, rebooted %v, want 1000/2", e.Stamp, rebooted)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	j, rebooted = mustJournal(t, path, "b")
	if e := j.append(entry("I1", orders.EntryStarted)); !rebooted || e.Stamp != (root.Stamp{Boot: 1001, Seq: 1}) {
		t.Errorf("after a reboot: got %v, rebooted %v, want 1001/1", e.Stamp, rebooted)
	}
	past, _ := j.follow(root.Stamp{})
	if len(past) != 3 {
		t.Errorf("entries: got %d, want those of before the reboot too", len(past))
	}
}

func TestJournalSurvivesDamage(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func([]byte) []byte{
		"torn":      func(b []byte) []byte { return b[:len(b)-10] },
		"half line": func(b []byte) []byte { return append(b, `{"Stamp":{"Bo`...) },
		"nonsense":  func(b []byte) []byte { return append(b, "\x00\x00\x00\n"...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal")
			j, _ := mustJournal(t, path, "a")
			j.append(entry("I1", orders.EntryStarted))
			j.append(entry("I1", orders.EntrySuspended))
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			j, _ = mustJournal(t, path, "a")
			past, _ := j.follow(root.Stamp{})
			if len(past) == 0 || past[0].Type != orders.EntryStarted {
				t.Fatalf("entries: got %v, want the undamaged ones", past)
			}
			e := j.append(entry("I1", orders.EntryExited))
			if want := past[len(past)-1].Stamp.Seq + 1; e.Stamp.Seq != want {
				t.Errorf("next sequence: got %d, want %d", e.Stamp.Seq, want)
			}
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			j, _ = mustJournal(t, path, "a")
			if again, _ := j.follow(root.Stamp{}); len(again) != len(past)+1 {
				t.Errorf("entries read back: got %d, want %d", len(again), len(past)+1)
			}
		})
	}
}

func TestJournalCompaction(t *testing.T) {
	t.Parallel()
	var entries []orders.Entry
	for i := range journalTail + 100 {
		id := root.InstanceID(fmt.Sprintf("I%d", i))
		e := entry(id, orders.EntryStarted)
		if i == 1 {
			e.Type = orders.EntryRemoved
		}
		e.Stamp = root.Stamp{Boot: 1, Seq: uint64(i + 1)}
		entries = append(entries, e)
	}
	entries[50].Instance = "I0" // its last one
	got := compact(entries)
	var seqs []uint64
	for _, e := range got[:3] {
		seqs = append(seqs, e.Stamp.Seq)
	}
	// 1 is not I0's last, 2 says removed.
	if diff := cmp.Diff([]uint64{3, 4, 5}, seqs); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if want := journalTail + 98; len(got) != want {
		t.Errorf("kept: got %d, want %d", len(got), want)
	}
}

func TestJournalCompactsWhileRunning(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustJournal(t, path, "a")
	for range compactEvery + 10 {
		j.append(entry("I1", orders.EntryStarted))
	}
	past, _ := j.follow(root.Stamp{})
	if len(past) > journalTail+20 {
		t.Errorf("entries in memory: got %d, want about %d", len(past), journalTail)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	j, _ = mustJournal(t, path, "a")
	if got, want := j.last().Seq, uint64(compactEvery+10); got != want {
		t.Errorf("last sequence: got %d, want %d", got, want)
	}
}

func TestJournalFollowHasNoGap(t *testing.T) {
	t.Parallel()
	j, _ := mustJournal(t, filepath.Join(t.TempDir(), "journal"), "a")
	const n = 500
	var writer sync.WaitGroup
	writer.Go(func() {
		for range n {
			j.append(entry("I1", orders.EntryStarted))
		}
	})
	past, f := j.follow(root.Stamp{Boot: 1000, Seq: 3})
	defer j.unfollow(f)
	next := uint64(1)
	if len(past) > 0 {
		next = past[0].Stamp.Seq
	}
	if next != 1 && next != 4 {
		t.Fatalf("begins at %d, want after 3", next)
	}
	for _, e := range past {
		if e.Stamp.Seq != next {
			t.Fatalf("sequence: got %d, want %d", e.Stamp.Seq, next)
		}
		next++
	}
	for next <= n {
		e := <-f.entries
		if next == 1 { // it began before the third entry
			next = e.Stamp.Seq
		}
		if e.Stamp.Seq != next {
			t.Fatalf("sequence: got %d, want %d", e.Stamp.Seq, next)
		}
		next++
	}
	writer.Wait()
}

func TestJournalDropsSlowFollowers(t *testing.T) {
	t.Parallel()
	j, _ := mustJournal(t, filepath.Join(t.TempDir(), "journal"), "a")
	_, f := j.follow(root.Stamp{})
	for range followerQueue + 1 {
		j.append(entry("I1", orders.EntryStarted)) // must not block
	}
	select {
	case <-f.lost:
	default:
		t.Error("the follower was not dropped")
	}
}

func TestJournalLives(t *testing.T) {
	t.Parallel()
	j, _ := mustJournal(t, filepath.Join(t.TempDir(), "journal"), "a")
	for _, e := range []orders.Entry{
		entry("I1", orders.EntryStarted), entry("I1", orders.EntryPrepared),
		entry("I2", orders.EntryStarted), entry("I2", orders.EntryRemoved),
		entry("I3", orders.EntryPrepared),
		entry("I4", orders.EntrySuspended), entry("I4", orders.EntryReclaimed),
	} {
		j.append(e)
	}
	got := map[root.InstanceID]orders.EntryType{}
	for id, e := range j.lives() {
		got[id] = e.Type
	}
	want := map[root.InstanceID]orders.EntryType{"I1": orders.EntryStarted, "I3": orders.EntryPrepared, "I4": orders.EntrySuspended}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lives (-want +got):\n%s", diff)
	}
}

func BenchmarkJournalAppend(b *testing.B) {
	j, _, err := openJournal(filepath.Join(b.TempDir(), "journal"), "a", time.Unix(1, 0), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		j.append(entry("I1", orders.EntryResumed))
	}
}

// The entry that makes the journal compact itself is on disk like the others.
func TestJournalKeepsTheEntryThatCompacts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := openJournal(path, "boot", time.Now(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range compactEvery {
		j.append(orders.Entry{Type: orders.EntryPrepared, Instance: "a"})
	}
	want := j.last()
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if j, _, err = openJournal(path, "boot", time.Now(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if got := j.last(); got != want {
		t.Errorf("last entry after a restart: got %v, want %v", got, want)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}
