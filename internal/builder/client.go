package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	root "github.com/roost-run/roost"
)

// Request is one build.
type Request struct {
	App  root.AppName
	Kind string            // KindGo
	Args map[string]string // see the kind
}

// KindGo builds a Go program without Dockerfile. Its one argument is ArgPackage.
const (
	KindGo     = "go"
	ArgPackage = "package" // directory of the main package inside the context; default "."
)

// dialTimeout is how long Build waits for a builder that is just starting.
const dialTimeout = 10 * time.Second

const (
	queryApp    = "app"
	queryKind   = "kind"
	queryPrefix = "arg." // of the arguments
)

func (r Request) query() url.Values {
	q := url.Values{queryApp: {string(r.App)}, queryKind: {r.Kind}}
	for k, v := range r.Args {
		q.Set(queryPrefix+k, v)
	}
	return q
}

func parseRequest(q url.Values) (Request, error) {
	app, err := root.ParseAppName(q.Get(queryApp))
	if err != nil {
		return Request{}, err
	}
	r := Request{App: app, Kind: q.Get(queryKind), Args: map[string]string{}}
	if r.Kind != KindGo {
		return Request{}, root.Errorf(root.Invalid, "%q is not a kind of build: only %q is", clip(r.Kind), KindGo)
	}
	for k := range q {
		if k != queryApp && k != queryKind && k != queryPrefix+ArgPackage {
			return Request{}, root.Errorf(root.Invalid, "a Go build has no argument %q", clip(k))
		}
	}
	r.Args[ArgPackage] = q.Get(queryPrefix + ArgPackage)
	return r, nil
}

// Build has the builder behind the socket build the context, a tar archive
// (plain or gzip), and returns the image, stored on this host under
// "registry.<domain>/<app>:deployment-<ulid>". Log, if set, is called with each
// line of output, from this goroutine. When ctx ends the build is killed.
// Kinds: Invalid (what is wrong with the source, with the compiler's words),
// TooLarge, Precondition (no toolchain), Exhausted (queue, disk), Unavailable.
func Build(ctx context.Context, socket string, r Request, tar io.Reader, log func(line string)) (root.Image, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return root.Image{}, err
	}
	used := false
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, errors.New("the connection is used up") // a context cannot be sent twice
			}
			used = true
			return conn, nil
		},
	}
	defer conn.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://builder/v1/build?"+r.query().Encode(), io.NopCloser(tar))
	if err != nil {
		return root.Image{}, fmt.Errorf("build: %w", err)
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return root.Image{}, gone(ctx, err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	if resp.StatusCode != http.StatusOK {
		var e wireError
		if err := dec.Decode(&e); err != nil {
			return root.Image{}, fmt.Errorf("build: the builder answered %s: %w", resp.Status, err)
		}
		return root.Image{}, e.err()
	}
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
		case ev.Log != nil && log != nil:
			log(*ev.Log)
		}
	}
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
