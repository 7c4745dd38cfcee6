// Package roost serves Roost's own routes, below /roost/v1, for the command
// line: organisations, tokens, images and builds, logs, hosts, inspection and
// interactive exec. Its documents are those of package client. It decodes,
// calls control and renders.
package roost

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/buildcontext"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/orders"
)

// Orgs are control's verbs on organisations.
type Orgs interface {
	List(ctx context.Context, a auth.Actor) ([]root.Org, error)
	Get(ctx context.Context, a auth.Actor, slug string) (root.Org, error)
	Create(ctx context.Context, a auth.Actor, slug, name string) (root.Org, error)
}

// Tokens are control's verbs on tokens.
type Tokens interface {
	Create(ctx context.Context, a auth.Actor, c control.CreateToken) (secret string, t auth.Token, err error)
	List(ctx context.Context, a auth.Actor, org string) ([]auth.Token, error)
	Revoke(ctx context.Context, a auth.Actor, id string) error
}

// Images are control's verbs on images.
type Images interface {
	List(ctx context.Context, a auth.Actor) ([]control.ImageInfo, error)
	Pull(ctx context.Context, a auth.Actor, ref string, login control.RegistryLogin, progress func(control.PullProgress)) (root.Image, error)
	Load(ctx context.Context, a auth.Actor, r io.Reader, as string) ([]root.Image, error)
	Remove(ctx context.Context, a auth.Actor, ref string) error
	BuildContext(ctx context.Context, a auth.Actor, app root.AppName, manifest io.Reader) (control.ContextState, error)
	BuildFiles(ctx context.Context, a auth.Actor, app root.AppName, id string, r io.Reader) error
	Build(ctx context.Context, a auth.Actor, r control.BuildRequest, news func(control.BuildNews)) (root.Image, error)
}

// Logs are control's verbs on logs.
type Logs interface {
	Tail(ctx context.Context, a auth.Actor, app root.AppName, f control.LogFilter, follow bool, line func(control.LogLine) error) error
}

// Hosts are control's verbs on hosts.
type Hosts interface {
	List(ctx context.Context, a auth.Actor) ([]control.HostStatus, error)
}

// Machines are control's verbs on machines that the Machines API does not have.
type Machines interface {
	Inspect(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Inspection, error)
	Stats(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID) (orders.Stats, error)
	ExecStream(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, e control.ExecStream) (control.ExecResult, error)
}

// Options are what the surface stands on.
type Options struct {
	Orgs     Orgs
	Tokens   Tokens
	Images   Images
	Logs     Logs
	Hosts    Hosts
	Machines Machines
	Secrets  Secrets
	Scale    Scale
	Dialer   Dialer
	Consoles Consoles
	Releases Releases
	Certs    Certs
	Log      *slog.Logger
}

type handlers struct{ Options }

// streamed lets a body be as long as it likes: the handler passes it on.
const streamed = -1

// Routes is the surface's part of the route table.
func Routes(o Options) []route.Route {
	h := &handlers{o}
	const (
		base    = "/roost/v1"
		machine = base + "/apps/{app}/machines/{machine}"
	)
	return append(h.releaseRoutes(base), []route.Route{
		{Method: http.MethodGet, Pattern: base + "/orgs", Permission: auth.OrgRead, Handler: h.listOrgs},
		{Method: http.MethodPost, Pattern: base + "/orgs", Permission: auth.OrgCreate, Handler: h.createOrg},
		{Method: http.MethodGet, Pattern: base + "/orgs/{org}", Permission: auth.OrgRead, Handler: h.getOrg},

		{Method: http.MethodGet, Pattern: base + "/tokens", Permission: auth.TokenRead, Handler: h.listTokens},
		{Method: http.MethodPost, Pattern: base + "/tokens", Permission: auth.TokenCreate, Handler: h.createToken},
		{Method: http.MethodDelete, Pattern: base + "/tokens/{token}", Permission: auth.TokenRevoke, Handler: h.revokeToken},

		{Method: http.MethodGet, Pattern: base + "/images", Permission: auth.ImageList, Handler: h.listImages},
		{Method: http.MethodDelete, Pattern: base + "/images", Permission: auth.ImageRemove, Handler: h.removeImage},
		{Method: http.MethodPost, Pattern: base + "/images/pull", Permission: auth.ImagePull, Handler: h.pullImage},
		{Method: http.MethodPost, Pattern: base + "/images/load", Permission: auth.ImagePush, Handler: h.loadImage, Body: streamed},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/builds/contexts", Permission: auth.ImageBuild, Handler: h.beginContext, Body: buildcontext.MaxManifest},
		{Method: http.MethodPut, Pattern: base + "/apps/{app}/builds/contexts/{context}/blobs", Permission: auth.ImageBuild, Handler: h.sendFiles, Body: streamed},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/builds", Permission: auth.ImageBuild, Handler: h.build, Body: maxBuildSpec},

		{Method: http.MethodGet, Pattern: base + "/ca", Permission: auth.HostRead, Handler: h.localAuthority},
		{Method: http.MethodGet, Pattern: base + "/hosts", Permission: auth.HostRead, Handler: h.listHosts},
		{Method: http.MethodGet, Pattern: base + "/apps/{app}/logs", Permission: auth.LogRead, Handler: h.logs},
		{Method: http.MethodGet, Pattern: base + "/apps/{app}/secrets", Permission: auth.SecretRead, Handler: h.listSecrets},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/secrets/deploy", Permission: auth.SecretWrite, Handler: h.deploySecrets},
		{Method: http.MethodGet, Pattern: base + "/apps/{app}/scale", Permission: auth.MachineRead, Handler: h.showScale},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/scale/count", Permission: auth.MachineCreate, Handler: h.scaleCount},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/scale/size", Permission: auth.MachineUpdate, Handler: h.scaleSize},
		{Method: http.MethodPost, Pattern: base + "/apps/{app}/restart", Permission: auth.MachineRestart, Handler: h.restartApp},
		{Method: http.MethodGet, Pattern: base + "/apps/{app}/console", Permission: auth.MachineExec, Handler: h.console},
		{Method: http.MethodGet, Pattern: base + "/apps/{app}/proxy", Permission: auth.MachineDial, Handler: h.proxy},
		{Method: http.MethodGet, Pattern: machine + "/inspect", Permission: auth.MachineRead, Handler: h.inspect},
		{Method: http.MethodGet, Pattern: machine + "/exec", Permission: auth.MachineExec, Handler: h.exec},
	}...)
}
