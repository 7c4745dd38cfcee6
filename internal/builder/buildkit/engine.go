// Package buildkit makes images from Dockerfiles: BuildKit's solver, its
// Dockerfile frontend and its OCI executor, in this process, over the image
// store that the control process lends. A result is named in that store and is
// ready to run: its files are the snapshots that the build made, its layers are
// written beside them, nothing is copied or unpacked again. Base images come
// from that store, too, which pulls what it lacks.
//
// Only the process "roost builder" opens an Engine; it has at most one. BuildKit
// keeps goroutines of its own until Close. The package knows nothing of apps:
// who may build what is its caller's business.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	ctdlog "github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	root "github.com/roost-run/roost"
)

const (
	// namespace is the store's only one.
	namespace = "roost"
	// snapshotter is the store's name for its snapshots.
	snapshotter = "overlayfs"
	// labelCache is the store's mark on leases that have no end: those of the
	// layer cache.
	labelCache = "roost.run/cache"
	// metadataFile is where BuildKit keeps what it knows of the layer cache.
	metadataFile = "metadata.db"
	// labelResult tells the store which snapshot holds an image's files.
	labelResult = "roost.run/snapshot"
	// stepOOMScore makes the kernel kill a step, not the builder.
	stepOOMScore = 800
	// pipeSize is the buffer of the connection between BuildKit and us.
	pipeSize = 256 << 10
)

// Options of an Engine; all are needed unless it says otherwise.
type Options struct {
	Dir      string // what BuildKit remembers; made if missing
	Registry string // our own: "registry.localhost"
	// Addresses are the store's other names of it: "127.0.0.1:4280".
	Addresses []string

	Content   content.Store
	Snapshots snapshots.Snapshotter
	Leases    leases.Manager
	Images    images.Store // Get pulls; Create names, unpacked

	Runtime string // OCI runtime binary: "runc"
	// CgroupParent is the control group below which steps run, from the root of
	// the hierarchies; "" leaves it to the runtime.
	CgroupParent string
	// Killed returns a function that says whether since now the kernel has
	// killed a process of a build for memory; nil: unknown.
	Killed func() (func() bool, error)
	// Memory is what builds may use, for the message of one that wants more; 0: no limit.
	Memory root.Bytes
	// Nameservers are for steps; empty: those of this process.
	Nameservers []string
	// Cache is the disk that layers and cache mounts may use.
	Cache root.Bytes
	Log   *slog.Logger
}

// Engine builds.
type Engine struct {
	o      Options
	worker *resultWorker
	ctrl   *control.Controller
	bases  *bases
	client *client.Client
	server *grpc.Server
	served sync.WaitGroup
	runc   string // the runtime's own directory
	closer []io.Closer
}

// Open starts BuildKit, which lives as long as ctx at most. What a process that was killed left is removed; whoever
// started it has ended the steps that ran.
func Open(ctx context.Context, o Options) (_ *Engine, err error) {
	_ = ctdlog.SetLevel("error") // what fails is returned to us
	e := &Engine{o: o, bases: &bases{Store: o.Images}, runc: filepath.Join(o.Dir, "runtime")}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start BuildKit: %w", err), e.Close())
		}
	}()
	if err := errors.Join(os.MkdirAll(o.Dir, 0o700), os.RemoveAll(e.runc), sweep(filepath.Join(o.Dir, "executor"))); err != nil {
		return nil, err
	}
	_, err = os.Stat(filepath.Join(o.Dir, metadataFile))
	known := err == nil
	opt, err := e.workerOptions()
	if err != nil {
		return nil, err
	}
	if !known { // somebody removed the directory: nobody else gives up what it held
		if err := forgetCache(ctx, opt.LeaseManager); err != nil {
			return nil, err
		}
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, err
	}
	e.closer = append(e.closer, w)
	writer, err := containerimage.NewImageWriter(containerimage.WriterOpt{
		Snapshotter: opt.Snapshotter, ContentStore: opt.ContentStore, Applier: opt.Applier, Differ: opt.Differ,
	})
	if err != nil {
		return nil, err
	}
	e.worker = &resultWorker{Worker: w, writer: writer, images: o.Images}
	wc := &worker.Controller{}
	if err := wc.Add(e.worker); err != nil {
		return nil, err
	}
	return e, e.serve(ctx, wc)
}

// serve starts the solver, and our connection to it.
func (e *Engine) serve(ctx context.Context, wc *worker.Controller) error {
	sessions, err := session.NewManager()
	if err != nil {
		return err
	}
	store, err := bboltcachestorage.NewStore(filepath.Join(e.o.Dir, "cache.db"))
	if err != nil {
		return err
	}
	// BuildKit wants a place for a history of builds. Ours keep none, so that
	// nothing of a build outlives it but its result.
	historyDB, err := bolt.Open(filepath.Join(e.o.Dir, "history.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	e.ctrl, err = control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: wc,
		Frontends:        map[string]frontend.Frontend{frontendName: forwarder.NewGatewayForwarder(wc.Infos(), dockerfile.Build)},
		CacheManager:     solver.NewCacheManager(ctx, "local", store, worker.NewCacheResultStorage(wc)),
		CacheStore:       store,
		HistoryDB:        historyDB,
		LeaseManager:     e.worker.LeaseManager(),
		ContentStore:     e.worker.ContentStore(),
		GarbageCollect:   e.worker.GarbageCollect,
	})
	if err != nil {
		return errors.Join(err, store.Close(), historyDB.Close())
	}
	e.closer = []io.Closer{e.ctrl} // it closes the worker
	// The interceptors carry errors with what they know, such as the line of
	// the Dockerfile.
	e.server = grpc.NewServer(grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor))
	e.ctrl.Register(e.server)
	l := bufconn.Listen(pipeSize)
	e.served.Go(func() { _ = e.server.Serve(l) }) // until Close
	e.client, err = client.New(ctx, "passthrough:buildkit", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return l.DialContext(ctx)
	}))
	return err
}

// Close ends builds in progress and gives everything back.
func (e *Engine) Close() error {
	var errs []error
	if e.client != nil {
		errs = append(errs, e.client.Close())
	}
	if e.server != nil {
		e.server.Stop()
		e.served.Wait()
	}
	for _, c := range e.closer {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (e *Engine) workerOptions() (base.WorkerOpt, error) {
	monitor, err := resources.NewMonitor()
	if err != nil {
		return base.WorkerOpt{}, err
	}
	command, err := e.runtimeCommand()
	if err != nil {
		return base.WorkerOpt{}, err
	}
	// Steps are in this process's network, which whoever started it chose.
	networks := map[pb.NetMode]network.Provider{pb.NetMode_UNSET: network.NewHostProvider(), pb.NetMode_NONE: network.NewNoneProvider()}
	var dns *oci.DNSConfig
	if len(e.o.Nameservers) > 0 {
		dns = &oci.DNSConfig{Nameservers: e.o.Nameservers}
	}
	score := stepOOMScore
	exec, err := runcexecutor.New(runcexecutor.Opt{
		Root: filepath.Join(e.o.Dir, "executor"), CommandCandidates: []string{command}, ProcessMode: oci.ProcessSandbox,
		DefaultCgroupParent: e.o.CgroupParent, DNS: dns, OOMScoreAdj: &score, ResourceMonitor: monitor,
	}, networks)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	id, err := base.ID(e.o.Dir)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	md, err := metadata.NewStore(filepath.Join(e.o.Dir, metadataFile))
	if err != nil {
		return base.WorkerOpt{}, err
	}
	store := containerdsnapshot.NewContentStore(e.o.Content, namespace)
	lm := leaseutil.WithNamespace(e.o.Leases, namespace)
	return base.WorkerOpt{
		ID: id, Root: e.o.Dir, MetadataStore: md,
		NetworkProviders: networks,
		Executor:         exec,
		Snapshotter:      containerdsnapshot.NewSnapshotter(snapshotter, e.o.Snapshots, namespace, nil),
		ContentStore:     store,
		Applier:          apply.NewFileSystemApplier(store),
		Differ:           walking.NewWalkingDiff(store),
		ImageStore:       e.bases,
		RegistryHosts:    noRegistry,
		Platforms:        []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())},
		LeaseManager:     lm,
		GarbageCollect: func(ctx context.Context) (gc.Stats, error) {
			// The store collects when a lease goes that is said to matter.
			l, err := lm.Create(ctx, leases.WithRandomID(), leaseutil.MakeTemporary)
			if err != nil {
				return nil, err
			}
			return nil, lm.Delete(ctx, l, leases.SynchronousDelete)
		},
		MountPoolRoot:   filepath.Join(e.o.Dir, "cachemounts"),
		ResourceMonitor: monitor,
	}, nil
}

// runtimeCommand is the OCI runtime with a directory of its own for what runs:
// BuildKit cannot pass it one.
func (e *Engine) runtimeCommand() (string, error) {
	name := filepath.Join(e.o.Dir, "runc")
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --root '%s' \"$@\"\n", e.o.Runtime, e.runc)
	if err := os.MkdirAll(e.runc, 0o700); err != nil {
		return "", err
	}
	return name, os.WriteFile(name, []byte(script), 0o700) //nolint:gosec // it is to be executed
}

// forgetCache gives up what the layer cache holds in the store.
func forgetCache(ctx context.Context, lm leases.Manager) error {
	held, err := lm.List(ctx, fmt.Sprintf("labels.%q", labelCache))
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range held {
		errs = append(errs, lm.Delete(ctx, l))
	}
	return errors.Join(errs...)
}

// sweep removes what steps that were cut off left: a directory each, where
// their files were mounted. Nothing below such a place is touched.
func sweep(dir string) error {
	left, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, step := range left {
		if !step.IsDir() {
			continue
		}
		place := filepath.Join(dir, step.Name())
		mounted := filepath.Join(place, "rootfs")
		if err := mount.UnmountAll(mounted, unix.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		for _, name := range []string{mounted, filepath.Join(place, "config.json"), place} {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
