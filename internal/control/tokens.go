package control

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// Tokens are the verbs on tokens.
type Tokens struct{ Deps }

// CreateToken asks for a token.
type CreateToken struct {
	Name   string
	Scope  auth.Scope
	Org    string
	App    string        // required for scopes app and deploy
	Expiry time.Duration // 0 never
}

const maxTokenName = 100

// Create issues a token. The secret is shown once and stored nowhere.
func (s *Tokens) Create(ctx context.Context, a auth.Actor, c CreateToken) (secret string, t auth.Token, err error) {
	if c.Expiry < 0 {
		return "", t, root.Errorf(root.Invalid, "expiry: %s must not be negative", c.Expiry)
	}
	if len(c.Name) > maxTokenName {
		return "", t, root.Errorf(root.Invalid, "name: longer than %d characters", maxTokenName)
	}
	t = auth.Token{Name: c.Name, Scope: c.Scope, App: root.AppName(c.App)}
	switch c.Scope {
	case auth.ScopeOrg:
		if c.App != "" {
			return "", t, root.Errorf(root.Invalid, "app: a token of scope org is for all apps; use scope app or deploy for one")
		}
	case auth.ScopeApp, auth.ScopeDeploy:
		if c.App == "" {
			return "", t, root.Errorf(root.Invalid, "app: a token of scope %s needs the app it is for", c.Scope)
		}
	case auth.ScopeRead:
	default:
		return "", t, root.Errorf(root.Invalid, "scope: %q is not one of org, app, deploy, read", c.Scope)
	}
	if c.App == "" {
		org, err := s.org(ctx, a, auth.TokenCreate, c.Org)
		if err != nil {
			return "", t, err
		}
		t.Org = org.Slug
	} else {
		app, err := s.app(a, auth.TokenCreate, t.App)
		if err != nil {
			return "", t, err
		}
		if app.Deleting {
			return "", t, root.Errorf(root.Precondition, "app %s is being deleted", app.Name)
		}
		t.Org = app.Org
	}
	text, err := auth.New(c.Scope, rand.Reader)
	if err != nil {
		return "", t, err
	}
	now := s.Now().UTC()
	t.ID, t.Hash, t.CreatedBy, t.CreatedAt = ulid.Make().String(), text.Hash(), a.Name, now
	if c.Expiry > 0 {
		t.ExpiresAt = now.Add(c.Expiry)
	}
	if _, err := s.Store.PutToken(ctx, t); err != nil {
		return "", t, err
	}
	return string(text), t, nil
}

// List returns an organisation's tokens without their secrets, the newest first.
func (s *Tokens) List(ctx context.Context, a auth.Actor, org string) ([]auth.Token, error) {
	o, err := s.org(ctx, a, auth.TokenRead, org)
	if err != nil {
		return nil, err
	}
	all, err := s.Store.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(all, func(t auth.Token) bool { return t.Org != o.Slug })
	slices.SortFunc(out, func(a, b auth.Token) int { return strings.Compare(b.ID, a.ID) })
	return out, nil
}

// Revoke ends a token at once. Its record stays, so that its holder learns why.
func (s *Tokens) Revoke(ctx context.Context, a auth.Actor, id string) error {
	all, err := s.Store.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.ID != id {
			continue
		}
		if err := a.Allow(auth.TokenRevoke, t.Org, t.App, ""); err != nil {
			return err
		}
		if t.RevokedAt.IsZero() {
			t.RevokedAt = s.Now().UTC()
			_, err = s.Store.PutToken(ctx, t)
		}
		return err
	}
	if !a.Can(auth.TokenRevoke) {
		return a.Allow(auth.TokenRevoke, "", "", "")
	}
	return root.Errorf(root.NotFound, "token %q not found", id)
}
