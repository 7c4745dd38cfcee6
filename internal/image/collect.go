package image

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	root "github.com/roost-run/roost"
)

const (
	labelOwner   = "roost.run/owner" // on a lease of Protect: the owner
	mountedLease = "roost-mounted"   // what is mounted or was just given out, as of the last collection
)

// Protect makes digests the images that owner must not lose, in place of
// those it protected before; none releases it. An owner is any string: the
// agent uses "machine/<id>". The protection outlives the process. An image
// that is not here gives NotFound, and the owner keeps what it had.
func (s *Store) Protect(ctx context.Context, owner string, digests ...root.Digest) error {
	ctx = Context(ctx)
	id := "owner-" + digest.FromString(owner).Encoded()[:32]
	l := leases.Lease{ID: id}
	if len(digests) == 0 {
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("protect for %s: %w", owner, err)
		}
		return nil
	}
	s.collecting.RLock() // see the field
	defer s.collecting.RUnlock()
	for _, d := range digests {
		if _, err := s.content.Info(ctx, digest.Digest(d)); err != nil {
			if errdefs.IsNotFound(err) {
				return root.Errorf(root.NotFound, "image %s is not on this host: pull or load it first", d)
			}
			return fmt.Errorf("protect for %s: %w", owner, err)
		}
	}
	have, err := s.leases.ListResources(ctx, l)
	if err == nil && sameResources(have, digests) {
		return nil // the usual case at a restart: no write
	}
	// One transaction is one wait for the disk.
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		if _, err := s.leases.Create(ctx, leases.WithID(id), leases.WithLabel(labelOwner, owner)); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		return s.setResources(ctx, l, digests)
	})
	if err != nil {
		return fmt.Errorf("protect for %s: %w", owner, err)
	}
	return nil
}

func sameResources(have []leases.Resource, digests []root.Digest) bool {
	for _, r := range have {
		if !slices.Contains(digests, root.Digest(r.ID)) {
			return false
		}
	}
	return len(have) == len(slices.Compact(slices.Sorted(slices.Values(digests))))
}

// setResources makes the lease hold exactly digests; it adds before it drops.
func (s *Store) setResources(ctx context.Context, l leases.Lease, digests []root.Digest) error {
	have, err := s.leases.ListResources(ctx, l)
	if err != nil {
		return err
	}
	for _, d := range digests {
		r := leases.Resource{ID: string(d), Type: "content"}
		if !slices.Contains(have, r) {
			if err := s.leases.AddResource(ctx, l, r); err != nil {
				return err
			}
		}
	}
	for _, r := range have {
		if !slices.Contains(digests, root.Digest(r.ID)) {
			if err := s.leases.DeleteResource(ctx, l, r); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// holders returns who needs which manifest: owners by Protect, and mounts.
func (s *Store) holders(ctx context.Context) (map[root.Digest][]string, error) {
	ls, err := s.leases.List(ctx, fmt.Sprintf("labels.%q", labelOwner))
	if err != nil {
		return nil, err
	}
	held := map[root.Digest][]string{}
	for _, l := range ls {
		rs, err := s.leases.ListResources(ctx, l)
		if err != nil {
			if errdefs.IsNotFound(err) {
				continue
			}
			return nil, err
		}
		for _, r := range rs {
			held[root.Digest(r.ID)] = append(held[root.Digest(r.ID)], l.Labels[labelOwner])
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, m := range s.mounts {
		if len(held[m.Digest]) == 0 {
			held[m.Digest] = append(held[m.Digest], "mount "+key)
		}
	}
	return held, nil
}

// Info is one image of List.
type Info struct {
	root.Image
	Size      root.Bytes // on disk: blobs and unpacked layers, shared ones counted for each
	CreatedAt time.Time  // when it was pulled, loaded or built here
	InUse     bool       // protected or mounted
}

// List returns the images by name. One whose parts for this host are missing
// is listed with an empty digest.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	ctx = Context(ctx)
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	held, err := s.holders(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []Info
	for _, img := range all {
		r, err := parseRef(img.Name)
		if err != nil {
			continue // not one of ours: nothing else makes names
		}
		info := Info{Image: r.image(""), CreatedAt: img.CreatedAt}
		if m, err := s.manifestOf(ctx, r, img.Target); err == nil {
			if d, err := s.describe(ctx, r, m); err == nil {
				info.Image = d
			}
		}
		info.InUse = len(held[info.Digest]) > 0 || len(held[root.Digest(img.Target.Digest)]) > 0
		parts, err := s.parts(ctx, img.Target)
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, size := range parts {
			info.Size += size
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Ref(), b.Ref()) })
	return list, nil
}

// parts returns the size of every blob and snapshot reachable from top.
func (s *Store) parts(ctx context.Context, top ocispec.Descriptor) (map[string]root.Bytes, error) {
	parts := map[string]root.Bytes{}
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := s.content.Info(ctx, d.Digest)
		if err != nil {
			if errdefs.IsNotFound(err) {
				return nil, images.ErrSkipDesc
			}
			return nil, err
		}
		parts[d.Digest.String()] = root.Bytes(info.Size)
		for key := info.Labels[labelSnapshot]; key != ""; {
			u, err := s.snap.Usage(ctx, key)
			if err != nil {
				break // collected meanwhile
			}
			parts["snapshot "+key] = root.Bytes(u.Size)
			st, err := s.snap.Stat(ctx, key)
			if err != nil {
				break
			}
			key = st.Parent
		}
		return images.Children(ctx, s.content, d)
	}), top)
	if errdefs.IsNotFound(err) {
		err = nil // removed meanwhile
	}
	return parts, err
}

// Usage is what the store occupies on disk.
type Usage struct {
	Blobs    root.Bytes // compressed layers, configs, manifests
	Unpacked root.Bytes // snapshots of layers
	Needed   root.Bytes // the part of both that protected or mounted images hold
	Images   int        // names
}

// Usage adds up what is stored. Files that machines write are not in it.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	ctx = Context(ctx)
	var u Usage
	all, err := s.allParts(ctx)
	if err != nil {
		return u, fmt.Errorf("image usage: %w", err)
	}
	for k, size := range all {
		if strings.HasPrefix(k, "snapshot ") {
			u.Unpacked += size
		} else {
			u.Blobs += size
		}
	}
	needed, err := s.neededParts(ctx)
	if err != nil {
		return u, fmt.Errorf("image usage: %w", err)
	}
	for _, size := range needed {
		u.Needed += size
	}
	names, err := s.images.List(ctx)
	if err != nil {
		return u, fmt.Errorf("image usage: %w", err)
	}
	u.Images = len(names)
	return u, nil
}

// Remove forgets the image that ref names and frees what nothing else holds.
// A machine that needs it gives Precondition, naming who.
func (s *Store) Remove(ctx context.Context, reference string) error {
	r, err := s.parse(reference)
	if err != nil {
		return err
	}
	ctx = Context(ctx)
	all, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	held, err := s.holders(ctx)
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	var found []images.Image
	for _, img := range all {
		n, err := parseRef(img.Name)
		if err != nil {
			continue
		}
		m, merr := s.manifestOf(ctx, n, img.Target)
		match := n.name() == r.name()
		if r.digest != "" {
			same := img.Target.Digest == r.digest || merr == nil && m.Digest == r.digest
			match = same && (r.domain == "" || n.repository() == r.repository())
		}
		if !match {
			continue
		}
		who := held[root.Digest(img.Target.Digest)]
		if merr == nil {
			who = append(who, held[root.Digest(m.Digest)]...)
		}
		// Another name may keep it alive for them.
		if len(who) > 0 {
			slices.Sort(who)
			return root.Errorf(root.Precondition, "image %s is in use by %s: destroy or update that first", clip(reference), listOf(slices.Compact(who)))
		}
		found = append(found, img)
	}
	if len(found) == 0 {
		return root.Errorf(root.NotFound, "image %s is not on this host", clip(reference))
	}
	for _, img := range found {
		if err := s.forget(ctx, img); err != nil {
			return fmt.Errorf("remove image %s: %w", img.Name, err)
		}
		if m, err := s.manifestOf(ctx, ref{}, img.Target); err == nil {
			s.mu.Lock()
			delete(s.given, m.Digest)
			s.mu.Unlock()
		}
	}
	return s.collectGarbage(ctx)
}

func listOf(who []string) string {
	const most = 5
	if len(who) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(who[:most], ", "), len(who)-most)
	}
	return strings.Join(who, ", ")
}

// decompress opens a plain, gzip or zstd stream.
func decompress(r io.Reader) (io.ReadCloser, error) { return compression.DecompressStream(r) }

// touch notes that somebody asked for the image just now.
func (s *Store) touch(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[name] = time.Now()
}

// Collect brings what nobody needs within the budget and returns how much it
// freed. Blobs and layers that nothing refers to go first. Then, while the
// images that no owner protects and nobody mounts take more than the budget,
// the oldest of them lose their names and go too: except the newest
// Options.KeepReleases of each repository of our own registry, and whatever
// was asked for within Options.KeepFor.
func (s *Store) Collect(ctx context.Context) (root.Bytes, error) {
	ctx = Context(ctx)
	before, err := s.allParts(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect images: %w", err)
	}
	if err := s.collectGarbage(ctx); err != nil {
		return 0, fmt.Errorf("collect images: %w", err)
	}
	old, err := s.excess(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect images: %w", err)
	}
	for _, img := range old {
		if err := s.forget(ctx, img); err != nil {
			return 0, fmt.Errorf("collect images: %w", err)
		}
		s.log.Info("image collected", "image", img.Name)
	}
	if len(old) > 0 {
		if err := s.collectGarbage(ctx); err != nil {
			return 0, fmt.Errorf("collect images: %w", err)
		}
	}
	after, err := s.allParts(ctx)
	if err != nil {
		return 0, fmt.Errorf("collect images: %w", err)
	}
	var freed root.Bytes
	for k, size := range before {
		if _, ok := after[k]; !ok {
			freed += size
		}
	}
	return freed, nil
}
