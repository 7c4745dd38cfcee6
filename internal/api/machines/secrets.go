package machines

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/control"
	public "github.com/roost-run/roost/machines"
)

// Secrets are control's verbs on an app's secrets.
type Secrets interface {
	List(ctx context.Context, a auth.Actor, app root.AppName) (root.SecretSet, error)
	Get(ctx context.Context, a auth.Actor, app root.AppName, name string) (root.Secret, error)
	Set(ctx context.Context, a auth.Actor, app root.AppName, values control.SecretValues) (root.SecretSet, error)
}

// secretsReply has the version twice: older clients read the second.
type secretsReply struct {
	Secrets    []public.Secret `json:"secrets"`
	Version    int             `json:"version"`
	Deprecated int             `json:"Version"`
}

// oneSecret is the reply to setting a single secret.
type oneSecret struct {
	public.Secret
	Version    int `json:"version"`
	Deprecated int `json:"Version"`
}

func fromSecret(s root.Secret) public.Secret {
	return public.Secret{
		Name: s.Name, Digest: s.Digest,
		CreatedAt: s.CreatedAt.UTC().Truncate(time.Second), UpdatedAt: s.UpdatedAt.UTC().Truncate(time.Second),
	}
}

func fromSecrets(set root.SecretSet) []public.Secret {
	out := make([]public.Secret, 0, len(set.Secrets))
	for _, s := range set.Secrets {
		out = append(out, fromSecret(s))
	}
	return out
}

// noValues refuses to show what cannot be shown. The version that a client
// asks for at least may be another installation's: it is not waited for.
func noValues(r *http.Request) error {
	show, err := route.Bool(r.URL.Query(), "show_secrets")
	if err != nil {
		return err
	}
	if show {
		return root.Errorf(root.Forbidden, "show_secrets: secrets are write-only here, nobody can read their values back; a digest tells whether one changed")
	}
	return nil
}

func (h *handlers) listSecrets(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	if err := noValues(r); err != nil {
		return err
	}
	set, err := h.Secrets.List(r.Context(), route.Actor(r), app)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, map[string]any{"secrets": fromSecrets(set)})
}

func (h *handlers) getSecret(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	if err := noValues(r); err != nil {
		return err
	}
	s, err := h.Secrets.Get(r.Context(), route.Actor(r), app, r.PathValue("name"))
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, fromSecret(s))
}

func (h *handlers) setSecrets(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in struct {
		Values map[string]json.RawMessage `json:"values"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	values := make(control.SecretValues, len(in.Values))
	for name, raw := range in.Values {
		if values[name], err = secretValue(raw); err != nil {
			return root.Errorf(root.Invalid, "values.%s: %s", route.Clip(name), root.MessageOf(err))
		}
	}
	set, err := h.Secrets.Set(r.Context(), route.Actor(r), app, values)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, secretsReply{fromSecrets(set), set.Version, set.Version})
}

// secretValue reads a string or null. The JSON package's own error would tell
// of the value.
func secretValue(raw json.RawMessage) (*string, error) {
	var value *string
	if json.Unmarshal(raw, &value) != nil {
		return nil, root.Errorf(root.Invalid, "want a string, or null to remove the secret")
	}
	return value, nil
}

func (h *handlers) setSecret(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	var in struct {
		Value json.RawMessage `json:"value"`
	}
	if err := route.ReadJSON(r, &in, false); err != nil {
		return err
	}
	value, err := secretValue(in.Value)
	if err != nil || value == nil {
		return root.Errorf(root.Invalid, "value: want a string")
	}
	name := r.PathValue("name")
	set, err := h.Secrets.Set(r.Context(), route.Actor(r), app, control.SecretValues{name: value})
	if err != nil {
		return err
	}
	for _, s := range set.Secrets {
		if s.Name == name {
			return route.WriteJSON(w, http.StatusCreated, oneSecret{fromSecret(s), set.Version, set.Version})
		}
	}
	return root.Errorf(root.Conflict, "secret %s was removed at the same time", name)
}

func (h *handlers) deleteSecret(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	if _, err := h.Secrets.Get(r.Context(), route.Actor(r), app, name); err != nil {
		return err
	}
	set, err := h.Secrets.Set(r.Context(), route.Actor(r), app, control.SecretValues{name: nil})
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, map[string]int{"version": set.Version, "Version": set.Version})
}
