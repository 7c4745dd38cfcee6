package auth

import (
	"context"
	"crypto/subtle"
	"fmt"
	"time"

	root "github.com/roost-run/roost"
)

// Source finds the record of a token by its hash: nil when there is none.
// Package state has it.
type Source interface {
	Token(ctx context.Context, hash root.TokenHash) (*root.Token, error)
}

// Verifier tells who sent a token. It reads the record each time, so that a
// revoked token ends at once; text that cannot be a token costs no read.
type Verifier struct {
	Source Source
	Now    func() time.Time
}

// Verify returns who the holder of a token is. A token that does not count
// gives kind Unauthenticated with a code that says why.
func (v *Verifier) Verify(ctx context.Context, text string) (Actor, error) {
	if text == "" {
		return Actor{}, refuse(CodeMissing, "the request has no token")
	}
	secret, err := Parse(text)
	if err != nil {
		return Actor{}, err
	}
	hash := secret.Hash()
	t, err := v.Source.Token(ctx, hash)
	if err != nil {
		return Actor{}, fmt.Errorf("verify token: %w", err)
	}
	switch now := v.Now(); {
	case t == nil || subtle.ConstantTimeCompare(t.Hash[:], hash[:]) != 1 || scopeLetters[t.Scope] != secret[len(Prefix)]:
		return Actor{}, refuse(CodeUnknown, "it is unknown here; it was deleted, or belongs to another cluster")
	case !t.RevokedAt.IsZero():
		return Actor{}, refuse(CodeRevoked, "it was revoked on "+t.RevokedAt.UTC().Format(time.RFC3339))
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return Actor{}, refuse(CodeExpired, "it expired on "+t.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return ActorOf(*t), nil
}

// VerifyHeader is Verify for the values of an Authorization header.
func (v *Verifier) VerifyHeader(ctx context.Context, values []string) (Actor, error) {
	token, foreign := FromHeader(values)
	if token == "" && foreign {
		return Actor{}, refuse(CodeForeign, "it is not a token of Roost, those begin with "+Prefix)
	}
	return v.Verify(ctx, token)
}
