package supervisor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/orders"
)

const (
	// journalTail is how many entries stay in memory and through a compaction,
	// besides the last one of each instance: enough for a follower that was
	// away for a while.
	journalTail = 4096
	// compactEvery bounds the file between two starts: about 4 MB.
	compactEvery = 8192
	// followerQueue is what a follower may lag behind before it is dropped; it
	// then comes back with its last stamp.
	followerQueue = 1024
)

// journal is the file of entries. Its lines are a header and then entries in
// order. It is safe for concurrent use.
type journal struct {
	path string
	log  *slog.Logger

	mu        sync.Mutex
	f         *os.File
	head      journalHeader
	size      int64
	stamp     root.Stamp     // of the last entry
	entries   []orders.Entry // the tail, ascending
	appended  int            // since the last compaction
	followers map[*follower]struct{}
	synced    uint64        // sequence up to which everything is on disk
	flushing  chan struct{} // closed when the flush under way is over; nil: none
}

// journalHeader is the first line of the file.
type journalHeader struct {
	Boot   uint64
	BootID string // the kernel's, to notice that the host was restarted
}

// follower gets entries as they come. lost is closed when it was too slow.
type follower struct {
	entries chan orders.Entry // never closed
	lost    chan struct{}
}

// openJournal reads the file, or begins a new one. rebooted says that the host
// was started anew since the last entry: nothing that the entries tell of runs
// any more.
func openJournal(path, bootID string, now time.Time, log *slog.Logger) (_ *journal, rebooted bool, err error) {
	j := &journal{path: path, log: log, followers: map[*follower]struct{}{}}
	head, err := j.load()
	if err != nil {
		return nil, false, fmt.Errorf("open journal: %w", err)
	}
	switch {
	case head.Boot == 0:
		// Without the old file only the clock makes sure that stamps grow.
		head = journalHeader{Boot: uint64(max(now.Unix(), 1)), BootID: bootID}
	case head.BootID != bootID:
		head = journalHeader{Boot: head.Boot + 1, BootID: bootID}
		rebooted = true
	}
	if j.stamp.Boot != head.Boot {
		j.stamp = root.Stamp{Boot: head.Boot}
	}
	j.head = head
	if err := j.rewrite(); err != nil {
		return nil, false, fmt.Errorf("open journal: %w", err)
	}
	return j, rebooted, nil
}

// load fills entries from the file. A line that cannot be read is skipped and
// reported: a power cut tears the last one.
func (j *journal) load() (head journalHeader, err error) {
	f, err := os.Open(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return head, nil
	}
	if err != nil {
		return head, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				j.log.Warn("journal: its last line is torn, dropped", "path", j.path, "line", n)
			}
			return head, nil
		}
		if err != nil {
			return head, err
		}
		if n == 1 {
			if err := json.Unmarshal(line, &head); err != nil {
				j.log.Error("journal: its first line is unreadable, a new journal begins", "path", j.path, "err", err)
				return journalHeader{}, nil
			}
			continue
		}
		var e orders.Entry
		if err := json.Unmarshal(line, &e); err != nil {
			j.log.Error("journal: unreadable line skipped", "path", j.path, "line", n, "err", err)
			continue
		}
		j.entries = append(j.entries, e)
		j.stamp = e.Stamp
	}
}

// rewrite compacts the entries in memory and on disk and opens the file for
// more. The caller holds mu, or is alone.
func (j *journal) rewrite() (err error) {
	j.entries = compact(j.entries)
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	err = enc.Encode(j.head)
	for _, e := range j.entries {
		err = errors.Join(err, enc.Encode(e))
	}
	if err != nil {
		return err
	}
	if err := atomicfile.Write(j.path, buf.Bytes(), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if j.f != nil {
		err = j.f.Close()
	}
	j.f, j.size, j.appended = f, int64(buf.Len()), 0
	j.synced = j.stamp.Seq
	return err
}

// compact keeps the tail, and of the entries before it the last one of each
// instance that still exists.
func compact(entries []orders.Entry) []orders.Entry {
	if len(entries) <= journalTail {
		return entries
	}
	last := map[root.InstanceID]int{}
	for i, e := range entries {
		last[e.Instance] = i
	}
	cut := len(entries) - journalTail
	var kept []orders.Entry
	for i, e := range entries[:cut] {
		if last[e.Instance] == i && e.Type != orders.EntryRemoved {
			kept = append(kept, e)
		}
	}
	return append(kept, entries[cut:]...)
}

// append stamps e, writes it and hands it to the followers. An error of the
// disk is logged, not returned: machines go on with a full disk, and the entry
// is in memory for those who listen.
func (j *journal) append(e orders.Entry) orders.Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stamp.Seq++
	e.Stamp = j.stamp
	e.At = e.At.UTC()
	// First, or a compaction would write the file without it.
	j.entries = append(j.entries, e)
	if err := j.write(e); err != nil {
		j.log.Error("journal: entry not written", "path", j.path, "type", e.Type, "instance", e.Instance, "err", err)
	}
	for f := range j.followers {
		select {
		case f.entries <- e:
		default:
			close(f.lost)
			delete(j.followers, f)
		}
	}
	return e
}

func (j *journal) write(e orders.Entry) error {
	if j.f == nil {
		return os.ErrClosed
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	n, err := j.f.Write(append(line, '\n'))
	if err != nil {
		// Half a line would swallow the next one.
		return errors.Join(err, j.f.Truncate(j.size))
	}
	j.size += int64(n)
	if j.appended++; j.appended >= compactEvery {
		j.appended = 0 // should it fail, not at every entry from now on
		return j.rewrite()
	}
	return nil
}

// flush returns when everything up to the stamp is on disk. Callers at the
// same time share one fsync.
func (j *journal) flush(s root.Stamp) {
	for {
		j.mu.Lock()
		if s.Boot != j.stamp.Boot || j.synced >= s.Seq || j.f == nil {
			j.mu.Unlock()
			return
		}
		if wait := j.flushing; wait != nil {
			j.mu.Unlock()
			<-wait
			continue
		}
		done := make(chan struct{})
		j.flushing = done
		upTo, f := j.stamp.Seq, j.f
		j.mu.Unlock()
		err := f.Sync()
		j.mu.Lock()
		// A file replaced meanwhile was flushed when it was written.
		if err != nil && f == j.f {
			j.log.Error("journal: flush failed", "path", j.path, "err", err)
		}
		j.synced = max(j.synced, upTo)
		j.flushing = nil
		close(done)
		j.mu.Unlock()
	}
}

// last returns the stamp of the newest entry.
func (j *journal) last() root.Stamp {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stamp
}

// lives returns the last entry that brought a phase, of each instance that
// was not removed.
func (j *journal) lives() map[root.InstanceID]orders.Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := map[root.InstanceID]orders.Entry{}
	for _, e := range j.entries {
		switch {
		case e.Type == orders.EntryRemoved:
			delete(out, e.Instance)
		case orders.PhaseAfter(e.Type) != "":
			out[e.Instance] = e
		case out[e.Instance].Instance == "":
			out[e.Instance] = e
		}
	}
	return out
}

// follow returns the entries after the stamp and a follower that gets those to
// come, without a gap between them. unfollow ends it.
func (j *journal) follow(after root.Stamp) ([]orders.Entry, *follower) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := len(j.entries)
	for i > 0 && after.Before(j.entries[i-1].Stamp) {
		i--
	}
	f := &follower{entries: make(chan orders.Entry, followerQueue), lost: make(chan struct{})}
	j.followers[f] = struct{}{}
	return j.entries[i:len(j.entries):len(j.entries)], f
}

func (j *journal) unfollow(f *follower) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.followers, f)
}

// close flushes and closes the file.
func (j *journal) close() error {
	j.flush(j.last())
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}
