package image

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

// labelSource on a blob lists the repositories ("app,other") of our own
// registry that it belongs to: whoever may read one of them may read it.
func (s *Store) labelSource() string { return "containerd.io/distribution.source." + s.Registry() }

// manifestOf returns the manifest for this host's platform that top stands for:
// top itself, or an entry of the index top.
func (s *Store) manifestOf(ctx context.Context, r ref, top ocispec.Descriptor) (ocispec.Descriptor, error) {
	var doc struct {
		MediaType string               `json:"mediaType"`
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor  `json:"config"`
	}
	if err := s.readJSON(ctx, top, &doc); err != nil {
		return ocispec.Descriptor{}, err
	}
	if doc.Config != nil && doc.Config.Digest != "" {
		p, err := s.platformOf(ctx, *doc.Config)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if !s.fits(p) {
			return ocispec.Descriptor{}, s.wrongPlatform(r, []ocispec.Platform{p})
		}
		if top.MediaType == "" {
			top.MediaType = doc.MediaType
		}
		return top, nil
	}
	best, offered, err := s.pick(ctx, doc.Manifests)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if best == nil {
		if len(offered) == 0 {
			return ocispec.Descriptor{}, root.Errorf(root.Invalid, "%s holds no image", r)
		}
		return ocispec.Descriptor{}, s.wrongPlatform(r, offered)
	}
	return *best, nil
}

// pick returns the entry of an index that fits this host, or nil, and what the
// index offers. Entries that are no images (attestations) are passed over.
func (s *Store) pick(ctx context.Context, entries []ocispec.Descriptor) (best *ocispec.Descriptor, offered []ocispec.Platform, err error) {
	for _, e := range entries {
		if !images.IsManifestType(e.MediaType) || e.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		var p ocispec.Platform
		if e.Platform != nil {
			p = *e.Platform
		} else {
			var m ocispec.Manifest
			if err := s.readJSON(ctx, e, &m); err != nil {
				return nil, nil, err
			}
			if p, err = s.platformOf(ctx, m.Config); err != nil {
				return nil, nil, err
			}
		}
		offered = append(offered, p)
		if s.fits(p) && best == nil {
			best = &e
		}
	}
	return best, offered, nil
}

func (s *Store) platformOf(ctx context.Context, config ocispec.Descriptor) (ocispec.Platform, error) {
	var p ocispec.Platform
	err := s.readJSON(ctx, config, &p)
	return p, err
}

// fits reports whether this host runs p. Images made by hand often do not say
// what they are; they are taken at their owner's word.
func (s *Store) fits(p ocispec.Platform) bool {
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		return p.OS == "linux"
	}
	return s.platform.Match(platforms.Normalize(p))
}

func (s *Store) wrongPlatform(r ref, offered []ocispec.Platform) error {
	var names []string
	for _, p := range offered {
		if n := platforms.Format(platforms.Normalize(p)); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	want := platforms.Format(platforms.DefaultSpec())
	return root.Errorf(root.Invalid, "image %s is not made for this host: it needs %s, the image is for %s; build or tag one for %s",
		clip(r.String()), want, strings.Join(names, ", "), want)
}

// name records that r means the manifest or index top, which is here with all
// that this host needs of it, and makes top keep its parts alive.
func (s *Store) name(ctx context.Context, r ref, top ocispec.Descriptor) error {
	if err := s.link(ctx, r, top); err != nil {
		return fmt.Errorf("name image %s: %w", r, err)
	}
	img := images.Image{Name: r.name(), Target: top}
	if _, err := s.images.Create(ctx, img); err != nil {
		if !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("name image %s: %w", r, err)
		}
		if _, err := s.images.Update(ctx, img, "target"); err != nil {
			return fmt.Errorf("name image %s: %w", r, err)
		}
	}
	s.touch(r.name())
	return nil
}

// link labels the blobs below top with the references that collection
// follows and, in our own registry, with the repository. Parts of other
// platforms may be absent.
func (s *Store) link(ctx context.Context, r ref, top ocispec.Descriptor) error {
	children := images.SetChildrenLabels(s.content, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		c, err := images.Children(ctx, s.content, d)
		return slices.DeleteFunc(c, func(d ocispec.Descriptor) bool {
			_, err := s.content.Info(ctx, d.Digest)
			return err != nil
		}), err
	}))
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if s.own(r) {
			if err := s.addSource(ctx, d.Digest, r.path); err != nil {
				return nil, err
			}
		}
		return children(ctx, d)
	}), top)
}

// addSource notes that the blob belongs to a repository of our own registry.
func (s *Store) addSource(ctx context.Context, d digest.Digest, repository string) error {
	info, err := s.content.Info(ctx, d)
	if err != nil {
		return err
	}
	label := s.labelSource()
	have := strings.Split(info.Labels[label], ",")
	if slices.Contains(have, repository) {
		return nil
	}
	if have[0] == "" {
		have = have[:0]
	}
	_, err = s.content.Update(ctx, content.Info{Digest: d, Labels: map[string]string{label: strings.Join(append(have, repository), ",")}}, "labels."+label)
	return err
}

// local returns the image that r means, if it is here whole.
func (s *Store) local(ctx context.Context, r ref) (root.Image, error) {
	if r.digest != "" {
		m, err := s.manifestOf(ctx, r, ocispec.Descriptor{Digest: r.digest})
		if err != nil {
			if errdefs.IsNotFound(err) {
				return root.Image{}, root.Errorf(root.NotFound, "image %s is not on this host", clip(r.String()))
			}
			return root.Image{}, err
		}
		return s.give(ctx, r, m)
	}
	img, err := s.images.Get(ctx, r.name())
	if err != nil {
		if errdefs.IsNotFound(err) {
			return root.Image{}, root.Errorf(root.NotFound, "image %s is not on this host", clip(r.String()))
		}
		return root.Image{}, err
	}
	m, err := s.manifestOf(ctx, r, img.Target)
	if err != nil {
		return root.Image{}, err
	}
	s.touch(r.name())
	return s.give(ctx, r, m)
}

// give is describe for a caller who is going to use the image: until KeepFor
// is over, collection spares it as if it were mounted.
func (s *Store) give(ctx context.Context, r ref, m ocispec.Descriptor) (root.Image, error) {
	s.mu.Lock()
	s.given[m.Digest] = time.Now()
	s.mu.Unlock()
	s.collecting.RLock() // as in mount
	defer s.collecting.RUnlock()
	return s.describe(ctx, r, m)
}

// describe turns a manifest that is here into the answer for a user.
func (s *Store) describe(ctx context.Context, r ref, m ocispec.Descriptor) (root.Image, error) {
	manifest, config, _, err := s.read(ctx, root.Digest(m.Digest))
	if err != nil {
		return root.Image{}, err
	}
	for _, l := range manifest.Layers {
		if _, err := s.content.Info(ctx, l.Digest); err != nil {
			return root.Image{}, root.Errorf(root.NotFound, "image %s is not on this host as a whole: layer %s is missing", clip(r.String()), l.Digest)
		}
	}
	img := r.image(m.Digest)
	img.Labels = config.Config.Labels
	return img, nil
}

// forget removes a name, if it still means what the caller saw.
func (s *Store) forget(ctx context.Context, img images.Image) error {
	err := s.images.Delete(ctx, img.Name, images.DeleteTarget(&img.Target))
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, img.Name)
	return nil
}
