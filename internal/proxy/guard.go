package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// refusedHeader carries why a request's head was refused from the guard to
// the handler. A client that sends it refuses its own request.
const refusedHeader = "Roost-Refused"

// guard puts a strict reader of HTTP/1.1 framing below net/http, which mends
// what it takes for small mistakes: two ways to tell a body's length, folded
// lines, bare line feeds. Two readers of one message that mend differently
// are how requests are smuggled (RFC 9112, section 11.2), so these are refused.
type guard struct{ net.Listener }

func (g guard) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guardedConn{Conn: c}, nil
}

// guardedConn passes on a connection's bytes message by message. One goroutine
// reads at a time, as net/http does; only next is shared.
type guardedConn struct {
	net.Conn
	mode mode
	buf  []byte // read, not yet passed on
	pass int    // how much of buf may be passed on
	scan int    // how much of the head was looked at: ends behind a line
	left int64  // of a body with a length
	body chunks
	tls  *tls.ConnectionState // below the messages; nil: none

	idle atomic.Int64 // nanoseconds, 0: the server's
	next atomic.Int32 // what follows a request that asks for an upgrade
}

// What follows a request that asks for an upgrade: nobody knows before it is
// answered.
const (
	undecided int32 = iota
	moreHTTP
	otherProtocol
)

// mode is what the next byte that is not passed on belongs to.
type mode uint8

const (
	inHead mode = iota
	inBody
	inChunks
	open    // behind a request that asks for an upgrade; see next
	raw     // not HTTP any more, or net/http refuses it by itself
	refused // what follows is dropped
)

const (
	guardBuffer = 4 << 10
	// maxDropped is how much of a refused request is read, so that the client
	// sees the answer before the connection ends.
	maxDropped = 256 << 10
)

var (
	errChunk = errors.New("malformed chunked body")
	errEarly = errors.New("too much was sent before an upgrade was answered")
)

// maxEarly bounds what is kept until an upgrade is answered.
const maxEarly = 64 << 10

func (c *guardedConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.pass > 0 {
			n := copy(p, c.buf[:c.pass])
			c.consume(n)
			return n, nil
		}
		switch c.mode {
		case raw:
			if len(c.buf) > 0 {
				c.pass = len(c.buf)
				continue
			}
			return c.Conn.Read(p)
		case inBody:
			if len(c.buf) == 0 {
				n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
				c.took(int64(n))
				return n, err
			}
			c.pass = int(min(int64(len(c.buf)), c.left))
			c.took(int64(c.pass))
			continue
		case inChunks:
			if len(c.buf) > 0 {
				n, done, err := c.body.scan(c.buf)
				if err != nil {
					return 0, err
				}
				c.pass = n
				if done {
					c.mode = inHead
				}
				continue
			}
		case inHead:
			if len(c.buf) > c.scan && c.head() {
				continue
			}
		case open:
			switch c.next.Load() {
			case moreHTTP:
				c.mode = inHead
				continue
			case otherProtocol:
				c.mode = raw
				continue
			}
			if len(c.buf) > maxEarly {
				return 0, errEarly
			}
		case refused:
			_, _ = io.CopyN(io.Discard, c.Conn, maxDropped) // only for politeness
			return 0, io.EOF
		}
		if err := c.fill(); err != nil {
			if errors.Is(err, io.EOF) && len(c.buf) > 0 {
				c.mode = raw // half a head: net/http says what it is
				continue
			}
			return 0, err
		}
	}
}

func (c *guardedConn) fill() error {
	if cap(c.buf)-len(c.buf) < guardBuffer/2 {
		next := make([]byte, len(c.buf), max(guardBuffer, 2*len(c.buf)+guardBuffer))
		copy(next, c.buf)
		c.buf = next
	}
	n, err := c.Conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

func (c *guardedConn) consume(n int) {
	c.pass -= n
	if n == len(c.buf) {
		c.buf = c.buf[:0]
		if cap(c.buf) > 4*guardBuffer {
			c.buf = nil
		}
		return
	}
	c.buf = c.buf[:copy(c.buf, c.buf[n:])]
}

func (c *guardedConn) took(n int64) {
	if c.left -= n; c.left == 0 {
		c.mode = inHead
	}
}

// head looks at the lines that are there. It returns true when the head is
// whole, so that it may be passed on, or refused.
func (c *guardedConn) head() bool {
	for {
		i := bytes.IndexByte(c.buf[c.scan:], '\n')
		if i < 0 {
			if len(c.buf) > maxHeader+guardBuffer {
				c.mode = raw // net/http answers 431
				return true
			}
			return false
		}
		line := c.buf[c.scan : c.scan+i+1]
		first := c.scan == 0
		c.scan += i + 1
		if len(line) < 2 || line[len(line)-2] != '\r' {
			return c.refuse("a line ends in a bare line feed")
		}
		line = line[:len(line)-2]
		switch {
		case bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0:
			return c.refuse("a line of the head has a control character")
		case first && len(line) == 0:
			return c.refuse("an empty line instead of a request")
		case len(line) == 0:
			return c.framing()
		case !first && (line[0] == ' ' || line[0] == '\t'):
			return c.refuse("a header line is folded")
		}
	}
}

// framing finds out how long the message is that a whole head begins.
func (c *guardedConn) framing() bool {
	head := c.buf[:c.scan]
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	old := bytes.HasSuffix(line, []byte("HTTP/1.0"))
	lengths, codings, upgrade, host := 0, 0, false, !bytes.HasSuffix(line, []byte("HTTP/1.1"))
	var length, coding string
	for len(rest) > 2 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return c.refuse("a header line has no colon")
		}
		if bytes.ContainsAny(name, " \t") || len(name) == 0 {
			return c.refuse("a header's name has a space")
		}
		switch {
		case equalFold(name, "content-length"):
			lengths++
			length = string(bytes.TrimSpace(value))
		case equalFold(name, "transfer-encoding"):
			codings++
			coding = string(bytes.TrimSpace(value))
		case equalFold(name, "upgrade"):
			upgrade = true
		case equalFold(name, "host"):
			host = true
		}
	}
	switch {
	case !host: // net/http would answer without request id and code
		return c.refuse("no host specified in headers or uri")
	case lengths > 1:
		return c.refuse("content-length is there twice")
	case codings > 1:
		return c.refuse("transfer-encoding is there twice")
	case lengths == 1 && codings == 1:
		return c.refuse("both content-length and transfer-encoding are there")
	case codings == 1 && old:
		return c.refuse("transfer-encoding in HTTP/1.0")
	case codings == 1 && !strings.EqualFold(coding, "chunked"):
		c.mode = raw // net/http answers 501 and closes
	case codings == 1:
		c.mode, c.body = inChunks, chunks{}
	case lengths == 1:
		n, err := strconv.ParseUint(length, 10, 63)
		if err != nil || length[0] == '+' {
			return c.refuse("content-length is not a number")
		}
		if c.left = int64(n); n > 0 {
			c.mode = inBody
		}
	}
	if upgrade && c.mode == inHead {
		c.mode = open
		c.next.Store(undecided)
	}
	c.pass, c.scan = c.scan, 0
	return true
}

func equalFold(b []byte, lower string) bool {
	return len(b) == len(lower) && strings.EqualFold(string(b), lower)
}

// refuse puts a request of our own in the place of the one that came: the
// handler answers it with 400 and the reason, in turn and in form.
func (c *guardedConn) refuse(why string) bool {
	c.buf = []byte("GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n" + refusedHeader + ": " + why + "\r\n\r\n")
	c.pass, c.scan, c.mode = len(c.buf), 0, refused
	return true
}

// ReadFrom lets the kernel copy files (sendfile(2)): net/http asks for it.
func (c *guardedConn) ReadFrom(r io.Reader) (int64, error) {
	if f, ok := c.Conn.(io.ReaderFrom); ok {
		return f.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// SetReadDeadline puts the idle time of the port that was asked last in the
// place of the server's, which is the only one longer than headerTimeout.
func (c *guardedConn) SetReadDeadline(t time.Time) error {
	if idle := c.idle.Load(); idle > 0 && time.Until(t) > headerTimeout {
		t = time.Now().Add(time.Duration(idle))
	}
	return c.Conn.SetReadDeadline(t)
}

// setIdle sets how long the connection of a request may be without one after
// it; 0 is the usual time. HTTP/2 connections keep the usual time.
func setIdle(r *http.Request, d time.Duration) {
	if c, ok := r.Context().Value(guardKey{}).(*guardedConn); ok {
		c.idle.Store(int64(d))
	}
}

// CloseWrite passes a half-close on.
func (c *guardedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.New("no half-close")
}

type guardKey struct{}

// withGuard is a server's ConnContext: it lets decide and patience find the
// connection.
func withGuard(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*tls.Conn); ok {
		return context.WithValue(ctx, patienceKey{}, &patience{conn: c})
	}
	return context.WithValue(ctx, guardKey{}, c)
}

// decide tells the guard what follows a request that asked for an upgrade.
func decide(r *http.Request, next int32) {
	if c, ok := r.Context().Value(guardKey{}).(*guardedConn); ok {
		c.next.Store(next)
	}
}

// chunks follows a chunked body (RFC 9112, section 7.1).
type chunks struct {
	state chunkState
	left  uint64 // of the chunk
	n     int    // characters of the line so far
}

type chunkState uint8

const (
	chunkSize  chunkState = iota // hex digits
	chunkExt                     // behind them, up to the line's end
	chunkLF                      // of the size line
	chunkData                    //
	chunkCR                      // behind the data
	chunkEnd                     // LF behind that
	trailer                      // a line of the trailer
	trailerLF                    // of it
	trailerEnd                   // LF of the empty line
)

// maxChunkLine bounds a size line with its extensions, and a trailer.
const maxChunkLine = 4 << 10

// scan looks at data and returns how much of it belongs to the body, and
// whether the body ends there.
func (s *chunks) scan(data []byte) (n int, done bool, err error) {
	for i := 0; i < len(data); i++ {
		b := data[i]
		switch s.state {
		case chunkSize:
			d, ok := unhex(b)
			switch {
			case ok && s.n < 15:
				s.left, s.n = s.left<<4|d, s.n+1
			case s.n == 0 || ok:
				return 0, false, errChunk
			case b == ';':
				s.state = chunkExt
			case b == '\r':
				s.state = chunkLF
			default:
				return 0, false, errChunk
			}
		case chunkExt:
			if s.n++; s.n > maxChunkLine || b == '\n' || b == 0 {
				return 0, false, errChunk
			}
			if b == '\r' {
				s.state = chunkLF
			}
		case chunkLF:
			if b != '\n' {
				return 0, false, errChunk
			}
			s.n = 0
			if s.state = chunkData; s.left == 0 {
				s.state = trailer
			}
		case chunkData:
			rest := uint64(len(data) - i)
			if rest < s.left {
				s.left -= rest
				return len(data), false, nil
			}
			i += int(s.left) - 1
			s.left, s.state = 0, chunkCR
		case chunkCR:
			if b != '\r' {
				return 0, false, errChunk
			}
			s.state = chunkEnd
		case chunkEnd:
			if b != '\n' {
				return 0, false, errChunk
			}
			s.state, s.n = chunkSize, 0
		case trailer:
			switch {
			case b == '\r' && s.n == 0:
				s.state = trailerEnd
			case b == '\r':
				s.state = trailerLF
			case b == '\n' || s.n == 0 && (b == ' ' || b == '\t') || s.n > maxChunkLine:
				return 0, false, errChunk
			default:
				s.n++
			}
		case trailerLF:
			if b != '\n' {
				return 0, false, errChunk
			}
			s.state, s.n = trailer, 0
		case trailerEnd:
			if b != '\n' {
				return 0, false, errChunk
			}
			return i + 1, true, nil
		}
	}
	return len(data), false, nil
}

func unhex(b byte) (uint64, bool) {
	switch {
	case b >= '0' && b <= '9':
		return uint64(b - '0'), true
	case b >= 'a' && b <= 'f':
		return uint64(b-'a') + 10, true
	case b >= 'A' && b <= 'F':
		return uint64(b-'A') + 10, true
	}
	return 0, false
}
