//go:build !linux

package network

import (
	"context"
	"log/slog"
	"net"

	root "github.com/roost-run/roost"
)

var errLinux = root.Errorf(root.Unimplemented, "the private network needs Linux")

// Router is the instance's router namespace and its uplink.
type Router struct{}

// OpenRouter creates or adopts the router.
func OpenRouter(context.Context, Options, *slog.Logger) (*Router, error) { return nil, errLinux }

// Close takes the router away.
func (*Router) Close(context.Context) error { return errLinux }

// Do runs f inside the router namespace.
func (*Router) Do(func() error) error { return errLinux }

// SetSuspended says whether packets to a machine wake it.
func (*Router) SetSuspended(string, bool) error { return errLinux }

// Wakes reports first packets to suspended machines.
func (*Router) Wakes(context.Context, func(string)) error { return errLinux }

// Network is a handle on an existing router.
type Network struct{}

// Open returns a handle on the router that OpenRouter made.
func Open(Options) (*Network, error) { return nil, errLinux }

// Close gives the handle back.
func (*Network) Close() error { return errLinux }

// Attach makes a machine's namespace and link.
func (*Network) Attach(context.Context, Attachment) error { return errLinux }

// Detach takes them away.
func (*Network) Detach(context.Context, Attachment) error { return errLinux }

// Attachments lists the links that exist.
func (*Network) Attachments(context.Context) ([]string, error) { return nil, errLinux }

// Forwarded counts the packets between machines.
func (*Network) Forwarded(context.Context) (map[string]uint64, error) { return nil, errLinux }

// DialHost dials from the host's namespace.
func (*Network) DialHost(context.Context, string, string) (net.Conn, error) { return nil, errLinux }

// DialMachine dials from the router's namespace.
func (*Network) DialMachine(context.Context, string, string) (net.Conn, error) { return nil, errLinux }

// Problems looks at the host.
func Problems(context.Context) []Problem { return nil }

// Release gives the handle back.
func (*Router) Release() {}

// Network returns the router's own handle.
func (*Router) Network() *Network { return nil }

// AttachBuilds needs Linux.
func (*Router) AttachBuilds(context.Context, string) (func(func() error) error, error) {
	return nil, errLinux
}
