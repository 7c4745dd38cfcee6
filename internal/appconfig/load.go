package appconfig

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	root "github.com/roost-run/roost"
)

// Names are the files that a folder's config may have, the best first.
var Names = []string{"fly.toml", "fly.json", "fly.yaml", "fly.yml"}

// Find returns the config file of a folder, or the file itself; of kind
// NotFound if there is none.
func Find(path string) (string, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", root.Errorf(root.NotFound, "there is no %s", path)
	case err != nil:
		return "", err
	case !fi.IsDir():
		return path, nil
	}
	for _, name := range Names {
		file := filepath.Join(path, name)
		if fi, err := os.Stat(file); err == nil && !fi.IsDir() {
			return file, nil
		}
	}
	return "", root.Errorf(root.NotFound, "there is no fly.toml in %s", path)
}

// Load reads a config file. See Parse.
func Load(path string) (*Config, Problems) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Problems{{Message: err.Error()}}
	}
	return Parse(path, data)
}

// Parse reads a config; the format is that of name's suffix, and files that the
// config names are looked for beside it. The config is nil only if nothing of
// it could be read; it is fit for use when the problems are without errors.
func Parse(name string, data []byte) (*Config, Problems) {
	return parse(name, data, filepath.Dir(name))
}

// parse reads a config; no dir, no files beside it.
func parse(name string, data []byte, dir string) (*Config, Problems) {
	top, problem := readTree(name, data)
	if problem != nil {
		return nil, Problems{*problem}
	}
	if top == nil {
		top = newTable()
	}
	problems := patch(top)
	d := decoder{positions: make(map[string]Position)}
	c := &Config{dir: dir}
	d.section(top, "", reflect.ValueOf(c).Elem())
	c.positions = d.positions
	problems = append(problems, d.problems...)
	problems = append(problems, c.inline()...)
	for _, p := range c.validate() {
		// A value that could not be read is not missing as well.
		unread := p.Path != "" && slices.ContainsFunc(d.problems, func(q Problem) bool { return q.Path == p.Path && !q.Warning })
		if !unread {
			problems = append(problems, p)
		}
	}
	problems.sort()
	return c, problems
}

// Decode reads a definition: what JSON returned, or the config that another
// tool keeps with a release. Unknown keys are ignored; it reads no files, so one
// that still names a local file is refused.
func Decode(definition []byte) (*Config, error) {
	c, problems := parse("definition.json", definition, "")
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// JSON returns the definition: the config as JSON, with the names of the file
// and the content of local files. It needs nothing but itself to be deployed.
func (c *Config) JSON() ([]byte, error) {
	full := *c
	full.Files = make([]File, 0, len(c.Files))
	for i, f := range c.Files {
		if f.LocalPath != "" {
			content, err := c.local(f.LocalPath)
			if err != nil {
				return nil, root.Errorf(root.Invalid, "files[%d].local_path: %v", i, err)
			}
			encoded := base64.StdEncoding.EncodeToString(content)
			f.LocalPath, f.RawValue = "", &encoded
		}
		full.Files = append(full.Files, f)
	}
	return json.Marshal(&full)
}

// TOML returns the config as a fly.toml. Comments of the file that it was read
// from are lost.
func (c *Config) TOML() ([]byte, error) { return toml.Marshal(c) }

// local reads a file that the config names.
func (c *Config) local(path string) ([]byte, error) {
	if c.dir == "" {
		return nil, fmt.Errorf("%s is a file of another computer: send its content", clip(path))
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.dir, path)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	const most = 1 << 20
	if !fi.Mode().IsRegular() || fi.Size() > most {
		return nil, fmt.Errorf("%s is not a file of at most 1 MB", path)
	}
	return os.ReadFile(path)
}

// inline reads a machine_config that is a path.
func (c *Config) inline() Problems {
	var problems Problems
	read := func(at string, text *string) {
		if *text == "" || strings.HasPrefix(strings.TrimSpace(*text), "{") {
			return
		}
		content, err := c.local(*text)
		if err != nil {
			problems = append(problems, Problem{Position: c.at(at), Path: at, Message: "machine_config: " + err.Error()})
			return
		}
		*text = string(content)
	}
	read("machine_config", &c.MachineConfig)
	if c.Experimental != nil {
		read("experimental.machine_config", &c.Experimental.MachineConfig)
	}
	return problems
}
