package roost

import "time"

// TokenHash is the SHA-256 of a token's text: all that is ever stored of it.
type TokenHash [32]byte

// Scope says what a token is for; package auth holds what each may do.
type Scope string

// The scopes.
const (
	ScopeOrg     Scope = "org"     // everything in one organisation
	ScopeApp     Scope = "app"     // everything of one app, but its images
	ScopeDeploy  Scope = "deploy"  // everything of one app with its images
	ScopeRead    Scope = "read"    // reading, in one organisation or one app
	ScopeMachine Scope = "machine" // what a machine may do about itself
)

// Token is what is known of a token that was given out.
type Token struct {
	ID        string // ULID, for people and revocation; no secret
	Hash      TokenHash
	Name      string
	Scope     Scope
	Org       OrgSlug
	App       AppName   // "" with scopes org and read: the whole organisation
	Machine   MachineID // scope machine only
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	RevokedAt time.Time // zero: not revoked
}
