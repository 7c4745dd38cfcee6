// Package builder turns an uploaded context into an image. Run is the process
// "roost builder", which the server process starts when a build is asked for
// and which ends by itself when nothing has been for a while; Build is its
// client. One build runs at a time, the others wait in a queue; a build whose
// client goes away is killed. Images are written straight into the control
// process's store, through the socket on which it lends that.
//
// Each request runs in its own goroutine, net/http's. It is no sandbox: who
// may build may read what the builder's user may read, until builds get a user
// of their own.
package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder/gobuild"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/ipc"
)

const (
	// idleTimeout is how long the process stays for the next build.
	idleTimeout = 2 * time.Minute
	// shutdownTimeout bounds the wait for the last reply to be sent.
	shutdownTimeout = 5 * time.Second
	// maxQueue is how many builds may wait; more get kind Exhausted.
	maxQueue = 16
	// A build is refused on a disk that is fuller than maxFull with less than
	// minFree left: machines and the database need the rest.
	maxFull = 0.85
	minFree = 4 << 30
)

// Run serves builds on the builder's socket below the run directory, in which
// it finds its configuration, until ctx ends or nothing has been asked of it
// for two minutes.
func Run(ctx context.Context, runDir string) error {
	cfg, err := config.ReadEffective(runDir)
	if err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	l, err := ipc.Listen(cfg.BuilderSocket(), 0o600)
	if err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	return serve(ctx, l, options{
		Dir: filepath.Join(cfg.Data, "builder"), Store: cfg.StoreSocket(),
		Registry: "registry." + cfg.Domain, Idle: idleTimeout, Log: cfg.Logger(os.Stderr, "builder"),
	})
}

// options of the server; all are needed.
type options struct {
	Dir      string // what builds leave for the next one
	Store    string // socket of the store
	Registry string // our own
	Idle     time.Duration
	Go       string // the go command; "" finds it
	Log      *slog.Logger
}

type server struct {
	options
	store *store
	slot  chan struct{} // holds one value while nothing builds

	active  atomic.Int64  // requests
	waiting atomic.Int64  // for the slot
	done    chan struct{} // a value when a request has ended; capacity 1, coalescing
}

// serve serves l until ctx ends or it has been idle; l is closed.
func serve(ctx context.Context, l net.Listener, o options) error {
	st, err := borrow(o.Store)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer func() { _ = st.Close() }() // a connection: nothing is lost
	if err := os.MkdirAll(filepath.Join(o.Dir, "contexts"), 0o700); err != nil {
		return errors.Join(fmt.Errorf("builder: %w", err), l.Close())
	}
	if err := emptyDir(filepath.Join(o.Dir, "contexts")); err != nil { // of builds that were cut off
		return errors.Join(fmt.Errorf("builder: %w", err), l.Close())
	}
	s := &server{options: o, store: st, slot: make(chan struct{}, 1), done: make(chan struct{}, 1)}
	s.slot <- struct{}{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/build", s.build)
	srv := ipc.NewServer(ipc.RequireRoot(s.counted(mux)))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }

	var wg sync.WaitGroup
	wg.Go(func() {
		s.untilIdle(ctx)
		cancel(root.Errorf(root.Unavailable, "the builder is stopping: try again"))
		end, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer done()
		if err := srv.Shutdown(end); err != nil {
			s.Log.Warn("builder stopped with requests open", "err", errors.Join(err, srv.Close()))
		}
	})
	err = srv.Serve(l)
	cancel(err)
	wg.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("builder: %w", err)
}

// counted keeps account of requests for untilIdle.
func (s *server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.active.Add(1)
		defer func() {
			s.active.Add(-1)
			select {
			case s.done <- struct{}{}:
			default:
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// untilIdle returns when no request has been open for the idle time, or ctx ends.
func (s *server) untilIdle(ctx context.Context) {
	t := time.NewTimer(s.Idle)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.done:
			t.Reset(s.Idle)
		case <-t.C:
			if s.active.Load() == 0 {
				return
			}
			// done tells when the request ends, and the time runs from then.
		}
	}
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// event is one line of the reply to a build. The last has Image or Error.
type event struct {
	Log   *string    `json:"log,omitempty"`
	Image *wireImage `json:"image,omitempty"`
	Error *wireError `json:"error,omitempty"`
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

func (s *server) build(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	req, err := parseRequest(r.URL.Query())
	if err != nil {
		refuse(w, r, err)
		return
	}
	log := s.Log.With("app", req.App)
	ctx := r.Context()
	dir := filepath.Join(s.Dir, "contexts", ulid.Make().String())
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			log.Warn("build context left", "err", err)
		}
	}()
	if err := s.receive(r, dir); err != nil {
		refuse(w, r, err)
		return
	}
	out := ipc.NewStream(w)
	line := func(text string) { _ = out.Send(event{Log: &text}) } // a client that left ends ctx
	img, err := s.queued(ctx, line, func() (root.Image, error) { return s.run(ctx, req, dir, line) })
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		log.Info("build failed", "err", err, "took", time.Since(start))
		e := &wireError{Kind: root.KindOf(err).String(), Message: root.MessageOf(err)}
		if re, ok := errors.AsType[*root.Error](err); ok {
			e.Code = re.Code
		}
		if root.IsKind(err, root.Internal) {
			e.Message = err.Error() // our own processes may know
		}
		_ = out.Send(event{Error: e})
		return
	}
	log.Info("image built", "image", img.Ref(), "took", time.Since(start))
	_ = out.Send(event{Image: &wireImage{img.Registry, img.Repository, img.Tag, string(img.Digest)}})
}

// refuse answers before anything is built. The rest of the upload is read, or
// the sender would see a broken connection in place of the answer.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxUpload))
	ipc.WriteError(w, err)
}

// receive unpacks the uploaded context.
func (s *server) receive(r *http.Request, dir string) error {
	if err := roomFor(s.Dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	return unpack(r.Body, dir)
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
func (s *server) queued(ctx context.Context, line func(string), f func() (root.Image, error)) (root.Image, error) {
	select {
	case <-s.slot:
	default:
		n := s.waiting.Add(1)
		defer s.waiting.Add(-1)
		if n > maxQueue {
			return root.Image{}, root.Errorf(root.Exhausted, "%d builds are waiting already: try again later", maxQueue)
		}
		line(fmt.Sprintf("waiting for %d other build(s) to finish", n))
		select {
		case <-s.slot:
		case <-ctx.Done():
			return root.Image{}, context.Cause(ctx)
		}
	}
	defer func() { s.slot <- struct{}{} }()
	return f()
}

// run builds the context in dir and stores the image.
func (s *server) run(ctx context.Context, req Request, dir string, line func(string)) (root.Image, error) {
	bin, err := gobuild.Build(ctx, gobuild.Source{
		Dir: dir, Package: req.Args[ArgPackage], Go: s.Go,
		Out: filepath.Join(s.Dir, "out", string(req.App)), Home: filepath.Join(s.Dir, "home"),
	}, line)
	if err != nil {
		return root.Image{}, err
	}
	ctx, done, err := s.store.flight(ctx)
	if err != nil {
		return root.Image{}, err
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
		return root.Image{}, fmt.Errorf("base layer: %w", err)
	}
	program, err := s.layer(ctx, dir, func(f *os.File) error { return gobuild.WriteProgram(f, bin) })
	if err != nil {
		return root.Image{}, fmt.Errorf("program layer: %w", err)
	}
	config, err := s.store.putJSON(ctx, ocispec.MediaTypeImageConfig, gobuild.Config(bin, runtime.GOARCH, base, program))
	if err != nil {
		return root.Image{}, fmt.Errorf("image config: %w", err)
	}
	img := root.Image{Registry: s.Registry, Repository: string(req.App), Tag: "deployment-" + ulid.Make().String()}
	m, err := s.store.name(ctx, img.Ref(), gobuild.Manifest(config, base, program))
	if err != nil {
		return root.Image{}, fmt.Errorf("name image: %w", err)
	}
	img.Digest = root.Digest(m.Digest)
	return img, nil
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
