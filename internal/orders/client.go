package orders

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
)

// Paths of the supervisor's socket. {instance} is a root.InstanceID.
//
//	GET  /v1/host                              HostStatus
//	GET  /v1/instances                         []Instance
//	GET  /v1/instances/{instance}              Instance
//	PUT  /v1/instances/{instance}/next         Boot       -> Done
//	POST /v1/instances/{instance}/start        Start      -> Started
//	POST /v1/instances/{instance}/stop         Stop       -> Done
//	POST /v1/instances/{instance}/suspend      Suspend    -> Done
//	POST /v1/instances/{instance}/signal       Signal     -> Done
//	POST /v1/instances/{instance}/lease        Lease      -> Done
//	POST /v1/instances/{instance}/reclaim                 -> Done  (now, instead of after reclaim_after)
//	DELETE /v1/instances/{instance}                       -> Done  (kill, delete, forget; idempotent)
//	GET  /v1/instances/{instance}/stats        Stats
//	GET  /v1/instances/{instance}/inspect      Inspection
//	GET  /v1/instances/{instance}/exec         upgrade: Exec + files -> ExecResult
//	GET  /v1/instances/{instance}/socket       upgrade: -> Listener + its descriptor
//	GET  /v1/listeners                         upgrade: -> []Listener + descriptors
//	GET  /v1/journal?boot=B&seq=S              stream of Entry after that stamp, then live
//	POST /v1/builder                           start the builder unless it runs; answers when its socket is there

// Client is the supervisor as its children see it. It is safe for concurrent use.
type Client struct{ ipc *ipc.Client }

// NewClient returns a client of the supervisor's socket.
func NewClient(socket string) *Client { return &Client{ipc: ipc.NewClient(socket)} }

// Close drops idle connections.
func (c *Client) Close() { c.ipc.Close() }

// Host asks for the host's account.
func (c *Client) Host(ctx context.Context) (HostStatus, error) {
	var out HostStatus
	return out, c.ipc.Call(ctx, http.MethodGet, "/v1/host", nil, &out)
}

// Instances lists all instances.
func (c *Client) Instances(ctx context.Context) ([]Instance, error) {
	var out []Instance
	return out, c.ipc.Call(ctx, http.MethodGet, "/v1/instances", nil, &out)
}

// Instance asks for one instance; NotFound if there is none.
func (c *Client) Instance(ctx context.Context, id root.InstanceID) (Instance, error) {
	var out Instance
	return out, c.ipc.Call(ctx, http.MethodGet, path(id, ""), nil, &out)
}

// Prepare hands over the next boot of an instance, replacing one not used yet.
func (c *Client) Prepare(ctx context.Context, b Boot) (Done, error) {
	var out Done
	return out, c.ipc.Call(ctx, http.MethodPut, path(b.Instance, "/next"), b, &out)
}

// Start orders a start or a thaw.
func (c *Client) Start(ctx context.Context, id root.InstanceID, o Start) (Started, error) {
	var out Started
	return out, c.ipc.Call(ctx, http.MethodPost, path(id, "/start"), o, &out)
}

// Stop orders a stop.
func (c *Client) Stop(ctx context.Context, id root.InstanceID, o Stop) (Done, error) {
	return c.order(ctx, id, "/stop", o)
}

// Suspend orders a freeze.
func (c *Client) Suspend(ctx context.Context, id root.InstanceID, o Suspend) (Done, error) {
	return c.order(ctx, id, "/suspend", o)
}

// Signal sends a signal to the main process.
func (c *Client) Signal(ctx context.Context, id root.InstanceID, o Signal) (Done, error) {
	return c.order(ctx, id, "/signal", o)
}

// Lease tells how long wakes have to wait.
func (c *Client) Lease(ctx context.Context, id root.InstanceID, o Lease) (Done, error) {
	return c.order(ctx, id, "/lease", o)
}

// Reclaim gives a suspended instance's memory back now.
func (c *Client) Reclaim(ctx context.Context, id root.InstanceID) (Done, error) {
	return c.order(ctx, id, "/reclaim", nil)
}

// Remove kills and forgets an instance; one that is gone already is success.
func (c *Client) Remove(ctx context.Context, id root.InstanceID) error {
	return c.ipc.Call(ctx, http.MethodDelete, path(id, ""), nil, nil)
}

// Stats asks for the kernel's accounts.
func (c *Client) Stats(ctx context.Context, id root.InstanceID) (Stats, error) {
	var out Stats
	return out, c.ipc.Call(ctx, http.MethodGet, path(id, "/stats"), nil, &out)
}

// Inspect asks what runs and listens inside.
func (c *Client) Inspect(ctx context.Context, id root.InstanceID) (Inspection, error) {
	var out Inspection
	return out, c.ipc.Call(ctx, http.MethodGet, path(id, "/inspect"), nil, &out)
}

// Journal calls f with every entry after the stamp, then with new ones as they
// come, until ctx ends or f fails. An entry with CaughtUp stands between.
func (c *Client) Journal(ctx context.Context, after root.Stamp, f func(Entry) error) error {
	return ipc.Follow(ctx, c.ipc, fmt.Sprintf("/v1/journal?boot=%d&seq=%d", after.Boot, after.Seq), f)
}

// Exec runs a command; it returns when the command has ended. The files stay
// the caller's. When ctx ends the command is killed.
func (c *Client) Exec(ctx context.Context, id root.InstanceID, o Exec, files ...*os.File) (_ ExecResult, err error) {
	conn, err := c.ipc.Connect(ctx, path(id, "/exec"))
	if err != nil {
		return ExecResult{}, err
	}
	defer func() { err = errors.Join(err, ignoreClosed(conn.Close())) }()
	if err := conn.Send(o, files...); err != nil {
		return ExecResult{}, err
	}
	var res ExecResult
	if _, err := conn.Receive(&res); err != nil {
		if ctx.Err() != nil {
			return ExecResult{}, fmt.Errorf("exec: %w", context.Cause(ctx))
		}
		return ExecResult{}, err
	}
	if res.Error != "" {
		return res, root.Errorf(root.ParseKind(res.Kind), "%s", res.Error)
	}
	return res, nil
}

// Listeners asks for every public listener; the caller owns the files, which
// are in the order of the names.
func (c *Client) Listeners(ctx context.Context) (names []Listener, files []*os.File, err error) {
	err = c.receive(ctx, "/v1/listeners", &names, &files)
	return names, files, err
}

// Socket asks for the listener of one machine's /.fly/api.
func (c *Client) Socket(ctx context.Context, id root.InstanceID) (*os.File, error) {
	var name Listener
	var files []*os.File
	if err := c.receive(ctx, path(id, "/socket"), &name, &files); err != nil {
		return nil, err
	}
	if len(files) != 1 {
		return nil, fmt.Errorf("socket of %s: got %d descriptors, want 1", id, len(files))
	}
	return files[0], nil
}

// StartBuilder makes sure that the builder runs.
func (c *Client) StartBuilder(ctx context.Context) error {
	return c.ipc.Call(ctx, http.MethodPost, "/v1/builder", nil, nil)
}

func (c *Client) receive(ctx context.Context, path string, v any, files *[]*os.File) (err error) {
	conn, err := c.ipc.Connect(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreClosed(conn.Close())) }()
	*files, err = conn.Receive(v)
	return err
}

func (c *Client) order(ctx context.Context, id root.InstanceID, verb string, in any) (Done, error) {
	var out Done
	return out, c.ipc.Call(ctx, http.MethodPost, path(id, verb), in, &out)
}

func path(id root.InstanceID, rest string) string { return "/v1/instances/" + string(id) + rest }

// ignoreClosed: the connection is closed by the context as well.
func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
