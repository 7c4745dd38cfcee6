package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
)

// Kinds of builds.
const (
	KindDockerfile = "dockerfile"
	KindGo         = "go" // a Go program without Dockerfile
)

// Request is one build of a context that was sent before.
type Request struct {
	App     root.AppName `json:"app"`
	Key     string       `json:"key"` // of what is kept for the app: contexts, and Go's results
	Kind    string       `json:"kind"`
	Context string       `json:"context"` // ContextState.ID

	Dockerfile     string            `json:"dockerfile,omitempty"`
	DockerfileName string            `json:"dockerfile_name,omitempty"` // for messages
	Target         string            `json:"target,omitempty"`
	Args           map[string]string `json:"args,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	NoCache        bool              `json:"no_cache,omitempty"`
	Secrets        map[string]string `json:"secrets,omitempty"` // for RUN --mount=type=secret, by id
	// Scope names whose build it is; caches are shared within it only.
	Scope string `json:"scope,omitempty"`
	// Repositories of our own registry that it may build on; nil: all.
	Repositories []string `json:"repositories,omitempty"`
	// Denied are foreign repositories that it may not build on.
	Denied []string `json:"denied,omitempty"`

	Package string `json:"package,omitempty"` // of a Go build: directory of the main package inside the context; default "."
}

// LogValue keeps secrets out of logs.
func (r Request) LogValue() slog.Value {
	return slog.StringValue(r.Kind + " build of " + string(r.App))
}

func (r *Request) check() error {
	if _, err := root.ParseAppName(string(r.App)); err != nil {
		return err
	}
	if err := checkKey(r.Key); err != nil {
		return err
	}
	switch r.Kind {
	case KindDockerfile, KindGo:
		return nil
	}
	return root.Errorf(root.Invalid, "%q is not a kind of build: %q and %q are", clip(r.Kind), KindDockerfile, KindGo)
}

// ContextState is what the builder has of a context.
type ContextState struct {
	ID      string          `json:"id"`
	Missing []digest.Digest `json:"missing,omitempty"`
}

// News is news of a build: a line of its log, or BuildKit's status.
type News struct {
	Log    string
	Status json.RawMessage // client.SolveStatus of BuildKit; nil: it is a line
}

// Client talks to the builder behind a socket, which may be just starting. It
// is safe for concurrent use.
type Client struct{ http *http.Client }

// dialTimeout is how long a call waits for a builder that is just starting.
const dialTimeout = 10 * time.Second

// NewClient returns a client; it connects when used.
func NewClient(socket string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // an idle builder goes away
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket) },
	}}}
}

// Context hands over the list of a context's files, a buildcontext.Manifest in
// JSON, and returns which of them the builder lacks. They are kept under key,
// see Request.
func (c *Client) Context(ctx context.Context, key string, manifest io.Reader) (ContextState, error) {
	var state ContextState
	resp, err := c.send(ctx, http.MethodPost, "/v1/apps/"+url.PathEscape(key)+"/contexts", manifest)
	if err != nil {
		return state, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
		return state, gone(ctx, err)
	}
	return state, nil
}

// Blobs hands over files that were missing, as buildcontext.Write sends them.
func (c *Client) Blobs(ctx context.Context, key, id string, blobs io.Reader) error {
	resp, err := c.send(ctx, http.MethodPut, "/v1/apps/"+url.PathEscape(key)+"/contexts/"+url.PathEscape(id)+"/blobs", blobs)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Build has the image made and returns it, stored on this host under
// "registry.<domain>/<app>:deployment-<ulid>" and ready to run. Progress, if
// set, is called with what happens, from this goroutine. When ctx ends the
// build is killed. Kinds: Invalid (what is wrong with the source, with the
// tool's words), TooLarge, NotFound (base image), Precondition (no toolchain,
// files of the context missing), Exhausted (queue, disk, memory), Unavailable.
func (c *Client) Build(ctx context.Context, r Request, progress func(News)) (root.Image, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return root.Image{}, fmt.Errorf("build: %w", err)
	}
	resp, err := c.send(ctx, http.MethodPost, "/v1/builds", strings.NewReader(string(body)))
	if err != nil {
		return root.Image{}, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var ev event
		if err := dec.Decode(&ev); err != nil {
			return root.Image{}, gone(ctx, err)
		}
		switch {
		case ev.Error != nil:
			return root.Image{}, ev.Error.err()
		case ev.Image != nil:
			i := ev.Image
			return root.Image{Registry: i.Registry, Repository: i.Repository, Tag: i.Tag, Digest: root.Digest(i.Digest)}, nil
		case progress == nil:
		case ev.Status != nil:
			progress(News{Status: ev.Status})
		case ev.Log != nil:
			progress(News{Log: *ev.Log})
		}
	}
}

// send makes a call; any status but 200 is the builder's error.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://builder"+path, io.NopCloser(body))
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if re, ok := errors.AsType[*root.Error](err); ok { // of dial, or of whoever sends the body
			return nil, re
		}
		return nil, gone(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e wireError
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		return nil, fmt.Errorf("the builder answered %s: %w", resp.Status, err)
	}
	return nil, e.err()
}

func (e *wireError) err() error {
	return &root.Error{Kind: root.ParseKind(e.Kind), Code: e.Code, Message: e.Message}
}

func gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("build: %w", context.Cause(ctx))
	}
	return &root.Error{Kind: root.Unavailable, Message: "the builder went away before the build was done: try again", Err: err}
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}

// dial connects to a builder that may not listen yet.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	deadline := time.Now().Add(dialTimeout)
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return c, nil
		}
		if time.Now().After(deadline) {
			return nil, &root.Error{Kind: root.Unavailable, Message: "the builder does not answer", Err: err}
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("build: %w", context.Cause(ctx))
		}
	}
}
