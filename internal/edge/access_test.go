package edge

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
)

// gated takes a write when it is let to.
type gated struct {
	let    chan struct{}
	writes [][]byte
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.let
	g.writes = append(g.writes, bytes.Clone(p))
	return len(p), nil
}

func TestAccessLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gated{let: make(chan struct{})}
		lines, stop, done := make(chan []byte, accessQueue), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			writeLines(g, lines, stop)
		}()
		var want strings.Builder
		say := func(line string) {
			want.WriteString(line)
			lines <- []byte(line)
		}
		say("first\n")
		synctest.Wait() // it is being written
		for n := range 100 {
			say(fmt.Sprintf("line %d %s\n", n, strings.Repeat("x", 100)))
		}
		say(strings.Repeat("y", 2*accessBatch) + "\n")
		close(stop)
		close(g.let)
		<-done
		if got := string(bytes.Join(g.writes, nil)); got != want.String() {
			t.Errorf("lines: got %d bytes, want %d, all of them in order", len(got), want.Len())
		}
		if got := string(g.writes[0]); got != "first\n" {
			t.Errorf("first write: got %q, want the first line at once", got)
		}
		if n := len(g.writes); n < 4 || n > 10 {
			t.Errorf("writes: got %d, want the lines that waited to share a few", n)
		}
		for _, b := range g.writes {
			if b[len(b)-1] != '\n' || len(b) > accessBatch && bytes.Count(b, []byte("\n")) > 1 {
				t.Errorf("a write of %d bytes ends %q, want whole lines, no more than fit", len(b), b[len(b)-1:])
			}
		}
	})
}
