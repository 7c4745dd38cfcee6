package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

// collectGarbage removes what no root reaches; see the package comment.
func (s *Store) collectGarbage(ctx context.Context) error {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	ctx = Context(ctx)
	s.mu.Lock()
	var mounted []root.Digest
	for _, m := range s.mounts {
		mounted = append(mounted, m.Digest)
	}
	for d, at := range s.given {
		if time.Since(at) > s.o.KeepFor {
			delete(s.given, d)
			continue
		}
		mounted = append(mounted, root.Digest(d))
	}
	clear(s.lower) // some of it may go
	s.mu.Unlock()
	slices.Sort(mounted)
	mounted = slices.Compact(mounted)
	_, err := s.leases.Create(ctx, leases.WithID(mountedLease))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("collect garbage: %w", err)
	}
	if err := s.setResources(ctx, leases.Lease{ID: mountedLease}, mounted); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// allParts returns the size of every blob and unpacked layer in the store.
func (s *Store) allParts(ctx context.Context) (map[string]root.Bytes, error) {
	parts := map[string]root.Bytes{}
	err := s.content.Walk(ctx, func(i content.Info) error {
		parts[i.Digest.String()] = root.Bytes(i.Size)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.snap.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted {
			return nil
		}
		u, err := s.snap.Usage(ctx, i.Name)
		if err != nil {
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
		parts["snapshot "+i.Name] = root.Bytes(u.Size)
		return nil
	})
	return parts, err
}

// neededParts returns what protected and mounted images consist of.
func (s *Store) neededParts(ctx context.Context) (map[string]root.Bytes, error) {
	held, err := s.holders(ctx)
	if err != nil {
		return nil, err
	}
	needed := map[string]root.Bytes{}
	for d := range held {
		parts, err := s.parts(ctx, s.descriptor(ctx, d))
		if err != nil {
			return nil, err
		}
		maps.Copy(needed, parts)
	}
	return needed, nil
}

// descriptor completes a bare digest with the media type that its content
// states: the libraries walk by type.
func (s *Store) descriptor(ctx context.Context, d root.Digest) ocispec.Descriptor {
	desc := ocispec.Descriptor{Digest: digest.Digest(d), MediaType: ocispec.MediaTypeImageManifest}
	var doc struct {
		MediaType string               `json:"mediaType"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := s.readJSON(ctx, desc, &doc); err != nil {
		return desc // absent: whoever walks it finds out
	}
	if doc.Manifests != nil {
		desc.MediaType = ocispec.MediaTypeImageIndex
	}
	if doc.MediaType != "" {
		desc.MediaType = doc.MediaType
	}
	return desc
}

// excess returns the names to give up for the budget, oldest first.
func (s *Store) excess(ctx context.Context) ([]images.Image, error) {
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	held, err := s.holders(ctx)
	if err != nil {
		return nil, err
	}
	// counted grows by what the budget does not pay for, then by what it does.
	counted, err := s.neededParts(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b images.Image) int { return s.lastUse(b).Compare(s.lastUse(a)) })

	var candidates []images.Image
	releases := map[string]int{}
	for _, img := range all {
		r, err := parseRef(img.Name)
		if err != nil {
			continue
		}
		spare := time.Since(s.lastUse(img)) < s.o.KeepFor || len(held[root.Digest(img.Target.Digest)]) > 0
		if m, err := s.manifestOf(ctx, r, img.Target); err == nil {
			spare = spare || len(held[root.Digest(m.Digest)]) > 0
		}
		if s.own(r) && releases[r.repository()] < s.o.KeepReleases {
			releases[r.repository()]++
			spare = true
		}
		if !spare {
			candidates = append(candidates, img)
			continue
		}
		parts, err := s.parts(ctx, img.Target)
		if err != nil {
			return nil, err
		}
		maps.Copy(counted, parts)
	}
	var paid root.Bytes
	for i, img := range candidates { // newest first: they may stay until the budget is used up
		parts, err := s.parts(ctx, img.Target)
		if err != nil {
			return nil, err
		}
		for k, size := range parts {
			if _, ok := counted[k]; !ok {
				counted[k] = size
				paid += size
			}
		}
		if paid > s.o.Budget {
			old := slices.Clone(candidates[i:])
			slices.Reverse(old)
			return old, nil
		}
	}
	return nil, nil
}

func (s *Store) lastUse(img images.Image) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.used[img.Name]; ok && t.After(img.UpdatedAt) {
		return t
	}
	return img.UpdatedAt
}
