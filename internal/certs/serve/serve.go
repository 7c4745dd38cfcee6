// Package serve is the edge's side of TLS: it keeps the certificates that
// control streams, on disk too, so that the edge starts without control, and
// picks one in each handshake by the name that the client asks for. For
// private names it issues by itself, with the authority control lends it. What
// a certificate authority asks in a challenge it passes on to control.
//
// It knows neither HTTP nor apps. Run's goroutine follows control's feed;
// handshakes run on their connections' goroutines and take no lock that is
// held over I/O.
package serve

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/ipc"
)

// Options of a Server.
type Options struct {
	Client *ipc.Client      // of control's socket
	File   string           // keeps the last state, 0600; "" for none
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger
}

// Server presents certificates. It is safe for concurrent use.
type Server struct {
	o   Options
	set atomic.Pointer[set]

	mu     sync.Mutex
	local  map[string]*tls.Certificate // issued here; guarded by mu
	selfs  map[string]*tls.Certificate // self-signed; guarded by mu
	asking chan struct{}               // one element per question to control under way
}

// set is everything control has told. It never changes.
type set struct {
	documents    map[string]certs.Certificate
	certificates map[string]*tls.Certificate // by hostname
	authority    *certs.Authority
	issuer       *certs.Issuer // nil without authority
}

const (
	// maxLocal bounds the certificates made here for names that clients ask
	// for; beyond it one is forgotten for each new one.
	maxLocal = 2048
	// renewLocal is what is left of such a certificate when the next handshake
	// gets a new one.
	renewLocal = 7 * 24 * time.Hour
	// maxAsking bounds the questions to control under way: anybody can begin
	// something that looks like a challenge.
	maxAsking = 32
	// askTimeout includes the time in which control restarts; authorities wait
	// about ten seconds.
	askTimeout = 9 * time.Second
	askPause   = 100 * time.Millisecond
)

// New returns a server that knows no certificates yet: call Load, then Run.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{
		o: o, local: make(map[string]*tls.Certificate), selfs: make(map[string]*tls.Certificate), asking: make(chan struct{}, maxAsking),
	}
	s.set.Store(&set{})
	return s
}

// Certificate returns the certificate for a name: of control's the exact one,
// then a wildcard, else one of the local authority. It gives certs.ErrNoCertificate.
func (s *Server) Certificate(name string) (*tls.Certificate, error) {
	name = certs.Normal(name)
	set := s.set.Load()
	if c := set.certificates[name]; c != nil {
		return c, nil
	}
	if _, rest, ok := strings.Cut(name, "."); ok {
		if c := set.certificates["*."+rest]; c != nil {
			return c, nil
		}
	}
	if set.issuer == nil || !set.issuer.Covers(name) {
		return nil, certs.ErrNoCertificate
	}
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.local[name]; c != nil && c.Leaf.NotAfter.Sub(now) > renewLocal {
		return c, nil
	}
	c, err := set.issuer.Issue(name, now)
	if err != nil {
		return nil, err
	}
	remember(s.local, name, c)
	return c, nil
}

// SelfSigned returns a certificate that nobody trusts.
func (s *Server) SelfSigned(name string) (*tls.Certificate, error) {
	name = certs.Normal(name)
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.selfs[name]; c != nil && c.Leaf.NotAfter.Sub(now) > renewLocal {
		return c, nil
	}
	c, err := certs.SelfSigned(name, now)
	if err != nil {
		return nil, err
	}
	remember(s.selfs, name, c)
	return c, nil
}

func remember(m map[string]*tls.Certificate, name string, c *tls.Certificate) {
	if len(m) >= maxLocal {
		for other := range m { // any: order does not matter, they are cheap to make
			delete(m, other)
			break
		}
	}
	m[name] = c
}

// HTTPChallenge returns what to answer an authority that asks for a token at
// host; false if nothing of ours waits for it.
func (s *Server) HTTPChallenge(ctx context.Context, host, token string) (string, bool) {
	var a certs.HTTPAnswer
	err := s.ask(ctx, certs.HTTPChallengePath+"?"+url.Values{"host": {certs.Normal(host)}, "token": {token}}.Encode(), &a)
	if err != nil {
		if !root.IsKind(err, root.NotFound) {
			s.o.Log.Warn("a certificate authority's question was not answered", "host", host, "err", err)
		}
		return "", false
	}
	return a.KeyAuthorization, true
}

// TLSChallenge returns the certificate to present to an authority that
// validates host.
func (s *Server) TLSChallenge(ctx context.Context, host string) (*tls.Certificate, error) {
	var a certs.TLSAnswer
	if err := s.ask(ctx, certs.TLSChallengePath+"?"+url.Values{"host": {certs.Normal(host)}}.Encode(), &a); err != nil {
		return nil, fmt.Errorf("challenge for %s: %w", host, err)
	}
	c, err := tls.X509KeyPair([]byte(a.Chain), []byte(a.Key))
	return &c, err
}

// ask asks control, and again while it is away.
func (s *Server) ask(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return root.Errorf(root.Exhausted, "too many questions of this kind at once")
	}
	for {
		err := s.o.Client.Call(ctx, http.MethodGet, path, nil, answer)
		if !root.IsKind(err, root.Unavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(askPause):
		}
	}
}

// Names lists the hostnames that control sent certificates for, and the names
// that the local authority may issue for.
func (s *Server) Names() (certificates, local []string) {
	set := s.set.Load()
	certificates = slices.Sorted(maps.Keys(set.certificates))
	if set.authority != nil {
		local = set.authority.Names
	}
	return certificates, local
}

// Cached is how many certificates were made here and are in memory.
func (s *Server) Cached() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.local)
}

// Expiry returns how many certificates control sent and when the first of
// them expires; the zero time without any.
func (s *Server) Expiry() (n int, first time.Time) {
	for _, c := range s.set.Load().certificates {
		if n++; n == 1 || c.Leaf.NotAfter.Before(first) {
			first = c.Leaf.NotAfter
		}
	}
	return n, first
}

// Load brings back the last state in the file. One that cannot be read is
// ignored, with a warning: control sends everything again.
func (s *Server) Load() {
	if s.o.File == "" {
		return
	}
	data, err := os.ReadFile(s.o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var l certs.Line
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err == nil && (l.Format != certs.Format || !l.Done) {
		err = fmt.Errorf("format %d, this program reads %d", l.Format, certs.Format)
	}
	if err != nil {
		s.o.Log.Warn("ignored the last state of the certificates", "file", s.o.File, "err", err)
		return
	}
	s.replace([]certs.Line{l})
}

// Run keeps the certificates as control's are, connecting again for ever,
// until ctx ends; it returns the cause.
func (s *Server) Run(ctx context.Context) error {
	return ipc.KeepUp(ctx, func(works func()) error { return s.follow(ctx, works) }, func(err error) {
		s.o.Log.Debug("certificate feed lost, connecting again", "err", err)
	})
}

func (s *Server) follow(ctx context.Context, works func()) error {
	var full []certs.Line
	complete := false
	return ipc.Follow(ctx, s.o.Client, certs.FeedPath, func(l certs.Line) error {
		if l.Format != certs.Format {
			return fmt.Errorf("control speaks format %d, this program %d", l.Format, certs.Format)
		}
		switch {
		case complete:
			s.apply(l)
		case !l.Full:
			return errors.New("change before the whole")
		default:
			full = append(full, l)
			if !l.Done {
				return nil
			}
			s.replace(full)
			full, complete = nil, true
			works()
		}
		s.save()
		return nil
	})
}

// replace forgets everything else.
func (s *Server) replace(lines []certs.Line) {
	next := &set{documents: make(map[string]certs.Certificate), certificates: make(map[string]*tls.Certificate)}
	for _, l := range lines {
		s.take(next, l)
	}
	s.put(next)
}

func (s *Server) apply(l certs.Line) {
	now := s.set.Load()
	next := &set{documents: maps.Clone(now.documents), certificates: maps.Clone(now.certificates), authority: now.authority, issuer: now.issuer}
	for _, name := range l.Remove {
		delete(next.documents, name)
		delete(next.certificates, name)
	}
	s.take(next, l)
	s.put(next)
}

// take adds what a line brings. A certificate that cannot be read leaves the
// one before in place.
func (s *Server) take(next *set, l certs.Line) {
	for _, c := range l.Put {
		pair, err := tls.X509KeyPair([]byte(c.Chain), []byte(c.Key))
		if err != nil {
			s.o.Log.Error("a certificate cannot be used", "host", c.Hostname, "err", err)
			continue
		}
		next.documents[c.Hostname], next.certificates[c.Hostname] = c, &pair
	}
	if l.Authority != nil {
		issuer, err := certs.NewIssuer(*l.Authority)
		if err != nil {
			s.o.Log.Error("the local authority cannot be used", "err", err)
			return
		}
		next.authority, next.issuer = l.Authority, issuer
	}
}

// put makes next what handshakes see. Leaves of an authority before stay
// good, but for names that the new one does not cover.
func (s *Server) put(next *set) {
	s.set.Store(next)
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.local, func(name string, _ *tls.Certificate) bool { return next.issuer == nil || !next.issuer.Covers(name) })
}

func (s *Server) save() {
	if s.o.File == "" {
		return
	}
	set := s.set.Load()
	data, err := json.Marshal(certs.Line{
		Format: certs.Format, Full: true, Done: true, Put: slices.Collect(maps.Values(set.documents)), Authority: set.authority,
	})
	if err == nil {
		err = atomicfile.Write(s.o.File, data, 0o600)
	}
	if err != nil {
		s.o.Log.Warn("keep the last state of the certificates", "file", s.o.File, "err", err)
	}
}
