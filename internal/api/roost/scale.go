package roost

import (
	"context"
	"net/http"
	"sync"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/wire"
)

// Scale are control's verbs on the number and the size of an app's machines.
type Scale interface {
	Show(ctx context.Context, a auth.Actor, app root.AppName) ([]control.GroupSize, error)
	Plan(ctx context.Context, a auth.Actor, app root.AppName, c control.ScaleCount) ([]control.ScaleStep, error)
	Count(ctx context.Context, a auth.Actor, app root.AppName, c control.ScaleCount, done func(control.ScaleStep)) error
	Resize(ctx context.Context, a auth.Actor, app root.AppName, c control.Resize, done func(*root.Machine)) error
	Restart(ctx context.Context, a auth.Actor, app root.AppName, force bool, done func(*root.Machine)) error
}

func (h *handlers) showScale(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	sizes, err := h.Scale.Show(r.Context(), route.Actor(r), app)
	if err != nil {
		return err
	}
	out := make([]client.GroupSize, 0, len(sizes))
	for _, s := range sizes {
		g := client.GroupSize{
			Group: s.Group, Count: s.Count, CPUKind: s.Guest.CPUKind, CPUs: s.Guest.CPUs, MemoryMB: s.Guest.Memory.MiB(), Regions: map[string]int{},
		}
		for region, n := range s.Regions {
			g.Regions[string(region)] = n
		}
		out = append(out, g)
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

func (h *handlers) scaleCount(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in client.ScaleCount
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	c := control.ScaleCount{Bound: control.Unbounded}
	if in.MaxPerRegion != nil {
		if *in.MaxPerRegion < 0 {
			return root.Errorf(root.Invalid, "max_per_region: %d must not be negative", *in.MaxPerRegion)
		}
		c.Bound = *in.MaxPerRegion
	}
	if len(in.Groups) == 0 {
		return root.Errorf(root.Invalid, "groups: say how many machines which process group is to have")
	}
	for _, g := range in.Groups {
		if g.Relative && g.Count == 0 {
			return root.Errorf(root.Invalid, "groups: +0 and -0 change nothing")
		}
		c.Groups = append(c.Groups, control.GroupCount{Group: g.Group, Count: g.Count, Relative: g.Relative})
	}
	for _, name := range in.Regions {
		region, err := root.ParseRegion(name)
		if err != nil {
			return err
		}
		c.Regions = append(c.Regions, region)
	}
	if in.Size != "" || in.MemoryMB != 0 {
		guest := root.DefaultGuest()
		if in.Size != "" {
			if guest, err = wire.Preset(in.Size); err != nil {
				return err
			}
		}
		if in.MemoryMB != 0 {
			guest.Memory = root.Bytes(in.MemoryMB) * root.MiB
		}
		c.Guest = &guest
	}
	s := &scaleStream{w: w}
	step := func(step control.ScaleStep) {
		action := "create"
		if step.Remove {
			action = "remove"
		}
		s.send(client.ScaleEvent{Group: step.Group, Region: string(step.Region), Machine: string(step.Machine), Action: action})
	}
	if in.DryRun {
		steps, err := h.Scale.Plan(r.Context(), route.Actor(r), app, c)
		for _, x := range steps {
			step(x)
		}
		return s.finish(err)
	}
	return s.finish(h.Scale.Count(r.Context(), route.Actor(r), app, c, step))
}

func (h *handlers) scaleSize(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in client.ScaleSize
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	c := control.Resize{Group: in.Group, Memory: root.Bytes(in.MemoryMB) * root.MiB}
	if in.Size != "" {
		guest, err := wire.Preset(in.Size)
		if err != nil {
			return err
		}
		c.Guest = &guest
	}
	s := &scaleStream{w: w}
	return s.finish(h.Scale.Resize(r.Context(), route.Actor(r), app, c, func(m *root.Machine) { s.machine("resize", m) }))
}

func (h *handlers) restartApp(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in struct {
		Force bool `json:"force"`
	}
	if err := route.ReadJSON(r, &in, true); err != nil {
		return err
	}
	s := &scaleStream{w: w}
	return s.finish(h.Scale.Restart(r.Context(), route.Actor(r), app, in.Force, func(m *root.Machine) { s.machine("restart", m) }))
}

// scaleStream tells of machines one by one. Until the first, an error is an
// ordinary answer.
type scaleStream struct {
	w      http.ResponseWriter
	mu     sync.Mutex // guards stream
	stream *ipc.Stream
}

func (s *scaleStream) send(e client.ScaleEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream == nil {
		s.stream = ipc.NewStream(s.w)
	}
	_ = s.stream.Send(e) // the client may be gone: what it asked for is done all the same
}

func (s *scaleStream) machine(action string, m *root.Machine) {
	s.send(client.ScaleEvent{Group: m.Group(), Region: string(m.Region), Machine: string(m.ID), Action: action, State: string(m.Status.State)})
}

func (s *scaleStream) finish(err error) error {
	switch {
	case err == nil:
		s.send(client.ScaleEvent{Done: true})
	case s.stream != nil:
		s.send(client.ScaleEvent{Error: failure(err)})
	}
	return err
}
