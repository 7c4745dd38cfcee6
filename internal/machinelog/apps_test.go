package machinelog

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

func newApps(t *testing.T) (*Apps, string) {
	t.Helper()
	base := t.TempDir()
	a := NewApps(Edge, func(app root.AppName) string { return filepath.Join(base, string(app)) }, root.MiB, "loc", slog.New(slog.DiscardHandler))
	t.Cleanup(a.Close)
	return a, base
}

func TestApps(t *testing.T) {
	a, base := newApps(t)
	dir := filepath.Join(base, "shop")
	w, err := Open(dir, "aaaaaaaaaaaaaa", root.MiB)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.Platform(Source{App: "shop"}, "from the machine")
	a.Say("shop", "aaaaaaaaaaaaaa", "proxy", "about it")
	a.Say("shop", "bbbbbbbbbbbbbb", "proxy", "about another")
	a.Say("shop", "", "deploy", "two\nlines\n")
	a.Say("other", "", "deploy", "not this app")
	type short struct {
		Machine           root.MachineID
		Provider, Message string
	}
	read := func(f Filter) []short {
		var out []short
		for _, l := range tailAll(t, dir, f) {
			out = append(out, short{l.Machine, l.Provider, l.Message})
		}
		return out
	}
	want := []short{
		{"aaaaaaaaaaaaaa", "runner", "from the machine"}, {"aaaaaaaaaaaaaa", "proxy", "about it"},
		{"bbbbbbbbbbbbbb", "proxy", "about another"}, {"", "deploy", "two"}, {"", "deploy", "lines"},
	}
	if d := cmp.Diff(want, read(Filter{})); d != "" {
		t.Errorf("all (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want[:2], read(Filter{Machine: "aaaaaaaaaaaaaa"})); d != "" {
		t.Errorf("one machine's (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want[3:], read(Filter{Match: func(l Line) bool { return l.Provider == "deploy" }})); d != "" {
		t.Errorf("one provider's (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want[1:2], read(Filter{Lines: 1, Match: func(l Line) bool { return l.Message == "about it" }})); d != "" {
		t.Errorf("the newest that match (-want +got):\n%s", d)
	}
}

func TestLongAppLine(t *testing.T) {
	a, base := newApps(t)
	long := strings.Repeat("é", maxLine)
	a.Say("shop", "", "build", long)
	var got strings.Builder
	lines := tailAll(t, filepath.Join(base, "shop"), Filter{})
	for _, l := range lines {
		got.WriteString(l.Message)
	}
	if got.String() != long || len(lines) < 2 {
		t.Errorf("%d lines, %d bytes, want %d bytes in several", len(lines), got.Len(), len(long))
	}
}

func TestSayOnce(t *testing.T) {
	a, base := newApps(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a.now = func() time.Time { return now }
	for range 500 {
		a.SayOnce("shop", "", "proxy", "PR03", "no machine")
		a.SayOnce("shop", "", "proxy", "PC01", "refused")
	}
	now = now.Add(repeatAfter)
	a.SayOnce("shop", "", "proxy", "PR03", "no machine")
	want := []string{"no machine", "refused", "no machine (and 499 times more in the 10s before)"}
	if d := cmp.Diff(want, messages(tailAll(t, filepath.Join(base, "shop"), Filter{}))); d != "" {
		t.Errorf("lines (-want +got):\n%s", d)
	}
	for i := range 10 * maxRepeats {
		a.SayOnce("shop", "", "proxy", fmt.Sprint(i), "x")
	}
	if n := len(a.repeats); n > maxRepeats {
		t.Errorf("%d keys remembered", n)
	}
}

// TestManyApps: files stay few, and no line is lost for that.
func TestManyApps(t *testing.T) {
	a, base := newApps(t)
	for i := range 3 * maxOpen {
		for j := range 2 {
			a.Say(root.AppName(fmt.Sprintf("app%d", (i+j)%(3*maxOpen))), "", "proxy", "here")
		}
	}
	if n := len(a.open); n > maxOpen {
		t.Errorf("%d files open", n)
	}
	for i := range 3 * maxOpen {
		if got := len(tailAll(t, filepath.Join(base, fmt.Sprintf("app%d", i)), Filter{})); got != 2 {
			t.Errorf("app%d has %d lines", i, got)
		}
	}
}

func TestEnforce(t *testing.T) {
	base := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	put := func(app, name string, kb int, age time.Duration) {
		t.Helper()
		file := filepath.Join(base, app, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, kb<<10), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	left := func() string {
		files, err := filepath.Glob(filepath.Join(base, "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range files {
			files[i] = strings.TrimPrefix(files[i], base+"/")
		}
		return strings.Join(files, " ")
	}
	enforce := func(b Budget) {
		t.Helper()
		b.Age = 24 * time.Hour
		b.Live = func(id root.MachineID) bool { return id == "live" }
		if _, err := Enforce(base, b, now); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "live.1.log", 10, 72*time.Hour)
	put("a", "live.2.log", 10, 48*time.Hour) // the newest of one that lives
	put("a", "gone.1.log", 10, 48*time.Hour)
	put("a", "late.1.log", 10, 4*time.Hour)
	put("a", "_edge.1.log", 10, 3*time.Hour)
	put("b", "gone.1.log", 10, 48*time.Hour)
	put("c", "late.1.log", 10, 5*time.Hour)
	put("c", "notes.txt", 1, 72*time.Hour)

	enforce(Budget{App: root.MiB, All: root.MiB})
	if got, want := left(), "a/_edge.1.log a/late.1.log a/live.2.log c/late.1.log c/notes.txt"; got != want {
		t.Errorf("by age: left %s, want %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(base, "b")); err == nil {
		t.Error("an empty directory is left")
	}
	enforce(Budget{App: 25 * root.KiB, All: root.MiB})
	if got, want := left(), "a/_edge.1.log a/live.2.log c/late.1.log c/notes.txt"; got != want {
		t.Errorf("by the app's budget: left %s, want %s", got, want)
	}
	enforce(Budget{App: root.MiB, All: 25 * root.KiB})
	if got, want := left(), "a/_edge.1.log a/live.2.log c/notes.txt"; got != want {
		t.Errorf("by the whole budget: left %s, want %s", got, want)
	}
}

// TestRemovedUnderneath: what was removed while nothing was said begins anew.
func TestRemovedUnderneath(t *testing.T) {
	a, base := newApps(t)
	now := time.Now()
	a.now = func() time.Time { return now }
	a.Say("shop", "", "proxy", "before")
	if err := os.RemoveAll(filepath.Join(base, "shop")); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	a.Say("shop", "", "proxy", "after")
	if d := cmp.Diff([]string{"after"}, messages(tailAll(t, filepath.Join(base, "shop"), Filter{}))); d != "" {
		t.Errorf("lines (-want +got):\n%s", d)
	}
}
