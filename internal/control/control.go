// Package control is every verb a user has, as one method: it authorises,
// validates, decides, writes the spec to the store or asks the owning agent,
// and answers when reads see the result. One service type per noun, one file
// each.
//
// It knows neither HTTP nor the API's documents, and nothing of the host: the
// agent and the image store stand behind the interfaces of this package, and
// the composition root connects them. internal/api calls it; every method is
// safe for concurrent use. It starts no goroutine.
package control

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"os"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/state"
)

// Deps is what the verbs stand on.
type Deps struct {
	Store   *state.Store
	Catalog *catalog.Catalog
	Agent   Agent
	Vault   *Vault // opens secrets
	Images  ImageStore
	Builder Builder
	Logs    LogReader
	Journal LogWriter   // what control itself has to say in apps' logs; nil: nowhere
	Host    root.HostID // this host
	Issuer  Issuer      // keeps certificates
	Domain  string      // apps answer at <app>.<Domain>
	// Lookup finds the addresses of a public name. Nil: as the host does.
	Lookup func(ctx context.Context, host string) ([]net.IPAddr, error)
	Public Public // asks apps from outside; nil: releases are not verified that way
	Poster Poster // tells webhooks; nil: they are not told
	// KeepReleases is how many releases of an app are kept; 0 is DefaultKeep.
	KeepReleases int
	// Failpoint, in tests, ends the process at a point of a rollout.
	Failpoint func(point string)
	// Address derives the addresses of the machine with the given index.
	Address func(networkID, hostPart, index uint32) root.Address
	// Drain returns when nothing is in flight to the machine's version, or ctx
	// ends. Nil: nobody can tell.
	Drain func(ctx context.Context, m *root.Machine) error
	// Routed returns when this host's edge routes by a revision of the catalog,
	// or when that is not to be waited for. Nil: there is no edge.
	Routed func(ctx context.Context, revision int64)
	// Dial connects to an address of a machine. Nil: it cannot be done.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Busy keeps autostop away from a machine's version. Nil: nothing does.
	Busy func(ctx context.Context, id root.InstanceID, until time.Time) error
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger
}

// Control holds the services, one a noun.
type Control struct {
	Orgs     *Orgs
	Apps     *Apps
	Machines *Machines
	Tokens   *Tokens
	Images   *Images
	Logs     *Logs
	Hosts    *Hosts
	Secrets  *Secrets
	Scale    *Scale
	Consoles *Consoles
	Releases *Releases
	Certs    *Certs
}

// New wires the services together.
func New(d Deps) *Control {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Journal == nil {
		d.Journal = discardLog{}
	}
	if d.Vault != nil && d.Logs != nil {
		d.Logs = scrubbedLogs{d.Logs, d.Vault, d.Catalog}
	}
	m := &Machines{Deps: d, addresses: &addresses{}}
	releases := &Releases{Deps: d, machines: m, wake: make(chan struct{}, 1), running: map[root.AppName]context.CancelCauseFunc{}, telling: map[state.Webhook]bool{}}
	return &Control{
		Orgs:     &Orgs{Deps: d},
		Apps:     &Apps{Deps: d, machines: m},
		Machines: m,
		Tokens:   &Tokens{Deps: d},
		Images:   &Images{d: d},
		Logs:     &Logs{d: d},
		Hosts:    &Hosts{Deps: d},
		Secrets:  &Secrets{Deps: d, redeployer: releases},
		Releases: releases,
		Certs:    &Certs{Deps: d},
		Consoles: &Consoles{Deps: d, machines: m},
		Scale:    &Scale{Deps: d, machines: m, busy: map[root.AppName]bool{}},
	}
}

// Agent acts on the machines of this host. Every method that changes
// something returns when the machine's status says so in the store, with the
// store's revision of that status.
type Agent interface {
	// Launch makes a new machine be: it prepares the machine's first boot and,
	// where the spec says so, starts it.
	Launch(ctx context.Context, m *root.Machine) (rev int64, err error)
	// Replace brings m's machine to the version in m.Spec. commit writes that
	// spec to the store; it is called once everything that can be checked
	// before has succeeded, or not at all. A version that comes up beside the
	// one that serves has to be ready, its checks passing, within ready; zero
	// is the agent's default. prove, if not nil, is then called, before commit and
	// while both versions run; its error ends the Replace. It is not called where
	// the old version stops first.
	Replace(ctx context.Context, m *root.Machine, ready time.Duration, prove func(context.Context) error, commit func(context.Context) (int64, error)) (rev int64, err error)
	// GiveUp ends the wait of a Replace for version to be ready, and prove: the
	// old one serves on. It does not wait, and does nothing once version serves.
	GiveUp(id root.MachineID, version root.InstanceID)
	Start(ctx context.Context, id root.MachineID, o orders.Start) (rev int64, err error)
	Stop(ctx context.Context, id root.MachineID, o orders.Stop) (rev int64, err error)
	Restart(ctx context.Context, id root.MachineID, o orders.Stop) (rev int64, err error)
	Suspend(ctx context.Context, id root.MachineID, o orders.Suspend) (rev int64, err error)
	// Destroy removes a machine whose spec says Destroy, and its record.
	Destroy(ctx context.Context, id root.MachineID) (rev int64, err error)

	// Instance is the server process's own account of a version: newer than
	// what is recorded for a moment after a wake or an autostop.
	Instance(ctx context.Context, id root.InstanceID) (orders.Instance, error)
	Signal(ctx context.Context, id root.MachineID, signal int) error
	Lease(ctx context.Context, id root.MachineID, until time.Time) error
	Exec(ctx context.Context, id root.MachineID, o orders.Exec, files ...*os.File) (orders.ExecResult, error)
	Inspect(ctx context.Context, id root.MachineID) (orders.Inspection, error)
	Stats(ctx context.Context, id root.MachineID) (orders.Stats, error)
	Host(ctx context.Context) (orders.HostStatus, error)
}

func (d *Deps) randomMachineID() root.MachineID {
	var b [7]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return root.MachineIDFrom(b)
}

// read waits until reads see revision rev, and until this host's edge routes by
// it: who has its answer may send a request at once.
func (d *Deps) read(ctx context.Context, rev int64) error {
	if err := d.Catalog.WaitRevision(ctx, rev); err != nil {
		return err
	}
	if d.Routed != nil {
		d.Routed(ctx, rev)
	}
	return nil
}

// app finds an app that the actor may act on with p. An app of another
// organisation is Forbidden, a name nobody has is NotFound: clients find out
// that way whether a name is free.
func (d *Deps) app(a auth.Actor, p auth.Permission, name root.AppName) (*root.App, error) {
	app := d.Catalog.Snapshot().App(name)
	if app == nil {
		if err := a.Allow(p, "", name, ""); err != nil {
			return nil, err
		}
		return nil, root.Errorf(root.NotFound, "app %q not found", name)
	}
	if err := a.Allow(p, app.Org, app.Name, ""); err != nil {
		return nil, err
	}
	return app, nil
}

// machine finds a machine of app that the actor may act on with p.
func (d *Deps) machine(a auth.Actor, p auth.Permission, app root.AppName, id root.MachineID) (*root.Machine, error) {
	s := d.Catalog.Snapshot()
	m := s.Machine(id)
	org := root.OrgSlug("")
	if found := s.App(app); found != nil {
		org = found.Org
	}
	if err := a.Allow(p, org, app, id); err != nil {
		return nil, err
	}
	if m == nil || m.App != app {
		return nil, root.Errorf(root.NotFound, "machine not found")
	}
	return m, nil
}
