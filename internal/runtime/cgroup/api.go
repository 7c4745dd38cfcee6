package cgroup

import (
	"context"
	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
)

type Parent struct{}

func Open(parent string) (*Parent, error)                            { return nil, nil }
func (p *Parent) Version() int                                       { return 0 }
func (p *Parent) Path(id string) string                              { return "" }
func (p *Parent) SetLimit(total root.Bytes) error                    { return nil }
func (p *Parent) Limit() root.Bytes                                  { return 0 }
func (p *Parent) Free() (root.Bytes, error)                          { return 0, nil }
func (p *Parent) SetMemory(id string, memory, swap root.Bytes) error { return nil }
func (p *Parent) Freeze(id string) error                             { return nil }
func (p *Parent) Thaw(id string) error                               { return nil }
func (p *Parent) Reclaim(ctx context.Context, id string, amount root.Bytes) (root.Bytes, error) {
	return 0, nil
}
func (p *Parent) Stats(id string) (runtime.Stats, error)                              { return runtime.Stats{}, nil }
func (p *Parent) PIDs(id string) ([]int, error)                                       { return nil, nil }
func (p *Parent) WatchOOM(ctx context.Context, id string, f func(kills uint64)) error { return nil }
func (p *Parent) Children() ([]string, error)                                         { return nil, nil }
func (p *Parent) RemoveChild(id string) error                                         { return nil }
func (p *Parent) Remove() error                                                       { return nil }
