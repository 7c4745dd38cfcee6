package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
)

func newTokenCmd(f *factory) *cobra.Command {
	return group("token", "Issue and revoke tokens", []string{"tokens"}, newTokenCreateCmd(f), newTokenListCmd(f), newTokenRevokeCmd(f))
}

func newTokenCreateCmd(f *factory) *cobra.Command {
	var in client.CreateToken
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create SCOPE",
		Short: "Issue a token; it is shown this once",
		Long: `Issue a token of a scope; it is printed this once and stored nowhere.

Scopes: org (everything in an organisation), app (everything of one app),
deploy (an app and its images), read (an organisation or app, reading only).`,
		Example:   "  roost token create app --app shop --name middleware\n  roost token create org --expiry 720h",
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"org", "app", "deploy", "read"},
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Scope = args[0]
			if !slices.Contains(cmd.ValidArgs, in.Scope) {
				return usageError{fmt.Errorf("%q is not a scope: use one of %s", in.Scope, strings.Join(cmd.ValidArgs, ", "))}
			}
			if f.app == "" && (in.Scope == "app" || in.Scope == "deploy") {
				return usageError{fmt.Errorf("a token of scope %s is for one app: name it with --app", in.Scope)}
			}
			if in.Name == "" {
				in.Name = args[0] // the platform adds what it is for: deploy@shop
			}
			in.App = f.app
			c, err := f.client()
			if err != nil {
				return err
			}
			t, err := c.CreateToken(cmd.Context(), in)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(t)
			}
			f.io.Notef("Token %s (%s); it is shown this once:", t.ID, t.Name)
			f.io.Printf("%s\n", t.Secret)
			return nil
		},
	}
	cmd.Flags().StringVarP(&in.Name, "name", "n", "", "what it is for")
	cmd.Flags().StringVarP(&in.Org, "org", "o", "", "organisation")
	cmd.Flags().StringVarP(&in.Expiry, "expiry", "x", "", "how long it is valid, such as 720h (default: until revoked)")
	return f.onApp(jsonFlag(cmd, &asJSON))
}

func newTokenListCmd(f *factory) *cobra.Command {
	var org string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tokens, without their secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			tokens, err := c.Tokens(cmd.Context(), org)
			if err != nil {
				return err
			}
			return printList(f, asJSON, tokens, "No tokens; `roost token create` issues one",
				[]string{"id", "name", "scope", "organisation", "app", "created", "expires"}, func(t client.Token) []string {
					expires := "never"
					if t.ExpiresAt != nil {
						expires = t.ExpiresAt.UTC().Format(time.RFC3339)
					}
					return []string{t.ID, t.Name, t.Scope, t.Org, t.App, f.io.Time(t.CreatedAt), expires}
				})
		},
	}
	cmd.Flags().StringVarP(&org, "org", "o", "", "organisation (default: yours)")
	return jsonFlag(cmd, &asJSON)
}

func newTokenRevokeCmd(f *factory) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID...", Short: "End tokens at once", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			for _, id := range ids {
				if err := c.RevokeToken(cmd.Context(), id); err != nil {
					return err
				}
				f.io.Notef("Token %s revoked", id)
			}
			return nil
		},
	}
}
