package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	root "github.com/roost-run/roost"
)

// namespace is the store's only one.
const namespace = "roost"

// flightExpiry ends what a build leased and never gave back. Longer than a build.
const flightExpiry = 6 * time.Hour

// maxMessage is the server's bound for one message.
const maxMessage = 16 << 20

// store is the image store of the control process, borrowed over its socket.
type store struct {
	conn    *grpc.ClientConn
	content content.Store
	snaps   snapshots.Snapshotter
	leases  leases.Manager
	images  imagesapi.ImagesClient
}

// borrow returns the store behind socket; it connects when used.
func borrow(socket string) (*store, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("image store %s: %w", socket, err)
	}
	return &store{
		conn:    conn,
		content: contentproxy.NewContentStore(conn),
		snaps:   snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "overlayfs"),
		leases:  leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		images:  imagesapi.NewImagesClient(conn),
	}, nil
}

func (s *store) Close() error { return s.conn.Close() }

// flight returns a context under whose lease what is written stays until done.
func (s *store) flight(ctx context.Context) (context.Context, func(), error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(flightExpiry))
	if err != nil {
		return nil, nil, storeError(err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		// It expires by itself; and it must go even when the build was cancelled.
		_ = s.leases.Delete(context.WithoutCancel(ctx), l)
	}, nil
}

// putFile stores the file as a blob, unless it is there.
func (s *store) putFile(ctx context.Context, mediaType string, f *os.File) (ocispec.Descriptor, error) {
	d := digest.Canonical.Digester()
	size, err := io.Copy(d.Hash(), io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: d.Digest(), Size: size}
	return desc, s.put(ctx, desc, io.NewSectionReader(f, 0, size))
}

func (s *store) putJSON(ctx context.Context, mediaType string, v any, opts ...content.Opt) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, s.put(ctx, desc, bytes.NewReader(data), opts...)
}

// put writes a blob; one that is there is leased instead.
func (s *store) put(ctx context.Context, desc ocispec.Descriptor, r io.Reader, opts ...content.Opt) error {
	err := content.WriteBlob(ctx, s.content, "build-"+ulid.Make().String(), r, desc, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return storeError(err)
	}
	return nil
}

// name stores the manifest, with the labels by which it keeps its parts, and
// gives it its name.
func (s *store) name(ctx context.Context, name string, m ocispec.Manifest) (ocispec.Descriptor, error) {
	labels := map[string]string{}
	for i, l := range m.Layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	labels["containerd.io/gc.ref.content.config"] = m.Config.Digest.String()
	desc, err := s.putJSON(ctx, m.MediaType, m, content.WithLabels(labels))
	if err != nil {
		return desc, err
	}
	_, err = s.images.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: name, Target: oci.DescriptorToProto(desc)}})
	return desc, storeError(err)
}

// storeError gives what the store's process answered a kind.
func storeError(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	switch {
	case ok && st.Code() == codes.InvalidArgument:
		return &root.Error{Kind: root.Invalid, Message: st.Message(), Err: err}
	case ok && st.Code() == codes.FailedPrecondition:
		return &root.Error{Kind: root.Unavailable, Message: st.Message(), Err: err}
	case ok && st.Code() == codes.ResourceExhausted:
		return &root.Error{Kind: root.Exhausted, Message: st.Message(), Err: err}
	case ok && st.Code() == codes.Unavailable, errdefs.IsUnavailable(err):
		return &root.Error{Kind: root.Unavailable, Message: "the image store went away during the build: try again", Err: err}
	}
	return fmt.Errorf("image store: %w", err)
}
