package instance

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// Step is one thing that a story shows on the state S that its steps share.
// Run says in a few words what was seen.
type Step[S any] struct {
	Name string
	Run  func(ctx context.Context, s S) (seen string, err error)
}

// announceAfter is when a step that still runs is named: somebody watches.
const announceAfter = 3 * time.Second

// Tell runs the steps and reports each on w as one line with its time; before
// it a line says what takes long. It stops at the first that does not hold.
func Tell[S any](ctx context.Context, w io.Writer, steps []Step[S], s S) error {
	for i, step := range steps {
		start := time.Now()
		seen, err := run(ctx, step, s, func() { fmt.Fprintf(w, "...  %2d/%d          %s\n", i+1, len(steps), step.Name) })
		took := time.Since(start).Round(10 * time.Millisecond)
		if err != nil {
			fmt.Fprintf(w, "FAIL %2d/%d %7s  %s\n", i+1, len(steps), took, step.Name)
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		fmt.Fprintf(w, "ok   %2d/%d %7s  %s: %s\n", i+1, len(steps), took, step.Name, seen)
	}
	return nil
}

// run runs a step; slow is called once if it takes its time, and has returned
// when run returns.
func run[S any](ctx context.Context, step Step[S], s S, slow func()) (string, error) {
	var told sync.WaitGroup
	done := make(chan struct{})
	told.Go(func() {
		timer := time.NewTimer(announceAfter)
		defer timer.Stop()
		select {
		case <-timer.C:
			slow()
		case <-done:
		}
	})
	defer told.Wait()
	defer close(done)
	return step.Run(ctx, s)
}
