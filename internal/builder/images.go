package builder

import (
	"context"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	root "github.com/roost-run/roost"
)

// imageStore is the borrowed store's names, as BuildKit wants them. Asking for
// an image that is not there has it pulled.
type imageStore struct{ s *store }

func (i imageStore) Get(ctx context.Context, name string) (images.Image, error) {
	resp, err := i.s.images.Get(namespaces.WithNamespace(ctx, namespace), &imagesapi.GetImageRequest{Name: name})
	if st, ok := status.FromError(err); ok && st.Code() == codes.NotFound {
		return images.Image{}, &root.Error{Kind: root.NotFound, Message: st.Message(), Err: err}
	}
	if err != nil {
		return images.Image{}, storeError(err)
	}
	return images.Image{Name: name, Target: oci.DescriptorFromProto(resp.GetImage().GetTarget())}, nil
}

// List names no images. BuildKit would spare from pruning what it takes for
// layers of theirs, and takes the results of steps that were never part of an
// image for those of its base. What images need the store keeps anyway.
func (i imageStore) List(context.Context, ...string) ([]images.Image, error) { return nil, nil }

func (i imageStore) Create(ctx context.Context, img images.Image) (images.Image, error) {
	_, err := i.s.images.Create(namespaces.WithNamespace(ctx, namespace), &imagesapi.CreateImageRequest{
		Image: &imagesapi.Image{Name: img.Name, Labels: img.Labels, Target: oci.DescriptorToProto(img.Target)},
	})
	return img, storeError(err)
}

// Update and Delete are not the builder's: a name is given by Create.
func (i imageStore) Update(context.Context, images.Image, ...string) (images.Image, error) {
	return images.Image{}, errdefs.ErrNotImplemented
}

func (i imageStore) Delete(context.Context, string, ...images.DeleteOpt) error {
	return errdefs.ErrNotImplemented
}
