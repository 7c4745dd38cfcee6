package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

// credentials are what `roost auth login` stores, in ~/.config/roost/config.toml.
type credentials struct {
	URL   string `toml:"url,omitempty"`
	Token string `toml:"token,omitempty"`
}

func credentialsFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("where to keep credentials: %w", err)
	}
	return filepath.Join(dir, "roost", "config.toml"), nil
}

// readCredentials returns nothing where nobody logged in.
func readCredentials() (credentials, error) {
	name, err := credentialsFile()
	if err != nil {
		return credentials{}, nil // no home directory: nobody logged in
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return credentials{}, nil
	}
	if err != nil {
		return credentials{}, err
	}
	var c credentials
	if err := toml.Unmarshal(data, &c); err != nil {
		return credentials{}, hintError{fmt.Errorf("%s is not readable: %w", name, err), "log in again with `roost auth login`"}
	}
	return c, nil
}

func newAuthCmd(f *factory) *cobra.Command {
	return group("auth", "Log in and out", nil, newAuthLoginCmd(f), newAuthWhoamiCmd(f), newAuthLogoutCmd(f))
}

func newAuthLoginCmd(f *factory) *cobra.Command {
	return &cobra.Command{
		Use:   "login",
		Short: "Keep an address and a token for later commands",
		Long:  "Keep --url and --token for later commands, after checking that they work.\nWithout --token the token is read from standard input, so that it stays out of\nthe process list. The first token of a server is in <data>/admin.token there.",
		Example: "  roost auth login --url http://roost.example:4280 < admin.token\n" +
			"  ssh root@roost.example cat /var/lib/roost/admin.token | roost auth login --url http://127.0.0.1:4280",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token := f.token
			if token == "" {
				if f.io.InTTY {
					f.io.Notef("Token:")
				}
				data, err := io.ReadAll(io.LimitReader(f.io.In, 4096))
				if err != nil {
					return err
				}
				token = strings.TrimSpace(string(data))
			}
			if token == "" {
				return usageError{errors.New("no token was given")}
			}
			url := normalURL(first(f.url, os.Getenv("ROOST_URL"), "http://127.0.0.1:4280"))
			f.address = url
			who, err := whoami(cmd.Context(), client.New(machines.Options{BaseURL: url, Token: token}))
			if err != nil {
				return err
			}
			data, err := toml.Marshal(credentials{URL: url, Token: token})
			if err != nil {
				return err
			}
			name, err := credentialsFile()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				return err
			}
			if err := atomicfile.Write(name, data, 0o600); err != nil {
				return err
			}
			f.io.Notef("Logged in at %s as %s", url, who)
			return nil
		},
	}
}

func newAuthWhoamiCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "whoami", Short: "Show who the commands act as", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			who, err := whoami(cmd.Context(), c)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(who)
			}
			f.io.Printf("%s\n", who)
			return nil
		},
	}
	return jsonFlag(cmd, &asJSON)
}

func newAuthLogoutCmd(f *factory) *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Forget the stored address and token", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			name, err := credentialsFile()
			if err != nil {
				return err
			}
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			f.io.Notef("Logged out")
			return nil
		},
	}
}

// caller is who the API takes us for.
type caller struct {
	TokenID      string   `json:"token_id"`
	User         string   `json:"user"`
	Organization string   `json:"organization"`
	OrgSlug      string   `json:"org_slug"`
	Apps         []string `json:"apps"`
}

func (w caller) String() string {
	name := first(w.User, w.TokenID)
	if len(w.Apps) > 0 {
		return name + " (apps " + strings.Join(w.Apps, ", ") + ")"
	}
	return name + " (organisation " + first(w.OrgSlug, "all") + ")"
}

func whoami(ctx context.Context, c *client.Client) (caller, error) {
	var r struct {
		Tokens []caller `json:"tokens"`
	}
	if err := c.Do(ctx, http.MethodGet, "/v1/tokens/current", nil, &r); err != nil {
		return caller{}, err
	}
	if len(r.Tokens) == 0 {
		return caller{}, errors.New("the platform does not say who we are")
	}
	return r.Tokens[0], nil
}
