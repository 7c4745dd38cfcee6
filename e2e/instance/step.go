package instance

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Step is one thing that a story shows on the state S that its steps share.
// Run says in a few words what was seen.
type Step[S any] struct {
	Name string
	Run  func(ctx context.Context, s S) (seen string, err error)
}

// Tell runs the steps and reports each on w as one line with its time. It
// stops at the first that does not hold.
func Tell[S any](ctx context.Context, w io.Writer, steps []Step[S], s S) error {
	for i, step := range steps {
		start := time.Now()
		seen, err := step.Run(ctx, s)
		took := time.Since(start).Round(10 * time.Millisecond)
		if err != nil {
			fmt.Fprintf(w, "FAIL %2d/%d %7s  %s\n", i+1, len(steps), took, step.Name)
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		fmt.Fprintf(w, "ok   %2d/%d %7s  %s: %s\n", i+1, len(steps), took, step.Name, seen)
	}
	return nil
}
