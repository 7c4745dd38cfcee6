package launch

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// folders are the first-level folders that may hold source.
func (s *scanner) folders() []string {
	entries, err := fs.ReadDir(s.fsys, ".")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(skipped, e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out
}

var (
	exposes     = regexp.MustCompile(`(?mi)^\s*EXPOSE\s+(\d+)`)
	settingsEnv = regexp.MustCompile(`DJANGO_SETTINGS_MODULE[= ]"?([\w.]+)`)
	baseless    = regexp.MustCompile(`(?mi)^\s*FROM\s+(?:--\S+\s+)*(\S+)`)
)

// dockerfile: somebody has said already how the app is built.
func (s *scanner) dockerfile() (bool, error) {
	text, ok := s.read("Dockerfile")
	if !ok {
		return false, nil
	}
	s.plan.Kind, s.plan.Title = "dockerfile", "a Dockerfile"
	s.fly.about = "Built by the Dockerfile beside this file."
	if froms := baseless.FindAllStringSubmatch(text, -1); len(froms) > 0 {
		s.choose("image: built by your Dockerfile, from %s", froms[len(froms)-1][1])
	}
	if m := exposes.FindStringSubmatch(text); m != nil {
		s.plan.Port, _ = strconv.Atoi(m[1]) // digits
		s.choose("port: %d, which the Dockerfile exposes", s.plan.Port)
	} else {
		s.choose("port: 8080, since the Dockerfile exposes none; PORT is set to it")
		s.fly.env = append(s.fly.env, pair{"PORT", "8080"})
		s.todo("the app has to listen on 0.0.0.0:8080; change internal_port in fly.toml if it listens elsewhere")
	}
	if !s.has(".dockerignore") {
		s.write(".dockerignore", ".git\n.env*\n**/node_modules\n**/__pycache__\nfly.toml\n")
	}
	// What a Django project has besides its Dockerfile still counts.
	if dir, manage := s.findManage(); manage != "" {
		if m := settingsModule.FindStringSubmatch(manage); m != nil {
			p := &djangoProject{s: s, dir: dir, module: m[1], python: s.readPython(dir)}
			if d := settingsEnv.FindStringSubmatch(text); d != nil {
				p.module = d[1]
			}
			p.settings, _ = s.readSettings(dir, p.module)
			s.plan.Title = "a Django project with a Dockerfile"
			s.fly.release, s.fly.releaseWhy = "python3 manage.py migrate --noinput", "Before a release serves; if it fails, the former one stays."
			s.choose("migrations: run before each release; a failing one stops it")
			if strings.Contains(text, "collectstatic") {
				p.chooseStatics()
			}
			p.chooseHosts()
			p.chooseHTTPS()
			p.chooseCheck()
			p.chooseSecrets()
		}
	}
	return true, nil
}

var (
	packageMain = regexp.MustCompile(`(?m)^package main\s*$`)
	goVersion   = regexp.MustCompile(`(?m)^go (\d+\.\d+)`)
	goModule    = regexp.MustCompile(`(?m)^module\s+(\S+)`)
	listenPort  = regexp.MustCompile(`["'](?:0\.0\.0\.0)?:(\d{2,5})["']`)
)

// golang: a module with one program, or one below cmd/.
func (s *scanner) golang() (bool, error) {
	mod, ok := s.read("go.mod")
	if !ok {
		return false, nil
	}
	version, module := "1.26", "app"
	if m := goVersion.FindStringSubmatch(mod); m != nil {
		version = m[1]
	}
	if m := goModule.FindStringSubmatch(mod); m != nil {
		module = path.Base(m[1])
	}
	s.plan.Kind, s.plan.Title = "go", "Go module "+module
	s.fly.about = "A Go program."
	var mains []string
	port, reads := 0, false
	err := s.sources(".go", func(file, src string) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		if dir := path.Dir(file); packageMain.MatchString(src) && !slices.Contains(mains, dir) {
			mains = append(mains, dir)
		}
		if m := listenPort.FindStringSubmatch(src); m != nil && port == 0 {
			port, _ = strconv.Atoi(m[1]) // digits
		}
		reads = reads || strings.Contains(src, `os.Getenv("PORT")`) || strings.Contains(src, `LookupEnv("PORT")`)
	})
	if err != nil {
		return false, err
	}
	if len(mains) == 0 {
		return false, nil
	}
	program := mains[0]
	for _, dir := range mains {
		if dir == "." || path.Base(dir) == module || strings.Contains(dir, "server") || strings.Contains(dir, "web") {
			program = dir
			break
		}
	}
	target := "."
	if program != "." {
		target = "./" + program
	}
	s.choose("program: %s, built static", target)
	if len(mains) > 1 {
		s.todo("there are several programs (%s): change the Dockerfile if %s is not the one that serves", strings.Join(mains, ", "), target)
	}
	s.choosePort(port, reads)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	deps := s.has("go.sum")
	if compareVersions("1.19", version) >= 0 && !deps {
		line("# Debian's own Go: this builds with and without the internet's registries.")
		line("FROM debian:bookworm-slim AS build")
		line("RUN apt-get update && apt-get install -y --no-install-recommends golang-go \\")
		line("    && rm -rf /var/lib/apt/lists/*")
		s.choose("compiler: Debian 12's Go 1.19, enough for go %s", version)
	} else {
		line("FROM golang:%s AS build", version)
		s.choose("compiler: golang:%s from Docker Hub; without the internet `roost image build` builds with this host's Go", version)
	}
	line("WORKDIR /src")
	if deps {
		line("COPY go.mod go.sum ./")
		line("RUN go mod download")
	}
	line("COPY . .")
	line("RUN CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o /app %s", target)
	line("")
	line("# Nothing but the program, and what it needs to trust others.")
	line("FROM scratch")
	if deps || compareVersions(version, "1.19") > 0 {
		line("COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/")
	}
	line("COPY --from=build /app /app")
	line("USER 65534:65534")
	line("EXPOSE %d", s.plan.Port)
	line("ENTRYPOINT [\"/app\"]")
	s.write("Dockerfile", b.String())
	s.write(".dockerignore", ".git\n.env*\nfly.toml\nDockerfile\n")
	return true, nil
}

// choosePort takes the port that the source names, or tells the app one.
func (s *scanner) choosePort(port int, reads bool) {
	switch {
	case reads:
		s.fly.env = append(s.fly.env, pair{"PORT", strconv.Itoa(s.plan.Port)})
		s.choose("port: %d; the app reads it from PORT", s.plan.Port)
	case port > 0:
		s.plan.Port = port
		s.choose("port: %d, which the source names", port)
	default:
		s.fly.env = append(s.fly.env, pair{"PORT", strconv.Itoa(s.plan.Port)})
		s.choose("port: %d; PORT is set to it", s.plan.Port)
		s.todo("the app has to listen on 0.0.0.0:%d; change internal_port in fly.toml if it listens elsewhere", s.plan.Port)
	}
}

// packageJSON is the part of package.json that says how an app is run.
type packageJSON struct {
	Name            string
	Main            string
	Scripts         map[string]string
	Dependencies    map[string]string
	DevDependencies map[string]string
	Engines         struct{ Node string }
	PackageManager  string
}

var nodeMajor = regexp.MustCompile(`\d+`)

// node: an app with a start script, or a main file.
func (s *scanner) node() (bool, error) {
	text, ok := s.read("package.json")
	if !ok {
		return false, nil
	}
	var p packageJSON
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		s.todo("package.json is not understood: %v", err)
	}
	start := []string{"npm", "start"}
	switch {
	case p.Scripts["start"] != "":
		// Without npm in between signals reach the app.
		if words := strings.Fields(p.Scripts["start"]); words[0] == "node" && !strings.ContainsAny(p.Scripts["start"], "&|;$'\"") {
			start = words
		}
	case s.has(first(p.Main, "server.js")):
		start = []string{"node", first(p.Main, "server.js")}
	case s.has("index.js"):
		start = []string{"node", "index.js"}
	default:
		return false, nil
	}
	s.plan.Kind, s.plan.Title = "node", "Node app "+first(p.Name, s.o.Folder)
	s.fly.about = "A Node app."
	s.choose("start: %s", strings.Join(start, " "))
	port, reads := 0, false
	err := s.sources(".js", func(_, src string) {
		reads = reads || strings.Contains(src, "process.env.PORT")
		if m := regexp.MustCompile(`\.listen\(\s*(\d{2,5})`).FindStringSubmatch(src); m != nil && port == 0 {
			port, _ = strconv.Atoi(m[1]) // digits
		}
	})
	if err != nil {
		return false, err
	}
	for _, dep := range []string{"next", "nuxt", "express", "fastify", "@remix-run/serve", "@sveltejs/adapter-node"} {
		reads = reads || p.Dependencies[dep] != "" && port == 0
	}
	s.choosePort(port, reads)
	s.nodeFile(&p, start)
	s.write(".dockerignore", ".git\n.env*\nnode_modules\nfly.toml\nDockerfile\n")
	return true, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func (s *scanner) nodeFile(p *packageJSON, start []string) {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	major := 22
	if m := nodeMajor.FindString(p.Engines.Node); m != "" {
		major, _ = strconv.Atoi(m) // digits
	}
	npm := len(p.Dependencies)+len(p.DevDependencies) > 0 || p.Scripts["build"] != "" || start[0] == "npm"
	if major <= 18 && p.Engines.Node != "" || !npm {
		packages := []string{"nodejs"}
		if npm {
			packages = []string{"ca-certificates", "nodejs", "npm"}
		}
		debianBase(&b, packages)
		s.choose("node: Debian 12's own (18), which is all the app asks for")
	} else {
		line("FROM node:%d-slim", major)
		s.choose("node: node:%d-slim from Docker Hub", major)
	}
	line("")
	line("ENV NODE_ENV=production")
	line("WORKDIR %s", workdir)
	install, lock := "npm install", ""
	switch {
	case s.has("pnpm-lock.yaml"):
		install, lock = "npm install -g pnpm && pnpm install --frozen-lockfile", "pnpm-lock.yaml"
	case s.has("yarn.lock"):
		install, lock = "npm install -g yarn && yarn install --frozen-lockfile", "yarn.lock"
	case s.has("package-lock.json"):
		install, lock = "npm ci", "package-lock.json"
	}
	building := p.Scripts["build"] != ""
	if building {
		switch lock {
		case "package-lock.json", "":
			install += " --include=dev"
		default:
			install = strings.Replace(install, " --frozen-lockfile", " --frozen-lockfile --prod=false", 1)
		}
	}
	if npm && len(p.Dependencies)+len(p.DevDependencies) > 0 {
		line("COPY package.json %s./", strings.TrimPrefix(lock+" ", " "))
		line("RUN %s", install)
		s.choose("packages: %s", install)
	}
	line("COPY . .")
	if building {
		line("RUN npm run build")
		s.choose("build: npm run build (%s)", p.Scripts["build"])
	}
	line("")
	line("EXPOSE %d", s.plan.Port)
	line("CMD %s", jsonWords(start))
	s.write("Dockerfile", b.String())
}

var flaskApp = regexp.MustCompile(`(?m)^(\w+)\s*=\s*(Flask|FastAPI|Starlette|Quart)\(`)

// python: Flask, FastAPI and the like.
func (s *scanner) python() (bool, error) {
	p := s.readPython(".")
	app, framework := "", ""
	err := s.sources(".py", func(file, src string) {
		if m := flaskApp.FindStringSubmatch(src); m != nil && (app == "" || strings.Count(file, "/") == 0) {
			app, framework = strings.ReplaceAll(strings.TrimSuffix(strings.TrimSuffix(file, ".py"), "/__init__"), "/", ".")+":"+m[1], m[2]
		}
	})
	if err != nil || app == "" {
		return false, err
	}
	s.plan.Kind, s.plan.Title = "python", framework+" app "+app
	s.fly.about = "A " + framework + " app."
	server := []requirement{{name: "gunicorn"}}
	command := []string{"gunicorn", "--bind", "0.0.0.0:8080", "--workers", "2"}
	if framework != "Flask" {
		server = append(server, requirement{name: "uvicorn"})
		command = append(command, "--worker-class", "uvicorn.workers.UvicornWorker")
	}
	command = append(command, app)
	s.choose("server: %s", strings.Join(command, " "))
	needs, extra := slices.Clone(p.needs), ""
	for _, r := range append(server, requirement{name: strings.ToLower(framework)}) {
		if p.get(r.name) == nil {
			needs = append(needs, r)
			if p.source != "" || !slices.ContainsFunc(p.needs, func(o requirement) bool { return o.name == r.name }) {
				extra += " " + r.name
			}
		}
	}
	if p.source == "" {
		p.needs, extra = needs, ""
	}
	var b strings.Builder
	packages, missing := debianPackages(needs)
	if packages != nil {
		debianBase(&b, packages)
		s.choose("packages: Debian 12's own (%s): the build needs no PyPI", strings.Join(packages, " "))
	} else {
		fmt.Fprintf(&b, "FROM python:%s-slim\n", s.pythonVersion(p))
		s.choose("packages: pip, since Debian 12 does not have %s: the build needs PyPI and Docker Hub", missing)
	}
	fmt.Fprintf(&b, "\nENV PYTHONUNBUFFERED=1\nWORKDIR %s\n", workdir)
	if packages == nil {
		installPython(&b, p, extra)
	}
	fmt.Fprintf(&b, "COPY . .\n\nEXPOSE 8080\nCMD %s\n", jsonWords(command))
	s.write("Dockerfile", b.String())
	s.write(".dockerignore", ".git\n.env*\n**/__pycache__\n**/*.pyc\n.venv\nvenv\nfly.toml\n")
	s.fly.swap = 512
	s.fly.signal, s.fly.signalWhy = "SIGTERM", "gunicorn finishes what it is at on SIGTERM; on SIGINT it drops it."
	return true, nil
}

// site: files and nothing that runs.
func (s *scanner) site() (bool, error) {
	dir := ""
	for _, d := range []string{".", "public", "dist", "_site", "build", "out", "site", "www", "docs"} {
		if s.has(path.Join(d, "index.html")) {
			dir = d
			break
		}
	}
	if dir == "" {
		return false, nil
	}
	s.plan.Kind, s.plan.Title = "site", "a static site in "+dir
	s.fly.about = "A static site."
	s.fly.statics = []static{{guest: "/site", prefix: "/", index: "index.html"}}
	s.fly.staticsWhy = "Roost serves the files itself; the machine sleeps and is only asked for what is not there."
	s.choose("files: %s becomes /site in the image, and Roost serves it without waking the machine", dir)
	s.choose("server: busybox, for what is not a file (it says 404)")
	s.write("Dockerfile", fmt.Sprintf(`# Roost serves /site by itself ([[statics]] in fly.toml); this answers the rest.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends busybox \
    && rm -rf /var/lib/apt/lists/*
COPY %s /site
EXPOSE 8080
CMD ["busybox", "httpd", "-f", "-p", "8080", "-h", "/site"]
`, dir))
	s.write(".dockerignore", ".git\n.env*\nfly.toml\nDockerfile\n.dockerignore\n")
	return true, nil
}
