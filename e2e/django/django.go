// Package django tells how the Django example lives on Roost: deployed from its
// folder with an ordinary Dockerfile, its receipts on a serverless machine, its
// statics served while everything sleeps, migrations, secrets, rollbacks, more
// and less of it, and its memory. `make demo-django` runs it for people, the
// test of this package runs it for machines; the steps are the same.
//
// It looks from outside only: the command line, the Machines API, HTTP.
package django

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// Shop is the state that the steps share.
type Shop struct {
	*instance.Instance
	Source string // the module's directory

	dir  string // a copy of the example, which steps change
	css  string // path of the style sheet, with its hash
	good string // version of the first release, "v1"
	api  *machines.Client
	http *http.Client
}

const (
	app = "shop"
	// stopAfter is how long a machine idles before it is suspended: short, so
	// that a person can watch.
	stopAfter = 2 * time.Second
	// patience is how long a step waits for something to happen by itself,
	// generous for a busy host.
	patience = 3 * time.Minute
	// checkPatience is how long the release that cannot pass its check is
	// given at first.
	checkPatience = 15 * time.Second
)

// Settings are the server's settings that the story needs.
func Settings() []string {
	return []string{"--reclaim-after=1s", "--swap=file:1GB", "--log-level=info"}
}

// New makes a story on a running instance; source is the module's directory.
func New(in *instance.Instance, source string) *Shop {
	return &Shop{
		Instance: in, Source: source, dir: filepath.Join(in.Dir, app), api: in.Client(in.Token),
		http: in.Visitor(),
	}
}

// Close drops the story's connections.
func (s *Shop) Close() { s.http.CloseIdleConnections() }

// Host is the app's hostname.
func (s *Shop) Host() string { return app + ".localhost" }

// Steps are the story, in order.
func Steps() []instance.Step[*Shop] {
	return []instance.Step[*Shop]{
		{Name: "the base image under its usual name, without an image hub", Run: baseImage},
		{Name: "an app with its secrets", Run: secretsFirst},
		{Name: "roost deploy in its folder: build, migrate, machines, checks", Run: firstDeploy},
		{Name: "a page is served by gunicorn, then from its cache", Run: page},
		{Name: "the health check sees the machine's own memory", Run: ownFigures},
		{Name: "receipts: a serverless machine is made, the request replayed there", Run: receipts},
		{Name: "the worker works, has a log of its own, and is started again when it ends", Run: worker},
		{Name: "everything sleeps: statics are served and wake nobody", Run: statics},
		{Name: "a page wakes the web machine", Run: wakes},
		{Name: "a migration that fails: refused, its output shown, the old release serves", Run: brokenMigration},
		{Name: "a check that fails for ALLOWED_HOSTS: refused, the cause named", Run: brokenHosts},
		{Name: "a changed line, deployed under load", Run: changedLine},
		{Name: "the worker was stopped, then started", Run: workerReplaced},
		{Name: "nothing changed", Run: nothingChanged},
		{Name: "a secret is changed under load", Run: rotation},
		{Name: "rollback to the first release", Run: rollback},
		{Name: "scale to two machines, not to two in one region, and back", Run: scale},
		{Name: "Postgres, an app of its own", Run: postgres},
		{Name: "DATABASE_URL: migrated by the release command, written, read, kept by a deploy", Run: sharedDatabase},
		{Name: "a wrong password: refused, Postgres heard, the old release serves", Run: wrongPassword},
		{Name: "without swap: out of memory is said to be that", Run: outOfMemory},
		{Name: "with the article's own swap lines: it lives", Run: articleSwap},
	}
}

func baseImage(ctx context.Context, s *Shop) (string, error) {
	cached, err := s.LoadBase(ctx, s.Source)
	if err != nil {
		return "", err
	}
	if cached {
		return "debian:bookworm-slim, made by an earlier run", nil
	}
	return "debian:bookworm-slim, made from Debian's packages", nil
}

func secretsFirst(ctx context.Context, s *Shop) (string, error) {
	if err := os.CopyFS(s.dir, os.DirFS(filepath.Join(s.Source, "examples", "django"))); err != nil {
		return "", err
	}
	for _, e := range []struct{ file, line, more string }{
		// So that a person can watch it fall asleep.
		{"fly.toml", `  auto_stop_machines = "suspend"`, fmt.Sprintf("\n  auto_stop_after = %q", stopAfter)},
		// What a busy host may not do in the usual time: say the last words, get a
		// serverless machine up, make all receipts. The rest is as it is. That a
		// thaw costs no worker, TestWatchdogs of e2e/real sees, with short times.
		{"fly.toml", `app = "shop"`, "\nkill_timeout = \"60s\""},
		{"shop/settings.py", "USE_TZ = True", "\nSERVERLESS_REPLAY_TIMEOUT = \"60s\""},
		{"gunicorn.conf.py", "import os", "\n\ntimeout = 90"},
	} {
		if err := s.edit(e.file, e.line, e.line+e.more); err != nil {
			return "", err
		}
	}
	if _, err := s.CLI(ctx, "app", "create", app); err != nil {
		return "", err
	}
	token, err := s.CLI(ctx, "token", "create", "app", "--app", app)
	if err != nil {
		return "", err
	}
	_, err = s.CLI(ctx, "secrets", "set", "--app", app, "SECRET_KEY=first", "FLY_API_TOKEN="+strings.TrimSpace(token.Stdout))
	return "SECRET_KEY, FLY_API_TOKEN", err
}

// edit changes a file of the copy; what is replaced has to be there.
func (s *Shop) edit(name, old, replacement string) error {
	path := filepath.Join(s.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(data, []byte(old)) {
		return fmt.Errorf("%s does not say %q", name, old)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(replacement), 1), info.Mode())
}

// deploy is `roost deploy` in the copy's folder.
func (s *Shop) deploy(ctx context.Context, flags ...string) (said string, err error) {
	r, err := s.CLI(ctx, append([]string{"deploy", s.dir, "--app", app, "--yes", "--progress=plain"}, flags...)...)
	return r.Stdout + r.Stderr, err
}

// release is one of `roost releases`.
type release struct {
	Version int
	Status  string
	Current bool
}

func (s *Shop) releases(ctx context.Context) ([]release, error) {
	r, err := s.CLI(ctx, "releases", "--app", app, "--json")
	if err != nil {
		return nil, err
	}
	var list []release
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil {
		return nil, fmt.Errorf("roost releases: %w: %.300s", err, r.Stdout)
	}
	return list, nil
}

// serving is the release that serves.
func (s *Shop) serving(ctx context.Context) (int, error) {
	list, err := s.releases(ctx)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(list, func(r release) bool { return r.Current })
	if i < 0 {
		return 0, fmt.Errorf("no release serves: %+v", list)
	}
	return list[i].Version, nil
}

func firstDeploy(ctx context.Context, s *Shop) (string, error) {
	said, err := s.deploy(ctx)
	if err != nil {
		return "", err
	}
	for _, want := range []string{"Applying store.0002_fill... OK", "2 post-processed"} {
		if !strings.Contains(said, want) {
			return "", fmt.Errorf("what it said lacks %q:\n%s", want, said)
		}
	}
	version, err := s.serving(ctx)
	s.good = fmt.Sprintf("v%d", version)
	return "release " + s.good + ", its migrations shown", err
}

// get asks the app for a path and returns the answer with its whole body.
func (s *Shop) get(ctx context.Context, path string) (*http.Response, []byte, error) {
	return instance.Get(ctx, s.http, s.Host(), path)
}

// servedBy is the machine that the shop says answered.
func servedBy(resp *http.Response) string { return resp.Header.Get("Store-Machine") }

func page(ctx context.Context, s *Shop) (string, error) {
	resp, body, err := s.get(ctx, "/")
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(body), `<link rel="stylesheet" href="`)
	s.css, _, _ = strings.Cut(rest, `"`)
	if !ok || !strings.HasPrefix(s.css, "/static/store/style.") || s.css == "/static/store/style.css" {
		return "", fmt.Errorf("the page names no style sheet with a hash: %.500s", body)
	}
	start := time.Now()
	again, cached, err := s.get(ctx, "/")
	if err != nil {
		return "", err
	}
	if !bytes.Equal(body, cached) || servedBy(again) != servedBy(resp) {
		return "", errors.New("the second page is another one")
	}
	return fmt.Sprintf("%d bytes from %s, the second time in %s", len(body), servedBy(resp), time.Since(start).Round(100*time.Microsecond)), nil
}

func ownFigures(ctx context.Context, s *Shop) (string, error) {
	_, body, err := s.get(ctx, "/ht/")
	if err != nil {
		return "", err
	}
	var health struct {
		Database, Cache string
		Memory          struct {
			Total int `json:"total_mb"`
			Left  int `json:"available_mb"`
			Swap  int `json:"swap_total_mb"`
		}
	}
	if err := json.Unmarshal(body, &health); err != nil {
		return "", fmt.Errorf("GET /ht/: %w: %s", err, body)
	}
	if m := health.Memory; m.Total != 256 || m.Left <= 0 || m.Left >= 256 || m.Swap < 512 || health.Database != "sqlite" || health.Cache != "ok" {
		return "", fmt.Errorf("not its own: %s", body)
	}
	return fmt.Sprintf("%d of %d MB are left", health.Memory.Left, health.Memory.Total), nil
}

// list reads the app's machines, those that are gone left out.
func (s *Shop) list(ctx context.Context) ([]machines.Machine, error) {
	list, err := s.api.List(ctx, app, machines.ListOptions{})
	return slices.DeleteFunc(list, func(m machines.Machine) bool { return m.State.Gone() }), err
}

// group reads the machines of a process group.
func (s *Shop) group(ctx context.Context, name string) ([]machines.Machine, error) {
	list, err := s.list(ctx)
	return slices.DeleteFunc(list, func(m machines.Machine) bool { return m.Config.Metadata["fly_process_group"] != name }), err
}

// one is the machine of a group that has one.
func (s *Shop) one(ctx context.Context, group string) (*machines.Machine, error) {
	list, err := s.group(ctx, group)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("process group %s has %d machines, want 1", group, len(list))
	}
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

func receipts(ctx context.Context, s *Shop) (string, error) {
	var seen []string
	for _, path := range []string{"/purchases/receipts", "/purchases/7/receipt"} {
		start := time.Now()
		resp, body, err := s.get(ctx, path)
		if err != nil {
			return "", err
		}
		took := time.Since(start)
		m, err := s.one(ctx, "serverless")
		if err != nil {
			return "", err
		}
		if servedBy(resp) != m.ID || resp.Header.Get("Serverless-Machine") != m.ID || resp.Header.Get("Serverless-Fallback") != "" {
			return "", fmt.Errorf("%s came from %s (fallback %q), want %s, %s", path, servedBy(resp), resp.Header.Get("Serverless-Fallback"), m.ID, m.Name)
		}
		pages, err := pdfPages(ctx, body)
		if err != nil {
			return "", err
		}
		seen = append(seen, fmt.Sprintf("%s in %s", pages, took.Round(time.Millisecond)))
	}
	return strings.Join(seen, ", then "), nil
}

// pdfPages has a foreign tool read the PDF.
func pdfPages(ctx context.Context, pdf []byte) (string, error) {
	cmd := exec.CommandContext(ctx, "pdfinfo", "-")
	cmd.Stdin = bytes.NewReader(pdf)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pdfinfo: %w: %.200s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if n, ok := strings.CutPrefix(line, "Pages:"); ok {
			return strings.TrimSpace(n) + " pages", nil
		}
	}
	return "", fmt.Errorf("pdfinfo found no pages: %.200s", out)
}

// eventually polls until look says nothing more is missing.
func eventually(ctx context.Context, look func() (missing string, err error)) error {
	deadline := time.Now().Add(patience)
	for {
		missing, err := look()
		if err != nil {
			return err
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s: %s", patience, missing)
		}
		if err := instance.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (s *Shop) logs(ctx context.Context, flags ...string) (string, error) {
	r, err := s.CLI(ctx, append([]string{"logs", "--app", app, "--no-tail", "--lines", "0"}, flags...)...)
	return r.Stdout, err
}

// asleep waits until every machine that a request could wake is suspended.
func (s *Shop) asleep(ctx context.Context) (sleeping map[string]time.Time, err error) {
	err = eventually(ctx, func() (string, error) {
		list, err := s.list(ctx)
		sleeping = map[string]time.Time{}
		for _, m := range list {
			if len(m.Config.Services) == 0 {
				continue
			}
			if m.State != machines.StateSuspended {
				return fmt.Sprintf("machine %s (%s) is %s", m.ID, m.Name, m.State), err
			}
			sleeping[m.ID] = m.UpdatedAt
		}
		return "", err
	})
	return sleeping, err
}
