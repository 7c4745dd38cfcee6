package control

import (
	"context"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
)

// Orgs are the verbs on organisations.
type Orgs struct{ Deps }

// List returns the organisations the actor sees.
func (s *Orgs) List(ctx context.Context, a auth.Actor) ([]root.Org, error) {
	orgs, err := s.Store.Orgs(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(orgs, func(o root.Org) bool { return a.Allow(auth.OrgRead, o.Slug, a.App, "") != nil }), nil
}

// Get returns one organisation.
func (s *Orgs) Get(ctx context.Context, a auth.Actor, slug string) (root.Org, error) {
	return s.org(ctx, a, auth.OrgRead, slug)
}

// Create makes an organisation.
func (s *Orgs) Create(ctx context.Context, a auth.Actor, slug, name string) (root.Org, error) {
	if err := a.Allow(auth.OrgCreate, "", "", ""); err != nil {
		return root.Org{}, err
	}
	parsed, err := root.ParseOrgSlug(slug)
	if err != nil {
		return root.Org{}, err
	}
	if name == "" {
		name = slug
	}
	o := root.Org{Slug: parsed, Name: name, CreatedAt: s.Now().UTC()}
	_, err = s.Store.CreateOrg(ctx, o)
	return o, err
}

// Hosts are the verbs on hosts.
type Hosts struct{ Deps }

// HostStatus is a host and what it says of itself.
type HostStatus struct {
	Host     root.Host
	Local    bool
	Domain   string            // apps answer at <app>.<Domain>; "" unless Local
	Status   orders.HostStatus // zero unless Local
	Machines map[root.State]int
}

// List returns every host, in order of their ids.
func (s *Hosts) List(ctx context.Context, a auth.Actor) ([]HostStatus, error) {
	if err := a.Allow(auth.HostRead, "", "", ""); err != nil {
		return nil, err
	}
	snapshot := s.Catalog.Snapshot()
	out := []HostStatus{}
	for h := range snapshot.Hosts() {
		st := HostStatus{Host: *h, Local: h.ID == s.Host, Machines: map[root.State]int{}}
		for m := range snapshot.AllMachines() {
			if m.Host == h.ID {
				st.Machines[m.Status.State]++
			}
		}
		if st.Local {
			st.Domain = s.Domain
			var err error
			if st.Status, err = s.Agent.Host(ctx); err != nil {
				return nil, err
			}
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b HostStatus) int { return strings.Compare(string(a.Host.ID), string(b.Host.ID)) })
	return out, nil
}

// Regions returns the regions that have a host, this host's first.
func (s *Hosts) Regions(_ context.Context) []root.Region {
	snapshot := s.Catalog.Snapshot()
	var out []root.Region
	for h := range snapshot.Hosts() {
		if !slices.Contains(out, h.Region) {
			out = append(out, h.Region)
		}
	}
	slices.Sort(out)
	if h := snapshot.Host(s.Host); h != nil {
		out = append([]root.Region{h.Region}, slices.DeleteFunc(out, func(r root.Region) bool { return r == h.Region })...)
	}
	return out
}
