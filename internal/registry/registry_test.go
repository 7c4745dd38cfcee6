package registry

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image"
)

const domain = "roost.test"

// serve runs the registry; whoever has the password "push-<repo>" may push
// there, "pull-<repo>" may pull, "all" may do everything.
func serve(t *testing.T) (*image.Store, *httptest.Server) {
	t.Helper()
	s, err := image.Open(t.Context(), image.Options{Root: t.TempDir(), Domain: domain, KeepFor: 1})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(Handler(s, func(r *http.Request, repo string, push bool) error {
		_, password, ok := r.BasicAuth()
		if !ok {
			return root.Errorf(root.Unauthenticated, "log in first")
		}
		if password == "all" || repo == "" || password == "push-"+repo || !push && password == "pull-"+repo {
			return nil
		}
		return root.Errorf(root.Forbidden, "not yours")
	}, slog.New(slog.DiscardHandler)))
	t.Cleanup(func() {
		srv.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, srv
}

func ref(t *testing.T, srv *httptest.Server, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/" + s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func with(password string) remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "x", Password: password})
}

// picture is an image that has layers nobody else has.
func picture(t *testing.T, seed int64, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(70<<10, 3, random.WithSource(rand.NewSource(seed)))
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPushAndPull(t *testing.T) {
	t.Parallel()
	s, srv := serve(t)
	img := picture(t, 1, runtime.GOARCH)
	if err := remote.Write(ref(t, srv, "team/app:1"), img, with("push-team/app")); err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	// It is there as an image of ours.
	got, err := s.Resolve(t.Context(), "registry."+domain+"/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(root.Image{Registry: "registry." + domain, Repository: "team/app", Tag: "1", Digest: root.Digest(want.String())}, got); diff != "" {
		t.Errorf("resolved (-want +got):\n%s", diff)
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	back, err := remote.Image(ref(t, srv, "team/app:1"), with("pull-team/app"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(back); err != nil {
		t.Errorf("pulled back: %v", err)
	}
	if d, err := back.Digest(); err != nil || d != want {
		t.Errorf("pulled back: got %s, %v; want %s", d, err, want)
	}
	if _, err := remote.Image(ref(t, srv, "team/app@"+want.String()), with("pull-team/app")); err != nil {
		t.Errorf("by digest: %v", err)
	}
	if _, err := remote.Head(ref(t, srv, "team/app:1"), with("pull-team/app")); err != nil {
		t.Errorf("head: %v", err)
	}
	tags, err := remote.List(ref(t, srv, "team/app:1").Context(), with("pull-team/app"))
	if err != nil || !cmp.Equal(tags, []string{"1"}) {
		t.Errorf("tags: got %v, %v", tags, err)
	}
	// Another host pulls it from here with our own client.
	host := strings.TrimPrefix(srv.URL, "http://")
	other, err := image.Open(t.Context(), image.Options{Root: t.TempDir(), Domain: "elsewhere.test", Credentials: func(string) (string, string, error) { return "x", "all", nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}()
	pulled, err := other.Pull(t.Context(), host+"/team/app:1", nil)
	if err != nil || pulled.Digest != got.Digest {
		t.Errorf("pull to another store: got %v, %v", pulled, err)
	}
	if err := other.Unpack(t.Context(), pulled.Digest); err != nil {
		t.Error(err)
	}
}

func TestPushIndex(t *testing.T) {
	t.Parallel()
	s, srv := serve(t)
	amd, arm := picture(t, 2, runtime.GOARCH), picture(t, 3, "s390x")
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	if err := remote.WriteIndex(ref(t, srv, "app:1"), idx, with("all")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("list: got %v, %v; want the index alone", list, err)
	}
	got, err := s.Resolve(t.Context(), "registry."+domain+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := amd.Digest(); string(got.Digest) != want.String() {
		t.Errorf("resolved: got %s, want the manifest of this platform %s", got.Digest, want)
	}
	back, err := remote.Index(ref(t, srv, "app:1"), with("all"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(back); err != nil {
		t.Errorf("pulled back: %v", err)
	}
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	_, srv := serve(t)
	img := picture(t, 4, runtime.GOARCH)
	code := func(err error) string {
		if te, ok := errors.AsType[*transport.Error](err); ok && len(te.Errors) > 0 {
			return string(te.Errors[0].Code)
		}
		return ""
	}
	err := remote.Write(ref(t, srv, "a:1"), img)
	if te, ok := errors.AsType[*transport.Error](err); !ok || te.StatusCode != http.StatusUnauthorized {
		t.Errorf("push without token: got %v", err)
	}
	if err := remote.Write(ref(t, srv, "a:1"), img, with("pull-a")); code(err) != "DENIED" {
		t.Errorf("push with a token that may only pull: got %v", err)
	}
	if err := remote.Write(ref(t, srv, "a:1"), img, with("push-a")); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Get(ref(t, srv, "a:1"), with("pull-b")); code(err) != "DENIED" {
		t.Errorf("pull with another repository's token: got %v", err)
	}
	// A blob of a is not to be had through b, neither by reading nor by naming it.
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got := request(t, srv, "push-b", http.MethodGet, "/v2/b/blobs/"+d.String(), nil, nil); got.status != http.StatusNotFound {
		t.Errorf("blob through another repository: got %d, want 404", got.status)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	got := request(t, srv, "push-b", http.MethodPut, "/v2/b/manifests/1", raw, http.Header{"Content-Type": {"application/vnd.docker.distribution.manifest.v2+json"}})
	if got.status != http.StatusNotFound || !strings.Contains(got.body, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("manifest over another repository's blobs: got %d %s", got.status, got.body)
	}
	// Mounting needs the right to read the source.
	post := "/v2/b/blobs/uploads/?mount=" + d.String() + "&from=a"
	if got := request(t, srv, "push-b", http.MethodPost, post, nil, nil); got.status != http.StatusAccepted {
		t.Errorf("mount without the right: got %d, want 202 (upload it)", got.status)
	}
	if got := request(t, srv, "all", http.MethodPost, post, nil, nil); got.status != http.StatusCreated {
		t.Errorf("mount: got %d, want 201", got.status)
	}
	if got := request(t, srv, "push-b", http.MethodGet, "/v2/b/blobs/"+d.String(), nil, nil); got.status != http.StatusOK {
		t.Errorf("mounted blob: got %d, want 200", got.status)
	}
}

type reply struct {
	status int
	body   string
	header http.Header
}

func request(t *testing.T, srv *httptest.Server, password, method, path string, body []byte, header http.Header) reply {
	t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = srv.URL + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	req.SetBasicAuth("x", password)
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, string(data), resp.Header}
}

func TestUploads(t *testing.T) {
	t.Parallel()
	s, srv := serve(t)
	data := []byte(strings.Repeat("0123456789", 1000))
	d := digest.FromBytes(data).String()
	get := func() reply { return request(t, srv, "all", http.MethodGet, "/v2/app/blobs/"+d, nil, nil) }

	if got := request(t, srv, "all", http.MethodPost, "/v2/app/blobs/uploads/?digest=sha256:"+strings.Repeat("0", 64), data, nil); got.status != http.StatusBadRequest || !strings.Contains(got.body, "DIGEST_INVALID") {
		t.Errorf("wrong digest: got %d %s", got.status, got.body)
	}
	if got := get(); got.status != http.StatusNotFound || !strings.Contains(got.body, "BLOB_UNKNOWN") {
		t.Errorf("blob before upload: got %d %s", got.status, got.body)
	}
	// In chunks, with a collection in between.
	begun := request(t, srv, "all", http.MethodPost, "/v2/app/blobs/uploads/", nil, nil)
	if begun.status != http.StatusAccepted {
		t.Fatalf("begin: got %d %s", begun.status, begun.body)
	}
	at := begun.header.Get("Location")
	patch := func(from, to int) reply {
		return request(t, srv, "all", http.MethodPatch, at, data[from:to], http.Header{"Content-Range": {strings.Join([]string{strconv.Itoa(from), strconv.Itoa(to - 1)}, "-")}})
	}
	if got := patch(0, 4000); got.status != http.StatusAccepted || got.header.Get("Range") != "0-3999" {
		t.Errorf("first chunk: got %d, range %q", got.status, got.header.Get("Range"))
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := patch(5000, 6000); got.status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("chunk with a gap before it: got %d, want 416", got.status)
	}
	if got := patch(4000, 9000); got.status != http.StatusAccepted {
		t.Errorf("second chunk: got %d %s", got.status, got.body)
	}
	if got := request(t, srv, "all", http.MethodGet, at, nil, nil); got.header.Get("Range") != "0-8999" {
		t.Errorf("progress: got %q", got.header.Get("Range"))
	}
	if got := request(t, srv, "all", http.MethodPut, at+"?digest="+d, data[9000:], nil); got.status != http.StatusCreated {
		t.Errorf("finish: got %d %s", got.status, got.body)
	}
	if got := get(); got.body != string(data) {
		t.Errorf("blob: got %d, %d bytes", got.status, len(got.body))
	}
	if got := request(t, srv, "all", http.MethodGet, "/v2/app/blobs/"+d, nil, http.Header{"Range": {"bytes=3-5"}}); got.status != http.StatusPartialContent || got.body != "345" {
		t.Errorf("range: got %d %q", got.status, got.body)
	}
	// The blob waits for its manifest.
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := get(); got.status != http.StatusOK {
		t.Errorf("blob after a collection: got %d", got.status)
	}
	// The same again, at once; and an upload that is given up.
	if got := request(t, srv, "all", http.MethodPost, "/v2/app/blobs/uploads/?digest="+d, data, nil); got.status != http.StatusCreated {
		t.Errorf("monolithic: got %d %s", got.status, got.body)
	}
	at = request(t, srv, "all", http.MethodPost, "/v2/app/blobs/uploads/", nil, nil).header.Get("Location")
	if got := request(t, srv, "all", http.MethodDelete, at, nil, nil); got.status != http.StatusNoContent {
		t.Errorf("cancel: got %d", got.status)
	}
	if got := request(t, srv, "all", http.MethodPatch, at, data, nil); got.status != http.StatusNotFound || !strings.Contains(got.body, "BLOB_UPLOAD_UNKNOWN") {
		t.Errorf("chunk of a cancelled upload: got %d %s", got.status, got.body)
	}
	if left, err := filepath.Glob(filepath.Join(s.Dir(), "content/ingest/*")); err != nil || len(left) != 0 {
		t.Errorf("half-made blobs are left: %v, %v", left, err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	_, srv := serve(t)
	oci := http.Header{"Content-Type": {"application/vnd.oci.image.manifest.v1+json"}}
	for _, tc := range []struct {
		method, path, body string
		header             http.Header
		status             int
		code               string
	}{
		{"GET", "/v2/", "", nil, 200, ""},
		{"GET", "/v2/app/manifests/1", "", nil, 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/manifests/sha256:" + strings.Repeat("0", 64), "", nil, 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/blobs/nothing", "", nil, 400, "DIGEST_INVALID"},
		{"GET", "/v2/APP/blobs/sha256:" + strings.Repeat("0", 64), "", nil, 400, "NAME_INVALID"},
		{"GET", "/v2/../../x/blobs/sha256:" + strings.Repeat("0", 64), "", nil, 400, "NAME_INVALID"},
		{"GET", "/v2/app/tags/list", "", nil, 404, "NAME_UNKNOWN"},
		{"PUT", "/v2/app/manifests/1", "{", oci, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/app/manifests/1", "{}", nil, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/app/manifests/1", `{"config":{"digest":"sha256:` + strings.Repeat("0", 64) + `"}}`, oci, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"PUT", "/v2/app/manifests/1", `{"config":{"digest":"../../etc/passwd"}}`, oci, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"PUT", "/v2/app/manifests/sha256:" + strings.Repeat("0", 64), "{}", oci, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/app/manifests/1", strings.Repeat(" ", maxManifest+1), oci, 413, "SIZE_INVALID"},
		{"PATCH", "/v2/app/blobs/uploads/nope", "x", nil, 404, "BLOB_UPLOAD_UNKNOWN"},
		{"PUT", "/v2/app/blobs/uploads/nope?digest=sha256:" + strings.Repeat("0", 64), "x", nil, 404, "BLOB_UPLOAD_UNKNOWN"},
		{"PUT", "/v2/app/blobs/uploads/nope", "x", nil, 400, "DIGEST_INVALID"},
		{"DELETE", "/v2/app/manifests/1", "", nil, 405, "UNSUPPORTED"},
		{"GET", "/v2/_catalog", "", nil, 404, "UNSUPPORTED"},
	} {
		got := request(t, srv, "all", tc.method, tc.path, []byte(tc.body), tc.header)
		if got.status != tc.status || !strings.Contains(got.body, tc.code) {
			t.Errorf("%s %.60s: got %d %s, want %d %s", tc.method, tc.path, got.status, got.body, tc.status, tc.code)
		}
	}
}

// A client learns from the challenge how to log in.
func TestChallenge(t *testing.T) {
	t.Parallel()
	_, srv := serve(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != http.StatusUnauthorized || got != `Basic realm="roost"` {
		t.Errorf("got %d, challenge %q", resp.StatusCode, got)
	}
	if got := resp.Header.Get("Docker-Distribution-Api-Version"); got != "registry/2.0" {
		t.Errorf("version header: got %q", got)
	}
}

func TestTagPages(t *testing.T) {
	t.Parallel()
	_, srv := serve(t)
	img := picture(t, 5, runtime.GOARCH)
	for _, tag := range []string{"b", "a", "c"} {
		if err := remote.Write(ref(t, srv, "app:"+tag), img, with("all")); err != nil {
			t.Fatal(err)
		}
	}
	got := request(t, srv, "all", http.MethodGet, "/v2/app/tags/list?n=2", nil, nil)
	if strings.TrimSpace(got.body) != `{"name":"app","tags":["a","b"]}` || !strings.Contains(got.header.Get("Link"), "last=b") {
		t.Errorf("first page: got %s, link %q", got.body, got.header.Get("Link"))
	}
	got = request(t, srv, "all", http.MethodGet, "/v2/app/tags/list?n=2&last=b", nil, nil)
	if strings.TrimSpace(got.body) != `{"name":"app","tags":["c"]}` || got.header.Get("Link") != "" {
		t.Errorf("last page: got %s, link %q", got.body, got.header.Get("Link"))
	}
}
