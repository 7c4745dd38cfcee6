package instance

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// LoadGo loads an image under a name that Dockerfiles use ("golang:1.26"): the
// base image with this host's Go where the usual one has it. source is the
// module's directory.
func (in *Instance) LoadGo(ctx context.Context, source, name string) error {
	base, _, err := baseArchive(ctx, source)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOOS", "GOARCH").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	env := strings.Fields(string(out))
	if len(env) != 3 {
		return fmt.Errorf("go env says %q", out)
	}
	layer, archive := filepath.Join(in.Dir, "go-layer.tar"), filepath.Join(in.Dir, "golang.tar")
	defer os.Remove(layer)   //nolint:errcheck // the directory goes
	defer os.Remove(archive) //nolint:errcheck // the directory goes
	if err := tarGo(layer, env[0], path.Join("pkg/tool", env[1]+"_"+env[2])); err != nil {
		return fmt.Errorf("pack %s: %w", env[0], err)
	}
	if err := addLayer(base, layer, archive, "docker.io/library/"+name, "PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	_, err = in.CLI(ctx, "image", "load", archive)
	return err
}

// tarGo packs what compiling a program without C takes of a Go installation.
func tarGo(file, goroot, tools string) error {
	return writeTar(file, func(w *tar.Writer) error {
		return filepath.WalkDir(goroot, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(goroot, name)
			if err != nil {
				return err
			}
			switch top, _, _ := strings.Cut(rel, "/"); {
			case rel == "src/cmd" || d.IsDir() && (top == "api" || top == "doc" || top == "misc" || top == "test" || d.Name() == "testdata"):
				return fs.SkipDir
			case !d.Type().IsRegular() || strings.HasSuffix(rel, "_test.go"):
				return nil
			}
			if dir, tool := path.Split(rel); path.Clean(dir) == tools && tool != "compile" && tool != "link" && tool != "asm" {
				return nil
			}
			return addFile(w, path.Join("usr/local/go", rel), name)
		})
	})
}

// addLayer writes a docker archive with a layer on top of another's.
func addLayer(base, layer, archive, name, env string) (err error) {
	digest, err := digestOf(layer)
	if err != nil {
		return err
	}
	f, err := os.Open(base)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeTar(archive, func(w *tar.Writer) error {
		var config map[string]any
		r := tar.NewReader(f)
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			switch h.Name {
			case "config.json":
				err = json.NewDecoder(r).Decode(&config)
			case "layer.tar":
				if err = w.WriteHeader(h); err == nil {
					_, err = io.Copy(w, r)
				}
			}
			if err != nil {
				return err
			}
		}
		rootfs, ok := config["rootfs"].(map[string]any)
		if !ok {
			return fmt.Errorf("%s is not as scripts/base-image makes it", base)
		}
		diffs, _ := rootfs["diff_ids"].([]any)
		rootfs["diff_ids"] = append(diffs, digest)
		config["config"] = map[string]any{"Env": []string{env}}
		doc, err := json.Marshal(config)
		if err != nil {
			return err
		}
		manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar", "added.tar"}}})
		if err != nil {
			return err
		}
		for _, small := range []File{{Name: "config.json", Data: string(doc)}, {Name: "manifest.json", Data: string(manifest)}} {
			if err := w.WriteHeader(&tar.Header{Name: small.Name, Mode: 0o644, Size: int64(len(small.Data)), Typeflag: tar.TypeReg, ModTime: archiveTime}); err != nil {
				return err
			}
			if _, err := io.WriteString(w, small.Data); err != nil {
				return err
			}
		}
		return addFile(w, "added.tar", layer)
	})
}

func digestOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("sha256:%x", sum.Sum(nil)), nil
}

func writeTar(file string, fill func(*tar.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	return errors.Join(fill(w), w.Close(), f.Close())
}

// addFile copies a file of the host, with its mode.
func addFile(w *tar.Writer, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), Typeflag: tar.TypeReg, ModTime: archiveTime}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
