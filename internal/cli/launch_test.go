package cli

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roost-run/roost/internal/client"
)

// source is a folder with files, named shop.
func source(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func fileIn(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var djangoSource = map[string]string{
	"manage.py":        `os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")`,
	"requirements.txt": "Django>=3.2,<4\n",
	"shop/wsgi.py":     "",
	"shop/settings.py": "SECRET_KEY = os.environ[\"SECRET_KEY\"]\nALLOWED_HOSTS = [\".localhost\"]\nDATABASES = {\"default\": {\"ENGINE\": \"django.db.backends.postgresql\"}}\n",
}

// TestLaunchInAPipe: files are written, nothing is asked, nothing is changed.
func TestLaunchInAPipe(t *testing.T) {
	a := newAPI(t)
	dir := source(t, djangoSource)
	a.answer("GET /roost/v1/hosts", 200, []client.Host{{Local: &client.LocalHost{Domain: "apps.example.net"}}})
	s := a.run(t, "launch", dir)
	s.want(t, exitDone, "Found Django 3.2 project shop", "ALLOWED_HOSTS does not let shop.apps.example.net in", "Debian 12's own (gunicorn python3-django)", "SECRET_KEY=$(openssl rand -hex 32)", "roost deploy "+dir)
	want := strings.Join([]string{filepath.Join(dir, "Dockerfile"), filepath.Join(dir, ".dockerignore"), filepath.Join(dir, "fly.toml"), ""}, "\n")
	if diff := cmp.Diff(want, s.out); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if file := fileIn(t, dir, "fly.toml"); !strings.Contains(file, "app = \"shop\"\n") {
		t.Errorf("fly.toml:\n%s", file)
	}
	if got := a.asked(); len(got) != 1 || got[0].line != "GET /roost/v1/hosts" {
		t.Errorf("the platform was asked: %v, want its domain only", got)
	}
}

// TestLaunchKeepsFiles: what is there stays, unless it is to be overwritten.
func TestLaunchKeepsFiles(t *testing.T) {
	files := map[string]string{".dockerignore": "mine\n"}
	maps.Copy(files, djangoSource)
	dir := source(t, files)
	place{}.run(t, "launch", dir).want(t, exitDone, ".dockerignore stays as it is")
	if got := fileIn(t, dir, ".dockerignore"); got != "mine\n" {
		t.Errorf("got %q", got)
	}
	// The Dockerfile and the fly.toml are there now, and are taken as they are.
	if err := os.WriteFile(filepath.Join(dir, "fly.toml"), []byte("# mine\napp = \"other\" # its name\n[http_service]\n  internal_port = 8080\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := place{}.run(t, "launch", dir)
	s.want(t, exitDone, "fly.toml is there and is used as it is")
	if s.out != "" {
		t.Errorf("written: %s", s.out)
	}
	place{}.run(t, "launch", dir, "--name", "bakery").want(t, exitUsage, "fly.toml is app other's, not bakery's", "--copy-config")
	place{}.run(t, "launch", dir, "--name", "bakery", "--copy-config").want(t, exitDone)
	if got, want := fileIn(t, dir, "fly.toml"), "# mine\napp = \"bakery\"\n[http_service]\n  internal_port = 8080\n"; got != want {
		t.Errorf("fly.toml: got %q, want %q", got, want)
	}
	place{}.run(t, "launch", dir, "--name", "bakery", "--force").want(t, exitDone)
	if got := fileIn(t, dir, "fly.toml"); !strings.Contains(got, "app = \"bakery\"\n") || strings.Contains(got, "# mine") {
		t.Errorf("fly.toml after --force:\n%s", got)
	}
	if got := fileIn(t, dir, ".dockerignore"); got != "mine\n" {
		t.Errorf("a Dockerfile of their own keeps its .dockerignore: got %q", got)
	}
}

// TestLaunchOnATerminal asks for the name; an answer that cannot be one is
// asked for again.
func TestLaunchOnATerminal(t *testing.T) {
	for input, want := range map[string]string{"bakery\n": "bakery", "\n": "shop", "No Name\nbakery\n": "bakery"} {
		dir := source(t, map[string]string{"index.html": "<h1>hi</h1>"})
		s := place{terminal: true, input: input}.run(t, "launch", dir, "--no-deploy")
		s.want(t, exitDone, "Name of the app")
		if file := fileIn(t, dir, "fly.toml"); !strings.Contains(file, "app = \""+want+"\"\n") {
			t.Errorf("answer %q: fly.toml:\n%s", input, file)
		}
	}
}

func TestLaunchMistakes(t *testing.T) {
	empty := source(t, map[string]string{"README": "hello"})
	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"nothing known":    {[]string{empty}, exitFailed, []string{"nothing in this folder is known", "write a Dockerfile"}},
		"no such folder":   {[]string{empty + "/none"}, exitUsage, []string{"is not a directory"}},
		"bad name":         {[]string{empty, "--name", "No Name"}, exitUsage, []string{"No Name"}},
		"nothing to copy":  {[]string{empty, "--copy-config"}, exitFailed, []string{"leave --copy-config out"}},
		"broken fly.toml":  {[]string{source(t, map[string]string{"fly.toml": "app = ["})}, exitFailed, []string{"--force"}},
		"two folders":      {[]string{empty, empty}, exitUsage, nil},
		"file, not folder": {[]string{filepath.Join(empty, "README")}, exitUsage, []string{"is not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			place{}.run(t, append([]string{"launch"}, c.args...)...).want(t, c.code, c.want...)
		})
	}
}

// TestLaunchDeploys: secrets that any value does for are made up before the
// release; others are asked for, and nothing is deployed without them.
func TestLaunchDeploys(t *testing.T) {
	files := map[string]string{"fly.toml": shopFile, "Dockerfile": "FROM scratch\n"}
	maps.Copy(files, djangoSource)
	a := releases(t, releaseEvents("complete", ""))
	a.answer("GET /roost/v1/apps/shop/secrets", 200, client.Secrets{})
	a.answer("POST /v1/apps/shop/secrets", 200, map[string]any{})
	s := a.run(t, "launch", "--yes", source(t, files))
	s.want(t, exitDone, "Secret SECRET_KEY set to a random value", "Release v4 of shop is complete")
	var sent struct{ Values map[string]string }
	a.body(t, "POST /v1/apps/shop/secrets", &sent)
	if len(sent.Values["SECRET_KEY"]) != 64 || strings.Contains(s.err+s.out, sent.Values["SECRET_KEY"]) {
		t.Errorf("secret: got %q, said:\n%s", sent.Values, s.err)
	}
	a.body(t, "POST /roost/v1/apps/shop/releases", &struct{}{})

	files["shop/settings.py"] += "API_KEY = os.environ[\"PAYMENT_API_KEY\"]\n"
	b := releases(t, nil)
	b.answer("GET /roost/v1/apps/shop/secrets", 200, client.Secrets{Secrets: []client.Secret{{Name: "SECRET_KEY"}}})
	b.run(t, "launch", "--yes", source(t, files)).want(t, exitFailed, "the app needs 1 secret that nobody has set", "roost secrets set --stage -a shop PAYMENT_API_KEY=-")
	for _, c := range b.asked() {
		if strings.HasPrefix(c.line, "POST") {
			t.Errorf("asked for %s", c.line)
		}
	}
}
