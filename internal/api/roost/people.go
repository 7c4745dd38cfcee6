package roost

import (
	"net/http"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
)

func (h *handlers) listOrgs(w http.ResponseWriter, r *http.Request) error {
	orgs, err := h.Orgs.List(r.Context(), route.Actor(r))
	if err != nil {
		return err
	}
	list := make([]client.Org, len(orgs))
	for i, o := range orgs {
		list[i] = fromOrg(o)
	}
	return route.WriteJSON(w, http.StatusOK, list)
}

func (h *handlers) getOrg(w http.ResponseWriter, r *http.Request) error {
	o, err := h.Orgs.Get(r.Context(), route.Actor(r), r.PathValue("org"))
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, fromOrg(o))
}

func (h *handlers) createOrg(w http.ResponseWriter, r *http.Request) error {
	var in struct{ Slug, Name string }
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	o, err := h.Orgs.Create(r.Context(), route.Actor(r), in.Slug, in.Name)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, fromOrg(o))
}

func fromOrg(o root.Org) client.Org {
	return client.Org{Slug: string(o.Slug), Name: o.Name, CreatedAt: o.CreatedAt.UTC()}
}

func (h *handlers) listTokens(w http.ResponseWriter, r *http.Request) error {
	tokens, err := h.Tokens.List(r.Context(), route.Actor(r), r.URL.Query().Get("org"))
	if err != nil {
		return err
	}
	list := make([]client.Token, len(tokens))
	for i, t := range tokens {
		list[i] = fromToken(t)
	}
	return route.WriteJSON(w, http.StatusOK, list)
}

func (h *handlers) createToken(w http.ResponseWriter, r *http.Request) error {
	var in client.CreateToken
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	var expiry time.Duration
	if in.Expiry != "" {
		var err error
		if expiry, err = time.ParseDuration(in.Expiry); err != nil || expiry <= 0 {
			return root.Errorf(root.Invalid, "expiry: %q is not a duration such as \"720h\"", route.Clip(in.Expiry))
		}
	}
	secret, t, err := h.Tokens.Create(r.Context(), route.Actor(r), control.CreateToken{
		Name: in.Name, Scope: auth.Scope(in.Scope), Org: in.Org, App: in.App, Expiry: expiry,
	})
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, client.CreatedToken{Token: fromToken(t), Secret: secret})
}

func (h *handlers) revokeToken(w http.ResponseWriter, r *http.Request) error {
	if err := h.Tokens.Revoke(r.Context(), route.Actor(r), r.PathValue("token")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func fromToken(t auth.Token) client.Token {
	out := client.Token{
		ID: t.ID, Name: t.Name, Scope: string(t.Scope), Org: string(t.Org), App: string(t.App), Machine: string(t.Machine),
		CreatedAt: t.CreatedAt.UTC(),
	}
	if !t.ExpiresAt.IsZero() {
		expires := t.ExpiresAt.UTC()
		out.ExpiresAt = &expires
	}
	return out
}

func (h *handlers) listHosts(w http.ResponseWriter, r *http.Request) error {
	hosts, err := h.Hosts.List(r.Context(), route.Actor(r))
	if err != nil {
		return err
	}
	list := make([]client.Host, len(hosts))
	for i, s := range hosts {
		list[i] = client.Host{
			ID: string(s.Host.ID), Name: s.Host.Name, Region: string(s.Host.Region), Arch: s.Host.Arch,
			CPUs: s.Host.CPUs, Memory: int64(s.Host.Memory), Machines: make(map[string]int, len(s.Machines)),
		}
		for state, n := range s.Machines {
			list[i].Machines[string(state)] = n
		}
		if s.Local {
			list[i].Local = &client.LocalHost{
				PID: s.Status.PID, Boot: s.Status.Boot, CgroupVersion: s.Status.CgroupVersion, Memory: int64(s.Status.Total),
				Free: int64(s.Status.Free), Swap: s.Status.Swap, Children: s.Status.Children, Domain: s.Domain,
			}
		}
	}
	return route.WriteJSON(w, http.StatusOK, list)
}
