package image

import (
	"context"
	"fmt"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	root "github.com/roost-run/roost"
)

// imageService finds what a builder builds on, and names what it has written.
type imageService struct {
	imagesapi.UnimplementedImagesServer
	s *Store
}

// Get returns an image, unpacked: from here, or from its registry.
func (i *imageService) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	img, err := i.s.Resolve(ctx, r.GetName())
	if err != nil {
		return nil, toStatus(err)
	}
	if err := i.s.Unpack(ctx, img.Digest); err != nil {
		return nil, toStatus(err)
	}
	desc := i.s.descriptor(Context(ctx), img.Digest)
	info, err := i.s.content.Info(Context(ctx), desc.Digest)
	if err != nil {
		return nil, toStatus(err)
	}
	desc.Size = info.Size
	return &imagesapi.GetImageResponse{Image: &imagesapi.Image{Name: r.GetName(), Target: oci.DescriptorToProto(desc)}}, nil
}

// Create checks the image, unpacks it unless the builder's own snapshot of its
// files serves, and names it; a taken name moves.
func (i *imageService) Create(ctx context.Context, r *imagesapi.CreateImageRequest) (*imagesapi.CreateImageResponse, error) {
	n, err := parseRef(r.GetImage().GetName())
	if err != nil {
		return nil, toStatus(err)
	}
	if !i.s.own(n) || n.tag == "" {
		return nil, status.Errorf(codes.InvalidArgument, "%s is not a tag in %s", n, i.s.Registry())
	}
	target := oci.DescriptorFromProto(r.GetImage().GetTarget())
	m, err := i.s.manifestOf(ctx, n, target)
	if err != nil {
		return nil, toStatus(err)
	}
	if snapshot := r.GetImage().GetLabels()[labelResult]; snapshot != "" {
		if err := i.s.adopt(ctx, m, snapshot); err != nil {
			return nil, toStatus(err)
		}
	}
	if _, err := i.s.unpacked(ctx, root.Digest(m.Digest)); err != nil {
		return nil, toStatus(err)
	}
	if err := i.s.name(ctx, n, target, named{}); err != nil {
		return nil, toStatus(err)
	}
	return &imagesapi.CreateImageResponse{Image: r.Image}, nil
}

// adopt makes a committed snapshot the unpacked form of an image; it is the
// builder's word that it holds the image's files. One that the image has
// already is kept.
func (s *Store) adopt(ctx context.Context, m ocispec.Descriptor, snapshot string) error {
	ctx = Context(ctx)
	_, _, config, err := s.read(ctx, root.Digest(m.Digest))
	if err != nil {
		return err
	}
	info, err := s.content.Info(ctx, config.Digest)
	if err != nil {
		return fmt.Errorf("adopt snapshot: %w", err)
	}
	if has := info.Labels[labelSnapshot]; has != "" {
		if _, err := s.snap.Stat(ctx, has); err == nil {
			return nil
		}
	}
	if _, err := s.snap.Stat(ctx, snapshot); err != nil {
		return fmt.Errorf("adopt snapshot %s: %w", clip(snapshot), err)
	}
	_, err = s.content.Update(ctx, content.Info{Digest: config.Digest, Labels: map[string]string{labelSnapshot: snapshot}}, "labels."+labelSnapshot)
	if err != nil {
		return fmt.Errorf("adopt snapshot %s: %w", clip(snapshot), err)
	}
	return nil
}
