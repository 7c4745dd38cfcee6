package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/health/report"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/state"
)

// Images is what the agent needs of the image store.
type Images interface {
	Resolve(ctx context.Context, ref string) (root.Image, error)
	Config(ctx context.Context, d root.Digest) (ocispec.Image, error)
	Mount(ctx context.Context, key string, d root.Digest, target string) error
	Unmount(ctx context.Context, key, target string) error
	// Beside is a directory on disk that goes with what is mounted under key.
	Beside(key string) string
	Mounted(ctx context.Context) ([]string, error)
	Protect(ctx context.Context, owner string, digests ...root.Digest) error
	View(ctx context.Context, d root.Digest, target string) error
	Unview(ctx context.Context, target string) error
	Views(ctx context.Context) (map[string]root.Digest, error)
}

// Network is what the agent needs of the private network.
type Network interface {
	Attach(ctx context.Context, a network.Attachment) error
	Detach(ctx context.Context, a network.Attachment) error
	Attachments(ctx context.Context) ([]string, error)
}

// Secrets opens the values of one version of an app's secrets. They go into
// bundles and nowhere else.
type Secrets interface {
	Open(ctx context.Context, app root.AppName, version int) (map[string]string, error)
}

// Options of an Agent.
type Options struct {
	Config     config.Config
	Host       root.HostID
	Store      *state.Store
	Catalog    *catalog.Catalog
	Supervisor *orders.Client
	Images     Images
	// MayUse refuses images that are not an organisation's to use. Nil: none.
	MayUse  func(ctx context.Context, org root.OrgSlug, ref string) error
	Network Network
	Secrets Secrets
	// CgroupPath is the OCI spec's cgroupsPath of a container.
	CgroupPath func(container string) string
	Init       string // host path of tini-static
	LXCFS      string // lxcfs's mount point, "" none
	// Drain returns when the edge has nothing in flight to an instance, or ctx
	// ends. Nil: a replaced version is stopped drainGrace after the switch.
	Drain func(ctx context.Context, m *root.Machine) error
	// Checks has the edge make a version's checks, whether or not it serves,
	// and says after a while how they stand, or once they pass. Nil: a new
	// version need not pass any.
	Checks func(ctx context.Context, m *root.Machine) (report.Answer, error)
	Log    *slog.Logger
}

// Timeouts and bounds.
const (
	// commandTimeout bounds a command of a machine's goroutine whose caller
	// has gone: pulling is done before, unpacking a large image is not.
	commandTimeout = 10 * time.Minute
	// newsTimeout is how long a command waits for the journal to tell what it
	// has just ordered: the stream is local.
	newsTimeout = 10 * time.Second
	// reconnectDelay is between attempts to follow the journal.
	reconnectDelay    = 20 * time.Millisecond
	maxReconnectDelay = time.Second
	// retryDelay is between attempts of what failed on our side: a write to the
	// store, a preparation, a clean-up.
	retryDelay    = time.Second
	maxRetryDelay = time.Minute
	// setUps bounds how many machines are made ready at a time after a start.
	setUps = 4
)

// Agent owns the machines of this host.
type Agent struct {
	o   Options
	log *slog.Logger
	sem *semaphore.Weighted // of setUps

	mu       sync.Mutex
	machines map[root.MachineID]*machine
	leaving  map[root.InstanceID]chan struct{} // replaced versions; closed at their exit
	ctx      context.Context                   // of Run; nil before
	wg       sync.WaitGroup                    // every goroutine started under ctx

	views  *views
	synced chan struct{} // closed when the first sync is done
}

// New returns an agent; Run makes it work.
func New(o Options) *Agent {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		o: o, log: o.Log,
		sem:      semaphore.NewWeighted(setUps),
		machines: map[root.MachineID]*machine{},
		leaving:  map[root.InstanceID]chan struct{}{},
		synced:   make(chan struct{}),
		views:    newViews(),
	}
}

// Run takes over the machines of this host and follows the supervisor's
// journal until ctx ends. It returns after every goroutine it started.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	a.mu.Lock()
	a.ctx = ctx
	a.mu.Unlock()
	defer func() {
		cancel(errors.New("the agent ends"))
		a.wg.Wait()
	}()
	a.wg.Go(func() { a.keepViews(ctx) })
	delay := reconnectDelay
	for {
		began := time.Now()
		err := a.follow(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > maxReconnectDelay {
			delay = reconnectDelay
		}
		a.log.Warn("journal interrupted", "err", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(delay):
		}
		delay = min(2*delay, maxReconnectDelay)
	}
}

// follow takes stock of the supervisor's instances and then takes its journal
// entry by entry. It returns when the stream breaks.
func (a *Agent) follow(ctx context.Context) error {
	list, err := a.o.Supervisor.Instances(ctx)
	if err != nil {
		return err
	}
	instances := make(map[root.InstanceID]*orders.Instance, len(list))
	for i := range list {
		instances[list[i].Instance] = &list[i]
	}
	first := a.adopt() //nolint:contextcheck // the machines' goroutines end with Run, as follow's caller does
	if first {
		a.sweep(ctx, instances)
	}
	machines := a.all()
	// A machine whose status is behind the supervisor's account needs the
	// entries between the two; the others only what comes from now on.
	var newest root.Stamp
	for _, i := range instances {
		if newest.Before(i.Stamp) {
			newest = i.Stamp
		}
	}
	after := newest
	for _, m := range machines {
		at := m.told()
		if i := instances[m.instanceID()]; i != nil && at.Before(i.Stamp) && at.Before(after) {
			after = at
		}
	}
	return a.o.Supervisor.Journal(ctx, after, func(e orders.Entry) error {
		if e.CaughtUp {
			for _, m := range machines {
				m.settle(instances[m.instanceID()])
			}
			if first {
				first = false
				close(a.synced)
			}
			return nil
		}
		if m := a.get(e.Machine); m != nil {
			m.hear(e)
		}
		if e.Type == orders.EntryExited || e.Type == orders.EntryRemoved {
			a.left(e.Instance)
		}
		return nil
	})
}

// adopt gives every machine of this host in the catalog its goroutine. It
// reports whether this is the first time.
func (a *Agent) adopt() bool {
	select {
	case <-a.synced:
		return false
	default:
	}
	for m := range a.o.Catalog.Snapshot().AllMachines() {
		if m.Host == a.o.Host {
			a.add(m)
		}
	}
	return true
}

// add returns the machine's goroutine, which it starts if there is none.
func (a *Agent) add(rec *root.Machine) *machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.machines[rec.ID]; m != nil {
		return m
	}
	m := newMachine(a, rec)
	a.machines[rec.ID] = m
	ctx := a.ctx
	a.wg.Go(func() { m.run(ctx) })
	return m
}

func (a *Agent) get(id root.MachineID) *machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machines[id]
}

func (a *Agent) all() []*machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.machines))
}

func (a *Agent) forget(id root.MachineID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.machines, id)
}

// ready waits until the agent has taken over what was there before it, and
// returns the machine's goroutine.
func (a *Agent) ready(ctx context.Context, id root.MachineID) (*machine, error) {
	if err := a.waitSynced(ctx); err != nil {
		return nil, err
	}
	if m := a.get(id); m != nil {
		return m, nil
	}
	return nil, root.Errorf(root.NotFound, "machine not found")
}

func (a *Agent) waitSynced(ctx context.Context) error {
	select {
	case <-a.synced:
		return nil
	case <-ctx.Done():
		return &root.Error{Kind: root.Unavailable, Message: "the host is still taking over its machines; try again", Err: context.Cause(ctx)}
	}
}

// do has the machine's goroutine carry out f, and returns the revision of the
// status that tells of it.
func (a *Agent) do(ctx context.Context, id root.MachineID, f func(context.Context, *machine) error) (int64, error) {
	m, err := a.ready(ctx, id)
	if err != nil {
		return 0, err
	}
	return m.do(ctx, f)
}

// Launch makes a new machine be; see control.Agent.
func (a *Agent) Launch(ctx context.Context, rec *root.Machine) (int64, error) {
	if err := a.waitSynced(ctx); err != nil {
		return 0, err
	}
	m := a.add(rec) //nolint:contextcheck // its goroutine outlives the call and ends with Run
	return m.do(ctx, func(ctx context.Context, m *machine) error { return m.launch(ctx) })
}

// Replace brings a machine to the version in rec.Spec; see control.Agent.
func (a *Agent) Replace(ctx context.Context, rec *root.Machine, ready time.Duration, prove func(context.Context) error, commit func(context.Context) (int64, error)) (int64, error) {
	m, err := a.ready(ctx, rec.ID)
	if err != nil {
		return 0, err
	}
	if ready <= 0 {
		ready = readyTime(&rec.Spec.Config)
	}
	limit := commandTimeout + ready
	if prove != nil { // which is bounded by its own
		limit += maxProof
	}
	return m.doWithin(ctx, limit, func(ctx context.Context, m *machine) error { return m.replace(ctx, rec, ready, prove, commit) })
}

// GiveUp ends the wait of a Replace for its new version to be ready: it fails,
// and the old version serves on. Without such a wait it does nothing.
func (a *Agent) GiveUp(id root.MachineID, version root.InstanceID) {
	if m := a.get(id); m != nil {
		m.giveUp(version)
	}
}

// Start starts or thaws a machine.
func (a *Agent) Start(ctx context.Context, id root.MachineID, o orders.Start) (int64, error) {
	return a.do(ctx, id, func(ctx context.Context, m *machine) error { return m.start(ctx, o) })
}

// Stop asks a machine to stop.
func (a *Agent) Stop(ctx context.Context, id root.MachineID, o orders.Stop) (int64, error) {
	return a.do(ctx, id, func(ctx context.Context, m *machine) error { return m.stop(ctx, o) })
}

// Restart stops and starts a machine.
func (a *Agent) Restart(ctx context.Context, id root.MachineID, o orders.Stop) (int64, error) {
	return a.do(ctx, id, func(ctx context.Context, m *machine) error { return m.restart(ctx, o) })
}

// Suspend freezes a machine.
func (a *Agent) Suspend(ctx context.Context, id root.MachineID, o orders.Suspend) (int64, error) {
	return a.do(ctx, id, func(ctx context.Context, m *machine) error { return m.suspend(ctx, o) })
}

// Destroy removes a machine and its record. A command that is still at work
// on the machine is cut short.
func (a *Agent) Destroy(ctx context.Context, id root.MachineID) (int64, error) {
	m, err := a.ready(ctx, id)
	if err != nil {
		return 0, err
	}
	m.interrupt(errDestroyed)
	return m.do(ctx, func(ctx context.Context, m *machine) error { return m.destroy(ctx) })
}

var errDestroyed = root.Errorf(root.Conflict, "the machine was destroyed meanwhile")

// Signal sends a signal to the main process.
func (a *Agent) Signal(ctx context.Context, id root.MachineID, signal int) error {
	m, err := a.ready(ctx, id)
	if err != nil {
		return err
	}
	_, err = a.o.Supervisor.Signal(ctx, m.instanceID(), orders.Signal{Signal: signal})
	return err
}

// Lease tells the supervisor until when wakes of the machine have to wait.
func (a *Agent) Lease(ctx context.Context, id root.MachineID, until time.Time) error {
	m, err := a.ready(ctx, id)
	if err != nil {
		return err
	}
	_, err = a.o.Supervisor.Lease(ctx, m.instanceID(), orders.Lease{Until: until})
	return err
}

// Exec runs a command inside a machine.
func (a *Agent) Exec(ctx context.Context, id root.MachineID, o orders.Exec, files ...*os.File) (orders.ExecResult, error) {
	m, err := a.ready(ctx, id)
	if err != nil {
		return orders.ExecResult{}, err
	}
	return a.o.Supervisor.Exec(ctx, m.instanceID(), o, files...)
}

// Inspect says what runs and listens inside a machine.
func (a *Agent) Inspect(ctx context.Context, id root.MachineID) (orders.Inspection, error) {
	m, err := a.ready(ctx, id)
	if err != nil {
		return orders.Inspection{}, err
	}
	return a.o.Supervisor.Inspect(ctx, m.instanceID())
}

// Stats is what the kernel accounts to a machine.
func (a *Agent) Stats(ctx context.Context, id root.MachineID) (orders.Stats, error) {
	m, err := a.ready(ctx, id)
	if err != nil {
		return orders.Stats{}, err
	}
	return a.o.Supervisor.Stats(ctx, m.instanceID())
}

// Instance is the supervisor's account of a version.
func (a *Agent) Instance(ctx context.Context, id root.InstanceID) (orders.Instance, error) {
	return a.o.Supervisor.Instance(ctx, id)
}

// Host is the supervisor's account of the host.
func (a *Agent) Host(ctx context.Context) (orders.HostStatus, error) { return a.o.Supervisor.Host(ctx) }

// protect keeps the images of a machine's versions.
func (a *Agent) protect(ctx context.Context, id root.MachineID, digests ...root.Digest) error {
	if err := a.o.Images.Protect(ctx, "machine/"+string(id), digests...); err != nil {
		return fmt.Errorf("keep the images of %s: %w", id, err)
	}
	return nil
}

// say writes a line of the platform to a machine's log.
func (a *Agent) say(ctx context.Context, i *instance, line string) {
	if line == "" || !i.staged {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, newsTimeout)
	defer cancel()
	if err := a.o.Supervisor.Note(ctx, i.id(), line); err != nil {
		a.log.Warn("machine log", "machine", i.machine.ID, "err", err)
	}
}
