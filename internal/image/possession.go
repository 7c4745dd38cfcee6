package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

// Anybody may know a digest, so none gives a right to what it names: a blob
// belongs to the repositories, ours and foreign ones, that it came by. Whoever
// brings an image, by a push, a pull or an archive, must bring all of its
// parts, or have brought them to that repository before; what others have on
// this host does not count. See decision 38.

const (
	// labelIn begins the labels of a blob that say in which repositories it is.
	labelIn = "roost.run/in."
	// labelPublic marks blobs that a registry gave to everybody on this host:
	// they need not be fetched again to prove that somebody may have them.
	labelPublic = "roost.run/public"
	// labelOrgs on a name lists the organisations ("acme,others") by whose
	// credentials it was pulled; without it the name is everybody's.
	labelOrgs = "roost.run/orgs"
)

// proof reports whether whoever brings an image has brought the blob, too. Nil
// is the builder's word: it made the image from what it was allowed to use.
type proof func(digest.Digest) bool

// repository is the name under which blobs of r's repository are marked.
func (s *Store) repository(r ref) string {
	if s.own(r) {
		return s.Registry() + "/" + r.path
	}
	return r.repository()
}

// inLabel is the label of blobs in a repository. One each: a list of all would
// outgrow what a label may hold.
func inLabel(repository string) string {
	sum := sha256.Sum256([]byte(repository))
	return labelIn + hex.EncodeToString(sum[:16])
}

// labelSource is where earlier versions kept a list of the repositories of our
// own registry.
func (s *Store) labelSource() string { return "containerd.io/distribution.source." + s.Registry() }

// inRepository reports whether a blob is in r's repository.
func (s *Store) inRepository(info content.Info, r ref) bool {
	if info.Labels[inLabel(s.repository(r))] != "" {
		return true
	}
	return s.own(r) && slices.Contains(strings.Split(info.Labels[s.labelSource()], ","), r.path)
}

// holds is inRepository by digest; what is not on this host is in none.
func (s *Store) holds(ctx context.Context, r ref, d digest.Digest) (bool, error) {
	info, err := s.content.Info(ctx, d)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && s.inRepository(info, r), err
}

// holdsAll reports whether the manifest m, which is here, is in r's repository
// with all of its parts.
func (s *Store) holdsAll(ctx context.Context, r ref, m digest.Digest) (bool, error) {
	return s.provenAll(ctx, m, func(d digest.Digest) (bool, error) { return s.holds(ctx, r, d) })
}

// provenAll asks for the manifest m, which is here, and each of its parts.
func (s *Store) provenAll(ctx context.Context, m digest.Digest, proven func(digest.Digest) (bool, error)) (bool, error) {
	manifest, _, config, err := s.read(ctx, root.Digest(m))
	if err != nil {
		return false, err
	}
	for _, d := range append(slices.Clone(manifest.Layers), config, ocispec.Descriptor{Digest: m}) {
		if ok, err := proven(d.Digest); !ok {
			return false, err
		}
	}
	return true, nil
}

// addSource notes that the blob is in r's repository.
func (s *Store) addSource(ctx context.Context, r ref, d digest.Digest, public bool) error {
	info, err := s.content.Info(ctx, d)
	if err != nil {
		return err
	}
	labels, fields := map[string]string{}, []string(nil)
	set := func(key, value string) {
		labels[key], fields = value, append(fields, "labels."+key)
	}
	if !s.inRepository(info, r) {
		set(inLabel(s.repository(r)), s.repository(r))
	}
	if public && info.Labels[labelPublic] == "" {
		set(labelPublic, "1")
	}
	if fields == nil {
		return nil
	}
	_, err = s.content.Update(ctx, content.Info{Digest: d, Labels: labels}, fields...)
	return err
}

// private lists the names of r's repository that came by credentials of some
// organisations, with these.
func (s *Store) private(r ref) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found map[string]string
	for name, orgs := range s.owned {
		if n, err := parseRef(name); err == nil && n.repository() == r.repository() {
			if found == nil {
				found = map[string]string{}
			}
			found[name] = orgs
		}
	}
	return found
}

// Owners returns the organisations that alone may use what reference names,
// because it came by credentials of theirs; none means everybody. An image of
// our own registry belongs to its app, which is not said here.
func (s *Store) Owners(ctx context.Context, reference string) ([]string, error) {
	r, err := s.parse(reference)
	if err != nil || r.domain == "" || s.own(r) {
		return nil, err
	}
	private := s.private(r)
	if len(private) == 0 {
		return nil, nil
	}
	if r.digest == "" {
		if orgs := private[r.name()]; orgs != "" {
			return strings.Split(orgs, ","), nil
		}
		return nil, nil // not here, or everybody's
	}
	// A digest is everybody's if a name in the repository that is leads to it.
	ctx = Context(ctx)
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("owners of image %s: %w", clip(reference), err)
	}
	for _, img := range all {
		n, err := parseRef(img.Name)
		if err != nil || n.repository() != r.repository() || private[img.Name] != "" {
			continue
		}
		parts, err := s.parts(ctx, img.Target)
		if err != nil {
			return nil, fmt.Errorf("owners of image %s: %w", clip(reference), err)
		}
		if _, ok := parts[r.digest.String()]; ok {
			return nil, nil
		}
	}
	var owners []string
	for _, orgs := range private {
		owners = append(owners, strings.Split(orgs, ",")...)
	}
	slices.Sort(owners)
	return slices.Compact(owners), nil
}

// PrivateRepositories lists the foreign repositories of which images came by
// credentials of organisations other than org, and none by its own.
func (s *Store) PrivateRepositories(org string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var private, mine []string
	for name, orgs := range s.owned {
		r, err := parseRef(name)
		switch {
		case err != nil:
		case slices.Contains(strings.Split(orgs, ","), org):
			mine = append(mine, r.repository())
		default:
			private = append(private, r.repository())
		}
	}
	slices.Sort(private)
	return slices.DeleteFunc(slices.Compact(private), func(r string) bool { return slices.Contains(mine, r) })
}

// adoptNames reads whose the names are, and marks what earlier versions named
// without saying to which repository its parts belong. Open calls it.
func (s *Store) adoptNames(ctx context.Context) error {
	ctx = Context(ctx)
	all, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, img := range all {
		if orgs := img.Labels[labelOrgs]; orgs != "" {
			s.owned[img.Name] = orgs
		}
		r, err := parseRef(img.Name)
		if err != nil {
			continue
		}
		if held, err := s.holds(ctx, r, img.Target.Digest); held || err != nil {
			continue
		}
		if err := s.link(ctx, r, img.Target, nil, !s.own(r)); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("name image %s: %w", r, err)
		}
	}
	return nil
}

// DropRepository forgets all images of a repository of our own registry and
// that their blobs were in it: whoever has its name next has nothing of them.
// What machines still need stays, without a name.
func (s *Store) DropRepository(ctx context.Context, path string) error {
	r := ref{domain: s.Registry(), path: path}
	ctx = Context(ctx)
	all, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("drop images of %s: %w", path, err)
	}
	for _, img := range all {
		if n, err := parseRef(img.Name); err == nil && s.own(n) && n.path == path {
			if err := s.forget(ctx, img); err != nil {
				return fmt.Errorf("drop image %s: %w", img.Name, err)
			}
		}
	}
	var held []content.Info
	if err := s.content.Walk(ctx, func(info content.Info) error {
		if s.inRepository(info, r) {
			held = append(held, info)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("drop images of %s: %w", path, err)
	}
	label, source := inLabel(s.repository(r)), s.labelSource()
	for _, info := range held {
		fields, labels := []string{"labels." + label}, map[string]string{}
		if old := info.Labels[source]; old != "" {
			rest := slices.DeleteFunc(strings.Split(old, ","), func(p string) bool { return p == path })
			fields, labels[source] = append(fields, "labels."+source), strings.Join(rest, ",")
		}
		if _, err := s.content.Update(ctx, content.Info{Digest: info.Digest, Labels: labels}, fields...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("drop images of %s: %w", path, err)
		}
	}
	return s.collectGarbage(ctx)
}
