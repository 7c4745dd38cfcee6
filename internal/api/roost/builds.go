package roost

import (
	"net/http"

	digest "github.com/opencontainers/go-digest"

	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
)

// maxBuildSpec bounds a build's description: its Dockerfile and secrets.
const maxBuildSpec = 32 << 20

// beginContext takes the list of a build context's files.
func (h *handlers) beginContext(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	state, err := h.Images.BuildContext(r.Context(), route.Actor(r), app, r.Body)
	if err != nil {
		return err
	}
	out := client.ContextState{ID: state.ID}
	for _, d := range state.Missing {
		out.Missing = append(out.Missing, digest.Digest(d))
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

// sendFiles takes files of it.
func (h *handlers) sendFiles(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	if err := h.Images.BuildFiles(r.Context(), route.Actor(r), app, r.PathValue("context"), r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// build streams the build's news.
func (h *handlers) build(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var b client.BuildSpec
	if err := route.ReadJSON(r, &b, false); err != nil {
		return err
	}
	s := newProgress(w)
	image, err := h.Images.Build(r.Context(), route.Actor(r), control.BuildRequest{
		App: app, Kind: b.Kind, Context: b.Context, Dockerfile: b.Dockerfile, DockerfileName: b.DockerfileName,
		Target: b.Target, Args: b.Args, Labels: b.Labels, NoCache: b.NoCache, Package: b.Package,
		Secrets: b.Secrets, AppSecrets: b.AppSecrets,
	}, func(n control.BuildNews) {
		if n.Status != nil {
			s.send(client.Progress{Status: n.Status})
			return
		}
		s.send(client.Progress{Log: &n.Log})
	})
	return s.finish(image, err)
}
