package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
)

func (p *puller) fetchWithConfig(ctx context.Context, manifest ocispec.Descriptor) error {
	if err := p.fetchSmall(ctx, manifest); err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := p.s.readJSON(ctx, manifest, &m); err != nil {
		return err
	}
	return p.fetchSmall(ctx, m.Config)
}

func (p *puller) fetchSmall(ctx context.Context, d ocispec.Descriptor) error {
	if d.Size > maxJSON {
		return root.Errorf(root.Invalid, "%s says it is %s long: no manifest or config is that large", d.Digest, root.Bytes(d.Size))
	}
	return p.fetch(ctx, d, p.fetcher)
}

// fetch brings a blob, and proves that the registry has it. One that is here
// is not fetched again if it came from the same repository, or if everybody
// may have it; otherwise it is compared: to know a digest is not to have
// what it names.
func (p *puller) fetch(ctx context.Context, d ocispec.Descriptor, f remotes.Fetcher) error {
	if err := d.Digest.Validate(); err != nil {
		return &root.Error{Kind: root.Invalid, Message: "the registry sent a manifest with an unreadable digest", Err: err}
	}
	repository := p.s.repository(p.r)
	marks := map[string]string{inLabel(repository): repository}
	if p.public() {
		marks[labelPublic] = "1"
	}
	err := remotes.Fetch(ctx, marking{p.s.content, strings.TrimPrefix(inLabel(repository), labelIn), marks}, f, d)
	if errdefs.IsAlreadyExists(err) {
		var info content.Info
		if info, err = p.s.content.Info(ctx, d.Digest); err != nil {
			return err
		}
		if info.Labels[labelPublic] == "" && !p.s.inRepository(info, p.r) {
			err = compare(ctx, d, f)
		}
	}
	if err == nil {
		p.mu.Lock()
		p.proven[d.Digest] = true
		p.mu.Unlock()
	}
	return err
}

// compare fetches a blob and throws it away: is it what its digest says?
func compare(ctx context.Context, d ocispec.Descriptor, f remotes.Fetcher) error {
	rc, err := f.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer rc.Close()
	v := d.Digest.Verifier()
	if _, err := io.Copy(v, io.LimitReader(rc, d.Size+1)); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("%s: the content has another digest: %w", d.Digest, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// marking is where a pull writes: what is committed is marked in the same step.
type marking struct {
	content.Ingester
	place  string // begins the names of half-made blobs
	labels map[string]string
}

// Writer implements content.Ingester.
func (m marking) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	// What a pull from elsewhere has half of is no start for this one.
	w, err := m.Ingester.Writer(ctx, append(opts, content.WithRef(m.place+"-"+o.Ref))...)
	if err != nil {
		return nil, err
	}
	return markingWriter{w, m.labels}, nil
}

type markingWriter struct {
	content.Writer
	labels map[string]string
}

// Commit implements content.Writer.
func (w markingWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	return w.Writer.Commit(ctx, size, expected, append(opts, content.WithLabels(w.labels))...)
}

func (p *puller) download(ctx context.Context, manifest ocispec.Descriptor) error {
	var m ocispec.Manifest
	if err := p.s.readJSON(ctx, manifest, &m); err != nil {
		return err
	}
	p.layers.Store(int64(len(m.Layers)))
	for _, l := range m.Layers {
		if _, err := p.s.content.Info(ctx, l.Digest); err != nil {
			p.wanted.Add(l.Size)
		}
	}
	p.stage.Store(&stageDownload)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for _, l := range m.Layers {
		g.Go(func() error {
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			stall := time.AfterFunc(p.s.stall, func() {
				cancel(root.Errorf(root.Unavailable, "registry %s sent nothing for %s: try again", p.r.domain, p.s.stall))
			})
			defer stall.Stop()
			err := p.fetch(ctx, l, watched{p.fetcher, func(n int) {
				stall.Reset(p.s.stall)
				p.received.Add(int64(n))
			}})
			if err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
			p.done.Add(1)
			return nil
		})
	}
	return g.Wait()
}

// watched is a fetcher that tells how much arrives.
type watched struct {
	remotes.Fetcher
	received func(n int)
}

func (w watched) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := w.Fetcher.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	return watchedReader{rc, w.received}, nil
}

type watchedReader struct {
	io.ReadCloser
	received func(n int)
}

func (w watchedReader) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.received(n)
	}
	return n, err
}

// Seek lets an interrupted download go on where it stopped.
func (w watchedReader) Seek(offset int64, whence int) (int64, error) {
	s, ok := w.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return s.Seek(offset, whence)
}
