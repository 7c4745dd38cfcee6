package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/moby/locker"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

const (
	// Namespace is the one namespace of the metadata database.
	Namespace = "roost"
	// snapshotter is the name of the overlay snapshotter in the database.
	snapshotter = "overlayfs"

	// openTimeout bounds the wait for the database's file lock: a process that
	// just ended may hold it for a moment.
	openTimeout = 5 * time.Second
	// flightExpiry ends the lease of work that never reported back. Longer than
	// any pull; what a crash left is swept at the next Open.
	flightExpiry = 24 * time.Hour

	// labelFlight marks the leases of work in flight in this process.
	labelFlight = "roost.run/flight"
	// labelSnapshot on a config blob refers to its unpacked snapshot.
	labelSnapshot = "containerd.io/gc.ref.snapshot." + snapshotter
)

// Options of a Store.
type Options struct {
	Root   string     // directory, made if missing: "/var/lib/roost/images"
	Budget root.Bytes // disk that images nobody needs may use; 0: none
	Domain string     // our registry is "registry.<Domain>"; references to it are never pulled

	// Addresses are where else our registry is reached ("127.0.0.1:4280"): who
	// pushed there will ask for the image by that name.
	Addresses []string

	// KeepReleases is how many of the newest images of each repository of our
	// own registry Collect leaves alone: nobody else has them. 0 means 3.
	KeepReleases int
	// KeepFor spares what was pulled, loaded or resolved within it. 0 means 10 min.
	KeepFor time.Duration

	// PlainHTTP lists registries ("10.0.0.2:5000") spoken to without TLS,
	// besides localhost and loopback addresses.
	PlainHTTP []string
	// Mirrors returns the URLs ("https://mirror.example.com") to ask before a
	// registry itself. nil: none.
	Mirrors func(registry string) []string
	// Credentials returns user and password for a registry's host; both empty
	// means anonymous. nil: always anonymous.
	Credentials func(host string) (user, password string, err error)
	// Dial connects to registries, and wherever they send us, on behalf of
	// people who may not connect to all that the host can; nil is net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Log *slog.Logger // nil discards
}

// The defaults of Options.
const (
	defaultKeepReleases = 3
	defaultKeepFor      = 10 * time.Minute
)

// Store holds the images of a host.
type Store struct {
	o        Options
	log      *slog.Logger
	platform platforms.MatchComparer

	db      *metadata.DB
	bolt    *bolt.DB
	overlay snapshots.Snapshotter // below the database; closed last
	content content.Store
	snap    snapshots.Snapshotter
	leases  leases.Manager
	images  images.Store

	stall    time.Duration // stallTimeout; tests shorten it
	maxFiles int           // maxArchiveFiles; tests lower it

	flights sync.WaitGroup // unpacks that run on behalf of several callers

	// collecting is held while garbage is collected. Mount and Protect pass
	// through it after they registered what they need, so that either the
	// collection saw it or they see what the collection took.
	collecting sync.RWMutex

	keys locker.Locker // by key of a mount: one operation at a time

	mu     sync.Mutex
	mounts map[string]*mountRecord     // guarded by mu; by key
	owned  map[string]string           // guarded by mu; image name -> its labelOrgs; the others are everybody's
	used   map[string]time.Time        // guarded by mu; image name -> last time it was asked for
	given  map[digest.Digest]time.Time // guarded by mu; manifest -> when a caller got it, who may Protect or Mount it next
	lower  map[digest.Digest]*lower    // guarded by mu; chain id -> directories
	unpack map[digest.Digest]*flight   // guarded by mu; by manifest
	closed bool                        // guarded by mu: no new flights
}

// Open opens the store below o.Root. The directory belongs to one Store at a
// time: a second one gives kind Unavailable. What a crashed process left in
// flight is released.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if o.KeepReleases == 0 {
		o.KeepReleases = defaultKeepReleases
	}
	if o.KeepFor == 0 {
		o.KeepFor = defaultKeepFor
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	quiet()
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(o.Root, "mounts"), 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{
		o: o, log: o.Log, stall: stallTimeout, maxFiles: maxArchiveFiles,
		platform: platforms.OnlyStrict(platforms.DefaultSpec()),
		mounts:   map[string]*mountRecord{},
		owned:    map[string]string{},
		used:     map[string]time.Time{},
		given:    map[digest.Digest]time.Time{},
		lower:    map[digest.Digest]*lower{},
		unpack:   map[digest.Digest]*flight{},
	}
	var cleanup []io.Closer
	defer func() {
		if err != nil {
			for _, c := range slices.Backward(cleanup) {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	s.bolt, err = bolt.Open(filepath.Join(o.Root, "meta.db"), 0o600, &bolt.Options{Timeout: openTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, &root.Error{Kind: root.Unavailable, Message: "the image store " + o.Root + " is in use by another process; stop it first", Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	cleanup = append(cleanup, s.bolt)
	blobs, err := local.NewStore(filepath.Join(o.Root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	s.overlay, err = overlay.NewSnapshotter(filepath.Join(o.Root, "overlay"))
	if err != nil {
		return nil, &root.Error{Kind: root.Precondition, Message: "the file system of " + o.Root + " cannot hold unpacked images: use ext4, btrfs, or xfs with ftype=1", Err: err}
	}
	cleanup = append(cleanup, s.overlay)
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotter: s.overlay})
	if err := s.db.Init(ctx); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s.content = s.db.ContentStore()
	s.snap = s.db.Snapshotter(snapshotter)
	s.leases = metadata.NewLeaseManager(s.db)
	s.images = metadata.NewImageStore(s.db)
	if err := s.releaseFlights(ctx); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.adoptNames(ctx); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.readMounts(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return s, nil
}

// quiet silences what containerd's packages say to their process-wide logger
// below errors: what fails is returned to us, and reported once, there.
var quiet = sync.OnceFunc(func() { _ = log.SetLevel("error") })

// Close ends unpacks in progress and closes the databases. Mounts stay.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, f := range s.unpack {
		f.cancel(errClosed)
	}
	s.mu.Unlock()
	s.flights.Wait()
	return errors.Join(s.overlay.Close(), s.db.Close())
}

var errClosed = root.Errorf(root.Unavailable, "the image store is closing")

// Content returns the blobs. The context of its calls must come from Context.
func (s *Store) Content() content.Store { return s.content }

// Snapshotter returns the unpacked layers. The context of its calls must come from Context.
func (s *Store) Snapshotter() snapshots.Snapshotter { return s.snap }

// Leases returns the leases. The context of its calls must come from Context.
func (s *Store) Leases() leases.Manager { return s.leases }

// Context returns ctx marked with the store's namespace, as the libraries want it.
func Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// Flight returns a context under whose lease new blobs and snapshots survive
// collection until done is called. Done returns what nothing else refers to
// to the next collection.
func (s *Store) Flight(ctx context.Context) (_ context.Context, done func(), err error) {
	ctx = Context(ctx)
	l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithLabel(labelFlight, "1"), leases.WithExpiration(flightExpiry))
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		// The lease must go even when the work was cancelled.
		if err := s.leases.Delete(context.WithoutCancel(ctx), l); err != nil && !errdefs.IsNotFound(err) {
			s.log.Warn("lease not released", "err", err)
		}
	}, nil
}

// releaseFlights deletes the leases that a crashed process left.
func (s *Store) releaseFlights(ctx context.Context) error {
	ctx = Context(ctx)
	left, err := s.leases.List(ctx, fmt.Sprintf("labels.%q", labelFlight))
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range left {
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("release lease: %w", err)
		}
	}
	return nil
}

// Config returns the image's config: command, environment, user, layers.
// NotFound when the image is not on this host.
func (s *Store) Config(ctx context.Context, d root.Digest) (ocispec.Image, error) {
	_, config, _, err := s.read(Context(ctx), d)
	return config, err
}

// read returns the manifest d with its config.
func (s *Store) read(ctx context.Context, d root.Digest) (m ocispec.Manifest, config ocispec.Image, configDesc ocispec.Descriptor, err error) {
	dg, err := digest.Parse(string(d))
	if err != nil {
		return m, config, configDesc, root.Errorf(root.Invalid, "%q is not an image digest", clip(string(d)))
	}
	if err = s.readJSON(ctx, ocispec.Descriptor{Digest: dg}, &m); err != nil {
		if errdefs.IsNotFound(err) {
			return m, config, configDesc, root.Errorf(root.NotFound, "image %s is not on this host: pull or load it first", d)
		}
		return m, config, configDesc, err
	}
	if m.Config.Digest == "" {
		return m, config, configDesc, root.Errorf(root.Invalid, "%s is not the manifest of one image", d)
	}
	if err = s.readJSON(ctx, m.Config, &config); err != nil {
		return m, config, configDesc, fmt.Errorf("config of image %s: %w", d, err)
	}
	return m, config, m.Config, nil
}

// maxJSON bounds manifests and configs: both are read into memory.
const maxJSON = 8 << 20

// readBlob reads a small blob whole; an absent one gives containerd's NotFound.
func (s *Store) readBlob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	ra, err := s.content.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	if ra.Size() > maxJSON {
		return nil, root.Errorf(root.Invalid, "%s is %s long: no manifest or config is that large", desc.Digest, root.Bytes(ra.Size()))
	}
	b := make([]byte, ra.Size())
	if _, err := ra.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	return b, nil
}

func (s *Store) readJSON(ctx context.Context, desc ocispec.Descriptor, v any) error {
	b, err := s.readBlob(ctx, desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("%s is not a manifest or config", desc.Digest), Err: err}
	}
	return nil
}

// full gives an error its kind if the disk had no room.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &root.Error{Kind: root.Exhausted, Message: "the disk is full: remove images that are not needed, or enlarge it", Err: err}
	}
	return err
}

// clip keeps hostile input out of messages.
func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}

// Dir returns the directory that holds the store.
func (s *Store) Dir() string { return s.o.Root }
