package control

import (
	"context"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// An app's repository is its organisation's: others neither run what is in it
// nor put something there, by whatever way.
func TestImagesStayInTheirOrganisation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.store.CreateOrg(ctx, root.Org{Slug: foreign.Org, Name: "Others"})
	w.must(err)
	owner := auth.Actor{Name: "o", Scope: auth.ScopeOrg, Org: root.DefaultOrg}
	load := func(a auth.Actor, as, archive string) error {
		_, err := w.Images.Load(ctx, a, strings.NewReader(archive), as)
		return err
	}
	w.must(load(owner, "docker.io/library/debian:12", "")) // nobody else has apps
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "theirs", Org: string(foreign.Org)})
	w.must(err)
	const image = "registry.localhost/shop:1"

	run := func(a auth.Actor, app root.AppName, c root.Config) error {
		_, err := w.Machines.Create(ctx, a, app, CreateMachine{Config: c})
		return err
	}
	with := func(image string, files ...root.File) root.Config {
		c := config()
		c.Image, c.Files = image, files
		return c
	}
	console := func(a auth.Actor, app root.AppName, image string) error {
		_, _, _, err := w.Consoles.Open(ctx, a, app, Console{Image: image})
		return err
	}
	reads := root.File{GuestPath: "/x", ImageConfig: image}
	for what, got := range map[string]error{
		"run":               run(foreign, "theirs", with(image)),
		"read its config":   run(foreign, "theirs", with("debian", reads)),
		"load":              load(foreign, image, ""),
		"load as it says":   load(foreign, "", image),
		"load for all":      load(owner, "docker.io/library/debian:12", ""),
		"load with one app": load(auth.Actor{Scope: auth.ScopeDeploy, Org: root.DefaultOrg, App: "other"}, image, ""),
		"remove":            w.Images.Remove(ctx, foreign, image),
		"run by digest":     run(foreign, "theirs", with("sha256:1")),
		"read by digest":    run(foreign, "theirs", with("debian", root.File{GuestPath: "/x", ImageConfig: "sha256:1"})),
		"run others' pull":  run(foreign, "theirs", with("docker.io/acme/private:1")),
		"console":           console(foreign, "theirs", "docker.io/acme/private:1"),
		"remove for all":    w.Images.Remove(ctx, owner, "docker.io/library/debian:12"),
		"start with it":     w.Images.Allowed(ctx, foreign.Org, image),
		"remove by digest":  w.Images.Remove(ctx, foreign, "sha256:1"),
	} {
		if !root.IsKind(got, root.Forbidden) {
			t.Errorf("%s: got %v, want forbidden", what, got)
		}
	}
	for what, err := range map[string]error{
		"run":         run(owner, "shop", with(image)),
		"read":        run(owner, "shop", with("debian", reads)),
		"load":        load(owner, image, ""),
		"remove":      w.Images.Remove(ctx, owner, image),
		"run as root": run(admin, "theirs", with(image)),
		"run pulled":  run(owner, "shop", with("docker.io/acme/private:1")),
		"by digest":   run(admin, "shop", with("sha256:1")),
		"start":       w.Images.Allowed(ctx, root.DefaultOrg, image),
		"load all":    load(admin, "docker.io/library/debian:12", ""),
	} {
		if err != nil {
			t.Errorf("%s one's own: %v", what, err)
		}
	}
	for a, want := range map[*auth.Actor]int{&foreign: 1, &owner: 2, &admin: 2} {
		if list, err := w.Images.List(ctx, *a); err != nil || len(list) != want {
			t.Errorf("list of %s: got %v, %v, want %d", a.Name, list, err, want)
		}
	}
}

// A new app of a name that was another's has nothing of that one.
func TestDeletedAppLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	left := &traces{}
	w.Apps.Images, w.Apps.Builder = left, left
	app, err := w.store.App(ctx, "shop")
	w.must(err)
	secret, token, err := w.Tokens.Create(ctx, admin, CreateToken{Scope: auth.ScopeDeploy, App: "shop"})
	w.must(err)
	_, other, err := w.Tokens.Create(ctx, admin, CreateToken{Scope: auth.ScopeOrg, Org: string(app.Org)})
	w.must(err)
	w.must(w.Apps.Delete(ctx, admin, "shop", true))
	if left.repository != "shop" || left.key != "shop."+app.ID {
		t.Errorf("dropped: got repository %q and files %q", left.repository, left.key)
	}
	tokens, err := w.store.Tokens(ctx)
	w.must(err)
	for _, got := range tokens {
		if revoked := !got.RevokedAt.IsZero(); revoked != (got.ID == token.ID) {
			t.Errorf("token %s (of the app %s, of the organisation %s): revoked %v", got.ID, token.ID, other.ID, revoked)
		}
	}
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "shop", Org: string(app.Org)})
	w.must(err)
	if got, err := w.store.Token(ctx, auth.Secret(secret).Hash()); err != nil || got.RevokedAt.IsZero() {
		t.Errorf("the old app's token: got %+v, %v, want it revoked", got, err)
	}
}

// traces notes what a deletion removes.
type traces struct {
	library
	Builder
	repository, key string
}

func (l *traces) DropRepository(_ context.Context, path string) error {
	l.repository = path
	return nil
}

func (l *traces) Forget(_ context.Context, key string) error {
	l.key = key
	return nil
}
