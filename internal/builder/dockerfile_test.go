package builder

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image/imagetest"
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
	for _, tool := range []string{"sh", "cat", "sleep", "ls", "dd", "touch", "head", "tail", "stat", "mkdir", "env", "rm"} {
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

func TestDockerfile(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	withShell(t, h)
	r := Request{App: "shop", Kind: KindDockerfile, Scope: "personal", Dockerfile: `# syntax=docker/dockerfile:1
FROM shell:1 AS base
RUN echo made > /made
COPY . /src/
CMD ["cat", "/made"]
`}
	img, _, err := run(t, t.Context(), h, r, map[string]string{"a.txt": "hello", "sub/b*": "program", "l->": "a.txt"})
	if err != nil {
		t.Fatal(err)
	}
	if got := inside(t, h, img, "/bin/cat", "/made", "/src/l"); got != "made\nhello" {
		t.Errorf("files: got %q", got)
	}
	if got := inside(t, h, img, "/bin/stat", "-c", "%a %u", "/src/sub/b"); got != "755 0\n" {
		t.Errorf("mode: got %q", got)
	}
}
