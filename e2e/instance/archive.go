package instance

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// BuildArchive compiles the Go program of a package and writes a docker
// archive of an image with nothing but it: /app, run by the user "app".
func BuildArchive(ctx context.Context, pkg, name, archive string) error {
	return BuildArchiveFor(ctx, pkg, name, archive, runtime.GOARCH)
}

// BuildArchiveFor is BuildArchive for an architecture.
func BuildArchiveFor(ctx context.Context, pkg, name, archive, arch string) error {
	binary := filepath.Join(filepath.Dir(archive), filepath.Base(archive)+".bin")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	layer, err := tarball(
		file{"app", 0o755, program},
		file{"etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/sbin/nologin\napp:x:1000:1000:app:/:/sbin/nologin\n")},
		file{"etc/group", 0o644, []byte("root:x:0:\napp:x:1000:\n")},
		file{"tmp/", 0o1777, nil},
	)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/app"}, "User": "app", "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	all, err := tarball(file{"manifest.json", 0o644, manifest}, file{"config.json", 0o644, config}, file{"layer.tar", 0o644, layer})
	if err != nil {
		return err
	}
	return os.WriteFile(archive, all, 0o644)
}

type file struct {
	name string // with a trailing slash: a folder
	mode int64
	data []byte
}

func tarball(files ...file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
