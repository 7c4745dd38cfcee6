package launch

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// settings is what is understood of a module of Django settings.
type settings struct {
	s     *scanner
	root  string // where imports begin, relative to the folder: "." or "src"
	vars  map[string]setting
	env   []envVar
	seen  map[string]bool // files
	envFn map[string]bool // names that environ.Env() was assigned to
	// defaults are variables that environ.Env(NAME=(type, default)) gives one.
	defaults map[string]bool
	// guarded are variables that are only read where they are known to be set.
	guarded map[string]bool
	config  bool // python-decouple's config
	text    string
}

// setting is the last thing assigned to a name.
type setting struct {
	value *expr
	file  string
	also  []*expr // added with +=
	inner bool    // assigned within an if, a try or the like
}

// envVar is an environment variable that settings read.
type envVar struct {
	name     string
	required bool
	typ      string // "str", "bool", "int", "list", "db", "url"
	into     string // the setting it is assigned to, "" none
}

var (
	assignment = regexp.MustCompile(`^([A-Za-z_]\w*)\s*(?::[^=]+)?(\+?=)([^=].*)$`)
	fromImport = regexp.MustCompile(`^from\s+(\.*[\w.]*)\s+import\s+(.+)$`)
	keyword    = regexp.MustCompile(`^(if|elif|while|return|assert|with|raise|for\s+\w+\s+in)\b\s*(.*?):?$`)
	envLike    = regexp.MustCompile(`(?i)^(get_?)?(env|environ|secret|env_?var)(_?(variable|value|var|setting|or_raise))?$`)
	upperName  = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
)

// readSettings reads a settings module and what it takes over from its
// neighbours. ok is false if there is no such file.
func (s *scanner) readSettings(root, module string) (*settings, bool) {
	set := &settings{s: s, root: root, vars: map[string]setting{}, seen: map[string]bool{}, envFn: map[string]bool{}, defaults: map[string]bool{}, guarded: map[string]bool{}}
	file := s.moduleFile(root, module)
	if file == "" {
		return set, false
	}
	set.read(file)
	return set, true
}

// moduleFile is the file of a module: shop/settings.py or
// shop/settings/__init__.py.
func (s *scanner) moduleFile(root, module string) string {
	base := path.Join(root, strings.ReplaceAll(module, ".", "/"))
	for _, name := range []string{base + ".py", base + "/__init__.py"} {
		if s.has(name) {
			return name
		}
	}
	return ""
}

func (t *settings) read(file string) {
	if t.seen[file] || len(t.seen) > 20 {
		return
	}
	t.seen[file] = true
	src, ok := t.s.read(file)
	if !ok {
		return
	}
	t.text += src
	for _, st := range statements(src) {
		t.guard(st.text)
		if m := fromImport.FindStringSubmatch(st.text); m != nil {
			t.follow(file, m[1], m[2])
			continue
		}
		if m := assignment.FindStringSubmatch(st.text); m != nil {
			t.assign(file, st.indent, m[1], m[2], parseExpr(m[3]))
			continue
		}
		text := st.text
		if m := keyword.FindStringSubmatch(text); m != nil {
			text = m[2]
		}
		t.scan(parseExpr(text), "")
	}
}

var (
	isSet  = regexp.MustCompile(`["'](\w+)["']\s+in\s+(?:os\.)?environ\b`)
	isTrue = regexp.MustCompile(`^(?:if|elif)\s.*(?:environ\.get|getenv)\(\s*["'](\w+)["']`)
)

// guard notes the variables whose presence a statement asks for: what reads
// them then does not require them.
func (t *settings) guard(statement string) {
	for _, m := range isSet.FindAllStringSubmatch(statement, -1) {
		t.guarded[m[1]] = true
	}
	if m := isTrue.FindStringSubmatch(statement); m != nil && !strings.Contains(statement, " not ") {
		t.guarded[m[1]] = true
	}
}

// follow reads modules of the project that a settings module is made of.
func (t *settings) follow(file, module, names string) {
	if module == "decouple" && strings.Contains(names, "config") {
		t.config = true
		return
	}
	if strings.TrimSpace(names) != "*" {
		return
	}
	dots := len(module) - len(strings.TrimLeft(module, "."))
	rest := strings.ReplaceAll(module[dots:], ".", "/")
	base := t.root
	if dots > 0 {
		base = path.Dir(file)
		for range dots - 1 {
			base = path.Dir(base)
		}
	}
	for _, name := range []string{path.Join(base, rest) + ".py", path.Join(base, rest, "__init__.py")} {
		if t.s.has(name) {
			t.read(name)
			return
		}
	}
}

func (t *settings) assign(file string, indent int, name, op string, value *expr) {
	if value.kind == call {
		switch callee := value.args[0].dotted(); callee {
		case "environ.Env", "Env", "environ.FileAwareEnv", "environs.Env":
			t.envFn[name] = true
			for k := range value.kw {
				t.defaults[k] = true
			}
		case "AutoConfig", "decouple.AutoConfig", "Config":
			t.config = true
		}
	}
	t.scan(value, name)
	old, known := t.vars[name]
	switch {
	case op == "+=":
		old.also = append(old.also, value)
		t.vars[name] = old
	case indent == 0 || !known:
		t.vars[name] = setting{value: value, file: file, inner: indent > 0}
	}
}

// scan notes the environment variables in an expression.
func (t *settings) scan(e *expr, into string) {
	e.walk(func(e *expr) {
		switch e.kind {
		case index:
			if base := e.args[0].dotted(); (base == "os.environ" || base == "environ") && len(e.args) > 1 && e.args[1].kind == text {
				t.note(envVar{name: e.args[1].text, required: true, typ: "str", into: into})
			}
		case call:
			if v, ok := t.envCall(e); ok {
				v.into = into
				t.note(v)
			}
		}
	})
}

// envMethods are those of django-environ and environs that read a variable;
// the value is its type.
var envMethods = map[string]string{
	"str": "str", "unicode": "str", "bytes": "str", "path": "str", "bool": "bool", "int": "int", "float": "int", "decimal": "int",
	"list": "list", "tuple": "list", "json": "json", "dict": "dict", "url": "url", "db": "db", "db_url": "db", "dj_db_url": "db",
	"cache": "cache", "cache_url": "cache", "dj_cache_url": "cache", "email": "email", "email_url": "email", "dj_email_url": "email", "timedelta": "int",
}

func (t *settings) envCall(e *expr) (v envVar, ok bool) {
	callee := e.args[0].dotted()
	args := e.args[1:]
	first := ""
	if len(args) > 0 && args[0].kind == text {
		first = args[0].text
	}
	_, fallback := e.kw["default"]
	v = envVar{name: first, typ: "str"}
	if c := e.kw["cast"]; c != nil && (c.dotted() == "bool" || c.dotted() == "int") {
		v.typ = c.dotted()
	} else if c != nil && c.kind == call {
		v.typ = "list" // Csv()
	}
	base, method, _ := strings.Cut(callee, ".")
	switch {
	case callee == "os.environ.get" || callee == "environ.get" || callee == "os.getenv" || callee == "getenv":
		return v, first != ""
	case callee == "dj_database_url.config":
		v.name, v.typ = "DATABASE_URL", "db"
		return v, true
	case t.config && (callee == "config" || callee == "decouple.config"):
		v.required = !fallback && len(args) < 2
		return v, first != ""
	case t.envFn[base] && method == "":
		v.required = !fallback && len(args) < 3 && !t.defaults[first]
		if len(args) > 1 && (args[1].dotted() == "bool" || args[1].dotted() == "int") {
			v.typ = args[1].dotted()
		}
		return v, first != ""
	case t.envFn[base] && envMethods[method] != "":
		v.typ = envMethods[method]
		if first == "" {
			v.name = map[string]string{"db": "DATABASE_URL", "cache": "CACHE_URL", "email": "EMAIL_URL"}[v.typ]
		}
		v.required = !fallback && len(args) < 2 && !t.defaults[v.name]
		return v, v.name != ""
	case !strings.Contains(callee, ".") && envLike.MatchString(callee) && upperName.MatchString(first) && !t.envFn[callee]:
		v.required = !fallback && len(args) < 2 // a helper of the project's own
		return v, true
	}
	return v, false
}

func (t *settings) note(v envVar) {
	v.required = v.required && !t.guarded[v.name]
	for i := range t.env {
		if t.env[i].name == v.name {
			t.env[i].required = t.env[i].required || v.required
			return
		}
	}
	t.env = append(t.env, v)
}

// get returns what a name was set to, or nil.
func (t *settings) get(name string) *expr { return t.vars[name].value }

// str returns a setting that is a plain string, or "".
func (t *settings) str(name string) string {
	if e := t.get(name); e != nil && e.kind == text {
		return e.text
	}
	return ""
}

// readsEnv returns the variable that a setting is read from, or nil.
func (t *settings) readsEnv(setting string) *envVar {
	for i := range t.env {
		if t.env[i].into == setting {
			return &t.env[i]
		}
	}
	return nil
}

// lists returns the strings that a list setting has for certain.
func (t *settings) lists(name string) (list []string, whole bool) {
	v, ok := t.vars[name]
	if !ok {
		return nil, true
	}
	list, whole = v.value.strings()
	for _, e := range v.also {
		more, all := e.strings()
		list, whole = append(list, more...), whole && all
	}
	return list, whole
}

// path evaluates a setting that is a path of a file, with the project at base.
func (t *settings) path(name, base string) (string, bool) {
	v, ok := t.vars[name]
	if !ok {
		return "", false
	}
	p, ok := t.pathOf(v.value, v.file, base, 0)
	if !ok || p == "" {
		return "", false
	}
	return path.Clean(p), true
}

func (t *settings) pathOf(e *expr, file, base string, depth int) (string, bool) {
	if e == nil || depth > 20 {
		return "", false
	}
	of := func(e *expr) (string, bool) { return t.pathOf(e, file, base, depth+1) }
	switch e.kind {
	case text:
		return e.text, true
	case unknown: // f"{BASE_DIR}/static"
		return t.format(e.text, base, depth)
	case name:
		if e.text == "__file__" {
			return path.Join(base, file), true
		}
		v, ok := t.vars[e.text]
		if !ok {
			return "", false
		}
		return t.pathOf(v.value, v.file, base, depth+1)
	case attribute:
		p, ok := of(e.args[0])
		if ok && e.text == "parent" {
			return path.Dir(p), true
		}
		return p, ok && e.text == "path"
	case index: // Path(__file__).parents[1]
		if a := e.args[0]; a.kind == attribute && a.text == "parents" && len(e.args) > 1 && len(e.args[1].text) == 1 {
			p, ok := of(a.args[0])
			for range int(e.args[1].text[0]-'0') + 1 {
				p = path.Dir(p)
			}
			return p, ok
		}
	case operation:
		a, ok1 := of(e.args[0])
		b, ok2 := of(e.args[1])
		switch e.text {
		case "/":
			return joinPath(a, b), ok1 && ok2
		case "+":
			return a + b, ok1 && ok2
		}
	case call:
		return t.pathCall(e, of)
	}
	return "", false
}

func (t *settings) pathCall(e *expr, of func(*expr) (string, bool)) (string, bool) {
	callee := e.args[0]
	args := e.args[1:]
	switch fn := callee.dotted(); fn {
	case "str", "Path", "pathlib.Path", "os.path.abspath", "os.path.realpath", "os.path.normpath", "abspath", "realpath", "os.fspath", "environ.Path":
		if len(args) == 1 {
			return of(args[0])
		}
	case "os.path.dirname", "dirname":
		if len(args) == 1 {
			p, ok := of(args[0])
			return path.Dir(p), ok
		}
	case "os.path.join", "join":
		whole := ""
		for _, a := range args {
			p, ok := of(a)
			if !ok {
				return "", false
			}
			whole = joinPath(whole, p)
		}
		return whole, len(args) > 0
	}
	if callee.kind == attribute { // a method of a path
		p, ok := of(callee.args[0])
		switch callee.text {
		case "resolve", "absolute", "as_posix", "expanduser":
			return p, ok
		case "joinpath", "path":
			for _, a := range args {
				q, qok := of(a)
				p, ok = joinPath(p, q), ok && qok
			}
			return p, ok
		}
	}
	return "", false
}

func (t *settings) format(s, base string, depth int) (string, bool) {
	for {
		before, rest, ok := strings.Cut(s, "{")
		if !ok {
			return s, strings.HasPrefix(s, "/")
		}
		inner, after, ok := strings.Cut(rest, "}")
		v, known := t.vars[strings.TrimSpace(inner)]
		if !ok || !known {
			return "", false
		}
		p, ok := t.pathOf(v.value, v.file, base, depth+1)
		if !ok {
			return "", false
		}
		s = before + p + after
	}
}

func joinPath(a, b string) string {
	if a == "" || strings.HasPrefix(b, "/") {
		return b
	}
	return a + "/" + b
}

// engines are the databases that settings name: the last DATABASES, where it
// stands there for certain, else anything in the source.
func (t *settings) engines() []string {
	if v, ok := t.vars["DATABASES"]; ok && !v.inner && !strings.Contains(t.text, "DATABASES[") {
		var b strings.Builder
		v.value.walk(func(e *expr) {
			if e.kind == text || e.kind == unknown {
				b.WriteString(e.text + "\n")
			}
		})
		if found := enginesIn(b.String()); len(found) > 0 {
			return found
		}
	}
	return enginesIn(t.text)
}

func enginesIn(src string) []string {
	var found []string
	for _, e := range []struct{ mark, name string }{
		{"django.db.backends.postgresql", "postgresql"}, {"django.contrib.gis.db.backends.postgis", "postgresql"},
		{"django.db.backends.mysql", "mysql"}, {"django.db.backends.sqlite3", "sqlite"}, {"sqlite:///", "sqlite"},
	} {
		if strings.Contains(src, e.mark) && !slices.Contains(found, e.name) {
			found = append(found, e.name)
		}
	}
	return found
}
