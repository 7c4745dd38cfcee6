package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Secrets are what may be told of an app's secrets.
type Secrets struct {
	Version int      `json:"version"` // of the set that new machines get, 0 none
	Secrets []Secret `json:"secrets"`
}

// Secret is one of them, without its value.
type Secret struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	Staged    bool      `json:"staged"` // not all machines of the release have it yet
}

func appPath(app string) string { return prefix + "/apps/" + url.PathEscape(app) }

// AppSecrets lists an app's secrets in order of their names.
func (c *Client) AppSecrets(ctx context.Context, app string) (Secrets, error) {
	return get[Secrets](ctx, c, appPath(app)+"/secrets")
}

// DeploySecrets begins a release that brings the app's secrets to its
// machines, as CreateRelease does. Status 412, code "no_release", when the app
// has no release.
func (c *Client) DeploySecrets(ctx context.Context, app, description string) (Release, error) {
	return call[Release](ctx, c, http.MethodPost, appPath(app)+"/secrets/deploy", map[string]string{"description": description})
}
