package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// upgrades are the connections that were switched to another protocol.
type upgrades struct {
	mu      sync.Mutex
	conns   map[*upgrade]struct{}
	waiting chan struct{} // closed when the last one is gone; nil: nobody waits
}

type upgrade struct {
	client    net.Conn
	websocket bool
	closing   sync.Once
}

// closeFrame tells a WebSocket client that the server goes away (RFC 6455,
// sections 5.5.1 and 7.4.1: code 1001).
var closeFrame = []byte{0x88, 0x02, 0x03, 0xe9}

// lingerTimeout is how long a client may go on sending after the machine has
// said all: a half-close is allowed, a connection that is only forgotten is not.
// A WebSocket has no half-close: there it is only for what is on its way.
const (
	lingerTimeout          = time.Minute
	lingerTimeoutWebSocket = time.Second
)

// goodbyeTimeout bounds the close frame's way out.
const goodbyeTimeout = time.Second

func (u *upgrade) close(goodbye bool) {
	u.closing.Do(func() {
		if goodbye && u.websocket {
			// It may land inside a frame that is on its way; the client then
			// sees a broken connection, which is what follows anyway.
			_ = u.client.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
			_, _ = u.client.Write(closeFrame)
		}
		_ = u.client.Close()
	})
}

func (us *upgrades) add(u *upgrade) {
	us.mu.Lock()
	defer us.mu.Unlock()
	us.conns[u] = struct{}{}
}

func (us *upgrades) remove(u *upgrade) {
	us.mu.Lock()
	defer us.mu.Unlock()
	delete(us.conns, u)
	if len(us.conns) == 0 && us.waiting != nil {
		close(us.waiting)
		us.waiting = nil
	}
}

// drain waits for upgraded connections until ctx ends, then closes them.
func (us *upgrades) drain(ctx context.Context) {
	us.mu.Lock()
	if len(us.conns) == 0 {
		us.mu.Unlock()
		return
	}
	gone := make(chan struct{})
	us.waiting = gone
	us.mu.Unlock()
	select {
	case <-gone:
		return
	case <-ctx.Done():
	}
	us.mu.Lock()
	var left []*upgrade
	for u := range us.conns {
		left = append(left, u)
	}
	us.mu.Unlock()
	var wg sync.WaitGroup
	for _, u := range left {
		wg.Go(func() { u.close(true) })
	}
	wg.Wait()
	<-gone // their copiers end with the connections
}

// upgrade joins client and machine after a 101 answer; it returns when both
// directions have ended.
func (p *Proxy) upgrade(w http.ResponseWriter, x *exchange, s *slot, resp *http.Response) *failure {
	machine, ok := resp.Body.(io.ReadWriteCloser)
	asked, got := upgradeType(x.r.Header), upgradeType(resp.Header)
	if !ok || asked == "" || !strings.EqualFold(asked, got) {
		return failf(http.StatusBadGateway, "PU02", "machine %s switched to protocol %q, the client asked for %q", s.Machine.ID, got, asked)
	}
	client, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return failf(http.StatusBadGateway, "PU04", "the connection cannot be upgraded").cause(err)
	}
	decide(x.r, otherProtocol)
	u := &upgrade{client: client, websocket: strings.EqualFold(got, "websocket")}
	p.upgrades.add(u)
	defer p.upgrades.remove(u)
	defer u.close(false)
	s.b.unit.Upgraded(1)
	defer s.b.unit.Upgraded(-1)
	x.rec.Status, x.rec.Upgraded = resp.StatusCode, true

	removeHop(resp.Header)
	h := make(http.Header, len(resp.Header)+6)
	x.responseHeader(h, resp.Header, &s.Port.HTTP)
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{got}
	head := &http.Response{StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if err := errors.Join(client.SetDeadline(time.Time{}), head.Write(buf), buf.Flush()); err != nil {
		x.rec.Err = err.Error()
		return nil
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := io.Copy(client, machine)
		x.rec.Bytes = n
		linger := lingerTimeout
		if u.websocket {
			linger = lingerTimeoutWebSocket
		}
		_ = client.SetReadDeadline(time.Now().Add(linger))
		if closeWrite(client) != nil || err != nil {
			u.close(false)
		}
	})
	_, err = copyFrom(machine, buf.Reader, client)
	if closeWrite(machine) != nil || err != nil {
		_ = machine.Close()
	}
	wg.Wait()
	return nil
}

// copyFrom copies what the server had read ahead, then the rest.
func copyFrom(dst io.Writer, ahead *bufio.Reader, src io.Reader) (int64, error) {
	if n := ahead.Buffered(); n > 0 {
		data, err := ahead.Peek(n)
		if err != nil {
			return 0, err
		}
		if _, err := dst.Write(data); err != nil {
			return 0, err
		}
	}
	return io.Copy(dst, src)
}

func closeWrite(c any) error {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.New("no half-close")
}
