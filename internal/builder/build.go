package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/oklog/ulid/v2"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder/buildkit"
	"github.com/roost-run/roost/internal/builder/gobuild"
	"github.com/roost-run/roost/internal/ipc"
)

// maxRequest bounds the description of a build: Dockerfile and secrets.
const maxRequest = 32 << 20

// event is one line of the reply to a build. The last has Image or Error.
type event struct {
	Log    *string         `json:"log,omitempty"`
	Status json.RawMessage `json:"status,omitempty"`
	Image  *wireImage      `json:"image,omitempty"`
	Error  *wireError      `json:"error,omitempty"`
}

type wireImage struct {
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Digest     string `json:"digest"`
}

type wireError struct {
	Kind    string `json:"kind"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

// context begins an upload.
func (s *server) context(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	err := checkKey(key)
	if err == nil {
		err = roomFor(s.Dir)
	}
	var state ContextState
	if err == nil {
		var id digest.Digest
		id, state.Missing, err = s.contexts.begin(key, r.Body)
		state.ID = string(id)
	}
	if err != nil {
		refuse(w, r, err)
		return
	}
	writeJSON(w, state)
}

// blobs goes on with one.
func (s *server) blobs(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	err := checkKey(key)
	if err == nil {
		err = s.contexts.receive(key, digest.Digest(r.PathValue("id")), r.Body)
	}
	if err != nil {
		refuse(w, r, err)
		return
	}
	writeJSON(w, struct{}{})
}

// refuse answers before the request has been read. Some of the rest is, or the
// sender would see a broken connection in place of the answer.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	const most = 64 << 20
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, most))
	ipc.WriteError(w, err)
}

// build streams a build's news and its result.
func (s *server) build(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	var req Request
	// Read to its end: only then does the server notice a client that leaves.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		refuse(w, r, &root.Error{Kind: root.Invalid, Message: "the description of the build cannot be read", Err: err})
		return
	}
	if err := req.check(); err != nil {
		refuse(w, r, err)
		return
	}
	log := s.Log.With("app", req.App)
	ctx := r.Context()
	out := newNews(w)
	img, err := s.queued(ctx, req.Scope, out.log, func() (root.Image, error) { return s.run(ctx, req, out) })
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		log.Info("build failed", "kind", req.Kind, "reason", root.KindOf(err), "took", time.Since(start))
		e := &wireError{Kind: root.KindOf(err).String(), Message: root.MessageOf(err)}
		if re, ok := errors.AsType[*root.Error](err); ok {
			e.Code = re.Code
		}
		if root.IsKind(err, root.Internal) {
			e.Message = err.Error() // our own processes may know
		}
		out.send(event{Error: e})
		return
	}
	log.Info("image built", "image", img.Ref(), "took", time.Since(start))
	out.send(event{Image: &wireImage{img.Registry, img.Repository, img.Tag, string(img.Digest)}})
}

// roomFor refuses builds on a disk that is nearly full.
func roomFor(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	total, free := float64(st.Blocks)*float64(st.Bsize), float64(st.Bavail)*float64(st.Bsize)
	if free < minFree && free < (1-maxFull)*total {
		return root.Errorf(root.Exhausted, "the disk is nearly full (%s left): remove images or enlarge it before building", root.Bytes(free))
	}
	return nil
}

// queued runs f when it is its turn.
func (s *server) queued(ctx context.Context, scope string, line func(string), f func() (root.Image, error)) (root.Image, error) {
	done, err := s.queue.enter(ctx, scope, func(before int) error {
		if before > maxQueue {
			return root.Errorf(root.Exhausted, "%d builds are waiting already: try again later", maxQueue)
		}
		line(fmt.Sprintf("waiting for %d other build(s) to finish", before))
		return nil
	})
	if err != nil {
		return root.Image{}, err
	}
	defer done()
	return f()
}

// run builds, and stores the image.
func (s *server) run(ctx context.Context, req Request, out *news) (root.Image, error) {
	if err := roomFor(s.Dir); err != nil {
		return root.Image{}, err
	}
	tree, release, err := s.contexts.open(req.Key, digest.Digest(req.Context))
	if err != nil {
		return root.Image{}, err
	}
	defer release()
	img := root.Image{Registry: s.Registry, Repository: string(req.App), Tag: "deployment-" + ulid.Make().String()}
	if req.Kind == KindGo {
		img.Digest, err = s.goImage(ctx, req, tree, img.Ref(), out.log)
		return img, err
	}
	engine, err := s.buildKit(ctx)
	if err != nil {
		return root.Image{}, err
	}
	secrets := make(map[string][]byte, len(req.Secrets))
	for id, v := range req.Secrets {
		secrets[id] = []byte(v)
	}
	img.Digest, err = engine.Build(ctx, buildkit.Build{
		Image: img.Ref(), Context: tree, Dockerfile: []byte(req.Dockerfile), Name: req.DockerfileName, Target: req.Target,
		Args: req.Args, Labels: req.Labels, NoCache: req.NoCache, Secrets: secrets, Scope: req.Scope, Repositories: req.Repositories, Denied: req.Denied,
	}, out.status)
	return img, err
}

// goImage builds a Go program.
func (s *server) goImage(ctx context.Context, req Request, tree *tree, name string, line func(string)) (root.Digest, error) {
	dir := filepath.Join(s.Dir, "sources", ulid.Make().String())
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Log.Warn("source of a build left", "err", err)
		}
	}()
	if err := tree.write(dir); err != nil {
		return "", err
	}
	bin, err := gobuild.Build(ctx, gobuild.Source{
		Dir: dir, Package: req.Package, Go: s.Go,
		Out: filepath.Join(outDir(s.Dir), req.Key), Home: filepath.Join(s.Dir, "home"),
	}, line)
	if err != nil {
		return "", err
	}
	ctx, done, err := s.store.flight(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	base, err := s.layer(ctx, dir, func(f *os.File) error {
		missing, err := gobuild.WriteBase(f, bin.Root)
		for _, m := range missing {
			line("warning: this host has no " + m)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("base layer: %w", err)
	}
	program, err := s.layer(ctx, dir, func(f *os.File) error { return gobuild.WriteProgram(f, bin) })
	if err != nil {
		return "", fmt.Errorf("program layer: %w", err)
	}
	config, err := s.store.putJSON(ctx, ocispec.MediaTypeImageConfig, gobuild.Config(bin, runtime.GOARCH, base, program))
	if err != nil {
		return "", fmt.Errorf("image config: %w", err)
	}
	m, err := s.store.name(ctx, name, gobuild.Manifest(config, base, program))
	if err != nil {
		return "", fmt.Errorf("name image: %w", err)
	}
	return root.Digest(m.Digest), nil
}

// layer writes a layer to a file first: its digest comes before its bytes, and
// a layer that the store has is not sent.
func (s *server) layer(ctx context.Context, dir string, write func(*os.File) error) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(filepath.Dir(dir), "layer-*")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = os.Remove(f.Name()) }() // the directory is emptied at every start
	defer f.Close()
	if err := write(f); err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.store.putFile(ctx, ocispec.MediaTypeImageLayer, f)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that left asks again
}
