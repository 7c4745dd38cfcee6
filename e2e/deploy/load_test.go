package deploy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/roost-run/roost/e2e/instance"
)

const (
	// clients is how many ask at once, and rest how long each waits between two
	// requests: near 200 requests a second together.
	clients = 8
	rest    = 40 * time.Millisecond
	// drain is how long a replaced version serves those who are connected to it
	// (30 s), less what clocks may differ in.
	drain = 29 * time.Second
	// talkFor is how long a client talks where a deploy waits for it.
	talkFor = 500 * time.Millisecond
	// deploys is how many each load sees.
	deploys = 10
)

// load is requests and a WebSocket of clients that never repeat anything.
type load struct {
	h    *host
	app  string
	talk time.Duration // how long a WebSocket is kept; 0: for ever
	done sync.WaitGroup
	stop context.CancelFunc

	mu       sync.Mutex // guards what follows
	answered int
	echoes   int
	problems []error
}

func newLoad(h *host, app string, talk time.Duration) *load {
	ctx, stop := context.WithCancel(h.t.Context())
	l := &load{h: h, app: app, talk: talk, stop: stop}
	for i := range clients {
		l.done.Go(func() { l.ask(ctx, i%2 == 0) })
	}
	l.done.Go(func() { l.talks(ctx) })
	return l
}

func (l *load) problem(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.problems = append(l.problems, err)
}

func (l *load) ask(ctx context.Context, keep bool) {
	from := &instance.Load{Addr: l.h.Edge}
	var c *instance.Conn
	for ctx.Err() == nil {
		if c == nil {
			var err error
			if c, err = from.Dial(); err != nil {
				l.problem(err)
				return
			}
		}
		if err := c.Get(l.app+".localhost", "/", keep); err != nil {
			l.problem(fmt.Errorf("keep-alive %v: %w", keep, err))
			return
		}
		l.mu.Lock()
		l.answered++
		l.mu.Unlock()
		if !keep || c.Closing() {
			_ = c.Close()
			c = nil
		}
		if instance.Pause(ctx, rest) != nil {
			break
		}
	}
	if c != nil {
		_ = c.Close()
	}
}

// talks keeps a WebSocket open. One that ends may only do so after the drain
// window of the version that it was connected to.
func (l *load) talks(ctx context.Context) {
	for ctx.Err() == nil {
		opened := time.Now()
		c, resp, err := websocket.Dial(ctx, "ws://"+l.app+".localhost/ws", &websocket.DialOptions{
			HTTPClient: &http.Client{Transport: &http.Transport{DialContext: l.h.DialEdge}},
		})
		if resp != nil && resp.Body != nil {
			_ = resp.Body.Close()
		}
		if err != nil {
			if ctx.Err() == nil {
				l.problem(fmt.Errorf("open a WebSocket: %w", err))
			}
			return
		}
		err = l.echo(ctx, c)
		if err == nil {
			err = c.Close(websocket.StatusNormalClosure, "")
		}
		_ = c.CloseNow()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			continue
		}
		l.mu.Lock()
		if lived := time.Since(opened); lived < drain {
			l.problems = append(l.problems, fmt.Errorf("a WebSocket was dropped after %s, before the drain window of %s: %w", lived.Round(time.Millisecond), drain, err))
		}
		l.mu.Unlock()
	}
}

func (l *load) echo(ctx context.Context, c *websocket.Conn) error {
	for n, began := 0, time.Now(); l.talk == 0 || time.Since(began) < l.talk; n++ {
		text := fmt.Sprint("message ", n)
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			return err
		}
		_, got, err := c.Read(ctx)
		if err != nil {
			return err
		}
		if !strings.Contains(string(got), text) {
			return fmt.Errorf("said %q, heard %q", text, got)
		}
		l.mu.Lock()
		l.echoes++
		l.mu.Unlock()
		if err := instance.Pause(ctx, rest); err != nil {
			return err
		}
	}
	return nil
}

// end stops the load and reports what went wrong.
func (l *load) end() {
	l.h.t.Helper()
	l.stop()
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(l.problems...); err != nil {
		l.h.t.Errorf("after %d answers and %d echoes: %v", l.answered, l.echoes, err)
	}
	if l.answered < 100 || l.echoes < 20 {
		l.h.t.Errorf("%d answers and %d echoes: that was no load", l.answered, l.echoes)
	}
	l.h.t.Logf("%d answers, %d echoes", l.answered, l.echoes)
}

// TestDeployUnderLoad: ten deploys one after the other, with one machine and
// with two, in each way of rolling out: no failed request, no WebSocket
// dropped before its time.
func TestDeployUnderLoad(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	images := []string{h.image("load", "even"), h.image("load", "odd")}
	for _, strategy := range []string{"rolling", "canary", "bluegreen", "immediate"} {
		for _, count := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s %d", strategy, count), func(t *testing.T) {
				h := &host{h.Instance, t}
				app := fmt.Sprintf("%s-%d", strategy, count)
				dir := h.folder(app, fmt.Sprintf("[deploy]\n  strategy = %q\n", strategy))
				h.mustDeploy(dir, images[1])
				if count > 1 {
					if _, err := h.CLI(t.Context(), "scale", "count", fmt.Sprint(count), "--app", app, "--yes"); err != nil {
						t.Fatal(err)
					}
					h.started(app, count)
				}
				talk := time.Duration(0)
				if strategy == "bluegreen" { // ends when the old machines have nobody left
					talk = talkFor
				}
				l := newLoad(h, app, talk)
				for n := range deploys {
					if _, err := h.deploy(dir, images[n%2], "--env", fmt.Sprint("N=", n)); err != nil {
						t.Error(err)
						break
					}
				}
				l.end()
				h.runs(app, images[1], count)
				if _, err := h.CLI(t.Context(), "app", "destroy", app, "--yes"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
