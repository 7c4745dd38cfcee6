package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

// Load stores the images of an archive, OCI layout or "docker save", plain or
// compressed, under the names it carries; as, if not empty, names the only
// image in it. Each is unpacked, which checks every layer. An archive that is
// damaged, holds no image for this host, or has layers that point out of their
// root file system gives Invalid and leaves nothing.
func (s *Store) Load(ctx context.Context, r io.Reader, as string) ([]root.Image, error) {
	return s.LoadAllowed(ctx, r, as, nil)
}

// LoadAllowed is Load where allow, if set, may refuse each name that an image
// would get, whoever chose it, before anything gets one.
func (s *Store) LoadAllowed(ctx context.Context, r io.Reader, as string, allow func(name string) error) (loaded []root.Image, err error) {
	var asRef ref
	if as != "" {
		if asRef, err = s.parse(as); err != nil {
			return nil, err
		}
		if asRef.domain == "" || asRef.digest != "" {
			return nil, root.Errorf(root.Invalid, "%q cannot name a loaded image: write repository[:tag]", clip(as))
		}
		if allow != nil { // before the archive is read in vain
			if err := allow(asRef.String()); err != nil {
				return nil, err
			}
		}
	}
	ctx, done, err := s.Flight(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		done()
		if err != nil {
			err = errors.Join(err, s.collectGarbage(context.WithoutCancel(ctx)))
		}
	}()
	plain, err := decompress(r)
	if err != nil {
		return nil, &root.Error{Kind: root.Invalid, Message: "the archive cannot be read", Err: err}
	}
	defer plain.Close()
	// Blobs are written under the names they have in the archive. Two loads
	// must not meet there, and none may go on where a broken one ended.
	brought := &prefixed{Store: s.content, prefix: "load-" + ulid.Make().String() + "-", files: s.maxFiles, has: map[digest.Digest]bool{}}
	top, err := archive.ImportIndex(ctx, brought, plain)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := full(err); root.KindOf(err) != root.Internal { // also what r itself said
			return nil, err
		}
		return nil, &root.Error{Kind: root.Invalid, Message: "the archive is damaged, or neither an OCI layout nor made by \"docker save\"", Err: err}
	}
	entries, err := s.entries(ctx, top)
	if err != nil {
		return nil, err
	}
	targets := map[ref]ocispec.Descriptor{}
	var order []ref
	for _, e := range entries {
		names, err := s.names(e, asRef)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if have, ok := targets[n]; ok && have.Digest != e.desc.Digest {
				return nil, root.Errorf(root.Invalid, "the archive holds several images; load it without a name, or each alone")
			}
			if _, ok := targets[n]; !ok {
				order = append(order, n)
			}
			targets[n] = e.desc
		}
	}
	if len(order) == 0 {
		return nil, root.Errorf(root.Invalid, "the archive does not say what its image is called: give a name, for example \"shop:1\"")
	}
	for _, n := range order {
		if allow != nil {
			if err := allow(n.String()); err != nil {
				return nil, err
			}
		}
		m, err := s.manifestOf(ctx, n, targets[n])
		if err != nil {
			return nil, damaged(err)
		}
		img, err := s.describe(ctx, n, m)
		if err != nil {
			return nil, damaged(err)
		}
		whole, err := s.provenAll(ctx, m.Digest, func(d digest.Digest) (bool, error) {
			if brought.has[d] {
				return true, nil
			}
			return s.holds(ctx, n, d)
		})
		if err != nil {
			return nil, damaged(err)
		}
		if !whole { // what others have under that digest does not fill the gap
			return nil, root.Errorf(root.Invalid, "the archive is damaged: a part of the image is missing")
		}
		if _, err := s.unpacked(ctx, img.Digest); err != nil {
			return nil, err
		}
		loaded = append(loaded, img)
	}
	for _, n := range order {
		if err := s.name(ctx, n, targets[n], named{proven: func(d digest.Digest) bool { return brought.has[d] }, public: !s.own(n)}); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

// damaged turns the absence of a part into the archive's fault.
func damaged(err error) error {
	if errdefs.IsNotFound(err) || root.IsKind(err, root.NotFound) {
		return &root.Error{Kind: root.Invalid, Message: "the archive is damaged: a part of the image is missing", Err: err}
	}
	return err
}

// entry is one image of an archive, with what the archive calls it.
type entry struct {
	desc ocispec.Descriptor
	name string // "docker.io/library/debian:12", or a bare tag, or nothing
}

func (s *Store) names(e entry, as ref) ([]ref, error) {
	if as.domain != "" {
		return []ref{as}, nil
	}
	if e.name == "" {
		return nil, nil
	}
	r, err := s.parse(e.name)
	if err != nil {
		return nil, err
	}
	return []ref{r}, nil
}

// entries lists the images in the index of an archive.
func (s *Store) entries(ctx context.Context, top ocispec.Descriptor) ([]entry, error) {
	var idx ocispec.Index
	if err := s.readJSON(ctx, top, &idx); err != nil {
		return nil, damaged(err)
	}
	var all []entry
	unnamed := false
	for _, d := range idx.Manifests {
		if !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			continue
		}
		name := d.Annotations[images.AnnotationImageName]
		if name == "" {
			// By the specification a full name, in practice often only a tag.
			if n := d.Annotations[ocispec.AnnotationRefName]; bytes.ContainsAny([]byte(n), "/:") {
				name = n
			}
		}
		unnamed = unnamed || name == ""
		d.Annotations = nil
		all = append(all, entry{desc: d, name: name})
	}
	if len(all) == 0 {
		return nil, root.Errorf(root.Invalid, "the archive holds no image")
	}
	if unnamed && len(all) > 1 {
		// One image for several platforms, written without an inner index.
		best, offered, err := s.pick(ctx, idx.Manifests)
		if err != nil {
			return nil, damaged(err)
		}
		if best == nil {
			return nil, s.wrongPlatform(ref{domain: "archive", path: "image"}, offered)
		}
		return []entry{{desc: *best}}, nil
	}
	return all, nil
}

// maxArchiveFiles is far above what an image archive holds. One with more is
// something else, a root file system perhaps, and each file costs a wait for
// the disk before the importer finds out.
const maxArchiveFiles = 2000

// prefixed is a content store for one import, in one goroutine, whose
// half-made blobs have names of their own. It notes what the archive holds:
// the rest of the store is others'.
type prefixed struct {
	content.Store
	prefix string
	files  int // that may still come
	has    map[digest.Digest]bool
}

// Writer implements content.Store.
func (p *prefixed) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if p.files--; p.files < 0 {
		return nil, root.Errorf(root.Invalid, "the archive has thousands of files, so it is no image: make one with \"docker save\" or an OCI builder")
	}
	if o.Ref == "" {
		return nil, fmt.Errorf("write blob without reference: %w", errdefs.ErrInvalidArgument)
	}
	w, err := p.Store.Writer(ctx, content.WithRef(p.prefix+o.Ref), content.WithDescriptor(o.Desc))
	if err != nil {
		if errdefs.IsAlreadyExists(err) { // the importer summed up what it has
			p.has[o.Desc.Digest] = true
		}
		return nil, err
	}
	return noting{w, p}, nil
}

// Walk implements content.Store. The importer looks for layers that it has
// uncompressed.
func (p *prefixed) Walk(ctx context.Context, f content.WalkFunc, filters ...string) error {
	return p.Store.Walk(ctx, func(info content.Info) error {
		if p.has[digest.Digest(info.Labels[labels.LabelUncompressed])] {
			p.has[info.Digest] = true
		}
		return f(info)
	}, filters...)
}

// Abort implements content.Store.
func (p *prefixed) Abort(ctx context.Context, ref string) error {
	return p.Store.Abort(ctx, p.prefix+ref)
}

// noting tells prefixed of the blobs that are written.
type noting struct {
	content.Writer
	p *prefixed
}

// Commit implements content.Writer.
func (n noting) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	d := n.Digest() // of what was written
	err := n.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		n.p.has[d] = true
	}
	return err
}
