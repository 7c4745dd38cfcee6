package machinelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

const machine root.MachineID = "148e1234c56789"

var source = Source{App: "shop", Instance: "01J0ABCDEFGHJKMNPQRSTVWXYZ", Region: "loc"}

func open(t *testing.T, dir string, budget root.Bytes) *Writer {
	t.Helper()
	w, err := Open(dir, machine, budget)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func write(t *testing.T, s *Stream, text string) {
	t.Helper()
	if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("write: got %d, %v", n, err)
	}
}

func tailAll(t *testing.T, dir string, f Filter) []Line {
	t.Helper()
	var lines []Line
	if err := Tail(t.Context(), dir, f, false, func(l Line) error { lines = append(lines, l); return nil }); err != nil {
		t.Fatal(err)
	}
	return lines
}

func messages(lines []Line) []string {
	var m []string
	for _, l := range lines {
		m = append(m, l.Message)
	}
	return m
}

func TestLines(t *testing.T) {
	long := strings.Repeat("é", maxLine/2) // two bytes each: exactly a line
	for name, tt := range map[string]struct {
		writes []string
		want   []string
	}{
		"whole":              {[]string{"a\nb\n"}, []string{"a", "b"}},
		"torn":               {[]string{"a", "b", "c\nd", "\n"}, []string{"abc", "d"}},
		"empty lines":        {[]string{"\n\n"}, []string{"", ""}},
		"carriage return":    {[]string{"a\r\n", "b\rc\n"}, []string{"a", "b\rc"}},
		"unfinished":         {[]string{"a\nb"}, []string{"a", "b"}},
		"not UTF-8":          {[]string{"a\xffb\n"}, []string{"a\uFFFDb"}},
		"quotes and marks":   {[]string{"\"<&>\"\x00\u2028\n"}, []string{"\"<&>\"\x00\u2028"}},
		"exactly maximal":    {[]string{long + "\n", "b\n"}, []string{long, "b"}},
		"maximal, end apart": {[]string{long, "\nb\n"}, []string{long, "b"}},
		"too long":           {[]string{long + "bc\nd\n"}, []string{long, "bc", "d"}},
		"cut in a letter":    {[]string{"x" + long + "\n"}, []string{"x" + long[:len(long)-2], "é"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := open(t, dir, root.MiB)
			s := w.Stream(source, "stdout")
			for _, text := range tt.writes {
				write(t, s, text)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, messages(tailAll(t, dir, Filter{}))); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLineIsWhole(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, root.MiB)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	w.now = func() time.Time { return at }
	w.filled = at
	write(t, w.Stream(source, "stderr"), "hello\n")
	w.Platform(source, "Starting init")
	want := []Line{
		{At: at, App: "shop", Machine: machine, Instance: source.Instance, Region: "loc", Provider: ProviderApp, Stream: "stderr", Message: "hello"},
		{At: at, App: "shop", Machine: machine, Instance: source.Instance, Region: "loc", Provider: ProviderRunner, Message: "Starting init"},
	}
	if diff := cmp.Diff(want, tailAll(t, dir, Filter{Machine: machine})); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestStreamsDoNotMix(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, root.MiB)
	a, b := w.Stream(source, ""), w.Stream(Source{Instance: "01J0BBBBBBBBBBBBBBBBBBBBBB"}, "")
	write(t, a, "one ")
	write(t, b, "two\n")
	write(t, a, "line\n")
	if diff := cmp.Diff([]string{"two", "one line"}, messages(tailAll(t, dir, Filter{}))); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestBudget(t *testing.T) {
	dir := t.TempDir()
	const budget = 400 * root.KiB
	w := open(t, dir, budget)
	s := w.Stream(source, "")
	const n = 20000
	for i := range n {
		if i%1000 == 0 {
			w.tokens = burst // as if time had passed
		}
		write(t, s, fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 50)))
	}
	var size int64
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if got := root.Bytes(size); got > budget+maxLine || got < budget/2 {
		t.Errorf("on disk: got %s, want at most %s and more than half of it", got, budget)
	}
	lines := tailAll(t, dir, Filter{})
	if last := lines[len(lines)-1].Message; !strings.HasPrefix(last, fmt.Sprintf("line %d ", n-1)) {
		t.Errorf("last line: got %q", last)
	}
	var first int
	if _, err := fmt.Sscanf(lines[0].Message, "line %d", &first); err != nil {
		t.Fatal(err)
	}
	for i, l := range lines { // what is there is without gaps
		if want := fmt.Sprintf("line %d ", first+i); !strings.HasPrefix(l.Message, want) {
			t.Fatalf("line: got %q, want %q", l.Message, want)
		}
	}
}

func TestFloodIsDropped(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, 64*root.MiB)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w.now, w.filled = func() time.Time { return now }, now
	s := w.Stream(source, "")
	line := strings.Repeat("x", 1023) + "\n"
	const printed = 10000 // 10 MB at one instant, the burst is 4
	for range printed {
		write(t, s, line)
	}
	now = now.Add(time.Second)
	write(t, s, "after\n")
	kept, dropped := 0, 0
	lines := tailAll(t, dir, Filter{})
	for _, l := range lines {
		if l.Provider == ProviderRunner {
			n := 0
			if _, err := fmt.Sscanf(l.Message, "%d lines dropped", &n); err != nil {
				t.Errorf("marker: got %q", l.Message)
			}
			dropped += n
			continue
		}
		kept++
	}
	if want := burst / 1024; kept != want+1 || kept+dropped != printed+1 {
		t.Errorf("got %d kept and %d dropped, want %d and the rest", kept, dropped, want+1)
	}
	if got := lines[len(lines)-1].Message; got != "after" {
		t.Errorf("last line: got %q, want after", got)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, root.MiB)
	w.Platform(source, "before")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// A crash has left half a line.
	f, err := os.OpenFile(segmentName(dir, machine, 1), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"t":"2026`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, root.MiB).Platform(source, "after")
	if diff := cmp.Diff([]string{"before", "after"}, messages(tailAll(t, dir, Filter{}))); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestFilter(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	writers := map[root.MachineID]*Writer{}
	for _, id := range []root.MachineID{"aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"} {
		w, err := Open(dir, id, root.MiB)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
		w.now = func() time.Time { return now }
		writers[id] = w
	}
	for i := range 6 { // in turns
		id := []root.MachineID{"aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"}[i%2]
		writers[id].Platform(source, fmt.Sprint(i))
		now = now.Add(time.Second)
	}
	for name, tt := range map[string]struct {
		filter Filter
		want   []string
	}{
		"all by time": {Filter{}, []string{"0", "1", "2", "3", "4", "5"}},
		"newest":      {Filter{Lines: 3}, []string{"3", "4", "5"}},
		"machine":     {Filter{Machine: "bbbbbbbbbbbbbb"}, []string{"1", "3", "5"}},
		"since":       {Filter{Since: now.Add(-2 * time.Second)}, []string{"4", "5"}},
		"newest of":   {Filter{Machine: "aaaaaaaaaaaaaa", Lines: 1}, []string{"4"}},
		"nobody":      {Filter{Machine: "cccccccccccccc"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, messages(tailAll(t, dir, tt.filter))); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
	if got := tailAll(t, filepath.Join(dir, "nothing"), Filter{}); got != nil {
		t.Errorf("a directory that is not there: got %v", got)
	}
}

// A reader that follows sees every line once and in order, from before the
// directory exists and through rotations.
func TestFollow(t *testing.T) {
	for _, depth := range []string{"logs", "no/logs"} {
		t.Run(depth, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), depth)
			ctx := patience.Context(t)
			const n = 5000
			got := make(chan error, 1)
			started := make(chan struct{})
			go func() {
				close(started)
				next := 0
				end := errors.New("all there")
				err := Tail(ctx, dir, Filter{}, true, func(l Line) error {
					if want := fmt.Sprintf("line %d", next); l.Message != want {
						return fmt.Errorf("got %q, want %q", l.Message, want)
					}
					if next++; next == n {
						return end
					}
					return nil
				})
				if errors.Is(err, end) {
					err = nil
				}
				got <- err
			}()
			<-started
			// A budget that holds them all, in several segments.
			w := open(t, dir, 1200*root.KiB)
			s := w.Stream(source, "")
			for i := range n {
				write(t, s, fmt.Sprintf("line %d\n", i))
			}
			if w.number < 2 {
				t.Fatalf("segments: got %d, want several", w.number)
			}
			if err := <-got; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFollowWriters: who follows an app sees every line of every writer once,
// through the rotations of all of them and of those that come later.
func TestFollowWriters(t *testing.T) {
	dir := t.TempDir()
	ctx := patience.Context(t)
	const writers, n = 4, 1500
	got := make(chan error, 1)
	go func() {
		next := map[root.MachineID]int{}
		end, total := errors.New("all there"), 0
		err := Tail(ctx, dir, Filter{}, true, func(l Line) error {
			if want := fmt.Sprintf("line %d", next[l.Machine]); l.Message != want {
				return fmt.Errorf("of %s: got %q, want %q", l.Machine, l.Message, want)
			}
			next[l.Machine]++
			if total++; total == writers*n {
				return end
			}
			return nil
		})
		if errors.Is(err, end) {
			err = nil
		}
		got <- err
	}()
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			w, err := Open(dir, root.MachineID(fmt.Sprintf("%014x", i)), 4*minSegment)
			if err != nil {
				t.Error(err)
				return
			}
			for j := range n {
				w.Platform(source, fmt.Sprintf("line %d", j))
			}
			if w.number < 2 {
				t.Errorf("writer %d has one segment, want several", i)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestMergeOfManyWriters: all lines of many writers with several segments each
// come once and in order of time, long ones and torn ones between them.
func TestMergeOfManyWriters(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var writers []*Writer
	for i := range 20 {
		w, err := Open(dir, root.MachineID(fmt.Sprintf("%014x", i)), 16*minSegment)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
		w.now = func() time.Time { return now }
		writers = append(writers, w)
	}
	const n = 4000
	for i := range n {
		now = now.Add(time.Millisecond)
		text := fmt.Sprint(i)
		if i%500 == 7 {
			text += " " + strings.Repeat("\x01", maxLine-10) // six times as long in the file
		}
		writers[(i*7)%len(writers)].Platform(source, text)
	}
	if err := os.WriteFile(segmentName(dir, "ffffffffffffff", 1), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, filter := range map[string]Filter{"merged": {}, "newest": {Lines: n}} {
		t.Run(name, func(t *testing.T) {
			next := 0
			err := Tail(t.Context(), dir, filter, false, func(l Line) error {
				if got, _, _ := strings.Cut(l.Message, " "); got != fmt.Sprint(next) {
					return fmt.Errorf("got %s, want %d", got, next)
				}
				next++
				return nil
			})
			if err != nil || next != n {
				t.Errorf("%d lines of %d, %v", next, n, err)
			}
		})
	}
}

// Without inotify a reader looks by itself.
func TestFollowWithoutInotify(t *testing.T) {
	dir := t.TempDir()
	c := &changes{dir: dir}
	defer c.close()
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := c.wait(ctx); err != nil {
		t.Error(err)
	}
	cause := errors.New("enough")
	cancel(cause)
	if err := c.wait(ctx); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

func TestFollowEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	dir := t.TempDir()
	open(t, dir, root.MiB).Platform(source, "one")
	err := Tail(ctx, dir, Filter{}, true, func(Line) error { cancel(cause); return nil })
	if !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

func BenchmarkWrite(b *testing.B) {
	w, err := Open(b.TempDir(), machine, 16*root.MiB)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := w.Close(); err != nil {
			b.Error(err)
		}
	})
	s := w.Stream(source, "")
	chunk := bytes.Repeat([]byte("10.0.0.1 - - GET /products/17 200 1532 0.004\n"), 20)
	b.ReportAllocs()
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		w.tokens = burst
		if _, err := s.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}
