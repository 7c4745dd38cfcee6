package proxy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// Bodies are kept so that a request can be delivered again.
const (
	// maxBody is how much of one body is kept (Fly docs, PA01).
	maxBody = 10 << 20
	// memoryBody is how much of it stays in memory; the rest goes to a file.
	memoryBody = 64 << 10
	// maxBodyMemory and maxBodyDisk bound all bodies together. What does not
	// fit streams through and cannot be delivered again.
	maxBodyMemory = 64 << 20
	maxBodyDisk   = 1 << 30
)

// bodies accounts for what is kept.
type bodies struct {
	dir    string
	memory atomic.Int64
	disk   atomic.Int64
}

// body is a request's body, read from the client once and kept on the way.
type body struct {
	all   *bodies
	large bool // announced as more than is kept

	reading sync.Mutex // held over a read of src, which may take as long as the client likes
	src     io.Reader

	mu      sync.Mutex
	err     error // of src, io.EOF included
	size    int64 // read from src so far
	memory  []byte
	file    *os.File // what did not fit into memory
	dropped bool     // not kept any more: only a reader that is at size goes on
}

// newBody begins to keep src; length is what the client announced, -1 unknown.
func newBody(all *bodies, src io.Reader, length int64) *body {
	return &body{all: all, src: src, large: length > maxBody, dropped: length > maxBody}
}

// replayable reports whether an app may have the request replayed. One whose
// body was announced as too large is refused always: whether some of it was
// read when the app answered is chance, and the app's author should not be the
// last to know.
func (b *body) replayable() bool { return !b.large && b.fromStart() }

// fromStart reports whether the body can be delivered from its beginning.
func (b *body) fromStart() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.dropped || b.size == 0
}

// failed returns the error that reading from the client ended in, if any.
func (b *body) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if errors.Is(b.err, io.EOF) {
		return nil
	}
	return b.err
}

// free gives back what is kept. No reader reads after it.
func (b *body) free() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
	b.err = os.ErrClosed
}

func (b *body) drop() {
	b.dropped = true
	b.all.memory.Add(-int64(len(b.memory)))
	b.all.disk.Add(-b.onDisk())
	b.memory = nil
	if b.file != nil {
		_ = b.file.Close() // it has no name any more
		b.file = nil
	}
}

func (b *body) onDisk() int64 {
	if b.file == nil {
		return 0
	}
	return b.size - int64(len(b.memory))
}

// keep adds data, which was just read and is not in size yet.
func (b *body) keep(data []byte) {
	if b.dropped {
		return
	}
	if b.size+int64(len(data)) > maxBody {
		b.drop()
		return
	}
	if b.file == nil && len(b.memory)+len(data) <= memoryBody {
		if b.all.memory.Add(int64(len(data))) <= maxBodyMemory {
			b.memory = append(b.memory, data...)
			return
		}
		b.all.memory.Add(-int64(len(data)))
	}
	if err := b.spill(data); err != nil {
		b.drop()
	}
}

// spill appends data to the file, which begins where memory ends.
func (b *body) spill(data []byte) error {
	if b.all.disk.Add(int64(len(data))) > maxBodyDisk {
		b.all.disk.Add(-int64(len(data)))
		return fmt.Errorf("more than %d bytes of bodies are kept", int64(maxBodyDisk))
	}
	if b.file == nil {
		f, err := os.CreateTemp(b.all.dir, "body-*")
		if err == nil {
			err = os.Remove(f.Name())
		}
		if err != nil {
			b.all.disk.Add(-int64(len(data)))
			return err
		}
		b.file = f
	}
	if _, err := b.file.WriteAt(data, b.size-int64(len(b.memory))); err != nil {
		b.all.disk.Add(-int64(len(data)))
		return err
	}
	return nil
}

// reader returns a reader of the whole body, for one delivery.
func (b *body) reader() *bodyReader { return &bodyReader{b: b} }

// bodyReader reads what is kept, then what the client still sends.
type bodyReader struct {
	b      *body
	off    int64
	closed atomic.Bool
}

func (r *bodyReader) Read(p []byte) (int, error) {
	if n, err, ok := r.known(p); ok {
		return n, err
	}
	b := r.b
	b.reading.Lock()
	defer b.reading.Unlock()
	if n, err, ok := r.known(p); ok { // an earlier delivery read on meanwhile
		return n, err
	}
	n, err := b.src.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(p[:n])
	b.size += int64(n)
	b.err = err
	r.off += int64(n)
	return n, err
}

// known answers a read from what is kept, or from how src ended.
func (r *bodyReader) known(p []byte) (n int, err error, ok bool) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.closed.Load():
		return 0, os.ErrClosed, true
	case r.off < b.size:
		n, err = r.kept(p)
		return n, err, true
	case b.err != nil:
		return 0, b.err, true
	}
	return 0, nil, false
}

// kept reads what is kept; the caller holds mu.
func (r *bodyReader) kept(p []byte) (int, error) {
	b := r.b
	if b.dropped {
		return 0, fmt.Errorf("the body was not kept")
	}
	var n int
	var err error
	if inMemory := int64(len(b.memory)); r.off < inMemory {
		n = copy(p, b.memory[r.off:])
	} else {
		n, err = b.file.ReadAt(p[:min(int64(len(p)), b.size-r.off)], r.off-inMemory)
	}
	r.off += int64(n)
	return n, err
}

// Close ends this delivery; the body itself stays.
func (r *bodyReader) Close() error {
	r.closed.Store(true)
	return nil
}
