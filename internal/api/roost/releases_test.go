package roost

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/machines"
)

// releases is control's part: one release that serves, and what was asked.
type releases struct {
	now    *root.Release
	asked  control.NewRelease
	back   control.Rollback
	events []root.ReleaseEvent
	breaks int // so many streams end before their time
}

func (f *releases) Create(_ context.Context, _ auth.Actor, app root.AppName, n control.NewRelease) (*root.Release, error) {
	f.asked = n
	return &root.Release{ID: "R2", App: app, Version: 2, Groups: n.Groups, Deploy: n.Deploy, Progress: root.Progress{Status: root.ReleasePending}}, nil
}

func (f *releases) Plan(_ context.Context, _ auth.Actor, _ root.AppName, n control.NewRelease) (*control.ReleasePlan, error) {
	was := &root.Machine{ID: "148e1234c56789", Name: "wild-fog-1", Status: root.Status{State: root.StateStarted}}
	was.Spec.Config = n.Groups[0].Config.Clone()
	was.Spec.Config.Guest.Memory, was.Spec.Config.Env = root.GiB, map[string]string{"A": "old"}
	return &control.ReleasePlan{
		Former: f.now, Release: &root.Release{Image: root.Image{Registry: "r", Repository: "shop", Digest: "sha256:2"}, Deploy: n.Deploy},
		Steps: []control.PlannedStep{
			{Action: "update", Group: "app", Machine: was, Why: "new config", Config: n.Groups[0].Config},
			{Action: "create", Group: "worker", Why: "the process group has no machine"},
		},
	}, nil
}

func (f *releases) List(context.Context, auth.Actor, root.AppName) ([]root.Release, error) {
	return []root.Release{{App: "shop", Version: 2, Progress: root.Progress{Status: root.ReleaseFailed, Message: "no"}}, *f.now}, nil
}

func (f *releases) Get(_ context.Context, _ auth.Actor, _ root.AppName, version int) (*root.Release, error) {
	if version == 0 || version == f.now.Version {
		return f.now, nil
	}
	return nil, root.Errorf(root.NotFound, "app shop has no release v%d", version)
}

func (f *releases) Events(_ context.Context, _ auth.Actor, _ root.AppName, _ int, after string, _ bool, give func(root.ReleaseEvent) error) error {
	for i, e := range f.events {
		if e.ID <= after {
			continue
		}
		if i == 1 && f.breaks > 0 {
			f.breaks--
			return root.Errorf(root.Unavailable, "the control process ends")
		}
		if err := give(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *releases) Rollback(_ context.Context, _ auth.Actor, app root.AppName, version int, o control.Rollback) (*control.RolledBack, error) {
	f.back = o
	return &control.RolledBack{Release: &root.Release{App: app, Version: 3, Reason: "rollback", Repeats: 1}, To: 1, Why: "v1 is older", Warnings: []string{"v2 ran migrate"}}, nil
}

func (f *releases) Cancel(context.Context, auth.Actor, root.AppName, int) error {
	return root.Errorf(root.NotFound, "release v1 of shop is not being rolled out")
}

func (f *releases) Regions() []root.Region { return []root.Region{"loc"} }

// serve is the routes of releases behind a real server, and their client.
func serve(t *testing.T, f *releases) *client.Client {
	t.Helper()
	h := &handlers{Options{Releases: f, Log: slog.New(slog.DiscardHandler)}}
	mux := http.NewServeMux()
	for _, row := range h.releaseRoutes("/roost/v1") {
		if !auth.Known(row.Permission) {
			t.Errorf("%s %s: permission %q is not in the table", row.Method, row.Pattern, row.Permission)
		}
		mux.HandleFunc(row.Method+" "+row.Pattern, func(w http.ResponseWriter, r *http.Request) {
			sent := &began{ResponseWriter: w}
			if err := row.Handler(sent, r); err != nil && !sent.yes {
				route.WriteError(w, err)
			}
		})
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return client.New(machines.Options{BaseURL: s.URL, Token: "x"})
}

// began knows whether an answer has begun.
type began struct {
	http.ResponseWriter
	yes bool
}

func (b *began) WriteHeader(status int)         { b.yes = true; b.ResponseWriter.WriteHeader(status) }
func (b *began) Write(data []byte) (int, error) { b.yes = true; return b.ResponseWriter.Write(data) }
func (b *began) Unwrap() http.ResponseWriter    { return b.ResponseWriter }

const shopDefinition = `{
	"app": "shop", "primary_region": "loc", "env": {"A": "1"}, "processes": {"app": "serve", "worker": "work"},
	"http_service": {"internal_port": 8000, "processes": ["app"]}, "vm": [{"memory": "512mb", "processes": ["worker"]}],
	"deploy": {"strategy": "canary", "release_command": "manage migrate", "wait_timeout": "2m"},
	"serverless": [{"paths": ["/pdf/**"], "processes": ["worker"]}]
}`

func current() *releases {
	return &releases{now: &root.Release{ID: "R1", App: "shop", Version: 1, Image: root.Image{Registry: "r", Repository: "shop", Digest: "sha256:1"},
		Definition: []byte(shopDefinition), Progress: root.Progress{Status: root.ReleaseComplete}}}
}

// A definition becomes groups, and the request beats it.
func TestCreateRelease(t *testing.T) {
	f := current()
	c := serve(t, f)
	two := 2.0
	no := false
	r, err := c.CreateRelease(t.Context(), "shop", client.NewRelease{
		Definition: json.RawMessage(shopDefinition), Image: "r/shop:2", Strategy: "rolling", MaxUnavailable: &two, WaitTimeout: "30s", SmokeChecks: &no,
		Regions: []string{"loc"}, Machines: []string{"148e1234c56789"}, Description: "why",
	})
	if err != nil || r.Version != 2 || r.Status != "pending" || !slices.Equal(r.Groups, []string{"app", "worker"}) {
		t.Fatalf("got %+v, %v", r, err)
	}
	d := f.asked.Deploy
	want := root.Deploy{
		Strategy: "rolling", MaxUnavailable: 2, WaitTimeout: 30 * time.Second, ReleaseCommand: []string{"manage", "migrate"}, ReleaseTimeout: 5 * time.Minute, SeedCommand: []string{},
		MaxConcurrent: 8, Regions: []root.Region{"loc"}, OnlyMachines: []root.MachineID{"148e1234c56789"},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("deploy (-want +got):\n%s", diff)
	}
	app, worker := f.asked.Groups[0], f.asked.Groups[1]
	if app.Sized || !worker.Sized || worker.Config.Guest.Memory != 512*root.MiB || app.Region != "loc" {
		t.Errorf("sizes: got %v %v %v, region %q", app.Sized, worker.Sized, worker.Config.Guest, app.Region)
	}
	if !slices.Equal(app.Config.Init.Cmd, []string{"serve"}) || len(app.Config.Services) != 1 || app.Config.Services[0].InternalPort != 8000 || app.Config.Env["A"] != "1" {
		t.Errorf("app: got %+v", app.Config)
	}
	if len(f.asked.Routes) != 1 || f.asked.Routes[0].Group != "worker" || f.asked.Description != "why" {
		t.Errorf("got routes %v, description %q", f.asked.Routes, f.asked.Description)
	}
	// Without a definition the current release's is taken.
	if _, err := c.CreateRelease(t.Context(), "shop", client.NewRelease{Image: "r/shop:2"}); err != nil || len(f.asked.Groups) != 2 || f.asked.Deploy.Strategy != "canary" {
		t.Errorf("got %v, %+v", err, f.asked.Deploy)
	}
	for text, in := range map[string]client.NewRelease{
		"wait_timeout": {WaitTimeout: "soon"}, "region": {Regions: []string{"FRA!"}}, "machine ID": {Machines: []string{"x"}},
		"definition": {Definition: json.RawMessage(`{"http_service": 7}`)},
	} {
		_, err := c.CreateRelease(t.Context(), "shop", in)
		if e, ok := errors.AsType[*machines.Error](err); !ok || e.Status != http.StatusBadRequest || !strings.Contains(e.Message, text) {
			t.Errorf("%s: got %v, want 400", text, err)
		}
	}
}

func TestReadReleases(t *testing.T) {
	f := current()
	c := serve(t, f)
	list, err := c.Releases(t.Context(), "shop")
	if err != nil || len(list) != 2 || list[0].Current || !list[1].Current || list[0].Message != "no" || list[1].Definition != nil {
		t.Errorf("list: got %+v, %v", list, err)
	}
	for _, v := range []int{0, 1} {
		r, err := c.Release(t.Context(), "shop", v)
		if err != nil || r.Version != 1 || !r.Current || !r.Final() || !strings.Contains(string(r.Definition), "release_command") {
			t.Errorf("v%d: got %+v, %v", v, r, err)
		}
	}
	_, err = c.Release(t.Context(), "shop", 7)
	if e, ok := errors.AsType[*machines.Error](err); !ok || e.Status != http.StatusNotFound {
		t.Errorf("v7: got %v, want 404", err)
	}
	r, err := c.RollBack(t.Context(), "shop", 0, client.Rollback{CurrentSecrets: true, Description: "oh"})
	if err != nil || r.Version != 3 || len(r.Warnings) != 1 || !f.back.CurrentSecrets || f.back.Description != "oh" {
		t.Errorf("rollback: got %+v, %v, asked %+v", r, err, f.back)
	}
	err = c.CancelRelease(t.Context(), "shop", 1)
	if e, ok := errors.AsType[*machines.Error](err); !ok || e.Status != http.StatusNotFound {
		t.Errorf("cancel: got %v, want 404", err)
	}
}

// Who follows a release goes on where the platform broke off.
func TestFollowRelease(t *testing.T) {
	f := current()
	until := time.Now().Add(time.Hour)
	f.events = []root.ReleaseEvent{
		{ID: "E1", Step: root.StepReleaseCommand, Lines: []string{"one", "two"}},
		{ID: "E2", Step: root.StepUpdate, Machine: "148e1234c56789", Waiting: "its checks", Until: until},
		{ID: "E3", Step: root.StepEnd, Message: "release v1 is complete", End: true},
	}
	f.breaks = 2
	c := serve(t, f)
	var got []string
	end, err := c.FollowRelease(t.Context(), "shop", 1, "", func(e client.ReleaseEvent) error {
		switch {
		case e.Output != nil:
			got = append(got, "out "+*e.Output)
		case e.Waiting != nil:
			got = append(got, "wait "+e.Waiting.For)
			if e.Waiting.Left < 3000 || e.Waiting.Left > 3600 {
				t.Errorf("left: got %v s", e.Waiting.Left)
			}
		default:
			got = append(got, e.Message)
		}
		return nil
	})
	if err != nil || end.Status != "complete" || !end.Current {
		t.Errorf("end: got %+v, %v", end, err)
	}
	// A first break is nobody's concern, a second one without an event between is.
	want := []string{
		"out one", "out two", "the platform does not answer: the rollout goes on when it does; waiting",
		"the platform answers again", "wait its checks", "release v1 is complete",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events: got %q, want %q", got, want)
	}
	stop := errors.New("enough")
	if _, err := c.FollowRelease(t.Context(), "shop", 1, "", func(client.ReleaseEvent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the function's error", err)
	}
	all, err := c.ReleaseEvents(t.Context(), "shop", 1)
	if err != nil || len(all) != 4 {
		t.Errorf("all: got %d, %v", len(all), err)
	}
}

func TestPlanRelease(t *testing.T) {
	c := serve(t, current())
	p, err := c.PlanRelease(t.Context(), "shop", client.NewRelease{Definition: json.RawMessage(shopDefinition), Image: "r/shop:2"})
	if err != nil {
		t.Fatal(err)
	}
	if p.Release != 1 || string(p.Image.From) != `"r/shop@sha256:1"` || string(p.Image.To) != `"r/shop@sha256:2"` || len(p.Groups) != 2 {
		t.Fatalf("got %+v", p)
	}
	app, worker := p.Groups[0], p.Groups[1]
	if app.Change != "update" || worker.Change != "create" || app.Machines[0].ID != "148e1234c56789" || app.Machines[0].Why != "new config" {
		t.Errorf("groups: got %+v", p.Groups)
	}
	var got []string
	for _, d := range app.Config {
		got = append(got, d.Path+" "+string(d.From)+" "+string(d.To))
	}
	if want := []string{`env.A "old" "1"`, `env.FLY_PROCESS_GROUP  "app"`, `env.PRIMARY_REGION  "loc"`, "guest.memory_mb 1024 256"}; !slices.Equal(got, want) {
		t.Errorf("differences: got %q, want %q", got, want)
	}
}
