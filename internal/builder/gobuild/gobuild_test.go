package gobuild

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBinaryName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"example.com/shop": "shop", "example.com/shop/v2": "shop", "example.com/shop/cmd/tool": "tool", "shop": "shop", "v2": "v2",
	} {
		if got := binaryName(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

// A service has neither HOME nor Go in its PATH; what it must not have is the
// rest of the builder's environment.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	home := filepath.Join(t.TempDir(), "home")
	bare, err := environment([]string{"SECRET=x", "CGO_ENABLED=1", "HOME="}, home)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"HOME=" + home, "CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + runtime.GOARCH, "GOWORK=off"} {
		name, _, _ := strings.Cut(want, "=")
		got := ""
		for _, v := range bare { // the last one counts
			if strings.HasPrefix(v, name+"=") {
				got = v
			}
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if slices.Contains(bare, "SECRET=x") {
		t.Error("the build sees all of the builder's environment")
	}
	full, err := environment([]string{"HOME=/root", "PATH=/bin", "GOCACHE=/c", "GOPROXY=http://p"}, home)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"HOME=/root", "PATH=/bin", "GOCACHE=/c", "GOPROXY=http://p"} {
		if !slices.Contains(full, want) {
			t.Errorf("%s is not passed on: %q", want, full)
		}
	}
}

func TestBaseLayer(t *testing.T) {
	t.Parallel()
	var a, b bytes.Buffer
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	goRoot := strings.TrimSpace(string(out))
	missing, err := WriteBase(&a, goRoot)
	if err != nil || len(missing) != 0 {
		t.Fatalf("missing %q, %v", missing, err)
	}
	if _, err := WriteBase(&b, goRoot); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Errorf("two base layers of one host differ (%v)", err)
	}
	type meta struct {
		Mode int64
		UID  int
	}
	got := map[string]meta{}
	seen := map[string]bool{"": true}
	r := tar.NewReader(&a)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if parent := strings.TrimSuffix(name[:strings.LastIndex(name, "/")+1], "/"); !seen[parent] {
			t.Errorf("%s comes before its directory", name)
		}
		if seen[name] {
			t.Errorf("%s comes twice", name)
		}
		seen[name] = true
		if !h.ModTime.Equal(epoch) {
			t.Errorf("%s has time %s", name, h.ModTime)
		}
		got[name] = meta{h.Mode, h.Uid}
	}
	want := map[string]meta{"tmp": {0o1777, 0}, "home/nonroot": {0o750, 65532}, "etc/passwd": {0o644, 0}, "usr/share/zoneinfo/Europe/Berlin": {0o644, 0}, "etc/ssl/certs/ca-certificates.crt": {0o644, 0}}
	for name, m := range want {
		if diff := cmp.Diff(m, got[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	// A host without any of it still makes a layer.
	if missing, err := WriteBase(io.Discard, t.TempDir()); err != nil || len(missing) != 1 || !strings.Contains(missing[0], "time zones") {
		t.Errorf("without time zones: got %q, %v", missing, err)
	}
}

// The toolchain reads for whoever wrote the source: it must not read what is
// the host's.
func TestSourceCannotReadTheHost(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(host, "token"), "secret_of_the_host\n")
	write(filepath.Join(host, "other", "go.mod"), "module other\n")
	write(filepath.Join(host, "other", "other.go"), "package other\n\nconst Secret = 1\n")
	for name, files := range map[string]map[string]string{
		"include": {
			"go.mod":  "module x\n",
			"main.go": "package main\n\nfunc f()\n\nfunc main() { f() }\n",
			"f.s":     "#include \"" + filepath.Join(host, "token") + "\"\n",
		},
		"replace": {
			"go.mod":  "module x\n\nrequire other v0.0.0\n\nreplace other => " + filepath.Join(host, "other") + "\n",
			"main.go": "package main\n\nimport \"other\"\n\nfunc main() { println(other.Secret) }\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for f, text := range files {
				write(filepath.Join(dir, f), text)
			}
			var log strings.Builder
			_, err := Build(t.Context(), Source{Dir: dir, Out: t.TempDir(), Home: t.TempDir()}, func(line string) { log.WriteString(line + "\n") })
			if err == nil {
				t.Fatal("the build went well")
			}
			if all := log.String() + err.Error(); strings.Contains(all, "secret_of_the_host") {
				t.Errorf("the messages tell what is in the host's file: %q", all)
			}
		})
	}
}
