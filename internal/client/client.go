// Package client calls Roost's own routes, below /roost/v1: organisations,
// tokens, images, builds, logs, hosts, interactive exec. For apps and machines
// its embedded machines.Client serves. It is for the command line; the
// documents in types.go are also what the server renders.
//
// A Client is safe for concurrent use and starts no goroutine that outlives a
// call.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/roost-run/roost/machines"
)

// Client calls the API of one Roost.
type Client struct{ *machines.Client }

// New returns a client; see machines.Options for how the API is found. It
// connects when used.
func New(o machines.Options) *Client {
	if o.UserAgent == "" {
		o.UserAgent = "roost-cli"
	}
	return &Client{machines.New(o)}
}

const prefix = "/roost/v1"

// AppOfMachine finds the app of a machine among all that the caller sees, ""
// if it is in none.
func (c *Client) AppOfMachine(ctx context.Context, machine string) (string, error) {
	orgs, err := c.Orgs(ctx)
	if err != nil {
		return "", err
	}
	for _, org := range orgs {
		var found struct {
			Machines []struct {
				ID  string `json:"id"`
				App string `json:"app_name"`
			} `json:"machines"`
		}
		if err := c.Do(ctx, http.MethodGet, "/v1/orgs/"+url.PathEscape(org.Slug)+"/machines", nil, &found); err != nil {
			return "", err
		}
		for _, m := range found.Machines {
			if m.ID == machine {
				return m.App, nil
			}
		}
	}
	return "", nil
}

// Orgs lists the organisations the caller sees.
func (c *Client) Orgs(ctx context.Context) ([]Org, error) {
	return get[[]Org](ctx, c, prefix+"/orgs")
}

// CreateOrg makes an organisation.
func (c *Client) CreateOrg(ctx context.Context, slug, name string) (Org, error) {
	return call[Org](ctx, c, http.MethodPost, prefix+"/orgs", map[string]string{"slug": slug, "name": name})
}

// Tokens lists an organisation's tokens; "" is the caller's.
func (c *Client) Tokens(ctx context.Context, org string) ([]Token, error) {
	return get[[]Token](ctx, c, prefix+"/tokens?"+url.Values{"org": {org}}.Encode())
}

// CreateToken issues a token.
func (c *Client) CreateToken(ctx context.Context, in CreateToken) (CreatedToken, error) {
	return call[CreatedToken](ctx, c, http.MethodPost, prefix+"/tokens", in)
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, prefix+"/tokens/"+url.PathEscape(id), nil, nil)
}

// Images lists the images on the host.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	return get[[]Image](ctx, c, prefix+"/images")
}

// RemoveImage forgets an image; status 412 while a machine needs it.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.Do(ctx, http.MethodDelete, prefix+"/images?"+url.Values{"ref": {ref}}.Encode(), nil, nil)
}

// PullImage fetches an image from its registry; an empty login is that of the
// host's configuration; progress may be nil.
func (c *Client) PullImage(ctx context.Context, ref string, login RegistryLogin, progress func(Progress)) (Image, error) {
	body, err := json.Marshal(login)
	if err != nil {
		return Image{}, fmt.Errorf("pull image: %w", err)
	}
	req, err := c.post(ctx, prefix+"/images/pull?"+url.Values{"ref": {ref}}.Encode(), body)
	if err != nil {
		return Image{}, err
	}
	return c.progress(req, progress)
}

// LoadImage sends an OCI or docker archive; as, if not "", names the image.
func (c *Client) LoadImage(ctx context.Context, archive io.Reader, as string) ([]Image, error) {
	req, err := c.NewRequest(ctx, http.MethodPost, prefix+"/images/load?"+url.Values{"as": {as}}.Encode(), archive)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := c.Send(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var images []Image
	if err := json.NewDecoder(resp.Body).Decode(&images); err != nil {
		return nil, fmt.Errorf("load image: reply: %w", err)
	}
	return images, nil
}

func (c *Client) post(ctx context.Context, path string, body []byte) (*http.Request, error) {
	req, err := c.NewRequest(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

func (c *Client) progress(req *http.Request, f func(Progress)) (Image, error) {
	resp, err := c.Send(req)
	if err != nil {
		return Image{}, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var p Progress
		if err := dec.Decode(&p); err != nil {
			return Image{}, broken(req.Context(), "the platform ended the stream before the result", err)
		}
		switch {
		case p.Error != nil:
			return Image{}, p.Error.err(resp)
		case p.Image != nil:
			return *p.Image, nil
		case f != nil:
			f(p)
		}
	}
}

// broken explains a stream that ended before its time.
func broken(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return errors.New(what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (f *Failure) err(resp *http.Response) error {
	return &machines.Error{Status: f.Status, Code: f.Code, Message: f.Message, RequestID: resp.Header.Get("Fly-Request-Id")}
}

// LogOptions narrow a log.
type LogOptions struct {
	Machine string    // "": all of the app
	Since   time.Time // zero: from the beginning
	Lines   int       // the last so many; 0 all
	// Providers ("app", "runner", "proxy", "health", "build", "release",
	// "deploy"), Regions and Group (process group) each narrow it, unless empty.
	Providers []string
	Regions   []string
	Group     string
	Follow    bool // wait for new ones until the context ends
}

// Logs calls f with each line of an app's log, in order.
func (c *Client) Logs(ctx context.Context, app string, o LogOptions, f func(LogLine) error) error {
	q := url.Values{"follow": {strconv.FormatBool(o.Follow)}}
	if o.Machine != "" {
		q.Set("machine", o.Machine)
	}
	if !o.Since.IsZero() {
		q.Set("since", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if o.Lines > 0 {
		q.Set("lines", strconv.Itoa(o.Lines))
	}
	if o.Group != "" {
		q.Set("group", o.Group)
	}
	if len(o.Providers) > 0 {
		q.Set("provider", strings.Join(o.Providers, ","))
	}
	if len(o.Regions) > 0 {
		q.Set("region", strings.Join(o.Regions, ","))
	}
	req, err := c.NewRequest(ctx, http.MethodGet, prefix+"/apps/"+url.PathEscape(app)+"/logs?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := c.Send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var line LogLine
		if err := dec.Decode(&line); err != nil {
			if errors.Is(err, io.EOF) && !o.Follow {
				return nil
			}
			return broken(ctx, "the platform ended the stream of log lines", err)
		}
		if line.Error != nil {
			return line.Error.err(resp)
		}
		if err := f(line); err != nil {
			return err
		}
	}
}

// Hosts lists the hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	return get[[]Host](ctx, c, prefix+"/hosts")
}

// Inspect says what runs and listens inside a machine and what it uses.
func (c *Client) Inspect(ctx context.Context, app, machine string) (Inspection, error) {
	return get[Inspection](ctx, c, machinePath(app, machine)+"/inspect")
}

func machinePath(app, machine string) string {
	return prefix + "/apps/" + url.PathEscape(app) + "/machines/" + url.PathEscape(machine)
}

// ExecIO are the streams of an interactive exec; any may be nil.
type ExecIO struct {
	Stdin          io.Reader // a read that never returns outlives the call
	Stdout, Stderr io.Writer
	Resize         <-chan Size // with TTY: new sizes of the terminal
}

// ExecStream runs a command inside a machine on the caller's streams and
// returns how it ended. With TTY everything arrives on Stdout.
func (c *Client) ExecStream(ctx context.Context, app, machine string, start ExecStart, streams ExecIO) (ExecEnd, error) {
	req, err := c.NewRequest(ctx, http.MethodGet, machinePath(app, machine)+"/exec", nil)
	if err != nil {
		return ExecEnd{}, err
	}
	return c.interactive(ctx, req, start, streams)
}

// interactive upgrades the connection of req and runs a command over it.
func (c *Client) interactive(ctx context.Context, req *http.Request, start ExecStart, streams ExecIO) (ExecEnd, error) {
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", ExecProtocol)
	resp, err := c.Send(req)
	if err != nil {
		return ExecEnd{}, err
	}
	defer resp.Body.Close()
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols {
		return ExecEnd{}, fmt.Errorf("exec: the platform answered %s instead of switching protocols", resp.Status)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the reads below
	defer stop()
	out := NewFrameWriter(conn)
	// An end that cannot be written to may have said why: reading tells.
	_ = out.JSON(FrameStart, start)
	done := make(chan struct{}) // closed when the command has ended
	defer close(done)
	if streams.Stdin != nil {
		// Not waited for: a read of a terminal cannot be interrupted.
		go func() {
			_, _ = io.Copy(out.Stream(FrameStdin), streams.Stdin)
			_ = out.Frame(FrameStdin, nil)
		}()
	} else {
		_ = out.Frame(FrameStdin, nil)
	}
	if streams.Resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-streams.Resize:
					if !ok || out.JSON(FrameResize, size) != nil {
						return
					}
				case <-done:
					return
				}
			}
		}()
	}
	return receive(ctx, bufio.NewReader(conn), resp, streams)
}

func receive(ctx context.Context, r io.Reader, resp *http.Response, streams ExecIO) (ExecEnd, error) {
	for {
		kind, data, err := ReadFrame(r)
		if err != nil {
			return ExecEnd{}, broken(ctx, "exec: the connection broke", err)
		}
		var to io.Writer
		switch kind {
		case FrameStdout:
			to = streams.Stdout
		case FrameStderr:
			to = streams.Stderr
		case FrameEnd:
			var end ExecEnd
			if err := json.Unmarshal(data, &end); err != nil {
				return ExecEnd{}, fmt.Errorf("exec: %w", err)
			}
			if end.Error != nil {
				return end, end.Error.err(resp)
			}
			return end, nil
		}
		if to != nil {
			if _, err := to.Write(data); err != nil {
				return ExecEnd{}, err
			}
		}
	}
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return call[T](ctx, c, http.MethodGet, path, nil)
}

func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	if err := c.Do(ctx, method, path, in, &out); err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}
