package roost

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/appconfig"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/wire"
)

// Consoles makes temporary machines.
type Consoles interface {
	Open(ctx context.Context, a auth.Actor, app root.AppName, o control.Console) (m *root.Machine, release *root.Release, end func() error, err error)
}

// console runs a command in a machine that is made for it and goes with the
// connection.
func (h *handlers) console(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	o, err := consoleOptions(r.URL.Query())
	if err != nil {
		return err
	}
	return h.interactive(w, r, func(ctx context.Context, s *execSession) (end client.ExecEnd, err error) {
		m, release, remove, err := h.Consoles.Open(ctx, route.Actor(r), app, o)
		if err != nil {
			return client.ExecEnd{}, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		if len(s.start.Args) == 0 {
			if s.start.Args, err = consoleCommand(release); err != nil {
				return client.ExecEnd{}, err
			}
		}
		return h.run(ctx, r, app, m.ID, s)
	})
}

func consoleOptions(q url.Values) (control.Console, error) {
	o := control.Console{Image: q.Get("image"), Region: q.Get("region")}
	if size := q.Get("size"); size != "" {
		guest, err := wire.Preset(size)
		if err != nil {
			return o, err
		}
		o.Guest = &guest
	}
	memory, err := route.Int(q, "memory_mb", 1, 1<<30, 0)
	o.Memory = root.Bytes(memory) * root.MiB
	return o, err
}

// consoleCommand is the app's console_command, else a shell.
func consoleCommand(r *root.Release) ([]string, error) {
	var definition struct {
		ConsoleCommand string `json:"console_command"`
	}
	if r == nil || json.Unmarshal(r.Definition, &definition) != nil || definition.ConsoleCommand == "" {
		return client.Shell(), nil
	}
	args, err := appconfig.Words(definition.ConsoleCommand)
	if err != nil {
		return nil, root.Errorf(root.Invalid, "console_command of release v%d: %v", r.Version, err)
	}
	return args, nil
}
