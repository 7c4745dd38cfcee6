package issue

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/seal"
	"github.com/roost-run/roost/internal/state"
)

// Options of a Manager.
type Options struct {
	Store  *state.Store
	Keys   *seal.Keyring
	Host   root.HostID
	Run    string // new for every run of the process
	Name   string // of the host, for the local authority's own name
	Domain string // apps answer at <app>.<Domain>

	Directory string         // of the ACME authority; "" obtains nothing
	Email     string         // where the authority writes to; may be ""
	Roots     *x509.CertPool // that the authority's own API is trusted by; nil: the system's
	// RenewRatio is the part of a certificate's life in which it is renewed;
	// 0: certmagic's third.
	RenewRatio   float64
	PollInterval time.Duration // of orders; 0: the library's
	// Dial connects to hostnames to see whether they lead here; nil: as the host does.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger
}

const (
	// attemptTimeout bounds one attempt to obtain a certificate.
	attemptTimeout = 3 * time.Minute
	// attemptsAtOnce bounds those under way.
	attemptsAtOnce = 4
	// lookEvery is how often certificates are looked at for renewal.
	lookEvery = 10 * time.Minute
	// Back-off after failures: authorities allow five failed validations of a
	// name in an hour.
	firstBackoff = time.Minute
	maxBackoff   = 12 * time.Hour
)

// Manager keeps the cluster's certificates. Use New, Run, Register.
type Manager struct {
	o      Options
	local  localRoot
	config *certmagic.Config // nil: nothing is obtained
	acme   *authority
	cache  *certmagic.Cache

	view  atomic.Pointer[view]
	ready chan struct{} // closed when view holds what the store has
	kick  chan struct{} // room for one: look at what is due

	mu    sync.Mutex
	names map[string]root.Hostname // guarded by mu
	busy  map[string]bool          // attempts under way; guarded by mu
	eager map[string]bool          // to be tried at once, whatever failed before; guarded by mu
}

// view is what edges are told. It never changes.
type view struct {
	certificates map[string]*certs.Certificate
	authority    *certs.Authority
	replaced     chan struct{} // closed when the next one is there
}

// Open makes the local authority at the first start and returns a Manager.
// Close ends what the ACME library runs.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Manager{
		o: o, ready: make(chan struct{}), kick: make(chan struct{}, 1),
		names: make(map[string]root.Hostname), busy: make(map[string]bool), eager: make(map[string]bool),
	}
	m.view.Store(&view{replaced: make(chan struct{})})
	if err := m.openLocal(ctx); err != nil {
		return nil, fmt.Errorf("local certificate authority: %w", err)
	}
	if o.Directory == "" {
		return m, nil
	}
	m.acme = newAuthority(m)
	c := certmagic.Config{
		Storage: storage{m}, Issuers: []certmagic.Issuer{m.acme}, KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		RenewalWindowRatio: o.RenewRatio, DisableARI: true, DisableStorageCheck: true, Logger: zap.NewNop(),
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	}
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return m.config, nil }, Logger: zap.NewNop(),
	})
	m.config = certmagic.New(m.cache, c)
	return m, nil
}

// Close ends the library's goroutine.
func (m *Manager) Close() error {
	if m.cache != nil {
		m.cache.Stop()
	}
	return nil
}

// Obtains reports whether certificates are obtained by ACME at all.
func (m *Manager) Obtains() bool { return m.config != nil }

// Try has a hostname looked at now, whatever failed before.
func (m *Manager) Try(hostname string) {
	m.mu.Lock()
	m.eager[hostname] = true
	m.mu.Unlock()
	m.nudge()
}

func (m *Manager) nudge() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Certificate returns the certificate of a hostname from one source.
func (m *Manager) Certificate(ctx context.Context, hostname string, source certs.Source) (*certs.Certificate, error) {
	if source == certs.Uploaded {
		u, err := m.o.Store.Upload(ctx, hostname)
		if err != nil {
			return nil, err
		}
		key, err := m.o.Keys.Open(u.Key, uploadContext(hostname))
		if err != nil {
			return nil, fmt.Errorf("key of the uploaded certificate of %s: %w", hostname, err)
		}
		return &certs.Certificate{Hostname: hostname, Source: certs.Uploaded, Chain: u.Chain, Key: string(key)}, nil
	}
	if m.acme == nil {
		return nil, root.Errorf(root.NotFound, "no certificates are obtained here")
	}
	s, issuer := storage{m}, m.acme.IssuerKey()
	chain, err := s.Load(ctx, certmagic.StorageKeys.SiteCert(issuer, hostname))
	if err != nil {
		return nil, err
	}
	key, err := s.Load(ctx, certmagic.StorageKeys.SitePrivateKey(issuer, hostname))
	if err != nil {
		return nil, err
	}
	return &certs.Certificate{Hostname: hostname, Source: certs.ACME, Chain: string(chain), Key: string(key)}, nil
}

func uploadContext(hostname string) []byte { return []byte("upload/" + hostname) }

// Upload seals and stores an uploaded certificate.
func (m *Manager) Upload(ctx context.Context, c certs.Certificate) (int64, error) {
	box, err := m.o.Keys.Seal([]byte(c.Key), uploadContext(c.Hostname))
	if err != nil {
		return 0, err
	}
	return m.o.Store.PutUpload(ctx, root.Upload{Hostname: c.Hostname, Chain: c.Chain, Key: box, CreatedAt: m.o.Now()})
}

// Run follows the store, keeps the edges told, and obtains and renews
// certificates, until ctx ends; it returns the cause.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.follow(ctx) })
	g.Go(func() error { return m.work(ctx) })
	return g.Wait()
}

// follow keeps view as the store is; a watch that ends begins again.
func (m *Manager) follow(ctx context.Context) error {
	for {
		err := m.o.Store.WatchCertificates(ctx, func(names []string) error { return m.changed(ctx, names) })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m.o.Log.Warn("the watch of certificates ended and begins again", "err", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// changed reads the named hostnames again; none means all.
func (m *Manager) changed(ctx context.Context, names []string) error {
	old := m.view.Load()
	next := &view{certificates: maps.Clone(old.certificates), authority: old.authority, replaced: make(chan struct{})}
	if len(names) == 0 {
		next.certificates = nil
		all, err := m.o.Store.Hostnames(ctx)
		if err != nil {
			return err
		}
		m.mu.Lock()
		clear(m.names)
		for _, h := range all {
			m.names[h.Name] = h
			names = append(names, h.Name)
		}
		m.mu.Unlock()
	} else {
		for _, name := range names {
			h, err := m.o.Store.Hostname(ctx, name)
			if err != nil && !root.IsKind(err, root.NotFound) {
				return err
			}
			m.mu.Lock()
			if delete(m.names, name); err == nil {
				m.names[name] = h
			}
			m.mu.Unlock()
		}
	}
	if next.certificates == nil {
		next.certificates = make(map[string]*certs.Certificate)
	}
	for _, name := range names {
		c, err := m.best(ctx, name)
		switch {
		case err != nil:
			m.o.Log.Error("a certificate cannot be read", "host", name, "err", err)
		case c == nil:
			delete(next.certificates, name)
		case next.certificates[name] == nil || *next.certificates[name] != *c:
			if was := old.certificates[name]; was != nil && *was == *c {
				c = was // so that edges are not told again
			}
			next.certificates[name] = c
		}
	}
	if err := m.lend(next); err != nil {
		m.o.Log.Error("the local authority cannot be lent to edges", "err", err)
	}
	m.view.Store(next)
	close(old.replaced)
	select {
	case <-m.ready:
	default:
		close(m.ready)
	}
	m.nudge()
	return nil
}

// best is the certificate to serve for a hostname: nil for none.
func (m *Manager) best(ctx context.Context, name string) (*certs.Certificate, error) {
	m.mu.Lock()
	_, known := m.names[name]
	m.mu.Unlock()
	if !known {
		return nil, nil
	}
	for _, source := range []certs.Source{certs.Uploaded, certs.ACME} {
		c, err := m.Certificate(ctx, name, source)
		if err == nil {
			if _, err := certs.Leaf(c.Chain); err != nil {
				return nil, err
			}
			return c, nil
		}
		if !root.IsKind(err, root.NotFound) {
			return nil, err
		}
	}
	return nil, nil
}

// work obtains and renews what is due.
func (m *Manager) work(ctx context.Context) error {
	if m.config == nil {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	var g errgroup.Group
	g.SetLimit(attemptsAtOnce)
	defer func() { _ = g.Wait() }() // they return nil
	select {
	case <-m.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		next := m.o.Now().Add(lookEvery)
		for _, name := range m.wanted() {
			at, err := m.due(ctx, name)
			if err != nil {
				m.o.Log.Warn("whether a certificate is due is not known", "host", name, "err", err)
				continue
			}
			if at.After(m.o.Now()) {
				if at.Before(next) {
					next = at
				}
				continue
			}
			if !m.begin(name) {
				continue
			}
			if !g.TryGo(func() error { m.attempt(ctx, name); return nil }) {
				m.end(name) // whoever ends makes room and looks again
			}
		}
		timer := time.NewTimer(max(next.Sub(m.o.Now()), time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-m.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// wanted lists the hostnames that are to have a certificate by ACME.
func (m *Manager) wanted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name, h := range m.names {
		if h.ACME && !m.busy[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (m *Manager) begin(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[name] {
		return false
	}
	m.busy[name] = true
	return true
}

func (m *Manager) end(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.busy, name)
}

// due is when the next attempt for a hostname is to be made.
func (m *Manager) due(ctx context.Context, name string) (time.Time, error) {
	at := time.Time{}
	c, err := m.Certificate(ctx, name, certs.ACME)
	switch {
	case err == nil:
		leaf, err := certs.Leaf(c.Chain)
		if err != nil {
			return at, err
		}
		at = m.renewAt(leaf)
	case !root.IsKind(err, root.NotFound):
		return at, err
	}
	m.mu.Lock()
	eager := m.eager[name]
	m.mu.Unlock()
	if eager {
		return at, nil
	}
	a, err := m.o.Store.Attempt(ctx, name)
	if err == nil && a.Next.After(at) {
		at = a.Next
	}
	return at, err
}

func (m *Manager) renewAt(leaf *x509.Certificate) time.Time {
	ratio := m.o.RenewRatio
	if ratio == 0 {
		ratio = certmagic.DefaultRenewalWindowRatio
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotAfter.Add(-time.Duration(float64(life) * ratio)).Add(time.Second) // certmagic must find it due, too
}

// attempt obtains or renews one certificate and notes how it went.
func (m *Manager) attempt(ctx context.Context, name string) {
	defer m.nudge()
	defer m.end(name)
	m.mu.Lock()
	delete(m.eager, name)
	m.mu.Unlock()
	begin := m.o.Now()
	run, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := m.Certificate(ctx, name, certs.ACME)
	switch {
	case err == nil:
		err = m.config.RenewCertSync(run, name, false)
	case root.IsKind(err, root.NotFound):
		err = m.config.ObtainCertSync(run, name)
	}
	if ctx.Err() != nil {
		return // the process ends: that is nobody's failure
	}
	last, lerr := m.o.Store.Attempt(ctx, name)
	if lerr != nil {
		m.o.Log.Warn("how the last attempt went is not known", "host", name, "err", lerr)
	}
	note := root.CertAttempt{Hostname: name, At: m.o.Now()}
	if err != nil {
		note.Failures = last.Failures + 1
		var wait time.Duration
		note.Code, note.Message, note.Remedy, wait = explain(name, err)
		note.Next = note.At.Add(max(wait, backoff(note.Failures)))
		m.o.Log.Warn("no certificate was obtained", "host", name, "err", err, "took", note.At.Sub(begin), "next", note.Next)
	} else {
		m.o.Log.Info("certificate obtained", "host", name, "took", note.At.Sub(begin))
	}
	if err := m.o.Store.PutAttempt(ctx, note); err != nil && !errors.Is(err, context.Canceled) {
		m.o.Log.Warn("how an attempt went was not noted", "host", name, "err", err)
	}
}

func backoff(failures int) time.Duration {
	d := firstBackoff
	for range failures - 1 {
		if d *= 2; d >= maxBackoff {
			return maxBackoff
		}
	}
	return d
}
