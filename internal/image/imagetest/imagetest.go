// Package imagetest makes small images and archives of them, in memory, for
// tests: good ones and, since every entry and descriptor can be set by hand,
// bad ones.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path"
	"runtime"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Entry is one file of a layer. A zero Typeflag is a regular file, a zero Mode 0644.
type Entry struct {
	tar.Header
	Body string
}

// File is a regular file.
func File(name, body string, mode int64) Entry {
	return Entry{Header: tar.Header{Name: name, Mode: mode}, Body: body}
}

// Dir is a directory.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Name: name, Mode: mode, Typeflag: tar.TypeDir}}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink}}
}

// Link is a hard link.
func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Name: name, Linkname: target, Mode: 0o644, Typeflag: tar.TypeLink}}
}

// Image is an image to be made. The zero value is one without layers for the
// platform that the test runs on.
type Image struct {
	Name   string // "docker.io/library/demo:1"; may be empty
	Layers [][]Entry
	Config ocispec.ImageConfig
	Arch   string // default: this one's
}

// FromBinary is an image of one static program of the test's host.
func FromBinary(tb testing.TB, name, program string, args ...string) Image {
	tb.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		tb.Fatal(err)
	}
	inside := "bin/" + path.Base(program)
	return Image{
		Name:   name,
		Layers: [][]Entry{{Dir("bin", 0o755), Dir("tmp", 0o1777), File(inside, string(data), 0o755)}},
		Config: ocispec.ImageConfig{Entrypoint: append([]string{"/" + inside}, args...), Env: []string{"PATH=/bin"}, WorkingDir: "/"},
	}
}

// Blobs are what an image consists of.
type Blobs struct {
	Manifest ocispec.Descriptor
	Plain    [][]byte // uncompressed layers
	Config   []byte
	All      map[digest.Digest][]byte
}

// Blobs builds the image, with gzip layers.
func (i Image) Blobs(tb testing.TB) Blobs {
	tb.Helper()
	b := Blobs{All: map[digest.Digest][]byte{}}
	put := func(mediaType string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		b.All[d] = data
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	arch := i.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, Config: i.Config}
	config.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, entries := range i.Layers {
		plain := Tar(tb, entries...)
		b.Plain = append(b.Plain, plain)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayerGzip, compress(tb, plain)))
	}
	b.Config = mustJSON(tb, config)
	m.Config = put(ocispec.MediaTypeImageConfig, b.Config)
	b.Manifest = put(ocispec.MediaTypeImageManifest, mustJSON(tb, m))
	b.Manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return b
}

// Digest is the digest of the image's manifest.
func (i Image) Digest(tb testing.TB) string {
	tb.Helper()
	return i.Blobs(tb).Manifest.Digest.String()
}

// OCI is an OCI layout archive of the images, one index entry each.
func OCI(tb testing.TB, imgs ...Image) []byte {
	tb.Helper()
	entries := []Entry{File(ocispec.ImageLayoutFile, `{"imageLayoutVersion":"1.0.0"}`, 0o644)}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, i := range imgs {
		b := i.Blobs(tb)
		for d, data := range b.All {
			entries = append(entries, File("blobs/sha256/"+d.Encoded(), string(data), 0o644))
		}
		if i.Name != "" {
			b.Manifest.Annotations = map[string]string{"io.containerd.image.name": i.Name}
		}
		idx.Manifests = append(idx.Manifests, b.Manifest)
	}
	entries = append(entries, File(ocispec.ImageIndexFile, string(mustJSON(tb, idx)), 0o644))
	return Tar(tb, entries...)
}

// Docker is what "docker save" writes of the images.
func Docker(tb testing.TB, imgs ...Image) []byte {
	tb.Helper()
	type item struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var (
		list    []item
		entries []Entry
	)
	for _, i := range imgs {
		b := i.Blobs(tb)
		it := item{Config: digest.FromBytes(b.Config).Encoded() + ".json"}
		if i.Name != "" {
			it.RepoTags = []string{i.Name}
		}
		entries = append(entries, File(it.Config, string(b.Config), 0o644))
		for _, plain := range b.Plain {
			name := digest.FromBytes(plain).Encoded() + "/layer.tar"
			it.Layers = append(it.Layers, name)
			entries = append(entries, File(name, string(plain), 0o644))
		}
		list = append(list, it)
	}
	entries = append(entries, File("manifest.json", string(mustJSON(tb, list)), 0o644))
	return Tar(tb, entries...)
}

// Tar writes the entries as they are.
func Tar(tb testing.TB, entries ...Entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Size = int64(len(e.Body))
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, e.Body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func compress(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func mustJSON(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}
