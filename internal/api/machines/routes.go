// Package machines serves the Machines API with Fly's shapes, statuses and
// texts ("Machines REST API" of the Fly docs): apps, machines, leases, exec,
// metadata, and what platform clients ask for. It decodes, calls control and
// renders; it decides nothing.
package machines

import (
	"context"
	"net/http"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/orders"
)

// Apps are control's verbs on apps.
type Apps interface {
	Create(ctx context.Context, a auth.Actor, c control.CreateApp) (control.AppStatus, error)
	Get(ctx context.Context, a auth.Actor, name root.AppName) (control.AppStatus, error)
	List(ctx context.Context, a auth.Actor, org string) ([]control.AppStatus, error)
	Delete(ctx context.Context, a auth.Actor, name root.AppName, force bool) error
}

// Machines are control's verbs on machines.
type Machines interface {
	Create(ctx context.Context, a auth.Actor, app root.AppName, c control.CreateMachine) (*root.Machine, error)
	Update(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, u control.UpdateMachine) (*root.Machine, error)
	Get(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Machine, error)
	List(ctx context.Context, a auth.Actor, app root.AppName, f control.Filter) ([]*root.Machine, error)
	Start(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) (root.State, error)
	Stop(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r control.StopRequest) error
	Restart(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r control.RestartRequest) error
	Suspend(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error
	Signal(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, signal int) error
	Cordon(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, on bool) error
	Destroy(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, force bool) error
	Wait(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, w control.WaitRequest) (control.WaitResult, error)
	Exec(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, e control.ExecRequest) (control.ExecResult, error)
	Inspect(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Inspection, error)
	Events(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, limit int) ([]root.Event, error)
	Lease(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Lease, error)
	Acquire(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce, description string, ttl time.Duration) (*root.Lease, error)
	Release(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error
	Metadata(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (map[string]string, error)
	SetMetadata(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, version string, values map[string]*string) error
}

// Hosts are control's verbs on hosts, as far as the surface needs them.
type Hosts interface {
	Regions(ctx context.Context) []root.Region
}

// Options are what the surface stands on.
type Options struct {
	Apps     Apps
	Machines Machines
	Hosts    Hosts
	Secrets  Secrets
	Certs    Certs
	Region   root.Region // this host's
}

type handlers struct{ Options }

// nonceHeader proves that the caller holds the machine's lease.
const nonceHeader = "Fly-Machine-Lease-Nonce"

// Routes is the surface's part of the route table.
func Routes(o Options) []route.Route {
	h := &handlers{o}
	const (
		app     = "/v1/apps/{app}"
		list    = app + "/machines"
		machine = list + "/{machine}"
	)
	return append(certificateRoutes(h, app), []route.Route{
		{Method: http.MethodGet, Pattern: "/v1/apps", Permission: auth.AppList, Handler: h.listApps},
		{Method: http.MethodPost, Pattern: "/v1/apps", Permission: auth.AppCreate, Handler: h.createApp},
		{Method: http.MethodGet, Pattern: app, Permission: auth.AppRead, Handler: h.getApp},
		{Method: http.MethodDelete, Pattern: app, Permission: auth.AppDelete, Handler: h.deleteApp},

		{Method: http.MethodGet, Pattern: list, Permission: auth.MachineRead, Handler: h.list},
		{Method: http.MethodPost, Pattern: list, Permission: auth.MachineCreate, Handler: h.create},
		{Method: http.MethodGet, Pattern: machine, Permission: auth.MachineRead, Handler: h.get},
		{Method: http.MethodPost, Pattern: machine, Permission: auth.MachineUpdate, Handler: h.update},
		{Method: http.MethodDelete, Pattern: machine, Permission: auth.MachineDestroy, Handler: h.destroy},

		{Method: http.MethodPost, Pattern: machine + "/start", Permission: auth.MachineStart, Handler: h.start},
		{Method: http.MethodPost, Pattern: machine + "/stop", Permission: auth.MachineStop, Handler: h.stop},
		{Method: http.MethodPost, Pattern: machine + "/restart", Permission: auth.MachineRestart, Handler: h.restart},
		{Method: http.MethodPost, Pattern: machine + "/suspend", Permission: auth.MachineSuspend, Handler: h.suspend},
		{Method: http.MethodPost, Pattern: machine + "/signal", Permission: auth.MachineSignal, Handler: h.signal},
		{Method: http.MethodPost, Pattern: machine + "/cordon", Permission: auth.MachineCordon, Handler: h.cordon(true)},
		{Method: http.MethodPost, Pattern: machine + "/uncordon", Permission: auth.MachineCordon, Handler: h.cordon(false)},
		{Method: http.MethodGet, Pattern: machine + "/wait", Permission: auth.MachineRead, Handler: h.wait},

		{Method: http.MethodGet, Pattern: machine + "/lease", Permission: auth.MachineRead, Handler: h.getLease},
		{Method: http.MethodPost, Pattern: machine + "/lease", Permission: auth.MachineLease, Handler: h.acquireLease},
		{Method: http.MethodDelete, Pattern: machine + "/lease", Permission: auth.MachineLease, Handler: h.releaseLease},

		{Method: http.MethodPost, Pattern: machine + "/exec", Permission: auth.MachineExec, Handler: h.exec},
		{Method: http.MethodGet, Pattern: machine + "/ps", Permission: auth.MachineRead, Handler: h.processes},
		{Method: http.MethodGet, Pattern: machine + "/events", Permission: auth.MachineRead, Handler: h.events},
		{Method: http.MethodGet, Pattern: machine + "/versions", Permission: auth.MachineRead, Handler: h.versions},

		{Method: http.MethodGet, Pattern: machine + "/metadata", Permission: auth.MachineRead, Handler: h.metadata},
		{Method: http.MethodPut, Pattern: machine + "/metadata", Permission: auth.MachineMetadata, Handler: h.patchMetadata},
		{Method: http.MethodPatch, Pattern: machine + "/metadata", Permission: auth.MachineMetadata, Handler: h.patchMetadata},
		{Method: http.MethodGet, Pattern: machine + "/metadata/{key}", Permission: auth.MachineRead, Handler: h.getMetadata},
		{Method: http.MethodPost, Pattern: machine + "/metadata/{key}", Permission: auth.MachineMetadata, Handler: h.setMetadata},
		{Method: http.MethodDelete, Pattern: machine + "/metadata/{key}", Permission: auth.MachineMetadata, Handler: h.deleteMetadata},

		{Method: http.MethodGet, Pattern: app + "/secrets", Permission: auth.SecretRead, Handler: h.listSecrets},
		{Method: http.MethodPost, Pattern: app + "/secrets", Permission: auth.SecretWrite, Handler: h.setSecrets},
		{Method: http.MethodGet, Pattern: app + "/secrets/{name}", Permission: auth.SecretRead, Handler: h.getSecret},
		{Method: http.MethodPost, Pattern: app + "/secrets/{name}", Permission: auth.SecretWrite, Handler: h.setSecret},
		{Method: http.MethodDelete, Pattern: app + "/secrets/{name}", Permission: auth.SecretWrite, Handler: h.deleteSecret},

		{Method: http.MethodGet, Pattern: "/v1/orgs/{org}/machines", Permission: auth.AppList, Handler: h.orgMachines},
		{Method: http.MethodGet, Pattern: "/v1/platform/regions", Permission: auth.HostRead, Handler: h.regions},
		{Method: http.MethodGet, Pattern: "/v1/tokens/current", Permission: auth.AppRead, Handler: h.currentToken},
	}...)
}
