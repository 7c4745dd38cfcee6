package machinelog

import (
	"bufio"
	"bytes"
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
	lines, err := t.read(filter.Lines)
	if err != nil {
		return err
	}
	for {
		for _, l := range lines {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := f(l); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		if err := changes.wait(ctx); err != nil {
			return err
		}
		if lines, err = t.read(0); err != nil {
			return err
		}
	}
}

// tail remembers how far each machine's log has been read.
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

// read returns what has come since the last call, in order of time; if most
// is not 0, only so many of the newest.
func (t *tail) read(most int) ([]Line, error) {
	all, err := listAll(t.dir)
	if err != nil {
		return nil, err
	}
	var lines []Line
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if t.filter.Machine != "" && id != t.filter.Machine && !process(id) {
			continue
		}
		c := t.cursors[id]
		if c == nil {
			c = &cursor{}
			t.cursors[id] = c
		}
		own, err := t.machine(id, all[id], c, most)
		if err != nil {
			return nil, err
		}
		lines = append(lines, own...)
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) })
	if most > 0 && len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	return lines, nil
}

// machine reads on in one machine's segments.
func (t *tail) machine(id root.MachineID, numbers []uint64, c *cursor, most int) ([]Line, error) {
	var lines []Line
	for _, n := range numbers {
		if n < c.number {
			continue
		}
		offset := int64(0)
		if n == c.number {
			offset = c.offset
		}
		end, err := readSegment(segmentName(t.dir, id, n), offset, func(l Line) {
			if !process(id) {
				l.Machine = id
			}
			if !t.filter.match(l) {
				return
			}
			lines = append(lines, l)
			if most > 0 && len(lines) >= 2*most {
				lines = append(lines[:0], lines[len(lines)-most:]...)
			}
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away meanwhile
		}
		if err != nil {
			return nil, err
		}
		c.number, c.offset = n, end
	}
	return lines, nil
}

// readSegment calls f with the whole lines from offset on, and returns the
// offset behind the last one.
func readSegment(name string, offset int64, f func(Line)) (int64, error) {
	file, err := os.Open(name)
	if err != nil {
		return offset, err
	}
	defer file.Close()
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return offset, err
	}
	for r := bufio.NewReaderSize(file, 64<<10); ; {
		data, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return offset, nil // what is left is still being written
		}
		if err != nil {
			return offset, err
		}
		offset += int64(len(data))
		var l record
		if err := json.Unmarshal(bytes.TrimSpace(data), &l); err != nil {
			continue // torn by a crash
		}
		f(Line{At: l.At, App: l.App, Machine: l.Machine, Instance: l.Instance, Region: l.Region, Provider: l.Provider, Stream: l.Stream, Message: l.Message})
	}
}
