package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/go-runc"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/cgroup"
	runcdriver "github.com/roost-run/roost/internal/runtime/runc"
	"github.com/roost-run/roost/internal/runtime/swap"
	"github.com/roost-run/roost/internal/runtime/swapon"
)

const (
	// closeTimeout bounds what has to be done when the process goes away.
	closeTimeout = 30 * time.Second
	// shutdownTimeout is the longest that a machine's stop may take, and some.
	shutdownTimeout = root.MaxStopTimeout + time.Minute
)

var (
	errStopped   = errors.New("the server was told to stop")
	errShutdown  = errors.New("the server was told to shut down")
	errGoingAway = errors.New("the server process is going away")
	errUpgrade   = errors.New("the server replaces itself by the binary on disk")
)

// server is the process.
type server struct {
	cfg      config.Config
	log      *slog.Logger
	paths    *paths
	reaper   *reaper
	network  *network.Router
	cgroups  *cgroup.Parent
	swap     *swap.Swap
	slots    *slots
	children *children
	sockets  []socket
	manager  manager

	closing chan struct{}           // closed when streams have to end
	end     context.CancelCauseFunc // ends Run

	keepFigures func(context.Context) // keeps lxcfs running
	closeDriver func()

	building    sync.Mutex      // one start of the builder at a time
	builder     <-chan struct{} // of watchBuilder, nil before the first one; guarded by building
	builders    sync.WaitGroup
	buildMemory root.Bytes // what builds may use together
}

// Run is "roost server": it returns when ctx ends, or when it is told to stop.
// Machines run on unless the order said otherwise.
func Run(ctx context.Context, cfg config.Config) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the own binary: %w", err)
	}
	return runWith(ctx, cfg, func(name string) []string { return []string{exe, name, "--run", cfg.Run} })
}

// runWith is Run with the children's command lines given.
func runWith(ctx context.Context, cfg config.Config, argv func(child string) []string) (err error) {
	log := cfg.Logger(os.Stderr, "server")
	from := &inherited{kept: keptFiles()}
	defer from.close()
	if err := makeDirs(&cfg); err != nil {
		return err
	}
	// Names in the kernel follow from the data directory, so two servers with
	// the same one would also share a network.
	for _, d := range []struct{ key, dir string }{{"run", cfg.Run}, {"data", cfg.Data}} {
		unlock, err := lock(filepath.Join(d.dir, "server.lock"), d.key)
		if err != nil {
			return err
		}
		defer unlock()
	}
	before, beforeErr := config.ReadEffective(cfg.Run)
	if err := config.WriteEffective(cfg); err != nil {
		return err
	}
	if err := becomeSubreaper(); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(errStopped)
	// What has to go on while the server goes away hangs on life, not on ctx.
	life, endLife := context.WithCancel(context.WithoutCancel(ctx))
	defer endLife()

	s := &server{
		cfg: cfg, log: log, paths: &paths{cfg.Run}, reaper: newReaper(),
		closing: make(chan struct{}), end: end, manager: newManager(),
	}
	s.children = &children{argv: argv, reaper: s.reaper, foreign: &foreign{reaper: s.reaper, log: log}, paths: s.paths, log: log, running: map[string]childProcess{}, adopted: map[string]childProcess{}}
	if err := s.children.adopt(life); err != nil {
		return err
	}
	s.children.argv = func(name string) []string {
		if name == childLXCFS {
			return s.figuresCommand()
		}
		return argv(name)
	}
	runc.Monitor = s.reaper // go-runc has no other place for it
	reaping := make(chan struct{})
	reaperCtx, endReaper := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(reaping)
		s.reaper.run(reaperCtx)
	}()
	defer func() {
		endReaper()
		<-reaping
	}()

	_, missing := os.Stat(cfg.RouterNamespace())
	s.network, err = network.OpenRouter(ctx, networkOptions(&cfg), log)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	released, serving := false, false
	defer func() {
		switch {
		case !serving && missing != nil: // a start that failed leaves the host as it was
			err = errors.Join(err, s.network.Close(context.WithoutCancel(ctx)))
			if s.cgroups != nil {
				err = errors.Join(err, s.cgroups.Remove())
			}
		case !released:
			s.network.Release()
		}
	}()
	s.children.within = map[string]func(func() error) error{childEdge: s.network.Do}
	from.edge = s.children.adopted[childEdge]
	if s.sockets, err = s.openSockets(ctx, from, missing != nil); err != nil {
		return err
	}
	defer func() {
		for _, l := range s.sockets {
			_ = l.file.Close()
		}
	}()
	if err := saveSockets(s.paths, s.sockets); err != nil {
		return err
	}
	if err := s.openRuntime(life); err != nil {
		return err
	}
	if err := keepInMemory(filepath.Join(cfg.Run, "machines"), log); err != nil {
		return err
	}
	serving = true // from here on there may be machines
	if err := s.adopt(life, from); err != nil {
		return err
	}
	s.keepSockets(storedMachines, nil) // taken
	s.keepFigures = s.openFigures(ctx)
	s.children.renew(beforeErr != nil || !reflect.DeepEqual(before, cfg))
	return s.serve(ctx, life, endLife, &released)
}

// makeDirs makes the directories that must not be anybody's. What a machine
// puts into its root file system, programs with the set-user-id bit and nodes
// of devices included, is root's on the host, and its API socket is open to
// all its users: no user of the host may come near either.
func makeDirs(cfg *config.Config) error {
	private := []string{cfg.Data, filepath.Join(cfg.Run, "machines"), filepath.Join(cfg.Run, "slots")}
	for _, dir := range append([]string{cfg.Run, filepath.Join(cfg.Run, "netns")}, private...) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the directories: %w", err)
		}
	}
	for _, dir := range private {
		if err := os.Chmod(dir, 0o700); err != nil { // also those of an older version
			return fmt.Errorf("make the directories: %w", err)
		}
	}
	return nil
}

// networkOptions say where the network of this instance lives.
func networkOptions(cfg *config.Config) network.Options {
	o := network.Options{Name: cfg.InstanceName(), Namespace: cfg.RouterNamespace(), HostNamespace: cfg.HostNamespace(), BuildsReach: cfg.BuildsReach()}
	for _, l := range cfg.Listen {
		if _, p, err := net.SplitHostPort(l.Addr); err == nil {
			if n, err := strconv.ParseUint(p, 10, 16); err == nil && n > 0 {
				o.Published = append(o.Published, uint16(n))
			}
		}
	}
	return o
}

// openRuntime sets up control groups, swap and the driver, and the slots over
// them.
func (s *server) openRuntime(life context.Context) (err error) {
	cfg := &s.cfg
	total := cfg.Memory
	if total == 0 {
		if total, err = hostMemory(); err != nil {
			return err
		}
		total -= cfg.Reserve
	}
	if total < 64*root.MiB {
		return root.Errorf(root.Precondition, "the machines would have %s of memory together: lower \"reserve\" or set \"memory\"", total)
	}
	driver := runcdriver.New(runcdriver.Options{Binary: cfg.Runtime, Root: cfg.RuntimeRoot(), CgroupParent: cfg.CgroupParent(), Log: s.log, Nudge: s.nudge})
	if s.cgroups, err = driver.Cgroup(); err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	if err := s.cgroups.SetLimit(total); err != nil {
		return err
	}
	if s.buildMemory = cfg.BuildMemory; s.buildMemory == 0 {
		s.buildMemory = total / 2
	}
	if s.swap, err = swap.Setup(cfg.Swap, total, cfg.Data); err != nil { //nolint:contextcheck // it takes none and is short
		return fmt.Errorf("swap: %w", err)
	}
	s.closeDriver = driver.Close
	s.slots = newSlots(life, *cfg, driver, s.network, s.reaper, s.log)
	s.slots.foreign = s.children.foreign
	s.slots.swaps = swapon.New(s.cgroups, s.log)
	s.slots.onDisk = s.swap.Kind == swap.KindFile
	s.slots.memory = newMemory(s.cgroups.Free, func() root.Bytes { return total })
	return nil
}

func newSlots(life context.Context, cfg config.Config, d runtime.Driver, r router, rp *reaper, log *slog.Logger) *slots {
	return &slots{
		ended: life.Done(), cfg: cfg, driver: d, router: r, reaper: rp, foreign: &foreign{reaper: rp, log: log}, log: log,
		swaps:        swapon.New(nil, log),
		reclaimAfter: cfg.Reclaim, reclaimKick: make(chan struct{}, 1),
		byID: map[root.InstanceID]*slot{},
		logs: &logs{dir: cfg.LogDir, budget: cfg.Logs, region: cfg.Region, log: log, open: map[root.MachineID]*logWriter{}},
	}
}

// adopt opens the journal and takes over what runs.
func (s *server) adopt(life context.Context, from *inherited) error {
	id, err := kernelBootID()
	if err != nil {
		return err
	}
	if s.slots.terminals, err = keptTerminals(); err != nil {
		return err
	}
	var rebooted bool
	if s.slots.journal, rebooted, err = openJournal(s.cfg.Journal(), id, time.Now(), s.log); err != nil {
		return err
	}
	return s.slots.adopt(life, rebooted, from)
}

// serve runs until ctx ends and then goes away in order.
func (s *server) serve(ctx, life context.Context, endLife context.CancelFunc, released *bool) (err error) {
	l, err := ipc.Listen(s.cfg.SupervisorSocket(), 0o600)
	if err != nil {
		return err
	}
	calls, err := ipc.Listen(s.cfg.SwaponSocket(), 0o600)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	hs := ipc.NewServer(s.handler())
	// Requests outlive ctx a little: an order under way is carried out.
	requests, endRequests := context.WithCancelCause(life)
	defer endRequests(errGoingAway)
	hs.BaseContext = func(net.Listener) context.Context { return requests }
	stopUpgrade := s.upgradeOn(syscall.SIGUSR2)
	defer stopUpgrade()

	s.adoptBuilder() // before somebody asks for one
	g, gctx := errgroup.WithContext(ctx)
	served := make(chan error, 1)
	go func() { served <- hs.Serve(l) }()
	g.Go(func() error {
		select {
		case err := <-served:
			return fmt.Errorf("serve orders: %w", err)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		s.children.keepAll(gctx)
		return nil
	})
	g.Go(func() error {
		s.slots.reclaimer(gctx)
		return nil
	})
	g.Go(func() error { return s.slots.swaps.Serve(gctx, calls) })
	g.Go(func() error {
		s.keepFigures(gctx)
		return nil
	})
	g.Go(func() error {
		if err := s.network.Wakes(gctx, func(iface string) { s.slots.firstPacket(life, iface) }); gctx.Err() == nil {
			// Wakes by request go on; the operator learns of the rest.
			s.log.Error("first packets to suspended machines are not seen", "err", err)
		}
		return nil
	})
	s.log.Info("server is up", "pid", os.Getpid(), "machines", len(s.slots.list()), "swap", s.swap.Kind, "cgroup", s.cgroups.Version())
	if err := s.manager.ready(); err != nil {
		s.log.Warn("systemd not told", "err", err)
	}
	err = g.Wait()
	cause := context.Cause(ctx)
	s.log.Info("server is going away", "cause", cause)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	close(s.closing)
	endRequests(errGoingAway)
	s.builders.Wait()
	s.slots.quiesce(clean)
	var undone error
	if errors.Is(cause, errShutdown) {
		undone = s.undo(clean)
		*released = true
	} else {
		s.keepSockets(storedMachines, s.slots.sockets())
		if err := s.manager.barrier(clean); err != nil {
			s.log.Warn("sockets not stored: a restart may refuse connections", "err", err)
		}
	}
	err = errors.Join(err, ignoreTimeout(hs.Shutdown(clean)), undone)
	endLife()
	s.slots.tasks.Wait()
	s.closeDriver()
	s.slots.logs.close()
	err = errors.Join(err, s.slots.journal.close())
	if errors.Is(cause, errUpgrade) && err == nil {
		return s.replace()
	}
	return err
}

// ignoreTimeout: a request that does not end is cut off by the exit.
func ignoreTimeout(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// shutdown carries the order out up to the point where the process ends.
func (s *server) shutdown(ctx context.Context, o orders.Shutdown) error {
	if !o.Machines {
		s.end(errStopped)
		return nil
	}
	// Control first, or it would start again what stops.
	s.children.stopAll()
	// Whoever asked may go away meanwhile.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), shutdownTimeout, errors.New("the machines did not stop in time"))
	defer cancel()
	err := s.slots.stopAll(ctx)
	s.end(errShutdown)
	return err
}

func (s *server) host() (orders.HostStatus, error) {
	free, err := s.slots.memory.free()
	if err != nil {
		return orders.HostStatus{}, err
	}
	return orders.HostStatus{
		Boot: s.slots.journal.last().Boot, PID: os.Getpid(), CgroupVersion: s.cgroups.Version(),
		Total: s.slots.memory.total(), Free: free, Swap: s.swap.Kind, Children: s.children.pids(),
	}, nil
}

// lock makes sure that a directory has one server; key is what it is.
func lock(path, key string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path) // best effort, for the message
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, root.Errorf(root.Conflict, "another roost server (process %s) uses this %s directory: stop it, or give this one its own --run and --data", holder, key)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	err = errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func hostMemory() (root.Bytes, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("host memory: %w", err)
	}
	return root.Bytes(uint64(info.Totalram) * uint64(info.Unit)), nil
}

// upgradeOn ends Run with errUpgrade at a signal.
func (s *server) upgradeOn(sig os.Signal) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, sig)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, ok := <-ch; ok {
			s.end(errUpgrade)
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
		<-done
	}
}
