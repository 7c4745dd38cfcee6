package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// ContextState is what the builder has of a build context.
type ContextState struct {
	ID      string
	Missing []string // digests of files to be sent
}

// BuildRequest asks for an image made from a context that was sent before.
type BuildRequest struct {
	App            root.AppName
	Kind           string // "dockerfile", "go"
	Context        string // ContextState.ID
	Dockerfile     string
	DockerfileName string // for messages
	Target         string
	Args, Labels   map[string]string
	NoCache        bool
	Package        string            // of a Go build
	Secrets        map[string]string // that RUN --mount=type=secret may read, by name
	AppSecrets     []string          // names of the app's own that it may read, too

	// What follows is filled in here.
	Org          root.OrgSlug // caches are shared within it
	Repositories []string     // of our own registry that it may build on; nil: all
	Denied       []string     // foreign repositories that it may not build on
	Key          string       // of what the builder keeps for the app
}

// BuildNews is a line of a build's log, or BuildKit's status in JSON.
type BuildNews struct {
	Log    string
	Status json.RawMessage
}

// Builder makes images.
type Builder interface {
	Context(ctx context.Context, key string, manifest io.Reader) (ContextState, error)
	Blobs(ctx context.Context, key, id string, r io.Reader) error
	Build(ctx context.Context, r BuildRequest, news func(BuildNews)) (root.Image, error)
	// Forget removes what is kept under a key.
	Forget(ctx context.Context, key string) error
}

// buildKey names what the builder keeps for an app. An app that has the name
// of one that is gone has another id, and so nothing of it.
func buildKey(app *root.App) string { return string(app.Name) + "." + app.ID }

// BuildContext begins the upload of a directory for a build of an app: the
// list of its files. The answer says which of them are to be sent.
func (s *Images) BuildContext(ctx context.Context, a auth.Actor, app root.AppName, manifest io.Reader) (ContextState, error) {
	found, err := s.d.app(a, auth.ImageBuild, app)
	if err != nil {
		return ContextState{}, err
	}
	return s.d.Builder.Context(ctx, buildKey(found), manifest)
}

// BuildFiles goes on with the upload. What arrived whole stays when it breaks.
func (s *Images) BuildFiles(ctx context.Context, a auth.Actor, app root.AppName, id string, r io.Reader) error {
	found, err := s.d.app(a, auth.ImageBuild, app)
	if err != nil {
		return err
	}
	return s.d.Builder.Blobs(ctx, buildKey(found), id, r)
}

// Build makes an image for an app. When ctx ends the build is cancelled.
func (s *Images) Build(ctx context.Context, a auth.Actor, r BuildRequest, news func(BuildNews)) (root.Image, error) {
	app, err := s.d.app(a, auth.ImageBuild, r.App)
	if err != nil {
		return root.Image{}, err
	}
	if len(r.AppSecrets) > 0 {
		if err := a.Allow(auth.SecretWrite, app.Org, app.Name, ""); err != nil {
			return root.Image{}, err
		}
	}
	scrubber, err := s.buildSecrets(ctx, app, &r)
	if err != nil {
		return root.Image{}, err
	}
	r.Org, r.Key = app.Org, buildKey(app)
	if !a.Root {
		r.Denied = s.d.Images.PrivateRepositories(string(app.Org))
		r.Repositories = []string{}
		for other := range s.d.Catalog.Snapshot().Apps() {
			if other.Org == app.Org {
				r.Repositories = append(r.Repositories, string(other.Name))
			}
		}
		slices.Sort(r.Repositories)
	}
	log, began := newBuildLog(s.d.Journal, app.Name), s.d.Now()
	image, err := s.d.Builder.Build(ctx, r, scrubNews(scrubber, func(n BuildNews) {
		log.news(n)
		if news != nil {
			news(n)
		}
	}))
	failed := ""
	if err != nil {
		failed = root.MessageOf(err)
		if scrubber != nil {
			failed = scrubber.Scrub(failed)
			if e, ok := errors.AsType[*root.Error](err); ok { // it quotes what a step printed
				err = &root.Error{Kind: e.Kind, Code: e.Code, Message: failed}
			}
		}
	}
	log.end(image, s.d.Now().Sub(began), failed)
	return image, err
}
