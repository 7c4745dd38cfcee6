package auth

import (
	"context"

	root "github.com/roost-run/roost"
)

// Actor is who acts. The zero Actor may do nothing.
type Actor struct {
	Name    string // for people and leases: "root", "ci@shop"
	Root    bool   // root of the host: may do everything
	Scope   Scope
	Org     root.OrgSlug
	App     root.AppName   // "": all apps of Org
	Machine root.MachineID // scope machine
	Origin  root.Origin    // from where it came; what it makes is marked so
	TokenID string         // "" without token
}

// LocalRoot is root on the host, known by the credentials of its socket's peer.
func LocalRoot() Actor { return Actor{Name: "root", Root: true, Origin: root.OriginUser} }

// MachineActor is a machine, known by its own socket or address.
func MachineActor(m *root.Machine) Actor {
	return Actor{
		Name: "machine " + string(m.ID), Scope: ScopeMachine, Org: m.Org, App: m.App, Machine: m.ID, Origin: root.OriginApp,
	}
}

// ActorOf is the holder of a token.
func ActorOf(t Token) Actor {
	name := t.Name
	if name == "" {
		name = string(t.Scope)
	}
	switch {
	case t.Machine != "":
		name += "@" + string(t.Machine)
	case t.App != "":
		name += "@" + string(t.App)
	default:
		name += "@" + string(t.Org)
	}
	return Actor{Name: name, Scope: t.Scope, Org: t.Org, App: t.App, Machine: t.Machine, Origin: root.OriginUser, TokenID: t.ID}
}

type actorKey struct{}

// WithActor returns a context that carries the actor.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorFrom returns the actor of a request.
func ActorFrom(ctx context.Context) (Actor, bool) {
	a, ok := ctx.Value(actorKey{}).(Actor)
	return a, ok
}
