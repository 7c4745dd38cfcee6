package instance

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// BuildArchive compiles the Go program of a package and writes a docker
// archive of an image with nothing but it: /app, run by the user "app".
// Files lie in a layer of their own above it.
func BuildArchive(ctx context.Context, pkg, name, archive string, files ...File) error {
	return BuildArchiveFor(ctx, pkg, name, archive, runtime.GOARCH, files...)
}

// File is a file of an image; without Mode it is 0644.
type File struct {
	Name string // "srv/static/app.css"
	Mode int64
	Data string
	Link string // where a symbolic link leads; "" for a file
	FIFO bool
}

// BuildArchiveFor is BuildArchive for an architecture.
func BuildArchiveFor(ctx context.Context, pkg, name, archive, arch string, files ...File) error {
	p, err := BuildProgram(ctx, pkg, archive+".bin", arch)
	if err != nil {
		return err
	}
	return p.Archive(name, archive, files...)
}

// Program is a compiled program, of which any number of images are made.
type Program struct {
	binary []byte
	arch   string
}

// BuildProgram compiles the Go program of a package into a file.
func BuildProgram(ctx context.Context, pkg, binary, arch string) (*Program, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	program, err := os.ReadFile(binary)
	return &Program{program, arch}, err
}

// Archive writes an image of the program, as BuildArchive does.
func (p *Program) Archive(name, archive string, files ...File) error {
	layer, err := tarball(
		File{Name: "app", Mode: 0o755, Data: string(p.binary)},
		File{Name: "etc/passwd", Data: "root:x:0:0:root:/root:/sbin/nologin\napp:x:1000:1000:app:/:/sbin/nologin\n"},
		File{Name: "etc/group", Data: "root:x:0:\napp:x:1000:\n"},
		File{Name: "tmp/", Mode: 0o1777},
	)
	if err != nil {
		return err
	}
	content := []File{{Name: "layer.tar", Data: string(layer)}}
	layers, diffs := []string{"layer.tar"}, []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}
	if len(files) > 0 {
		upper, err := tarball(files...)
		if err != nil {
			return err
		}
		content = append(content, File{Name: "files.tar", Data: string(upper)})
		layers, diffs = append(layers, "files.tar"), append(diffs, fmt.Sprintf("sha256:%x", sha256.Sum256(upper)))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": p.arch, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/app"}, "User": "app", "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": layers}})
	if err != nil {
		return err
	}
	all, err := tarball(append(content, File{Name: "manifest.json", Data: string(manifest)}, File{Name: "config.json", Data: string(config)})...)
	if err != nil {
		return err
	}
	return os.WriteFile(archive, all, 0o644)
}

// tarball packs files; a name with a trailing slash is a folder.
func tarball(files ...File) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: cmp.Or(f.Mode, 0o644), Size: int64(len(f.Data)), Typeflag: tar.TypeReg, ModTime: archiveTime}
		switch {
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case f.FIFO:
			h.Typeflag = tar.TypeFifo
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, f.Data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// archiveTime is when everything in an image was last changed: the same
// content is the same image.
var archiveTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
