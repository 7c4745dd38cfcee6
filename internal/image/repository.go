package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

// uploadExpiry is how long a blob waits for the manifest that refers to it.
const uploadExpiry = 6 * time.Hour

// Repository is one repository of our own registry: what package registry
// serves. A blob is in it if a manifest or an upload put it there; others of
// the store are not to be seen. Everything that is absent gives NotFound.
type Repository struct {
	s    *Store
	path string
}

// Repository returns the repository at path ("my-shop"), which exists once
// something is in it. A path that cannot be one gives Invalid.
func (s *Store) Repository(path string) (*Repository, error) {
	r, err := parseRef(s.Registry() + "/" + path + ":x")
	if err != nil || r.path != path {
		return nil, root.Errorf(root.Invalid, "%q cannot be a repository", clip(path))
	}
	return &Repository{s, path}, nil
}

// name is a reference that names no image, but the repository.
func (r *Repository) name() ref { return ref{domain: r.s.Registry(), path: r.path} }

func (r *Repository) ref(tagOrDigest string) (ref, error) {
	if d, err := digest.Parse(tagOrDigest); err == nil {
		return ref{domain: r.s.Registry(), path: r.path, digest: d}, nil
	}
	return parseRef(r.s.Registry() + "/" + r.path + ":" + tagOrDigest)
}

// Blob opens a blob.
func (r *Repository) Blob(ctx context.Context, d digest.Digest) (content.ReaderAt, error) {
	ctx = Context(ctx)
	if err := r.has(ctx, d); err != nil {
		return nil, err
	}
	return r.s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
}

func (r *Repository) has(ctx context.Context, d digest.Digest) error {
	missing := root.Errorf(root.NotFound, "%s is not in %s", clip(string(d)), r.path)
	if d.Validate() != nil {
		return missing
	}
	info, err := r.s.content.Info(ctx, d)
	if errdefs.IsNotFound(err) {
		return missing
	}
	if err != nil {
		return err
	}
	if !r.s.inRepository(info, r.name()) {
		return missing
	}
	return nil
}

// Manifest returns a manifest or index by tag or digest, with its media type.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, []byte, error) {
	ctx = Context(ctx)
	name, err := r.ref(tagOrDigest)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc := ocispec.Descriptor{Digest: name.digest}
	if name.digest == "" {
		img, err := r.s.images.Get(ctx, name.name())
		if err != nil {
			if errdefs.IsNotFound(err) {
				return desc, nil, root.Errorf(root.NotFound, "%s has no tag %s", r.path, name.tag)
			}
			return desc, nil, err
		}
		r.s.touch(img.Name)
		desc = img.Target
	} else if err := r.has(ctx, desc.Digest); err != nil {
		return desc, nil, err
	}
	data, err := r.s.readBlob(ctx, desc)
	if err != nil {
		return desc, nil, err
	}
	if desc.MediaType == "" {
		desc = r.s.descriptor(ctx, root.Digest(desc.Digest))
	}
	desc.Size = int64(len(data))
	return desc, data, nil
}

// indexDepth is how deep indexes may stand in each other.
const indexDepth = 3

// hasAll refuses a manifest with parts that are not in the repository, or
// whose own parts are not: a manifest can get there as a mere blob, of which
// nothing was checked.
func (r *Repository) hasAll(ctx context.Context, parts []ocispec.Descriptor, depth int) error {
	for _, c := range parts {
		if err := r.has(ctx, c.Digest); err != nil {
			return fmt.Errorf("%s: %w", clip(string(c.Digest)), errors.Join(ErrBlobUnknown, err))
		}
		if !images.IsManifestType(c.MediaType) && !images.IsIndexType(c.MediaType) {
			continue
		}
		if depth == 0 {
			return root.Errorf(root.Invalid, "the index holds indexes that hold indexes")
		}
		below, err := images.Children(ctx, r.s.content, c)
		if err != nil {
			return &root.Error{Kind: root.Invalid, Message: "the manifest " + clip(string(c.Digest)) + " in the index cannot be read", Err: err}
		}
		if err := r.hasAll(ctx, below, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// ErrBlobUnknown says that a manifest refers to what was never uploaded.
var ErrBlobUnknown = root.Errorf(root.Invalid, "the manifest refers to a blob that is not in this repository: upload it first")

// PutManifest stores a manifest or index under a tag or its digest. All it
// refers to must be in the repository: whoever names a blob must have had it.
func (r *Repository) PutManifest(ctx context.Context, tagOrDigest, mediaType string, data []byte) (digest.Digest, error) {
	name, err := r.ref(tagOrDigest)
	if err != nil {
		return "", err
	}
	d := digest.FromBytes(data)
	if name.digest != "" && name.digest != d {
		return "", root.Errorf(root.Invalid, "the manifest's digest is %s, not %s", d, name.digest)
	}
	var doc struct {
		MediaType string               `json:"mediaType"`
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return "", &root.Error{Kind: root.Invalid, Message: "the manifest is not JSON", Err: err}
	}
	if mediaType == "" {
		mediaType = doc.MediaType
	}
	if doc.MediaType != "" && doc.MediaType != mediaType {
		return "", root.Errorf(root.Invalid, "the manifest says it is %q but was sent as %q", clip(doc.MediaType), clip(mediaType))
	}
	if !images.IsManifestType(mediaType) && !images.IsIndexType(mediaType) {
		return "", root.Errorf(root.Invalid, "%q is not the media type of an image manifest or index", clip(mediaType))
	}
	ctx, done, err := r.s.Flight(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	refers := append(slices.Clone(doc.Manifests), doc.Layers...)
	if doc.Config != nil {
		refers = append(refers, *doc.Config)
	}
	if err := r.hasAll(ctx, refers, indexDepth); err != nil {
		return "", err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	if err := content.WriteBlob(ctx, r.s.content, "manifest-"+ulid.Make().String(), bytes.NewReader(data), desc); err != nil {
		return "", fmt.Errorf("store manifest: %w", err)
	}
	if err := r.s.name(ctx, name, desc, named{proven: func(digest.Digest) bool { return false }}); err != nil { // what is in the repository, no more
		return "", err
	}
	// The parts of an index were named by digest to live until it came.
	for _, c := range doc.Manifests {
		part := ref{domain: name.domain, path: name.path, digest: c.Digest}
		if err := r.s.forget(ctx, images.Image{Name: part.name(), Target: ocispec.Descriptor{MediaType: c.MediaType, Digest: c.Digest, Size: c.Size}}); err != nil {
			return "", fmt.Errorf("store manifest: %w", err)
		}
	}
	return d, nil
}

// Tags lists the repository's tags, sorted. A repository without anything in
// it gives NotFound.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	all, err := r.s.images.List(Context(ctx))
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	tags, exists := []string{}, false
	for _, img := range all {
		n, err := parseRef(img.Name)
		if err != nil || n.domain != r.s.Registry() || n.path != r.path {
			continue
		}
		exists = true
		if n.tag != "" {
			tags = append(tags, n.tag)
		}
	}
	if !exists {
		return nil, root.Errorf(root.NotFound, "there is no repository %s", r.path)
	}
	slices.Sort(tags)
	return tags, nil
}

// Link puts a blob of the repository from, which the caller may read, into
// this one without a copy.
func (r *Repository) Link(ctx context.Context, from *Repository, d digest.Digest) error {
	ctx = Context(ctx)
	if err := from.has(ctx, d); err != nil {
		return err
	}
	if err := r.hold(ctx, "upload-"+ulid.Make().String(), d); err != nil {
		return err
	}
	return r.s.addSource(ctx, r.name(), d, false)
}

// hold keeps a blob that nothing refers to yet, under the lease id.
func (r *Repository) hold(ctx context.Context, id string, d digest.Digest) error {
	_, err := r.s.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(uploadExpiry))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("hold %s: %w", d, err)
	}
	if d == "" {
		return nil
	}
	if err := r.s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: string(d), Type: "content"}); err != nil {
		return fmt.Errorf("hold %s: %w", d, err)
	}
	return nil
}

// NewUpload begins an upload and returns its id, which stays good for some
// hours, also across a restart.
func (r *Repository) NewUpload(ctx context.Context) (string, error) {
	id := ulid.Make().String()
	ctx = Context(ctx)
	if err := r.hold(ctx, "upload-"+id, ""); err != nil {
		return "", err
	}
	w, err := r.writer(ctx, id)
	if err != nil {
		return "", err
	}
	return id, w.Close()
}

// writer opens the half-made blob of an upload at its end.
func (r *Repository) writer(ctx context.Context, id string) (content.Writer, error) {
	return r.s.content.Writer(leases.WithLease(ctx, "upload-"+id), content.WithRef(r.uploadRef(id)))
}

func (r *Repository) uploadRef(id string) string { return "upload-" + r.path + "-" + id }

// UploadOffset returns how many bytes of an upload have arrived.
func (r *Repository) UploadOffset(ctx context.Context, id string) (int64, error) {
	st, err := r.s.content.Status(Context(ctx), r.uploadRef(id))
	if err != nil {
		if errdefs.IsNotFound(err) {
			return 0, root.Errorf(root.NotFound, "there is no such upload, or it has expired: begin again")
		}
		return 0, err
	}
	return st.Offset, nil
}

// Append adds what body delivers to an upload and returns its new length; what
// arrived before an error counts. Two at once on one upload give Conflict.
func (r *Repository) Append(ctx context.Context, id string, body io.Reader) (int64, error) {
	if _, err := r.UploadOffset(ctx, id); err != nil {
		return 0, err
	}
	w, err := r.writer(Context(ctx), id)
	if err != nil {
		return 0, busy(err)
	}
	_, copyErr := io.Copy(w, body)
	st, err := w.Status()
	return st.Offset, errors.Join(copyErr, err, w.Close())
}

func busy(err error) error {
	if errdefs.IsUnavailable(err) {
		return &root.Error{Kind: root.Conflict, Message: "another request is writing to this upload", Err: err}
	}
	return err
}

// Finish turns an upload into the blob d. If the bytes are others it gives
// Invalid and the upload is gone.
func (r *Repository) Finish(ctx context.Context, id string, d digest.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return root.Errorf(root.Invalid, "%q is not a sha256 digest", clip(string(d)))
	}
	if _, err := r.UploadOffset(ctx, id); err != nil {
		return err
	}
	ctx = leases.WithLease(Context(ctx), "upload-"+id)
	w, err := r.writer(ctx, id)
	if err != nil {
		return busy(err)
	}
	err = w.Commit(ctx, 0, d)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		abort := r.Cancel(context.WithoutCancel(ctx), id)
		if errdefs.IsFailedPrecondition(err) {
			return errors.Join(&root.Error{Kind: root.Invalid, Message: "what arrived does not have the digest " + string(d), Err: err}, abort)
		}
		return errors.Join(err, abort)
	}
	return r.s.addSource(ctx, r.name(), d, false)
}

// Cancel throws an upload away.
func (r *Repository) Cancel(ctx context.Context, id string) error {
	if err := r.s.content.Abort(Context(ctx), r.uploadRef(id)); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("cancel upload: %w", err)
	}
	return nil
}
