package report

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	root "github.com/roost-run/roost"
)

// control takes reports when it is there.
type control struct {
	mu    sync.Mutex
	away  bool
	calls int
	last  map[root.InstanceID]string
}

func (c *control) send(_ context.Context, batch []Report) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.away {
		return errors.New("away")
	}
	if len(batch) > maxBatch {
		return fmt.Errorf("%d reports at once", len(batch))
	}
	for _, r := range batch {
		c.last[r.Instance] = r.Restart
	}
	return nil
}

func (c *control) got(id root.InstanceID) string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last[id]
}

func TestSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &control{last: map[root.InstanceID]string{}}
		var mu sync.Mutex
		now := map[root.InstanceID]string{}
		set := func(id root.InstanceID, v string) { mu.Lock(); now[id] = v; mu.Unlock() }
		s := newSender(func(id root.InstanceID) (Report, bool) {
			mu.Lock()
			defer mu.Unlock()
			v, ok := now[id]
			return Report{Instance: id, Restart: v}, ok
		}, c.send)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()

		set("a", "1")
		s.Changed("a", "gone")
		time.Sleep(time.Second)
		if got := c.got("a"); got != "1" {
			t.Errorf("control has %q, want the report", got)
		}
		// What happens while control is away arrives as it is when it is back.
		c.mu.Lock()
		c.away, c.calls = true, 0
		c.mu.Unlock()
		for i := range 10 {
			set("a", fmt.Sprint("away ", i))
			s.Changed("a")
			time.Sleep(30 * time.Second)
		}
		c.mu.Lock()
		c.away = false
		if c.calls > 200 {
			t.Errorf("%d attempts in five minutes", c.calls)
		}
		c.mu.Unlock()
		time.Sleep(maxPause + time.Second)
		if got := c.got("a"); got != "away 9" {
			t.Errorf("control has %q, want the last state", got)
		}
		// Nothing is sent while nothing changes.
		c.mu.Lock()
		c.calls = 0
		c.mu.Unlock()
		time.Sleep(time.Hour)
		c.mu.Lock()
		if c.calls != 0 {
			t.Errorf("%d calls without a change", c.calls)
		}
		c.mu.Unlock()
		// All at once, in batches.
		var ids []root.InstanceID
		for i := range 3*maxBatch + 1 {
			id := root.InstanceID(fmt.Sprint("many", i))
			set(id, "x")
			ids = append(ids, id)
		}
		s.Changed(ids...)
		time.Sleep(time.Second)
		if i := slices.IndexFunc(ids, func(id root.InstanceID) bool { return c.got(id) != "x" }); i >= 0 {
			t.Errorf("%s did not arrive", ids[i])
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
}
