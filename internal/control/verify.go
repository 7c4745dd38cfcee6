package control

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/rollout"
)

// Public asks an app as anybody does: through the edge's public listeners,
// under its own name.
type Public interface {
	// Ask sends a request for path to the outside port; kind Unimplemented when
	// this host serves no such port.
	Ask(ctx context.Context, app root.AppName, q PublicQuestion) (PublicAnswer, error)
}

// PublicQuestion is a request to an app.
type PublicQuestion struct {
	Port   int
	TLS    bool
	Method string
	Path   string
	Header map[string][]string
}

// PublicAnswer is what came back.
type PublicAnswer struct {
	URL    string // for people
	Status int
	Edge   string // the edge's own error code: the app did not answer
	Body   string // the beginning
}

const (
	// verifyTime bounds the last look at an app, whatever its wait timeout: all
	// machines have passed their gates by then.
	verifyTime = 90 * time.Second
	// verifyPause and maxVerifyPause are between attempts.
	verifyPause    = 100 * time.Millisecond
	maxVerifyPause = 2 * time.Second
	// askTime is for one answer: as long as a request waits for a machine.
	askTime = 65 * time.Second
)

// Verify asks the app through its public route until it answers below 500. An
// app without HTTP service, or with no machine that could answer, has none.
func (c *cluster) Verify(ctx context.Context, r *root.Release, tell rollout.Tell) (notice string, err error) {
	if c.s.Public == nil {
		return "", nil
	}
	q, service := question(r)
	if service == nil {
		return "", nil
	}
	machines, err := c.Machines(ctx, r.App)
	if err != nil {
		return "", err
	}
	able := slices.ContainsFunc(machines, func(m *root.Machine) bool {
		return m.Managed() && !m.Spec.Cordoned && rollout.Served(&m.Spec.Config) && (m.Status.State.Running() || service.Autostart && !r.Deploy.Restart) // new secrets wake nobody
	})
	if !able {
		return "", nil
	}
	until := c.s.Now().Add(min(verifyTime, r.Deploy.WaitTimeout))
	ctx, cancel := context.WithTimeoutCause(ctx, min(verifyTime, r.Deploy.WaitTimeout), errNotReady)
	defer cancel()
	var last PublicAnswer
	var lastErr error
	for pause := verifyPause; ; pause = min(2*pause, maxVerifyPause) {
		one, end := context.WithTimeout(ctx, askTime)
		a, err := c.s.Public.Ask(one, r.App, q)
		end()
		if plain := plainPort(service); root.IsKind(err, root.Unimplemented) && q.TLS && plain != 0 {
			// Where nobody listens for HTTPS the edge sends nobody there.
			q.Port, q.TLS = plain, false
			continue
		}
		if root.IsKind(err, root.Unimplemented) {
			return "", nil // nobody outside can ask either
		}
		if err == nil && a.Edge == "" && a.Status < 500 {
			tell(root.ReleaseEvent{Step: root.StepVerify, URL: a.URL, Message: fmt.Sprintf("%s answers %d", a.URL, a.Status)})
			if a.Status == 400 {
				notice = fmt.Sprintf("%s answers 400: does the app allow its own hostname (Django: ALLOWED_HOSTS)?", a.URL)
			}
			return notice, nil
		}
		if ctx.Err() == nil || lastErr == nil && last.URL == "" {
			last, lastErr = a, err
		}
		if pause == verifyPause {
			tell(root.ReleaseEvent{Step: root.StepVerify, Waiting: "the app to answer at its address", Until: until})
		}
		select {
		case <-ctx.Done():
			if context.Cause(ctx) != errNotReady { //nolint:errorlint // our own value
				return "", context.Cause(ctx)
			}
			return "", c.unanswered(ctx, r, last, lastErr, machines)
		case <-time.After(pause):
		}
	}
}

// plainPort is the first port on which a service speaks HTTP without TLS, 0 for
// none.
func plainPort(s *root.Service) int {
	for _, p := range s.Ports {
		if p.HasHandler("http") && !p.HasHandler("tls") {
			return p.Port
		}
	}
	return 0
}

// unanswered says why an app is not reached.
func (c *cluster) unanswered(ctx context.Context, r *root.Release, a PublicAnswer, err error, machines []*root.Machine) error {
	cause := root.Errorf(root.Precondition, "it answered %d: %s", a.Status, clipText(a.Body, maxOutput))
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		cause = root.Errorf(root.Precondition, "no answer came")
	case err != nil:
		cause = root.Errorf(root.Precondition, "%v", err)
	case a.Edge != "":
		cause = root.Errorf(root.Precondition, "the edge answered %d (%s): %s", a.Status, a.Edge, clipText(a.Body, maxOutput))
	}
	f := failure{what: fmt.Sprintf("the app does not answer at %s", a.URL), app: r.App, since: r.CreatedAt, err: cause}
	if a.URL == "" {
		f.what = "the app does not answer at its public address"
	}
	for _, m := range machines {
		if m.Managed() && m.Spec.Release == r.Version && rollout.Served(&m.Spec.Config) {
			f.machine, f.instance, f.config = m.ID, m.Spec.Instance, &m.Spec.Config
			if m.Status.State.Running() {
				break
			}
		}
	}
	return c.s.diagnose(ctx, f)
}

// question is how a release is asked whether it lives, and of which service;
// nil where nobody outside can ask.
func question(r *root.Release) (PublicQuestion, *root.Service) {
	for i := range r.Groups {
		g := &r.Groups[i]
		if slices.ContainsFunc(r.Routes, func(t root.Route) bool { return t.Group == g.Name && !t.Shared }) {
			continue // it takes its routes' requests only
		}
		for n := range g.Config.Services {
			sv := &g.Config.Services[n]
			q := PublicQuestion{Method: "GET", Path: "/"}
			for _, p := range sv.Ports {
				if !p.HasHandler("http") {
					continue
				}
				if q.Port == 0 || !p.ForceHTTPS && !p.HasHandler("tls") {
					q.Port, q.TLS = p.Port, p.HasHandler("tls")
					if p.ForceHTTPS { // plain requests go no further
						q.Port = 0
					}
				}
			}
			if q.Port == 0 {
				continue
			}
			for _, k := range sv.Checks {
				if u, err := url.Parse(k.Path); k.Type == "http" && err == nil && k.Path != "" && (k.Method == "" || k.Method == "GET" || k.Method == "HEAD") {
					q.Path, q.Method = u.RequestURI(), "GET"
					break
				}
			}
			return q, sv
		}
	}
	return PublicQuestion{}, nil
}
