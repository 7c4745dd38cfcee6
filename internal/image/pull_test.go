package image

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image/imagetest"
)

// hub is a registry by somebody else.
type hub struct {
	*httptest.Server
	host string
}

func newHub(tb testing.TB, wrap func(http.Handler) http.Handler) hub {
	tb.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	tb.Cleanup(srv.Close)
	return hub{srv, strings.TrimPrefix(srv.URL, "http://")}
}

func (h hub) put(tb testing.TB, path, mediaType string, body []byte) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPut, h.URL+path, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := h.Client().Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		tb.Fatalf("put %s: %s", path, resp.Status)
	}
}

// push stores images in repo under the tag 1, as an index of them if there are several.
func (h hub) push(tb testing.TB, repo string, imgs ...imagetest.Image) {
	tb.Helper()
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range imgs {
		b := img.Blobs(tb)
		for d, data := range b.All {
			if d == b.Manifest.Digest {
				continue
			}
			resp, err := h.Client().Post(h.URL+"/v2/"+repo+"/blobs/uploads/", "", nil)
			if err != nil {
				tb.Fatal(err)
			}
			resp.Body.Close()
			h.put(tb, resp.Header.Get("Location")+"?digest="+d.String(), "application/octet-stream", data)
		}
		to := b.Manifest.Digest.String()
		if len(imgs) == 1 {
			to = "1"
		}
		h.put(tb, "/v2/"+repo+"/manifests/"+to, b.Manifest.MediaType, b.All[b.Manifest.Digest])
		idx.Manifests = append(idx.Manifests, b.Manifest)
	}
	if len(imgs) == 1 {
		return
	}
	data, err := json.Marshal(idx)
	if err != nil {
		tb.Fatal(err)
	}
	h.put(tb, "/v2/"+repo+"/manifests/1", idx.MediaType, data)
}

func TestPull(t *testing.T) {
	t.Parallel()
	h := newHub(t, nil)
	foreign := demo
	foreign.Arch = "s390x"
	h.push(t, "team/demo", demo)
	h.push(t, "team/multi", foreign, demo)
	h.push(t, "team/foreign", foreign)
	h.push(t, "team/foreigners", foreign, imagetest.Image{Arch: "riscv64"})

	s := open(t, Options{})
	var (
		mu   sync.Mutex
		seen []Progress
	)
	img, err := s.Pull(t.Context(), h.host+"/team/demo:1", func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := root.Image{Registry: h.host, Repository: "team/demo", Tag: "1", Digest: root.Digest(demo.Digest(t))}
	if diff := cmp.Diff(want, img); diff != "" {
		t.Errorf("pulled (-want +got):\n%s", diff)
	}
	last := seen[len(seen)-1]
	if seen[0].Stage != StageResolve || last.Stage != StageDone || last.Done != 2 || last.Layers != 2 || last.Bytes != last.Total || last.Bytes == 0 {
		t.Errorf("progress: got first %+v, last %+v", seen[0], last)
	}
	if err := s.Mount(t.Context(), "m1", img.Digest, filepath.Join(t.TempDir(), "r")); err != nil {
		t.Error(err)
	}
	for _, ref := range []string{"/team/multi:1", "/team/demo@" + demo.Digest(t)} {
		img, err := s.Resolve(t.Context(), h.host+ref)
		if err != nil || img.Digest != root.Digest(demo.Digest(t)) {
			t.Errorf("%s: got %v, %v; want the manifest for this architecture", ref, img, err)
		}
	}
	// What was pulled is enough: the registry may go.
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Close()
	if _, err := s.Resolve(t.Context(), h.host+"/team/multi:1"); err != nil {
		t.Errorf("resolve after the registry is gone: %v", err)
	}
}

func TestPullErrors(t *testing.T) {
	t.Parallel()
	foreign := demo
	foreign.Arch = "s390x"
	var layers atomic.Int32
	h := newHub(t, func(next http.Handler) http.Handler {
		big := demo.Blobs(t)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for d := range big.All {
				if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"+d.String()) {
					layers.Add(1)
				}
			}
			next.ServeHTTP(w, r)
		})
	})
	h.push(t, "team/demo", demo)
	h.push(t, "team/foreign", foreign)
	h.push(t, "team/foreigners", foreign, imagetest.Image{Arch: "riscv64"})

	private := newHub(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
	})
	broken := newHub(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	})
	busy := newHub(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	})
	liar := newHub(t, nil)
	liarImage := demo.Blobs(t)
	liar.Config.Handler = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for d, data := range liarImage.All {
				if d != liarImage.Manifest.Digest && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, d.String()) {
					bad := bytes.Clone(data)
					bad[len(bad)/2] ^= 0xff
					w.Header().Set("Content-Length", fmt.Sprint(len(bad)))
					_, _ = w.Write(bad)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}(liar.Config.Handler)
	liar.push(t, "team/demo", demo)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.TLS = &tls.Config{}
	secure.StartTLS()
	t.Cleanup(secure.Close)

	for _, tc := range []struct {
		name, ref string
		kind      root.Kind
		want      []string // in the message
	}{
		{"no such image", h.host + "/team/nothing:1", root.NotFound, []string{"no image team/nothing", h.host}},
		{"no such tag", h.host + "/team/demo:2", root.NotFound, []string{"has no tag 2", "it has 1"}},
		{"no such digest", h.host + "/team/demo@sha256:" + strings.Repeat("0", 64), root.NotFound, []string{"has no digest"}},
		{"architecture", h.host + "/team/foreign:1", root.Invalid, []string{"linux/amd64", "linux/s390x"}},
		{"architectures of an index", h.host + "/team/foreigners:1", root.Invalid, []string{"linux/amd64", "linux/s390x, linux/riscv64"}},
		{"unreachable", nobody + "/a:1", root.Unavailable, []string{nobody, "cannot be reached"}},
		{"unauthorised", private.host + "/a:1", root.Invalid, []string{"needs credentials"}},
		{"broken", broken.host + "/a:1", root.Unavailable, []string{"502"}},
		{"not a registry", busy.host + "/a:1", root.NotFound, []string{"no image a"}},
		{"damaged", liar.host + "/team/demo:1", root.Invalid, []string{"damaged"}},
		{"bad reference", "Demo:1", root.Invalid, []string{"not valid"}},
		{"own registry", "registry.roost.test/app:1", root.NotFound, []string{"build or push"}},
		{"bare digest", "sha256:" + strings.Repeat("0", 64), root.NotFound, []string{"does not say where"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, Options{})
			layers.Store(0)
			_, err := s.Pull(t.Context(), tc.ref, nil)
			if got := root.KindOf(err); err == nil || got != tc.kind {
				t.Fatalf("got %v (kind %v), want kind %v", err, got, tc.kind)
			}
			for _, w := range tc.want {
				if !strings.Contains(root.MessageOf(err), w) {
					t.Errorf("message: got %q, want %q in it", root.MessageOf(err), w)
				}
			}
			if strings.HasPrefix(tc.name, "architecture") {
				m := demo.Blobs(t)
				for d := range m.All {
					if _, err := s.content.Info(Context(t.Context()), d); err == nil && m.All[d][0] == 0x1f {
						t.Error("layers of a foreign architecture were fetched")
					}
				}
			}
			if _, err := s.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			empty(t, s)
		})
	}
}

func TestPullCredentials(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); r.Method == http.MethodGet || r.Method == http.MethodHead {
				if user != "me" || password != "secret" {
					w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	})
	h.push(t, "team/demo", demo)
	s := open(t, Options{Credentials: func(host string) (string, string, error) {
		if host != h.host {
			return "", "", nil
		}
		return "me", "secret", nil
	}})
	if _, err := s.Pull(t.Context(), h.host+"/team/demo:1", nil); err != nil {
		t.Error(err)
	}
}

// Several first uses of one image at once fetch its layers once.
func TestPullOnce(t *testing.T) {
	t.Parallel()
	var (
		mu   sync.Mutex
		gets = map[string]int{}
	)
	h := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, d, ok := strings.Cut(r.URL.Path, "/blobs/sha256:"); ok && r.Method == http.MethodGet {
				mu.Lock()
				gets[d]++
				mu.Unlock()
			}
			next.ServeHTTP(w, r)
		})
	})
	h.push(t, "team/demo", demo)
	s := open(t, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Resolve(t.Context(), h.host+"/team/demo:1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for d, n := range gets {
		if n != 1 {
			t.Errorf("blob %s fetched %d times, want once", digest.Digest("sha256:"+d), n)
		}
	}
}

// A connection that delivers nothing more is given up; the next pull goes on
// where it stopped.
func TestPullStalls(t *testing.T) {
	t.Parallel()
	img := big("stall:1", 7, 1<<20)
	blobs := img.Blobs(t)
	var (
		stall  atomic.Bool
		ranges = make(chan string, 8) // of the layer's requests; more are not made
		free   = make(chan struct{})  // closed at the end
	)
	h := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
			data := blobs.All[digest.Digest(d)]
			if r.Method != http.MethodGet || len(data) < 1<<20 {
				next.ServeHTTP(w, r)
				return
			}
			ranges <- r.Header.Get("Range")
			if !stall.Load() {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:len(data)/2])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-free:
			case <-r.Context().Done():
			}
		})
	})
	t.Cleanup(func() { close(free) })
	h.push(t, "team/demo", img)
	s := open(t, Options{})
	s.stall = 10 * time.Second // each step before the one that stalls has as long
	stall.Store(true)
	_, err := s.Pull(t.Context(), h.host+"/team/demo:1", nil)
	if !root.IsKind(err, root.Unavailable) || !strings.Contains(root.MessageOf(err), "sent nothing") {
		t.Errorf("stalled pull: got %v, want Unavailable", err)
	}
	stall.Store(false)
	s.stall = stallTimeout
	if _, err := s.Pull(t.Context(), h.host+"/team/demo:1", nil); err != nil {
		t.Fatal(err)
	}
	<-ranges
	if got := <-ranges; !strings.HasPrefix(got, "bytes=5") {
		t.Errorf("second pull asks for range %q, want the second half", got)
	}
}

// A registry that sent damaged content once does not spoil the next pull.
func TestPullAfterDamage(t *testing.T) {
	t.Parallel()
	var damage atomic.Bool
	blobs := demo.Blobs(t)
	h := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
			if data := blobs.All[digest.Digest(d)]; damage.Load() && r.Method == http.MethodGet && data != nil && data[0] == 0x1f {
				bad := bytes.Clone(data)
				bad[len(bad)/2] ^= 0xff
				w.Header().Set("Content-Length", fmt.Sprint(len(bad)))
				_, _ = w.Write(bad)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	h.push(t, "team/demo", demo)
	s := open(t, Options{})
	damage.Store(true)
	if _, err := s.Pull(t.Context(), h.host+"/team/demo:1", nil); !root.IsKind(err, root.Invalid) {
		t.Errorf("damaged: got %v, want Invalid", err)
	}
	empty(t, s)
	damage.Store(false)
	if _, err := s.Pull(t.Context(), h.host+"/team/demo:1", nil); err != nil {
		t.Errorf("pull after a damaged one: %v", err)
	}
}

// A mirror is asked first, by the registry's name; what it lacks, or when it is
// away, comes from the registry itself.
func TestPullFromMirror(t *testing.T) {
	t.Parallel()
	var (
		asked  atomic.Int64
		locked atomic.Bool
	)
	mirror := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); locked.Load() && (user != "me" || password != "secret") {
				w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if r.URL.Query().Get("ns") != "" {
				asked.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	})
	itself := newHub(t, nil)
	mirror.push(t, "team/demo", demo)
	locked.Store(true)
	other := demo
	other.Config.Env = []string{"FROM=itself"}
	itself.push(t, "team/other", other)
	s := open(t, Options{
		Mirrors: func(registry string) []string {
			if registry != itself.host {
				return nil
			}
			return []string{"http://127.0.0.1:1", "http://" + mirror.host}
		},
		Credentials: func(host string) (string, string, error) {
			if host == mirror.host {
				return "me", "secret", nil
			}
			return "", "", nil
		},
	})
	img, err := s.Pull(t.Context(), itself.host+"/team/demo:1", nil)
	if err != nil || img.Registry != itself.host || string(img.Digest) != demo.Digest(t) || asked.Load() == 0 {
		t.Errorf("from the mirror: got %+v, %v, asked %d times", img, err, asked.Load())
	}
	if img, err = s.Pull(t.Context(), itself.host+"/team/other:1", nil); err != nil || string(img.Digest) != other.Digest(t) {
		t.Errorf("what the mirror lacks: got %+v, %v", img, err)
	}
}

// Credentials of one pull are for it alone.
func TestPullAs(t *testing.T) {
	t.Parallel()
	var locked atomic.Bool
	h := newHub(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); locked.Load() && password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	h.push(t, "team/demo", demo)
	locked.Store(true)
	s := open(t, Options{})
	ref := h.host + "/team/demo:1"
	if _, err := s.PullAs(t.Context(), ref, Login{User: "me", Password: "secret"}, nil); err != nil {
		t.Error(err)
	}
	_, err := s.Pull(t.Context(), ref, nil)
	if re, ok := errors.AsType[*root.Error](err); !ok || re.Code != CodeRegistryUnauthorized {
		t.Errorf("without them: got %v, want %s", err, CodeRegistryUnauthorized)
	}
}
