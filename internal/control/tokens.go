package control

import (
	"context"
	"time"

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
	App    string
	Expiry time.Duration // 0 never
}

// Create issues a token. The secret is shown once and stored nowhere.
func (s *Tokens) Create(ctx context.Context, a auth.Actor, c CreateToken) (secret string, t auth.Token, err error) {
	return "", auth.Token{}, root.Errorf(root.Unimplemented, "not built yet")
}

// List returns an organisation's tokens without their secrets.
func (s *Tokens) List(ctx context.Context, a auth.Actor, org string) ([]auth.Token, error) {
	return nil, root.Errorf(root.Unimplemented, "not built yet")
}

// Revoke ends a token at once.
func (s *Tokens) Revoke(ctx context.Context, a auth.Actor, id string) error {
	return root.Errorf(root.Unimplemented, "not built yet")
}
