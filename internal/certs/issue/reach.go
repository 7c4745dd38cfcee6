package issue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/roost-run/roost/internal/certs"
)

const (
	// ownChallenge is the kind of those that we ask ourselves.
	ownChallenge = "own"
	reachTimeout = 5 * time.Second
)

// Reaches asks a hostname over plain HTTP, as an authority would, and returns
// nil if the answer came from this platform.
func (m *Manager) Reaches(ctx context.Context, hostname string) error {
	c := acme.Challenge{Type: ownChallenge, Token: "roost-" + rand.Text(), KeyAuthorization: rand.Text()}
	c.Identifier.Value = hostname
	if err := (solver{m}).Present(ctx, c); err != nil {
		return err
	}
	defer func() {
		if err := (solver{m}).CleanUp(ctx, c); err != nil {
			m.o.Log.Warn("a question to ourselves was not removed", "host", hostname, "err", err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+hostname+certs.WellKnown+c.Token, nil)
	if err != nil {
		return err
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableKeepAlives, t.Proxy = true, nil
	if m.o.Dial != nil {
		t.DialContext = m.o.Dial
	}
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return errors.New(innermost(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return err
	}
	if string(body) != c.KeyAuthorization {
		return fmt.Errorf("somebody else answered, with status %d", resp.StatusCode)
	}
	return nil
}
