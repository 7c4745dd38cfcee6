package image

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

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

// named is what is known of an image that gets a name.
type named struct {
	proven proof  // see there
	public bool   // its parts are everybody's
	org    string // by whose credentials it came; "" makes the name everybody's
}

// name records that r means the manifest or index top, which is here with all
// that this host needs of it, and makes top keep its parts alive.
func (s *Store) name(ctx context.Context, r ref, top ocispec.Descriptor, n named) error {
	if err := s.link(ctx, r, top, n.proven, n.public); err != nil {
		return fmt.Errorf("name image %s: %w", r, err)
	}
	img := images.Image{Name: r.name(), Target: top}
	was, err := s.images.Get(ctx, img.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("name image %s: %w", r, err)
	}
	known := err == nil
	img.Labels = s.orgs(was, known, img, n.org)
	if known {
		_, err = s.images.Update(ctx, img, "target", "labels")
	} else if _, err = s.images.Create(ctx, img); errdefs.IsAlreadyExists(err) { // somebody did, meanwhile
		_, err = s.images.Update(ctx, img, "target", "labels")
	}
	if err != nil {
		return fmt.Errorf("name image %s: %w", r, err)
	}
	s.mu.Lock()
	if orgs := img.Labels[labelOrgs]; orgs != "" {
		s.owned[img.Name] = orgs
	} else {
		delete(s.owned, img.Name)
	}
	s.mu.Unlock()
	s.touch(r.name())
	return nil
}

// orgs says whose a name is, once org has given it to img: its own and that of
// those before it, unless it was everybody's and means the same as before.
func (s *Store) orgs(was images.Image, known bool, img images.Image, org string) map[string]string {
	if org == "" {
		return nil
	}
	before := was.Labels[labelOrgs]
	switch {
	case before == "" && known && was.Target.Digest == img.Target.Digest:
		return nil
	case before == "":
		return map[string]string{labelOrgs: org}
	}
	all := append(strings.Split(before, ","), org)
	slices.Sort(all)
	return map[string]string{labelOrgs: strings.Join(slices.Compact(all), ",")}
}

// link labels the blobs below top with the references that collection follows
// and with r's repository. Parts of other platforms may be absent; what is not
// proven is as good as absent.
func (s *Store) link(ctx context.Context, r ref, top ocispec.Descriptor, proven proof, public bool) error {
	children := images.SetChildrenLabels(s.content, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		all, err := images.Children(ctx, s.content, d)
		if err != nil {
			return nil, err
		}
		here := all[:0]
		for _, c := range all {
			info, err := s.content.Info(ctx, c.Digest)
			if errdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if proven == nil || proven(c.Digest) || s.inRepository(info, r) {
				here = append(here, c)
			}
		}
		return here, nil
	}))
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := s.addSource(ctx, r, d.Digest, public); err != nil {
			return nil, err
		}
		return children(ctx, d)
	}), top)
}

// local returns the image that r means, if it is here whole.
func (s *Store) local(ctx context.Context, r ref) (root.Image, error) {
	if r.digest != "" {
		return s.localByDigest(ctx, r)
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

// localByDigest is local for a reference with a digest. That something of this
// digest is here is not enough: it must have come by the repository named. A
// bare digest is for callers who may use all that is here.
func (s *Store) localByDigest(ctx context.Context, r ref) (root.Image, error) {
	missing := root.Errorf(root.NotFound, "image %s is not on this host", clip(r.String()))
	if r.domain != "" {
		if ok, err := s.holds(ctx, r, r.digest); err != nil {
			return root.Image{}, err
		} else if !ok {
			return root.Image{}, missing
		}
	}
	m, err := s.manifestOf(ctx, r, ocispec.Descriptor{Digest: r.digest})
	if errdefs.IsNotFound(err) {
		return root.Image{}, missing
	}
	if err != nil {
		return root.Image{}, err
	}
	if r.domain != "" {
		ok, err := s.holdsAll(ctx, r, m.Digest)
		if err != nil && !root.IsKind(err, root.NotFound) {
			return root.Image{}, err
		}
		if !ok {
			return root.Image{}, missing
		}
	}
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
	delete(s.owned, img.Name)
	return nil
}
