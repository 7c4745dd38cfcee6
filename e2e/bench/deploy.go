package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

const (
	// deployRounds is how often the Django example is changed and deployed.
	deployRounds = 9
	// lookPace is between two looks at whether the change is live: seldom
	// enough not to slow the deploy down.
	lookPace = 20 * time.Millisecond
	deployed = "bench-deploy"
)

// phases are the parts of a deploy.
type phases struct{ build, command, machines, verify samples }

func (p *phases) details(r *report, what string) {
	r.detail(what+": context and image", p.build)
	r.detail(what+": release command", p.command)
	r.detail(what+": machines and checks", p.machines)
	r.detail(what+": asked through the front door", p.verify)
}

// add reads what the release's events say of its parts.
func (p *phases) add(begin time.Time, r *shownRelease) {
	last := r.CreatedAt
	until := func(s *samples, step ...string) {
		from := last
		for _, e := range r.Events {
			for _, name := range step {
				if e.Step == name && e.At.After(last) {
					last = e.At
				}
			}
		}
		*s = append(*s, last.Sub(from))
	}
	p.build = append(p.build, r.CreatedAt.Sub(begin))
	until(&p.command, "release_command")
	until(&p.machines, "create", "update")
	p.verify = append(p.verify, r.FinishedAt.Sub(last))
}

// shownRelease is what `roost release show --json` prints.
type shownRelease struct {
	CreatedAt  time.Time `json:"created_at"`
	FinishedAt time.Time `json:"finished_at"`
	Events     []struct {
		At   time.Time
		Step string
	}
}

// deploy measures deploys of the Django example: with a changed template, and
// with nothing changed.
func (w *world) deploy(ctx context.Context) (err error) {
	source, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := w.LoadBase(ctx, source); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-deploy-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(source, "examples", "django"))); err != nil {
		return err
	}
	if _, err := w.CLI(ctx, "app", "create", deployed); err != nil {
		return err
	}
	if _, err := w.CLI(ctx, "secrets", "set", "--app", deployed, "SECRET_KEY=measured"); err != nil {
		return err
	}
	roll := func() (took time.Duration, begin time.Time, r *shownRelease, err error) {
		begin = time.Now()
		if _, err = w.CLI(ctx, "deploy", dir, "--app", deployed, "--yes", "--progress", "quiet"); err != nil {
			return 0, begin, nil, err
		}
		took = time.Since(begin)
		said, err := w.CLI(ctx, "release", "show", "--app", deployed, "--json")
		if err != nil {
			return 0, begin, nil, err
		}
		r = &shownRelease{}
		return took, begin, r, json.Unmarshal([]byte(said.Stdout), r)
	}
	if _, _, _, err := roll(); err != nil { // installs Debian's packages
		return err
	}
	page := filepath.Join(dir, "store", "templates", "store", "home.html")
	template, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	var changed, live, unchanged samples
	var parts, same phases
	for n := range deployRounds {
		mark := fmt.Sprintf("change number %d", n)
		text := bytes.Replace(template, []byte(`<p class="lead">`), []byte(`<p class="lead">`+mark+" "), 1)
		if err := os.WriteFile(page, text, 0o644); err != nil {
			return err
		}
		seen, begin := make(chan time.Time, 1), time.Now()
		lookCtx, stop := context.WithCancel(ctx)
		go func() { // ends with the change or with stop, which this waits for below
			defer close(seen)
			w.watchPage(lookCtx, mark, seen)
		}()
		took, started, r, err := roll()
		if err != nil {
			stop()
			<-seen
			return err
		}
		late := time.AfterFunc(patience, stop)
		at, ok := <-seen
		late.Stop()
		stop()
		if !ok {
			return errors.New("the change did not become live")
		}
		changed, live = append(changed, took), append(live, at.Sub(begin))
		parts.add(started, r)

		if took, started, r, err = roll(); err != nil {
			return err
		}
		unchanged = append(unchanged, took)
		same.add(started, r)
	}
	w.report.detail("Deploy of the Django example, changed template, whole command", changed)
	parts.details(w.report, "Changed template")
	w.report.detail("Deploy of the Django example, nothing changed, whole command", unchanged)
	same.details(w.report, "Nothing changed")
	w.report.below("Deploy of a code-only change of the Django example: live (p50)", live.p50(), 5*time.Second,
		"the command, which also watches the worker for 5 s, ends after "+ms(changed.p50()))
	w.report.below("Deploy with nothing changed (p50)", unchanged.p50(), time.Second, "the release command is not run again, no machine is restarted: build "+ms(same.build.p50())+
		", machines "+ms(same.machines.p50()))
	return w.api.DeleteApp(ctx, deployed, true)
}

// watchPage asks for the landing page, past its cache, until it says text.
func (w *world) watchPage(ctx context.Context, text string, seen chan<- time.Time) {
	hc := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: w.DialEdge}}
	defer hc.CloseIdleConnections()
	for n := 0; ctx.Err() == nil; n++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s.localhost/?n=%d", deployed, n), nil)
		if err != nil {
			return
		}
		if resp, err := hc.Do(req); err == nil {
			body, err := io.ReadAll(resp.Body)
			if cerr := resp.Body.Close(); err == nil && cerr == nil && strings.Contains(string(body), text) {
				seen <- time.Now()
				return
			}
		}
		if instance.Pause(ctx, lookPace) != nil {
			return
		}
	}
}
