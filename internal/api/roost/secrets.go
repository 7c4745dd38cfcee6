package roost

import (
	"context"
	"net/http"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
)

// Secrets are control's verbs on secrets that the Machines API does not have.
type Secrets interface {
	List(ctx context.Context, a auth.Actor, app root.AppName) (root.SecretSet, error)
	Deploy(ctx context.Context, a auth.Actor, app root.AppName, description string) (*root.Release, error)
}

func (h *handlers) listSecrets(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	set, err := h.Secrets.List(r.Context(), route.Actor(r), app)
	if err != nil {
		return err
	}
	out := client.Secrets{Version: set.Version, Secrets: make([]client.Secret, 0, len(set.Secrets))}
	for _, s := range set.Secrets {
		out.Secrets = append(out.Secrets, client.Secret{Name: s.Name, Digest: s.Digest, CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC(), Staged: s.Staged})
	}
	return route.WriteJSON(w, http.StatusOK, out)
}

func (h *handlers) deploySecrets(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in struct {
		Description string `json:"description"`
	}
	if err := route.ReadJSON(r, &in, true); err != nil {
		return err
	}
	release, err := h.Secrets.Deploy(r.Context(), route.Actor(r), app, in.Description)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, client.Release{
		ID: string(release.ID), App: string(release.App), Version: release.Version, Status: string(release.Progress.Status),
		Reason: release.Reason, Description: release.Description, Author: release.Author, Secrets: release.Secrets, CreatedAt: release.CreatedAt,
	})
}
