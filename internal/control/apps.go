package control

import (
	"context"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Apps are the verbs on apps.
type Apps struct {
	Deps
	machines *Machines
}

// CreateApp asks for an app.
type CreateApp struct {
	Name           string // "" with an IdempotencyKey that is known
	Org            string // "" is the actor's, or root.DefaultOrg
	Network        string // "" is root.DefaultNetwork; one that does not exist is made
	IdempotencyKey string
}

// AppStatus is an app with what is counted about it.
type AppStatus struct {
	App          *root.App
	Org          root.Org
	Status       string // "pending": no machine yet, "deployed": at least one, "suspended": none of them started
	MachineCount int
}

// Create makes an app. A name that is taken gives Conflict, code "name_taken".
func (s *Apps) Create(ctx context.Context, a auth.Actor, c CreateApp) (AppStatus, error) {
	return AppStatus{}, root.Errorf(root.Unimplemented, "not built yet")
}

// Get returns one app: NotFound if nobody has the name, Forbidden if it
// belongs to an organisation that is not the actor's.
func (s *Apps) Get(ctx context.Context, a auth.Actor, name root.AppName) (AppStatus, error) {
	return AppStatus{}, root.Errorf(root.Unimplemented, "not built yet")
}

// List returns an organisation's apps in order of their names.
func (s *Apps) List(ctx context.Context, a auth.Actor, org string) ([]AppStatus, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Delete removes an app. With machines it is refused (Precondition) unless
// forced; then they are destroyed first. Its network's name and id stay.
func (s *Apps) Delete(ctx context.Context, a auth.Actor, name root.AppName, force bool) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}
