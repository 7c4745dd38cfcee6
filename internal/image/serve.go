package image

import (
	"context"
	"errors"
	"fmt"
	"net"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
)

const (
	// maxMessage is containerd's own bound for one message: a piece of a blob.
	maxMessage = 16 << 20
	// labelExpires is containerd's: on a lease, when it ends by itself.
	labelExpires = "containerd.io/gc.expire"
	// labelCache marks the builder's leases that have no end: its layer cache,
	// which it prunes itself.
	labelCache = "roost.run/cache"
	// labelResult on an image that the builder names is the snapshot that holds
	// its files already, so that nothing needs to be unpacked.
	labelResult = "roost.run/snapshot"
)

// Serve lends the store to the builder: containerd's gRPC services for
// content, snapshots, leases and images. The latter names images in our own
// registry only; asked for an image that is not here it pulls it, so that the
// builder needs no credentials. Peers must be root. It returns when ctx ends,
// having cut off what was in progress, or when l fails; l is closed.
func (s *Store) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.WaitForHandlers(true))
	contentapi.RegisterContentServer(srv, contentserver.New(s.content))
	leasesapi.RegisterLeasesServer(srv, &leaseService{lm: s.leases, collect: s.collectGarbage})
	snapshotsapi.RegisterSnapshotsServer(srv, &snapshotService{sn: s.snap})
	imagesapi.RegisterImagesServer(srv, &imageService{s: s})
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	err := srv.Serve(rootListener{l})
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("lend the image store: %w", err)
}

// rootListener hangs up on peers that are not root.
type rootListener struct{ net.Listener }

func (l rootListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if u, ok := c.(*net.UnixConn); ok {
			if cred, err := ipc.PeerCredentials(u); err == nil && cred.UID == 0 {
				return c, nil
			}
		}
		_ = c.Close() // a stranger: nothing to tell it
	}
}

// toStatus gives gRPC's form of an error, ours or the libraries'.
func toStatus(err error) error {
	switch root.KindOf(err) {
	case root.Invalid:
		return status.Error(codes.InvalidArgument, root.MessageOf(err))
	case root.NotFound:
		return status.Error(codes.NotFound, root.MessageOf(err))
	case root.Exhausted:
		return status.Error(codes.ResourceExhausted, root.MessageOf(err))
	case root.Unavailable, root.Precondition, root.Forbidden:
		return status.Error(codes.FailedPrecondition, root.MessageOf(err)) // a registry's, not this connection's
	}
	return errgrpc.ToGRPC(err)
}

type leaseService struct {
	leasesapi.UnimplementedLeasesServer
	lm      leases.Manager
	collect func(context.Context) error
}

func (l *leaseService) Create(ctx context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	id := leases.WithRandomID()
	if r.ID != "" {
		id = leases.WithID(r.ID)
	}
	label := labelFlight // swept at the next start
	if r.Labels[labelExpires] == "" {
		label = labelCache
	}
	lease, err := l.lm.Create(ctx, id, leases.WithLabels(r.Labels), leases.WithLabel(label, "1"))
	if err != nil {
		return nil, toStatus(err)
	}
	return &leasesapi.CreateResponse{Lease: leaseToAPI(lease)}, nil
}

func leaseToAPI(l leases.Lease) *leasesapi.Lease {
	return &leasesapi.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: protobuf.ToTimestamp(l.CreatedAt)}
}

// lent refuses leases that are not the builder's to change.
func (l *leaseService) lent(ctx context.Context, id string) (leases.Lease, error) {
	ls, err := l.lm.List(ctx, fmt.Sprintf("id==%q,labels.%q", id, labelFlight), fmt.Sprintf("id==%q,labels.%q", id, labelCache))
	if err != nil {
		return leases.Lease{}, toStatus(err)
	}
	if len(ls) == 0 {
		return leases.Lease{}, status.Errorf(codes.NotFound, "lease %q: not found", id)
	}
	return ls[0], nil
}

func (l *leaseService) Delete(ctx context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	lease, err := l.lent(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	err = l.lm.Delete(ctx, lease)
	if err == nil && r.Sync { // the builder's way to ask for what it gave up to be removed
		err = l.collect(ctx)
	}
	return &emptypb.Empty{}, toStatus(err)
}

func (l *leaseService) List(ctx context.Context, r *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	ls, err := l.lm.List(ctx, r.Filters...)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &leasesapi.ListResponse{}
	for _, lease := range ls {
		resp.Leases = append(resp.Leases, leaseToAPI(lease))
	}
	return resp, nil
}

func (l *leaseService) AddResource(ctx context.Context, r *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	lease, err := l.lent(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	err = l.lm.AddResource(ctx, lease, leases.Resource{ID: r.GetResource().GetID(), Type: r.GetResource().GetType()})
	return &emptypb.Empty{}, toStatus(err)
}

func (l *leaseService) DeleteResource(ctx context.Context, r *leasesapi.DeleteResourceRequest) (*emptypb.Empty, error) {
	lease, err := l.lent(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	err = l.lm.DeleteResource(ctx, lease, leases.Resource{ID: r.GetResource().GetID(), Type: r.GetResource().GetType()})
	return &emptypb.Empty{}, toStatus(err)
}

func (l *leaseService) ListResources(ctx context.Context, r *leasesapi.ListResourcesRequest) (*leasesapi.ListResourcesResponse, error) {
	rs, err := l.lm.ListResources(ctx, leases.Lease{ID: r.ID})
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &leasesapi.ListResourcesResponse{}
	for _, res := range rs {
		resp.Resources = append(resp.Resources, &leasesapi.Resource{ID: res.ID, Type: res.Type})
	}
	return resp, nil
}

// snapshotService has the one snapshotter, whatever name a request gives it.
type snapshotService struct {
	snapshotsapi.UnimplementedSnapshotsServer
	sn snapshots.Snapshotter
}

func labelOpts(labels map[string]string) []snapshots.Opt {
	if len(labels) == 0 {
		return nil
	}
	return []snapshots.Opt{snapshots.WithLabels(labels)}
}

func (s *snapshotService) Prepare(ctx context.Context, r *snapshotsapi.PrepareSnapshotRequest) (*snapshotsapi.PrepareSnapshotResponse, error) {
	m, err := s.sn.Prepare(ctx, r.Key, r.Parent, labelOpts(r.Labels)...)
	return &snapshotsapi.PrepareSnapshotResponse{Mounts: mount.ToProto(m)}, toStatus(err)
}

func (s *snapshotService) View(ctx context.Context, r *snapshotsapi.ViewSnapshotRequest) (*snapshotsapi.ViewSnapshotResponse, error) {
	m, err := s.sn.View(ctx, r.Key, r.Parent, labelOpts(r.Labels)...)
	return &snapshotsapi.ViewSnapshotResponse{Mounts: mount.ToProto(m)}, toStatus(err)
}

func (s *snapshotService) Mounts(ctx context.Context, r *snapshotsapi.MountsRequest) (*snapshotsapi.MountsResponse, error) {
	m, err := s.sn.Mounts(ctx, r.Key)
	return &snapshotsapi.MountsResponse{Mounts: mount.ToProto(m)}, toStatus(err)
}

func (s *snapshotService) Commit(ctx context.Context, r *snapshotsapi.CommitSnapshotRequest) (*emptypb.Empty, error) {
	opts := labelOpts(r.Labels)
	if r.Parent != "" {
		opts = append(opts, snapshots.WithParent(r.Parent))
	}
	return &emptypb.Empty{}, toStatus(s.sn.Commit(ctx, r.Name, r.Key, opts...))
}

func (s *snapshotService) Remove(ctx context.Context, r *snapshotsapi.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, toStatus(s.sn.Remove(ctx, r.Key))
}

func (s *snapshotService) Stat(ctx context.Context, r *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	info, err := s.sn.Stat(ctx, r.Key)
	return &snapshotsapi.StatSnapshotResponse{Info: proxy.InfoToProto(info)}, toStatus(err)
}

func (s *snapshotService) Update(ctx context.Context, r *snapshotsapi.UpdateSnapshotRequest) (*snapshotsapi.UpdateSnapshotResponse, error) {
	info, err := s.sn.Update(ctx, proxy.InfoFromProto(r.Info), r.UpdateMask.GetPaths()...)
	return &snapshotsapi.UpdateSnapshotResponse{Info: proxy.InfoToProto(info)}, toStatus(err)
}

func (s *snapshotService) Usage(ctx context.Context, r *snapshotsapi.UsageRequest) (*snapshotsapi.UsageResponse, error) {
	u, err := s.sn.Usage(ctx, r.Key)
	return proxy.UsageToProto(u), toStatus(err)
}

func (s *snapshotService) List(r *snapshotsapi.ListSnapshotsRequest, stream snapshotsapi.Snapshots_ListServer) error {
	return toStatus(s.sn.Walk(stream.Context(), func(_ context.Context, info snapshots.Info) error {
		return stream.Send(&snapshotsapi.ListSnapshotsResponse{Info: []*snapshotsapi.Info{proxy.InfoToProto(info)}})
	}, r.Filters...))
}
