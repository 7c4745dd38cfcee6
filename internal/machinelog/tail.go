package machinelog

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	root "github.com/roost-run/roost"
)

// Filter chooses lines.
type Filter struct {
	Machine root.MachineID // "" is every machine in the directory
	Since   time.Time      // zero is the beginning
	Lines   int            // at most so many of the newest; 0 is all
	// Match, unless nil, chooses among the lines that the rest leaves.
	Match func(Line) bool
}

func (f Filter) match(l Line) bool {
	return !l.At.Before(f.Since) && (f.Machine == "" || l.Machine == f.Machine) && (f.Match == nil || f.Match(l))
}

// settle is how long a reader that follows lets lines gather, so that those
// of several machines come in the order of their time.
const settle = 20 * time.Millisecond

// Tail calls f with the lines in dir that the filter chooses, oldest first,
// and with follow goes on with new ones until ctx ends, which is then the
// error, or f fails. The directory need not exist yet. Lines that cannot be
// read are left out.
func Tail(ctx context.Context, dir string, filter Filter, follow bool, f func(Line) error) error {
	var changes *changes
	if follow {
		var err error
		// Before the first look, so that nothing falls in between.
		if changes, err = watch(dir); err != nil {
			return err
		}
		defer changes.close()
	}
	t := &tail{dir: dir, filter: filter, cursors: map[root.MachineID]*cursor{}}
	send := func(l Line) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return f(l)
	}
	var err error
	if filter.Lines > 0 {
		err = t.newest(filter.Lines, send)
	} else {
		err = t.merge(send)
	}
	for err == nil && follow {
		if err = changes.wait(ctx); err == nil {
			err = t.merge(send)
		}
	}
	return err
}

// tail remembers how far each writer's log has been read.
type tail struct {
	dir     string
	filter  Filter
	cursors map[root.MachineID]*cursor
}

// cursor stands behind the last whole line that was read.
type cursor struct {
	number uint64
	offset int64
}

// writers are those whose lines the filter may want, with their segments.
func (t *tail) writers() (map[root.MachineID][]uint64, error) {
	all, err := listAll(t.dir)
	if t.filter.Machine != "" {
		maps.DeleteFunc(all, func(id root.MachineID, _ []uint64) bool { return id != t.filter.Machine && !process(id) })
	}
	return all, err
}

func (t *tail) reader(id root.MachineID, numbers []uint64) *reader {
	c := t.cursors[id]
	if c == nil {
		c = &cursor{}
		t.cursors[id] = c
	}
	return &reader{t: t, id: id, numbers: numbers, at: c}
}

// newest calls f with the newest lines that there are, in order of time.
func (t *tail) newest(most int, f func(Line) error) error {
	all, err := t.writers()
	if err != nil {
		return err
	}
	var lines []Line
	for _, id := range slices.Sorted(maps.Keys(all)) {
		var own []Line
		for r := t.reader(id, all[id]); ; {
			l, ok, err := r.next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if own = append(own, l); len(own) >= 2*most {
				own = append(own[:0], own[len(own)-most:]...)
			}
		}
		lines = append(lines, own...)
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) })
	for _, l := range lines[max(0, len(lines)-most):] {
		if err := f(l); err != nil {
			return err
		}
	}
	return nil
}

// merge calls f with what has come since the last call, in order of time. It
// holds no more than a piece of each writer's log.
func (t *tail) merge(f func(Line) error) error {
	all, err := t.writers()
	if err != nil {
		return err
	}
	var heads heads
	for _, id := range slices.Sorted(maps.Keys(all)) {
		r := t.reader(id, all[id])
		l, ok, err := r.next()
		if err != nil {
			return err
		}
		if ok {
			heads = append(heads, head{l, len(heads), r})
		}
	}
	heap.Init(&heads)
	for len(heads) > 0 {
		h := &heads[0]
		if err := f(h.line); err != nil {
			return err
		}
		l, ok, err := h.from.next()
		if err != nil {
			return err
		}
		if h.line = l; ok {
			heap.Fix(&heads, 0)
		} else {
			heap.Pop(&heads)
		}
	}
	return nil
}

// head is the next line of a writer.
type head struct {
	line  Line
	place int // among equals
	from  *reader
}

// heads is a heap of them, the oldest first.
type heads []head

func (h heads) Len() int { return len(h) }
func (h heads) Less(i, j int) bool {
	if c := h[i].line.At.Compare(h[j].line.At); c != 0 {
		return c < 0
	}
	return h[i].place < h[j].place
}
func (h heads) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *heads) Push(x any)   { *h = append(*h, x.(head)) }
func (h *heads) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// piece is how much of a segment is read at a time; a longer line is read whole.
const piece = 32 << 10

// reader reads one writer's lines from its cursor on, which moves with it. It
// keeps no file open: there may be many, and who reads may be slow.
type reader struct {
	t       *tail
	id      root.MachineID
	numbers []uint64
	at      *cursor
	buf     []byte // read, from at.offset on
}

// next returns the next line that the filter wants; false when there is no
// whole one yet.
func (r *reader) next() (Line, bool, error) {
	for {
		i := bytes.IndexByte(r.buf, '\n')
		if i < 0 {
			more, err := r.fill()
			if err != nil || !more {
				return Line{}, false, err
			}
			continue
		}
		data := r.buf[:i]
		r.buf = r.buf[i+1:]
		r.at.offset += int64(i + 1)
		var l record
		if err := json.Unmarshal(bytes.TrimSpace(data), &l); err != nil {
			continue // torn by a crash
		}
		line := Line{At: l.At, App: l.App, Machine: l.Machine, Instance: l.Instance, Region: l.Region, Provider: l.Provider, Stream: l.Stream, Message: l.Message}
		if !process(r.id) {
			line.Machine = r.id
		}
		if r.t.filter.match(line) {
			return line, true, nil
		}
	}
}

// fill reads on; false at the end of the last segment. A segment whose end has
// no line break is still being written, if it is the last one.
func (r *reader) fill() (bool, error) {
	for len(r.numbers) > 0 {
		n := r.numbers[0]
		if n < r.at.number {
			r.numbers = r.numbers[1:]
			continue
		}
		if n > r.at.number {
			*r.at, r.buf = cursor{number: n}, nil
		}
		got, err := readAt(segmentName(r.t.dir, r.id, n), r.at.offset+int64(len(r.buf)), max(piece, len(r.buf)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // rotated away meanwhile
			return false, err
		}
		if len(got) > 0 {
			r.buf = append(slices.Clip(r.buf), got...)
			return true, nil
		}
		r.numbers = r.numbers[1:]
	}
	r.buf = nil // it is read again when there is more
	return false, nil
}

// readAt reads up to size bytes of a file from offset on.
func readAt(name string, offset int64, size int) (data []byte, err error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() <= offset {
		return nil, err
	}
	data = make([]byte, min(int64(size), info.Size()-offset))
	n, err := file.ReadAt(data, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:n], err
}
