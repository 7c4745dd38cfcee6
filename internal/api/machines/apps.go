package machines

import (
	"cmp"
	"hash/crc32"
	"net/http"

	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/control"
	public "github.com/roost-run/roost/machines"
)

func (h *handlers) listApps(w http.ResponseWriter, r *http.Request) error {
	apps, err := h.Apps.List(r.Context(), route.Actor(r), r.URL.Query().Get("org_slug"))
	if err != nil {
		return err
	}
	list := make([]public.App, len(apps))
	for i, a := range apps {
		list[i] = fromApp(a)
	}
	return route.WriteJSON(w, http.StatusOK, map[string]any{"total_apps": len(list), "apps": list})
}

func (h *handlers) createApp(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		public.CreateAppRequest
		AppName string `json:"app_name"` // the older spelling of name
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	app, err := h.Apps.Create(r.Context(), route.Actor(r), control.CreateApp{
		Name: cmp.Or(in.Name, in.AppName), Org: in.OrgSlug, Network: in.Network, IdempotencyKey: in.IdempotencyKey,
	})
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, fromApp(app))
}

func (h *handlers) getApp(w http.ResponseWriter, r *http.Request) error {
	name, err := route.App(r)
	if err != nil {
		return err
	}
	app, err := h.Apps.Get(r.Context(), route.Actor(r), name)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, fromApp(app))
}

func (h *handlers) deleteApp(w http.ResponseWriter, r *http.Request) error {
	name, err := route.App(r)
	if err != nil {
		return err
	}
	force, err := route.Bool(r.URL.Query(), "force")
	if err != nil {
		return err
	}
	if err := h.Apps.Delete(r.Context(), route.Actor(r), name, force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func fromApp(a control.AppStatus) public.App {
	return public.App{
		ID:                a.App.ID,
		InternalNumericID: numericID(a.App.ID),
		Name:              string(a.App.Name),
		Organization:      public.Organization{Name: a.Org.Name, Slug: string(a.Org.Slug), InternalNumericID: numericID(string(a.Org.Slug))},
		Status:            a.Status,
		MachineCount:      a.MachineCount,
		Network:           string(a.App.Network),
		CreatedAt:         a.App.CreatedAt.UnixMilli(),
	}
}

// numericID makes the number that clients expect beside an id of ours; no
// call takes it.
func numericID(id string) int32 { return int32(crc32.ChecksumIEEE([]byte(id)) >> 1) }
