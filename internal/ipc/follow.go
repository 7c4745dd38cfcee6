package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	root "github.com/roost-run/roost"
)

// Follow calls f with each value of a streamed reply until the stream ends,
// ctx is done or f fails.
func Follow[T any](ctx context.Context, c *Client, path string, f func(T) error) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var v T
		if err := dec.Decode(&v); err != nil {
			if errors.Is(err, io.EOF) {
				return root.Errorf(root.Unavailable, "the stream %s ended", path)
			}
			return fmt.Errorf("follow %s: %w", path, err)
		}
		if err := f(v); err != nil {
			return err
		}
	}
}

// The pauses of KeepUp: short, since the other process of this host is back
// soon.
const (
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

// KeepUp calls follow, which reads one stream to its end, again and again until
// ctx ends; it returns the cause. The pauses between grow, and are short again
// once follow has called works. lost is told why a stream ended.
func KeepUp(ctx context.Context, follow func(works func()) error, lost func(error)) error {
	pause := minPause
	for {
		err := follow(func() { pause = minPause })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		lost(err)
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxPause)
	}
}
