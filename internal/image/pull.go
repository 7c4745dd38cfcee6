package image

import (
	"context"

	root "github.com/roost-run/roost"
)

// Progress is how far a pull is.
type Progress struct {
	Stage  string     // "resolve", "download", "unpack", "done"
	Layers int        // of the image; 0 while unknown
	Done   int        // layers that are here
	Bytes  root.Bytes // received so far
	Total  root.Bytes // of the image's blobs; 0 while unknown
}

// Resolve returns the image that reference means, from this host if it is
// here, by digest or else by name, and otherwise by Pull. The result is pinned
// to the digest of the manifest for this host's platform.
func (s *Store) Resolve(ctx context.Context, reference string) (root.Image, error) {
	r, err := parseRef(reference)
	if err != nil {
		return root.Image{}, err
	}
	img, err := s.local(Context(ctx), r)
	if !root.IsKind(err, root.NotFound) || r.domain == "" || s.own(r) {
		return img, err
	}
	return s.Pull(ctx, reference, nil)
}

// Pull fetches and unpacks the image that reference means, even if one of that
// name is here. Progress, if set, is called from one goroutine at a time.
func (s *Store) Pull(ctx context.Context, reference string, progress func(Progress)) (root.Image, error) {
	return root.Image{}, root.Errorf(root.Unimplemented, "pulling images is not built yet")
}
