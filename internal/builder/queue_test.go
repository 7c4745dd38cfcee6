package builder

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Builds of different organisations never run at a time, and none overtakes.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{slots: 2}
		type build struct {
			begun bool
			end   chan struct{}
			stop  context.CancelCauseFunc
			err   error
		}
		enter := func(scope string) *build {
			ctx, stop := context.WithCancelCause(t.Context())
			b := &build{end: make(chan struct{}), stop: stop}
			go func() {
				done, err := q.enter(ctx, scope, func(int) error { return nil })
				if err != nil {
					b.err = err
					return
				}
				b.begun = true
				<-b.end
				done()
			}()
			synctest.Wait()
			return b
		}
		finish := func(b *build) {
			close(b.end)
			synctest.Wait()
		}
		a1, a2, b1, left, a3, b2 := enter("a"), enter("a"), enter("b"), enter("b"), enter("a"), enter("b")
		check := func(when string, want ...bool) {
			t.Helper()
			for i, b := range []*build{a1, a2, b1, a3, b2} {
				if b.begun != want[i] {
					t.Errorf("%s: build %d begun %v, want %v", when, i, b.begun, want[i])
				}
			}
		}
		check("at first", true, true, false, false, false)
		gone := errors.New("gone")
		left.stop(gone)
		synctest.Wait()
		if !errors.Is(left.err, gone) {
			t.Errorf("who left: got %v", left.err)
		}
		finish(a1)
		check("with one of a running", true, true, false, false, false)
		finish(a2)
		check("with none of a running", true, true, true, false, false)
		finish(b1)
		check("after b's", true, true, true, true, false)
		finish(a3)
		check("at last", true, true, true, true, true)
		finish(b2)
		full := errors.New("full")
		last := enter("a")
		if _, err := q.enter(t.Context(), "b", func(before int) error {
			if before != 1 {
				t.Errorf("told of %d builds before, want 1", before)
			}
			return full
		}); !errors.Is(err, full) {
			t.Errorf("refused: got %v", err)
		}
		finish(last)
		if q.running != 0 || len(q.waiting) != 0 {
			t.Errorf("left: %d running, %d waiting", q.running, len(q.waiting))
		}
	})
}
