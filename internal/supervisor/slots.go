package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/swapon"
)

// wakeTimeout bounds a wake that no request waits for.
const wakeTimeout = 60 * time.Second

// router is what slots need of the network. SetSuspended tells whether the
// first packet to an interface is to be reported.
type router interface {
	SetSuspended(iface string, on bool) error
}

// slots are all instances of this host.
type slots struct {
	ended        <-chan struct{} // closed when the process goes away
	cfg          config.Config
	driver       runtime.Driver
	router       router
	journal      *journal
	reaper       *reaper
	foreign      *foreign
	memory       *memory
	logs         *logs
	log          *slog.Logger
	reclaimAfter time.Duration
	swaps        *swapon.Server
	onDisk       bool // reclaimed memory comes back from a disk: see hotPart

	tasks       sync.WaitGroup // everything started for a slot
	reclaimKick chan struct{}  // "look again", so one is enough
	reclaiming  sync.Mutex     // one reclaim at a time

	mu   sync.Mutex
	byID map[root.InstanceID]*slot

	saving sync.Mutex // the slots' files

	// terminals are those of boots with a TTY that came through an upgrade, by
	// container; adopt takes them.
	terminals map[string]*os.File
}

// get returns a slot, or NotFound.
func (a *slots) get(id root.InstanceID) (*slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.byID[id]; s != nil {
		return s, nil
	}
	return nil, errGone(id)
}

// list returns all slots in order of their ids.
func (a *slots) list() []*slot {
	a.mu.Lock()
	out := make([]*slot, 0, len(a.byID))
	for _, s := range a.byID {
		out = append(out, s)
	}
	a.mu.Unlock()
	slices.SortFunc(out, func(x, y *slot) int { return strings.Compare(string(x.id), string(y.id)) })
	return out
}

// sockets are the listeners of all machines' own API sockets.
func (a *slots) sockets() (out []*os.File) {
	for _, s := range a.list() {
		out = append(out, s.api)
	}
	return out
}

// prepare takes over a next boot, of an instance known or new.
func (a *slots) prepare(b orders.Boot) (orders.Done, error) {
	if b.Instance == "" || b.Machine == "" || b.Container == "" || b.Bundle == "" && b.Problem == "" {
		return orders.Done{}, root.Errorf(root.Invalid, "a boot needs machine, instance, container and bundle")
	}
	if strings.ContainsAny(string(b.Instance)+b.Container, "/\x00") || strings.HasPrefix(string(b.Instance), ".") || strings.HasPrefix(b.Container, ".") {
		return orders.Done{}, root.Errorf(root.Invalid, "%q and %q cannot be names", b.Instance, b.Container)
	}
	s, err := a.obtain(b)
	if err != nil {
		return orders.Done{}, err
	}
	s.mu.Lock()
	switch {
	case s.removing:
		err = root.Errorf(root.Conflict, "instance %s is being removed", b.Instance)
	case s.machine != b.Machine:
		err = root.Errorf(root.Conflict, "instance %s belongs to machine %s", b.Instance, s.machine)
	case s.run != nil && s.run.boot.Container == b.Container:
		err = root.Errorf(root.Conflict, "container %s runs already", b.Container)
	}
	if err != nil {
		s.mu.Unlock()
		return orders.Done{}, err
	}
	s.generation = b.Generation
	s.mu.Unlock()
	e := s.record(orders.Entry{Type: orders.EntryPrepared, Number: b.Number})
	s.mu.Lock()
	s.next = &b
	if s.stamp == (root.Stamp{}) {
		s.stamp, s.since = e.Stamp, e.At
	}
	s.notify()
	s.mu.Unlock()
	s.save()
	return s.done(), nil
}

// obtain returns the boot's slot, a new one if need be.
func (a *slots) obtain(b orders.Boot) (*slot, error) {
	if s, err := a.get(b.Instance); err == nil {
		return s, nil
	}
	s, err := a.newSlot(b.Instance)
	if err != nil {
		return nil, err
	}
	s.machine, s.app, s.generation = b.Machine, b.App, b.Generation
	a.mu.Lock()
	defer a.mu.Unlock()
	if other := a.byID[b.Instance]; other != nil {
		return other, s.api.Close() // the same order twice at once
	}
	a.byID[b.Instance] = s
	return s, nil
}

// newSlot makes a slot that nobody else knows yet.
func (a *slots) newSlot(id root.InstanceID) (*slot, error) {
	s := &slot{all: a, id: id, phase: orders.PhaseStopped, changed: make(chan struct{})}
	api, err := a.listenMachine(id)
	if err != nil {
		return nil, err
	}
	s.api = api
	return s, nil
}

// quiesce waits until nothing is under way and lets nothing begin.
func (a *slots) quiesce(ctx context.Context) {
	for _, s := range a.list() {
		if _, err := s.claim(ctx); err != nil {
			a.log.Warn("an operation is cut off", "machine", s.machine, "err", err)
		}
	}
}

// forget drops a slot and what the supervisor made for it; false if it was
// gone already.
func (a *slots) forget(s *slot) bool {
	a.mu.Lock()
	if a.byID[s.id] != s {
		a.mu.Unlock()
		return false
	}
	delete(a.byID, s.id)
	last := true
	for _, o := range a.byID {
		last = last && o.machine != s.machine
	}
	a.mu.Unlock()
	if last {
		a.logs.forget(s.machine)
	}
	if err := errors.Join(s.api.Close(), os.RemoveAll(a.slotDir(s.id)), os.RemoveAll(a.apiDir(s.id))); err != nil {
		a.log.Warn("instance not cleaned up", "machine", s.machine, "instance", s.id, "err", err)
	}
	return true
}

// detachedContext has the values of another context, but ends with the process.
type detachedContext struct {
	context.Context
	ended <-chan struct{}
}

func (c detachedContext) Done() <-chan struct{} { return c.ended }

func (c detachedContext) Err() error {
	select {
	case <-c.ended:
		return context.Canceled
	default:
		return nil
	}
}

// detached is for what goes on when the caller goes away: starts that others
// wait for, too, and everything that follows a machine.
func (a *slots) detached(ctx context.Context) context.Context {
	return detachedContext{context.WithoutCancel(ctx), a.ended}
}

// firstPacket wakes the machine behind an interface of the router; it does not
// wait for it.
func (a *slots) firstPacket(ctx context.Context, iface string) {
	for _, s := range a.list() {
		s.mu.Lock()
		hit := s.run != nil && s.run.boot.Interface == iface
		s.mu.Unlock()
		if !hit {
			continue
		}
		a.tasks.Go(func() {
			ctx, cancel := context.WithTimeoutCause(a.detached(ctx), wakeTimeout, errors.New("the wake took too long"))
			defer cancel()
			if _, err := s.start(ctx, orders.Start{Source: orders.SourceProxy, Reason: "private network traffic"}); err != nil {
				a.log.Warn("first packet did not wake its machine", "machine", s.machine, "err", err)
			}
		})
		return
	}
}

// slotDir is the supervisor's own directory of an instance.
func (a *slots) slotDir(id root.InstanceID) string {
	return filepath.Join(a.cfg.Run, "slots", string(id))
}

// apiDir becomes the machine's /.fly.
func (a *slots) apiDir(id root.InstanceID) string {
	return filepath.Join(a.cfg.MachineDir(id), "fly")
}

func (a *slots) fifo(id root.InstanceID, container string) string {
	return filepath.Join(a.slotDir(id), container+".out")
}

// listenMachine opens the socket of a machine's /.fly/api, for any user inside
// it. It is made beside the directory that the machine sees and then moved, so
// that nothing that the machine may have put there is followed.
func (a *slots) listenMachine(id root.InstanceID) (_ *os.File, err error) {
	if err := errors.Join(os.MkdirAll(a.slotDir(id), 0o700), os.MkdirAll(a.apiDir(id), 0o755)); err != nil {
		return nil, err
	}
	dir := filepath.Dir(a.apiDir(id))
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	// Through the descriptor: a socket's path may only have 107 bytes.
	l, err := ipc.Listen(fmt.Sprintf("/proc/self/fd/%d/api", d.Fd()), 0o666)
	if err != nil {
		return nil, fmt.Errorf("machine socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	err = errors.Join(err, l.Close(), os.Rename(filepath.Join(dir, "api"), filepath.Join(a.apiDir(id), "api")))
	return f, err
}

// slotFile is what the next server process needs to take an instance over.
type slotFile struct {
	Machine    root.MachineID
	App        root.AppName
	Instance   root.InstanceID
	Generation uint64
	Next       *orders.Boot `json:",omitempty"`
	Running    *orders.Boot `json:",omitempty"`
	PID        int          `json:",omitempty"`
	ProcStart  uint64       `json:",omitempty"`
	StartedAt  time.Time
	OOMKills   uint64 `json:",omitempty"`
	Exit       *int   `json:",omitempty"` // of Running, seen but not dealt with
	LeaseUntil time.Time
	Socket     uint64 // inode of the listener of /.fly/api
}

// save writes the slot's file. It is for the next process, not for the next
// start of the host, so it is replaced whole but not flushed.
func (s *slot) save() {
	s.all.saving.Lock()
	defer s.all.saving.Unlock()
	s.mu.Lock()
	f := slotFile{Machine: s.machine, App: s.app, Instance: s.id, Generation: s.generation, Next: s.next, LeaseUntil: s.leaseUntil}
	if r := s.run; r != nil {
		f.Running, f.PID, f.ProcStart, f.StartedAt, f.OOMKills = &r.boot, r.pid, r.procStart, r.startedAt, r.oomKills
		f.Exit = s.lateExit
	}
	s.mu.Unlock()
	f.Socket = inode(s.api)
	if err := writeVolatile(filepath.Join(s.all.slotDir(s.id), "slot.json"), f); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.all.log.Error("instance not saved for adoption", "instance", s.id, "err", err)
	}
}

func writeVolatile(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
