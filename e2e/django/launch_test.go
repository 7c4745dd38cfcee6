package django

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// TestLaunch: from source that knows nothing of Roost to a served app, by one
// command, for a Django project as startproject makes it, a Flask app, a Node
// app, a Go module and a static site, with the Dockerfiles as they are written.
// What is a file is served while every machine sleeps.
func TestLaunch(t *testing.T) {
	t.Parallel() // the shop sleeps a lot
	in, source := tests.Own(t, Settings()...), tests.Source
	if _, err := in.LoadBase(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	if err := in.LoadGo(t.Context(), source, "golang:1.26"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		app, project        string
		page, status, says  string // what the machine answers
		file, kind, content string // what is served without it
	}{
		{"bare", "django-bare", "/admin/login/", "200 OK", "Django administration", "/static/admin/css/base.css", "text/css; charset=utf-8", "DJANGO Admin styles"},
		{"tiny", "flask", "/nothing", "404 Not Found", "The requested URL was not found", "", "", ""},
		{"chat", "node-bare", "/", "200 OK", "hi", "", "", ""},
		{"clock", "go-std", "/?name=Ada", "200 OK", "hello Ada", "", "", ""},
		{"home", "site", "/nothing", "404 Not Found", "404", "/", "text/html; charset=utf-8", "<h1>hi</h1>"},
	} {
		t.Run(c.project, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), c.app)
			archive, err := txtar.ParseFile(filepath.Join(source, "internal", "launch", "testdata", c.project+".txtar"))
			if err != nil {
				t.Fatal(err)
			}
			if err := txtar.Write(archive, dir); err != nil {
				t.Fatal(err)
			}
			r, err := in.CLI(t.Context(), "launch", "--yes", dir)
			if err != nil {
				t.Fatalf("%v\n%s%s", err, r.Stdout, r.Stderr)
			}
			page := fetch(t, in, c.app, c.page)
			if !strings.Contains(page, c.status) || !strings.Contains(page, c.says) {
				t.Errorf("%s: got %.500s, want %s with %q", c.page, page, c.status, c.says)
			}
			if c.file == "" {
				return
			}
			api := in.Client(in.Token)
			list, err := api.List(t.Context(), c.app, machines.ListOptions{})
			if err != nil || len(list) != 1 {
				t.Fatalf("machines: got %v, %v, want one", list, err)
			}
			id := list[0].ID
			if err := api.Suspend(t.Context(), c.app, id); err != nil {
				t.Fatal(err)
			}
			if _, err := api.Wait(t.Context(), c.app, id, machines.WaitOptions{State: machines.StateSuspended, Timeout: patience}); err != nil {
				t.Fatal(err)
			}
			file := fetch(t, in, c.app, c.file)
			if !strings.Contains(file, "200 OK "+c.kind) || !strings.Contains(file, c.content) {
				t.Errorf("%s: got %.500s, want %s with %q", c.file, file, c.kind, c.content)
			}
			m, err := api.Get(t.Context(), c.app, id)
			if err != nil || m.State != machines.StateSuspended {
				t.Errorf("a file woke the machine: it is %v, %v", m, err)
			}
		})
	}
}

// fetch returns status, content type and body.
func fetch(t *testing.T, in *instance.Instance, app, path string) string {
	t.Helper()
	hc := &http.Client{Timeout: instance.RequestTimeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: in.DialEdge}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+app+".localhost"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %s %s", resp.Status, resp.Header.Get("Content-Type"), body)
}
