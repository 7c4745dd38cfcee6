package builder

import (
	"context"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/protobuf"
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
	return fromAPI(resp.GetImage()), nil
}

func (i imageStore) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	resp, err := i.s.images.List(namespaces.WithNamespace(ctx, namespace), &imagesapi.ListImagesRequest{Filters: filters})
	if err != nil {
		return nil, storeError(err)
	}
	list := make([]images.Image, 0, len(resp.GetImages()))
	for _, img := range resp.GetImages() {
		list = append(list, fromAPI(img))
	}
	return list, nil
}

func fromAPI(i *imagesapi.Image) images.Image {
	return images.Image{
		Name: i.GetName(), Labels: i.GetLabels(), Target: oci.DescriptorFromProto(i.GetTarget()),
		CreatedAt: protobuf.FromTimestamp(i.GetCreatedAt()), UpdatedAt: protobuf.FromTimestamp(i.GetUpdatedAt()),
	}
}

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
