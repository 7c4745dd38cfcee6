package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder/buildkit"
	"github.com/roost-run/roost/internal/image"
	"github.com/roost-run/roost/internal/image/imagetest"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime/cgroup"
)

const shellBase = "docker.io/library/shell:1"

// withShell loads an image with a shell and a few tools of this host, under a
// usual name: base images without a network.
func withShell(tb testing.TB, h *host) {
	tb.Helper()
	entries := []imagetest.Entry{imagetest.Dir("tmp", 0o1777), imagetest.Dir("etc", 0o755), imagetest.File("etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644)}
	seen := map[string]bool{}
	add := func(name, as string) {
		if seen[as] {
			return
		}
		seen[as] = true
		data, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		entries = append(entries, imagetest.File(strings.TrimPrefix(as, "/"), string(data), 0o755))
	}
	library := regexp.MustCompile(`(/\S+) \(0x`)
	for _, tool := range []string{"sh", "cat", "sleep", "ls", "dd", "touch", "head", "tail", "stat", "mkdir", "env", "rm", "test"} {
		file, err := exec.LookPath(tool)
		if err != nil {
			tb.Fatal(err)
		}
		add(file, "/bin/"+tool)
		out, err := exec.CommandContext(tb.Context(), "ldd", file).Output()
		if err != nil {
			tb.Fatal(err)
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			add(m[1], m[1])
		}
	}
	img := imagetest.Image{Name: shellBase, Layers: [][]imagetest.Entry{entries}, Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}}
	if _, err := h.store.Load(tb.Context(), bytes.NewReader(imagetest.Docker(tb, img)), ""); err != nil {
		tb.Fatal(err)
	}
}

// inside runs a command in the image's files.
func inside(t *testing.T, h *host, img root.Image, args ...string) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "rootfs")
	key := "t-" + img.Tag
	if err := h.store.Mount(t.Context(), key, img.Digest, target); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.store.Unmount(context.Background(), key, target); err != nil {
			t.Error(err)
		}
	}()
	out, err := exec.CommandContext(t.Context(), "chroot", append([]string{target}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v in the image: %v\n%s", args, err, out)
	}
	return string(out)
}

// atWork is held while a Dockerfile is built. BuildKit keeps what it knows of
// resolv.conf in variables that every engine of a process shares and none guards
// (executor/oci, GetResolvConf); the product has one engine in a process, these
// tests have one each.
var atWork sync.Mutex

// buildAlone is Build while nobody else builds a Dockerfile.
func buildAlone(ctx context.Context, h *host, r Request, report func(News)) (root.Image, error) {
	atWork.Lock()
	defer atWork.Unlock()
	return NewClient(h.socket).Build(ctx, r, report)
}

// docker builds a Dockerfile and returns what steps printed.
func docker(tb testing.TB, h *host, r Request, files map[string]string) (img root.Image, output string, err error) {
	tb.Helper()
	r.App, r.Key, r.Kind, r.Scope = "shop", key("shop"), KindDockerfile, "personal"
	r.Context, _ = send(tb, h, r.App, source(tb, files))
	var out strings.Builder
	img, err = buildAlone(tb.Context(), h, r, func(n News) { out.WriteString(printed(tb, n)) })
	return img, out.String(), err
}

// printed is what steps wrote, and the names of the steps that were taken from
// the cache.
func printed(tb testing.TB, n News) string {
	tb.Helper()
	var s buildkit.Status
	if n.Status == nil {
		return n.Log + "\n"
	}
	if err := json.Unmarshal(n.Status, &s); err != nil {
		tb.Error(err)
	}
	var out strings.Builder
	for _, l := range s.Logs {
		out.Write(l.Data)
	}
	for _, v := range s.Vertexes {
		if v.Cached {
			out.WriteString("CACHED " + v.Name + "\n")
		}
	}
	return out.String()
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	// The stages share one base: BuildKit sets a flag (to what it is) whenever it
	// resolves an image, which the race detector reports when it resolves two at once.
	files := map[string]string{"a.txt": "hello", "sub/b*": "program", "l->": "a.txt", "ignored.log": "x", ".dockerignore": "*.log\n"}
	r := Request{Target: "final", Args: map[string]string{"VERSION": "7"}, Labels: map[string]string{"team": "shop"}, Dockerfile: `# syntax=docker/dockerfile:1
ARG VERSION=1
FROM shell:1 AS base

FROM base AS build
ARG VERSION
RUN echo version $VERSION > /made && echo not-""cached
RUN --mount=type=cache,target=/cache ls /cache; echo entry > /cache/entry
COPY . /src/

FROM base AS final
COPY --from=build /made /made
COPY --from=build --chown=7:8 --chmod=0640 /src /app/
WORKDIR /app
USER 7
EXPOSE 8080
CMD ["cat", "/made"]

FROM base AS never
RUN exit 9
`}
	img, out, err := docker(t, h, r, files)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "not-cached") {
		t.Errorf("output: got %q", out)
	}
	if got, want := inside(t, h, img, "/bin/cat", "/made", "/app/l"), "version 7\nhello"; got != want {
		t.Errorf("files: got %q, want %q", got, want)
	}
	if got, want := inside(t, h, img, "/bin/stat", "-c", "%n %a %u:%g", "/app/sub/b", "/app/a.txt"), "/app/sub/b 640 7:8\n/app/a.txt 640 7:8\n"; got != want {
		t.Errorf("mode and owner: got %q, want %q", got, want)
	}
	if got := inside(t, h, img, "/bin/ls", "/app"); strings.Contains(got, "ignored") {
		t.Errorf("an ignored file was sent: %q", got)
	}
	config, err := h.store.Config(t.Context(), img.Digest)
	want := ocispec.ImageConfig{
		Env: []string{"PATH=/bin"}, Cmd: []string{"cat", "/made"}, WorkingDir: "/app", User: "7",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}}, Labels: map[string]string{"team": "shop"}, ArgsEscaped: true,
	}
	if diff := cmp.Diff(want, config.Config); err != nil || diff != "" {
		t.Errorf("config: %v (-want +got):\n%s", err, diff)
	}

	// Again: nothing runs, and the image is the same.
	again, out, err := docker(t, h, r, files)
	if err != nil || again.Digest != img.Digest || strings.Contains(out, "not-cached\n") || !strings.Contains(out, "CACHED [build 1/3]") {
		t.Errorf("again: got %s, %v, output %q; want %s", again.Digest, err, out, img.Digest)
	}
	// Collected: a name holds all that it needs, and what it was made of goes
	// on to serve.
	if _, err := h.store.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	withShell(t, h) // there is no budget for it
	if got := inside(t, h, again, "/bin/cat", "/made"); got != "version 7\n" {
		t.Errorf("after a collection: got %q", got)
	}
	// Another argument runs the steps that have it, and finds the cache mount.
	r.Args["VERSION"] = "8"
	img, out, err = docker(t, h, r, files)
	if err != nil || !strings.Contains(out, "not-cached\n") || !strings.Contains(out, "entry\n") {
		t.Errorf("another argument: got %v, output %q", err, out)
	}
	if got := inside(t, h, img, "/bin/cat", "/made"); got != "version 8\n" {
		t.Errorf("another argument: got %q", got)
	}
	// A change of one file, of the same size and within the same second.
	files["a.txt"] = "HELLO"
	img, out, err = docker(t, h, r, files)
	if err != nil || strings.Contains(out, "not-cached\n") {
		t.Errorf("another file: got %v, output %q", err, out)
	}
	if got := inside(t, h, img, "/bin/cat", "/app/a.txt"); got != "HELLO" {
		t.Errorf("another file: got %q", got)
	}
	r.NoCache = true
	if _, out, err = docker(t, h, r, files); err != nil || !strings.Contains(out, "not-cached\n") {
		t.Errorf("without cache: got %v, output %q", err, out)
	}
	// On top of an image of our own.
	img, _, err = docker(t, h, Request{Dockerfile: "FROM " + img.Ref() + "\nRUN echo more > /tmp/more\n"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := inside(t, h, img, "/bin/cat", "/made", "/tmp/more"); got != "version 8\nmore\n" {
		t.Errorf("on top of our own: got %q", got)
	}
}

// The smallest images: nothing to run, nothing to unpack.
func TestDockerfileFromNothing(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	for name, dockerfile := range map[string]string{
		"scratch with a file":      "FROM scratch\nCOPY a /a\nCMD [\"/a\"]\n",
		"scratch with a linked in": "FROM shell:1\nCOPY --link a /a\n",
		"the base alone":           "FROM shell:1\nENV A=b\n",
		"nothing":                  "FROM scratch\nENV A=b\n",
	} {
		t.Run(name, func(t *testing.T) {
			img, _, err := docker(t, h, Request{Dockerfile: dockerfile}, map[string]string{"a*": "x"})
			if err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(t.TempDir(), "rootfs")
			if err := h.store.Mount(t.Context(), "m-"+img.Tag, img.Digest, target); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := h.store.Unmount(context.Background(), "m-"+img.Tag, target); err != nil {
					t.Error(err)
				}
			}()
			_, err = os.Stat(filepath.Join(target, "a"))
			if has := err == nil; has != strings.Contains(dockerfile, "COPY") {
				t.Errorf("file: got %v", err)
			}
		})
	}
}

func TestDockerfileRefuses(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	for _, tc := range []struct {
		name string
		r    Request
		kind root.Kind
		want []string
		not  string
	}{
		{
			"a step fails", Request{Dockerfile: "FROM shell:1 AS one\n\nRUN echo first\nRUN echo why; echo because; \\\n  exit 3\n", DockerfileName: "Dockerfile.web"}, root.Invalid,
			[]string{"RUN echo why", "exit code 3", "Dockerfile.web:4", "> RUN echo why", ">   exit 3", "Last output:\n  why\n  because"}, "  first\n",
		},
		{"unknown target", Request{Dockerfile: "FROM shell:1 AS one\nFROM one AS two\n", Target: "three"}, root.Invalid, []string{`no stage "three"`, "one, two"}, "failed to solve"},
		{"unknown base", Request{Dockerfile: "FROM registry.roost.test/nothing:1\n"}, root.NotFound, []string{"registry.roost.test/nothing:1", "build or push it first", "Dockerfile:1"}, ""},
		{"unknown instruction", Request{Dockerfile: "FROM shell:1\nRUNN x\n"}, root.Invalid, []string{"RUNN", "Dockerfile:2"}, "rpc error"},
		{"file that is not there", Request{Dockerfile: "FROM shell:1\nCOPY nothing /\n"}, root.Invalid, []string{"nothing", "not found", "Dockerfile:2"}, "failed to compute cache key"},
		{"secret that is not given", Request{Dockerfile: "FROM shell:1\nRUN --mount=type=secret,id=TOKEN,required=true cat /run/secrets/TOKEN\n"}, root.Invalid, []string{"TOKEN", "--build-secret TOKEN="}, ""},
		{"empty", Request{Dockerfile: "\n"}, root.Invalid, []string{"empty"}, ""},
		{"command not found", Request{Dockerfile: "FROM shell:1\nRUN nosuchcommand\n"}, root.Invalid, []string{"exit code 127", "nosuchcommand: not found"}, ""},
		{"privileges", Request{Dockerfile: "FROM shell:1\nRUN --security=insecure id\n"}, root.Invalid, []string{"insecure"}, ""},
		{"the host's network", Request{Dockerfile: "FROM shell:1\nRUN --network=host id\n"}, root.Invalid, []string{"network.host"}, ""},
		{"somebody else's image", Request{Dockerfile: "FROM registry.roost.test/other:1\n", Repositories: []string{"shop"}}, root.Forbidden, []string{"registry.roost.test/other:1", "another organisation"}, "policy"},
		{"what came by somebody else's credentials", Request{Dockerfile: "FROM shell:1\n", Repositories: []string{"shop"}, Denied: []string{"docker.io/library/shell"}}, root.Forbidden, []string{"docker.io/library/shell:1"}, "policy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := docker(t, h, tc.r, nil)
			if got := root.KindOf(err); err == nil || got != tc.kind {
				t.Fatalf("got %v (kind %v), want kind %v", err, got, tc.kind)
			}
			message := root.MessageOf(err)
			for _, w := range tc.want {
				if !strings.Contains(message, w) {
					t.Errorf("message: got\n%s\nwant %q in it", message, w)
				}
			}
			if tc.not != "" && strings.Contains(message, tc.not) {
				t.Errorf("message: got\n%s\nwant no %q in it", message, tc.not)
			}
		})
	}
}

// A secret of a build is nowhere when the build has ended.
func TestDockerfileSecrets(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	h := start(t, func(o *options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	withShell(t, h)
	const canary = "canary-3c61f5a0d2"
	for name, dockerfile := range map[string]string{
		"as file":     "FROM shell:1\nRUN --mount=type=secret,id=TOKEN test \"$(cat /run/secrets/TOKEN)\" = " + canary[:3] + "\"" + canary[3:6] + "\"\"${X}\" || cat /run/secrets/TOKEN > /dev/null; stat -c %s /run/secrets/TOKEN\n",
		"as variable": "FROM shell:1\nRUN --mount=type=secret,id=TOKEN,env=TOKEN sh -c 'echo ${#TOKEN}'\n",
		"that fails":  "FROM shell:1\nRUN --mount=type=secret,id=TOKEN cat /run/secrets/TOKEN > /tmp/x; rm /tmp/x; exit 1\n",
	} {
		_, out, err := docker(t, h, Request{Dockerfile: dockerfile, Secrets: map[string]string{"TOKEN": canary}}, nil)
		if fails := strings.Contains(dockerfile, "exit 1"); (err != nil) != fails {
			t.Errorf("%s: got %v", name, err)
		} else if !fails && !strings.Contains(out, fmt.Sprint(len(canary))) {
			t.Errorf("%s: the step did not have the secret: %q", name, out)
		}
		if strings.Contains(out, canary) || err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the output has the secret", name)
		}
	}
	if err := h.stop(); err != nil { // everything is on disk
		t.Error(err)
	}
	if strings.Contains(log.String(), canary) {
		t.Error("the log has the secret")
	}
	files := 0
	for _, dir := range []string{h.dir, h.store.Dir()} {
		err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(name)
			files++
			if bytes.Contains(data, []byte(canary)) {
				t.Errorf("%s has the secret", name)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files < 20 {
		t.Errorf("looked at %d files: something is wrong with this test", files)
	}
}

// Organisations do not see each other's work: a step that ran for one runs
// again for the other, with its own cache mounts.
func TestDockerfileScopes(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	r := Request{App: "shop", Key: key("shop"), Kind: KindDockerfile, Dockerfile: "FROM shell:1\nRUN --mount=type=cache,target=/c cat /c/who; echo mi\"\"ne > /c/who; echo r\"\"an\n"}
	r.Context, _ = send(t, h, "shop", source(t, nil))
	for i, scope := range []string{"a", "b", "a"} {
		r.Scope = scope
		var out string
		_, err := buildAlone(t.Context(), h, r, func(n News) { out += printed(t, n) })
		if err != nil {
			t.Fatal(err)
		}
		if ran := strings.Contains(out, "ran\n"); ran != (i < 2) || strings.Contains(out, "mine") {
			t.Errorf("build %d, of %s: got output %q", i, scope, out)
		}
	}
}

// A client that leaves ends its build: the step's processes, too.
func TestDockerfileCancel(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	mark := fmt.Sprint(100000 + os.Getpid())
	r := Request{App: "shop", Key: key("shop"), Kind: KindDockerfile, Dockerfile: "FROM shell:1\nRUN echo begun; sleep " + mark + "\n"}
	r.Context, _ = send(t, h, "shop", source(t, nil))
	_, err := buildAlone(ctx, h, r, func(n News) {
		if strings.Contains(printed(t, n), "begun") {
			cancel(enough)
		}
	})
	if !errors.Is(err, enough) {
		t.Errorf("got %v, want the cause", err)
	}
	patience.Until(t, "the step's processes to end", func() bool { return !running(t, "sleep\x00"+mark) })
	// The next one is not held up.
	if _, _, err := docker(t, h, Request{Dockerfile: "FROM shell:1\nRUN echo\n"}, nil); err != nil {
		t.Errorf("the next build: %v", err)
	}
}

// running reports whether a process with such a command line exists.
func running(t *testing.T, command string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), command) {
			return true
		}
	}
	return false
}

// A step that wants more memory than builds have fails with that reason, and
// the builder goes on.
func TestDockerfileOutOfMemory(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) {
		parent, name := filepath.Split(o.BuildKit.CgroupParent)
		group, err := cgroup.Open(parent)
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command("sleep", "1000") // in place of the builder, which is this test
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
		if err := group.Join(name, child.Process.Pid, 32*root.MiB); err != nil {
			t.Fatal(err)
		}
		o.BuildKit.Memory = 32 * root.MiB
		o.BuildKit.Killed = func() (func() bool, error) { return group.Killed(name) }
	})
	withShell(t, h)
	_, _, err := docker(t, h, Request{Dockerfile: "FROM shell:1\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n"}, nil)
	if !root.IsKind(err, root.Exhausted) || !strings.Contains(root.MessageOf(err), "32") || !strings.Contains(root.MessageOf(err), "build_memory") {
		t.Errorf("got %v, want Exhausted with the limit and the setting", err)
	}
	if _, _, err := docker(t, h, Request{Dockerfile: "FROM shell:1\nRUN exit 137\n"}, nil); !root.IsKind(err, root.Invalid) || !strings.Contains(root.MessageOf(err), "exit code 137") {
		t.Errorf("killed by itself: got %v, want Invalid", err)
	}
}

// The cache keeps within its budget, without what images need.
func TestDockerfilePrune(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *options) { o.BuildKit.Cache = root.MiB })
	withShell(t, h)
	const dockerfile = "FROM shell:1\nRUN head -c 3000000 /dev/urandom > /big\nRUN echo small > /small\n"
	img, _, err := docker(t, h, Request{Dockerfile: dockerfile}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := inside(t, h, img, "/bin/stat", "-c", "%s", "/big")
	size := func() (total int64) {
		err := filepath.WalkDir(filepath.Join(h.store.Dir(), "overlay"), func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				fi, e := d.Info()
				if e == nil {
					total += fi.Size()
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return total
	}
	// Steps whose result no image has.
	if _, _, err := docker(t, h, Request{Dockerfile: "FROM shell:1 AS base\nFROM base AS a\nRUN head -c 20000000 /dev/urandom > /huge\nFROM base\nCOPY --from=a /bin/sh /sh\n"}, nil); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the cache to be pruned", func() bool { return size() < 20_000_000 })
	if got := inside(t, h, img, "/bin/stat", "-c", "%s", "/big"); got != sum {
		t.Errorf("the image after pruning: got %q, want %q", got, sum)
	}
}

// What BuildKit knows can be thrown away: the store does not keep its layers
// for ever, and images stay.
func TestDockerfileForgotten(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	img, _, err := docker(t, h, Request{Dockerfile: "FROM shell:1\nRUN echo made > /made\n"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	leases := func() (n int) {
		list, err := h.store.Leases().List(image.Context(t.Context()), `labels."roost.run/cache"`)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if leases() == 0 {
		t.Fatal("the cache holds nothing: something is wrong with this test")
	}
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(h.dir, "buildkit")); err != nil {
		t.Fatal(err)
	}
	before := leases()
	conn, err := borrow(h.lent)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	engine, err := buildkit.Open(t.Context(), buildkit.Options{
		Dir: filepath.Join(h.dir, "buildkit"), Registry: "registry.roost.test", Runtime: "runc", Log: slog.New(slog.DiscardHandler),
		Content: conn.content, Snapshots: conn.snaps, Leases: conn.leases, Images: imageStore{conn},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	}()
	if after := leases(); before == 0 || after != 0 {
		t.Errorf("leases of the cache: got %d, then %d, want some, then none", before, after)
	}
	if _, err := h.store.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, h, img, "/bin/cat", "/made"); got != "made\n" {
		t.Errorf("the image: got %q", got)
	}
}
