// Package builder turns an uploaded context into an image: by its Dockerfile
// (package buildkit) or, without one, as a Go program (package gobuild). Run is
// the process "roost builder", which the server process starts when a build is
// asked for and which ends by itself when nothing has been for a while; Client
// talks to it. Few builds run at a time, the others wait in a queue; a build
// whose client goes away is killed. Images are written straight into the
// control process's store, through the socket on which it lends that.
//
// The process has a network of its own, which the server made: public
// addresses are reached, the host and private networks are not. Each request
// runs in its own goroutine, net/http's.
package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder/buildkit"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/runtime/cgroup"
)

const (
	// groupName is the control group of builds, below that of all machines; the
	// server puts this process into it.
	groupName = "builds"
	// idleTimeout is how long the process stays for the next build.
	idleTimeout = 2 * time.Minute
	// shutdownTimeout bounds the wait for the last reply to be sent.
	shutdownTimeout = 5 * time.Second
	// settleTime is how long after a build what it left is tidied up: BuildKit
	// lets go of its results in the background.
	settleTime = 2 * time.Second
	// pruneTimeout bounds the clean-up after a build.
	pruneTimeout = 5 * time.Minute
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
	own, err := ownMounts(&cfg)
	if err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	o := options{
		Dir: Dir(cfg.Data), Store: cfg.StoreSocket(),
		Registry: cfg.RegistryName(), Idle: idleTimeout, Slots: cfg.Builds, Log: cfg.Logger(os.Stderr, "builder"),
		BuildKit: buildkit.Options{Addresses: cfg.RegistryAddresses(), Runtime: cfg.Runtime, CgroupParent: path.Join("/", cfg.CgroupParent(), groupName), Cache: cfg.BuildCache, Memory: cfg.BuildMemory},
	}
	if own { // the server started this process: there are a network and a control group of builds
		o.BuildKit.Nameservers = []string{network.GatewayIPv4}
		groups, err := cgroup.Open(cfg.CgroupParent())
		if err != nil {
			return fmt.Errorf("builder: %w", err)
		}
		o.BuildKit.Killed = func() (func() bool, error) { return groups.Killed(groupName) }
		if o.BuildKit.Memory == 0 {
			if all, err := groups.Limit(); err == nil {
				o.BuildKit.Memory = all / 2
			}
		}
	}
	l, err := ipc.Listen(cfg.BuilderSocket(), 0o600)
	if err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	return serve(ctx, l, o)
}

// options of the server; all are needed.
type options struct {
	Dir      string // what builds leave for the next one
	Store    string // socket of the store
	Registry string // our own
	Idle     time.Duration
	Slots    int              // builds of one scope at a time
	Go       string           // the go command; "" finds it
	BuildKit buildkit.Options // but for what the server fills in: directory, registry, stores, log
	Log      *slog.Logger
}

type server struct {
	options
	store    *store
	contexts *contexts
	queue    *queue

	engineMu sync.Mutex
	engine   *buildkit.Engine // guarded by engineMu; nil until a Dockerfile needs it

	active atomic.Int64  // requests
	done   chan struct{} // a value when a request has ended; capacity 1, coalescing
}

// serve serves l until ctx ends or it has been idle; l is closed.
func serve(ctx context.Context, l net.Listener, o options) (err error) {
	st, err := borrow(o.Store)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer func() { _ = st.Close() }() // a connection: nothing is lost
	sources := filepath.Join(o.Dir, "sources")
	if err := errors.Join(os.MkdirAll(sources, 0o700), emptyDir(sources)); err != nil { // of builds that were cut off
		return errors.Join(fmt.Errorf("builder: %w", err), l.Close())
	}
	kept, err := openContexts(contextsDir(o.Dir), contextBudget)
	if err != nil {
		return errors.Join(fmt.Errorf("builder: %w", err), l.Close())
	}
	s := &server{options: o, store: st, contexts: kept, queue: &queue{slots: o.Slots}, done: make(chan struct{}, 1)}
	defer func() { err = errors.Join(err, s.closeEngine()) }()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/apps/{key}/contexts", s.context)
	mux.HandleFunc("PUT /v1/apps/{key}/contexts/{id}/blobs", s.blobs)
	mux.HandleFunc("POST /v1/builds", s.build)
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
	t, quiet := time.NewTimer(s.Idle), time.NewTimer(settleTime)
	defer t.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.done:
			quiet.Reset(settleTime)
			t.Reset(s.Idle)
		case <-quiet.C:
			if s.active.Load() == 0 {
				s.tidy(ctx)
			}
		case <-t.C:
			if s.active.Load() == 0 {
				return
			}
			// done tells when the request ends, and the time runs from then.
		}
	}
}

// buildKit returns the engine, which the first Dockerfile starts.
func (s *server) buildKit(ctx context.Context) (*buildkit.Engine, error) {
	s.engineMu.Lock()
	defer s.engineMu.Unlock()
	if s.engine != nil {
		return s.engine, nil
	}
	o := s.BuildKit
	o.Dir, o.Registry, o.Log = filepath.Join(s.Dir, "buildkit"), s.Registry, s.Log
	o.Content, o.Snapshots, o.Leases, o.Images = s.store.content, s.store.snaps, s.store.leases, imageStore{s.store}
	engine, err := buildkit.Open(context.WithoutCancel(ctx), o) // it outlives the request
	if err != nil {
		return nil, err
	}
	s.engine = engine
	return engine, nil
}

func (s *server) closeEngine() error {
	s.engineMu.Lock()
	defer s.engineMu.Unlock()
	if s.engine == nil {
		return nil
	}
	return s.engine.Close()
}

// tidy brings what builds left within its budgets, once nothing is built.
func (s *server) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	s.engineMu.Lock()
	engine := s.engine
	s.engineMu.Unlock()
	err := s.contexts.collect(time.Now())
	if engine != nil {
		err = errors.Join(err, engine.Prune(ctx))
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("what builds left was not tidied up", "err", err)
	}
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
