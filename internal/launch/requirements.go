package launch

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// requirement is a Python distribution that an app needs.
type requirement struct {
	name   string   // normalised (PEP 503): "django-environ"
	specs  []string // ">=4.2", "<5"
	opaque bool     // a URL, a local folder: only pip knows
}

// python is what an app says of its Python.
type python struct {
	source string // where the requirements stand: "requirements.txt"; "" nowhere, they are guessed from imports
	dir    string // the folder of source: "."
	needs  []requirement
	files  []string // that were read, for pip
	tool   string   // "pip", "uv", "poetry", "pyproject", "pipenv"
	locked bool     // the lock file is there
	specs  []string // of Python itself: ">=3.12"
}

func (p *python) get(name string) *requirement {
	for i := range p.needs {
		if p.needs[i].name == name {
			return &p.needs[i]
		}
	}
	return nil
}

// readPython finds the requirements in the folder dir, or at the top.
func (s *scanner) readPython(dir string) *python {
	for _, d := range []string{dir, "."} {
		if p := s.pythonIn(d); p != nil {
			return p
		}
	}
	p := &python{dir: dir}
	s.guessRequirements(p, dir)
	return p
}

// ofPython finds the versions of Python that pyproject.toml or a Pipfile allow.
var ofPython = regexp.MustCompile(`(?m)^(?:requires-python|python|python_version|python_full_version)\s*=\s*["']([^"']+)["']`)

// pythonIn reads what a folder itself says, or returns nil.
func (s *scanner) pythonIn(dir string) *python {
	p := &python{dir: dir}
	for _, name := range []string{"requirements.txt", "requirements/production.txt", "requirements/prod.txt", "requirements/base.txt", "requirements/requirements.txt"} {
		if s.has(path.Join(dir, name)) {
			p.source, p.tool = name, "pip"
			s.readRequirements(p, path.Join(dir, name), 0)
			return p
		}
	}
	if text, ok := s.read(path.Join(dir, "pyproject.toml")); ok {
		p.readPyproject(text)
		p.specs = pythonSpecs(text)
		switch {
		case s.has(path.Join(dir, "uv.lock")):
			p.tool, p.locked = "uv", true
		case s.has(path.Join(dir, "poetry.lock")) || strings.Contains(text, "[tool.poetry.dependencies]"):
			p.tool, p.locked = "poetry", s.has(path.Join(dir, "poetry.lock"))
		case p.source != "":
			p.tool = "pyproject"
		}
		if p.source != "" {
			return p
		}
	}
	if text, ok := s.read(path.Join(dir, "Pipfile")); ok {
		p.source, p.tool, p.locked = "Pipfile", "pipenv", s.has(path.Join(dir, "Pipfile.lock"))
		p.readTable(text, "[packages]")
		p.specs = pythonSpecs(text)
		return p
	}
	return nil
}

func pythonSpecs(text string) []string {
	m := ofPython.FindStringSubmatch(text)
	if m == nil {
		return nil
	}
	specs := caret(strings.ReplaceAll(m[1], " ", ""))
	if len(specs) == 1 && strings.Trim(specs[0], "0123456789.") == "" {
		specs[0] = "==" + strings.Join(strings.Split(specs[0], ".")[:min(2, strings.Count(specs[0], ".")+1)], ".")
	}
	return specs
}

func (s *scanner) readRequirements(p *python, file string, depth int) {
	src, ok := s.read(file)
	if !ok || depth > 5 {
		return
	}
	p.files = append(p.files, file)
	src = strings.ReplaceAll(src, "\\\n", " ")
	for line := range strings.Lines(src) {
		line = strings.TrimSpace(line)
		if i := strings.Index(line, " #"); i >= 0 {
			line = strings.TrimSpace(line[:i])
		}
		switch option, rest, _ := strings.Cut(line, " "); {
		case line == "" || line[0] == '#' || strings.HasPrefix(line, "--hash"):
		case option == "-r" || option == "--requirement" || option == "-c" || option == "--constraint":
			if option[1] == 'r' || option == "--requirement" {
				s.readRequirements(p, path.Join(path.Dir(file), strings.TrimSpace(rest)), depth+1)
			}
		case line[0] == '-':
			p.needs = append(p.needs, requirement{name: line, opaque: true})
		default:
			p.add(line)
		}
	}
}

var requirementLine = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*(.*)$`)

// add takes a requirement as PEP 508 writes it.
func (p *python) add(line string) {
	line, marker, _ := strings.Cut(line, ";")
	if strings.Contains(marker, "win32") && !strings.Contains(marker, "!=") || strings.Contains(marker, "Windows") && !strings.Contains(marker, "!=") {
		return // not for this platform
	}
	line, _, _ = strings.Cut(line, " --hash")
	m := requirementLine.FindStringSubmatch(strings.TrimSpace(line))
	if m == nil || strings.Contains(line, "://") || strings.HasPrefix(strings.TrimSpace(m[3]), "@") {
		p.needs = append(p.needs, requirement{name: line, opaque: true})
		return
	}
	r := requirement{name: normal(m[1])}
	for spec := range strings.SplitSeq(strings.Trim(m[3], "() "), ",") {
		if spec = strings.ReplaceAll(spec, " ", ""); spec != "" {
			r.specs = append(r.specs, spec)
		}
	}
	p.needs = append(p.needs, r)
}

var separators = regexp.MustCompile(`[-_.]+`)

func normal(name string) string { return separators.ReplaceAllString(strings.ToLower(name), "-") }

var quoted = regexp.MustCompile(`"([^"]+)"|'([^']+)'`)

// readPyproject takes [project] dependencies or Poetry's. TOML is not parsed:
// what is looked for is written the same way everywhere.
func (p *python) readPyproject(src string) {
	if _, rest, ok := strings.Cut(src, "[project]"); ok {
		section, _, _ := strings.Cut(rest, "\n[")
		if _, deps, ok := strings.Cut(section, "\ndependencies"); ok {
			if i := strings.Index(deps, "\n]"); i >= 0 {
				deps = deps[:i]
			} else if i := strings.IndexByte(deps, '\n'); i >= 0 {
				deps = deps[:i]
			}
			p.source = "pyproject.toml"
			for _, m := range quoted.FindAllStringSubmatch(deps, -1) {
				p.add(m[1] + m[2])
			}
			return
		}
	}
	p.readTable(src, "[tool.poetry.dependencies]")
}

// readTable takes a table name = "version" of Poetry or Pipenv.
func (p *python) readTable(src, header string) {
	_, rest, ok := strings.Cut(src, header)
	if !ok {
		return
	}
	if p.source == "" {
		p.source = "pyproject.toml"
	}
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			return
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || key == "python" || strings.HasPrefix(key, "#") {
			continue
		}
		r := requirement{name: normal(strings.Trim(key, `"'`))}
		if m := quoted.FindStringSubmatch(value); m != nil && !strings.Contains(value, "{") {
			r.specs = caret(m[1] + m[2])
		} else {
			r.opaque = strings.Contains(value, "git") || strings.Contains(value, "path")
		}
		p.needs = append(p.needs, r)
	}
}

// caret turns Poetry's "^4.2" into what everybody knows.
func caret(v string) []string {
	switch {
	case v == "*" || v == "":
		return nil
	case v[0] == '^' || v[0] == '~' && !strings.HasPrefix(v, "~="):
		parts := strings.Split(strings.TrimLeft(v, "^~"), ".")
		n := 1
		if v[0] == '~' && len(parts) > 1 {
			n = 2
		}
		major, err := strconv.Atoi(parts[n-1])
		if err != nil {
			return []string{">=" + v[1:]}
		}
		upper := strings.Join(append(slices.Clone(parts[:n-1]), strconv.Itoa(major+1)), ".")
		return []string{">=" + v[1:], "<" + upper}
	}
	return strings.Split(v, ",")
}

var (
	importLine = regexp.MustCompile(`(?m)^\s*(?:import\s+([\w.]+)|from\s+([\w.]+)\s+import)`)
	djangoMade = regexp.MustCompile(`using Django (\d+\.\d+)`)
)

// guessRequirements takes what the source imports and is known to come from a
// distribution.
func (s *scanner) guessRequirements(p *python, dir string) {
	_ = s.sources(".py", func(file, src string) { // unreadable folders hold no requirements
		if dir != "." && !strings.HasPrefix(file, dir+"/") {
			return
		}
		for _, m := range importLine.FindAllStringSubmatch(src, -1) {
			module := m[1] + m[2]
			for _, d := range debian {
				if d.module != "" && (module == d.module || strings.HasPrefix(module, d.module+".")) && p.get(d.pypi) == nil {
					p.needs = append(p.needs, requirement{name: d.pypi})
				}
			}
		}
	})
	slices.SortFunc(p.needs, func(a, b requirement) int { return strings.Compare(a.name, b.name) })
}

// satisfied reports whether a version meets all specifiers (PEP 440, of
// releases only).
func satisfied(version string, specs []string) bool {
	for _, spec := range specs {
		op := strings.TrimRight(spec[:len(spec)-len(strings.TrimLeft(spec, "=<>!~"))], " ")
		want := spec[len(op):]
		var ok bool
		switch wildcard := strings.HasSuffix(want, ".*"); {
		case wildcard && (op == "==" || op == "!="):
			ok = strings.HasPrefix(version+".", strings.TrimSuffix(want, "*")) == (op == "==")
		case op == "==" || op == "===":
			ok = compareVersions(version, want) == 0
		case op == "!=":
			ok = compareVersions(version, want) != 0
		case op == ">=":
			ok = compareVersions(version, want) >= 0
		case op == "<=":
			ok = compareVersions(version, want) <= 0
		case op == ">":
			ok = compareVersions(version, want) > 0
		case op == "<":
			ok = compareVersions(version, want) < 0
		case op == "~=":
			parts := strings.Split(want, ".")
			ok = compareVersions(version, want) >= 0 && len(parts) > 1 && strings.HasPrefix(version+".", strings.Join(parts[:len(parts)-1], ".")+".")
		}
		if !ok {
			return false
		}
	}
	return true
}

func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		if d := versionPart(as, i) - versionPart(bs, i); d != 0 {
			return d
		}
	}
	return 0
}

func versionPart(parts []string, i int) int {
	if i >= len(parts) {
		return 0
	}
	digits := parts[i][:len(parts[i])-len(strings.TrimLeft(parts[i], "0123456789"))]
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}
