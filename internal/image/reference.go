package image

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
)

// ref is a normalised reference: "docker.io/library/debian:bookworm-slim",
// with a digest, or a bare digest of something on this host.
type ref struct {
	domain, path string // empty for a bare digest
	tag          string // "latest" when neither tag nor digest was given
	digest       digest.Digest
}

// maxReference is the longest reference anybody writes: host, path of at most
// 255 characters, tag and digest.
const maxReference = 600

// parseRef normalises what a person writes the way Docker does.
func parseRef(s string) (ref, error) {
	if s == "" {
		return ref{}, root.Errorf(root.Invalid, "the image reference is missing: write for example \"docker.io/library/debian:bookworm-slim\"")
	}
	if len(s) > maxReference {
		return ref{}, root.Errorf(root.Invalid, "image reference %q is too long", clip(s))
	}
	if d, err := digest.Parse(s); err == nil {
		if d.Algorithm() != digest.SHA256 {
			return ref{}, root.Errorf(root.Invalid, "image digest %q is not a sha256 digest", clip(s))
		}
		return ref{digest: d}, nil
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return ref{}, &root.Error{Kind: root.Invalid, Message: "image reference \"" + clip(s) + "\" is not valid: write [registry/]repository[:tag][@sha256:...] in lower case", Err: err}
	}
	r := ref{domain: reference.Domain(named), path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.digest = d.Digest()
		if r.digest.Algorithm() != digest.SHA256 {
			return ref{}, root.Errorf(root.Invalid, "image reference %q: the digest must be a sha256 digest", clip(s))
		}
	}
	if r.tag == "" && r.digest == "" {
		r.tag = "latest"
	}
	return r, nil
}

// repository returns "docker.io/library/debian".
func (r ref) repository() string { return r.domain + "/" + r.path }

// String is the normal form; parseRef of it gives r again.
func (r ref) String() string {
	if r.domain == "" {
		return string(r.digest)
	}
	s := r.repository()
	if r.tag != "" {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + string(r.digest)
	}
	return s
}

// name is the key under which the store keeps the image: by tag where there
// is one, else by digest.
func (r ref) name() string {
	if r.tag != "" {
		return r.repository() + ":" + r.tag
	}
	return r.String()
}

func (r ref) image(d digest.Digest) root.Image {
	return root.Image{Registry: r.domain, Repository: r.path, Tag: r.tag, Digest: root.Digest(d)}
}

// parse is parseRef with our registry under its one name, whichever address a
// person used.
func (s *Store) parse(reference string) (ref, error) {
	r, err := parseRef(reference)
	if err == nil && slices.Contains(s.o.Addresses, r.domain) {
		r.domain = s.Registry()
	}
	return r, err
}

// Registry returns the name of our own registry.
func (s *Store) Registry() string { return "registry." + s.o.Domain }

// own reports whether r names an image in our own registry.
func (s *Store) own(r ref) bool {
	host, _, _ := strings.Cut(r.domain, ":")
	return host == s.Registry()
}

// Own returns the repository of our own registry that reference names, "" if
// it names something else.
func (s *Store) Own(reference string) (repository string, err error) {
	r, err := s.parse(reference)
	if err != nil || !s.own(r) {
		return "", err
	}
	return r.path, nil
}
