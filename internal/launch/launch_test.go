package launch

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/appconfig"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// project reads a folder from a txtar file.
func project(t *testing.T, file string) fs.FS {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.MapFS{}
	for _, f := range a.Files {
		m[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	return m
}

// TestGolden: what is said and written for each project in testdata.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no projects: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			plan, err := Scan(project(t, file), Options{Folder: "My Shop", Region: "loc"})
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "%s: %s, app %s, port %d\n", plan.Kind, plan.Title, plan.App, plan.Port)
			for _, c := range plan.Choices {
				fmt.Fprintln(&b, "-", c)
			}
			for _, c := range plan.Todo {
				fmt.Fprintln(&b, "!", c)
			}
			for _, s := range plan.Secrets {
				fmt.Fprintf(&b, "secret %s random=%t\n", s.Name, s.Random)
			}
			for _, f := range plan.Files {
				fmt.Fprintf(&b, "\n==> %s <==\n%s", f.Name, f.Content)
				if f.Name == "fly.toml" {
					checkConfig(t, f.Content)
				}
			}
			golden := strings.TrimSuffix(file, ".txtar") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// checkConfig: what we write is what we read, without a warning.
func checkConfig(t *testing.T, text string) {
	t.Helper()
	c, problems := appconfig.Parse("fly.toml", []byte(text))
	if len(problems) > 0 {
		t.Errorf("fly.toml: %v", problems)
	}
	for _, group := range c.Groups() {
		if _, err := c.Machine(group); err != nil {
			t.Errorf("fly.toml, group %s: %v", group, err)
		}
	}
}

func TestNothingKnown(t *testing.T) {
	t.Parallel()
	_, err := Scan(fstest.MapFS{"README": {Data: []byte("hello")}}, Options{Folder: "x"})
	if !root.IsKind(err, root.NotFound) {
		t.Errorf("got %v, want NotFound", err)
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	for folder, want := range map[string]string{
		"shop": "shop", "My Shop!": "my-shop", "2fast": "app-2fast", "": "app", "...": "app", "Ünï": "n", "a__b--c": "a-b-c",
		strings.Repeat("long-", 20): "long-long-long-long-long-long-long-long",
	} {
		if got := Name(folder); got != want {
			t.Errorf("%q: got %q, want %q", folder, got, want)
		}
		if _, err := root.ParseAppName(Name(folder)); err != nil {
			t.Errorf("%q: %v", folder, err)
		}
	}
}

func TestSatisfied(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version, specs string
		want           bool
	}{
		{"3.2.25", "", true}, {"3.2.25", ">=3.2", true}, {"3.2.25", ">=3.2,<4", true}, {"3.2.25", ">=4", false}, {"3.2.25", "==3.2.*", true},
		{"3.2.25", "==3.2", false}, {"3.2.25", "==3.2.25", true}, {"3.2.25", "~=3.2", true}, {"3.2.25", "~=3.2.1", true}, {"3.2.25", "~=3.1.0", false},
		{"3.2.25", "!=3.2.25", false}, {"4.0", "==4.0.0", true}, {"10.0", ">9", true}, {"3.2.25", "nonsense", false},
	} {
		var specs []string
		if c.specs != "" {
			specs = strings.Split(c.specs, ",")
		}
		if got := satisfied(c.version, specs); got != c.want {
			t.Errorf("%s %s: got %t", c.version, c.specs, got)
		}
	}
}

// FuzzSettings: no source makes the scan fail or run on.
func FuzzSettings(f *testing.F) {
	for _, seed := range []string{
		"SECRET_KEY = os.environ['X']\nSTATIC_ROOT = BASE_DIR / 'x'", "A = [", "A = ((((", "from .settings import *", "X = f'{X}'\nSTATIC_ROOT = X", "A = B\nB = A\nSTATIC_ROOT = A",
		"'''", "x = 'a\\", "a = {1: [2, (3]}", "env = environ.Env(\nX=(bool,\n1))\nA = env('B')", "STATIC_ROOT = Path(__file__).parents[9] / 'a'",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, src string) {
		fsys := fstest.MapFS{
			"manage.py":     {Data: []byte(`os.environ.setdefault("DJANGO_SETTINGS_MODULE", "p.settings")`)},
			"p/settings.py": {Data: []byte(src)},
		}
		plan, err := Scan(fsys, Options{Folder: "p"})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range plan.Files {
			if f.Name == "fly.toml" {
				if _, problems := appconfig.Parse("fly.toml", []byte(f.Content)); len(problems) > 0 {
					t.Errorf("%v\n%s", problems, f.Content)
				}
			}
		}
	})
}
