package machines

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// Secret is what the API tells of an app's secret: never its value.
type Secret struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// SecretValues are values to set; nil removes the secret. They print as how
// many they are.
type SecretValues map[string]*string

// String keeps the values out of whatever prints them.
func (v SecretValues) String() string { return fmt.Sprintf("%d secrets", len(v)) }

// GoString is String.
func (v SecretValues) GoString() string { return v.String() }

// LogValue is String.
func (v SecretValues) LogValue() slog.Value { return slog.StringValue(v.String()) }

// SecretsReply is the reply to SetSecrets: all secrets that there are then, and
// the version of the set. Machines that are created or updated from then on get it.
type SecretsReply struct {
	Secrets []Secret `json:"secrets"`
	Version uint64   `json:"version"`
}

func secretsPath(app string) string { return "/v1/apps/" + url.PathEscape(app) + "/secrets" }

// Secrets lists an app's secrets in order of their names.
func (c *Client) Secrets(ctx context.Context, app string) ([]Secret, error) {
	r, err := call[SecretsReply](ctx, c, http.MethodGet, secretsPath(app), nil)
	return r.Secrets, err
}

// SetSecrets sets some secrets and removes those whose value is nil; others
// stay. Machines that run are not touched.
func (c *Client) SetSecrets(ctx context.Context, app string, values SecretValues) (SecretsReply, error) {
	return call[SecretsReply](ctx, c, http.MethodPost, secretsPath(app), map[string]any{"values": map[string]*string(values)})
}
