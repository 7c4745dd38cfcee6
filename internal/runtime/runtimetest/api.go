package runtimetest

import (
	"context"
	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime"
	"sync"
	"syscall"
)

// Fake is a runtime.Driver without root: its containers are plain child
// processes of the caller, who reaps them by wait4(pid) as with the real one.
// The command comes from Args, or from the bundle's config.json.
type Fake struct {
	Args []string
	mu   sync.Mutex
}

func NewFake() *Fake                                                                      { return &Fake{} }
func (f *Fake) OOM(id string) error                                                       { return nil } // kills the container as the kernel does when its memory is used up
func (d *Fake) Create(ctx context.Context, c runtime.Container) (int, error)              { return 0, nil }
func (d *Fake) Start(ctx context.Context, id string) error                                { return nil }
func (d *Fake) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error { return nil }
func (d *Fake) Delete(ctx context.Context, id string, force bool) error                   { return nil }
func (d *Fake) Exec(ctx context.Context, id string, e runtime.Exec) (int, error)          { return 0, nil }
func (d *Fake) Freeze(id string) error                                                    { return nil }
func (d *Fake) Thaw(id string) error                                                      { return nil }
func (d *Fake) Reclaim(ctx context.Context, id string, amount root.Bytes) (root.Bytes, error) {
	return 0, nil
}
func (d *Fake) Stats(id string) (runtime.Stats, error)               { return runtime.Stats{}, nil }
func (d *Fake) PIDs(id string) ([]int, error)                        { return nil, nil }
func (d *Fake) List(ctx context.Context) ([]runtime.Existing, error) { return nil, nil }

var _ runtime.Driver = (*Fake)(nil)
