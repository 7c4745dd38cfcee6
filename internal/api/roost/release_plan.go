package roost

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/wire"
)

func (h *handlers) planRelease(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	n, warnings, err := h.newRelease(r, app)
	if err != nil {
		return err
	}
	p, err := h.Releases.Plan(r.Context(), route.Actor(r), app, n)
	if err != nil {
		return err
	}
	out, err := fromPlan(p)
	if err != nil {
		return err
	}
	out.Warnings = warnings
	return route.WriteJSON(w, http.StatusOK, out)
}

func fromPlan(p *control.ReleasePlan) (client.ReleasePlan, error) {
	out := client.ReleasePlan{Strategy: string(p.Release.Deploy.Strategy), Command: p.Release.Deploy.ReleaseCommand, Groups: []client.PlanGroup{}}
	to, err := json.Marshal(p.Release.Image.Ref())
	if err != nil {
		return out, err
	}
	out.Image.To = to
	if p.Former != nil {
		out.Release = p.Former.Version
		if out.Image.From, err = json.Marshal(p.Former.Image.Ref()); err != nil {
			return out, err
		}
	}
	for _, s := range p.Steps {
		i := slices.IndexFunc(out.Groups, func(g client.PlanGroup) bool { return g.Name == s.Group })
		if i < 0 {
			i = len(out.Groups)
			out.Groups = append(out.Groups, client.PlanGroup{Name: s.Group, Change: "unchanged"})
		}
		g := &out.Groups[i]
		m := client.PlanMachine{Action: s.Action, Why: s.Why, Region: string(s.Region)}
		if s.Machine != nil {
			m.ID, m.Name, m.Region, m.State, m.Image = string(s.Machine.ID), s.Machine.Name, string(s.Machine.Region), string(s.Machine.Status.State), s.Machine.Spec.Image.Ref()
		}
		g.Machines = append(g.Machines, m)
		switch s.Action {
		case "create":
			g.Change = "create"
		case "destroy":
			g.Change = "destroy"
		case "update", "green":
			g.Change = "update"
			if g.Config != nil {
				break
			}
			if g.Config, err = differences(s); err != nil {
				return out, err
			}
		}
	}
	for _, m := range p.Foreign {
		out.Foreign = append(out.Foreign, client.PlanMachine{
			ID: string(m.ID), Name: m.Name, Region: string(m.Region), State: string(m.Status.State), Action: "keep", Image: m.Spec.Image.Ref(), Why: "no release manages it",
		})
	}
	return out, nil
}

// differences compares a machine's config with what it becomes.
func differences(s control.PlannedStep) ([]client.Difference, error) {
	var docs [2]any
	for i, c := range []struct {
		config root.Config
		source []byte
	}{{s.Machine.Spec.Config, s.Machine.Spec.Source}, {s.Config, s.Source}} {
		data, err := wire.MarshalConfig(c.config, c.source)
		if err != nil {
			return nil, err
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		if err := dec.Decode(&docs[i]); err != nil {
			return nil, err
		}
	}
	var out []client.Difference
	compare("", docs[0], docs[1], &out)
	// What is new at every release says nothing.
	out = slices.DeleteFunc(out, func(d client.Difference) bool {
		return d.Path == "metadata."+root.MetadataReleaseID || d.Path == "metadata."+root.MetadataReleaseVersion || d.Path == "image"
	})
	return out, nil
}

func compare(path string, a, b any, out *[]client.Difference) {
	if reflect.DeepEqual(a, b) {
		return
	}
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	if aok && bok {
		keys := map[string]bool{}
		for k := range am {
			keys[k] = true
		}
		for k := range bm {
			keys[k] = true
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			compare(strings.TrimPrefix(path+"."+k, "."), am[k], bm[k], out)
		}
		return
	}
	al, aok := a.([]any)
	bl, bok := b.([]any)
	if aok && bok && len(al) == len(bl) {
		for i := range al {
			compare(path+"["+strconv.Itoa(i)+"]", al[i], bl[i], out)
		}
		return
	}
	*out = append(*out, client.Difference{Path: path, From: raw(a), To: raw(b)})
}

func raw(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	data, err := json.Marshal(v)
	if err != nil { // it came from JSON
		return nil
	}
	return data
}
