package machines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The API's usual places, seen from inside a machine.
const (
	InternalURL = "http://_api.internal:4280"
	SocketURL   = "unix:///.fly/api"
)

// Options say where the API is and who is calling. The zero value works
// inside a machine.
type Options struct {
	// BaseURL is the API's address: "http://127.0.0.1:4280", or
	// "unix:///run/roost/api.sock" for a socket. Empty: FLY_FLAPS_BASE_URL,
	// else, with a token, InternalURL, else SocketURL.
	BaseURL string
	// Token authenticates the caller. Empty: FLY_API_TOKEN.
	Token string
	// UserAgent is sent with every call; empty: "roost-machines".
	UserAgent string
	// HTTPClient makes the calls, but not those over a socket. Nil: a client
	// of its own without overall time-out; bound calls by their context.
	HTTPClient *http.Client
}

// Client calls the Machines API. It retries nothing: a create that timed out
// may have happened. It is safe for concurrent use.
type Client struct {
	base      string // scheme and authority, no trailing slash
	token     string
	userAgent string
	nonce     string
	http      *http.Client
}

// New returns a client; it connects when used.
func New(o Options) *Client {
	if o.Token == "" {
		o.Token = os.Getenv("FLY_API_TOKEN")
	}
	if o.BaseURL == "" {
		o.BaseURL = os.Getenv("FLY_FLAPS_BASE_URL")
	}
	if o.BaseURL == "" {
		o.BaseURL = SocketURL
		if o.Token != "" {
			o.BaseURL = InternalURL
		}
	}
	c := &Client{base: strings.TrimRight(o.BaseURL, "/"), token: o.Token, userAgent: o.UserAgent, http: o.HTTPClient}
	if c.userAgent == "" {
		c.userAgent = "roost-machines"
	}
	if socket, ok := strings.CutPrefix(o.BaseURL, "unix://"); ok {
		c.base = "http://flaps"
		c.http = &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: 8,
			IdleConnTimeout:     30 * time.Second,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		}}
	}
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			MaxIdleConnsPerHost: 8,
			IdleConnTimeout:     30 * time.Second,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
		}}
	}
	return c
}

// dialTimeout is how long the API may take to accept a connection.
const dialTimeout = 10 * time.Second

// Holding returns a client that proves with every call that it holds a lease.
func (c *Client) Holding(nonce string) *Client {
	h := *c
	h.nonce = nonce
	return &h
}

// Do sends one request to path, which begins with a slash, and decodes the
// reply into out; in and out may be nil. It is there for routes that have no
// method of their own.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := c.NewRequest(ctx, method, path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: reply: %w", method, path, err)
	}
	return nil
}

// NewRequest makes a request that carries the client's token and lease.
func (c *Client) NewRequest(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.nonce != "" {
		req.Header.Set(nonceHeader, c.nonce)
	}
	req.Header.Set("User-Agent", c.userAgent)
	return req, nil
}

const nonceHeader = "Fly-Machine-Lease-Nonce"

// Send sends a request of NewRequest. Any status that is not a success is an
// *Error; otherwise the caller closes the body.
func (c *Client) Send(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx := req.Context(); ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, context.Cause(ctx))
		}
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // its text repeats method and address
		}
		return nil, fmt.Errorf("%s %s: the machines API at %s does not answer: %w", req.Method, req.URL.Path, c.base, err)
	}
	if resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func machinesPath(app string) string { return "/v1/apps/" + url.PathEscape(app) + "/machines" }

func machinePath(app, id string) string { return machinesPath(app) + "/" + url.PathEscape(id) }

// Create makes a machine. A taken name is an *Error with status 409.
func (c *Client) Create(ctx context.Context, app string, in CreateRequest) (*Machine, error) {
	return call[*Machine](ctx, c, http.MethodPost, machinesPath(app), in)
}

// Update replaces a machine's config, which makes a new version of it. A
// machine that is stopped is started, unless SkipLaunch is set.
func (c *Client) Update(ctx context.Context, app, id string, in UpdateRequest) (*Machine, error) {
	return call[*Machine](ctx, c, http.MethodPost, machinePath(app, id), in)
}

// Get reads a machine; an *Error with status 404 if there is none.
func (c *Client) Get(ctx context.Context, app, id string) (*Machine, error) {
	return call[*Machine](ctx, c, http.MethodGet, machinePath(app, id), nil)
}

// ListOptions narrow a list; all conditions must hold.
type ListOptions struct {
	Deleted  bool // destroyed machines too
	Leases   bool // fill Machine.Lease
	Summary  bool // without config, checks and events
	Region   string
	States   []State
	Metadata map[string]string
}

// List reads the machines of an app.
func (c *Client) List(ctx context.Context, app string, o ListOptions) ([]Machine, error) {
	q := url.Values{}
	for name, on := range map[string]bool{"include_deleted": o.Deleted, "include_leases": o.Leases, "summary": o.Summary} {
		if on {
			q.Set(name, "true")
		}
	}
	if o.Region != "" {
		q.Set("region", o.Region)
	}
	if len(o.States) > 0 {
		states := make([]string, len(o.States))
		for i, s := range o.States {
			states[i] = string(s)
		}
		q.Set("state", strings.Join(states, ","))
	}
	for k, v := range o.Metadata {
		q.Set("metadata."+k, v)
	}
	return call[[]Machine](ctx, c, http.MethodGet, withQuery(machinesPath(app), q), nil)
}

// Find returns the machine of that name, nil if there is none.
func (c *Client) Find(ctx context.Context, app, name string) (*Machine, error) {
	list, err := c.List(ctx, app, ListOptions{})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(m Machine) bool { return m.Name == name && !m.State.Gone() })
	if i < 0 {
		return nil, nil
	}
	return &list[i], nil
}

// Start starts or resumes a machine and returns before it is up; see Wait.
func (c *Client) Start(ctx context.Context, app, id string) (StartReply, error) {
	return call[StartReply](ctx, c, http.MethodPost, machinePath(app, id)+"/start", nil)
}

// Stop asks a machine to stop and returns before it has; see Wait.
func (c *Client) Stop(ctx context.Context, app, id string, in StopRequest) error {
	return c.Do(ctx, http.MethodPost, machinePath(app, id)+"/stop", in, nil)
}

// Suspend freezes a machine with its memory; a start lets it go on.
func (c *Client) Suspend(ctx context.Context, app, id string) error {
	return c.Do(ctx, http.MethodPost, machinePath(app, id)+"/suspend", nil, nil)
}

// Restart stops and starts a machine; timeout 0 means the machine's own.
func (c *Client) Restart(ctx context.Context, app, id string, in StopRequest, force bool) error {
	q := url.Values{"force_stop": {strconv.FormatBool(force)}}
	if in.Timeout != 0 {
		q.Set("timeout", time.Duration(in.Timeout).String())
	}
	if in.Signal != "" {
		q.Set("signal", string(in.Signal))
	}
	return c.Do(ctx, http.MethodPost, withQuery(machinePath(app, id)+"/restart", q), nil, nil)
}

// Signal sends a signal, such as "SIGUSR1", to a machine's main process.
func (c *Client) Signal(ctx context.Context, app, id string, signal Signal) error {
	return c.Do(ctx, http.MethodPost, machinePath(app, id)+"/signal", map[string]Signal{"signal": signal}, nil)
}

// Cordon takes a machine out of the proxy's choice, or puts it back.
func (c *Client) Cordon(ctx context.Context, app, id string, on bool) error {
	verb := "/uncordon"
	if on {
		verb = "/cordon"
	}
	return c.Do(ctx, http.MethodPost, machinePath(app, id)+verb, nil, nil)
}

// Destroy removes a machine for good; with force also one that runs.
func (c *Client) Destroy(ctx context.Context, app, id string, force bool) error {
	return c.Do(ctx, http.MethodDelete, machinePath(app, id)+"?force="+strconv.FormatBool(force), nil, nil)
}

// WaitOptions say what to wait for.
type WaitOptions struct {
	State   State         // "": StateStarted
	Version string        // InstanceID; "": the current one
	Timeout time.Duration // 1 s to 60 s; 0 is 60 s
}

// Wait waits until the machine is in a state. Status 408 means not within
// the time-out; calling again is fine then.
func (c *Client) Wait(ctx context.Context, app, id string, o WaitOptions) (WaitReply, error) {
	q := url.Values{}
	if o.State != "" {
		q.Set("state", string(o.State))
	}
	if o.Version != "" {
		q.Set("version", o.Version)
	}
	if o.Timeout > 0 {
		q.Set("timeout", strconv.Itoa(int(min(max(o.Timeout, time.Second), time.Minute)/time.Second)))
	}
	return call[WaitReply](ctx, c, http.MethodGet, withQuery(machinePath(app, id)+"/wait", q), nil)
}

// Exec runs a command inside a running machine and returns what it said.
func (c *Client) Exec(ctx context.Context, app, id string, in ExecRequest) (ExecReply, error) {
	return call[ExecReply](ctx, c, http.MethodPost, machinePath(app, id)+"/exec", in)
}

// Processes lists what runs and listens inside a machine.
func (c *Client) Processes(ctx context.Context, app, id string) ([]ProcessStat, error) {
	return call[[]ProcessStat](ctx, c, http.MethodGet, machinePath(app, id)+"/ps", nil)
}

// Events reads a machine's history, newest first; limit 0 means 20.
func (c *Client) Events(ctx context.Context, app, id string, limit int) ([]Event, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return call[[]Event](ctx, c, http.MethodGet, withQuery(machinePath(app, id)+"/events", q), nil)
}

// Metadata reads a machine's metadata.
func (c *Client) Metadata(ctx context.Context, app, id string) (map[string]string, error) {
	return call[map[string]string](ctx, c, http.MethodGet, machinePath(app, id)+"/metadata", nil)
}

// SetMetadata sets one key; the machine keeps its version and runs on.
func (c *Client) SetMetadata(ctx context.Context, app, id, key, value string) error {
	return c.Do(ctx, http.MethodPost, machinePath(app, id)+"/metadata/"+url.PathEscape(key), map[string]string{"value": value}, nil)
}

// DeleteMetadata removes one key.
func (c *Client) DeleteMetadata(ctx context.Context, app, id, key string) error {
	return c.Do(ctx, http.MethodDelete, machinePath(app, id)+"/metadata/"+url.PathEscape(key), nil, nil)
}

type leaseReply struct {
	Data Lease `json:"data"`
}

// Lease reads who holds a machine; status 404 if nobody does.
func (c *Client) Lease(ctx context.Context, app, id string) (Lease, error) {
	var r leaseReply
	err := c.Do(ctx, http.MethodGet, machinePath(app, id)+"/lease", nil, &r)
	return r.Data, err
}

// AcquireLease takes a machine for ttl, or, on a client that holds the lease
// already, extends it. Status 409: somebody else holds it.
func (c *Client) AcquireLease(ctx context.Context, app, id string, ttl time.Duration, description string) (Lease, error) {
	var r leaseReply
	err := c.Do(ctx, http.MethodPost, machinePath(app, id)+"/lease", map[string]any{"ttl": int(ttl / time.Second), "description": description}, &r)
	return r.Data, err
}

// ReleaseLease gives up the lease that the client holds.
func (c *Client) ReleaseLease(ctx context.Context, app, id string) error {
	return c.Do(ctx, http.MethodDelete, machinePath(app, id)+"/lease", nil, nil)
}

// Busy keeps the machine the process runs on from being put to sleep for ttl,
// up to an hour, however little it seems to do; zero ends it. It is for work
// without a request, works over the machine's own socket (SocketURL) only, and
// exists on Roost only.
func (c *Client) Busy(ctx context.Context, ttl time.Duration) error {
	if ttl == 0 {
		return c.Do(ctx, http.MethodDelete, "/.fly/busy", nil, nil)
	}
	return c.Do(ctx, http.MethodPut, "/.fly/busy?"+url.Values{"ttl": {ttl.String()}}.Encode(), nil, nil)
}

// CreateApp makes an app. A taken name is an *Error with Code "name_taken".
func (c *Client) CreateApp(ctx context.Context, in CreateAppRequest) (*App, error) {
	return call[*App](ctx, c, http.MethodPost, "/v1/apps", in)
}

// App reads an app: status 404 if the name is free, 403 if it is not yours.
func (c *Client) App(ctx context.Context, name string) (*App, error) {
	return call[*App](ctx, c, http.MethodGet, "/v1/apps/"+url.PathEscape(name), nil)
}

// Apps reads the apps of an organisation.
func (c *Client) Apps(ctx context.Context, org string) ([]App, error) {
	var r struct {
		Apps []App `json:"apps"`
	}
	err := c.Do(ctx, http.MethodGet, "/v1/apps?"+url.Values{"org_slug": {org}}.Encode(), nil, &r)
	return r.Apps, err
}

// DeleteApp removes an app; with force together with its machines.
func (c *Client) DeleteApp(ctx context.Context, name string, force bool) error {
	return c.Do(ctx, http.MethodDelete, "/v1/apps/"+url.PathEscape(name)+"?force="+strconv.FormatBool(force), nil, nil)
}

// Regions reads where machines can run and which of these is nearest.
func (c *Client) Regions(ctx context.Context) (nearest string, regions []Region, err error) {
	var r struct {
		Nearest string   `json:"nearest"`
		Regions []Region `json:"regions"`
	}
	err = c.Do(ctx, http.MethodGet, "/v1/platform/regions", nil, &r)
	return r.Nearest, r.Regions, err
}

// call is Do with a typed reply.
func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	if err := c.Do(ctx, method, path, in, &out); err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

func withQuery(path string, q url.Values) string {
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}
