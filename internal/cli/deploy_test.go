package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/client"
	"github.com/roost-run/roost/machines"
)

const shopFile = `app = "shop"
[build]
  image = "registry.localhost/shop:v3"
[env]
  A = "1"
[deploy]
  release_command = "migrate"
[http_service]
  internal_port = 8080
`

// project is a folder with a fly.toml.
func project(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fly.toml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// releaseEvents is a rollout as the platform tells it.
func releaseEvents(status, message string) []client.ReleaseEvent {
	line, cut := "Applying 0001_initial", "\x1b[31mred"
	end := client.Release{
		ID: "01END", App: "shop", Version: 4, Status: status, Message: message, Image: "registry.localhost/shop:v3@sha256:1234",
		Strategy: "rolling", Reason: "deploy", CreatedAt: now, StartedAt: now, FinishedAt: now.Add(2300 * time.Millisecond),
	}
	return []client.ReleaseEvent{
		{ID: "01", At: now, Step: client.StepReleaseCommand, Message: "release command: migrate"},
		{ID: "02", At: now, Step: client.StepReleaseCommand, Output: &line},
		{ID: "03", At: now, Step: client.StepReleaseCommand, Output: &cut},
		{ID: "04", At: now, Step: client.StepUpdate, Group: "app", Machine: id, Waiting: &client.Waiting{For: "its checks to pass", Left: 272}},
		{ID: "05", At: now, Step: client.StepUpdate, Group: "app", Machine: id, Waiting: &client.Waiting{For: "its checks to pass", Left: 271}},
		{ID: "06", At: now, Step: client.StepUpdate, Group: "app", Machine: id, Message: "updated"},
		{ID: "07", At: now, Step: client.StepNotice, Warning: true, Message: "2 machines that the app made run an older image"},
		{ID: "08", At: now, Step: client.StepVerify, Message: "http://shop.localhost:8080/ht/ answers 200", URL: "http://shop.localhost:8080/ht/"},
		{ID: "09", At: now, Step: client.StepEnd, Message: "release v4 is " + status, Release: &end},
	}
}

// releases is a platform with an app that may be deployed.
func releases(t *testing.T, events []client.ReleaseEvent) *api {
	t.Helper()
	a := newAPI(t)
	a.answer("GET /v1/apps/shop", 200, machines.App{Name: "shop"})
	a.answer("POST /roost/v1/apps/shop/releases", 200, client.Release{App: "shop", Version: 4, Status: "pending", Warnings: []string{"config.metrics is kept"}})
	a.answer("GET /roost/v1/apps/shop/releases/4", 200, client.Release{App: "shop", Version: 4, Status: "running"})
	a.answer("POST /roost/v1/apps/shop/releases/2/rollback", 200, client.Release{App: "shop", Version: 4, Status: "pending", BackTo: 2, Warnings: []string{"v3 ran \"migrate\""}})
	a.mux.HandleFunc("GET /roost/v1/apps/shop/releases/4/events", func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		for _, e := range events {
			if e.ID > r.FormValue("after") {
				_ = enc.Encode(e)
			}
		}
	})
	return a
}

func (a *api) body(t *testing.T, line string, into any) {
	t.Helper()
	for _, c := range a.asked() {
		if c.line == line {
			if err := json.Unmarshal([]byte(c.body), into); err != nil {
				t.Fatalf("%s: %v in %s", line, err, c.body)
			}
			return
		}
	}
	t.Fatalf("nobody asked %s: %v", line, a.asked())
}

func TestDeployInAPipe(t *testing.T) {
	a := releases(t, releaseEvents("complete", ""))
	s := a.run(t, "deploy", project(t, shopFile))
	s.want(t, exitDone)
	want := `Image registry.localhost/shop:v3
Release v4 of shop
Warning: config.metrics is kept
release command: migrate
  | Applying 0001_initial
  | [31mred
` + id + ` (app): waiting for its checks to pass (4m32s left)
` + id + ` (app): updated
Warning: 2 machines that the app made run an older image
http://shop.localhost:8080/ht/ answers 200
Release v4 of shop is complete after 2.3s
`
	if diff := cmp.Diff(want, s.err); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if want := "http://shop.localhost:8080/\n"; s.out != want {
		t.Errorf("answer: got %q, want %q", s.out, want)
	}
	var sent client.NewRelease
	a.body(t, "POST /roost/v1/apps/shop/releases", &sent)
	if !strings.Contains(string(sent.Definition), `"release_command":"migrate"`) || sent.Image != "registry.localhost/shop:v3" || sent.Strategy != "" || sent.HA != nil || sent.MaxUnavailable != nil || sent.SmokeChecks != nil {
		t.Errorf("asked for: %+v", sent)
	}
}

// TestDeployOnATerminal: what is waited for stands below the lines that stay
// and goes when it has happened.
func TestDeployOnATerminal(t *testing.T) {
	a := releases(t, releaseEvents("complete", ""))
	s := place{terminal: true}.run(t, "--url", a.URL, "deploy", project(t, shopFile))
	s.want(t, exitDone, "… "+id+" (app): waiting for its checks to pass (4m32s left)\n", "\x1b[1A\r\x1b[J"+id+" (app): updated\n", "is complete after 2.3s")
	if screen := drawn(s.err); strings.Contains(screen, "waiting") || !strings.Contains(screen, "| Applying 0001_initial\n") || !strings.Contains(screen, "(app): updated\nWarning: 2 machines") {
		t.Errorf("the screen at the end:\n%s", screen)
	}
	if s.out != "http://shop.localhost:8080/\n" {
		t.Errorf("answer: got %q", s.out)
	}
}

// drawn plays what a terminal does with the only sequence that is used.
func drawn(text string) string {
	const up = "\x1b[1A\r\x1b[J"
	for {
		i := strings.Index(text, up)
		if i < 0 {
			return text
		}
		kept := strings.TrimSuffix(text[:i], "\n")
		text = kept[:strings.LastIndexByte(kept, '\n')+1] + text[i+len(up):]
	}
}

func TestDeployJSON(t *testing.T) {
	a := releases(t, releaseEvents("complete", ""))
	s := a.run(t, "deploy", project(t, shopFile), "--json")
	s.want(t, exitDone)
	var got struct {
		Version     int
		Status, URL string
	}
	dec := json.NewDecoder(strings.NewReader(s.out))
	if err := dec.Decode(&got); err != nil || dec.Decode(&got) != io.EOF {
		t.Fatalf("standard output is not one document: %q", s.out)
	}
	if got.Version != 4 || got.Status != "complete" || got.URL != "http://shop.localhost:8080/" {
		t.Errorf("got %+v", got)
	}
}

func TestDeployThatFails(t *testing.T) {
	events := releaseEvents("failed", "machine "+id+" did not pass its checks within 5m: GET /ht/ answered 400: does ALLOWED_HOSTS allow shop.localhost? v3 serves on")
	events = slices.DeleteFunc(events, func(e client.ReleaseEvent) bool { return e.Step == client.StepVerify })
	why := events[len(events)-1].Release.Message
	events = slices.Insert(events, len(events)-1,
		client.ReleaseEvent{ID: "07a", At: now, Step: client.StepUpdate, Failed: true, Message: "the canary did not start"},
		client.ReleaseEvent{ID: "07b", At: now, Step: client.StepUpdate, Failed: true, Message: strings.TrimSuffix(why, "? v3 serves on") + "\nlast lines"})
	a := releases(t, events)
	s := a.run(t, "deploy", project(t, shopFile))
	s.want(t, exitFailed, "Error: release v4 of shop failed: machine "+id+" did not pass its checks", "ALLOWED_HOSTS", "roost releases show v4 --app shop", "roost logs --app shop")
	if s.out != "" {
		t.Errorf("a failed deploy names an address: %q", s.out)
	}
	if !strings.Contains(s.err, "FAILED: the canary did not start\n") {
		t.Errorf("a failure that the end does not name is not shown:\n%s", s.err)
	}
	if n := strings.Count(s.err, "ALLOWED_HOSTS"); n != 1 {
		t.Errorf("the reason is told %d times:\n%s", n, s.err)
	}
}

func TestDeployFlags(t *testing.T) {
	a := releases(t, releaseEvents("complete", ""))
	dir := project(t, shopFile)
	a.run(t, "deploy", dir, "--image", "registry.localhost/shop:v9", "-e", "B=2=3", "--env", "A=9", "--primary-region", "fra", "--strategy", "bluegreen",
		"--max-unavailable", "2", "--wait-timeout", "90", "--release-command-timeout", "none", "--ha", "--smoke-checks=false", "--update-only", "--skip-release-command",
		"--regions", "fra,loc", "--process-groups", "app", "--only-machines", id, "--description", "why", "--file-literal", "/etc/motd=hello", "--file-secret", "/key=KEY",
		"--remote-only", "--now", "--yes").want(t, exitDone)
	var sent client.NewRelease
	a.body(t, "POST /roost/v1/apps/shop/releases", &sent)
	definition := string(sent.Definition)
	sent.Definition = nil
	two, yes, no := 2.0, true, false
	want := client.NewRelease{
		Image: "registry.localhost/shop:v9", Description: "why", Strategy: "bluegreen", MaxUnavailable: &two, WaitTimeout: "1m30s", ReleaseTimeout: "0s",
		SmokeChecks: &no, HA: &yes, UpdateOnly: true, SkipRelease: true, Regions: []string{"fra", "loc"}, Groups: []string{"app"}, Machines: []string{id},
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	for _, part := range []string{`"env":{"A":"9","B":"2=3"}`, `"primary_region":"fra"`, `{"guest_path":"/etc/motd","raw_value":"aGVsbG8=","processes":["app"]}`, `{"guest_path":"/key","secret_name":"KEY","processes":["app"]}`} {
		if !strings.Contains(definition, part) {
			t.Errorf("the definition lacks %s: %s", part, definition)
		}
	}
}

func TestDeployMistakes(t *testing.T) {
	a := releases(t, nil)
	for name, c := range map[string]struct {
		file  string
		args  []string
		code  int
		parts []string
	}{
		"no file":          {"", nil, exitFailed, []string{"there is no fly.toml in", "roost launch"}},
		"nothing to build": {"app = \"shop\"\n", nil, exitFailed, []string{"there is no Dockerfile in"}},
		"no folder":        {shopFile, []string{"/does/not/exist"}, exitUsage, []string{"/does/not/exist is not a directory"}},
		"errors":           {"app = \"shop\"\n[http_service]\ninternal_port = 0\nforce_https = 1\n", nil, exitFailed, []string{"fly.toml:3:1: error: ", "fly.toml:4:1: error: force_https: want true or false, got 1", "has 2 errors; nothing was deployed"}},
		"foreign":          {shopFile, []string{"--exclude-regions", "fra", "--vm-size", "shared-cpu-2x"}, exitUsage, []string{"--exclude-regions is not supported: name those you want with --regions", "roost scale vm"}},
		"bad timeout":      {shopFile, []string{"--wait-timeout", "soon"}, exitUsage, []string{`--wait-timeout "soon"`}},
		"bad share":        {shopFile, []string{"--max-unavailable", "0"}, exitUsage, []string{"--max-unavailable 0"}},
		"bad env":          {shopFile, []string{"--env", "A"}, exitUsage, []string{"--env A"}},
		"no app":           {"[http_service]\ninternal_port = 80\n", nil, exitUsage, []string{"fly.toml names no app", "name it with --app"}},
		"image and build":  {shopFile, []string{"--image", "a", "--build-only"}, exitUsage, []string{"nothing to build"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.file != "" {
				dir = project(t, c.file)
			}
			args := append([]string{"deploy"}, c.args...)
			if name != "no folder" {
				args = append(args, dir)
			}
			a.run(t, args...).want(t, c.code, c.parts...)
		})
	}
	if asked := a.asked(); len(asked) > 0 {
		t.Errorf("the API was asked: %v", asked)
	}
}

// TestDeployOfAnotherFile: a file that names no app is not deployed to the app
// that the working directory's file names.
func TestDeployOfAnotherFile(t *testing.T) {
	a := releases(t, nil)
	t.Chdir(project(t, shopFile))
	a.run(t, "deploy", project(t, "[http_service]\ninternal_port = 80\n")).want(t, exitUsage, "names no app")
	if asked := a.asked(); len(asked) > 0 {
		t.Errorf("the API was asked: %v", asked)
	}
}

// TestDeployWarns: what nothing reads does not keep a deploy from being.
func TestDeployWarns(t *testing.T) {
	a := releases(t, releaseEvents("complete", ""))
	a.run(t, "deploy", project(t, shopFile+"auto_stop_machine = \"stop\"\n")).
		want(t, exitDone, `fly.toml:10:1: warning: unknown key "auto_stop_machine" in [http_service]: nothing reads it (did you mean "auto_stop_machines"?)`, "is complete")
}

func TestDeployMakesTheApp(t *testing.T) {
	for name, c := range map[string]struct {
		place place
		yes   bool
		code  int
		made  bool
		says  string
	}{
		"pipe":          {place{}, false, exitDone, true, "App shop created in organisation personal"},
		"terminal, y":   {place{terminal: true, input: "y\n"}, false, exitDone, true, "There is no app shop. Make it in organisation personal? [y/N]"},
		"terminal, n":   {place{terminal: true, input: "n\n"}, false, exitFailed, false, "nothing was deployed"},
		"terminal, yes": {place{terminal: true}, true, exitDone, true, "App shop created"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			a.fail("GET /v1/apps/shop", 404, "app not found")
			a.answer("POST /v1/apps", 201, machines.App{Name: "shop"})
			a.answer("POST /roost/v1/apps/shop/releases", 200, client.Release{App: "shop", Version: 1})
			args := []string{"--url", a.URL, "deploy", "--detach", project(t, shopFile)}
			if c.yes {
				args = append(args, "--yes")
			}
			c.place.run(t, args...).want(t, c.code, c.says)
			made := slices.ContainsFunc(a.asked(), func(c call) bool { return c.line == "POST /v1/apps" })
			deployed := slices.ContainsFunc(a.asked(), func(c call) bool { return strings.HasSuffix(c.line, "/releases") })
			if made != c.made || deployed != c.made {
				t.Errorf("made %v and deployed %v, want %v: %v", made, deployed, c.made, a.asked())
			}
		})
	}
}

// TestDeployInterrupted: the rollout is the platform's.
func TestDeployInterrupted(t *testing.T) {
	a := releases(t, nil)
	ctx, interrupt := interruptible(t)
	var once sync.Once
	a.mux.HandleFunc("GET /roost/v1/apps/slow/releases/4/events", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(client.ReleaseEvent{ID: "01", At: now, Step: client.StepUpdate, Message: "begins"})
		_ = http.NewResponseController(w).Flush()
		once.Do(interrupt)
		<-r.Context().Done()
	})
	a.answer("GET /v1/apps/slow", 200, machines.App{Name: "slow"})
	a.answer("POST /roost/v1/apps/slow/releases", 200, client.Release{App: "slow", Version: 4})
	s := place{ctx: ctx}.run(t, "--url", a.URL, "deploy", project(t, shopFile), "--app", "slow")
	s.want(t, exitInterrupted, "Interrupted", "the rollout of v4 continues on the server", "roost releases watch v4 --app slow", "roost releases cancel v4 --app slow")
}

// TestDeployWhileThePlatformIsAway: the command says that it waits, and goes on.
func TestDeployWhileThePlatformIsAway(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /v1/apps/shop", 200, machines.App{Name: "shop"})
	a.answer("POST /roost/v1/apps/shop/releases", 200, client.Release{App: "shop", Version: 4})
	tries := 0
	a.mux.HandleFunc("GET /roost/v1/apps/shop/releases/4/events", func(w http.ResponseWriter, r *http.Request) {
		if tries++; tries < 4 {
			reply(w, http.StatusServiceUnavailable, map[string]string{"error": "the control plane is away"})
			return
		}
		for _, e := range releaseEvents("complete", "") {
			_ = json.NewEncoder(w).Encode(e)
		}
	})
	s := a.run(t, "deploy", project(t, shopFile))
	s.want(t, exitDone, "release command: migrate", "is complete")
	for _, line := range []string{"the platform does not answer", "the platform answers again"} {
		if n := strings.Count(s.err, line); n != 1 {
			t.Errorf("%q is there %d times, want once:\n%s", line, n, s.err)
		}
	}
}

// TestNothingAsksTheTerminal: version 1 of bubbletea asks the terminal for its
// colours when a program starts, and waits for the answer, whatever the command.
func TestNothingAsksTheTerminal(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if pkg == "github.com/charmbracelet/bubbletea" || pkg == "github.com/charmbracelet/huh" {
			t.Errorf("%s is linked: use charm.land's version 2", pkg)
		}
	}
}

func TestReleaseInProgress(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /v1/apps/shop", 200, machines.App{Name: "shop"})
	a.answer("POST /roost/v1/apps/shop/releases", 409, map[string]string{"error": "release v3 of shop is being rolled out", "status": "release_in_progress"})
	a.run(t, "deploy", project(t, shopFile)).want(t, exitFailed, "release v3 of shop is being rolled out", "roost deploy --queue")
}

// With --queue a deploy waits for the end of another one.
func TestDeployQueue(t *testing.T) {
	a := newAPI(t)
	a.answer("GET /v1/apps/shop", 200, machines.App{Name: "shop"})
	a.answer("GET /roost/v1/apps/shop/releases", 200, []client.Release{{Version: 3, Status: "running", Reason: "deploy", Author: "eve"}})
	ended := false
	serve := func(version, status string) {
		a.mux.HandleFunc("GET /roost/v1/apps/shop/releases/"+version+"/events", func(w http.ResponseWriter, _ *http.Request) {
			ended = true
			_ = json.NewEncoder(w).Encode(client.ReleaseEvent{ID: "01", Step: client.StepEnd, Release: &client.Release{Version: 4, Status: status}})
		})
	}
	serve("3", "failed")
	serve("4", "complete")
	a.mux.HandleFunc("POST /roost/v1/apps/shop/releases", func(w http.ResponseWriter, _ *http.Request) {
		if !ended {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": "release v3 of shop is being rolled out", "status": "release_in_progress"})
			return
		}
		_ = json.NewEncoder(w).Encode(client.Release{App: "shop", Version: 4, Status: "pending"})
	})
	a.run(t, "deploy", project(t, shopFile), "--queue").want(t, exitDone, "Release v3 of shop (deploy by eve) is being rolled out: waiting for its end", "Release v4 of shop is complete")
}

func TestRollback(t *testing.T) {
	a := releases(t, releaseEvents("complete", ""))
	a.run(t, "rollback", "v2", "--app", "shop", "--description", "checkout is broken").want(t, exitDone, `Warning: v3 ran "migrate"`, "Release v4 of shop is complete")
	var sent client.Rollback
	a.body(t, "POST /roost/v1/apps/shop/releases/2/rollback", &sent)
	if sent.Description != "checkout is broken" || sent.Detach {
		t.Errorf("asked for %+v", sent)
	}
	place{terminal: true, input: "n\n"}.run(t, "--url", a.URL, "rollback", "v2", "--app", "shop").want(t, exitFailed, `Warning: v3 ran "migrate"`, "Take shop back to v2? [y/N]", "nothing was changed")
	a.run(t, "rollback", "latest", "--app", "shop").want(t, exitUsage, `"latest" is not a release such as v7`)
	a.run(t, "release", "watch", "v4", "--app", "shop").want(t, exitDone, "is complete")
	a.answer("GET /roost/v1/apps/shop/releases", 200, []client.Release{{Version: 4, Status: "running"}})
	a.answer("POST /roost/v1/apps/shop/releases/4/cancel", 200, struct{}{})
	a.run(t, "release", "cancel", "--app", "shop").want(t, exitDone, "Release v4 is being cancelled")
}

// TestDeployTellsOutputOnce: what the release command printed is not repeated
// as the last lines of its log; other lines are told.
func TestDeployTellsOutputOnce(t *testing.T) {
	for name, last := range map[string]string{"once": "ImportError: admn", "told": "Killed"} {
		t.Run(name, func(t *testing.T) {
			out := "Traceback:\nImportError: admn"
			events := releaseEvents("failed", "the release command failed: exit code 1\nthe last lines of its log:\n  Traceback:\n  "+last)
			events = slices.Insert(events, len(events)-1, client.ReleaseEvent{ID: "07o", At: now, Step: client.StepReleaseCommand, Output: &out})
			s := releases(t, events).run(t, "deploy", project(t, shopFile))
			s.want(t, exitFailed, "exit code 1", last)
			if got, want := strings.Contains(s.err, "the last lines of its log"), name == "told"; got != want {
				t.Errorf("repeated: got %v, want %v:\n%s", got, want, s.err)
			}
		})
	}
}
