// Package gobuild turns the source of a Go program into an image without a
// Dockerfile: it runs the host's Go toolchain and puts the static binary on a
// small base (CA certificates, time zones, a non-root user). The same source
// gives the same digest. It reads and writes the directories it is given; where
// the image goes is its caller's business.
package gobuild

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	root "github.com/roost-run/roost"
)

// killDelay is how long a killed build may take to let go of its output.
const killDelay = 5 * time.Second

// maxOutput is how much of a failed build's output its error carries.
const maxOutput = 4 << 10

// Source is what to build.
type Source struct {
	Dir     string // root of the uploaded context
	Package string // directory of the main package below Dir, with slashes; "" is "."
	Out     string // directory that keeps the binary between builds, which makes the next one quicker
	Home    string // directory for Go's caches where the environment names none
	Go      string // the go command; "" finds it
}

// Binary is what came out.
type Binary struct {
	Path string // on this host
	Name string // "store"
	Root string // of the Go installation that built it
}

// Build compiles the program, statically and without debug information. Log
// is called with each line that the toolchain prints, from one goroutine. Kind
// Invalid says what is wrong with the source, Precondition that the host has
// no Go toolchain. When ctx ends every process of the build is killed.
func Build(ctx context.Context, s Source, log func(string)) (Binary, error) {
	dir := path.Clean("./" + s.Package)
	if !fs.ValidPath(dir) {
		return Binary{}, root.Errorf(root.Invalid, "package %q is not a directory inside the uploaded one", s.Package)
	}
	inside := filepath.Join(s.Dir, filepath.FromSlash(dir))
	if st, err := os.Stat(inside); err != nil || !st.IsDir() {
		return Binary{}, root.Errorf(root.Invalid, "there is no directory %q in what was uploaded", s.Package)
	}
	if !hasModule(s.Dir, inside) {
		return Binary{}, root.Errorf(root.Invalid, "there is no go.mod in what was uploaded: name the directory that has it, or run \"go mod init\" there")
	}
	b := build{s: s, dir: inside, log: log}
	var err error
	if b.command, err = findGo(s.Go); err != nil {
		return Binary{}, err
	}
	if b.env, err = environment(os.Environ(), s.Home); err != nil {
		return Binary{}, err
	}
	return b.run(ctx)
}

// hasModule looks for go.mod from dir up to top.
func hasModule(top, dir string) bool {
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return true
		}
		if dir == top || len(dir) < len(top) {
			return false
		}
		dir = filepath.Dir(dir)
	}
}

// usual is where the installer from go.dev puts the toolchain; a service's
// PATH does not name it.
const usual = "/usr/local/go/bin/go"

func findGo(given string) (string, error) {
	if given == "" {
		given = "go"
		if _, err := exec.LookPath(given); err != nil {
			given = usual
		}
	}
	p, err := exec.LookPath(given)
	if err != nil {
		return "", &root.Error{Kind: root.Precondition, Message: "there is no Go toolchain on this host: install it from https://go.dev/dl to /usr/local/go, or with \"apt install golang\", and try again", Err: err}
	}
	return p, nil
}

// passed are the variables that a build gets from the builder's own
// environment, besides those that begin with GO.
var passed = []string{"PATH", "HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME"}

// environment is a build's: Go's caches are those of the builder's user, or
// below home where there is none.
func environment(own []string, home string) ([]string, error) {
	var env []string
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") && v != name+"=" })
	}
	for _, v := range own {
		name, _, _ := strings.Cut(v, "=")
		if slices.Contains(passed, name) || strings.HasPrefix(name, "GO") {
			env = append(env, v)
		}
	}
	if !has("HOME") {
		if err := os.MkdirAll(home, 0o700); err != nil {
			return nil, fmt.Errorf("home of builds: %w", err)
		}
		env = append(env, "HOME="+home)
	}
	if !has("PATH") {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin")
	}
	// What root keeps for itself is not for builds, which could not read it.
	return append(env, "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOWORK="+goWork(own), "NETRC=/dev/null", "GIT_CONFIG_GLOBAL=/dev/null"), nil
}

// goWork is off unless asked for: a go.work above the context is not part of it.
func goWork(own []string) string {
	for _, v := range own {
		if w, ok := strings.CutPrefix(v, "GOWORK="); ok && w != "" {
			return w
		}
	}
	return "off"
}

type build struct {
	s       Source
	dir     string // of the main package
	command string
	env     []string
	log     func(string)
	cage    *cage // nil: none
}

// lockIn makes the cage: the source, the binary's directory, and what the go
// command keeps. It is asked elsewhere than in the source's directory, where
// the source could have a say in it.
func (b *build) lockIn(ctx context.Context) (cleanup func(), err error) {
	if err := os.MkdirAll(b.s.Out, 0o700); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	tmp, err := os.MkdirTemp(b.s.Out, "tmp-")
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	cleanup = func() { _ = os.RemoveAll(tmp) } // the next build does not mind
	b.env = append(b.env, "TMPDIR="+tmp, "GOTMPDIR="+tmp)
	outside := build{s: b.s, dir: "/", command: b.command, env: b.env, log: b.log}
	out, text, err := outside.goCommand(ctx, "env", "GOROOT", "GOENV", "GOCACHE", "GOMODCACHE", "GOPATH", "GOTELEMETRYDIR")
	if err != nil {
		cleanup()
		return nil, fmt.Errorf("go env: %w: %s", err, text)
	}
	c := &cage{read: append([]string{filepath.Dir(b.command)}, system...), write: []string{b.s.Dir, b.s.Out}}
	for i, dir := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
		switch {
		case !filepath.IsAbs(dir): // an older go command knows less; some can be "off"
		case i < 2:
			c.read = append(c.read, dir)
		default:
			if i == 4 { // GOPATH: checksums are below pkg; the rest is people's
				first, _, _ := strings.Cut(dir, string(filepath.ListSeparator))
				dir = filepath.Join(first, "pkg")
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				cleanup()
				return nil, fmt.Errorf("build: %w", err)
			}
			c.write = append(c.write, dir)
		}
	}
	b.cage = c
	return cleanup, nil
}

func (b *build) run(ctx context.Context) (Binary, error) {
	cleanup, err := b.lockIn(ctx)
	if err != nil {
		return Binary{}, err
	}
	defer cleanup()
	out, text, err := b.goCommand(ctx, "list", "-f", "{{.Name}} {{.ImportPath}}", ".")
	if err != nil {
		return Binary{}, b.failed(ctx, "the Go package cannot be read", text, err)
	}
	name, importPath, _ := strings.Cut(strings.TrimSpace(out), " ")
	if name != "main" {
		return Binary{}, b.notMain(ctx, name)
	}
	goRoot, _, err := b.goCommand(ctx, "env", "GOROOT")
	if err != nil {
		return Binary{}, fmt.Errorf("go env: %w", err)
	}
	bin := Binary{Name: binaryName(importPath), Root: strings.TrimSpace(goRoot)}
	bin.Path = filepath.Join(b.s.Out, bin.Name)
	b.log("go build " + importPath)
	// No VCS stamp: the context has no history, and the same source must give
	// the same binary.
	_, text, err = b.goCommand(ctx, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", bin.Path, ".")
	if err != nil {
		return Binary{}, b.failed(ctx, "the program does not compile", text, err)
	}
	return bin, nil
}

// notMain says which directories would have done.
func (b *build) notMain(ctx context.Context, name string) error {
	hint := "name the directory of the program's main package"
	b.dir = b.s.Dir
	out, _, err := b.goCommand(ctx, "list", "-e", "-f", `{{if eq .Name "main"}}{{.Dir}}{{end}}`, "./...")
	if err == nil {
		var dirs []string
		for d := range strings.FieldsSeq(out) {
			if rel, err := filepath.Rel(b.s.Dir, d); err == nil {
				dirs = append(dirs, rel)
			}
		}
		const most = 5
		if len(dirs) > 0 {
			hint += ", for example " + strings.Join(dirs[:min(len(dirs), most)], " or ")
		}
	}
	return root.Errorf(root.Invalid, "the Go package in %q is %q, not a program: %s", path.Clean("./"+b.s.Package), name, hint)
}

// failed makes the toolchain's output the message.
func (b *build) failed(ctx context.Context, what, text string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return fmt.Errorf("go: %w", err)
	}
	text = strings.ReplaceAll(text, b.s.Dir+"/", "")
	if len(text) > maxOutput {
		text = text[:maxOutput] + "\n..."
	}
	return &root.Error{Kind: root.Invalid, Code: "build_failed", Message: what + ":\n" + strings.TrimRight(text, "\n"), Err: err}
}

var versionSuffix = regexp.MustCompile(`^v[0-9]+$`)

// binaryName is what "go build" would call the program.
func binaryName(importPath string) string {
	name := path.Base(importPath)
	if versionSuffix.MatchString(name) && strings.Contains(importPath, "/") {
		name = path.Base(path.Dir(importPath))
	}
	return name
}

// goCommand runs the go command in the package's directory; it returns its
// standard output, and the text of its standard error, which is also logged.
func (b *build) goCommand(ctx context.Context, args ...string) (out, text string, err error) {
	cmd := exec.CommandContext(ctx, b.command, args...)
	cmd.Dir, cmd.Env = b.dir, b.env
	// A group of its own, so that compilers and linkers go with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	r, w := io.Pipe()
	var (
		wg     sync.WaitGroup
		stdout strings.Builder
		stderr strings.Builder
	)
	cmd.Stdout, cmd.Stderr = &stdout, w
	wg.Go(func() {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := lines.Text()
			b.log(line)
			// Progress is no part of what went wrong.
			if stderr.Len() < 2*maxOutput && !strings.HasPrefix(line, "go: downloading ") {
				stderr.WriteString(line + "\n")
			}
		}
		_, _ = io.Copy(io.Discard, r) // an endless line: the compiler must not block
	})
	if err = b.start(cmd); err == nil {
		err = cmd.Wait()
	}
	_ = w.Close() // of a pipe in memory: cannot fail
	wg.Wait()
	return stdout.String(), stderr.String(), err
}

// start starts a command in the cage.
func (b *build) start(cmd *exec.Cmd) error {
	if b.cage == nil {
		return cmd.Start()
	}
	err := b.cage.start(cmd.Start)
	if errors.Is(err, errNoCage) {
		b.log("warning: " + err.Error() + ": the source is built without being kept from the host's files")
		b.cage = nil
		return cmd.Start()
	}
	return err
}
