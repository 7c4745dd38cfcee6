package control

import (
	"context"
	"io"
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

// ImageStore is where images are; Resolve pins a reference to a digest.
type ImageStore interface {
	Resolve(ctx context.Context, ref string) (root.Image, error)
	List(ctx context.Context) ([]ImageInfo, error)
	Pull(ctx context.Context, ref string, progress func(PullProgress)) (root.Image, error)
	Load(ctx context.Context, r io.Reader, as string) ([]root.Image, error)
	Remove(ctx context.Context, ref string) error
}

// BuildRequest asks for an image made from a directory.
type BuildRequest struct {
	App  root.AppName
	Kind string // "go"
	Args map[string]string
}

// Builder makes images.
type Builder interface {
	Build(ctx context.Context, r BuildRequest, context io.Reader, log func(line string)) (root.Image, error)
}

// List returns the images on this host.
func (s *Images) List(ctx context.Context, a auth.Actor) ([]ImageInfo, error) {
	if err := a.Allow(auth.ImageList, "", "", ""); err != nil {
		return nil, err
	}
	return s.d.Images.List(ctx)
}

// Pull fetches an image from its registry.
func (s *Images) Pull(ctx context.Context, a auth.Actor, ref string, progress func(PullProgress)) (root.Image, error) {
	if err := a.Allow(auth.ImagePull, "", a.App, ""); err != nil {
		return root.Image{}, err
	}
	return s.d.Images.Pull(ctx, ref, progress)
}

// Load reads an OCI or docker archive; as, if not "", names the image.
func (s *Images) Load(ctx context.Context, a auth.Actor, r io.Reader, as string) ([]root.Image, error) {
	if err := a.Allow(auth.ImagePush, "", "", ""); err != nil {
		return nil, err
	}
	return s.d.Images.Load(ctx, r, as)
}

// Remove forgets an image; Precondition while a machine needs it.
func (s *Images) Remove(ctx context.Context, a auth.Actor, ref string) error {
	if err := a.Allow(auth.ImageRemove, "", "", ""); err != nil {
		return err
	}
	return s.d.Images.Remove(ctx, ref)
}

// Build makes an image for an app from a tar stream of a directory. When ctx
// ends the build is cancelled.
func (s *Images) Build(ctx context.Context, a auth.Actor, r BuildRequest, tar io.Reader, log func(line string)) (root.Image, error) {
	if _, err := s.d.app(a, auth.ImageBuild, r.App); err != nil {
		return root.Image{}, err
	}
	return s.d.Builder.Build(ctx, r, tar, log)
}
