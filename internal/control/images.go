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
type RegistryLogin struct {
	User, Password string
	Org            root.OrgSlug // whose credentials these are; filled in here, "" is the host's
	Host           bool         // by root, who may connect wherever the host can; filled in here
}

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
	// Owners are the organisations that alone may use what a reference names:
	// it came by credentials of theirs. None: everybody.
	Owners(ctx context.Context, ref string) ([]string, error)
	// PrivateRepositories lists those of which org may use nothing for that.
	PrivateRepositories(org string) []string
	// DropRepository forgets all that is in a repository of our own registry.
	DropRepository(ctx context.Context, path string) error
	Remove(ctx context.Context, ref string) error
	// Entrypoint is that of an image on this host.
	Entrypoint(ctx context.Context, d root.Digest) ([]string, error)
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
	out := list[:0]
	for _, i := range list {
		err := s.d.mayUse(ctx, a, a.Org, i.Ref())
		if err == nil {
			out = append(out, i)
		} else if !root.IsKind(err, root.Forbidden) {
			return nil, err
		}
	}
	return out, nil
}

// bareDigest begins a reference that names nothing but content.
const bareDigest = "sha256:"

// mayUse refuses an image that an app of org has no right to: one of our own
// registry that belongs to an app of another organisation, one that came by
// another's credentials, and whatever is named by its digest alone, for that
// does not say whose it is. What a digest after a name leads to is up to the
// image store: only what came by that name. See decision 38.
func (d *Deps) mayUse(ctx context.Context, a auth.Actor, org root.OrgSlug, ref string) error {
	if a.Root {
		return nil
	}
	if strings.HasPrefix(ref, bareDigest) {
		return root.Errorf(root.Forbidden, "image %s: a digest alone does not say whose image it is: write repository@digest", ref)
	}
	repository, err := d.Images.Own(ref)
	if err != nil {
		return err
	}
	if repository != "" {
		if app := d.Catalog.Snapshot().App(root.AppName(repository)); app != nil && app.Org != org {
			return root.Errorf(root.Forbidden, "image %s belongs to another organisation", ref)
		}
		return nil
	}
	owners, err := d.Images.Owners(ctx, ref)
	if err != nil {
		return err
	}
	if len(owners) > 0 && !slices.Contains(owners, string(org)) {
		return root.Errorf(root.Forbidden, "image %s was pulled with another organisation's credentials: pull it with yours first, `roost image pull`", ref)
	}
	return nil
}

// Allowed is mayUse for a machine of org that starts: since it was made its
// image's name may have become another's. A digest alone can only have come
// from root.
func (s *Images) Allowed(ctx context.Context, org root.OrgSlug, ref string) error {
	if strings.HasPrefix(ref, bareDigest) {
		return nil
	}
	return s.d.mayUse(ctx, auth.Actor{Org: org}, org, ref)
}

// mayUseAll is mayUse for all that a config names.
func (d *Deps) mayUseAll(ctx context.Context, a auth.Actor, org root.OrgSlug, c root.Config) error {
	if err := d.mayUse(ctx, a, org, c.Image); err != nil {
		return err
	}
	for _, f := range c.Files {
		if f.ImageConfig == "" {
			continue
		}
		if err := d.mayUse(ctx, a, org, f.ImageConfig); err != nil {
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
	if login.Org, login.Host = a.Org, a.Root; a.Root {
		login.Org = "" // for everybody on the host
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
	if err := s.d.mayUse(ctx, a, a.Org, ref); err != nil {
		return err
	}
	if repository, err := s.d.Images.Own(ref); err != nil {
		return err
	} else if !a.Root && repository == "" && s.d.others(a.Org) {
		return root.Errorf(root.Forbidden, "only root on the host may remove image %s: others may be using it", ref)
	}
	return s.d.Images.Remove(ctx, ref)
}
