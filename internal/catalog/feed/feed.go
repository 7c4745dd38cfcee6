// Package feed carries the catalog from the control process to the edge: a
// full snapshot of what the data plane needs, then changes, as lines of JSON
// over a unix socket. The edge keeps the last state on disk and starts from
// it, so that it serves while control is away.
//
// What is sent has no secrets: see root.Machine.Routable. The one goroutine of
// Run and each request's Handler end with their context.
package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/ipc"
)

// Path is where control serves the feed.
const Path = "/internal/catalog"

// format is the version of a line and of the file. The two processes are of
// one binary, but a file, or the other process during an upgrade, may be older.
const format = 1

// line is one message. The first ones of a stream carry Full: all of them
// together, up to the one with Done, are the snapshot. Every later one is what
// changed up to Revision.
type line struct {
	Format   int
	Full     bool `json:",omitempty"`
	Done     bool `json:",omitempty"`
	Revision int64
	Changes  []root.Change `json:",omitempty"`
}

const (
	// batch bounds how many changes share a line.
	batch = 500
	// writeTimeout is how long the edge may leave a line unread; then it is
	// dropped and connects again for a fresh snapshot.
	writeTimeout = 10 * time.Second
)

// Handler serves the catalog at Path to any number of readers, each until it
// goes away. It must be served by a server whose ResponseWriter can flush.
func Handler(cat *catalog.Catalog) http.Handler { return handler(cat, writeTimeout) }

func handler(cat *catalog.Catalog, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		stream := ipc.NewStream(w)
		send := func(l line) error {
			l.Format = format
			// Not every writer knows deadlines; then only the peer's end ends it.
			_ = rc.SetWriteDeadline(time.Now().Add(timeout))
			return stream.Send(l)
		}
		changed, cancel := cat.Subscribe()
		defer cancel()
		sent := cat.Snapshot()
		if sendAll(sent, send) != nil {
			return // the reader is gone or too slow: it connects again
		}
		for {
			select {
			case <-r.Context().Done():
				return
			case <-changed:
			}
			now := cat.Snapshot()
			changes := now.Since(sent)
			for len(changes) > batch {
				if send(line{Revision: sent.Revision(), Changes: routable(changes[:batch])}) != nil {
					return
				}
				changes = changes[batch:]
			}
			if send(line{Revision: now.Revision(), Changes: routable(changes)}) != nil {
				return
			}
			sent = now
		}
	})
}

func sendAll(s *root.Snapshot, send func(line) error) error {
	changes := s.Since(root.NewSnapshot())
	for len(changes) > batch {
		if err := send(line{Full: true, Revision: s.Revision(), Changes: routable(changes[:batch])}); err != nil {
			return err
		}
		changes = changes[batch:]
	}
	return send(line{Full: true, Done: true, Revision: s.Revision(), Changes: routable(changes)})
}

// routable strips machines of what the data plane must not have.
func routable(changes []root.Change) []root.Change {
	out := make([]root.Change, len(changes))
	for i, c := range changes {
		if c.Machine != nil {
			c.Machine = c.Machine.Routable()
		}
		out[i] = c
	}
	return out
}

// Options are Run's.
type Options struct {
	Client  *ipc.Client // of control's socket
	Catalog *catalog.Catalog
	File    string // keeps the last state; "" for none
	Log     *slog.Logger
	// Connected, if set, is told when the feed has a full snapshot and when it
	// loses its connection.
	Connected func(bool)
}

// saveAfter is how long the file may lag behind: a burst of changes makes one
// write.
const saveAfter = time.Second

// Load brings the last state in File into the catalog. A file that is missing,
// torn or of another version is no error: it is ignored, with a warning, and
// the next stream replaces it.
func Load(o Options) {
	if o.File == "" {
		return
	}
	data, err := os.ReadFile(o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var l line
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err == nil && (l.Format != format || !l.Done) {
		err = fmt.Errorf("format %d, this program reads %d", l.Format, format)
	}
	if err != nil {
		o.Log.Warn("ignored the last state of the catalog", "file", o.File, "err", err)
		return
	}
	o.Catalog.Replace(root.NewSnapshot().With(l.Revision, l.Changes...))
}

// Run starts from the last state on disk, then keeps the catalog as control's
// is, connecting again for ever, until ctx ends; it returns the cause. Before
// it returns the last state is on disk.
func Run(ctx context.Context, o Options) error {
	Load(o)
	saved := make(chan struct{})
	go func() {
		defer close(saved)
		o.save(ctx)
	}()
	defer func() { <-saved }()
	return ipc.KeepUp(ctx, func(works func()) error { return o.follow(ctx, works) }, func(err error) {
		o.Log.Debug("catalog feed lost, connecting again", "err", err)
	})
}

// follow reads one connection's stream to its end.
func (o *Options) follow(ctx context.Context, works func()) error {
	var full []root.Change
	complete := false
	defer func() {
		if complete && o.Connected != nil {
			o.Connected(false)
		}
	}()
	return ipc.Follow(ctx, o.Client, Path, func(l line) error {
		if l.Format != format {
			return fmt.Errorf("control speaks format %d, this program %d", l.Format, format)
		}
		switch {
		case complete:
			o.Catalog.Apply(l.Revision, l.Changes...)
		case !l.Full:
			return errors.New("change before the snapshot")
		default:
			full = append(full, l.Changes...)
			if l.Done {
				o.Catalog.Replace(root.NewSnapshot().With(l.Revision, full...))
				full, complete = nil, true
				works()
				if o.Connected != nil {
					o.Connected(true)
				}
			}
		}
		return nil
	})
}

// save writes the file a while after each change, and once more at the end.
func (o *Options) save(ctx context.Context) {
	if o.File == "" {
		return
	}
	changed, cancel := o.Catalog.Subscribe()
	defer cancel()
	saved := o.Catalog.Snapshot()
	timer := time.NewTimer(saveAfter)
	defer timer.Stop()
	for {
		select {
		case <-changed:
		case <-ctx.Done():
		}
		timer.Reset(saveAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		if now := o.Catalog.Snapshot(); now != saved {
			if err := write(o.File, now); err != nil {
				o.Log.Warn("keep the last state of the catalog", "file", o.File, "err", err)
			} else {
				saved = now
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func write(file string, s *root.Snapshot) error {
	data, err := json.Marshal(line{Format: format, Full: true, Done: true, Revision: s.Revision(), Changes: routable(s.Since(root.NewSnapshot()))})
	if err != nil {
		return err
	}
	return atomicfile.Write(file, data, 0o600)
}
