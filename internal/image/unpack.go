package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// flight is one unpack that several callers wait for.
type flight struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when chain and err are set
	chain  digest.Digest
	err    error
}

// Unpack makes the image's layers ready to be mounted and returns their chain
// id, or the snapshot that the builder left of them. Layers that are already there cost one look-up each. Concurrent calls
// for one image share the work; it goes on when one of them gives up.
func (s *Store) Unpack(ctx context.Context, d root.Digest) error {
	_, err := s.unpacked(ctx, d)
	return err
}

func (s *Store) unpacked(ctx context.Context, d root.Digest) (digest.Digest, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return "", errClosed
	}
	f, ok := s.unpack[digest.Digest(d)]
	if !ok {
		// Values of the first caller's context only; it must not cancel the others.
		work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{})}
		s.unpack[digest.Digest(d)] = f
		s.flights.Go(func() {
			f.chain, f.err = s.unpackLayers(work, d)
			s.mu.Lock()
			delete(s.unpack, digest.Digest(d))
			s.mu.Unlock()
			close(f.done)
			cancel(nil)
		})
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.chain, f.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (s *Store) unpackLayers(ctx context.Context, d root.Digest) (digest.Digest, error) {
	ctx = Context(ctx)
	m, config, configDesc, err := s.read(ctx, d)
	if err != nil {
		return "", err
	}
	if len(m.Layers) != len(config.RootFS.DiffIDs) {
		return "", root.Errorf(root.Invalid, "image %s is damaged: its manifest has %d layers, its config %d", d, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	if len(m.Layers) == 0 {
		return "", nil
	}
	// The list is computed by appending: identity.ChainID reuses its argument.
	chain := identity.ChainID(slices.Clone(config.RootFS.DiffIDs))
	// The config keeps the snapshot alive. It must say so before the look at
	// the snapshot: another image's config may have kept it up to now, and go.
	info, err := s.content.Info(ctx, configDesc.Digest)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", d, err)
	}
	has := info.Labels[labelSnapshot]
	if has != "" && has != chain.String() { // the builder's: see adopt
		if _, err := s.snap.Stat(ctx, has); err == nil {
			return digest.Digest(has), nil
		}
	}
	if has != chain.String() {
		_, err = s.content.Update(ctx, content.Info{Digest: configDesc.Digest, Labels: map[string]string{labelSnapshot: chain.String()}}, "labels."+labelSnapshot)
		if err != nil {
			return "", fmt.Errorf("unpack %s: %w", d, err)
		}
	}
	if _, err := s.snap.Stat(ctx, chain.String()); err == nil {
		return chain, nil
	}
	start := time.Now()
	ctx, done, err := s.Flight(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	layers := make([]rootfs.Layer, len(m.Layers))
	for i, blob := range m.Layers {
		layers[i] = rootfs.Layer{Blob: blob, Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: config.RootFS.DiffIDs[i]}}
	}
	if _, err := rootfs.ApplyLayers(ctx, layers, s.snap, applier{s.content}); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err := full(err); root.KindOf(err) != root.Internal {
			return "", err
		}
		return "", &root.Error{Kind: root.Invalid, Message: "image " + string(d) + " cannot be unpacked: a layer is damaged or cannot be stored here", Err: err}
	}
	s.log.Info("image unpacked", "image", d, "took", time.Since(start))
	return chain, nil
}

// applier writes one layer into a snapshot. Unlike containerd's it refuses
// entries that point out of the root file system instead of bending them, and
// it never mounts: the snapshotter's directories are written directly.
type applier struct{ content content.Provider }

func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (_ ocispec.Descriptor, err error) {
	if len(mounts) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %d mounts, want one", desc.Digest, len(mounts))
	}
	opts := []archive.ApplyOpt{
		archive.WithFilter(checkEntry),
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout),
	}
	dir := mounts[0].Source
	if mounts[0].Type == "overlay" {
		upper, lower := overlayDirs(mounts[0].Options)
		dir = upper
		opts = append(opts, archive.WithParents(lower))
	}
	ra, err := a.content.ReaderAt(ctx, desc)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return ocispec.Descriptor{}, root.Errorf(root.Invalid, "layer %s of the image is missing", desc.Digest)
		}
		return ocispec.Descriptor{}, err
	}
	defer ra.Close()
	plain, err := compression.DecompressStream(content.NewReader(ra))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("decompress layer %s: %w", desc.Digest, err)
	}
	defer func() { err = errors.Join(err, plain.Close()) }()

	digester := digest.Canonical.Digester()
	counter := &countingReader{r: io.TeeReader(plain, digester.Hash())}
	if _, err := archive.Apply(ctx, dir, counter, opts...); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	// What follows the archive's end counts for the digest.
	if _, err := io.Copy(io.Discard, counter); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	// The database would survive a power cut, so the files must too.
	if err := syncFS(dir); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: counter.n, Digest: digester.Digest()}, nil
}

// checkEntry refuses what no honest layer contains.
func checkEntry(h *tar.Header) (bool, error) {
	if escapes(h.Name) {
		return false, root.Errorf(root.Invalid, "the image's layer has an entry %q that points out of its root file system", clip(h.Name))
	}
	if h.Typeflag == tar.TypeLink && escapes(h.Linkname) {
		return false, root.Errorf(root.Invalid, "the image's layer has a hard link %q to %q, out of its root file system", clip(h.Name), clip(h.Linkname))
	}
	return true, nil
}

func escapes(name string) bool {
	name = path.Clean(strings.TrimLeft(name, "/"))
	return name == ".." || strings.HasPrefix(name, "../")
}

func overlayDirs(options []string) (upper string, lower []string) {
	for _, o := range options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = v
		}
		if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(v, ":")
		}
	}
	return upper, lower
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", dir, err), f.Close())
	}
	return f.Close()
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
