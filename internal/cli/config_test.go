package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roost-run/roost/internal/client"
)

const typing = "app = \"shop\"\nkil_signal = \"SIGTERM\"\n[http_service]\ninternal_port = 70000\n"

func TestConfigValidate(t *testing.T) {
	dir := project(t, typing)
	file := filepath.Join(dir, "fly.toml")
	s := place{}.run(t, "config", "validate", dir)
	s.want(t, exitFailed, "has 2 errors")
	want := file + ":2:1: error: unknown key \"kil_signal\" at the top of the file: nothing reads it (did you mean \"kill_signal\"?)\n" +
		file + ":4:1: error: port: 70000 is out of range (1 to 65535)\n"
	if s.out != want {
		t.Errorf("got:\n%swant:\n%s", s.out, want)
	}
	if s := (place{}).run(t, "config", "validate", "--strict=false", file); s.code != exitFailed || !strings.Contains(s.out, "2:1: warning: unknown key") || !strings.Contains(s.err, "has 1 error") {
		t.Errorf("not strict: got %+v", s)
	}
	s = place{}.run(t, "config", "validate", "--json", "-c", file)
	var doc struct {
		App      string
		Valid    bool
		Problems []problemDoc
	}
	if err := json.Unmarshal([]byte(s.out), &doc); err != nil || s.code != exitFailed || doc.Valid || doc.App != "shop" || len(doc.Problems) != 2 ||
		doc.Problems[1] != (problemDoc{4, 1, "http_service.internal_port", "error", "port: 70000 is out of range (1 to 65535)", ""}) {
		t.Errorf("JSON: got %d, %v: %s", s.code, err, s.out)
	}
	place{}.run(t, "config", "validate", project(t, shopFile)).want(t, exitDone, "is valid")
	place{}.run(t, "config", "validate", t.TempDir()).want(t, exitFailed, "there is no fly.toml", "roost launch")
	if s := (place{}).run(t, "config", "validate", project(t, "app = \n")); s.code != exitFailed || !strings.Contains(s.out, "fly.toml:1:") {
		t.Errorf("a file that is no TOML: got %+v", s)
	}
}

// TestAppOfTheFolder: commands find their app where its fly.toml is.
func TestAppOfTheFolder(t *testing.T) {
	a := platform(t)
	t.Chdir(project(t, shopFile))
	if s := a.run(t, "machine", "list"); s.code != exitDone || !strings.Contains(s.out, id) {
		t.Errorf("got %+v", s)
	}
	t.Setenv("ROOST_APP", "other")
	a.fail("GET /v1/apps/other/machines", 404, "app not found")
	a.run(t, "machine", "list").want(t, exitFailed, "app not found")
}

// serving is a platform whose app has a release.
func serving(t *testing.T) *api {
	t.Helper()
	a := newAPI(t)
	definition := `{"app":"shop","primary_region":"loc","env":{"A":"1","KEY":"plain"},"http_service":{"internal_port":8080,"checks":[{"path":"/ht/","interval":"10s"}]}}`
	a.answer("GET /roost/v1/apps/shop/releases/0", 200, client.Release{App: "shop", Version: 3, Status: "complete", Definition: json.RawMessage(definition)})
	a.answer("GET /roost/v1/apps/shop/secrets", 200, client.Secrets{Version: 1, Secrets: []client.Secret{{Name: "KEY", Digest: "0123456789abcdef"}}})
	return a
}

func TestConfigSave(t *testing.T) {
	a := serving(t)
	dir := t.TempDir()
	t.Chdir(dir)
	a.run(t, "config", "save", "--app", "shop").want(t, exitDone, "The config of shop is in fly.toml")
	first, err := os.ReadFile("fly.toml")
	if err != nil || !strings.Contains(string(first), "internal_port = 8080") {
		t.Fatalf("got %s, %v", first, err)
	}
	place{}.run(t, "config", "validate").want(t, exitDone, "fly.toml is valid")
	a.run(t, "config", "save").want(t, exitDone) // the same again, of the app that the file names
	if err := os.WriteFile("fly.toml", []byte("app = \"shop\"\n# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a.run(t, "config", "save").want(t, exitUsage, "fly.toml is there already", "--yes")
	place{terminal: true, input: "n\n"}.run(t, "--url", a.URL, "config", "save").want(t, exitFailed, "Replace fly.toml?", "nothing was written")
	if now, err := os.ReadFile("fly.toml"); err != nil || !strings.Contains(string(now), "# mine") {
		t.Errorf("the file was written over: %s, %v", now, err)
	}
	a.run(t, "config", "save", "--yes").want(t, exitDone)
	if now, err := os.ReadFile("fly.toml"); err != nil || string(now) != string(first) {
		t.Errorf("got %s, %v", now, err)
	}
	a.run(t, "config", "save", "--config", "fly.json", "--app", "shop").want(t, exitDone)
	place{}.run(t, "config", "validate", "fly.json").want(t, exitDone, "fly.json is valid")
}

func TestConfigShowAndEnv(t *testing.T) {
	a := serving(t)
	for name, args := range map[string][]string{
		"config-show":      {"config", "show", "--app", "shop"},
		"config-show-toml": {"config", "show", "--app", "shop", "--toml"},
		"config-env":       {"config", "env", "--app", "shop"},
		"config-env-json":  {"config", "env", "--app", "shop", "--json"},
	} {
		s := a.run(t, args...)
		s.want(t, exitDone)
		golden(t, name, s.out)
	}
	s := place{terminal: true}.run(t, "--url", a.URL, "config", "env", "--app", "shop")
	golden(t, "config-env.terminal", s.out)
}

func TestConfigPlan(t *testing.T) {
	a := newAPI(t)
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	a.answer("POST /roost/v1/apps/shop/releases/plan", 200, client.ReleasePlan{
		Release: 3, Image: client.Difference{From: raw(`"shop:1"`), To: raw(`"shop:2"`)}, Strategy: "rolling", Command: []string{"migrate", "up"},
		Groups: []client.PlanGroup{
			{Name: "web", Change: "update", Config: []client.Difference{{Path: "env.A", From: raw(`"1"`), To: raw(`"2"`)}, {Path: "guest.memory_mb", To: raw(`512`)}, {Path: "env.OLD", From: raw(`"x"`)}},
				Machines: []client.PlanMachine{{ID: id, Region: "loc", State: "started", Action: "update"}, {Region: "loc", Action: "create", Why: "the group has none"}}},
			{Name: "old", Change: "destroy", Machines: []client.PlanMachine{{ID: "2870000000000a", Action: "destroy"}}},
		},
		Foreign: []client.PlanMachine{{ID: "3870000000000a", Name: "serverless-12", State: "suspended"}}, Warnings: []string{"config.metrics is kept"},
	})
	file := filepath.Join(project(t, shopFile), "fly.toml")
	s := a.run(t, "config", "plan", "-c", file)
	s.want(t, exitDone, "Warning: config.metrics is kept")
	golden(t, "config-plan", s.out)
	if s := a.run(t, "config", "plan", "-c", file, "--json"); s.code != exitDone || !json.Valid([]byte(s.out)) {
		t.Errorf("JSON: got %+v", s)
	}
}

// TestStatusOfFolder: like every command, status finds its app in the folder.
func TestStatusOfFolder(t *testing.T) {
	a := platform(t)
	status := func(want string, args ...string) {
		t.Helper()
		s := place{}.run(t, append([]string{"--url", a.URL, "status"}, args...)...)
		s.want(t, 0)
		if !strings.Contains(s.out, want) {
			t.Errorf("status %v: got %q, want %s in it", args, s.out, want)
		}
	}
	t.Chdir(project(t, shopFile))
	status(id)
	status("1f978f01", "--hosts")
	t.Chdir(t.TempDir())
	status("1f978f01")
}
