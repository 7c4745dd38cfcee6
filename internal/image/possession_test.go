package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image/imagetest"
)

// secret is another tenant's image, of which everybody knows the digests.
var secret = imagetest.Image{Name: "registry.roost.test/theirs:1", Layers: [][]imagetest.Entry{{imagetest.File("secret", "s3cr3t", 0o600)}}}

func upload(tb testing.TB, r *Repository, data []byte) digest.Digest {
	tb.Helper()
	d := digest.FromBytes(data)
	id, err := r.NewUpload(tb.Context())
	if err == nil {
		_, err = r.Append(tb.Context(), id, bytes.NewReader(data))
	}
	if err == nil {
		err = r.Finish(tb.Context(), id, d)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func repository(tb testing.TB, s *Store, path string) *Repository {
	tb.Helper()
	r, err := s.Repository(path)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// A digest alone names nothing in a repository that it did not come by.
func TestDigestOfOthers(t *testing.T) {
	t.Parallel()
	h := newHub(t, nil)
	s := open(t, Options{})
	img := load(t, s, secret)
	for _, repo := range []string{"registry.roost.test/mine", h.host + "/team/nothing"} {
		if got, err := s.Resolve(t.Context(), repo+"@"+string(img.Digest)); !root.IsKind(err, root.NotFound) {
			t.Errorf("%s: got %v, %v, want NotFound", repo, got, err)
		}
	}
	for _, ref := range []string{"registry.roost.test/theirs@" + string(img.Digest), img.Ref(), string(img.Digest)} {
		if got, err := s.Resolve(t.Context(), ref); err != nil || got.Digest != img.Digest {
			t.Errorf("%s: got %v, %v", ref, got, err)
		}
	}
}

// A manifest gets into a repository as a blob, too, and an index or a layer
// "elsewhere" then leads to parts that its owner never had.
func TestPushWhatOthersHave(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, secret)
	blobs := secret.Blobs(t)
	var theirs ocispec.Manifest
	if err := json.Unmarshal(blobs.All[blobs.Manifest.Digest], &theirs); err != nil {
		t.Fatal(err)
	}
	mine := repository(t, s, "mine")
	config := upload(t, mine, blobs.All[theirs.Config.Digest]) // could be guessed

	layer := theirs.Layers[0]
	layer.URLs = []string{"https://elsewhere.example.com/layer"}
	elsewhere := theirs
	elsewhere.Layers = []ocispec.Descriptor{layer}
	_, err := mine.PutManifest(t.Context(), "1", theirs.MediaType, marshal(t, elsewhere))
	if err == nil {
		t.Error("a layer that is elsewhere was accepted")
	}

	manifest := upload(t, mine, blobs.All[blobs.Manifest.Digest])
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{blobs.Manifest}}
	if _, err := mine.PutManifest(t.Context(), "2", idx.MediaType, marshal(t, idx)); err == nil {
		t.Error("an index of what was uploaded as a mere blob was accepted")
	}
	for _, ref := range []string{":1", ":2", "@" + manifest.String()} {
		if got, err := s.Resolve(t.Context(), "registry.roost.test/mine"+ref); err == nil {
			t.Errorf("%s: got %v, made of parts of others", ref, got)
		}
	}
	if _, err := mine.Blob(t.Context(), theirs.Layers[0].Digest); !root.IsKind(err, root.NotFound) {
		t.Errorf("layer of others: got %v, want NotFound", err)
	}
	if _, err := mine.Blob(t.Context(), config); err != nil {
		t.Errorf("what was uploaded: %v", err)
	}
	if _, err := s.Resolve(t.Context(), img.Ref()); err != nil {
		t.Errorf("the owner's: %v", err)
	}
}

// An archive holds all of its image: what others have does not fill its gaps.
func TestLoadWhatOthersHave(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	load(t, s, secret)
	blobs := secret.Blobs(t)
	var theirs ocispec.Manifest
	if err := json.Unmarshal(blobs.All[blobs.Manifest.Digest], &theirs); err != nil {
		t.Fatal(err)
	}
	without := "blobs/sha256/" + theirs.Layers[0].Digest.Encoded()
	var holes bytes.Buffer
	in, out := tar.NewReader(bytes.NewReader(imagetest.OCI(t, secret))), tar.NewWriter(&holes)
	for {
		hdr, err := in.Next()
		if err == io.EOF { //nolint:errorlint // as archive/tar says it
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if hdr.Name == without {
			continue
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := out.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load(t.Context(), &holes, "registry.roost.test/mine:1")
	if !root.IsKind(err, root.Invalid) {
		t.Errorf("an archive without its layer: got %v, %v, want Invalid", got, err)
	}
	if _, err := s.Load(t.Context(), bytes.NewReader(imagetest.OCI(t, secret)), "registry.roost.test/mine:1"); err != nil {
		t.Errorf("a whole one: %v", err)
	}
}

// Whoever keeps a registry that names a layer of others without having it gets
// nothing; an image that has been on this host by another way is compared.
func TestPullWhatOthersHave(t *testing.T) {
	t.Parallel()
	var blobs atomic.Int64
	lies := false // about having the layer
	var layer digest.Digest
	h := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				blobs.Add(1)
			}
			if lies && strings.HasSuffix(r.URL.Path, layer.String()) && r.Method != http.MethodPut {
				w.WriteHeader(http.StatusOK)
				_, _ = io.WriteString(w, "anything")
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	h.push(t, "evil/image", secret)
	var m ocispec.Manifest
	b := secret.Blobs(t)
	if err := json.Unmarshal(b.All[b.Manifest.Digest], &m); err != nil {
		t.Fatal(err)
	}
	layer, lies = m.Layers[0].Digest, true
	s := open(t, Options{})
	load(t, s, secret)
	if got, err := s.Pull(t.Context(), h.host+"/evil/image:1", nil); !root.IsKind(err, root.Invalid) {
		t.Errorf("a registry that lies: got %v, %v, want Invalid", got, err)
	}
	lies = false
	if _, err := s.Pull(t.Context(), h.host+"/evil/image:1", nil); err != nil {
		t.Errorf("one that has it: %v", err)
	}
	before := blobs.Load()
	h.push(t, "other/image", secret)
	if _, err := s.Pull(t.Context(), h.host+"/other/image:1", nil); err != nil || blobs.Load() != before {
		t.Errorf("what everybody may have was fetched %d times again, %v", blobs.Load()-before, err)
	}
}

// What one organisation's credentials opened is not the others'.
func TestOwners(t *testing.T) {
	t.Parallel()
	h := newHub(t, nil)
	h.push(t, "team/private", demo)
	h.push(t, "team/public", demo)
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Root: dir, Domain: "roost.test"})
	if err != nil {
		t.Fatal(err)
	}
	private, public := h.host+"/team/private:1", h.host+"/team/public:1"
	owners := func(ref string, want ...string) {
		t.Helper()
		got, err := s.Owners(t.Context(), ref)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("owners of %s (-want +got):\n%s%v", ref, diff, err)
		}
	}
	pull := func(ref, org string) root.Image {
		t.Helper()
		login := Login{User: "u", Password: "p", Org: org}
		if org == "" {
			login = Login{}
		}
		img, err := s.PullAs(t.Context(), ref, login, nil)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := pull(private, "acme")
	pull(public, "")
	pull(public, "acme") // it was everybody's
	byDigest := h.host + "/team/private@" + string(img.Digest)
	owners(private, "acme")
	owners(byDigest, "acme")
	owners(public)
	owners(h.host + "/team/private:2")
	if diff := cmp.Diff([]string{h.host + "/team/private"}, s.PrivateRepositories("others")); diff != "" {
		t.Errorf("private (-want +got):\n%s", diff)
	}
	if got := s.PrivateRepositories("acme"); len(got) != 0 {
		t.Errorf("private to others than acme: got %v", got)
	}
	pull(private, "others")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Options{Root: dir})
	owners(private, "acme", "others")
	pull(private, "") // it is public now
	owners(private)
	owners(byDigest)
}

// Who has the name of an app that is gone has nothing of it.
func TestDropRepository(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, secret)
	kept := secret
	kept.Name = "registry.roost.test/kept:1"
	load(t, s, kept)
	if err := s.Protect(t.Context(), "machine/1", img.Digest); err != nil { // so that the blobs stay
		t.Fatal(err)
	}
	if err := s.DropRepository(t.Context(), "theirs"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), img.Ref()); !root.IsKind(err, root.NotFound) {
		t.Errorf("by digest: got %v, want NotFound", err)
	}
	if _, err := s.Resolve(t.Context(), "registry.roost.test/theirs:1"); !root.IsKind(err, root.NotFound) {
		t.Errorf("by tag: got %v, want NotFound", err)
	}
	if _, err := repository(t, s, "theirs").Blob(t.Context(), digest.Digest(img.Digest)); !root.IsKind(err, root.NotFound) {
		t.Errorf("blob: got %v, want NotFound", err)
	}
	if _, err := s.Resolve(t.Context(), "registry.roost.test/kept@"+string(img.Digest)); err != nil {
		t.Errorf("the other repository: %v", err)
	}
}

// Names that an earlier version gave are found by digest, too.
func TestAdoptNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Root: dir, Domain: "roost.test"})
	if err != nil {
		t.Fatal(err)
	}
	img := load(t, s, demo)
	ctx := Context(t.Context())
	r, err := s.parse(demo.Name)
	if err != nil {
		t.Fatal(err)
	}
	for d := range demo.Blobs(t).All { // as it was
		info, err := s.content.Info(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		delete(info.Labels, inLabel(r.repository()))
		delete(info.Labels, labelPublic)
		if _, err := s.content.Update(ctx, info, "labels"); err != nil {
			t.Fatal(err)
		}
	}
	ref := "demo@" + string(img.Digest)
	if _, err := s.local(ctx, parsed(t, ref)); !root.IsKind(err, root.NotFound) {
		t.Fatalf("the labels are not gone: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Options{Root: dir})
	if _, err := s.Resolve(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

func parsed(tb testing.TB, s string) ref {
	tb.Helper()
	r, err := parseRef(s)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}
