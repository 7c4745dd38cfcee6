// Package patience is how tests wait for what happens in real time: a process
// that starts, a packet, a file. It has one limit, far beyond what a busy host
// needs, because a test that hangs has to end some day and a slow host is no
// failure. It is not for time that a test could make itself: that is
// testing/synctest. Only tests, and packages for tests, import it.
package patience

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Limit is how long a test waits before it says that something does not
// happen: hundreds of times what it takes, and several fit into the time that
// a test binary has.
const Limit = 2 * time.Minute

// Pauses between two looks at something that gives no event: short at first,
// since most of it is there at once.
const (
	minPause = time.Millisecond
	maxPause = 20 * time.Millisecond
)

// Until returns when ok does, and fails the test if that takes too long. It
// calls ok from the test's own goroutine, which it has to be called from.
func Until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	pause := minPause
	for end := time.Now().Add(Limit); !ok(); pause = min(2*pause, maxPause) {
		if time.Now().After(end) {
			tb.Fatalf("waited %s for: %s", Limit, what)
		}
		<-time.After(pause)
	}
}

// Receive returns the next value of ch, the zero value if it is closed, and
// fails the test if neither comes.
func Receive[T any](tb testing.TB, what string, ch <-chan T) T {
	tb.Helper()
	timer := time.NewTimer(Limit)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		tb.Fatalf("waited %s for: %s", Limit, what)
		panic("unreachable")
	}
}

// Context returns a context for calls of which the test expects an answer. It
// goes on while the test cleans up, unlike the test's own.
func Context(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(tb.Context()), Limit, fmt.Errorf("waited %s", Limit))
	tb.Cleanup(cancel)
	return ctx
}

// Deadline returns the point in time until which the test waits, for
// connections and files that take one.
func Deadline() time.Time { return time.Now().Add(Limit) }
