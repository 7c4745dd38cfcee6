// Package ipc is how the processes of one host talk: HTTP and JSON over unix
// sockets, with file descriptors where a call hands some over. Only root may
// connect; the caller is known by its peer credentials.
//
// An error keeps its root.Kind, code and message across the socket. The
// package knows nothing of what is said.
package ipc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	root "github.com/roost-run/roost"
)

// Timeouts of a server on a unix socket: the peers are ours, so they only
// guard against a wedged one. Calls themselves may take as long as they need.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// maxBody bounds one request: the largest is a machine config with files.
	maxBody = 16 << 20
)

// Listen listens on a unix socket at path, replacing a dead one, with the
// given permission bits.
func Listen(path string, perm os.FileMode) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, perm); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}

// NewServer returns an HTTP server for handlers of this package; every request
// carries the peer's Credentials in its context.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			u, ok := c.(*net.UnixConn)
			if !ok {
				return ctx
			}
			cred, err := PeerCredentials(u)
			if err != nil {
				return ctx
			}
			return context.WithValue(ctx, credentialsKey{}, cred)
		},
	}
}

// Credentials are the peer's ids as the kernel knows them.
type Credentials struct {
	PID      int
	UID, GID uint32
}

type credentialsKey struct{}

// PeerFrom returns the credentials of the peer that sent the request.
func PeerFrom(ctx context.Context) (Credentials, bool) {
	c, ok := ctx.Value(credentialsKey{}).(Credentials)
	return c, ok
}

// RequireRoot refuses requests of peers that are not root.
func RequireRoot(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := PeerFrom(r.Context()); !ok || c.UID != 0 {
			WriteError(w, root.Errorf(root.Forbidden, "only root may use this socket"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Handler turns a typed function into an HTTP handler. A request without body
// leaves In zero.
func Handler[In, Out any](f func(context.Context, *http.Request, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		body := http.MaxBytesReader(w, r.Body, maxBody)
		err := json.NewDecoder(body).Decode(&in)
		_, _ = io.Copy(io.Discard, body) // to its end: only then a caller that leaves is noticed
		if err != nil && !errors.Is(err, io.EOF) {
			WriteError(w, root.Errorf(root.Invalid, "malformed request: %v", err))
			return
		}
		out, err := f(r.Context(), r, in)
		if err != nil {
			WriteError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the peer went away: nobody to tell
	}
}

// Stream sends a line of JSON for each value and flushes it, until ctx ends or
// the peer goes away.
type Stream struct {
	w   http.ResponseWriter
	enc *json.Encoder
	rc  *http.ResponseController
}

// NewStream begins a streamed reply.
func NewStream(w http.ResponseWriter) *Stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &Stream{w: w, enc: json.NewEncoder(w), rc: http.NewResponseController(w)}
}

// Send writes one value; it is on its way when Send returns.
func (s *Stream) Send(v any) error {
	if err := s.enc.Encode(v); err != nil {
		return err
	}
	return s.rc.Flush()
}

type wireError struct {
	Kind    string `json:"kind"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

// WriteError answers with err: kind, code and full text, since both ends are ours.
func WriteError(w http.ResponseWriter, err error) {
	e := wireError{Kind: root.KindOf(err).String(), Message: err.Error()}
	if re, ok := errors.AsType[*root.Error](err); ok {
		e.Code = re.Code
		if re.Message != "" && root.KindOf(err) != root.Internal {
			e.Message = re.Message
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(root.KindOf(err)))
	_ = json.NewEncoder(w).Encode(e) // the peer went away: nobody to tell
}

// statusOf only separates good from bad for people with curl; the kind travels
// in the body.
func statusOf(k root.Kind) int {
	switch k {
	case root.Invalid:
		return http.StatusBadRequest
	case root.NotFound:
		return http.StatusNotFound
	case root.Conflict:
		return http.StatusConflict
	case root.Forbidden, root.Unauthenticated:
		return http.StatusForbidden
	case root.Precondition:
		return http.StatusPreconditionFailed
	case root.Unavailable, root.Exhausted:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Client calls the server on one unix socket. It is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client of the socket at path; it connects when used.
func NewClient(path string) *Client {
	t := &http.Transport{
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	return &Client{path: path, http: &http.Client{Transport: t}}
}

// Path returns the socket's path.
func (c *Client) Path() string { return c.path }

// Transport returns the round tripper that reaches the socket, for proxies.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Call sends in as JSON and decodes the reply into out; either may be nil. A
// socket nobody listens on gives kind Unavailable.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: reply: %w", method, path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://roost"+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, context.Cause(ctx))
		}
		return nil, &root.Error{Kind: root.Unavailable, Message: "the platform process behind " + c.path + " does not answer", Err: err}
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func readError(resp *http.Response) error {
	var e wireError
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&e); err != nil {
		return fmt.Errorf("status %s with an unreadable error: %w", resp.Status, err)
	}
	return &root.Error{Kind: root.ParseKind(e.Kind), Code: e.Code, Message: e.Message}
}
