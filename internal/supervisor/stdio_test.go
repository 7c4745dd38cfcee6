package supervisor

import (
	"path/filepath"
	"testing"

	"github.com/roost-run/roost/internal/patience"
)

// flood is a log that fills the machine's pipe again while it is written to: a
// machine that is always quicker than its reader.
type flood struct {
	write   func()
	started chan struct{}
	first   bool
}

func (f *flood) Write(p []byte) (int, error) {
	if !f.first {
		f.first = true
		close(f.started)
	}
	f.write()
	return len(p), nil
}

func (f *flood) Close() error { return nil }

// A machine that never pauses does not keep the server process from going
// away, nor from seeing its end.
func TestOutputOfAFloodEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := makeFIFO(path); err != nil {
		t.Fatal(err)
	}
	reader, err := openFIFO(path, true)
	if err != nil {
		t.Fatal(err)
	}
	writer, err := openFIFO(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	line := make([]byte, 32<<10)
	fill := func() { _, _ = writer.Write(line) }
	fill()
	fill()
	f := &flood{write: fill, started: make(chan struct{})}
	o := carry(reader, f)
	<-f.started
	done := make(chan error, 1)
	go func() { done <- o.finish() }()
	if err := patience.Receive(t, "the end of the reader", done); err != nil {
		t.Error(err)
	}
}
