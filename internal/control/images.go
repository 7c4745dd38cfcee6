package control

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Images are the verbs on the images of this host.
type Images struct{ d Deps }

// ImageInfo is an image in the store.
type ImageInfo struct {
	root.Image
	Size      root.Bytes
	CreatedAt time.Time
	InUse     bool
}

// PullProgress is how far a pull has come.
type PullProgress struct {
	Layer string // digest, "" for the whole
	State string // "resolving", "downloading", "unpacking", "done"
	Done  root.Bytes
	Total root.Bytes // 0 unknown
}

// RegistryLogin is who pulls an image, for one pull.
type RegistryLogin struct{ User, Password string }

// LogValue keeps the password out of logs.
func (l RegistryLogin) LogValue() slog.Value { return slog.StringValue(l.User) }

// ImageStore is where images are; Resolve pins a reference to a digest.
type ImageStore interface {
	Resolve(ctx context.Context, ref string) (root.Image, error)
	List(ctx context.Context) ([]ImageInfo, error)
	// Pull uses the credentials of the configuration for an empty Login.
	Pull(ctx context.Context, ref string, login RegistryLogin, progress func(PullProgress)) (root.Image, error)
	// Load asks allow about each name that an image would get.
	Load(ctx context.Context, r io.Reader, as string, allow func(name string) error) ([]root.Image, error)
	// Own is the repository of our own registry that a reference names, an
	// app's name; "" if it names something else.
	Own(ref string) (repository string, err error)
	Remove(ctx context.Context, ref string) error
	// Protect makes digests the images that owner must not lose, in place of
	// those before; none releases it.
	Protect(ctx context.Context, owner string, digests ...root.Digest) error
}

// List returns the images on this host, without those of other organisations'
// apps.
func (s *Images) List(ctx context.Context, a auth.Actor) ([]ImageInfo, error) {
	if err := a.Allow(auth.ImageList, "", "", ""); err != nil {
		return nil, err
	}
	list, err := s.d.Images.List(ctx)
	if err != nil || a.Root {
		return list, err
	}
	return slices.DeleteFunc(list, func(i ImageInfo) bool { return s.d.mayUse(a, a.Org, i.Ref()) != nil }), nil
}

// mayUse refuses an image that is in our own registry and belongs to an app of
// an organisation other than org.
func (d *Deps) mayUse(a auth.Actor, org root.OrgSlug, ref string) error {
	repository, err := d.Images.Own(ref)
	if err != nil || repository == "" || a.Root {
		return err
	}
	if app := d.Catalog.Snapshot().App(root.AppName(repository)); app != nil && app.Org != org {
		return root.Errorf(root.Forbidden, "image %s belongs to another organisation", ref)
	}
	return nil
}

// mayUseAll is mayUse for all that a config names.
func (d *Deps) mayUseAll(a auth.Actor, org root.OrgSlug, c root.Config) error {
	if err := d.mayUse(a, org, c.Image); err != nil {
		return err
	}
	for _, f := range c.Files {
		if f.ImageConfig == "" {
			continue
		}
		if err := d.mayUse(a, org, f.ImageConfig); err != nil {
			return err
		}
	}
	return nil
}

// mayName refuses a name for an image to all who may not push to it. Names
// outside our own registry mean the same to everybody on this host: where
// there are several organisations, they are root's.
func (d *Deps) mayName(a auth.Actor, name string) error {
	repository, err := d.Images.Own(name)
	switch {
	case err != nil:
		return err
	case a.Root:
		return nil
	case repository == "":
		if !d.others(a.Org) {
			return nil
		}
		return root.Errorf(root.Forbidden, "only root on the host may load an image as %s: name it after your app in this host's registry", name)
	}
	_, err = d.app(a, auth.ImagePush, root.AppName(repository))
	return err
}

// others reports whether an organisation other than org has apps.
func (d *Deps) others(org root.OrgSlug) bool {
	for app := range d.Catalog.Snapshot().Apps() {
		if app.Org != org {
			return true
		}
	}
	return false
}

// Pull fetches an image from its registry.
func (s *Images) Pull(ctx context.Context, a auth.Actor, ref string, login RegistryLogin, progress func(PullProgress)) (root.Image, error) {
	if err := a.Allow(auth.ImagePull, "", a.App, ""); err != nil {
		return root.Image{}, err
	}
	return s.d.Images.Pull(ctx, ref, login, progress)
}

// Load reads an OCI or docker archive; as, if not "", names the image.
func (s *Images) Load(ctx context.Context, a auth.Actor, r io.Reader, as string) ([]root.Image, error) {
	if err := a.Allow(auth.ImagePush, "", "", ""); err != nil {
		return nil, err
	}
	return s.d.Images.Load(ctx, r, as, func(name string) error { return s.d.mayName(a, name) })
}

// Remove forgets an image; Precondition while a machine needs it.
func (s *Images) Remove(ctx context.Context, a auth.Actor, ref string) error {
	if err := a.Allow(auth.ImageRemove, "", "", ""); err != nil {
		return err
	}
	if !a.Root && strings.HasPrefix(ref, "sha256:") { // under whose name?
		return root.Errorf(root.Forbidden, "only root on the host may remove an image by its digest alone: name it")
	}
	if err := s.d.mayUse(a, a.Org, ref); err != nil {
		return err
	}
	return s.d.Images.Remove(ctx, ref)
}
