package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Load is a steady stream of requests from clients that never retry: half of
// them keep their connection, half open a new one for each request. They speak
// through plain connections, because net/http's client repeats a request whose
// kept connection broke, which would hide what this is here to find.
type Load struct {
	Addr string // where to connect
	Host string // the Host header
	Path string

	answered atomic.Int64
	cancel   context.CancelFunc
	done     sync.WaitGroup
	mu       sync.Mutex // guards failures
	failures []error
}

// loadClients is how many clients ask at once, and loadRest how long each
// rests between requests: together near 400 requests a second.
const (
	loadClients = 8
	loadRest    = 20 * time.Millisecond
)

// RequestTimeout is when a request counts as lost. It is above the platform's
// own hold deadline.
const RequestTimeout = 90 * time.Second

// Start begins the stream. Stop ends it.
func (l *Load) Start(ctx context.Context) {
	ctx, l.cancel = context.WithCancel(ctx)
	for i := range loadClients {
		keep := i%2 == 0
		l.done.Go(func() { l.client(ctx, keep) })
	}
}

// Stop ends the stream, lets requests in flight finish, and returns how many
// were answered and what went wrong.
func (l *Load) Stop() (answered int, err error) {
	l.cancel()
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.answered.Load()), errors.Join(l.failures...)
}

// Answered is how many requests were answered so far.
func (l *Load) Answered() int { return int(l.answered.Load()) }

func (l *Load) client(ctx context.Context, keep bool) {
	var c *Conn
	for ctx.Err() == nil {
		if c == nil {
			var err error
			if c, err = l.Dial(); err != nil {
				l.fail(fmt.Errorf("connect: %w", err))
				return
			}
		}
		if err := c.Get(l.Host, l.Path, keep); err != nil {
			kind := "fresh"
			if keep {
				kind = "kept-alive"
			}
			l.fail(fmt.Errorf("request %d on a %s connection: %w", c.requests, kind, err))
			return
		}
		l.answered.Add(1)
		if !keep || c.closing {
			_ = c.Close()
			c = nil
		}
		if Pause(ctx, loadRest) != nil {
			break
		}
	}
	if c != nil {
		_ = c.Close()
	}
}

func (l *Load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, err)
}

// Conn is a connection that repeats nothing.
type Conn struct {
	net.Conn
	r        *bufio.Reader
	requests int
	closing  bool // the server said it will close: not a failure
}

// Dial opens one connection of such a client.
func (l *Load) Dial() (*Conn, error) {
	c, err := net.DialTimeout("tcp", l.Addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: c, r: bufio.NewReader(c)}, nil
}

// Get asks for a path and wants a whole answer with status 200.
func (c *Conn) Get(host, path string, keep bool) error {
	c.requests++
	if err := c.SetDeadline(time.Now().Add(RequestTimeout)); err != nil {
		return err
	}
	connection := "close"
	if keep {
		connection = "keep-alive"
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", path, host, connection); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("status %d, body cut: %w", resp.StatusCode, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %.200s", resp.StatusCode, body)
	}
	c.closing = resp.Close
	return nil
}

// Closing reports whether the server has said that it closes the connection.
func (c *Conn) Closing() bool { return c.closing }
