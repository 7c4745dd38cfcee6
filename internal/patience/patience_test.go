package patience

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// failing is a test that notes how it failed, and ends as one does.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// fails runs f until it ends, and returns how it failed and after what time.
func fails(t *testing.T, f func(testing.TB)) (said string, took time.Duration) {
	t.Helper()
	tb, begin, done := &failing{TB: t}, time.Now(), make(chan struct{})
	go func() {
		defer close(done)
		f(tb)
	}()
	<-done
	return tb.said, time.Since(begin)
}

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		if said, took := fails(t, func(tb testing.TB) {
			Until(tb, "the third look", func() bool { looks++; return looks == 3 })
		}); said != "" || took > 2*maxPause || looks != 3 {
			t.Errorf("got %q after %s and %d looks, want the third", said, took, looks)
		}
		if said, took := fails(t, func(tb testing.TB) {
			Until(tb, "the moon", func() bool { return false })
		}); said != "waited 2m0s for: the moon" || took < Limit || took > Limit+2*maxPause {
			t.Errorf("got %q after %s", said, took)
		}
	})
}

func TestReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan int, 1)
		ch <- 7
		if said, took := fails(t, func(tb testing.TB) {
			if got := Receive(tb, "a value", ch); got != 7 {
				t.Errorf("got %d, want 7", got)
			}
		}); said != "" || took != 0 {
			t.Errorf("got %q after %s", said, took)
		}
		if said, took := fails(t, func(tb testing.TB) { Receive(tb, "a value", ch) }); said != "waited 2m0s for: a value" || took != Limit {
			t.Errorf("got %q after %s", said, took)
		}
	})
}
