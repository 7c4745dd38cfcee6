package roost

import (
	"net/http"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
)

func (h *handlers) inspect(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	in, err := h.Machines.Inspect(r.Context(), route.Actor(r), app, id)
	// A machine that is frozen cannot be looked into, but what it uses can.
	if err != nil && !root.IsKind(err, root.Precondition) {
		return err
	}
	out := client.Inspection{Processes: []client.Process{}, Listens: []client.Listen{}}
	for _, p := range in.Processes {
		out.Processes = append(out.Processes, client.Process{PID: p.PID, Command: p.Command, CPU: p.CPU, RSS: int64(p.RSS), StartedAt: p.StartedAt.UTC()})
	}
	for _, l := range in.Listens {
		out.Listens = append(out.Listens, client.Listen{Proto: l.Proto, Address: l.Address})
	}
	stats, statsErr := h.Machines.Stats(r.Context(), route.Actor(r), app, id)
	switch {
	case statsErr == nil:
		out.Usage = &client.Usage{
			Memory: int64(stats.Memory), Anon: int64(stats.Anon), Swap: int64(stats.Swap),
			CPU: stats.CPU, OOMKills: stats.OOMKills, Processes: stats.Processes,
		}
	case err != nil: // neither: say why
		return err
	}
	return route.WriteJSON(w, http.StatusOK, out)
}
