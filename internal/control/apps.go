package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

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
	Status       string // see the constants
	MachineCount int
}

// What AppStatus.Status says.
const (
	AppPending   = "pending"   // no machine yet
	AppDeployed  = "deployed"  // at least one machine, some of them awake or startable
	AppSuspended = "suspended" // none of its machines runs or can be woken
)

const (
	// destroysAtOnce bounds how many machines a deletion removes at a time.
	destroysAtOnce = 4
	maxIdempotency = 128
	deleteTries    = 5
)

// Create makes an app. A name that is taken gives Conflict, code "name_taken".
// The same IdempotencyKey with the same name, or none, gives the first app.
func (s *Apps) Create(ctx context.Context, a auth.Actor, c CreateApp) (AppStatus, error) {
	org, err := s.org(ctx, a, auth.AppCreate, c.Org)
	if err != nil {
		return AppStatus{}, err
	}
	if len(c.IdempotencyKey) > maxIdempotency {
		return AppStatus{}, root.Errorf(root.Invalid, "idempotency_key: longer than %d characters", maxIdempotency)
	}
	key := "idempotency/" + string(org.Slug) + "/" + c.IdempotencyKey
	if c.IdempotencyKey != "" && c.Name == "" {
		known, err := s.Store.Meta(ctx, key)
		if err != nil {
			return AppStatus{}, err
		}
		c.Name = string(known)
	}
	name, err := root.ParseAppName(c.Name)
	if err != nil {
		return AppStatus{}, err
	}
	netName, err := root.ParseNetworkName(c.Network)
	if err != nil {
		return AppStatus{}, err
	}
	if c.IdempotencyKey != "" {
		first, err := s.Store.EnsureMeta(ctx, key, []byte(name))
		if err != nil {
			return AppStatus{}, err
		}
		if string(first) != string(name) {
			return AppStatus{}, root.Errorf(root.Invalid, "idempotency_key: it was used for app %q before", first)
		}
		if app := s.Catalog.Snapshot().App(name); app != nil && app.Org == org.Slug {
			return s.status(s.Catalog.Snapshot(), app, org), nil
		}
	}
	now := s.Now().UTC()
	net, err := s.Store.EnsureNetwork(ctx, org.Slug, netName, now)
	if err != nil {
		return AppStatus{}, err
	}
	app := root.App{Name: name, ID: randomHex(8), Org: org.Slug, Network: net.Name, NetworkID: net.ID, CreatedAt: now}
	rev, err := s.Store.CreateApp(ctx, app)
	if e, ok := errors.AsType[*root.Error](err); ok && e.Code == root.CodeNameTaken {
		return AppStatus{}, &root.Error{Kind: e.Kind, Code: e.Code, Message: fmt.Sprintf("Validation failed: Name has already been taken: %s", name), Err: err}
	}
	if err != nil {
		return AppStatus{}, err
	}
	if err := s.read(ctx, rev); err != nil {
		return AppStatus{}, err
	}
	return s.status(s.Catalog.Snapshot(), &app, org), nil
}

// org finds the organisation a call is about: by its slug, else the actor's,
// else the default one.
func (d *Deps) org(ctx context.Context, a auth.Actor, p auth.Permission, slug string) (root.Org, error) {
	if slug == "" {
		slug = string(a.Org)
	}
	if slug == "" {
		slug = string(root.DefaultOrg)
	}
	parsed, err := root.ParseOrgSlug(slug)
	if err != nil {
		return root.Org{}, err
	}
	if err := a.Allow(p, parsed, "", ""); err != nil {
		return root.Org{}, err
	}
	orgs, err := d.Store.Orgs(ctx)
	if err != nil {
		return root.Org{}, err
	}
	i := slices.IndexFunc(orgs, func(o root.Org) bool { return o.Slug == parsed })
	if i < 0 {
		return root.Org{}, root.Errorf(root.NotFound, "organisation %q not found", slug)
	}
	return orgs[i], nil
}

// status counts what an app has.
func (d *Deps) status(s *root.Snapshot, app *root.App, org root.Org) AppStatus {
	copied := *app
	st := AppStatus{App: &copied, Org: org, Status: AppPending}
	for _, m := range s.Machines(app.Name) {
		st.MachineCount++
		if st.Status != AppDeployed {
			st.Status = AppSuspended
		}
		if m.Status.State != root.StateFailed && m.Status.State != root.StateLaunchFailed {
			st.Status = AppDeployed
		}
	}
	return st
}

// Get returns one app: NotFound if nobody has the name, Forbidden if it
// belongs to an organisation that is not the actor's.
func (s *Apps) Get(ctx context.Context, a auth.Actor, name root.AppName) (AppStatus, error) {
	app, err := s.app(a, auth.AppRead, name)
	if err != nil {
		return AppStatus{}, err
	}
	org, err := s.orgOf(ctx, app)
	if err != nil {
		return AppStatus{}, err
	}
	return s.status(s.Catalog.Snapshot(), app, org), nil
}

func (d *Deps) orgOf(ctx context.Context, app *root.App) (root.Org, error) {
	orgs, err := d.Store.Orgs(ctx)
	if err != nil {
		return root.Org{}, err
	}
	for _, o := range orgs {
		if o.Slug == app.Org {
			return o, nil
		}
	}
	return root.Org{Slug: app.Org, Name: string(app.Org)}, nil
}

// List returns an organisation's apps in order of their names; only those the
// actor may read.
func (s *Apps) List(ctx context.Context, a auth.Actor, org string) ([]AppStatus, error) {
	o, err := s.org(ctx, a, auth.AppList, org)
	if err != nil {
		return nil, err
	}
	out := []AppStatus{}
	snapshot := s.Catalog.Snapshot()
	for app := range snapshot.Apps() {
		if app.Org == o.Slug && a.Allow(auth.AppRead, app.Org, app.Name, "") == nil {
			out = append(out, s.status(snapshot, app, o))
		}
	}
	slices.SortFunc(out, func(a, b AppStatus) int { return strings.Compare(string(a.App.Name), string(b.App.Name)) })
	return out, nil
}

// Delete removes an app. With machines it is refused (Precondition) unless
// forced; then they are destroyed first. Its network's name and id stay.
// Of what was kept under its name nothing does: images, build contexts,
// secrets, releases, hostnames with their certificates; its tokens are revoked.
// Its log ages; no later app of that name reads it.
func (s *Apps) Delete(ctx context.Context, a auth.Actor, name root.AppName, force bool) error {
	app, err := s.app(a, auth.AppDelete, name)
	if err != nil {
		return err
	}
	if n := len(s.Catalog.Snapshot().Machines(name)); n > 0 && !force {
		return root.Errorf(root.Precondition, "app %s still has %d machines: destroy them first, or use force=true to destroy them with the app", name, n)
	}
	return s.delete(ctx, *app)
}

func (s *Apps) delete(ctx context.Context, app root.App) error {
	var hostnames []string
	rev, err := s.Store.EditApp(ctx, app.Name, func(a *root.App) error {
		a.Deleting = true // from here on no machine and no hostname can come
		hostnames = slices.Clone(a.Hostnames)
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range hostnames {
		if rev, err = s.Store.DeleteHostname(ctx, app.Name, name); err != nil {
			return err
		}
	}
	if err := s.read(ctx, rev); err != nil {
		return err
	}
	for try := 1; ; try++ {
		if err := s.destroyAll(ctx, app.Name); err != nil {
			return err
		}
		if err := s.Images.Protect(ctx, protectOwner(app.Name)); err != nil { // of its releases
			return err
		}
		if err := s.dropTraces(ctx, &app); err != nil {
			return err
		}
		rev, err = s.Store.DeleteApp(ctx, app.Name)
		if err == nil {
			return s.read(ctx, rev)
		}
		// A machine that was committed just before the app stopped taking any
		// may not have been in the catalog yet.
		if !root.IsKind(err, root.Precondition) || try == deleteTries {
			return err
		}
		if rev, err = s.Store.Revision(ctx); err != nil {
			return err
		}
		if err := s.read(ctx, rev); err != nil {
			return err
		}
	}
}

// dropTraces removes what is kept under the app's name: the next app that has
// it may be somebody else's.
func (s *Apps) dropTraces(ctx context.Context, app *root.App) error {
	if err := s.Images.DropRepository(ctx, string(app.Name)); err != nil {
		return err
	}
	if s.Builder != nil {
		if err := s.Builder.Forget(ctx, buildKey(app)); err != nil {
			return err
		}
	}
	all, err := s.Store.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.App != app.Name || !t.RevokedAt.IsZero() {
			continue
		}
		t.RevokedAt = s.Now().UTC()
		if _, err := s.Store.PutToken(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// destroyAll destroys every machine of an app.
func (s *Apps) destroyAll(ctx context.Context, app root.AppName) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(destroysAtOnce)
	for _, m := range s.Catalog.Snapshot().Machines(app) {
		g.Go(func() error {
			if err := s.machines.destroy(gctx, m.ID, true); err != nil && !root.IsKind(err, root.NotFound) {
				return fmt.Errorf("destroy machine %s: %w", m.ID, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Resume finishes deletions that a crash cut short. Call it once, when the
// agent has taken over its machines.
func (s *Apps) Resume(ctx context.Context) error {
	var errs []error
	for app := range s.Catalog.Snapshot().Apps() {
		if app.Deleting {
			errs = append(errs, s.delete(ctx, *app))
		}
	}
	return errors.Join(errs...)
}
