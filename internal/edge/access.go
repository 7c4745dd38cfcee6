package edge

import (
	"encoding/json"
	"io"

	"github.com/roost-run/roost/internal/proxy"
)

const (
	// accessQueue is how many lines may wait for a slow reader; more are dropped.
	accessQueue = 4096
	// accessBatch is how much is written at a time while lines come quickly: what
	// a pipe takes whole, however many processes write to it.
	accessBatch = 4096
)

// accessLog writes a line of JSON for each request to w. The second function
// ends it, after what was said up to then is written.
func (e *edge) accessLog(w io.Writer) (func(*proxy.Record), func()) {
	if !e.cfg.AccessLog {
		return nil, func() {}
	}
	lines := make(chan []byte, accessQueue)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		writeLines(w, lines, stop)
	}()
	say := func(r *proxy.Record) {
		line, err := json.Marshal(r)
		if err != nil {
			return
		}
		select {
		case lines <- append(line, '\n'):
		default: // a reader that is slower than the requests must not hold them up
		}
	}
	return say, func() {
		close(stop)
		<-done
	}
}

// writeLines writes lines until stop is closed and none is left. A line is
// written as soon as it comes; those that came during a write share the next.
func writeLines(w io.Writer, lines <-chan []byte, stop <-chan struct{}) {
	var batch []byte
	for ended := false; !ended; {
		select {
		case l := <-lines:
			batch = append(batch, l...)
		case <-stop:
			ended = true
		}
		for len(lines) > 0 { // nobody else takes them out
			l := <-lines
			if len(batch) > 0 && len(batch)+len(l) > accessBatch {
				_, _ = w.Write(batch) // nowhere else to tell
				batch = batch[:0]
			}
			batch = append(batch, l...)
		}
		if len(batch) > 0 {
			_, _ = w.Write(batch)
			batch = batch[:0]
		}
	}
}
