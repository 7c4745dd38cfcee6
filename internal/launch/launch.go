package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// Plan is how an app would be run.
type Plan struct {
	Kind    string   // "django", "python", "go", "node", "site", "dockerfile"
	Title   string   // "Django 4.2 project shop"
	App     string   // name of the app
	Port    int      // where it listens inside the machine
	Files   []File   // in the order in which they are worth reading
	Choices []string // one line each: what was chosen and why
	Todo    []string // what the person should look at
	Secrets []Secret // what the app cannot start without
}

// File is one to write.
type File struct {
	Name    string // relative to the folder: "Dockerfile"
	Content string
	// Keep says that a file of that name which is there already serves as well.
	Keep bool
}

// Secret is an environment variable that must not stand in a file.
type Secret struct {
	Name   string
	Random bool // any long random value does
}

// Options of Scan.
type Options struct {
	App    string      // "" takes the name from the folder's
	Folder string      // its name: "my shop"
	Region root.Region // "" none
	Domain string      // apps answer below it: "localhost"
}

// scanner is what recognisers work with.
type scanner struct {
	fsys fs.FS
	o    Options
	plan *Plan
	fly  flyConfig
}

// Scan recognises the source in fsys. An error has kind NotFound when nothing
// is recognised.
func Scan(fsys fs.FS, o Options) (*Plan, error) {
	if o.Domain == "" {
		o.Domain = "localhost"
	}
	if o.App == "" {
		o.App = Name(o.Folder)
	}
	for _, recognise := range []func(*scanner) (bool, error){
		(*scanner).dockerfile, (*scanner).django, (*scanner).golang, (*scanner).node, (*scanner).python, (*scanner).site,
	} {
		s := &scanner{fsys: fsys, o: o, plan: &Plan{App: o.App, Port: 8080}}
		s.fly = flyConfig{app: o.App, region: string(o.Region), port: 8080, memory: "256mb"}
		found, err := recognise(s)
		if err != nil {
			return nil, fmt.Errorf("look at the source: %w", err)
		}
		if !found {
			continue
		}
		s.fly.port = s.plan.Port
		s.plan.Files = append(s.plan.Files, File{Name: "fly.toml", Content: s.fly.String()})
		s.choose("it sleeps when nobody asks (auto_stop_machines = \"suspend\") and wakes while the first request waits")
		return s.plan, nil
	}
	return nil, root.Errorf(root.NotFound, "nothing in this folder is known: there is no manage.py, go.mod, package.json, requirements.txt, index.html or Dockerfile")
}

func (s *scanner) choose(format string, args ...any) {
	s.plan.Choices = append(s.plan.Choices, fmt.Sprintf(format, args...))
}

func (s *scanner) todo(format string, args ...any) {
	s.plan.Todo = append(s.plan.Todo, fmt.Sprintf(format, args...))
}

func (s *scanner) write(name, content string) {
	s.plan.Files = append(s.plan.Files, File{Name: name, Content: content, Keep: true})
}

// maxFile bounds what is read of one file: sources are smaller.
const maxFile = 1 << 20

// read returns a file's text; ok is false if it is not there, or no source.
func (s *scanner) read(name string) (text string, ok bool) {
	fi, err := fs.Stat(s.fsys, name)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return "", false
	}
	data, err := fs.ReadFile(s.fsys, name)
	return string(data), err == nil
}

func (s *scanner) has(name string) bool {
	fi, err := fs.Stat(s.fsys, name)
	return err == nil && fi.Mode().IsRegular()
}

// skipped are folders that hold no source of the app's own.
var skipped = []string{"node_modules", "venv", "env", "__pycache__", "vendor", "dist", "build", "site-packages", "testdata"}

// maxSources bounds a look through all of an app's source.
const maxSources = 500

// sources calls f for the files with a suffix, shallow ones first as far as
// the order of names goes.
func (s *scanner) sources(suffix string, f func(name, text string)) error {
	left := maxSources
	err := fs.WalkDir(s.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is not looked at
		}
		base := path.Base(name)
		if d.IsDir() && name != "." && (strings.HasPrefix(base, ".") || slices.Contains(skipped, base)) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(base, suffix) {
			return nil
		}
		if left--; left < 0 {
			return fs.SkipAll
		}
		if text, ok := s.read(name); ok {
			f(name, text)
		}
		return nil
	})
	if errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

// Name makes the name of an app from a folder's.
func Name(folder string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(folder) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	name := strings.Trim(b.String(), "-")
	if name != "" && name[0] >= '0' && name[0] <= '9' {
		name = "app-" + name
	}
	name = strings.Trim(name[:min(len(name), maxName)], "-")
	if _, err := root.ParseAppName(name); err != nil {
		return "app"
	}
	return name
}

// maxName keeps a suggested name readable in a host name.
const maxName = 40
