package launch

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// dockerfile is the Dockerfile of a Django project.
func (p *djangoProject) dockerfile() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if p.packages != nil {
		debianBase(&b, p.packages)
	} else {
		p.pipBase(&b)
	}
	line("")
	env := "ENV PYTHONUNBUFFERED=1"
	if p.wrapped || !p.manageSays() {
		env += " DJANGO_SETTINGS_MODULE=" + p.module
	}
	line("%s", env)
	line("WORKDIR %s", workdir)
	if p.packages == nil {
		p.pipInstall(&b)
	}
	line("COPY . .")
	if p.dir != "." {
		line("WORKDIR %s", path.Join(workdir, p.dir))
	}
	line("")
	line("# A machine's file system is the image's at each start: what Python compiles by")
	line("# then would be compiled again and again. Templates of code may not compile.")
	line("RUN python3 -m compileall -q . || true")
	if p.root != "" {
		line("")
		dummies := p.dummies()
		if dummies != "" {
			line("# The settings ask for these; what is built does not depend on them. The real")
			line("# ones are the app's secrets and come to the machines only.")
			dummies += " "
		}
		line("RUN %spython3 manage.py collectstatic --noinput", dummies)
	}
	line("")
	line("EXPOSE %d", p.s.plan.Port)
	switch p.local() {
	case "":
	case "true":
		line("# Each machine has an SQLite database of its own.")
	default:
		line("# Without DATABASE_URL each machine has an SQLite database of its own.")
	}
	line("CMD %s", jsonWords(p.start()))
	return b.String()
}

// start is what a machine that serves runs: the server, and before it what
// makes a database of its own.
func (p *djangoProject) start() []string {
	const migrate = "python3 manage.py migrate --noinput"
	server := strings.Join(p.command(), " ")
	switch when := p.local(); when {
	case "":
		return p.command()
	case "true":
		return []string{"sh", "-c", migrate + " && exec " + server}
	default:
		return []string{"sh", "-c", "if " + when + "; then " + migrate + "; fi && exec " + server}
	}
}

// manageSays reports whether manage.py names the settings that are used.
func (p *djangoProject) manageSays() bool {
	manage, _ := p.s.read(path.Join(p.dir, "manage.py"))
	m := settingsModule.FindStringSubmatch(manage)
	return m != nil && m[1] == p.module
}

func debianBase(b *strings.Builder, packages []string) {
	fmt.Fprintf(b, "# Debian's own packages: this builds with and without the internet's registries.\nFROM debian:bookworm-slim\n\n")
	aptInstall(b, packages)
}

func aptInstall(b *strings.Builder, packages []string) {
	fmt.Fprintf(b, "RUN apt-get update && apt-get install -y --no-install-recommends \\\n        %s \\\n    && rm -rf /var/lib/apt/lists/*\n", strings.Join(packages, " "))
}

func (p *djangoProject) pipBase(b *strings.Builder) {
	fmt.Fprintf(b, "FROM python:%s-slim\n", p.s.pythonVersion(p.python))
	// What pip has to compile, or needs at run time.
	var packages []string
	for _, r := range p.python.needs {
		switch r.name {
		case "psycopg2":
			packages = append(packages, "gcc", "libpq-dev")
		case "psycopg":
			packages = append(packages, "libpq5")
		case "mysqlclient":
			packages = append(packages, "build-essential", "default-libmysqlclient-dev", "pkg-config")
		}
	}
	if slices.Sort(packages); len(packages) > 0 {
		fmt.Fprintln(b)
		aptInstall(b, packages)
	}
}

func (p *djangoProject) pipInstall(b *strings.Builder) {
	extra := ""
	if p.python.get("gunicorn") == nil {
		extra += " gunicorn"
	}
	if p.asgi && p.python.get("uvicorn") == nil {
		extra += " uvicorn"
	}
	installPython(b, p.python, extra)
}

// installPython installs an app's requirements; the layer stays until they change.
func installPython(b *strings.Builder, p *python, extra string) {
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	in := func(name string) string { return path.Join(p.dir, name) }
	pip := "pip install --no-cache-dir"
	switch p.tool {
	case "pip":
		var folders []string
		for _, f := range p.files {
			if folder := path.Dir(f); !slices.Contains(folders, folder) {
				folders = append(folders, folder)
				line("COPY %s %s", path.Join(folder, "*.txt"), path.Join("./", folder)+"/")
			}
		}
		line("RUN %s -r %s%s", pip, in(p.source), extra)
	case "uv":
		line("COPY %s %s ./", in("pyproject.toml"), in("uv.lock"))
		line("RUN %s uv && uv export --frozen --no-dev --no-emit-project -o /tmp/requirements.txt \\", pip)
		line("    && %s -r /tmp/requirements.txt%s", pip, extra)
	case "poetry":
		lock := ""
		if p.locked {
			lock = " " + in("poetry.lock")
		}
		line("COPY %s%s ./", in("pyproject.toml"), lock)
		line("RUN %s poetry%s && poetry config virtualenvs.create false && poetry install --only main --no-root", pip, extra)
	case "pipenv":
		line("COPY %s* ./", in("Pipfile"))
		deploy := ""
		if p.locked {
			deploy = " --deploy" // what the lock file says, or nothing
		}
		line("RUN %s pipenv%s && pipenv install --system%s", pip, extra, deploy)
	case "pyproject":
		line("COPY %s ./", in("pyproject.toml"))
		line("RUN python -c 'import tomllib; print(*tomllib.load(open(\"pyproject.toml\", \"rb\"))[\"project\"][\"dependencies\"], sep=\"\\n\")' > /tmp/requirements.txt \\")
		line("    && %s -r /tmp/requirements.txt%s", pip, extra)
	default:
		var names []string
		for _, r := range p.needs {
			spec := r.name + strings.Join(r.specs, ",")
			if strings.ContainsAny(spec, "<>!~ ") {
				spec = "'" + spec + "'"
			}
			names = append(names, spec)
		}
		line("RUN %s %s", pip, strings.Join(names, " "))
	}
}

// pythonVersion is the one that the project says, or one that its Django runs on.
func (s *scanner) pythonVersion(p *python) string {
	for _, name := range []string{".python-version", "runtime.txt"} {
		if text, ok := s.read(path.Join(p.dir, name)); ok {
			v := strings.TrimPrefix(strings.TrimSpace(text), "python-")
			if parts := strings.Split(v, "."); len(parts) >= 2 && strings.Trim(v, "0123456789.") == "" {
				return parts[0] + "." + parts[1]
			}
		}
	}
	likely := likelyPython(p)
	if satisfied(likely, p.specs) {
		return likely
	}
	for minor := 14; minor > 7; minor-- {
		if v := "3." + strconv.Itoa(minor); satisfied(v, p.specs) {
			return v
		}
	}
	return likely
}

func likelyPython(p *python) string {
	if r := p.get("django"); r != nil {
		switch {
		case satisfied("5.2", r.specs) || satisfied("5.1", r.specs):
			return "3.13"
		case satisfied("5.0", r.specs) || satisfied("4.2", r.specs) || len(r.specs) == 1 && strings.HasPrefix(r.specs[0], "==4.2") || len(r.specs) == 1 && strings.HasPrefix(r.specs[0], "==5"):
			return "3.12"
		}
		return "3.10"
	}
	return "3.13"
}

// jsonWords is a command as a Dockerfile's JSON array, with spaces.
func jsonWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(w); err != nil {
			panic(err) // a string always encodes
		}
		quoted[i] = strings.TrimSpace(b.String())
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func (p *djangoProject) dockerignore() string {
	lines := []string{".git", ".env*", "**/__pycache__", "**/*.pyc", ".venv", "venv", "**/*.sqlite3", "**/node_modules", "fly.toml"}
	if rel, ok := strings.CutPrefix(p.root, workdir+"/"); ok {
		lines = append(lines, rel)
	}
	if media, ok := p.settings.path("MEDIA_ROOT", workdir); ok {
		if rel, ok := strings.CutPrefix(media, workdir+"/"); ok && rel != "" {
			lines = append(lines, rel)
		}
	}
	return strings.Join(lines, "\n") + "\n"
}
