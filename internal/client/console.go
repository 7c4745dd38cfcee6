package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Shell is the command of a session that names none: bash where the image has
// it, else sh.
func Shell() []string {
	return []string{"/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash; fi; exec sh"}
}

// ConsoleOptions say what a console is made of; what is zero is the app's.
type ConsoleOptions struct {
	Image    string
	Region   string
	Size     string // "shared-cpu-2x"
	MemoryMB int
}

// Console runs a command in a temporary machine of the app, on the caller's
// streams: without arguments the app's console command, else a shell. The
// machine is gone when it returns, or when the connection is lost.
func (c *Client) Console(ctx context.Context, app string, o ConsoleOptions, start ExecStart, streams ExecIO) (ExecEnd, error) {
	q := url.Values{}
	for name, value := range map[string]string{"image": o.Image, "region": o.Region, "size": o.Size} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if o.MemoryMB != 0 {
		q.Set("memory_mb", strconv.Itoa(o.MemoryMB))
	}
	req, err := c.NewRequest(ctx, http.MethodGet, appPath(app)+"/console?"+q.Encode(), nil)
	if err != nil {
		return ExecEnd{}, err
	}
	return c.interactive(ctx, req, start, streams)
}
