package control

import (
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
	reads := root.File{GuestPath: "/x", ImageConfig: image}
	for what, got := range map[string]error{
		"run":               run(foreign, "theirs", with(image)),
		"read its config":   run(foreign, "theirs", with("debian", reads)),
		"load":              load(foreign, image, ""),
		"load as it says":   load(foreign, "", image),
		"load for all":      load(owner, "docker.io/library/debian:12", ""),
		"load with one app": load(auth.Actor{Scope: auth.ScopeDeploy, Org: root.DefaultOrg, App: "other"}, image, ""),
		"remove":            w.Images.Remove(ctx, foreign, image),
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
