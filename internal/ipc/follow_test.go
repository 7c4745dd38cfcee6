package ipc

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestKeepUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var starts []time.Time
		reasons := 0
		const worked, last = 8, 10
		err := KeepUp(ctx, func(works func()) error {
			starts = append(starts, time.Now())
			switch len(starts) {
			case worked:
				works()
			case last:
				cancel(enough)
			}
			return errors.New("the stream ended")
		}, func(error) { reasons++ })
		if !errors.Is(err, enough) {
			t.Errorf("got %v, want the cause of the end", err)
		}
		if len(starts) != last || reasons != last-1 {
			t.Fatalf("followed %d times and told of %d ends, want %d and %d", len(starts), reasons, last, last-1)
		}
		for i := 1; i < len(starts); i++ {
			pause := starts[i].Sub(starts[i-1])
			if pause < minPause/2 || pause >= maxPause {
				t.Errorf("pause %d is %s, want it between %s and %s", i, pause, minPause/2, maxPause)
			}
		}
		before, after := starts[worked-1].Sub(starts[worked-2]), starts[worked].Sub(starts[worked-1])
		if before < maxPause/2 {
			t.Errorf("the pause after %d failures is %s, want it grown to %s at least", worked-2, before, maxPause/2)
		}
		if after >= minPause {
			t.Errorf("the pause after one that worked is %s, want it below %s", after, minPause)
		}
	})
}
