package orders

import (
	"context"
	"net/http"
)

// Shutdown ends the server process, as POST /v1/shutdown. Without Machines it
// is what SIGTERM does: edge, control and builder stop, machines run on and
// the next server adopts them. With Machines they are stopped first, by their
// own signal and timeout, and everything Roost made on the host is undone:
// networks, control groups, mounts, swap.
type Shutdown struct{ Machines bool }

// Shutdown orders the end of the server process; it returns when the machines,
// if asked for, have stopped and the process is about to exit.
func (c *Client) Shutdown(ctx context.Context, o Shutdown) error {
	return c.ipc.Call(ctx, http.MethodPost, "/v1/shutdown", o, nil)
}
