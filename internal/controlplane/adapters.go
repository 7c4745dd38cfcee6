package controlplane

import (
	"context"
	"io"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/image"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/orders"
)

// The compiler checks that what control asks for is there.
var (
	_ control.ImageStore = imageStore{}
	_ control.Builder    = imageBuilder{}
	_ control.LogReader  = logReader{}
	_ control.LogWriter  = logWriter{}
)

func newID() string { return ulid.Make().String() }

// imageStore is the image store in control's words.
type imageStore struct{ *image.Store }

func (s imageStore) List(ctx context.Context) ([]control.ImageInfo, error) {
	list, err := s.Store.List(ctx)
	out := make([]control.ImageInfo, 0, len(list))
	for _, i := range list {
		out = append(out, control.ImageInfo{Image: i.Image, Size: i.Size, CreatedAt: i.CreatedAt, InUse: i.InUse})
	}
	return out, err
}

func (s imageStore) Pull(ctx context.Context, ref string, login control.RegistryLogin, progress func(control.PullProgress)) (root.Image, error) {
	return s.PullAs(ctx, ref, image.Login{User: login.User, Password: login.Password, Org: string(login.Org), Host: login.Host}, func(p image.Progress) {
		if progress != nil {
			progress(control.PullProgress{State: p.Stage, Done: p.Bytes, Total: p.Total})
		}
	})
}

func (s imageStore) Load(ctx context.Context, r io.Reader, as string, allow func(name string) error) ([]root.Image, error) {
	return s.LoadAllowed(ctx, r, as, allow)
}

func (s imageStore) Entrypoint(ctx context.Context, d root.Digest) ([]string, error) {
	config, err := s.Config(ctx, d)
	return config.Config.Entrypoint, err
}

// imageBuilder reaches the builder process, which is started when needed.
type imageBuilder struct {
	supervisor *orders.Client
	client     *builder.Client
	dir        string // the builder's
}

func (b imageBuilder) Context(ctx context.Context, key string, manifest io.Reader) (control.ContextState, error) {
	if err := b.supervisor.StartBuilder(ctx); err != nil {
		return control.ContextState{}, err
	}
	state, err := b.client.Context(ctx, key, manifest)
	out := control.ContextState{ID: state.ID}
	for _, d := range state.Missing {
		out.Missing = append(out.Missing, string(d))
	}
	return out, err
}

func (b imageBuilder) Blobs(ctx context.Context, key, id string, r io.Reader) error {
	if err := b.supervisor.StartBuilder(ctx); err != nil {
		return err
	}
	return b.client.Blobs(ctx, key, id, r)
}

func (b imageBuilder) Build(ctx context.Context, r control.BuildRequest, news func(control.BuildNews)) (root.Image, error) {
	if err := b.supervisor.StartBuilder(ctx); err != nil {
		return root.Image{}, err
	}
	req := builder.Request{
		App: r.App, Kind: r.Kind, Context: r.Context, Dockerfile: r.Dockerfile, DockerfileName: r.DockerfileName,
		Target: r.Target, Args: r.Args, Labels: r.Labels, NoCache: r.NoCache, Package: r.Package, Secrets: r.Secrets,
		Scope: string(r.Org), Repositories: r.Repositories, Denied: r.Denied, Key: r.Key,
	}
	return b.client.Build(ctx, req, func(n builder.News) { news(control.BuildNews{Log: n.Log, Status: n.Status}) })
}

// Forget needs no builder process: it keeps files only.
func (b imageBuilder) Forget(_ context.Context, key string) error { return builder.Forget(b.dir, key) }

// logWriter takes what control has to say into the apps' logs.
type logWriter struct{ *machinelog.Apps }

func (l logWriter) Log(e control.LogEntry) { l.Say(e.App, e.Machine, e.Provider, e.Message) }

// logReader reads the logs of this host.
type logReader struct{ cfg config.Config }

func (l logReader) Tail(ctx context.Context, app root.AppName, f control.LogFilter, follow bool, line func(control.LogLine) error) error {
	filter := machinelog.Filter{Machine: f.Machine, Since: f.Since, Lines: f.Lines}
	if f.Match != nil {
		filter.Match = func(m machinelog.Line) bool { return f.Match(control.LogLine(m)) }
	}
	return machinelog.Tail(ctx, l.cfg.LogDir(app), filter, follow, func(m machinelog.Line) error { return line(control.LogLine(m)) })
}
