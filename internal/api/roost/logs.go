package roost

import (
	"net/http"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/ipc"
)

func (h *handlers) logs(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	var f control.LogFilter
	if id := q.Get("machine"); id != "" {
		if f.Machine, err = root.ParseMachineID(id); err != nil {
			return err
		}
	}
	if since := q.Get("since"); since != "" {
		if f.Since, err = time.Parse(time.RFC3339, since); err != nil {
			return root.Errorf(root.Invalid, "query since: %q is not a time such as 2026-01-02T03:04:05Z", route.Clip(since))
		}
	}
	if f.Lines, err = route.Int(q, "lines", 0, 1<<30, 0); err != nil {
		return err
	}
	f.Group = q.Get("group")
	for _, list := range q["provider"] {
		f.Providers = append(f.Providers, strings.Split(list, ",")...)
	}
	for _, list := range q["region"] {
		for name := range strings.SplitSeq(list, ",") {
			region, err := root.ParseRegion(name)
			if err != nil {
				return err
			}
			f.Regions = append(f.Regions, region)
		}
	}
	follow, err := route.Bool(q, "follow")
	if err != nil {
		return err
	}
	var stream *ipc.Stream
	begin := func() {
		if stream == nil {
			stream = ipc.NewStream(w)
		}
	}
	err = h.Logs.Tail(r.Context(), route.Actor(r), app, f, follow, func(l control.LogLine) error {
		begin()
		return stream.Send(client.LogLine{
			At: l.At.UTC(), App: string(l.App), Machine: string(l.Machine), Instance: string(l.Instance),
			Region: string(l.Region), Provider: l.Provider, Stream: l.Stream, Message: l.Message,
		})
	})
	if err != nil && stream != nil && r.Context().Err() == nil {
		_ = stream.Send(client.LogLine{At: time.Now().UTC(), Error: failure(err)}) // the client may be gone
	}
	if err == nil && stream == nil {
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
	}
	return err
}
