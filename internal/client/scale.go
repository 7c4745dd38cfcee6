package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
)

// GroupSize is what there is of machines of one process group and one size.
type GroupSize struct {
	Group    string         `json:"process_group"`
	Count    int            `json:"count"`
	CPUKind  string         `json:"cpu_kind"`
	CPUs     int            `json:"cpus"`
	MemoryMB int            `json:"memory_mb"`
	Regions  map[string]int `json:"regions"`
}

// ScaleCount asks for numbers of machines.
type ScaleCount struct {
	Groups       []GroupCount `json:"groups"`
	Regions      []string     `json:"regions,omitempty"` // none: those where the app is
	MaxPerRegion *int         `json:"max_per_region,omitempty"`
	Size         string       `json:"size,omitempty"` // of the first machines of a group
	MemoryMB     int          `json:"memory_mb,omitempty"`
	DryRun       bool         `json:"dry_run,omitempty"` // only say what would be done
}

// GroupCount is how many machines a process group is to have.
type GroupCount struct {
	Group    string `json:"group"` // "" is "app"
	Count    int    `json:"count"`
	Relative bool   `json:"relative,omitempty"` // Count is added to what there is
}

// ScaleEvent is one machine that came, went, or changed; the last one may have
// Error instead.
type ScaleEvent struct {
	Group   string   `json:"group,omitempty"`
	Region  string   `json:"region,omitempty"`
	Machine string   `json:"machine,omitempty"`
	Action  string   `json:"action,omitempty"` // "create", "remove", "resize", "restart"
	State   string   `json:"state,omitempty"`  // of a machine that was resized
	Done    bool     `json:"done,omitempty"`   // the last one: all went well
	Error   *Failure `json:"error,omitempty"`
}

// ScaleSize asks for another size of a group's machines; what is zero stays.
type ScaleSize struct {
	Group    string `json:"group,omitempty"` // "" is the only one that the app has
	Size     string `json:"size,omitempty"`  // "shared-cpu-2x"
	MemoryMB int    `json:"memory_mb,omitempty"`
}

// Scale shows how many machines the app's release has, and how large they are.
func (c *Client) Scale(ctx context.Context, app string) ([]GroupSize, error) {
	return get[[]GroupSize](ctx, c, appPath(app)+"/scale")
}

// SetCount makes process groups larger or smaller; f is told of each machine.
func (c *Client) SetCount(ctx context.Context, app string, in ScaleCount, f func(ScaleEvent)) error {
	return c.scaling(ctx, appPath(app)+"/scale/count", in, f)
}

// SetSize changes the size of a group's machines; f is told of each.
func (c *Client) SetSize(ctx context.Context, app string, in ScaleSize, f func(ScaleEvent)) error {
	return c.scaling(ctx, appPath(app)+"/scale/size", in, f)
}

// RestartApp restarts the machines that run, one after the other; with force
// without waiting for what they do.
func (c *Client) RestartApp(ctx context.Context, app string, force bool, f func(ScaleEvent)) error {
	return c.scaling(ctx, appPath(app)+"/restart", map[string]bool{"force": force}, f)
}

func (c *Client) scaling(ctx context.Context, path string, in any, f func(ScaleEvent)) error {
	body, err := jsonBody(in)
	if err != nil {
		return err
	}
	req, err := c.NewRequest(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var e ScaleEvent
		if err := dec.Decode(&e); err != nil {
			return broken(ctx, "the platform ended the stream before the result", err)
		}
		switch {
		case e.Error != nil:
			return e.Error.err(resp)
		case e.Done:
			return nil
		case f != nil:
			f(e)
		}
	}
}

func jsonBody(v any) (io.Reader, error) {
	data, err := json.Marshal(v)
	return bytes.NewReader(data), err
}
