package supervisor

import (
	"context"
	"fmt"
	"sync"
	"time"

	root "github.com/roost-run/roost"
)

// settle is how long what a machine may grow into stays reserved after it
// started, if it does not end before: until then the kernel's account says too
// little.
const settle = 2 * time.Second

// memory admits starts and wakes against what is free.
type memory struct {
	free  func() (root.Bytes, error)
	total func() root.Bytes

	mu       sync.Mutex
	reserved root.Bytes
	changed  chan struct{} // closed and replaced when a reservation ends
}

func newMemory(free func() (root.Bytes, error), total func() root.Bytes) *memory {
	return &memory{free: free, total: total, changed: make(chan struct{})}
}

// reservation is memory that a machine may grow into. Nil is none.
type reservation struct {
	m    *memory
	need root.Bytes
	once sync.Once
}

// end gives the memory back; further calls do nothing.
func (r *reservation) end() {
	if r != nil {
		r.once.Do(func() { r.m.release(r.need) })
	}
}

// settle ends the reservation a little later: the machine runs.
func (r *reservation) settle() {
	if r != nil {
		time.AfterFunc(settle, r.end)
	}
}

// admit reserves need; the caller ends or settles the reservation. Where there
// is too little it calls makeRoom, which gives one sleeping machine's memory
// back and says whether it did, and then waits for other reservations to end.
// If that does not help either the error has kind Exhausted.
func (m *memory) admit(ctx context.Context, need root.Bytes, who string, makeRoom func(context.Context) bool) (*reservation, error) {
	for {
		free, err := m.free()
		if err != nil {
			return nil, fmt.Errorf("admit machine %s: %w", who, err)
		}
		m.mu.Lock()
		if free-m.reserved >= need {
			m.reserved += need
			m.mu.Unlock()
			return &reservation{m: m, need: need}, nil
		}
		reserved, changed := m.reserved, m.changed
		m.mu.Unlock()
		if makeRoom(ctx) {
			continue
		}
		if free < need || reserved == 0 {
			return nil, root.Errorf(root.Exhausted,
				"not enough memory to run machine %s: it needs %s, %s of %s are free; stop a machine, give it less memory, or raise the host's",
				who, need, max(free, 0), m.total())
		}
		if err := wait(ctx, changed, -1); err != nil {
			return nil, &root.Error{Kind: root.Exhausted, Message: fmt.Sprintf("machine %s waited in vain for memory: it needs %s, %s are free and %s promised to machines that start just now", who, need, free, reserved), Err: err}
		}
	}
}

func (m *memory) release(n root.Bytes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reserved -= n
	close(m.changed)
	m.changed = make(chan struct{})
}
