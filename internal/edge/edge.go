// Package edge is the composition root of "roost edge", the data plane of one
// host: it connects catalog, live state, proxy, health, autostop, name server
// and the front of the API sockets, and runs them until it is told to stop.
// It runs inside the router namespace.
//
// The listening sockets are the server process's: when the edge dies, new
// connections wait in them for the next one.
package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/catalog/feed"
	"github.com/roost-run/roost/internal/certs/serve"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/health"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/metrics"
	"github.com/roost-run/roost/internal/nameserver"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/proxy"
	"github.com/roost-run/roost/internal/proxy/autostop"
	"github.com/roost-run/roost/internal/proxy/load"
	"github.com/roost-run/roost/internal/proxy/statics"
)

const (
	// drainTimeout is less than what the server process gives the edge to end.
	drainTimeout = 10 * time.Second
	// startTimeout bounds the wait for the server process's sockets.
	startTimeout = 30 * time.Second
)

// Run serves until ctx ends, then drains; run is the run directory.
func Run(ctx context.Context, run string) error {
	cfg, err := config.ReadEffective(run)
	if err != nil {
		return err
	}
	log := cfg.Logger(os.Stderr, "edge")
	e := &edge{cfg: cfg, log: log, orders: orders.NewClient(cfg.SupervisorSocket()), control: ipc.NewClient(cfg.ControlSocket())}
	defer e.orders.Close()
	defer e.control.Close()
	return e.run(ctx)
}

// edge is the running process.
type edge struct {
	cfg     config.Config
	log     *slog.Logger
	orders  *orders.Client
	control *ipc.Client

	catalog *catalog.Catalog
	live    *live
	loads   *load.Table
	proxy   *proxy.Proxy
	prober  *health.Prober
	checks  *checks
	logs    *machinelog.Apps
	front   *front
	stops   *autostop.Loop
	metrics *metrics.Edge
	certs   *serve.Server
	synced  atomic.Bool // control's feed was there once
}

func (e *edge) run(ctx context.Context) error {
	e.catalog = catalog.New(root.NewSnapshot())
	e.live, e.loads = newLive(), &load.Table{}
	e.certs = serve.New(serve.Options{Client: e.control, File: filepath.Join(e.cfg.Data, "edge-certificates.json"), Log: e.log})
	e.certs.Load()
	e.metrics = metrics.NewEdge(metrics.Gauges{
		Certificates: e.certs.Expiry,
		Held:         func() int { return e.proxy.Held() }, Upgrades: func() int { return e.proxy.Upgrades() },
		Revision: func() int64 { return e.catalog.Snapshot().Revision() },
	})
	w := &waker{supervisor: e.orders, live: e.live, applied: e.entry, metrics: e.metrics}
	dialer := &net.Dialer{}
	e.prober = health.New(health.Options{Dial: dialer.DialContext, Inspector: w, Changed: e.probed, Logger: e.log})
	defer e.prober.Close()
	e.logs = machinelog.NewApps(machinelog.Edge, e.cfg.LogDir, e.cfg.Logs, e.cfg.Region, e.log)
	defer e.logs.Close()
	w.say = e.logs
	e.checks = e.newChecks(health.CheckerOptions{Dial: dialer.DialContext, Inspector: w, Turned: e.turned, Logger: e.log})
	defer e.checks.Close()
	spool := filepath.Join(e.cfg.Run, "bodies")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	access, closeAccess := e.accessLog(os.Stderr)
	defer closeAccess()
	e.proxy = proxy.New(proxy.Options{
		Domain: e.cfg.Domain, Region: e.cfg.Region, Catalog: e.catalog, Live: e.live, Waker: w, Health: e.prober, Checks: e.checks.Checker, Loads: e.loads,
		Statics: statics.New(e.cfg.View), Dial: dialer.DialContext, HoldTimeout: e.cfg.HoldTimeout, HoldQueue: e.cfg.HoldQueue, SpoolDir: spool,
		Challenge: e.certs.HTTPChallenge, HTTPSPort: e.httpsPort(),
		Synced: e.synced.Load, Access: access, Notify: e.notify, Metrics: e.metrics, Logger: e.log,
	})
	e.front = newFront(e.cfg.ControlSocket(), e.catalog, e.loads, e.log)

	e.stops = autostop.New(autostop.Options{
		Catalog: e.catalog, State: e.live.State, Loads: e.loads, Primary: e.cfg.Region, Logger: e.log,
		Stopper: &stopper{supervisor: e.orders, live: e.live, applied: e.entry, metrics: e.metrics, checks: e.checks},
		Quiet:   e.proxy.CloseIdle, Changed: e.proxy.Changed,
	})

	feedOptions := feed.Options{
		Client: e.control, Catalog: e.catalog, File: filepath.Join(e.cfg.Data, "edge-catalog.json"), Log: e.log,
		Connected: func(on bool) {
			if on {
				e.synced.Store(true)
				e.checks.resend()
				e.proxy.ChangedAll()
			}
		},
	}
	feed.Load(feedOptions) // before the first request
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	names, files, err := e.listeners(startCtx)
	cancel()
	if err != nil {
		return fmt.Errorf("edge: sockets of the server process: %w", err)
	}

	// The helpers outlive the listeners: requests that drain need them.
	helpers, stopHelpers := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopHelpers(nil)
	var g errgroup.Group
	g.Go(func() error { return feed.Run(helpers, feedOptions) })
	g.Go(func() error { return e.certs.Run(helpers) })
	g.Go(func() error { return e.followCatalog(helpers) })
	g.Go(func() error { return e.live.follow(helpers, e.orders, e.begun, e.entry) })
	g.Go(func() error { return e.stops.Run(helpers) })
	g.Go(func() error { return e.checks.sender.Run(helpers) })
	g.Go(func() error { return e.checks.save(helpers) })
	g.Go(func() error { return e.serveStatus(helpers) })

	// A request that comes before the first account would be decided on old news.
	select {
	case <-e.live.ready:
	case <-ctx.Done():
	case <-time.After(startTimeout):
		e.log.Warn("the server process gave no account of the machines", "after", startTimeout)
	}
	var servers errgroup.Group
	dns, err := e.serve(&servers, names, files) //nolint:contextcheck // a handshake has its connection's context
	if err == nil {
		err = e.servePrivate(helpers, &g, dns)
	}
	if err != nil {
		stopHelpers(err)
		return errors.Join(err, ignoreStop(g.Wait()))
	}
	e.log.Info("edge is ready", "listeners", len(names))
	<-ctx.Done()
	e.log.Info("edge is draining")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	var drains errgroup.Group
	drains.Go(func() error { return e.proxy.Shutdown(drain) })
	drains.Go(func() error { return e.front.Shutdown(drain) })
	err = drains.Wait()
	if errors.Is(err, context.DeadlineExceeded) {
		e.log.Warn("requests were cut off by the end of the edge", "after", drainTimeout)
		err = nil
	}
	err = errors.Join(err, servers.Wait())
	stopHelpers(errStop)
	return errors.Join(err, ignoreStop(g.Wait()))
}

// errStop is the cause that ends the helpers.
var errStop = errors.New("the edge stops")

func ignoreStop(err error) error {
	if errors.Is(err, errStop) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// listeners waits for the server process.
func (e *edge) listeners(ctx context.Context) (names []orders.Listener, files []*os.File, err error) {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		names, files, err = e.orders.Listeners(ctx)
		if err == nil || sleep(ctx, pause) != nil {
			return names, files, err
		}
	}
}

// dnsSockets are the name server's.
type dnsSockets struct {
	stream []net.Listener
	packet []net.PacketConn
}

// servePrivate serves names inside the private network, where there is one,
// and counts its traffic.
func (e *edge) servePrivate(ctx context.Context, g *errgroup.Group, sockets dnsSockets) error {
	if len(sockets.stream)+len(sockets.packet) == 0 {
		return nil
	}
	n, err := network.Open(network.Options{Name: e.cfg.InstanceName(), Namespace: e.cfg.RouterNamespace(), HostNamespace: e.cfg.HostNamespace()})
	if err != nil {
		return err
	}
	dns := nameserver.New(nameserver.Options{
		Catalog: e.catalog, State: e.live.State, Upstreams: upstreams(e.cfg.Nameservers, "/etc/resolv.conf", e.log), Dial: n.DialHost, Log: e.log,
	})
	var users errgroup.Group
	users.Go(func() error { return dns.Serve(ctx, sockets.stream, sockets.packet) })
	users.Go(func() error { return e.followTraffic(ctx, n) })
	g.Go(func() error { return errors.Join(users.Wait(), n.Close()) })
	return nil
}

// serve begins to serve every listener; those of the name server it returns.
func (e *edge) serve(g *errgroup.Group, names []orders.Listener, files []*os.File) (dns dnsSockets, _ error) {
	for i, n := range names {
		f := files[i]
		if n.Kind == orders.ListenDNSUDP {
			c, err := net.FilePacketConn(f)
			if err != nil {
				return dns, fmt.Errorf("listen on %s: %w", n.Address, err)
			}
			_ = f.Close() // c has its own
			dns.packet = append(dns.packet, c)
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			return dns, fmt.Errorf("listen on %s: %w", n.Address, err)
		}
		_ = f.Close() // l has its own
		switch n.Kind {
		case orders.ListenDNS:
			dns.stream = append(dns.stream, limited(l, n.Kind))
		case orders.ListenEdge:
			public := proxy.Listener{Listener: l, Port: n.Port}
			if n.TLS || n.Port != 80 { // whether a client speaks TLS is heard; on port 80 nobody does
				public.TLS = e.certs.Config(func(name string) root.TLSOptions { return e.proxy.TLSOptions(name, n.Port) })
			}
			g.Go(func() error { return ignoreClosed(e.proxy.Serve(public)) })
		case orders.ListenAPI, orders.ListenAPISock, orders.ListenInternal:
			g.Go(func() error { return ignoreClosed(e.front.Serve(limited(l, n.Kind), n.Kind, "")) })
		default:
			e.log.Warn("unknown kind of listener", "kind", n.Kind, "address", n.Address)
			_ = l.Close()
		}
	}
	return dns, nil
}

// httpsPort is where clients reach what stands for port 443; 0: nowhere.
func (e *edge) httpsPort() int {
	for _, l := range e.cfg.Listen {
		_, port, err := net.SplitHostPort(l.Addr)
		n, nerr := strconv.Atoi(port)
		if err == nil && nerr == nil && (l.Port == 443 || l.Port == 0 && n == 443) {
			return n
		}
	}
	return 0
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// followCatalog tells who waits that the catalog changed.
func (e *edge) followCatalog(ctx context.Context) error {
	changed, cancel := e.catalog.Subscribe()
	defer cancel()
	last := root.NewSnapshot()
	for {
		now := e.catalog.Snapshot()
		e.checks.recorded(now.Since(last)) //nolint:contextcheck // probing ends with the checks, which are closed last
		last = now
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
			e.proxy.ChangedAll()
		}
	}
}

// machine is the catalog's record of an instance, or a bare one.
func (e *edge) machine(id root.MachineID, app root.AppName, instance root.InstanceID) *root.Machine {
	if m := e.catalog.Snapshot().Machine(id); m != nil && m.Spec.Instance == instance {
		return m
	}
	return &root.Machine{ID: id, App: app, Spec: root.Spec{Instance: instance}}
}

// begun takes over after a full account of the server process.
func (e *edge) begun(all []orders.Instance) {
	for _, i := range all {
		m := e.machine(i.Machine, i.App, i.Instance)
		in, _ := e.live.get(i.Instance) // may be ahead of i
		switch in.phase {
		case orders.PhaseStarted:
			e.started(m, true)
		case orders.PhaseSuspended, orders.PhaseSuspending:
			e.checks.Pause(i.Instance)
			e.proxy.Suspended(m, false)
			e.stops.Suspended(m.ID, i.Instance, in.since)
		case orders.PhaseStopped:
			e.stopped(m)
		}
		e.front.machine(e.orders, i.Machine, i.Instance)
	}
	e.proxy.ChangedAll()
}

// entry acts on news of an instance.
func (e *edge) entry(n orders.Entry) {
	if in, ok := e.live.get(n.Instance); ok && n.Stamp.Before(in.stamp) {
		return // the answer to an order of ours was quicker than the journal
	}
	m := e.machine(n.Machine, n.App, n.Instance)
	switch n.Type {
	case orders.EntryPrepared, orders.EntryStarting:
		e.front.machine(e.orders, n.Machine, n.Instance)
	case orders.EntryStarted, orders.EntryResumed:
		e.loads.Unit(n.Instance).Touch(n.At)
		e.started(m, n.Type == orders.EntryResumed)
	case orders.EntrySuspending:
		e.checks.Pause(n.Instance)
		e.proxy.Suspended(m, false)
	case orders.EntrySuspended:
		e.checks.Pause(n.Instance)
		e.proxy.Suspended(m, true)
		e.stops.Suspended(n.Machine, n.Instance, n.At)
	case orders.EntryStopping:
		e.checks.Pause(n.Instance) // that it answers no more is no news
	case orders.EntryExited, orders.EntryFailed:
		e.stopped(m)
	case orders.EntryRemoved:
		e.stopped(m)
		e.proxy.Gone(n.Instance)
		e.loads.Forget(n.Instance)
		e.front.forget(n.Instance)
	}
	e.proxy.Changed(n.App)
}

// started: an instance runs. Keep says that it may have done so before, so
// that what is recorded of its checks holds.
func (e *edge) started(m *root.Machine, keep bool) {
	e.checks.Resume(m.Spec.Instance) // the catalog may not know this version yet
	e.checks.began(m, keep)
	e.proxy.Resumed(m)
	e.stops.Started(m.ID, m.Spec.Instance)
	e.watch(m)
}

// watch finds out when an instance's ports take connections.
func (e *edge) watch(m *root.Machine) {
	for i := range m.Spec.Config.Services {
		e.prober.Watch(health.Target{Machine: m.ID, Instance: m.Spec.Instance, Address: m.Spec.Address.IPv4, Port: m.Spec.Config.Services[i].InternalPort})
	}
}

func (e *edge) stopped(m *root.Machine) {
	e.stops.Stopped(m.Spec.Instance)
	e.checks.forget(m.Spec.Instance)
	e.prober.Forget(m.Spec.Instance)
	e.proxy.CloseIdle(m.Spec.Instance)
}

// probed passes on that a port became ready, or will not.
func (e *edge) probed(id root.MachineID, instance root.InstanceID) {
	e.checks.Opened(instance, func(port int) bool { return e.prober.Status(instance, port).Ready })
	if m := e.catalog.Snapshot().Machine(id); m != nil {
		e.proxy.Changed(m.App)
	}
	e.reachable(id, instance) // who waits comes first
}
