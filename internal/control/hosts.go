package control

import (
	"context"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
)

// Orgs are the verbs on organisations.
type Orgs struct{ Deps }

// List returns the organisations the actor sees.
func (s *Orgs) List(ctx context.Context, a auth.Actor) ([]root.Org, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Get returns one organisation.
func (s *Orgs) Get(ctx context.Context, a auth.Actor, slug string) (root.Org, error) {
	return root.Org{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Create makes an organisation.
func (s *Orgs) Create(ctx context.Context, a auth.Actor, slug, name string) (root.Org, error) {
	return root.Org{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Hosts are the verbs on hosts.
type Hosts struct{ Deps }

// HostStatus is a host and what it says of itself.
type HostStatus struct {
	Host     root.Host
	Local    bool
	Status   orders.HostStatus // zero unless Local
	Machines map[root.State]int
}

// List returns every host.
func (s *Hosts) List(ctx context.Context, a auth.Actor) ([]HostStatus, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Regions returns the regions that have a host, this host's first.
func (s *Hosts) Regions(ctx context.Context) []root.Region { return nil }
