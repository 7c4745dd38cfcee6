package launch

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	settingsModule = regexp.MustCompile(`DJANGO_SETTINGS_MODULE["']\s*,\s*["']([\w.]+)["']`)
	healthPath     = regexp.MustCompile(`\b(?:(?:re_)?path|url)\(\s*r?["']\^?((?:ht|health|healthz|health-check|healthcheck|health_check|livez|up|ping|status)/?)\$?["']`)
)

// djangoProject is a Django project as far as it is understood.
type djangoProject struct {
	s        *scanner
	dir      string // of manage.py: "." or "backend"
	module   string // settings module that the app runs with
	settings *settings
	python   *python
	packages []string // Debian's; nil: pip installs
	missing  string   // why not Debian's
	wsgi     string   // "shop.wsgi"
	asgi     bool
	root     string // STATIC_ROOT inside the machine, "" unknown
	url      string // STATIC_URL, "" not served here
	wrapped  bool   // a settings module is written around the project's
}

const workdir = "/app"

func (s *scanner) django() (bool, error) {
	dir, manage := s.findManage()
	if manage == "" {
		return false, nil
	}
	m := settingsModule.FindStringSubmatch(manage)
	if m == nil {
		return false, nil
	}
	p := &djangoProject{s: s, dir: dir, module: m[1]}
	p.production()
	var ok bool
	if p.settings, ok = s.readSettings(dir, p.module); !ok {
		s.todo("manage.py names the settings module %s, but there is no such file", p.module)
	}
	p.python = s.readPython(dir)
	s.plan.Kind = "django"
	s.plan.Title = "Django" + p.version() + " project " + strings.Split(p.module, ".")[0]
	s.fly.about = "A Django project."
	s.choose("Django: settings module %s", p.module)
	p.choosePackages()
	p.chooseServer()
	p.completeSettings()
	p.chooseStatics()
	p.chooseDatabase()
	p.chooseHosts()
	p.chooseHTTPS()
	p.chooseCheck()
	p.chooseSecrets()
	p.chooseProcesses()
	s.fly.swap = 512
	s.fly.signal, s.fly.signalWhy = "SIGTERM", "gunicorn finishes what it is at on SIGTERM; on SIGINT it drops it."
	s.write("Dockerfile", p.dockerfile())
	s.write(".dockerignore", p.dockerignore())
	return true, nil
}

// findManage looks for manage.py here, or in one folder below.
func (s *scanner) findManage() (dir, manage string) {
	if text, ok := s.read("manage.py"); ok {
		return ".", text
	}
	for _, d := range s.folders() {
		if text, ok := s.read(d + "/manage.py"); ok {
			return d, text
		}
	}
	return "", ""
}

// production picks the settings that are meant for a server, where manage.py
// names those of a developer: those of wsgi.py, which only servers load, or
// those that are called so.
func (p *djangoProject) production() {
	take := func(module, why string) {
		p.s.choose("settings: %s%s, instead of manage.py's %s", module, why, p.module)
		p.module = module
	}
	for _, name := range []string{"wsgi", "asgi"} {
		file := p.s.moduleFile(p.dir, strings.Split(p.module, ".")[0]+"."+name)
		src, _ := p.s.read(file)
		m := settingsModule.FindStringSubmatch(src)
		if m != nil && m[1] != p.module && !forDevelopers.MatchString(m[1]) && p.s.moduleFile(p.dir, m[1]) != "" {
			take(m[1], ", which "+file+" names")
			return
		}
	}
	base, last, ok := cutLast(p.module)
	if !ok {
		return
	}
	base += "."
	switch {
	case last == "settings":
		base += "settings_"
	case !forDevelopers.MatchString(last):
		return
	case strings.Contains(last, "_"):
		base += last[:strings.LastIndexByte(last, '_')+1]
	}
	for _, name := range []string{"production", "prod", "deploy"} {
		if p.s.moduleFile(p.dir, base+name) != "" {
			take(base+name, "")
			return
		}
	}
}

// forDevelopers is how settings modules are called that are not for servers.
var forDevelopers = regexp.MustCompile(`(?:^|[._])(?:local|dev|develop|development|base|test|testing)$`)

func cutLast(module string) (before, after string, found bool) {
	i := strings.LastIndexByte(module, '.')
	if i < 0 {
		return "", module, false
	}
	return module[:i], module[i+1:], true
}

// version is " 4.2" if the project says which Django it wants.
func (p *djangoProject) version() string {
	if r := p.python.get("django"); r != nil {
		for _, spec := range r.specs {
			if v := strings.TrimLeft(spec, "=>~"); v != spec {
				parts := strings.Split(v, ".")
				return " " + strings.TrimSuffix(strings.Join(parts[:min(2, len(parts))], "."), ".*")
			}
		}
	}
	if m := djangoMade.FindStringSubmatch(p.settings.text); m != nil {
		return " " + m[1]
	}
	return ""
}

func (p *djangoProject) choosePackages() {
	if p.python.source == "" {
		// The project was made with a Django of which Debian's may be too old.
		for _, name := range []string{"django", "gunicorn"} {
			if p.python.get(name) == nil {
				p.python.needs = append(p.python.needs, requirement{name: name})
			}
		}
		if m := djangoMade.FindStringSubmatch(p.settings.text); m != nil {
			p.python.get("django").specs = []string{">=" + m[1]}
		}
	}
	p.chooseDriver()
	needs := p.python.needs
	if p.python.get("gunicorn") == nil {
		needs = append(slices.Clone(needs), requirement{name: "gunicorn"})
	}
	if p.asgi = p.wantsASGI(); p.asgi && p.python.get("uvicorn") == nil {
		needs = append(slices.Clone(needs), requirement{name: "uvicorn"})
	}
	p.packages, p.missing = debianPackages(needs)
	if p.packages != nil && strings.Contains(p.settings.text, "django.contrib.admin") {
		// Debian's Django only recommends what the admin's static files link to.
		p.packages = append(p.packages, "libjs-jquery")
		slices.Sort(p.packages)
	}
	where := "what the source imports"
	if p.python.source != "" {
		where = p.python.source
	}
	if p.packages != nil {
		p.s.choose("packages: Debian 12's own (%s), which have everything in %s: the build needs no PyPI", strings.Join(p.packages, " "), where)
		return
	}
	p.s.choose("packages: pip, since Debian 12 does not have %s of %s: the build needs PyPI and Docker Hub", p.missing, where)
	if p.python.source == "" {
		p.s.todo("there is no requirements.txt: the Dockerfile installs what the source imports; write one with the versions you use")
	}
}

// chooseDriver: nothing in the source imports what a database needs.
func (p *djangoProject) chooseDriver() {
	for _, d := range []struct {
		engine string
		any    []string
	}{
		{"postgresql", []string{"psycopg2", "psycopg2-binary", "psycopg"}}, {"mysql", []string{"mysqlclient", "pymysql"}},
	} {
		has := slices.ContainsFunc(d.any, func(name string) bool { return p.python.get(name) != nil })
		switch {
		case has || !slices.Contains(p.settings.engines(), d.engine):
		case p.python.source == "":
			p.python.needs = append(p.python.needs, requirement{name: d.any[0]})
		default:
			p.s.todo("the settings use %s, but %s names no driver for it (%s)", d.engine, p.python.source, d.any[0])
		}
	}
}

// wantsASGI: only who uses it has a server for it.
func (p *djangoProject) wantsASGI() bool {
	return p.asgiModule() != "" &&
		(p.python.get("channels") != nil || p.python.get("daphne") != nil || p.python.get("uvicorn") != nil)
}

// asgiModule is what a server for ASGI runs, "" if the project has none:
// startproject makes an asgi.py that its settings do not name.
func (p *djangoProject) asgiModule() string {
	if m := strings.TrimSuffix(p.settings.str("ASGI_APPLICATION"), ".application"); m != "" {
		return m
	}
	if m := strings.Split(p.module, ".")[0] + ".asgi"; p.s.moduleFile(p.dir, m) != "" {
		return m
	}
	return ""
}

func (p *djangoProject) chooseServer() {
	p.wsgi = strings.TrimSuffix(p.settings.str("WSGI_APPLICATION"), ".application")
	if p.asgi {
		p.wsgi = p.asgiModule()
	}
	if p.wsgi == "" {
		p.wsgi = strings.Split(p.module, ".")[0] + ".wsgi"
	}
	if base, attr, ok := cutLast(p.wsgi); ok && p.s.moduleFile(p.dir, p.wsgi) == "" && p.s.moduleFile(p.dir, base) != "" {
		p.wsgi = base + ":" + attr // another name than "application"
	} else if p.s.moduleFile(p.dir, p.wsgi) == "" {
		p.s.todo("gunicorn is told to run %s, but there is no such file", p.wsgi)
	}
	kind := ""
	if p.asgi {
		kind = " and uvicorn's workers (ASGI)"
	}
	p.s.choose("server: gunicorn with 2 workers%s for %s: they fit into 256 MB with 512 MB of swap behind", kind, p.wsgi)
}

// completeSettings writes a settings module around one that was only meant for
// a developer's computer: as startproject makes it, it says neither where
// collected files go nor which hosts it answers.
func (p *djangoProject) completeSettings() {
	t := p.settings
	var lines []string
	add := func(why, line string) { lines = append(lines, "# "+why, line, "") }
	if e := t.get("DEBUG"); e != nil && e.kind == name && e.text == "True" {
		add("Pages with tracebacks are for a developer's own computer.", `DEBUG = os.environ.get("DEBUG") == "1"`)
	}
	if strings.HasPrefix(t.str("SECRET_KEY"), "django-insecure-") {
		add("The one in the source is known to everybody who can read it.", `SECRET_KEY = os.environ["SECRET_KEY"]`)
		t.note(envVar{name: "SECRET_KEY", required: true, typ: "str"})
	}
	hosts, whole := t.lists("ALLOWED_HOSTS")
	if _, set := t.vars["ALLOWED_HOSTS"]; whole && len(hosts) == 0 {
		if set || len(lines) > 0 {
			add("<app>."+p.s.o.Domain+" from outside, <app>.internal from other apps, and what fly.toml adds.",
				fmt.Sprintf("ALLOWED_HOSTS = [%q, \".internal\"]\nALLOWED_HOSTS += [h for h in os.environ.get(\"ALLOWED_HOSTS\", \"\").split(\",\") if h]", "."+p.s.o.Domain))
		}
	}
	if _, set := t.vars["STATIC_ROOT"]; !set && strings.Contains(t.text, "staticfiles") {
		base := "BASE_DIR / \"staticfiles\""
		if p, ok := t.path("BASE_DIR", workdir); !ok || p == "" {
			base = "Path(__file__).resolve().parent.parent / \"staticfiles\""
		} else if strings.Contains(t.text, "os.path.dirname") {
			base = "os.path.join(BASE_DIR, \"staticfiles\")"
		}
		add("Where collectstatic puts what Roost serves ([[statics]] in fly.toml).", "STATIC_ROOT = "+base)
	}
	if len(lines) == 0 {
		return
	}
	if !p.knowsHTTPS() {
		add("TLS ends at Roost's proxy, which says so in this header.", `SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")`)
	}
	base, last, nested := cutLast(p.module)
	file, module := "roost_settings.py", "roost_settings"
	from := p.module
	if nested {
		module = base + ".roost_settings"
		file, from = path.Join(strings.ReplaceAll(base, ".", "/"), "roost_settings.py"), "."+last
	}
	imports := "import os\n"
	if strings.Contains(strings.Join(lines, "\n"), "Path(") {
		imports += "from pathlib import Path\n"
	}
	text := fmt.Sprintf("\"\"\"Settings where the app is deployed: those of %s, and what they leave open.\"\"\"\n\n%s\nfrom %s import *  # noqa: F401, F403\n\n%s",
		p.module, imports, from, strings.TrimRight(strings.Join(lines, "\n"), "\n")+"\n")
	p.s.write(path.Join(p.dir, file), text)
	p.s.choose("settings: %s is made for a developer's computer; %s takes it over and adds what a server needs", p.module, path.Join(p.dir, file))
	p.module, p.wrapped = module, true
	p.adopt(path.Join(p.dir, file), text)
}

// adopt reads a settings file that is yet to be written.
func (p *djangoProject) adopt(file, text string) {
	for _, st := range statements(text) {
		if m := assignment.FindStringSubmatch(st.text); m != nil {
			p.settings.assign(file, st.indent, m[1], m[2], parseExpr(m[3]))
		}
	}
}

func (p *djangoProject) chooseStatics() {
	t, s := p.settings, p.s
	if !strings.Contains(t.text, "django.contrib.staticfiles") {
		s.choose("static files: none (django.contrib.staticfiles is not installed)")
		return
	}
	rootDir, ok := t.path("STATIC_ROOT", workdir)
	if !ok {
		s.choose("static files: STATIC_ROOT is not understood, so collectstatic is not run")
		s.todo("add `RUN python3 manage.py collectstatic --noinput` to the Dockerfile and [[statics]] to fly.toml, with STATIC_ROOT as guest_path")
		return
	}
	if !path.IsAbs(rootDir) {
		rootDir = path.Join(workdir, p.dir, rootDir)
	}
	p.root, p.url = rootDir, "/static/"
	if e := t.get("STATIC_URL"); e != nil && e.kind == text {
		p.url = "/" + strings.Trim(e.text, "/") + "/"
		if strings.Contains(e.text, "://") {
			p.url = ""
		}
	}
	if p.url == "" || p.url == "//" {
		p.url = ""
		s.choose("static files: collected at build time; STATIC_URL is another host's, so nothing is served from here")
		return
	}
	s.fly.statics = []static{{guest: p.root, prefix: p.url}}
	s.fly.staticsWhy = "Made by collectstatic in the Dockerfile, served without waking a machine."
	s.choose("static files: collected at build time into %s, served at %s by Roost itself, also while every machine sleeps", p.root, p.url)
	if strings.Contains(t.text, "whitenoise") {
		s.choose("whitenoise stays: it answers what Roost does not find")
	}
	if _, set := t.vars["MEDIA_ROOT"]; set {
		s.todo("MEDIA_ROOT is in the machine's own file system, which begins anew at each start: keep uploads in an object store")
	}
}

func (p *djangoProject) chooseDatabase() {
	s := p.s
	s.fly.release = "python3 manage.py migrate --noinput"
	s.fly.releaseWhy = "Before a release serves; if it fails, the former one stays."
	s.choose("migrations: run before each release; a failing one stops it")
	engines := p.settings.engines()
	url := false
	for _, v := range p.settings.env {
		url = url || v.name == "DATABASE_URL"
	}
	switch {
	case url:
		s.choose("database: DATABASE_URL says which (postgres://user:password@db.internal:5432/name)")
		if !slices.Contains(engines, "sqlite") {
			break
		}
		s.todo("without DATABASE_URL the app uses SQLite in the machine's own file system, which each machine makes anew at each start")
	case slices.Contains(engines, "postgresql") || slices.Contains(engines, "mysql"):
		s.choose("database: %s, as the settings say", strings.Join(engines, ", "))
	default:
		s.choose("database: SQLite in the machine's own file system; each machine makes its own at its start")
		s.todo("SQLite begins anew at each start of a machine: for data that matters read DATABASE_URL in the settings and use Postgres")
	}
}

// local is when each machine has a database of its own: a condition of the
// shell, "" for never.
func (p *djangoProject) local() string {
	engines := p.settings.engines()
	if !slices.Contains(engines, "sqlite") {
		return ""
	}
	for _, v := range p.settings.env {
		if v.name == "DATABASE_URL" {
			if v.required {
				return ""
			}
			return `[ -z "$DATABASE_URL" ]`
		}
	}
	if len(engines) > 1 {
		return "" // which one is not for us to know
	}
	return "true"
}

func (p *djangoProject) chooseCheck() {
	found := ""
	_ = p.s.sources("urls.py", func(file, src string) { // unreadable folders have no check
		if m := healthPath.FindStringSubmatch(src); m != nil && (found == "" || strings.Count(file, "/") < 2) {
			found = "/" + m[1]
		}
	})
	if found == "" {
		p.s.fly.checkHost = ""
		p.s.choose("health check: none, no path such as ht/ or healthz/ is in urls.py; a machine counts as ready when its port answers")
		return
	}
	p.s.fly.check = found
	name := p.s.fly.checkHost
	if name == "" {
		name = p.s.o.App + "." + p.s.o.Domain
	}
	p.s.choose("health check: %s with Host %s, which ALLOWED_HOSTS lets in", found, name)
}

func (p *djangoProject) chooseSecrets() {
	var names []string
	for _, v := range p.settings.env {
		random := strings.HasSuffix(v.name, "SECRET_KEY")
		if !v.required && random && v.into == "SECRET_KEY" {
			p.s.choose("secrets: %s, in place of what the source has for it", v.name)
			p.s.plan.Secrets = append(p.s.plan.Secrets, Secret{Name: v.name, Random: true})
		}
		if !v.required || slices.ContainsFunc(p.s.fly.env, func(e pair) bool { return e.name == v.name }) {
			continue
		}
		names = append(names, v.name)
		p.s.plan.Secrets = append(p.s.plan.Secrets, Secret{Name: v.name, Random: random})
	}
	if len(names) > 0 {
		p.s.choose("secrets: the settings need %s; the build gets dummies, the machines the app's secrets", strings.Join(names, ", "))
	}
}

// chooseProcesses adds background workers that the project has for certain.
func (p *djangoProject) chooseProcesses() {
	if p.python.get("celery") == nil {
		return
	}
	app := ""
	_ = p.s.sources("celery.py", func(file, src string) { // unreadable folders have none
		if strings.Contains(src, "Celery(") && app == "" {
			app = strings.ReplaceAll(strings.TrimPrefix(path.Dir(file), p.dir+"/"), "/", ".")
		}
	})
	if app == "" || app == "." {
		return
	}
	p.s.fly.web = "web"
	start := p.start()
	if start[0] == "sh" {
		start[2] = "'" + start[2] + "'"
	}
	p.s.fly.processes = []pair{{"web", strings.Join(start, " ")}, {"worker", "python3 -m celery -A " + app + " worker --concurrency 1"}}
	p.s.choose("processes: web and a Celery worker (%s), from one image", app)
}

func (p *djangoProject) command() []string {
	c := []string{"gunicorn", "--bind", "0.0.0.0:" + strconv.Itoa(p.s.plan.Port), "--workers", "2"}
	if p.asgi {
		c = append(c, "--worker-class", "uvicorn.workers.UvicornWorker")
	}
	return append(c, p.wsgi)
}

// dummies are values for the variables that settings require while the image
// is built: of the right form, and of no use.
func (p *djangoProject) dummies() string {
	var out []string
	for _, v := range p.settings.env {
		if !v.required {
			continue
		}
		out = append(out, v.name+"="+p.dummy(v))
	}
	return strings.Join(out, " ")
}

func (p *djangoProject) dummy(v envVar) string {
	has := func(part string) bool { return strings.Contains(v.name, part) }
	switch {
	case v.typ == "bool" || v.typ == "int":
		return "0"
	case v.typ == "db" || has("DATABASE_URL"):
		switch {
		case p.python.get("psycopg") != nil || p.python.get("psycopg2") != nil || p.python.get("psycopg2-binary") != nil || slices.Contains(p.settings.engines(), "postgresql"):
			return "postgres://build:build@localhost/build"
		case p.python.get("mysqlclient") != nil:
			return "mysql://build:build@localhost/build"
		}
		return "sqlite:////tmp/build.sqlite3"
	case v.typ == "email":
		return "smtp://localhost"
	case v.typ == "json" || v.typ == "dict":
		return "{}"
	case v.typ == "cache" || has("REDIS") || has("BROKER"):
		return "redis://localhost:6379/0"
	case v.typ == "url" || has("URL") || has("DSN"):
		return "http://localhost"
	case has("PORT"):
		return "1"
	case has("HOST"):
		return "localhost"
	}
	return "build"
}
