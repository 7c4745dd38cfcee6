// Package registry serves the image store of this host by the OCI
// distribution protocol (OCI Distribution Specification 1.1: pull, push and
// content discovery; deletion is not offered), to "docker push", other tools
// and other hosts. It keeps nothing of its own: an upload lives in the store
// and survives a restart. Who may do what is its caller's to say.
package registry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image"
)

const (
	// maxManifest is the size that the specification asks registries to accept.
	maxManifest = 4 << 20
	// maxBlob bounds one upload request.
	maxBlob = 16 << 30
)

// Handler serves /v2/ from store. Authorize decides whether a request may read
// (or, with push, write) the repository repo, and for an empty repo whether it
// comes from somebody at all; it returns an error of kind Unauthenticated or
// Forbidden. Clients are asked for their token as the password of HTTP Basic
// authentication.
func Handler(store *image.Store, authorize func(r *http.Request, repo string, push bool) error, log *slog.Logger) http.Handler {
	return &handler{store: store, authorize: authorize, log: log}
}

type handler struct {
	store     *image.Store
	authorize func(r *http.Request, repo string, push bool) error
	log       *slog.Logger
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := h.serve(w, r); err != nil {
		h.fail(w, r, err)
	}
}

// target is what a path names.
type target struct {
	repo string
	kind string // "blobs", "uploads", "manifests", "tags", "referrers"
	id   string // digest, upload id or tag
}

// parsePath takes the path apart from its end: a repository's name may have slashes.
func parsePath(path string) (target, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return target{}, false
	}
	parts := strings.Split(rest, "/")
	n := len(parts)
	switch {
	case n >= 4 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		return target{strings.Join(parts[:n-3], "/"), "uploads", parts[n-1]}, true
	case n >= 3 && parts[n-2] == "blobs" && parts[n-1] == "uploads": // some clients leave the last slash out
		return target{strings.Join(parts[:n-2], "/"), "uploads", ""}, true
	case n >= 3 && (parts[n-2] == "blobs" || parts[n-2] == "manifests" || parts[n-2] == "referrers"):
		return target{strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]}, true
	case n >= 3 && parts[n-2] == "tags" && parts[n-1] == "list":
		return target{strings.Join(parts[:n-2], "/"), "tags", ""}, true
	}
	return target{}, false
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		if err := h.authorize(r, "", false); err != nil {
			return err
		}
		return writeJSON(w, struct{}{})
	}
	t, ok := parsePath(r.URL.Path)
	if !ok {
		return apiError{http.StatusNotFound, "UNSUPPORTED", "the registry has no such endpoint"}
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if err := h.authorize(r, t.repo, !read || t.kind == "uploads"); err != nil {
		return err
	}
	repo, err := h.store.Repository(t.repo)
	if err != nil {
		return apiError{http.StatusBadRequest, "NAME_INVALID", root.MessageOf(err)}
	}
	switch t.kind {
	case "blobs":
		if read {
			return h.blob(w, r, repo, t)
		}
	case "manifests":
		if read {
			return h.manifest(w, r, repo, t)
		}
		if r.Method == http.MethodPut {
			return h.putManifest(w, r, repo, t)
		}
	case "tags":
		if read {
			return h.tags(w, r, repo, t)
		}
	case "referrers":
		if read {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			_, err := io.WriteString(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
			return err
		}
	case "uploads":
		return h.upload(w, r, repo, t)
	}
	return apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "the registry does not offer this"}
}

func (h *handler) blob(w http.ResponseWriter, r *http.Request, repo *image.Repository, t target) error {
	d, err := digest.Parse(t.id)
	if err != nil {
		return apiError{http.StatusBadRequest, "DIGEST_INVALID", "the digest cannot be read"}
	}
	ra, err := repo.Blob(r.Context(), d)
	if err != nil {
		return as(err, "BLOB_UNKNOWN")
	}
	defer ra.Close()
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Etag", `"`+d.String()+`"`)
	w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	// Ranges and conditions are net/http's business.
	http.ServeContent(w, r, "", noTime, io.NewSectionReader(ra, 0, ra.Size()))
	return nil
}

func (h *handler) manifest(w http.ResponseWriter, r *http.Request, repo *image.Repository, t target) error {
	desc, data, err := repo.Manifest(r.Context(), t.id)
	if err != nil {
		return as(err, "MANIFEST_UNKNOWN")
	}
	w.Header().Set("Docker-Content-Digest", desc.Digest.String())
	w.Header().Set("Content-Type", desc.MediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodHead {
		return nil
	}
	_, _ = w.Write(data) // the client went away: nobody to tell
	return nil
}

func (h *handler) putManifest(w http.ResponseWriter, r *http.Request, repo *image.Repository, t target) error {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		return tooLarge(err)
	}
	d, err := repo.PutManifest(r.Context(), t.id, r.Header.Get("Content-Type"), data)
	if err != nil {
		if errors.Is(err, image.ErrBlobUnknown) {
			return apiError{http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", err.Error()}
		}
		return as(err, "MANIFEST_INVALID")
	}
	h.log.Info("image pushed", "image", h.store.Registry()+"/"+t.repo, "tag", t.id, "digest", d)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Location", "/v2/"+t.repo+"/manifests/"+d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (h *handler) tags(w http.ResponseWriter, r *http.Request, repo *image.Repository, t target) error {
	tags, err := repo.Tags(r.Context())
	if err != nil {
		return as(err, "NAME_UNKNOWN")
	}
	if last := r.URL.Query().Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if s := r.URL.Query().Get("n"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return apiError{http.StatusBadRequest, "UNSUPPORTED", "n must be a number"}
		}
		if n < len(tags) {
			tags = tags[:n]
			if n > 0 {
				w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?n=%d&last=%s>; rel="next"`, t.repo, n, tags[n-1]))
			}
		}
	}
	return writeJSON(w, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{t.repo, tags})
}

func (h *handler) upload(w http.ResponseWriter, r *http.Request, repo *image.Repository, t target) error {
	ctx := r.Context()
	if r.Method == http.MethodPost {
		if t.id != "" {
			return apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "an upload is begun without an id"}
		}
		return h.beginUpload(w, r, repo, t)
	}
	if t.id == "" {
		return apiError{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "the upload's id is missing"}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		n, err := repo.UploadOffset(ctx, t.id)
		if err != nil {
			return as(err, "BLOB_UPLOAD_UNKNOWN")
		}
		progress(w, t.repo, t.id, n, http.StatusNoContent)
		return nil
	case http.MethodPatch:
		if err := h.atOffset(r, repo, t.id); err != nil {
			return err
		}
		n, err := repo.Append(ctx, t.id, http.MaxBytesReader(w, r.Body, maxBlob))
		if err != nil {
			return as(tooLarge(err), "BLOB_UPLOAD_UNKNOWN")
		}
		progress(w, t.repo, t.id, n, http.StatusAccepted)
		return nil
	case http.MethodPut:
		if err := h.atOffset(r, repo, t.id); err != nil {
			return err
		}
		return h.finish(w, r, repo, t.repo, t.id)
	case http.MethodDelete:
		if err := repo.Cancel(ctx, t.id); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "the registry does not offer this"}
}

func (h *handler) beginUpload(w http.ResponseWriter, r *http.Request, repo *image.Repository, t target) error {
	q := r.URL.Query()
	if d, from := q.Get("mount"), q.Get("from"); d != "" && from != "" {
		// Whatever is in the way, the client may still upload the blob.
		if h.authorize(r, from, false) == nil {
			if source, err := h.store.Repository(from); err == nil && repo.Link(r.Context(), source, digest.Digest(d)) == nil {
				created(w, t.repo, d)
				return nil
			}
		}
	}
	id, err := repo.NewUpload(r.Context())
	if err != nil {
		return err
	}
	if q.Get("digest") != "" {
		return h.finish(w, r, repo, t.repo, id)
	}
	progress(w, t.repo, id, 0, http.StatusAccepted)
	return nil
}

// atOffset refuses a chunk that does not begin where the last one ended.
func (h *handler) atOffset(r *http.Request, repo *image.Repository, id string) error {
	cr := r.Header.Get("Content-Range")
	if cr == "" {
		return nil
	}
	from, _, _ := strings.Cut(strings.TrimPrefix(cr, "bytes "), "-")
	start, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return apiError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the range cannot be read"}
	}
	n, err := repo.UploadOffset(r.Context(), id)
	if err != nil {
		return as(err, "BLOB_UPLOAD_UNKNOWN")
	}
	if start != n {
		return apiError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the upload goes on at byte %d", n)}
	}
	return nil
}

func (h *handler) finish(w http.ResponseWriter, r *http.Request, repo *image.Repository, name, id string) error {
	d := r.URL.Query().Get("digest")
	if _, err := digest.Parse(d); err != nil {
		return apiError{http.StatusBadRequest, "DIGEST_INVALID", "the digest is missing or cannot be read"}
	}
	if r.ContentLength != 0 {
		if _, err := repo.Append(r.Context(), id, http.MaxBytesReader(w, r.Body, maxBlob)); err != nil {
			return as(tooLarge(err), "BLOB_UPLOAD_UNKNOWN")
		}
	}
	if err := repo.Finish(r.Context(), id, digest.Digest(d)); err != nil {
		code := "BLOB_UPLOAD_UNKNOWN"
		if root.IsKind(err, root.Invalid) {
			code = "DIGEST_INVALID"
		}
		return as(err, code)
	}
	created(w, name, d)
	return nil
}

func created(w http.ResponseWriter, repo, d string) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d)
	w.Header().Set("Docker-Content-Digest", d)
	w.WriteHeader(http.StatusCreated)
}

func progress(w http.ResponseWriter, repo, id string, n int64, status int) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-Uuid", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(n-1, 0)))
	w.WriteHeader(status)
}
