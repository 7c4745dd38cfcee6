package image

import (
	"context"
	"net"

	root "github.com/roost-run/roost"
)

// Serve lends the store to the builder: containerd's gRPC services for
// content, snapshots, leases and images, on a socket that only root may
// connect to. It returns when ctx ends.
func (s *Store) Serve(ctx context.Context, l net.Listener) error {
	return root.Errorf(root.Unimplemented, "lending the store is not built yet")
}
