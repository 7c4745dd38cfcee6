package real

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/roost-run/roost/machines"
)

// deploy brings an app to a fly.toml.
func deploy(t *testing.T, app, config string) {
	t.Helper()
	dir := t.TempDir()
	want(t, os.WriteFile(filepath.Join(dir, "fly.toml"), []byte("app = \""+app+"\"\n"+config), 0o644))
	if r, err := in.CLI(t.Context(), "deploy", "--yes", dir); err != nil {
		t.Fatalf("deploy: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
}

// members are the machines of an app by process group; it wants one of each.
func members(t *testing.T, app string, groups ...string) []string {
	t.Helper()
	list, err := admin().List(t.Context(), app, machines.ListOptions{})
	want(t, err)
	var ids []string
	for _, group := range groups {
		id := ""
		for _, m := range list {
			if m.Config != nil && m.Config.Metadata["fly_process_group"] == group {
				if id != "" {
					t.Fatalf("group %s has more than one machine", group)
				}
				id = m.ID
			}
		}
		if id == "" {
			t.Fatalf("group %s has no machine: %+v", group, list)
		}
		ids = append(ids, id)
	}
	return ids
}

func asleep(t *testing.T, app string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		want(t, admin().Suspend(t.Context(), app, id))
		await(t, app, id, machines.StateSuspended)
	}
}

const twoGroups = `
[build]
  image = "` + probe + `"
[processes]
  app = ""
  pdf = ""
[http_service]
  internal_port = 8080
  processes = ["app"]
`

// TestServerlessRoutes: [[serverless]] of a fly.toml sends requests to a group
// that is woken for them and for nothing else; without it the app is as before.
func TestServerlessRoutes(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	deploy(t, app, twoGroups+`
[[serverless]]
  paths = ["/pdf/**", "/purchases/*/receipt"]
  methods = ["GET"]
  processes = ["pdf"]
`)
	ids := members(t, app, "app", "pdf")
	web, pdf := ids[0], ids[1]
	asleep(t, app, web, pdf)
	webStarts, pdfStarts := starts(t, app, web), starts(t, app, pdf)

	wantMachine(t, get(t, app, "/"), web)
	wantMachine(t, request(t, http.MethodPost, app, "/pdf/1", nil), web)
	wantMachine(t, get(t, app, "/pdfs"), web)
	if n := starts(t, app, pdf); n != pdfStarts || state(t, app, pdf) != machines.StateSuspended {
		t.Errorf("plain requests woke the group's machine: %v", history(t, app, pdf))
	}
	asleep(t, app, web)
	for _, path := range []string{"/pdf/1", "/pdf", "/purchases/7/receipt/"} {
		wantMachine(t, get(t, app, path), pdf)
	}
	if n := starts(t, app, web); n != webStarts+1 || state(t, app, web) != machines.StateSuspended {
		t.Errorf("routed requests woke the ordinary machine: %v", history(t, app, web))
	}
	wantMachine(t, get(t, app, "/", "Fly-Force-Instance-Id", pdf), pdf)
	wantMachine(t, get(t, app, "/pdf/1", "Fly-Force-Instance-Id", web), web)

	// The next release has no routes, and a web service in both groups.
	deploy(t, app, twoGroups[:len(twoGroups)-len("  processes = [\"app\"]\n")]+"  processes = [\"app\", \"pdf\"]\n")
	want(t, admin().Cordon(t.Context(), app, web, true))
	eventually(t, func() string {
		if got := get(t, app, "/").echo(t).Machine; got != pdf {
			return "an ordinary request is still answered by " + got
		}
		return ""
	})
}
