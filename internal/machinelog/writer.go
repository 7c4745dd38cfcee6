// Package machinelog keeps what machines print, and what the platform says
// about them and their apps, in files on the machine's own host: one line of
// JSON each, in segments of which the oldest are deleted when a budget is used
// up. It does not understand what it stores.
//
// An app has a directory, and in it each writer its own segments,
// <writer>.<number>.log: the supervisor one for each machine, control and the
// edge one each for what they have to say of the app (Apps). Only the segment
// with the highest number grows, and none is ever renamed, so that a reader
// always knows where it is. Writers and readers share nothing but the files.
//
// Writers and readers start no goroutines of their own.
package machinelog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	root "github.com/roost-run/roost"
)

const (
	// maxLine is where a line is cut into several; no terminal shows more.
	maxLine = 16 << 10
	// segments of a budget: a rotation deletes a fourth of what there is.
	segments = 4
	// minSegment keeps a tiny budget from rotating at every line.
	minSegment = 64 << 10

	// Rate and burst in bytes of what one machine may print. Beyond, lines are
	// dropped and counted, so that the app never waits for the log.
	rate  = 1 << 20
	burst = 4 << 20
)

// Providers of lines.
const (
	ProviderApp    = "app"    // what the machine printed
	ProviderRunner = "runner" // what the host did with it
	ProviderProxy  = "proxy"  // what the edge has to say
	ProviderHealth = "health" // what checks found
)

// Line is one line of a log.
type Line struct {
	At       time.Time
	App      root.AppName
	Machine  root.MachineID
	Instance root.InstanceID
	Region   root.Region
	Provider string
	Stream   string // "stdout" or "stderr" where they are apart
	Message  string // without the line's end; always valid UTF-8
}

// record is a Line on disk. The machine is in the file's name, unless the
// file is not a machine's.
type record struct {
	Machine  root.MachineID  `json:"id,omitempty"`
	At       time.Time       `json:"t"`
	App      root.AppName    `json:"a,omitempty"`
	Instance root.InstanceID `json:"i,omitempty"`
	Region   root.Region     `json:"r,omitempty"`
	Provider string          `json:"p"`
	Stream   string          `json:"s,omitempty"`
	Message  string          `json:"m"`
}

// Source says whose lines they are.
type Source struct {
	Provider string         // of what it prints; "" is ProviderApp
	Machine  root.MachineID // only in a file that is not a machine's
	App      root.AppName
	Instance root.InstanceID
	Region   root.Region
}

// Writer appends to one machine's log. It is safe for concurrent use. Its
// methods never wait for readers, and lose lines rather than fail: a log must
// not stop a machine.
type Writer struct {
	dir     string
	machine root.MachineID
	segment int64 // size at which a segment ends
	now     func() time.Time

	mu      sync.Mutex
	file    *os.File
	number  uint64 // of file
	size    int64
	tokens  float64 // bytes that may be printed now
	filled  time.Time
	dropped int // lines since the last marker
	lost    Source
	reason  string // why they were dropped
	buf     bytes.Buffer
	enc     *json.Encoder
}

// Open opens a machine's log for appending; dir is made if needed. The
// segments together stay within budget, as near as a line allows.
func Open(dir string, id root.MachineID, budget root.Bytes) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("log of machine %s: %w", id, err)
	}
	w := &Writer{dir: dir, machine: id, segment: max(minSegment, int64(budget)/segments), now: time.Now, tokens: burst}
	w.filled = w.now()
	w.enc = json.NewEncoder(&w.buf)
	w.enc.SetEscapeHTML(false)
	numbers, err := list(dir, id)
	if err != nil {
		return nil, fmt.Errorf("log of machine %s: %w", id, err)
	}
	w.number = 1
	if len(numbers) > 0 {
		w.number = numbers[len(numbers)-1]
	}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("log of machine %s: %w", id, err)
	}
	return w, w.endLine()
}

func (w *Writer) open() error {
	f, err := os.OpenFile(segmentName(w.dir, w.machine, w.number), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file, w.size = f, info.Size()
	return nil
}

// endLine closes a line that a crash has left open.
func (w *Writer) endLine() error {
	if w.size == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := w.file.ReadAt(last, w.size-1); err != nil || last[0] == '\n' {
		return err
	}
	n, err := w.file.WriteString("\n")
	w.size += int64(n)
	return err
}

// Stream returns where one instance's output is written to. Each stream has
// its own unfinished line, so that two do not mix within one.
func (w *Writer) Stream(s Source, name string) *Stream {
	return &Stream{w: w, source: s, name: name}
}

// Platform records a line of the platform itself.
func (w *Writer) Platform(s Source, line string) { w.say(s, ProviderRunner, line) }

// Proxy writes a line of the edge, under the same rule.
func (w *Writer) Proxy(s Source, line string) { w.say(s, ProviderProxy, line) }

func (w *Writer) say(s Source, provider, line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drops()
	w.add(s, provider, "", []byte(line))
	w.flush()
}

// Close closes the file. Streams that are still open lose what comes later.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	w.drops()
	w.flush()
	err := w.file.Close()
	w.file = nil
	return err
}

// Stream splits what an instance prints into lines.
type Stream struct {
	w      *Writer
	source Source
	name   string

	mu   sync.Mutex
	rest []byte // the unfinished line
}

// Write takes output as it comes. It never fails and takes everything.
func (s *Stream) Write(p []byte) (int, error) {
	n := len(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refill()
	for len(p) > 0 {
		if len(s.rest) == maxLine && p[0] != '\n' {
			cut := runeStart(s.rest)
			w.line(s.source, s.name, s.rest[:cut])
			s.rest = append(s.rest[:0], s.rest[cut:]...)
		}
		i := bytes.IndexByte(p, '\n')
		line, whole := p, i >= 0
		if whole {
			line = p[:i]
		}
		if room := maxLine - len(s.rest); len(line) > room {
			line, whole = line[:room], false
		}
		s.rest = append(s.rest, line...)
		p = p[len(line):]
		if whole {
			p = p[1:]
			w.line(s.source, s.name, bytes.TrimSuffix(s.rest, []byte("\r")))
			s.rest = s.rest[:0]
		}
	}
	w.flush()
	return n, nil
}

// Close records an unfinished line.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rest) == 0 {
		return nil
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.refill()
	s.w.line(s.source, s.name, s.rest)
	s.w.flush()
	s.rest = nil
	return nil
}

// runeStart is where to cut b so that no character is torn.
func runeStart(b []byte) int {
	for i := len(b) - 1; i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if utf8.FullRune(b[i:]) {
				break
			}
			return i
		}
	}
	return len(b)
}

// refill gives the tokens of the time that has passed.
func (w *Writer) refill() {
	now := w.now()
	w.tokens = min(burst, w.tokens+now.Sub(w.filled).Seconds()*rate)
	w.filled = now
}

// line records what a machine printed, or counts it as dropped.
func (w *Writer) line(s Source, stream string, text []byte) {
	// Once lines are dropped, more are until there is room for a good many:
	// otherwise half of a flood would be markers.
	need := float64(len(text) + 1)
	if w.dropped > 0 {
		need = max(need, rate/4)
	}
	if w.tokens < need {
		w.dropped++
		w.lost, w.reason = s, fmt.Sprintf("the machine printed more than %s a second", root.Bytes(rate))
		return
	}
	w.tokens -= float64(len(text) + 1)
	w.drops()
	provider := s.Provider
	if provider == "" {
		provider = ProviderApp
	}
	w.add(s, provider, stream, text)
}

// drops records how many lines are missing here.
func (w *Writer) drops() {
	if w.dropped == 0 {
		return
	}
	n := w.dropped
	w.dropped = 0
	w.add(w.lost, ProviderRunner, "", fmt.Appendf(nil, "%d lines dropped: %s", n, w.reason))
}

func (w *Writer) add(s Source, provider, stream string, text []byte) {
	before := w.buf.Len()
	err := w.enc.Encode(record{
		At: w.now().UTC(), Machine: s.Machine, App: s.App, Instance: s.Instance, Region: s.Region,
		Provider: provider, Stream: stream, Message: strings.ToValidUTF8(string(text), "\uFFFD"),
	})
	if err != nil { // strings and a time always encode
		w.buf.Truncate(before)
	}
	if w.size+int64(w.buf.Len()) >= w.segment {
		w.flush()
		w.rotate()
	}
}

// flush writes what add has collected. A full disk loses lines, which are
// counted.
func (w *Writer) flush() {
	if w.buf.Len() == 0 {
		return
	}
	if w.file == nil {
		w.buf.Reset()
		return
	}
	n, err := w.file.Write(w.buf.Bytes())
	w.size += int64(n)
	if err != nil {
		w.dropped += bytes.Count(w.buf.Bytes()[n:], []byte("\n"))
		w.reason = "the log could not be written"
		// A torn line must not swallow the next one.
		if n > 0 {
			_ = w.endLine()
		}
	}
	w.buf.Reset()
}

// rotate begins a new segment and deletes the oldest. If that fails, the old
// one goes on: the next line tries again.
func (w *Writer) rotate() {
	if w.file == nil || w.size < w.segment {
		return
	}
	old := w.file
	w.number++
	if err := w.open(); err != nil {
		w.number--
		return
	}
	_ = old.Close() // every write to it has been checked
	numbers, err := list(w.dir, w.machine)
	if err != nil {
		return
	}
	for len(numbers) > segments {
		_ = os.Remove(segmentName(w.dir, w.machine, numbers[0])) // tried again at the next rotation
		numbers = numbers[1:]
	}
}

func segmentName(dir string, id root.MachineID, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d.log", id, number))
}

// parseSegment is the inverse of segmentName, without the directory.
func parseSegment(name string) (id root.MachineID, number uint64, ok bool) {
	part := strings.Split(name, ".")
	if len(part) != 3 || part[2] != "log" {
		return "", 0, false
	}
	number, err := strconv.ParseUint(part[1], 10, 64)
	return root.MachineID(part[0]), number, err == nil
}

// list returns the numbers of a machine's segments, in order.
func list(dir string, id root.MachineID) ([]uint64, error) {
	all, err := listAll(dir)
	return all[id], err
}

// listAll returns the segments of all machines in dir, which need not exist.
func listAll(dir string) (map[root.MachineID][]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all := map[root.MachineID][]uint64{}
	for _, e := range entries {
		if id, n, ok := parseSegment(e.Name()); ok {
			all[id] = append(all[id], n)
		}
	}
	for _, numbers := range all {
		slices.Sort(numbers)
	}
	return all, nil
}
