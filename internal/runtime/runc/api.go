package runc

import (
	"context"
	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/cgroup"
	"log/slog"
	"syscall"
)

type Options struct {
	Binary, Root, CgroupParent string
	Log                        *slog.Logger
}
type Driver struct{}

func New(o Options) *Driver                                                    { return &Driver{} }
func (d *Driver) Cgroup() (*cgroup.Parent, error)                              { return nil, nil }
func (d *Driver) Create(ctx context.Context, c runtime.Container) (int, error) { return 0, nil }
func (d *Driver) Start(ctx context.Context, id string) error                   { return nil }
func (d *Driver) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return nil
}
func (d *Driver) Delete(ctx context.Context, id string, force bool) error          { return nil }
func (d *Driver) Exec(ctx context.Context, id string, e runtime.Exec) (int, error) { return 0, nil }
func (d *Driver) Freeze(id string) error                                           { return nil }
func (d *Driver) Thaw(id string) error                                             { return nil }
func (d *Driver) Reclaim(ctx context.Context, id string, amount root.Bytes) (root.Bytes, error) {
	return 0, nil
}
func (d *Driver) Stats(id string) (runtime.Stats, error)               { return runtime.Stats{}, nil }
func (d *Driver) PIDs(id string) ([]int, error)                        { return nil, nil }
func (d *Driver) List(ctx context.Context) ([]runtime.Existing, error) { return nil, nil }

var _ runtime.Driver = (*Driver)(nil)
