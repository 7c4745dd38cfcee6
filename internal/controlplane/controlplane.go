// Package controlplane is the process "roost control": the store, the catalog
// and its feed for the edge, the image store, the agent of this host, and the
// API behind control.sock. It connects those packages and has no rules of its
// own.
//
// It may be killed at any time: machines run on, the edge goes on serving, and
// the next one derives what happened from the store, the supervisor and its
// journal. Everything it starts ends with the context of Run.
package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/agent"
	"github.com/roost-run/roost/internal/api"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/builder"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/certs/issue"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/etcd"
	"github.com/roost-run/roost/internal/image"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/seal"
	"github.com/roost-run/roost/internal/state"
)

const (
	// gcPercent trades a little CPU while something happens, which is seldom,
	// for memory while nothing does, which is nearly always.
	gcPercent = 40
	// shutdownTimeout is for requests in flight when the process is told to end.
	shutdownTimeout = 5 * time.Second
	// sweepEvery is how often logs are brought within their budgets.
	sweepEvery = 10 * time.Minute
	// retryStart is between attempts to reach the supervisor at the start.
	retryStart = 50 * time.Millisecond
	startTime  = 30 * time.Second

	tini      = "/usr/bin/tini-static"
	lxcfs     = "/var/lib/lxcfs" // the Debian package's
	adminName = "admin"
	// metaAdmin remembers that the first token was given out.
	metaAdmin = "admin_token"
)

// Run is the process. It returns when ctx ends or when it cannot go on; the
// supervisor starts it again.
func Run(ctx context.Context, runDir string) (err error) {
	debug.SetGCPercent(gcPercent)
	cfg, err := config.ReadEffective(runDir)
	if err != nil {
		return err
	}
	p := &process{cfg: cfg, log: cfg.Logger(os.Stderr, "control")}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.open(ctx); err != nil {
		return err
	}
	return p.serve(ctx)
}

// process is everything that one control process holds.
type process struct {
	cfg     config.Config
	log     *slog.Logger
	closers []func() error // in order of opening

	member     *etcd.Member
	store      *state.Store
	catalog    *catalog.Catalog
	images     *image.Store
	supervisor *orders.Client
	logs       *machinelog.Apps
	agent      *agent.Agent
	control    *control.Control
	host       root.HostID
	verifier   *auth.Verifier
	certs      *issue.Manager
}

func (p *process) close() error {
	var errs []error
	for _, f := range slices.Backward(p.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// open brings everything up that the loops need.
func (p *process) open(ctx context.Context) error {
	var err error
	p.member, err = etcd.Open(ctx, etcd.Options{
		Dir: filepath.Join(p.cfg.Data, "state"), Socket: filepath.Join(p.cfg.Run, "etcd"), Log: p.log,
	})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, p.member.Close)
	p.store = state.New(p.member.Client(), state.WithLogger(p.log))
	p.verifier = &auth.Verifier{Source: p.store, Now: time.Now}
	p.supervisor = orders.NewClient(p.cfg.SupervisorSocket())
	p.closers = append(p.closers, func() error { p.supervisor.Close(); return nil })
	if err := p.bootstrap(ctx); err != nil {
		return fmt.Errorf("first start: %w", err)
	}
	snapshot, err := p.store.Load(ctx)
	if err != nil {
		return err
	}
	p.catalog = catalog.New(snapshot)
	hubs := registries(p.cfg.Registries)
	p.images, err = image.Open(ctx, image.Options{
		Root: filepath.Join(p.cfg.Data, "images"), Budget: p.cfg.ImageBudget, KeepFor: p.cfg.ImageSweep, Domain: p.cfg.Domain,
		Addresses: p.cfg.RegistryAddresses(), Log: p.log,
		Mirrors: hubs.mirrors, Credentials: hubs.credentials, PlainHTTP: hubs.plainHTTP(), Dial: forPulls(&p.cfg, hubs).DialContext,
	})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, p.images.Close)
	private, err := network.Open(network.Options{
		Name: p.cfg.InstanceName(), Namespace: p.cfg.RouterNamespace(), HostNamespace: p.cfg.HostNamespace(),
	})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, private.Close)
	keys, err := seal.Load(p.cfg.SecretsKey())
	if err != nil {
		return err
	}
	if err := p.openCerts(ctx, keys); err != nil {
		return err
	}
	vault := &control.Vault{Store: p.store, Keys: keys}
	p.agent = agent.New(agent.Options{
		Config: p.cfg, Host: p.host, Store: p.store, Catalog: p.catalog, Supervisor: p.supervisor,
		Images: p.images, Network: private, Secrets: vault,
		MayUse: func(ctx context.Context, org root.OrgSlug, ref string) error {
			return p.control.Images.Allowed(ctx, org, ref)
		},
		CgroupPath: func(container string) string { return "/" + p.cfg.CgroupParent() + "/" + container },
		Init:       tini, LXCFS: mounted(filepath.Join(p.cfg.Run, "lxcfs"), lxcfs), Drain: p.drain, Checks: p.askEdge, Log: p.log,
	})
	p.logs = machinelog.NewApps(machinelog.Control, p.cfg.LogDir, p.cfg.Logs, p.cfg.Region, p.log)
	p.closers = append(p.closers, func() error { p.logs.Close(); return nil })
	p.control = control.New(control.Deps{
		Store: p.store, Catalog: p.catalog, Agent: p.agent, Vault: vault, Images: imageStore{p.images},
		Builder: imageBuilder{p.supervisor, builder.NewClient(p.cfg.BuilderSocket()), builder.Dir(p.cfg.Data)}, Logs: logReader{p.cfg}, Journal: logWriter{p.logs}, Host: p.host,
		Public: public{p.supervisor, p.cfg.Domain}, Poster: poster{forWebhooks(&p.cfg)}, KeepReleases: p.cfg.KeepReleases, Issuer: p.certs, Domain: p.cfg.Domain, Failpoint: failpoint(p.cfg),
		Address: network.AddressFor, Drain: p.drain, Routed: p.routed, Dial: private.DialMachine, Busy: p.keepBusy, Log: p.log,
	})
	return nil
}

// mounted returns the first of dirs where lxcfs shows a machine's own /proc
// figures, or "".
func mounted(dirs ...string) string {
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "proc", "meminfo")); err == nil {
			return dir
		}
	}
	return ""
}

// serve runs the loops until ctx ends or one of them fails.
func (p *process) serve(ctx context.Context) error {
	listener, err := ipc.Listen(p.cfg.ControlSocket(), 0o600)
	if err != nil {
		return err
	}
	store, err := ipc.Listen(p.cfg.StoreSocket(), 0o600)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := ipc.NewServer(ipc.RequireRoot(p.handler()))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.catalog.Follow(gctx, p.store, p.log) })
	g.Go(func() error { return p.agent.Run(gctx) })
	g.Go(func() error { return p.certs.Run(gctx) })
	g.Go(func() error { return p.images.Serve(gctx, store) })
	g.Go(func() error { return p.resume(gctx) })
	g.Go(func() error { return p.control.Releases.Run(gctx) })
	g.Go(func() error { return p.collect(gctx) })
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-gctx.Done():
		case <-p.member.Stopped():
			err = errors.New("the state store stopped")
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(gctx), shutdownTimeout)
		defer cancel()
		return errors.Join(err, ignoreDeadline(server.Shutdown(end)), server.Close())
	})
	debug.FreeOSMemory() // opening took more than serving will
	p.log.Info("control is up", "host", p.host, "pid", os.Getpid())
	err = g.Wait()
	if ctx.Err() != nil {
		return nil // told to end
	}
	return err
}

// ignoreDeadline: streams that followed something do not end by themselves.
func ignoreDeadline(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// resume finishes what a crash cut short.
func (p *process) resume(ctx context.Context) error {
	if err := p.control.Apps.Resume(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("deletions of apps could not be finished", "err", err)
	}
	if err := p.control.Consoles.Sweep(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("consoles that nobody uses could not be removed", "err", err)
	}
	return nil
}

// collect removes images and logs that nobody needs, now and then.
func (p *process) collect(ctx context.Context) error {
	ticker, sweeps := time.NewTicker(p.cfg.ImageSweep), time.NewTicker(sweepEvery)
	defer ticker.Stop()
	defer sweeps.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweeps.C:
			if err := p.agent.SweepLogs(time.Now()); err != nil {
				p.log.Warn("old logs could not be removed", "err", err)
			}
			continue
		case <-ticker.C:
		}
		freed, err := p.images.Collect(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			p.log.Warn("image collection", "err", err)
		case freed > 0:
			p.log.Info("images collected", "freed", freed.String())
		}
	}
}

// bootstrap makes what a cluster has from its first start on.
func (p *process) bootstrap(ctx context.Context) error {
	id, err := p.hostID()
	if err != nil {
		return err
	}
	p.host = id
	now := time.Now().UTC()
	_, err = p.store.CreateOrg(ctx, root.Org{Slug: root.DefaultOrg, Name: "Personal", CreatedAt: now})
	if err != nil && !root.IsKind(err, root.Conflict) {
		return err
	}
	if _, err := p.store.EnsureNetwork(ctx, root.DefaultOrg, root.DefaultNetwork, now); err != nil {
		return err
	}
	if err := p.adminToken(ctx, now); err != nil {
		return err
	}
	return p.putHost(ctx)
}

// hostID is this host's for as long as its data lives.
func (p *process) hostID() (root.HostID, error) {
	file := filepath.Join(p.cfg.Data, "host.id")
	data, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(data)); err == nil {
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 4 {
			return "", fmt.Errorf("%s: %q is not a host id of 8 hex digits", file, id)
		}
		return root.HostID(id), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	id := hex.EncodeToString(b[:])
	return root.HostID(id), atomicfile.Write(file, []byte(id+"\n"), 0o600)
}

// adminToken gives out the first token, once.
func (p *process) adminToken(ctx context.Context, now time.Time) error {
	given, err := p.store.Meta(ctx, metaAdmin)
	if err != nil || given != nil {
		return err
	}
	secret, err := auth.New(auth.ScopeOrg, rand.Reader)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(p.cfg.AdminToken(), []byte(string(secret)+"\n"), 0o600); err != nil {
		return err
	}
	t := auth.Token{
		ID: newID(), Hash: secret.Hash(), Name: adminName, Scope: auth.ScopeOrg, Org: root.DefaultOrg, CreatedBy: "roost", CreatedAt: now,
	}
	if _, err := p.store.PutToken(ctx, t); err != nil {
		return err
	}
	_, err = p.store.PutMeta(ctx, metaAdmin, []byte(t.ID))
	return err
}

// putHost records what this host has to offer, if that has changed.
func (p *process) putHost(ctx context.Context) error {
	status, err := p.hostStatus(ctx)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	raw, err := hex.DecodeString(string(p.host))
	if err != nil {
		return err
	}
	h := root.Host{
		ID: p.host, Name: name, Region: p.cfg.Region, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
		Memory: status.Total, NetworkPart: binary.BigEndian.Uint32(raw),
	}
	s, err := p.store.Load(ctx)
	if err != nil {
		return err
	}
	if old := s.Host(p.host); old != nil && *old == h {
		return nil
	}
	_, err = p.store.PutHost(ctx, h)
	return err
}

// hostStatus asks the supervisor, which may have begun this very moment.
func (p *process) hostStatus(ctx context.Context) (orders.HostStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		status, err := p.supervisor.Host(ctx)
		if !root.IsKind(err, root.Unavailable) {
			return status, err
		}
		select {
		case <-ctx.Done():
			return status, err
		case <-time.After(retryStart):
		}
	}
}

func (p *process) api() http.Handler {
	return api.New(api.Options{
		Control: p.control, Auth: p.verifier, Catalog: p.catalog, Region: p.cfg.Region, Log: p.log,
	})
}
