package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/machines"
)

// TestMachinesClient: our own typed client against the API.
func TestMachinesClient(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := machines.New(machines.Options{BaseURL: w.URL + "/", Token: w.token})
	if _, err := c.CreateApp(ctx, machines.CreateAppRequest{Name: "shop", OrgSlug: "personal"}); machines.StatusOf(err) != 422 {
		t.Errorf("taken app: got %v, want status 422", err)
	}
	app, err := c.App(ctx, "shop")
	if err != nil || app.Organization.Slug != "personal" {
		t.Fatalf("app: got %+v, %v", app, err)
	}
	if apps, err := c.Apps(ctx, "personal"); err != nil || len(apps) != 1 {
		t.Fatalf("apps: got %+v, %v", apps, err)
	}
	yes, port := true, 8080
	in := machines.CreateRequest{Name: "one", Config: machines.Config{
		Image: "a", Metadata: map[string]string{"role": "web"},
		Services: []machines.Service{{Protocol: "tcp", InternalPort: port, Autostop: machines.AutostopSuspend, Autostart: &yes, Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}}}},
	}}
	m, err := c.Create(ctx, "shop", in)
	if err != nil {
		t.Fatal(err)
	}
	if m.State != machines.StateStarted || m.Config.Services[0].Autostop != machines.AutostopSuspend || m.Config.Guest.MemoryMB != 256 {
		t.Errorf("create: got %+v", m)
	}
	if _, err := c.Create(ctx, "shop", in); machines.StatusOf(err) != http.StatusConflict {
		t.Errorf("taken name: got %v, want status 409", err)
	}
	if found, err := c.Find(ctx, "shop", "one"); err != nil || found == nil || found.ID != m.ID {
		t.Errorf("find: got %+v, %v", found, err)
	}
	if found, err := c.Find(ctx, "shop", "none"); err != nil || found != nil {
		t.Errorf("find nothing: got %+v, %v", found, err)
	}
	if list, err := c.List(ctx, "shop", machines.ListOptions{States: []machines.State{"started"}, Metadata: map[string]string{"role": "web"}}); err != nil || len(list) != 1 {
		t.Errorf("list: got %+v, %v", list, err)
	}
	if r, err := c.Wait(ctx, "shop", m.ID, machines.WaitOptions{Timeout: time.Second}); err != nil || r.State != machines.StateStarted {
		t.Errorf("wait: got %+v, %v", r, err)
	}
	if r, err := c.Exec(ctx, "shop", m.ID, machines.ExecRequest{Command: []string{"ls"}}); err != nil || r.ExitCode != 3 {
		t.Errorf("exec: got %+v, %v", r, err)
	}
	lease, err := c.AcquireLease(ctx, "shop", m.ID, 10*time.Second, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Suspend(ctx, "shop", m.ID); machines.StatusOf(err) != http.StatusConflict {
		t.Errorf("suspend without lease: got %v, want status 409", err)
	}
	holder := c.Holding(lease.Nonce)
	for name, err := range map[string]error{
		"suspend": holder.Suspend(ctx, "shop", m.ID), "set metadata": c.SetMetadata(ctx, "shop", m.ID, "a/b", "c"), "release": holder.ReleaseLease(ctx, "shop", m.ID),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if md, err := c.Metadata(ctx, "shop", m.ID); err != nil || md["a/b"] != "c" {
		t.Errorf("metadata: got %v, %v", md, err)
	}
	if r, err := c.Start(ctx, "shop", m.ID); err != nil || r.PreviousState != machines.StateSuspended {
		t.Errorf("start: got %+v, %v", r, err)
	}
	if _, err := c.Update(ctx, "shop", m.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: machines.Config{Image: "b"}}, CurrentVersion: "old"}); machines.StatusOf(err) != http.StatusConflict {
		t.Errorf("update of an old version: got %v, want status 409", err)
	}
	if err := c.Destroy(ctx, "shop", m.ID, true); err != nil {
		t.Errorf("destroy: %v", err)
	}
	_, err = c.Get(ctx, "shop", m.ID)
	if e, ok := errors.AsType[*machines.Error](err); !ok || e.Status != 404 || e.Message != "machine not found" || !strings.HasSuffix(e.RequestID, "-loc") {
		t.Errorf("get after destroy: got %#v", err)
	}
	if nearest, regions, err := c.Regions(ctx); err != nil || nearest != "loc" || len(regions) != 2 {
		t.Errorf("regions: got %s %v, %v", nearest, regions, err)
	}
}

func newClient(w *world) *client.Client {
	return client.New(machines.Options{BaseURL: w.URL, Token: w.token})
}

func TestPeople(t *testing.T) {
	w := newWorld(t)
	ctx, c := t.Context(), newClient(w)
	if orgs, err := c.Orgs(ctx); err != nil || len(orgs) != 1 || orgs[0].Slug != "personal" {
		t.Errorf("orgs: got %+v, %v", orgs, err)
	}
	token, err := c.CreateToken(ctx, client.CreateToken{Name: "ci", Scope: "deploy", App: "shop", Expiry: "1h"})
	if err != nil || token.Secret != "roost_d_secret" || token.Scope != "deploy" || token.ExpiresAt == nil {
		t.Errorf("create token: got %+v, %v", token, err)
	}
	if _, err := c.CreateToken(ctx, client.CreateToken{Expiry: "soon"}); machines.StatusOf(err) != 400 {
		t.Errorf("create token: got %v, want status 400", err)
	}
	if tokens, err := c.Tokens(ctx, ""); err != nil || len(tokens) != 1 || tokens[0].ExpiresAt != nil {
		t.Errorf("tokens: got %+v, %v", tokens, err)
	}
	if err := c.RevokeToken(ctx, "01TOKEN"); err != nil {
		t.Errorf("revoke: %v", err)
	}
	if hosts, err := c.Hosts(ctx); err != nil || len(hosts) != 1 || hosts[0].Local.Swap != "zram" || hosts[0].Machines["started"] != 2 {
		t.Errorf("hosts: got %+v, %v", hosts, err)
	}
	if in, err := c.Inspect(ctx, "shop", "148e1234c56789"); err != nil || len(in.Processes) != 1 || in.Usage.Swap != 6 {
		t.Errorf("inspect: got %+v, %v", in, err)
	}
}

func TestImages(t *testing.T) {
	w := newWorld(t)
	ctx, c := t.Context(), newClient(w)
	want := client.Image{Ref: "docker.io/library/debian:bookworm-slim@sha256:0", Digest: "sha256:0"}
	var seen []client.Progress
	image, err := c.PullImage(ctx, "debian", client.RegistryLogin{}, func(p client.Progress) { seen = append(seen, p) })
	if err != nil || image != want || len(seen) != 2 || seen[0].Total != 2 {
		t.Errorf("pull: got %+v, %v after %+v", image, err, seen)
	}
	if _, err := c.PullImage(ctx, "none", client.RegistryLogin{}, nil); machines.StatusOf(err) != 404 {
		t.Errorf("pull of nothing: got %v, want status 404", err)
	}
	if _, err := c.PullImage(ctx, "private", client.RegistryLogin{}, nil); err == nil {
		t.Error("pull of a private image without credentials: got no error")
	}
	if _, err := c.PullImage(ctx, "private", client.RegistryLogin{User: "me", Password: "secret"}, nil); err != nil {
		t.Errorf("pull of a private image: %v", err)
	}
	_, err = c.PullImage(ctx, "breaks", client.RegistryLogin{}, nil)
	if machines.StatusOf(err) != 503 || !strings.Contains(err.Error(), "the registry went away") {
		t.Errorf("pull that breaks: got %v, want status 503 inside the stream", err)
	}
	if images, err := c.LoadImage(ctx, strings.NewReader("archive"), "as"); err != nil || len(images) != 1 || images[0].Ref != "as/7@sha256:1" {
		t.Errorf("load: got %+v, %v", images, err)
	}
	if images, err := c.Images(ctx); err != nil || len(images) != 1 || !images[0].InUse || images[0].Size != 7 {
		t.Errorf("images: got %+v, %v", images, err)
	}
	if err := c.RemoveImage(ctx, "debian"); machines.StatusOf(err) != 412 {
		t.Errorf("remove: got %v, want status 412", err)
	}
}

func TestBuild(t *testing.T) {
	w := newWorld(t)
	ctx, c := t.Context(), newClient(w)
	dir := t.TempDir()
	big := bytes.Repeat([]byte("big"), 1<<20) // does not fit into any buffer between
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "big"), big, 0o644), os.WriteFile(filepath.Join(dir, ".dockerignore"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "Other.Dockerfile")
	if err := os.WriteFile(file, []byte("FROM scratch"), 0o644); err != nil {
		t.Fatal(err)
	}
	var seen []string
	var sent int64
	log := func(p client.Progress) {
		switch {
		case p.Upload != nil:
			sent = p.Upload.Sent
		case p.Log != nil:
			seen = append(seen, *p.Log)
		default:
			seen = append(seen, string(p.Status))
		}
	}
	r := client.BuildRequest{App: "shop", Dir: dir, Dockerfile: file, Args: map[string]string{"a": "b"}, Secrets: map[string]string{"s": "t"}}
	image, err := c.Build(ctx, r, log)
	want := []string{"dockerfile Other.Dockerfile b map[s:t] true", `{"vertexes":[]}`}
	if diff := cmp.Diff(want, seen); err != nil || image.Digest != "sha256:0" || sent != 3<<20 || diff != "" {
		t.Errorf("build: got %+v, %v, %d bytes sent, log (-want +got):\n%s", image, err, sent, diff)
	}
	r.Target = "bad"
	if _, err := c.Build(ctx, r, log); err == nil || !strings.Contains(err.Error(), "there is no such stage") {
		t.Errorf("build that fails: got %v", err)
	}
	r.App = "none"
	if _, err := c.Build(ctx, r, log); machines.StatusOf(err) != 404 {
		t.Errorf("build of no app: got %v, want status 404", err)
	}
	r.Dir, r.Dockerfile = t.TempDir(), ""
	if _, err := c.Build(ctx, r, log); err == nil || !strings.Contains(err.Error(), "there is no Dockerfile in") {
		t.Errorf("empty directory: got %v", err)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	var lines []string
	collect := func(l client.LogLine) error {
		lines = append(lines, l.Message)
		return nil
	}
	if err := c.Logs(t.Context(), "shop", client.LogOptions{Lines: 3, Machine: "148e1234c56789"}, collect); err != nil || len(lines) != 3 {
		t.Errorf("logs: got %q, %v", lines, err)
	}
	if err := c.Logs(t.Context(), "none", client.LogOptions{}, collect); machines.StatusOf(err) != 404 {
		t.Errorf("logs of no app: got %v, want status 404", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	err := c.Logs(ctx, "shop", client.LogOptions{Follow: true}, func(client.LogLine) error {
		cancel(enough) // the line arrived although the stream goes on
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("follow: got %v, want the cause of the end", err)
	}
}

func TestExecStream(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	// A command that upper-cases its input and complains on the side.
	w.execute = func(_ context.Context, e control.ExecStream) (control.ExecResult, error) {
		in, err := io.ReadAll(e.Files[0])
		if err != nil {
			return control.ExecResult{}, err
		}
		_, _ = e.Files[2].WriteString("complaint")
		_, _ = e.Files[1].WriteString(strings.ToUpper(string(in)))
		return control.ExecResult{Code: 7}, nil
	}
	var out, complaint bytes.Buffer
	end, err := c.ExecStream(t.Context(), "shop", "148e1234c56789", client.ExecStart{Args: []string{"up"}},
		client.ExecIO{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &complaint})
	if err != nil || end.Code != 7 || out.String() != "HELLO" || complaint.String() != "complaint" {
		t.Errorf("exec: got %+v, %v, %q, %q", end, err, out.String(), complaint.String())
	}
	if got, want := w.lastCall(), `exec stream 148e1234c56789 ["up"] tty=false`; got != want {
		t.Errorf("control was asked: %s, want %s", got, want)
	}
}

func TestExecStreamTerminal(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	w.execute = func(_ context.Context, e control.ExecStream) (control.ExecResult, error) {
		line := make([]byte, 100)
		n, err := e.Files[0].Read(line) // a terminal: a line at a time
		if err != nil {
			return control.ExecResult{}, err
		}
		_, err = e.Files[0].WriteString("got " + string(line[:n]))
		return control.ExecResult{}, err
	}
	var out bytes.Buffer
	_, err := c.ExecStream(t.Context(), "shop", "148e1234c56789", client.ExecStart{Args: []string{"sh"}, TTY: true, Size: &client.Size{Rows: 24, Cols: 80}},
		client.ExecIO{Stdin: strings.NewReader("exit\n"), Stdout: &out})
	if err != nil || !strings.Contains(out.String(), "got exit") {
		t.Errorf("exec: got %v, %q", err, out.String())
	}
}

// TestExecStreamClientGone: the command is told to end.
func TestExecStreamClientGone(t *testing.T) {
	w := newWorld(t)
	c := newClient(w)
	ended := make(chan struct{})
	running := make(chan struct{})
	w.execute = func(ctx context.Context, _ control.ExecStream) (control.ExecResult, error) {
		close(running)
		<-ctx.Done()
		close(ended)
		return control.ExecResult{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-running
		cancel()
	}()
	r, stdin, err := os.Pipe() // input that never comes
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer stdin.Close()
	if _, err := c.ExecStream(ctx, "shop", "148e1234c56789", client.ExecStart{Args: []string{"sleep"}}, client.ExecIO{Stdin: r}); !errors.Is(err, context.Canceled) {
		t.Errorf("exec: got %v, want canceled", err)
	}
	patience.Receive(t, "the command to end with its client", ended)
}

func TestExecStreamRefused(t *testing.T) {
	w := newWorld(t)
	if a := w.do(t, "GET", "/roost/v1/apps/shop/machines/148e1234c56789/exec", ""); a.status != http.StatusBadRequest || !strings.Contains(a.body, "Upgrade") {
		t.Errorf("without upgrade: got %d %s", a.status, a.body)
	}
	c := client.New(machines.Options{BaseURL: w.URL, Token: w.reader})
	if _, err := c.ExecStream(t.Context(), "shop", "148e1234c56789", client.ExecStart{Args: []string{"sh"}}, client.ExecIO{}); machines.StatusOf(err) != http.StatusForbidden {
		t.Errorf("without permission: got %v, want status 403", err)
	}
	if _, err := newClient(w).ExecStream(t.Context(), "shop", "148e1234c56789", client.ExecStart{}, client.ExecIO{}); machines.StatusOf(err) != http.StatusBadRequest {
		t.Errorf("nothing to run: got %v, want status 400", err)
	}
}
