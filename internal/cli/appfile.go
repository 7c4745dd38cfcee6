package cli

import (
	"fmt"
	"os"
	"path/filepath"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/appconfig"
)

// appFile is an app's config as it is in a file.
type appFile struct {
	path     string
	config   *appconfig.Config
	problems appconfig.Problems
}

// readAppFile reads the config that a command is about: the file that was
// named, else that of dir. Of kind NotFound if there is none.
func readAppFile(named, dir string) (appFile, error) {
	path := named
	if path == "" {
		path = dir
	}
	path, err := appconfig.Find(path)
	if err != nil {
		return appFile{}, err
	}
	c, problems := appconfig.Load(path)
	return appFile{path: path, config: c, problems: problems}, nil
}

// name is how messages call the file.
func (a *appFile) name() string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, a.path); err == nil && len(rel) < len(a.path) {
			return rel
		}
	}
	return a.path
}

// print writes what is wrong with the file, a line each as compilers do:
// "fly.toml:12:3: error: message".
func (a *appFile) print(line func(format string, args ...any), problems appconfig.Problems) {
	for _, p := range problems {
		line("%s", printable(a.name()+":"+p.String()))
	}
}

// usable prints the problems and refuses a file that has errors.
func (a *appFile) usable(f *factory, then string) error {
	a.print(f.io.Notef, a.problems)
	if n := len(a.problems.Errors()); n > 0 {
		return fmt.Errorf("%s has %s; %s", a.name(), plural(n, "error", "errors"), then)
	}
	return nil
}

// appOf is the app that a file names, "" without a file or a name in it.
func appOf(dir string) string {
	file, err := readAppFile("", dir)
	if err != nil || file.config == nil {
		return ""
	}
	return file.config.App
}

// appOfFile is the app that a command with a config file is about: the flag,
// the environment, the file. A file without a name is not taken for that of
// another file's app, also where the working directory has one.
func (f *factory) appOfFile(file *appFile) (string, error) {
	if f.namedApp() != "" {
		return f.appName()
	}
	if file.config.App == "" {
		return "", usageError{hintError{fmt.Errorf("%s names no app", file.name()), "begin it with app = \"NAME\", or name it with --app NAME"}}
	}
	if _, err := root.ParseAppName(file.config.App); err != nil {
		return "", fmt.Errorf("%s: %w", file.name(), err)
	}
	return file.config.App, nil
}
