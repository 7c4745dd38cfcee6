package machines

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/wire"
	public "github.com/roost-run/roost/machines"
)

func (h *handlers) list(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	f, err := filter(q)
	if err != nil {
		return err
	}
	summary, err := route.Bool(q, "summary")
	if err != nil {
		return err
	}
	leases, err := route.Bool(q, "include_leases")
	if err != nil {
		return err
	}
	list, err := h.Machines.List(r.Context(), route.Actor(r), app, f)
	if err != nil {
		return err
	}
	out := make([]wire.Machine, len(list))
	for i, m := range list {
		if out[i], err = render(m, summary, leases); err != nil {
			return err
		}
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

func filter(q url.Values) (control.Filter, error) {
	deleted, err := route.Bool(q, "include_deleted")
	if err != nil {
		return control.Filter{}, err
	}
	f := control.Filter{IncludeDeleted: deleted, Region: q.Get("region")}
	for _, s := range commaList(q["state"]) {
		f.States = append(f.States, root.State(s))
	}
	for name, values := range q {
		if key, ok := strings.CutPrefix(name, "metadata."); ok && key != "" {
			if f.Metadata == nil {
				f.Metadata = make(map[string]string)
			}
			f.Metadata[key] = values[0]
		}
	}
	return f, nil
}

// commaList splits repeated and comma-separated values alike.
func commaList(values []string) []string {
	var out []string
	for _, v := range values {
		for s := range strings.SplitSeq(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

func render(m *root.Machine, summary, lease bool) (wire.Machine, error) {
	out, err := wire.FromMachine(m, summary)
	if lease {
		if l := m.ActiveLease(time.Now()); l != nil {
			out.Lease = wire.FromHeldLease(l)
		}
	}
	return out, err
}

// launch is the body of create and update.
type launch struct {
	Config                  json.RawMessage `json:"config"`
	Name                    string          `json:"name"`
	Region                  string          `json:"region"`
	LeaseTTL                int             `json:"lease_ttl"`
	SkipLaunch              bool            `json:"skip_launch"`
	SkipServiceRegistration bool            `json:"skip_service_registration"`
	SkipSecrets             bool            `json:"skip_secrets"`
	CurrentVersion          string          `json:"current_version"`
}

func readLaunch(r *http.Request) (launch, wire.Parsed, error) {
	var in launch
	if err := route.ReadJSON(r, &in, false); err != nil {
		return in, wire.Parsed{}, err
	}
	if in.LeaseTTL < 0 {
		return in, wire.Parsed{}, root.Errorf(root.Invalid, "lease_ttl: %d must not be negative", in.LeaseTTL)
	}
	parsed, err := wire.ParseConfig(in.Config)
	return in, parsed, err
}

func (in *launch) leaseTTL() time.Duration {
	return time.Duration(min(in.LeaseTTL, int(maxLease/time.Second))) * time.Second
}

func (h *handlers) create(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	in, parsed, err := readLaunch(r)
	if err != nil {
		return err
	}
	m, err := h.Machines.Create(r.Context(), route.Actor(r), app, control.CreateMachine{
		Name: in.Name, Region: in.Region, Config: parsed.Config, Source: parsed.Source,
		SkipSecrets: in.SkipSecrets, SkipLaunch: in.SkipLaunch, SkipServiceRegistration: in.SkipServiceRegistration, LeaseTTL: in.leaseTTL(),
	})
	if err != nil {
		return err
	}
	return launched(w, m, parsed, in.LeaseTTL > 0)
}

func launched(w http.ResponseWriter, m *root.Machine, parsed wire.Parsed, leased bool) error {
	out, err := render(m, false, false)
	if err != nil {
		return err
	}
	out.Warnings = parsed.Warnings
	if leased && m.Lease != nil {
		out.Nonce = m.Lease.Nonce
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

func (h *handlers) update(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	in, parsed, err := readLaunch(r)
	if err != nil {
		return err
	}
	m, err := h.Machines.Update(r.Context(), route.Actor(r), app, id, control.UpdateMachine{
		CurrentVersion: in.CurrentVersion, Nonce: r.Header.Get(nonceHeader), Config: parsed.Config, Source: parsed.Source,
		SkipSecrets: in.SkipSecrets, SkipLaunch: in.SkipLaunch, SkipServiceRegistration: in.SkipServiceRegistration, Name: in.Name, Region: in.Region, LeaseTTL: in.leaseTTL(),
	})
	if err != nil {
		return err
	}
	return launched(w, m, parsed, in.LeaseTTL > 0)
}

func (h *handlers) get(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	leases, err := route.Bool(r.URL.Query(), "include_leases")
	if err != nil {
		return err
	}
	m, err := h.Machines.Get(r.Context(), route.Actor(r), app, id)
	if err != nil {
		return err
	}
	out, err := render(m, false, leases)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

func (h *handlers) destroy(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	force, err := route.Bool(q, "force")
	if err != nil {
		return err
	}
	kill, err := route.Bool(q, "kill")
	if err != nil {
		return err
	}
	if err := h.Machines.Destroy(r.Context(), route.Actor(r), app, id, r.Header.Get(nonceHeader), force || kill); err != nil {
		return err
	}
	return route.OK(w)
}

func (h *handlers) versions(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	m, err := h.Machines.Get(r.Context(), route.Actor(r), app, id)
	if err != nil {
		return err
	}
	config, err := wire.MarshalConfig(m.Spec.Config, m.Spec.Source)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, []public.MachineVersion{{Version: string(m.Spec.Instance), UserConfig: config}})
}

func (h *handlers) events(w http.ResponseWriter, r *http.Request) error {
	app, id, err := route.Machine(r)
	if err != nil {
		return err
	}
	const absent, most = 20, 50
	limit, err := route.Int(r.URL.Query(), "limit", 1, 1<<20, absent)
	if err != nil {
		return err
	}
	limit = min(limit, most)
	events, err := h.Machines.Events(r.Context(), route.Actor(r), app, id, limit)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, wire.FromEvents(events, limit))
}

// orgMachine is a machine in a listing of a whole organisation.
type orgMachine struct {
	wire.Machine
	AppName string          `json:"app_name"`
	Config  json.RawMessage `json:"config,omitempty"`
}

// orgMachines lists an organisation's machines by their last change. All of
// them come at once, so there is never a next page.
func (h *handlers) orgMachines(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	f, err := filter(q)
	if err != nil {
		return err
	}
	var after time.Time
	if s := q.Get("updated_after"); s != "" {
		if after, err = time.Parse(time.RFC3339, s); err != nil {
			return root.Errorf(root.Invalid, "query updated_after: %q is not a time such as 2026-01-02T03:04:05Z", route.Clip(s))
		}
	}
	actor := route.Actor(r)
	apps, err := h.Apps.List(r.Context(), actor, r.PathValue("org"))
	if err != nil {
		return err
	}
	list := []orgMachine{}
	for _, app := range apps {
		machines, err := h.Machines.List(r.Context(), actor, app.App.Name, f)
		if err != nil {
			return err
		}
		for _, m := range machines {
			out, err := wire.FromMachine(m, true)
			if err != nil {
				return err
			}
			if out.UpdatedAt.Before(after) {
				continue
			}
			full := wire.FromConfig(m.Spec.Config)
			config, err := json.Marshal(map[string]any{"image": full.Image, "guest": full.Guest, "metadata": full.Metadata})
			if err != nil {
				return err
			}
			list = append(list, orgMachine{Machine: out, AppName: string(m.App), Config: config})
		}
	}
	slices.SortStableFunc(list, func(a, b orgMachine) int {
		return cmp.Or(a.UpdatedAt.Compare(b.UpdatedAt), strings.Compare(a.ID, b.ID))
	})
	reply := map[string]any{"machines": list, "next_cursor": "", "error_regions": []string{}}
	if n := len(list); n > 0 {
		reply["last_machine_id"], reply["last_updated_at"] = list[n-1].ID, list[n-1].UpdatedAt
	}
	return route.WriteJSON(w, http.StatusOK, reply)
}
