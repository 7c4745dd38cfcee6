package roost

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/appconfig"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/wire"
)

// Releases are control's verbs on releases.
type Releases interface {
	Create(ctx context.Context, a auth.Actor, app root.AppName, n control.NewRelease) (*root.Release, error)
	Plan(ctx context.Context, a auth.Actor, app root.AppName, n control.NewRelease) (*control.ReleasePlan, error)
	List(ctx context.Context, a auth.Actor, app root.AppName) ([]root.Release, error)
	Get(ctx context.Context, a auth.Actor, app root.AppName, version int) (*root.Release, error)
	Events(ctx context.Context, a auth.Actor, app root.AppName, version int, after string, follow bool, f func(root.ReleaseEvent) error) error
	Rollback(ctx context.Context, a auth.Actor, app root.AppName, version int, o control.Rollback) (*control.RolledBack, error)
	Cancel(ctx context.Context, a auth.Actor, app root.AppName, version int) error
	Regions() []root.Region
}

// releaseRoutes are the rows of releases.
func (h *handlers) releaseRoutes(base string) []route.Route {
	const one = "/apps/{app}/releases/{version}"
	return []route.Route{
		{Method: http.MethodGet, Pattern: base + "/apps/{app}/releases", Permission: auth.ReleaseRead, Handler: h.listReleases},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/releases", Permission: auth.ReleaseCreate, Handler: h.createRelease},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/releases/plan", Permission: auth.ReleaseCreate, Handler: h.planRelease},
		{Method: http.MethodGet, Pattern: base + one, Permission: auth.ReleaseRead, Handler: h.getRelease},
		{Method: http.MethodGet, Pattern: base + one + "/events", Permission: auth.ReleaseRead, Handler: h.releaseEvents},
		{Method: http.MethodPost, Pattern: base + one + "/rollback", Permission: auth.ReleaseCreate, Handler: h.rollBack},
		{Method: http.MethodPost, Pattern: base + one + "/cancel", Permission: auth.ReleaseCreate, Handler: h.cancelRelease},
	}
}

// version reads the path's; "0" and "current" are the release that serves.
func version(r *http.Request) (root.AppName, int, error) {
	app, err := route.App(r)
	if err != nil {
		return "", 0, err
	}
	s := strings.TrimPrefix(r.PathValue("version"), "v")
	if s == "current" {
		return app, 0, nil
	}
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' || n > 1<<24 {
			return "", 0, root.Errorf(root.Invalid, "release %q is not a version such as v12", route.Clip(r.PathValue("version")))
		}
		n = 10*n + int(c-'0')
	}
	if s == "" {
		return "", 0, root.Errorf(root.Invalid, "release %q is not a version such as v12", route.Clip(r.PathValue("version")))
	}
	return app, n, nil
}

// newRelease reads what is asked for and turns the definition into groups.
func (h *handlers) newRelease(r *http.Request, app root.AppName) (n control.NewRelease, warnings []string, err error) {
	var in client.NewRelease
	if err := route.ReadJSON(r, &in, false); err != nil {
		return n, nil, err
	}
	n = control.NewRelease{Image: in.Image, Definition: in.Definition, Reason: in.Reason, Description: in.Description, RunCommands: in.RunRelease}
	if len(in.Definition) == 0 {
		now, err := h.Releases.Get(r.Context(), route.Actor(r), app, 0)
		if root.CodeOf(err) == root.CodeNoRelease {
			return n, nil, root.Errorf(root.Invalid, "definition is missing: app %s has no release yet whose config could be used", app)
		}
		if err != nil {
			return n, nil, err
		}
		n.Definition = now.Definition
	}
	if warnings, err = define(&n, h.Releases.Regions()); err != nil {
		return n, nil, err
	}
	if in.Image == "" && len(in.Definition) == 0 && in.Reason == "" {
		n.Reason = "deploy"
	}
	return n, warnings, override(&n.Deploy, &in)
}

// define fills in what the definition says; regions are those with hosts, this
// host's first.
func define(n *control.NewRelease, regions []root.Region) (warnings []string, err error) {
	c, err := appconfig.Decode(n.Definition)
	if err != nil {
		return nil, &root.Error{Kind: root.Invalid, Message: "definition: " + err.Error(), Err: err}
	}
	// A file that comes from Fly names a region of Fly's. Apps compare
	// PRIMARY_REGION with FLY_REGION, so it has to be one that there is.
	if c.PrimaryRegion != "" && len(regions) > 0 && !slices.Contains(regions, root.Region(c.PrimaryRegion)) {
		warnings = append(warnings, fmt.Sprintf("primary_region %q: no host is there, %q is used; a host's setting region names its own", c.PrimaryRegion, regions[0]))
		c.PrimaryRegion = string(regions[0])
	}
	if n.Deploy, err = c.Deploy(); err != nil {
		return nil, err
	}
	n.Routes = c.Routes()
	for _, name := range c.Groups() {
		doc, err := c.Machine(name)
		if err != nil {
			return nil, err
		}
		// A config has to name an image; the release fills in its own.
		if doc.Image == "" {
			doc.Image = "release"
		}
		sized := doc.Guest != nil
		source, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		parsed, err := wire.ParseConfig(source)
		if err != nil {
			return nil, &root.Error{Kind: root.KindOf(err), Code: root.CodeOf(err), Message: "process group " + name + ": " + root.MessageOf(err), Err: err}
		}
		for _, w := range parsed.Warnings {
			if w = "process group " + name + ": " + w; !slices.Contains(warnings, w) {
				warnings = append(warnings, w)
			}
		}
		n.Groups = append(n.Groups, root.Group{Name: name, Config: parsed.Config, Source: parsed.Source, Sized: sized, Region: root.Region(c.PrimaryRegion), Checks: machineChecks(c, name)})
	}
	return warnings, nil
}

func machineChecks(c *appconfig.Config, group string) []root.MachineCheck {
	var out []root.MachineCheck
	for _, k := range c.GroupMachineChecks(group) {
		check := root.MachineCheck{Ref: k.Image, Entrypoint: k.Entrypoint, Command: k.Command, Stop: root.Stop{Signal: k.KillSignal}}
		if k.KillTimeout != nil {
			check.Stop.Timeout = time.Duration(*k.KillTimeout)
		}
		out = append(out, check)
	}
	return out
}

// override lets the request beat the definition.
func override(d *root.Deploy, in *client.NewRelease) error {
	if in.Strategy != "" {
		d.Strategy = root.Strategy(in.Strategy)
	}
	if in.MaxUnavailable != nil {
		d.MaxUnavailable = *in.MaxUnavailable
	}
	for _, t := range []struct {
		name, value string
		to          *time.Duration
	}{{"wait_timeout", in.WaitTimeout, &d.WaitTimeout}, {"release_command_timeout", in.ReleaseTimeout, &d.ReleaseTimeout}} {
		if t.value == "" {
			continue
		}
		v, err := time.ParseDuration(t.value)
		if err != nil || v < 0 {
			return root.Errorf(root.Invalid, "%s: %q is not a duration such as \"5m\"", t.name, route.Clip(t.value))
		}
		*t.to = v
	}
	if in.MaxConcurrent != 0 {
		d.MaxConcurrent = in.MaxConcurrent
	}
	if in.SmokeChecks != nil {
		d.Smoke = *in.SmokeChecks
	}
	if in.HA != nil {
		d.Standby = *in.HA
	}
	if in.SkipRelease {
		d.ReleaseCommand, d.SeedCommand = nil, nil
	}
	if in.Webhook != "" {
		d.Webhook = in.Webhook
	}
	d.Detach, d.UpdateOnly, d.OnlyGroups = in.Detach, in.UpdateOnly, in.Groups
	for _, s := range in.Regions {
		region, err := root.ParseRegion(s)
		if err != nil {
			return err
		}
		d.Regions = append(d.Regions, region)
	}
	for _, s := range in.Machines {
		id, err := root.ParseMachineID(s)
		if err != nil {
			return err
		}
		d.OnlyMachines = append(d.OnlyMachines, id)
	}
	return nil
}

func (h *handlers) createRelease(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	n, warnings, err := h.newRelease(r, app)
	if err != nil {
		return err
	}
	made, err := h.Releases.Create(r.Context(), route.Actor(r), app, n)
	if err != nil {
		return err
	}
	out := fromRelease(made, 0)
	out.Warnings = warnings
	return route.WriteJSON(w, http.StatusCreated, out)
}

func (h *handlers) listReleases(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	list, err := h.Releases.List(r.Context(), route.Actor(r), app)
	if err != nil {
		return err
	}
	now, err := h.currentVersion(r, app)
	if err != nil {
		return err
	}
	out := make([]client.Release, len(list))
	for i := range list {
		out[i] = fromRelease(&list[i], now)
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

// currentVersion is the release that serves, 0 none.
func (h *handlers) currentVersion(r *http.Request, app root.AppName) (int, error) {
	now, err := h.Releases.Get(r.Context(), route.Actor(r), app, 0)
	switch {
	case err == nil:
		return now.Version, nil
	case root.CodeOf(err) == root.CodeNoRelease || root.IsKind(err, root.NotFound):
		return 0, nil
	}
	return 0, err
}

func (h *handlers) getRelease(w http.ResponseWriter, r *http.Request) error {
	app, v, err := version(r)
	if err != nil {
		return err
	}
	rel, err := h.Releases.Get(r.Context(), route.Actor(r), app, v)
	if err != nil {
		return err
	}
	now, err := h.currentVersion(r, app)
	if err != nil {
		return err
	}
	out := fromRelease(rel, now)
	out.Definition = rel.Definition
	return route.WriteJSON(w, http.StatusOK, out)
}

func fromRelease(r *root.Release, current int) client.Release {
	p := r.Progress
	out := client.Release{
		ID: string(r.ID), App: string(r.App), Version: r.Version, Status: string(p.Status), Message: p.Message, Current: r.Version == current && current != 0,
		Image: r.Image.Ref(), Strategy: string(r.Deploy.Strategy), Reason: r.Reason, Description: r.Description, Author: r.Author,
		Secrets: r.Secrets, Repeats: r.Repeats, Groups: []string{}, CreatedAt: r.CreatedAt.UTC(), StartedAt: p.StartedAt, FinishedAt: p.FinishedAt,
	}
	for i := range r.Groups {
		out.Groups = append(out.Groups, r.Groups[i].Name)
	}
	return out
}

func (h *handlers) rollBack(w http.ResponseWriter, r *http.Request) error {
	app, v, err := version(r)
	if err != nil {
		return err
	}
	var in client.Rollback
	if err := route.ReadJSON(r, &in, true); err != nil {
		return err
	}
	made, err := h.Releases.Rollback(r.Context(), route.Actor(r), app, v, control.Rollback{
		Description: in.Description, Detach: in.Detach, Strategy: root.Strategy(in.Strategy), CurrentSecrets: in.CurrentSecrets, DryRun: in.DryRun,
	})
	if err != nil {
		return err
	}
	out := fromRelease(made.Release, 0)
	out.Warnings, out.BackTo, out.Why = made.Warnings, made.To, made.Why
	status := http.StatusCreated
	if in.DryRun {
		status = http.StatusOK
	}
	return route.WriteJSON(w, status, out)
}

func (h *handlers) cancelRelease(w http.ResponseWriter, r *http.Request) error {
	app, v, err := version(r)
	if err != nil {
		return err
	}
	if err := h.Releases.Cancel(r.Context(), route.Actor(r), app, v); err != nil {
		return err
	}
	return route.OK(w)
}

// releaseEvents streams events; the last one has the release as it ended.
func (h *handlers) releaseEvents(w http.ResponseWriter, r *http.Request) error {
	app, v, err := version(r)
	if err != nil {
		return err
	}
	follow, err := route.Bool(r.URL.Query(), "follow")
	if err != nil {
		return err
	}
	actor := route.Actor(r)
	rel, err := h.Releases.Get(r.Context(), actor, app, v)
	if err != nil {
		return err
	}
	stream := ipc.NewStream(w)
	//nolint:contextcheck // the function's context is the request's
	err = h.Releases.Events(r.Context(), actor, app, rel.Version, r.URL.Query().Get("after"), follow, func(e root.ReleaseEvent) error {
		var end *client.Release
		if e.End {
			now, err := h.Releases.Get(r.Context(), actor, app, rel.Version)
			if err != nil {
				return err
			}
			current, err := h.currentVersion(r, app)
			if err != nil {
				return err
			}
			out := fromRelease(now, current)
			end = &out
		}
		for _, out := range fromEvent(e, end) {
			if err := stream.Send(out); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && r.Context().Err() == nil {
		_ = stream.Send(client.ReleaseEvent{At: time.Now().UTC(), Error: failure(err)}) // the client may be gone
	}
	return err
}

// fromEvent renders an event: each line of output is one of its own.
func fromEvent(e root.ReleaseEvent, end *client.Release) []client.ReleaseEvent {
	base := client.ReleaseEvent{ID: e.ID, At: e.At, Step: e.Step, Group: e.Group, Machine: string(e.Machine)}
	var out []client.ReleaseEvent
	for i := range e.Lines {
		line := base
		line.Output = &e.Lines[i]
		out = append(out, line)
	}
	if e.Message == "" && e.Waiting == "" && end == nil {
		return out
	}
	base.Message, base.Warning, base.Failed, base.URL, base.Release = e.Message, e.Warning, e.Failed, e.URL, end
	if e.Waiting != "" {
		base.Waiting = &client.Waiting{For: e.Waiting, Until: e.Until, Left: max(0, time.Until(e.Until).Seconds())}
	}
	return append(out, base)
}
