package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"
	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/buildcontext"
	"github.com/roost-run/roost/internal/builder/buildkit"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/image"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime/cgroup"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		println("these tests mount overlay file systems: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// host is a builder with the store that it borrows.
type host struct {
	store  *image.Store
	lent   string // its socket
	socket string
	dir    string
	stop   func() error // ends the builder and returns what it returned
}

func start(tb testing.TB, edit func(*options)) *host {
	tb.Helper()
	dir := tb.TempDir()
	s, err := image.Open(tb.Context(), image.Options{Root: filepath.Join(dir, "images"), Domain: "roost.test", KeepFor: 1})
	if err != nil {
		tb.Fatal(err)
	}
	storeListener, err := ipc.Listen(filepath.Join(dir, "store.sock"), 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	h := &host{store: s, lent: filepath.Join(dir, "store.sock"), socket: filepath.Join(dir, "builder.sock"), dir: filepath.Join(dir, "builder")}
	l, err := ipc.Listen(h.socket, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	o := options{Dir: h.dir, Store: filepath.Join(dir, "store.sock"), Registry: "registry.roost.test", Idle: time.Hour, Slots: 1, Log: slog.New(slog.DiscardHandler),
		BuildKit: buildkit.Options{Runtime: "runc", CgroupParent: "/roost-test-" + ulid.Make().String() + "/builds", Cache: root.GiB}}
	if edit != nil {
		edit(&o)
	}
	tb.Cleanup(func() { // after the builder, below
		group, err := cgroup.Open(filepath.Dir(o.BuildKit.CgroupParent))
		if err == nil {
			err = errors.Join(group.RemoveGroup(filepath.Base(o.BuildKit.CgroupParent)), group.Remove())
		}
		if err != nil {
			tb.Error(err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, storeListener); err != nil {
			tb.Error(err)
		}
	})
	bctx, bcancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	wg.Go(func() { result <- serve(bctx, l, o) })
	h.stop = sync.OnceValue(func() error { bcancel(); return <-result })
	tb.Cleanup(func() {
		if err := h.stop(); err != nil {
			tb.Error(err)
		}
		cancel()
		wg.Wait()
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return h
}

// source makes a directory of files; a name that ends in -> is a symbolic
// link, one that ends in * an executable.
func source(tb testing.TB, files map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	for n, body := range files {
		link, isLink := strings.CutSuffix(n, "->")
		n, program := strings.CutSuffix(link, "*")
		name, mode := filepath.Join(dir, n), os.FileMode(0o644)
		if program {
			mode = 0o755
		}
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if isLink {
			err = errors.Join(err, os.Symlink(body, name))
		} else {
			err = errors.Join(err, os.WriteFile(name, []byte(body), mode))
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// key is that of a test's app.
func key(app root.AppName) string { return string(app) + ".1" }

// send uploads a directory and returns the context's name and how many files
// went over the wire.
func send(tb testing.TB, h *host, app root.AppName, dir string) (id string, sent int) {
	tb.Helper()
	s, err := buildcontext.Scan(tb.Context(), dir, buildcontext.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	manifest, err := json.Marshal(s.Manifest)
	if err != nil {
		tb.Fatal(err)
	}
	c := NewClient(h.socket)
	state, err := c.Context(tb.Context(), key(app), bytes.NewReader(manifest))
	if err != nil {
		tb.Fatal(err)
	}
	var blobs bytes.Buffer
	if err := s.Write(&blobs, state.Missing); err != nil {
		tb.Fatal(err)
	}
	if err := c.Blobs(tb.Context(), key(app), state.ID, &blobs); err != nil {
		tb.Fatal(err)
	}
	return state.ID, len(state.Missing)
}

const goMod = "module example.com/shop/v2\n\ngo 1.24\n"

const program = `package main

import (
	"fmt"
	"os"
	"os/user"
	"time"
)

func main() {
	at, err := time.LoadLocation("Europe/Berlin")
	fmt.Println(at, err)
	who, err := user.Current()
	fmt.Println(who.Username, err)
	certs, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	fmt.Println(len(certs) > 1000, err)
	fmt.Println(os.WriteFile("/tmp/x", nil, 0o600), os.WriteFile("/app/x", nil, 0o600) != nil)
}
`

func build(tb testing.TB, h *host, app root.AppName, files map[string]string, pkg string) (root.Image, []string, error) {
	tb.Helper()
	return run(tb, tb.Context(), h, Request{App: app, Key: key(app), Kind: KindGo, Package: pkg}, files)
}

// run builds a directory of files and returns the log's lines.
func run(tb testing.TB, ctx context.Context, h *host, r Request, files map[string]string) (root.Image, []string, error) { //nolint:revive // the test comes first
	tb.Helper()
	r.Context, _ = send(tb, h, r.App, source(tb, files))
	var lines []string
	img, err := NewClient(h.socket).Build(ctx, r, func(n News) {
		if n.Status == nil {
			lines = append(lines, n.Log)
		}
	})
	return img, lines, err
}

func TestBuildGo(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	files := map[string]string{"go.mod": goMod, "main.go": program, "README->": "go.mod"}
	img, lines, err := build(t, h, "my-shop", files, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(lines, "\n"))
	}
	if img.Registry != "registry.roost.test" || img.Repository != "my-shop" || !strings.HasPrefix(img.Tag, "deployment-") {
		t.Errorf("image: got %s", img.Ref())
	}
	if !slices.Contains(lines, "go build example.com/shop/v2") {
		t.Errorf("log: got %q", lines)
	}
	if _, err := h.store.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	resolved, err := h.store.Resolve(t.Context(), img.Ref())
	if err != nil || resolved.Digest != img.Digest {
		t.Errorf("resolve: got %v, %v", resolved, err)
	}
	config, err := h.store.Config(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/app/shop"}, config.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	// The program runs on what the image has, as its user.
	target := filepath.Join(t.TempDir(), "rootfs")
	if err := h.store.Mount(t.Context(), "m1", img.Digest, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Unmount(context.Background(), "m1", target); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.CommandContext(t.Context(), "chroot", "--userspec", config.Config.User, target, "/app/shop")
	cmd.Env = config.Config.Env
	got, err := cmd.CombinedOutput()
	want := "Europe/Berlin <nil>\nnonroot <nil>\ntrue <nil>\n<nil> true\n"
	if err != nil || string(got) != want {
		t.Errorf("the program says %q, %v; want %q", got, err, want)
	}

	again, _, err := build(t, h, "my-shop", files, "")
	if err != nil || again.Digest != img.Digest || again.Tag == img.Tag {
		t.Errorf("the same again: got %s, %v; want the digest %s under a new tag", again.Ref(), err, img.Digest)
	}
	elsewhere, _, err := build(t, start(t, nil), "other", files, ".")
	if err != nil || elsewhere.Digest != img.Digest {
		t.Errorf("the same on another host: got %s, %v; want the digest %s", elsewhere.Digest, err, img.Digest)
	}
	files["main.go"] = strings.Replace(program, "/tmp/x", "/tmp/y", 1)
	changed, _, err := build(t, h, "my-shop", files, "")
	if err != nil || changed.Digest == img.Digest {
		t.Errorf("changed source: got %s, %v; want another digest", changed.Digest, err)
	}
	patience.Until(t, "the sources to be removed", func() bool {
		left, err := os.ReadDir(filepath.Join(h.dir, "sources"))
		return err == nil && len(left) == 0
	})
}

func TestBuildPackage(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	img, _, err := build(t, h, "a", map[string]string{"go.mod": goMod, "lib/l.go": "package lib\n", "cmd/tool/main.go": "package main\nfunc main() {}\n"}, "./cmd/tool")
	if err != nil {
		t.Fatal(err)
	}
	config, err := h.store.Config(t.Context(), img.Digest)
	if err != nil || !cmp.Equal(config.Config.Entrypoint, []string{"/app/tool"}) {
		t.Errorf("entrypoint: got %v, %v", config.Config.Entrypoint, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	none := start(t, func(o *options) { o.Go = filepath.Join(t.TempDir(), "go") })
	main := "package main\nfunc main() {}\n"
	for _, tc := range []struct {
		name  string
		h     *host
		files map[string]string
		pkg   string
		kind  root.Kind
		want  []string
	}{
		{"no go.mod", h, map[string]string{"main.go": main}, "", root.Invalid, []string{"no go.mod", "go mod init"}},
		{"no such package", h, map[string]string{"go.mod": goMod}, "cmd/x", root.Invalid, []string{`"cmd/x"`}},
		{"package outside", h, map[string]string{"go.mod": goMod}, "../x", root.Invalid, []string{"not a directory inside"}},
		{"package above", h, map[string]string{"go.mod": goMod}, "..", root.Invalid, []string{"not a directory inside"}},
		{"no Go files", h, map[string]string{"go.mod": goMod}, "", root.Invalid, []string{"no Go files"}},
		{"not main", h, map[string]string{"go.mod": goMod, "a.go": "package shop\n", "cmd/shop/main.go": main}, "", root.Invalid, []string{`is "shop"`, "for example cmd/shop"}},
		{"does not compile", h, map[string]string{"go.mod": goMod, "main.go": "package main\nfunc main() { undefined() }\n"}, "", root.Invalid, []string{"does not compile", "main.go:2:15: undefined: undefined"}},
		{"does not parse", h, map[string]string{"go.mod": goMod, "main.go": "package main\nfunc"}, "", root.Invalid, []string{"main.go:2"}},
		{"link out", h, map[string]string{"go.mod": goMod, "main.go": main, "x->": "/etc/passwd"}, "", root.Invalid, []string{`symbolic link "x"`}},
		{"link out, relative", h, map[string]string{"go.mod": goMod, "main.go": main, "x->": "../../x"}, "", root.Invalid, []string{`symbolic link "x"`}},
		{"no toolchain", none, map[string]string{"go.mod": goMod, "main.go": main}, "", root.Precondition, []string{"no Go toolchain", "https://go.dev/dl"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, lines, err := build(t, tc.h, "a", tc.files, tc.pkg)
			if got := root.KindOf(err); err == nil || got != tc.kind {
				t.Fatalf("got %v (kind %v), want kind %v; log:\n%s", err, got, tc.kind, strings.Join(lines, "\n"))
			}
			for _, w := range tc.want {
				if !strings.Contains(root.MessageOf(err), w) {
					t.Errorf("message: got %q, want %q in it", root.MessageOf(err), w)
				}
			}
		})
	}
	if list, err := h.store.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("images after failures: %v, %v", list, err)
	}
	t.Run("kind", func(t *testing.T) {
		_, _, err := run(t, t.Context(), h, Request{App: "a", Key: key("a"), Kind: "docker"}, nil)
		if !root.IsKind(err, root.Invalid) || !strings.Contains(root.MessageOf(err), "docker") {
			t.Errorf("got %v, want Invalid", err)
		}
	})
	t.Run("context not sent", func(t *testing.T) {
		_, err := NewClient(h.socket).Build(t.Context(), Request{App: "a", Key: key("a"), Kind: KindGo, Context: string(digest.FromString("x"))}, nil)
		if !root.IsKind(err, root.NotFound) {
			t.Errorf("got %v, want NotFound", err)
		}
	})
}

// stuck is a go command that tells its process id and its child's, and waits.
func stuck(t *testing.T) (command, pids string) {
	t.Helper()
	dir := t.TempDir()
	command, pids = filepath.Join(dir, "go"), filepath.Join(dir, "pids")
	script := fmt.Sprintf("#!/bin/sh\nsleep 1000 &\necho $$ $! > %[1]s.new\nmv %[1]s.new %[1]s\nwait\n", pids)
	if err := os.WriteFile(command, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return command, pids
}

func TestCancelAndQueue(t *testing.T) {
	t.Parallel()
	command, pids := stuck(t)
	h := start(t, func(o *options) { o.Go = command })
	files := map[string]string{"go.mod": goMod, "main.go": "package main\nfunc main() {}\n"}
	id, _ := send(t, h, "a", source(t, files))
	var running []string
	first, cancel := context.WithCancel(t.Context())
	defer cancel()
	firstErr := make(chan error, 1)
	go func() {
		_, err := NewClient(h.socket).Build(first, Request{App: "a", Key: key("a"), Kind: KindGo, Context: id}, nil)
		firstErr <- err
	}()
	patience.Until(t, "the build to run", func() bool {
		data, err := os.ReadFile(pids)
		running = strings.Fields(string(data))
		return err == nil
	})
	// A second one waits, is told so, and may leave.
	second, leave := context.WithCancel(t.Context())
	defer leave()
	var told string
	_, err := NewClient(h.socket).Build(second, Request{App: "a", Key: key("a"), Kind: KindGo, Context: id}, func(n News) { told = n.Log; leave() })
	if !errors.Is(err, context.Canceled) || !strings.Contains(told, "waiting for 1 other build") {
		t.Errorf("second build: got %v, told %q", err, told)
	}
	cancel()
	if err := <-firstErr; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled build: got %v", err)
	}
	for _, pid := range running {
		patience.Until(t, "process "+pid+" of the build to end", func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ") // its parent's parent may be slow to reap
		})
	}
	patience.Until(t, "the source to be removed", func() bool {
		left, err := os.ReadDir(filepath.Join(h.dir, "sources"))
		return err == nil && len(left) == 0
	})
}

// TestIdle: a request keeps the builder, however long it takes, and the time
// runs from its end.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, err := openContexts(t.TempDir(), contextBudget)
		if err != nil {
			t.Fatal(err)
		}
		s := &server{options: options{Idle: time.Minute, Log: slog.New(slog.DiscardHandler)}, contexts: kept, done: make(chan struct{}, 1)}
		const begins, ends = 50 * time.Second, 20 * time.Minute
		request := s.counted(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-time.After(ends - begins) }))
		time.AfterFunc(begins, func() { request.ServeHTTP(nil, nil) })
		start := time.Now()
		s.untilIdle(t.Context())
		if got, want := time.Since(start), ends+s.Idle; got != want {
			t.Errorf("idle after %s, want %s", got, want)
		}
	})
}

func TestIdleEnds(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) { o.Idle = 50 * time.Millisecond })
	patience.Until(t, "the builder to end by itself", func() bool { _, err := os.Stat(h.socket); return errors.Is(err, os.ErrNotExist) })
	if err := h.stop(); err != nil {
		t.Errorf("idle end: got %v", err)
	}
}

// Run finds everything below its run directory.
func TestRun(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.Run, c.Data, c.Domain = t.TempDir(), t.TempDir(), "roost.test"
	if err := config.WriteEffective(c); err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(t.Context(), image.Options{Root: filepath.Join(c.Data, "images"), Domain: c.Domain})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ipc.Listen(c.StoreSocket(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := Run(ctx, c.Run); err != nil {
			t.Error(err)
		}
	})
	files := map[string]string{"go.mod": goMod, "main.go": "package main\nfunc main() {}\n"}
	img, _, err := build(t, &host{socket: c.BuilderSocket()}, "a", files, "")
	if err != nil {
		t.Error(err)
	}
	if _, err := s.Config(t.Context(), img.Digest); err != nil {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("had enough"))
	defer cancel()
	_, err := NewClient(filepath.Join(t.TempDir(), "none.sock")).Build(ctx, Request{App: "a", Key: key("a"), Kind: KindGo}, nil)
	if err == nil || !strings.Contains(err.Error(), "had enough") {
		t.Errorf("got %v, want the cause", err)
	}
}

func BenchmarkRebuildUnchanged(b *testing.B) {
	h := start(b, nil)
	files := map[string]string{"go.mod": goMod, "main.go": program}
	for b.Loop() {
		if _, _, err := build(b, h, "shop", files, ""); err != nil {
			b.Fatal(err)
		}
	}
}
