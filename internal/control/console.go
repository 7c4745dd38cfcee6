package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Consoles are the temporary machines in which people look at an app from
// inside: image, environment and secrets are the app's, nothing serves there.
type Consoles struct {
	Deps
	machines *Machines
}

// Console asks for one.
type Console struct {
	Image  string      // "" is the release's
	Region string      // "" is the release's
	Guest  *root.Guest // nil is the group's
	Memory root.Bytes  // 0 is the guest's
	Env    map[string]string
}

// metadataConsole marks our consoles: those that other tools make under the
// same process group are theirs to remove.
const metadataConsole = "roost_console"

const (
	// consoleIdles is what a console's machine runs while people run theirs.
	consoleIdles   = "/bin/sleep"
	consoleRemoval = time.Minute
)

// Open makes a console and returns it when it runs. release is the one it is
// of, nil without one. end removes the machine, whatever became of the caller,
// and has to be called.
func (s *Consoles) Open(ctx context.Context, a auth.Actor, app root.AppName, o Console) (m *root.Machine, release *root.Release, end func() error, err error) {
	found, err := s.app(a, auth.MachineCreate, app)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := a.Allow(auth.MachineExec, found.Org, found.Name, ""); err != nil {
		return nil, nil, nil, err
	}
	c, pinned, release, err := s.template(ctx, a, found, o)
	if err != nil {
		return nil, nil, nil, err
	}
	a.Origin = root.OriginUser
	m, err = s.machines.Create(ctx, a, app, CreateMachine{Region: o.Region, Config: c, Release: pinned})
	if root.IsKind(err, root.Invalid) && strings.Contains(root.MessageOf(err), consoleIdles) {
		return nil, nil, nil, &root.Error{Kind: root.Precondition, Err: err,
			Message: fmt.Sprintf("the image has no %s, which a console's machine runs: `roost machine run --rm` runs a single command of such an image, with the app's secrets", consoleIdles)}
	}
	if err != nil {
		return nil, nil, nil, err
	}
	id := m.ID
	return m, release, func() error { return s.remove(context.WithoutCancel(ctx), id) }, nil
}

func (s *Consoles) remove(ctx context.Context, id root.MachineID) error {
	ctx, cancel := context.WithTimeout(ctx, consoleRemoval)
	defer cancel()
	if err := s.machines.destroy(ctx, id, true); err != nil && !root.IsKind(err, root.NotFound) {
		return fmt.Errorf("remove console %s: %w", id, err)
	}
	return nil
}

// template is what a console runs: a machine of the app that does nothing.
func (s *Consoles) template(ctx context.Context, a auth.Actor, app *root.App, o Console) (root.Config, *Pinned, *root.Release, error) {
	var base root.Config
	var release *root.Release
	pinned := &Pinned{Secrets: app.Secrets}
	if app.Release > 0 {
		r, err := s.Store.Release(ctx, app.Name, app.Release)
		if err != nil {
			return base, nil, nil, err
		}
		release, pinned.Image, pinned.Secrets = &r, r.Image, r.Secrets
		if len(r.Groups) > 0 {
			g := &r.Groups[0]
			if d := group(&r, DefaultGroup); d != nil {
				g = d
			}
			base = g.Config.Clone()
		}
	} else {
		all := s.Catalog.Snapshot().Machines(app.Name)
		i := slices.IndexFunc(all, func(m *root.Machine) bool { return m.Spec.Destroy == nil })
		switch {
		case i >= 0:
			base, pinned.Image = all[i].Spec.Config.Clone(), all[i].Spec.Image
		case o.Image == "":
			return base, nil, nil, &root.Error{Kind: root.Precondition, Code: "no_release", Message: fmt.Sprintf("app %s has neither a release nor a machine to take an image from: deploy it, or name an image", app.Name)}
		}
	}
	c := root.Config{
		Env: base.Env, Swap: base.Swap, Files: base.Files, Guest: base.Guest, Process: base.Process,
		Init:        root.Init{Exec: []string{consoleIdles, "inf"}},
		Restart:     root.Restart{Policy: root.RestartNo},
		Stop:        root.Stop{Signal: "SIGKILL"},
		DNS:         root.DNS{SkipRegistration: true},
		Persist:     root.PersistNever,
		AutoDestroy: true,
		Metadata:    map[string]string{root.MetadataProcessGroup: root.GroupConsole, metadataConsole: "1"},
	}
	if p := c.Process; p != nil { // user and environment; the command is ours
		p.Exec, p.Entrypoint, p.Cmd = nil, nil, nil
	}
	if c.Env == nil {
		c.Env = map[string]string{}
	}
	maps.Copy(c.Env, o.Env)
	if c.Guest == (root.Guest{}) {
		c.Guest = root.DefaultGuest()
	}
	if o.Guest != nil {
		c.Guest = *o.Guest
	}
	if o.Memory > 0 {
		c.Guest.Memory = o.Memory
	}
	if o.Image != "" {
		if err := s.mayUse(ctx, a, app.Org, o.Image); err != nil {
			return c, nil, nil, err
		}
		img, err := s.Images.Resolve(ctx, o.Image)
		if err != nil {
			return c, nil, nil, fmt.Errorf("resolve image: %w", err)
		}
		pinned.Image = img
	}
	c.Image = pinned.Image.Ref()
	return c, pinned, release, nil
}

// Sweep removes the consoles of a control process that is no more: nobody is
// in them.
func (s *Consoles) Sweep(ctx context.Context) error {
	var errs []error
	for m := range s.Catalog.Snapshot().AllMachines() {
		if m.Spec.Config.Metadata[metadataConsole] != "" && m.Host == s.Host {
			errs = append(errs, s.remove(ctx, m.ID))
		}
	}
	return errors.Join(errs...)
}
