package gobuild

import (
	"archive/tar"
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// user runs the program: the one that distroless images made usual.
const (
	userID   = 65532
	userName = "nonroot"
	userHome = "/home/nonroot"
)

// epoch is the time of every file, so that the same files make the same layer.
var epoch = time.Unix(0, 0).UTC()

// hostCertificates are where distributions keep the bundle of CA certificates.
var hostCertificates = []string{
	"/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Alpine, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL
	"/etc/ssl/ca-bundle.pem",             // openSUSE
	"/etc/ssl/cert.pem",
}

// WriteBase writes the layer that all programs share: certificates and time
// zones of the host, the user, /tmp. The same host writes the same bytes. It
// returns what it could not find, for the log.
func WriteBase(w io.Writer, goRoot string) (missing []string, err error) {
	t := layer{tar.NewWriter(w)}
	passwd := "root:x:0:0:root:/root:/sbin/nologin\n" + fmt.Sprintf("%s:x:%d:%d:%s:%s:/sbin/nologin\n", userName, userID, userID, userName, userHome)
	group := "root:x:0:\n" + fmt.Sprintf("%s:x:%d:\n", userName, userID)
	err = errors.Join(
		t.dir("app", 0o755, 0), t.dir("etc", 0o755, 0),
		t.file("etc/group", []byte(group)),
		t.file("etc/nsswitch.conf", []byte("hosts: files dns\n")),
		t.file("etc/passwd", []byte(passwd)),
		t.dir("etc/ssl", 0o755, 0), t.dir("etc/ssl/certs", 0o755, 0),
	)
	if err != nil {
		return nil, err
	}
	certs, err := readFirst(hostCertificates)
	if err != nil {
		missing = append(missing, "CA certificates (install ca-certificates): the program cannot check TLS servers")
	} else if err := t.file("etc/ssl/certs/ca-certificates.crt", certs); err != nil {
		return nil, err
	}
	err = errors.Join(
		t.dir("home", 0o755, 0), t.dir(userHome[1:], 0o750, userID), t.dir("root", 0o700, 0), t.dir("tmp", 0o1777, 0),
		t.dir("usr", 0o755, 0), t.dir("usr/share", 0o755, 0), t.dir("usr/share/zoneinfo", 0o755, 0),
	)
	if err != nil {
		return nil, err
	}
	found, err := t.zones(filepath.Join(goRoot, "lib/time/zoneinfo.zip"))
	if err != nil {
		return nil, err
	}
	if !found {
		missing = append(missing, "time zones: the program only knows UTC")
	}
	return missing, t.Close()
}

func readFirst(names []string) ([]byte, error) {
	for _, n := range names {
		if data, err := os.ReadFile(n); err == nil {
			return data, nil
		}
	}
	return nil, os.ErrNotExist
}

// WriteProgram writes the layer that holds the binary alone.
func WriteProgram(w io.Writer, b Binary) error {
	f, err := os.Open(b.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	t := layer{tar.NewWriter(w)}
	if err := t.WriteHeader(&tar.Header{Name: "app/" + b.Name, Mode: 0o755, Size: st.Size(), ModTime: epoch, Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
		return err
	}
	if _, err := io.Copy(t, f); err != nil {
		return err
	}
	return t.Close()
}

// layer is a tar archive whose bytes depend on names and contents only.
type layer struct{ *tar.Writer }

func (t layer) dir(name string, mode int64, uid int) error {
	return t.WriteHeader(&tar.Header{Name: name + "/", Mode: mode, Uid: uid, Gid: uid, ModTime: epoch, Typeflag: tar.TypeDir, Format: tar.FormatPAX})
}

func (t layer) file(name string, data []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: epoch, Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := t.Write(data)
	return err
}

// zones unpacks the time zones that come with Go.
func (t layer) zones(archive string) (found bool, err error) {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return false, nil //nolint:nilerr // some packagings of Go leave it out; the caller says so
	}
	defer func() { _ = z.Close() }() // only read
	files := slices.DeleteFunc(slices.Clone(z.File), func(f *zip.File) bool { return strings.HasSuffix(f.Name, "/") || !filepath.IsLocal(f.Name) })
	slices.SortFunc(files, func(a, b *zip.File) int { return strings.Compare(a.Name, b.Name) })
	made := map[string]bool{".": true}
	for _, f := range files {
		var parents []string
		for d := path.Dir(f.Name); !made[d]; d = path.Dir(d) {
			made[d] = true
			parents = append(parents, d)
		}
		for _, d := range slices.Backward(parents) {
			if err := t.dir("usr/share/zoneinfo/"+d, 0o755, 0); err != nil {
				return true, err
			}
		}
		r, err := f.Open()
		if err != nil {
			return true, err
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return true, err
		}
		if err := t.file("usr/share/zoneinfo/"+f.Name, data); err != nil {
			return true, err
		}
	}
	return true, nil
}

// Config is the image's config for a program over its layers.
func Config(b Binary, arch string, layers ...ocispec.Descriptor) ocispec.Image {
	c := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{
			User:       fmt.Sprintf("%d:%d", userID, userID),
			Env:        []string{"PATH=/app:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
			Entrypoint: []string{"/app/" + b.Name},
			WorkingDir: userHome,
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.Digest) // plain tars: both digests are one
	}
	return c
}

// Manifest is the image's manifest.
func Manifest(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
	return ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
}
