package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/ipc"
)

// lend serves the store and returns a connection to it.
func lend(t *testing.T, s *Store) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "store.sock")
	l, err := ipc.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// A builder does its work through the proxies of containerd's own client.
func TestServe(t *testing.T) {
	t.Parallel()
	s := open(t, Options{KeepFor: 1})
	conn := lend(t, s)
	ctx := Context(t.Context())
	lm := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))
	cs := contentproxy.NewContentStore(conn)
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), snapshotter)

	lease, err := lm.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	leased := leases.WithLease(ctx, lease.ID)
	data := bytes.Repeat([]byte("x"), 5<<20) // several messages
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(leased, cs, "ref", bytes.NewReader(data), desc); err != nil {
		t.Fatal(err)
	}
	mounts, err := sn.Prepare(leased, "work", "")
	if err != nil || len(mounts) != 1 {
		t.Fatalf("prepare: %v, %v", mounts, err)
	}
	if err := os.WriteFile(filepath.Join(mounts[0].Source, "f"), []byte("made"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := sn.Commit(leased, "done", "work"); err != nil {
		t.Fatal(err)
	}
	if _, err := sn.View(leased, "look", "done"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := content.ReadBlob(ctx, cs, desc)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("leased blob: got %d bytes, %v", len(got), err)
	}
	var names []string
	if err := sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"done", "look"}, names); diff != "" {
		t.Errorf("snapshots (-want +got):\n%s", diff)
	}
	if err := lm.Delete(ctx, lease); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := cs.Info(ctx, desc.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("blob after its lease: got %v, want not found", err)
	}
	if _, err := sn.Stat(ctx, "done"); !errdefs.IsNotFound(err) {
		t.Errorf("snapshot after its lease: got %v, want not found", err)
	}
}

// What a machine's protection holds is not the builder's to give up.
func TestServeGuards(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, demo)
	if err := s.Protect(t.Context(), "machine/1", img.Digest); err != nil {
		t.Fatal(err)
	}
	conn := lend(t, s)
	ctx := Context(t.Context())
	lm := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))
	all, err := lm.List(ctx)
	if err != nil || len(all) != 1 {
		t.Fatalf("leases: got %v, %v", all, err)
	}
	if err := lm.Delete(ctx, all[0]); !errdefs.IsNotFound(err) {
		t.Errorf("delete of a protection: got %v, want not found", err)
	}
	if err := s.Remove(t.Context(), "demo:1"); !root.IsKind(err, root.Precondition) {
		t.Errorf("remove: got %v, want Precondition", err)
	}
	images := imagesapi.NewImagesClient(conn)
	info, err := s.content.Info(ctx, digest.Digest(img.Digest))
	if err != nil {
		t.Fatal(err)
	}
	target := oci.DescriptorToProto(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: info.Digest, Size: info.Size})
	for name, want := range map[string]codes.Code{
		"docker.io/library/demo:2":                                  codes.InvalidArgument,
		"registry.roost.test/app":                                   codes.OK, // the tag latest
		"registry.roost.test/app:1":                                 codes.OK,
		"registry.roost.test/app@sha256:" + strings.Repeat("0", 64): codes.InvalidArgument,
		"UPPER": codes.InvalidArgument,
	} {
		_, err := images.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: name, Target: target}})
		if got := status.Code(err); got != want {
			t.Errorf("name %s: got %v (%v), want %v", name, got, err, want)
		}
	}
	if _, err := s.Resolve(t.Context(), "registry.roost.test/app:1"); err != nil {
		t.Error(err)
	}
}

// What a process left half-made when it was killed goes at the next start.
func TestOpenReleasesFlights(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := Open(t.Context(), Options{Root: dir, Domain: "roost.test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, _, err := first.Flight(t.Context()) // never given back
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("whole")
	if err := content.WriteBlob(ctx, first.content, "whole", bytes.NewReader(data), ocispec.Descriptor{Digest: digest.FromBytes(data), Size: 5}); err != nil {
		t.Fatal(err)
	}
	w, err := first.content.Writer(ctx, content.WithRef("half"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.snap.Prepare(ctx, "half", ""); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Root: dir})
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, s)
}
