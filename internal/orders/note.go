package orders

import (
	"context"

	root "github.com/roost-run/roost"
)

// Note is a line of the platform for an instance's log, as POST
// /v1/instances/{instance}/note: what the agent decided, such as not to
// restart it.
type Note struct{ Line string }

// Note writes a line to the log of an instance's machine.
func (c *Client) Note(ctx context.Context, id root.InstanceID, line string) error {
	_, err := c.order(ctx, id, "/note", Note{Line: line})
	return err
}

// Reasons in the journal of ends that nobody asked for: what ran is started
// again.
const (
	ReasonHostRestarted = "the host was restarted" // of EntryExited
	ReasonHostShutdown  = "host shutdown"          // of EntryStopping, see Shutdown
)
