package buildkit

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/buildkit/worker/base"
)

const (
	exporterName = "roost"
	attrName     = "name"
	// keyDigest is where the exporter answers with the manifest's digest.
	keyDigest = "roost.digest"
	// keySnapshot is where BuildKit's records have the snapshot's name, if it
	// is another than the record's own.
	keySnapshot = "cache.snapshot"
)

// resultWorker is BuildKit's worker with one exporter, ours.
type resultWorker struct {
	*base.Worker
	writer *containerimage.ImageWriter
	images images.Store
}

// Exporter implements worker.Worker.
func (w *resultWorker) Exporter(name string, _ *session.Manager) (exporter.Exporter, error) {
	if name != exporterName {
		return nil, fmt.Errorf("there is no exporter %q", name)
	}
	return resultExporter{w}, nil
}

type resultExporter struct{ w *resultWorker }

func (e resultExporter) Resolve(_ context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	return &result{w: e.w, id: id, attrs: attrs}, nil
}

// result puts an image into the store.
type result struct {
	w     *resultWorker
	id    int
	attrs map[string]string
}

func (r *result) ID() int                  { return r.id }
func (r *result) Name() string             { return "storing the image" }
func (r *result) Type() string             { return exporterName }
func (r *result) Attrs() map[string]string { return r.attrs }

func (r *result) Config() *exporter.Config {
	return exporter.NewConfigWithCompression(compression.New(compression.Uncompressed))
}

// Export writes layers, config and manifest, and names the image. The layers
// do not leave the host, so they are not compressed; those of the base stay as
// they are.
func (r *result) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (_ map[string]string, _ exporter.FinalizeFunc, _ exporter.DescriptorReference, err error) {
	opts := containerimage.ImageCommitOpts{RefCfg: cacheconfig.RefConfig{Compression: compression.New(compression.Uncompressed)}}
	opts.SetOCITypesDefault(true)
	opts.SetOCIArtifactDefault(false)
	ctx, done, err := leaseutil.WithLease(ctx, r.w.LeaseManager(), leaseutil.MakeTemporary)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // it expires by itself
	desc, err := r.w.writer.Commit(ctx, src, info.SessionID, info.InlineCache, &opts, info.CompatibilityVersion, r.Type())
	if err != nil {
		return nil, nil, nil, err
	}
	snapshot, err := r.snapshot(ctx, src, session.NewGroup(info.SessionID))
	if err != nil {
		return nil, nil, nil, err
	}
	name := r.attrs[attrName]
	named := progress.OneOff(ctx, "naming to "+name)
	img := images.Image{Name: name, Target: *desc, Labels: map[string]string{labelResult: snapshot}}
	if _, err := r.w.images.Create(ctx, img); named(err) != nil {
		return nil, nil, nil, err
	}
	return map[string]string{keyDigest: desc.Digest.String()}, nil, nil, nil
}

// snapshot returns the committed snapshot with the result's files; "" if it
// has none.
func (r *result) snapshot(ctx context.Context, src *exporter.Source, g session.Group) (string, error) {
	ref := src.Ref
	if ps, err := exptypes.ParsePlatforms(src.Metadata); err == nil && len(ps.Platforms) == 1 {
		if p, ok := src.FindRef(ps.Platforms[0].ID); ok {
			ref = p
		}
	}
	if ref == nil {
		return "", nil
	}
	return snapshotOf(ctx, ref, g)
}

func snapshotOf(ctx context.Context, ref cache.ImmutableRef, g session.Group) (string, error) {
	if err := ref.Finalize(ctx); err != nil {
		return "", err
	}
	if err := ref.Extract(ctx, g); err != nil { // a layer of a base that no step needed
		return "", err
	}
	if id := ref.GetString(keySnapshot); id != "" {
		return id, nil
	}
	return ref.ID(), nil
}
