package issue

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/mholt/acmez/v3/acme"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/ipc"
)

const (
	// batch bounds how many certificates share a line.
	batch = 100
	// writeTimeout is how long an edge may leave a line unread; it connects
	// again for the whole.
	writeTimeout = 10 * time.Second
)

// Register adds what edges ask to the mux of control's socket, which only root
// can reach: private keys pass here.
func (m *Manager) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+certs.FeedPath, m.feed)
	mux.Handle("GET "+certs.HTTPChallengePath, ipc.Handler(func(ctx context.Context, r *http.Request, _ struct{}) (certs.HTTPAnswer, error) {
		q := r.URL.Query()
		c, err := m.challenge(ctx, acme.ChallengeTypeHTTP01, q.Get("host"))
		if err != nil || c.Token != q.Get("token") {
			if own, oerr := m.challenge(ctx, ownChallenge, q.Get("host")); oerr == nil {
				c, err = own, nil
			}
		}
		if errors.Is(err, fs.ErrNotExist) || err == nil && c.Token != q.Get("token") {
			return certs.HTTPAnswer{}, root.Errorf(root.NotFound, "no such challenge")
		}
		return certs.HTTPAnswer{KeyAuthorization: c.KeyAuthorization}, err
	}))
	mux.Handle("GET "+certs.TLSChallengePath, ipc.Handler(func(ctx context.Context, r *http.Request, _ struct{}) (certs.TLSAnswer, error) {
		c, err := m.challenge(ctx, acme.ChallengeTypeTLSALPN01, r.URL.Query().Get("host"))
		if errors.Is(err, fs.ErrNotExist) {
			return certs.TLSAnswer{}, root.Errorf(root.NotFound, "no such challenge")
		}
		if err != nil {
			return certs.TLSAnswer{}, err
		}
		return tlsAnswer(c)
	}))
}

// feed streams everything, then changes, until the reader goes away.
func (m *Manager) feed(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	stream := ipc.NewStream(w)
	send := func(l certs.Line) bool {
		l.Format = certs.Format
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer knows deadlines
		return stream.Send(l) == nil
	}
	select { // an empty whole would make the edge forget what it has on disk
	case <-m.ready:
	case <-r.Context().Done():
		return
	}
	sent := map[string]*certs.Certificate{}
	var authority *certs.Authority
	for full := true; ; full = false {
		v := m.view.Load()
		l := certs.Line{Full: full}
		for name, c := range v.certificates {
			if sent[name] == c {
				continue
			}
			sent[name] = c
			if l.Put = append(l.Put, *c); len(l.Put) >= batch {
				if !send(l) {
					return
				}
				l.Put = nil
			}
		}
		for name := range sent {
			if v.certificates[name] == nil {
				l.Remove = append(l.Remove, name)
				delete(sent, name)
			}
		}
		if v.authority != authority {
			l.Authority, authority = v.authority, v.authority
		}
		l.Done = full
		if (full || len(l.Put)+len(l.Remove) > 0 || l.Authority != nil) && !send(l) {
			return
		}
		select {
		case <-v.replaced:
		case <-r.Context().Done():
			return
		}
	}
}
