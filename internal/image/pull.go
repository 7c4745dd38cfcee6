package image

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
)

const (
	// parallelLayers is how many layers of one image are fetched at once.
	parallelLayers = 3
	// stallTimeout ends a download that delivers nothing: a slow registry still
	// sends something within it, a dead connection never does.
	stallTimeout = time.Minute
	// connectTimeout bounds dialling and the TLS handshake, answerTimeout the
	// wait for a registry's reply.
	connectTimeout = 10 * time.Second
	answerTimeout  = 30 * time.Second
	// progressInterval is how often a caller hears of progress.
	progressInterval = 200 * time.Millisecond
)

// Progress is how far a pull is.
type Progress struct {
	Stage  string     // one of the Stage constants
	Layers int        // of the image; 0 while unknown
	Done   int        // layers that are here
	Bytes  root.Bytes // received so far
	Total  root.Bytes // of the layers to receive; 0 while unknown
}

// The stages of a pull, in order.
const (
	StageResolve  = "resolve"
	StageDownload = "download"
	StageUnpack   = "unpack"
	StageDone     = "done"
)

// CodeRegistryUnauthorized is the code of the error for an image that the
// registry does not give to us.
const CodeRegistryUnauthorized = "registry_unauthorized"

// Resolve returns the image that reference means, from this host if it is
// here, by digest or else by name, and otherwise by Pull. The result is pinned
// to the digest of the manifest for this host's platform.
func (s *Store) Resolve(ctx context.Context, reference string) (root.Image, error) {
	r, err := s.parse(reference)
	if err != nil {
		return root.Image{}, err
	}
	img, err := s.local(Context(ctx), r)
	if !root.IsKind(err, root.NotFound) || r.domain == "" {
		return img, err
	}
	return s.Pull(ctx, reference, nil)
}

// Pull fetches and unpacks the image that reference means, even if one of that
// name is here; blobs that are here are not fetched again. Progress, if set, is
// called from one goroutine at a time. Kinds: NotFound (no such repository, no
// such tag; both say so), Invalid (reference, architecture, damaged content,
// and with CodeRegistryUnauthorized a registry that wants other credentials),
// Unavailable (registry out of reach, overloaded or broken).
func (s *Store) Pull(ctx context.Context, reference string, progress func(Progress)) (root.Image, error) {
	return s.PullAs(ctx, reference, Login{}, progress)
}

// Login is who pulls, for one pull.
type Login struct {
	User, Password string
	// Org is the organisation whose credentials these are: what they open is
	// its own. "" leaves it to everybody on this host.
	Org string
	// Host lets the pull connect to wherever the host can: root asked for it.
	Host bool
}

// with reports whether there are credentials.
func (l Login) with() bool { return l.User != "" || l.Password != "" }

// LogValue keeps the password out of logs.
func (l Login) LogValue() slog.Value { return slog.StringValue(l.User) }

// PullAs is Pull with credentials of the caller's own; an empty Login is those
// of Options.
func (s *Store) PullAs(ctx context.Context, reference string, login Login, progress func(Progress)) (root.Image, error) {
	r, err := s.parse(reference)
	if err != nil {
		return root.Image{}, err
	}
	if r.domain == "" {
		return root.Image{}, root.Errorf(root.NotFound, "image %s is not on this host, and a digest alone does not say where to get it", r)
	}
	if s.own(r) {
		img, err := s.local(Context(ctx), r)
		if root.IsKind(err, root.NotFound) {
			return root.Image{}, root.Errorf(root.NotFound, "image %s is not in this host's registry: build or push it first", r)
		}
		return img, err
	}
	ctx, done, err := s.Flight(ctx)
	if err != nil {
		return root.Image{}, err
	}
	if !login.with() {
		login.Org = "" // what everybody may have
	}
	p := &puller{s: s, r: r, login: login, proven: map[digest.Digest]bool{}}
	p.stage.Store(&stageResolve)
	stop := p.report(progress)
	img, err := p.pull(ctx)
	stop(err == nil)
	done()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if root.IsKind(err, root.Invalid) {
			// What arrived was wrong: the next pull must not go on from there,
			// as it does after a lost connection.
			err = errors.Join(err, s.collectGarbage(context.WithoutCancel(ctx)))
		}
		return root.Image{}, fmt.Errorf("pull %s: %w", r, err)
	}
	return img, nil
}

var stageResolve, stageDownload, stageUnpack = StageResolve, StageDownload, StageUnpack

// puller is one pull.
type puller struct {
	s     *Store
	r     ref
	login Login

	stage            atomic.Pointer[string]
	layers, done     atomic.Int64
	received, wanted atomic.Int64
	hosts            docker.RegistryHosts
	fetcher          remotes.Fetcher

	mu     sync.Mutex
	proven map[digest.Digest]bool // guarded by mu; what the registry gave us, or gives to everybody
}

// public reports whether what the registry gives us it gives to everybody.
func (p *puller) public() bool { return p.login.Org == "" }

// report calls progress now and then until the returned function is called.
func (p *puller) report(progress func(Progress)) (stop func(ok bool)) {
	if progress == nil {
		return func(bool) {}
	}
	now := func() Progress {
		return Progress{Stage: *p.stage.Load(), Layers: int(p.layers.Load()), Done: int(p.done.Load()), Bytes: root.Bytes(p.received.Load()), Total: root.Bytes(p.wanted.Load())}
	}
	end := make(chan struct{}) // closed by stop
	var wg sync.WaitGroup
	wg.Go(func() {
		last := now()
		progress(last)
		t := time.NewTicker(progressInterval)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				if n := now(); n != last {
					last = n
					progress(n)
				}
			}
		}
	})
	return func(ok bool) {
		close(end)
		wg.Wait()
		if ok {
			n := now()
			n.Stage = StageDone
			progress(n)
		}
	}
}

func (p *puller) pull(ctx context.Context) (root.Image, error) {
	s := p.s
	client, idle := s.registryClient(p.login.Host)
	defer idle()
	p.hosts = s.registryHosts(client, p.login)
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: p.hosts})
	name, top, err := resolver.Resolve(ctx, p.r.String())
	if err != nil {
		if errdefs.IsNotFound(err) {
			return root.Image{}, p.missing(ctx)
		}
		return root.Image{}, p.explain(err)
	}
	if p.fetcher, err = resolver.Fetcher(ctx, name); err != nil {
		return root.Image{}, p.explain(err)
	}
	m, err := p.manifest(ctx, top)
	if err != nil {
		return root.Image{}, p.explain(err)
	}
	if err := p.download(ctx, m); err != nil {
		return root.Image{}, p.explain(err)
	}
	p.stage.Store(&stageUnpack)
	if _, err := s.unpacked(ctx, root.Digest(m.Digest)); err != nil {
		return root.Image{}, err
	}
	proven := func(d digest.Digest) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.proven[d]
	}
	if err := s.name(ctx, p.r, top, named{proven: proven, public: p.public(), org: p.login.Org}); err != nil {
		return root.Image{}, err
	}
	return s.give(ctx, p.r, m)
}

// manifest fetches what decides whether the image runs here, before the large
// parts: the manifest for this host with its config.
func (p *puller) manifest(ctx context.Context, top ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := p.fetchSmall(ctx, top); err != nil {
		return top, err
	}
	m := top
	if images.IsIndexType(top.MediaType) {
		var idx ocispec.Index
		if err := p.s.readJSON(ctx, top, &idx); err != nil {
			return top, err
		}
		for _, e := range idx.Manifests {
			if e.Platform == nil && images.IsManifestType(e.MediaType) {
				if err := p.fetchWithConfig(ctx, e); err != nil {
					return top, err
				}
			}
		}
		var err error
		if m, err = p.s.manifestOf(ctx, p.r, top); err != nil {
			return top, err
		}
	}
	if !images.IsManifestType(m.MediaType) {
		return top, root.Errorf(root.Invalid, "%s is not an image but %q", clip(p.r.String()), clip(m.MediaType))
	}
	if err := p.fetchWithConfig(ctx, m); err != nil {
		return top, err
	}
	return p.s.manifestOf(ctx, p.r, m)
}

// registryClient returns the client for one pull, and what closes it.
func (s *Store) registryClient(anywhere bool) (*http.Client, func()) {
	dial := s.o.Dial
	if dial == nil || anywhere {
		dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			return dial(ctx, network, address)
		},
		TLSHandshakeTimeout:   connectTimeout,
		ResponseHeaderTimeout: answerTimeout,
		MaxIdleConnsPerHost:   parallelLayers,
		ForceAttemptHTTP2:     true,
	}
	return &http.Client{Transport: t}, t.CloseIdleConnections
}

// registryHosts says where a registry is asked: at its mirrors, then itself.
func (s *Store) registryHosts(client *http.Client, login Login) docker.RegistryHosts {
	auth := []docker.AuthorizerOpt{docker.WithAuthClient(client)}
	switch {
	case login.with():
		auth = append(auth, docker.WithAuthCreds(func(string) (string, string, error) { return login.User, login.Password, nil }))
	case s.o.Credentials != nil:
		auth = append(auth, docker.WithAuthCreds(s.o.Credentials))
	}
	authorizer := docker.NewDockerAuthorizer(auth...)
	itself := docker.ConfigureDefaultRegistries(
		docker.WithClient(client),
		docker.WithAuthorizer(authorizer),
		docker.WithPlainHTTP(func(host string) (bool, error) {
			if slices.Contains(s.o.PlainHTTP, host) {
				return true, nil
			}
			return docker.MatchLocalhost(host)
		}),
	)
	return func(registry string) ([]docker.RegistryHost, error) {
		hosts, err := itself(registry)
		// Who brings credentials brings them for the registry, not its mirrors.
		if err != nil || s.o.Mirrors == nil || login.with() {
			return hosts, err
		}
		var mirrors []docker.RegistryHost
		for _, m := range s.o.Mirrors(registry) {
			u, err := url.Parse(m)
			if err != nil {
				return nil, fmt.Errorf("mirror of %s: %w", registry, err)
			}
			mirrors = append(mirrors, docker.RegistryHost{
				Client: client, Authorizer: authorizer, Host: u.Host, Scheme: u.Scheme, Path: path.Join("/", u.Path, "v2"),
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			})
		}
		return append(mirrors, hosts...), nil
	}
}

// missing explains why the registry has no such manifest.
func (p *puller) missing(ctx context.Context) error {
	r := p.r
	what := "tag " + r.tag
	if r.digest != "" {
		what = "digest " + string(r.digest)
	}
	tags, err := p.tags(ctx)
	switch {
	case err == nil && len(tags) > 0:
		const most = 8
		slices.Reverse(tags) // the last ones are often the newest
		more := ""
		if len(tags) > most {
			tags, more = tags[:most], ", ..."
		}
		return root.Errorf(root.NotFound, "image %s exists but has no %s; it has %s%s", r.repository(), what, clip(strings.Join(tags, ", ")), more)
	case errdefs.IsNotFound(err):
		return root.Errorf(root.NotFound, "there is no image %s at registry %s: check the spelling", r.path, r.domain)
	}
	return root.Errorf(root.NotFound, "registry %s has no image %s with %s", r.domain, r.path, what)
}

// tags lists the repository's tags; a repository that does not exist gives
// containerd's NotFound.
func (p *puller) tags(ctx context.Context) ([]string, error) {
	hosts, err := p.hosts(p.r.domain)
	if err != nil || len(hosts) == 0 {
		return nil, errors.Join(err, errors.New("no hosts"))
	}
	h := hosts[len(hosts)-1] // the registry itself
	spec, err := reference.Parse(p.r.String())
	if err != nil {
		return nil, err
	}
	if ctx, err = docker.ContextWithRepositoryScope(ctx, spec, false); err != nil {
		return nil, err
	}
	for attempt := range 2 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.Scheme+"://"+h.Host+h.Path+"/"+p.r.path+"/tags/list", nil)
		if err != nil {
			return nil, err
		}
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			return nil, err
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && attempt == 0 {
			err := errors.Join(h.Authorizer.AddResponses(ctx, []*http.Response{resp}), resp.Body.Close())
			if err != nil {
				return nil, err
			}
			continue
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil, errdefs.ErrNotFound
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("list tags: %s", resp.Status)
		}
		var list struct {
			Tags []string `json:"tags"`
		}
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxJSON)).Decode(&list); err != nil {
			return nil, fmt.Errorf("list tags: %w", err)
		}
		return list.Tags, nil
	}
	return nil, errors.New("list tags: not authorised")
}

// explain gives what went wrong with a registry a kind and a message.
func (p *puller) explain(err error) error {
	if err = full(err); root.IsKind(err, root.Forbidden) { // whoever dials says so
		return &root.Error{Kind: root.Forbidden, Message: fmt.Sprintf("registry %s: %s; if that is meant, list it under the registries of the server's configuration", p.r.domain, root.MessageOf(err)), Err: err}
	}
	if root.KindOf(err) != root.Internal {
		return err
	}
	host := p.r.domain
	refused := &root.Error{Kind: root.Invalid, Code: CodeRegistryUnauthorized, Err: err,
		Message: fmt.Sprintf("registry %s does not give us %s: it is private and needs credentials, or does not exist", host, p.r.path)}
	unavailable := func(format string, args ...any) error {
		return &root.Error{Kind: root.Unavailable, Message: fmt.Sprintf(format, args...), Err: err}
	}
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		return refused
	}
	if st, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err); ok {
		switch {
		case st.StatusCode == http.StatusUnauthorized, st.StatusCode == http.StatusForbidden:
			return refused
		case st.StatusCode == http.StatusTooManyRequests:
			return unavailable("registry %s limits how often we may pull: wait, or use credentials", host)
		case st.StatusCode >= 500:
			return unavailable("registry %s is broken at the moment (it answered %s): try again later", host, st.Status)
		}
		return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("registry %s answered %s", host, st.Status), Err: err}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return unavailable("registry %s cannot be reached: its name %s does not resolve; check the spelling and the host's DNS", host, dns.Name)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") { // net/http has no type for it
		return unavailable("registry %s does not speak TLS; if that is meant, list it under the registries of plain HTTP", host)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return unavailable("registry %s has a certificate that this host does not trust", host)
	}
	if ne, ok := errors.AsType[net.Error](err); ok {
		if ne.Timeout() {
			return unavailable("registry %s cannot be reached: it did not answer within %s", host, answerTimeout)
		}
		return unavailable("registry %s cannot be reached: is it running, and does the host have a route to it?", host)
	}
	if errdefs.IsNotFound(err) {
		return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("registry %s lacks a part of image %s: push it again", host, p.r), Err: err}
	}
	if errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("registry %s sent damaged content for %s", host, p.r), Err: err}
	}
	return err
}
