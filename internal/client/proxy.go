package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
)

// ProxyProtocol is the name under which a connection into the private network
// upgrades its own. Then both sides send frames: FrameStdin what the client
// says, FrameStdout what the machine says; an empty one ends that direction.
const ProxyProtocol = "roost-proxy"

// Tunnel is a connection to a port of a machine.
type Tunnel struct {
	conn   io.ReadWriteCloser
	out    *FrameWriter
	reader io.Reader
	left   []byte // of a frame that was read in part
	ended  bool   // the machine says nothing more
	closed sync.Once
}

// Dial connects to a port of an app's machine, past the proxy; machine "" is
// one that runs, or that can be woken.
func (c *Client) Dial(ctx context.Context, app, machine string, port int) (*Tunnel, error) {
	q := url.Values{"port": {strconv.Itoa(port)}}
	if machine != "" {
		q.Set("machine", machine)
	}
	req, err := c.NewRequest(ctx, http.MethodGet, appPath(app)+"/proxy?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", ProxyProtocol)
	resp, err := c.Send(req)
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.Join(fmt.Errorf("proxy: the platform answered %s instead of switching protocols", resp.Status), resp.Body.Close())
	}
	return &Tunnel{conn: conn, out: NewFrameWriter(conn), reader: bufio.NewReader(conn)}, nil
}

// Read reads what the machine says.
func (t *Tunnel) Read(p []byte) (int, error) {
	for len(t.left) == 0 {
		if t.ended {
			return 0, io.EOF
		}
		kind, data, err := ReadFrame(t.reader)
		if err != nil {
			return 0, fmt.Errorf("proxy: the connection broke: %w", err)
		}
		if kind == FrameStdout {
			t.left, t.ended = data, len(data) == 0
		}
	}
	n := copy(p, t.left)
	t.left = t.left[n:]
	return n, nil
}

// Write says something to the machine.
func (t *Tunnel) Write(p []byte) (int, error) {
	if len(p) == 0 { // an empty frame would mean the end
		return 0, nil
	}
	if err := t.out.Frame(FrameStdin, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite tells the machine that nothing more comes.
func (t *Tunnel) CloseWrite() error { return t.out.Frame(FrameStdin, nil) }

// Close ends the connection.
func (t *Tunnel) Close() error {
	var err error
	t.closed.Do(func() { err = t.conn.Close() })
	return err
}
