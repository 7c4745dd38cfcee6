package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image/imagetest"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		println("these tests mount overlay file systems: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// open returns a store in a directory of its own whose mounts go with the test.
func open(tb testing.TB, o Options) *Store {
	tb.Helper()
	if o.Root == "" {
		o.Root = tb.TempDir()
	}
	if o.Domain == "" {
		o.Domain = "roost.test"
	}
	s, err := Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.mu.Lock()
		targets := map[string]string{}
		for k, m := range s.mounts {
			targets[k] = m.Target
		}
		s.mu.Unlock()
		for k, target := range targets {
			if err := s.Unmount(context.Background(), k, target); err != nil {
				tb.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func load(tb testing.TB, s *Store, img imagetest.Image) root.Image {
	tb.Helper()
	got, err := s.Load(tb.Context(), bytes.NewReader(imagetest.OCI(tb, img)), "")
	if err != nil {
		tb.Fatal(err)
	}
	return got[0]
}

var (
	base = []imagetest.Entry{
		imagetest.Dir("etc", 0o755), imagetest.File("etc/name", "base", 0o644),
		imagetest.Dir("data", 0o755), imagetest.File("data/gone", "x", 0o644),
	}
	over = []imagetest.Entry{
		imagetest.File("etc/name", "over", 0o640), imagetest.File("data/.wh.gone", "", 0o644),
		imagetest.Link("etc/alias", "etc/name"), imagetest.Symlink("etc/sym", "/etc/name"),
	}
	demo = imagetest.Image{Name: "docker.io/library/demo:1", Layers: [][]imagetest.Entry{base, over}}
)

func TestLoadAndMount(t *testing.T) {
	t.Parallel()
	for name, archive := range map[string]func(testing.TB, ...imagetest.Image) []byte{"oci": imagetest.OCI, "docker": imagetest.Docker} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, Options{})
			demo := demo
			demo.Config.Env = []string{"A=1"}
			demo.Config.Labels = map[string]string{"who": "me"}
			loaded, err := s.Load(t.Context(), bytes.NewReader(archive(t, demo)), "")
			if err != nil {
				t.Fatal(err)
			}
			want := root.Image{Registry: "docker.io", Repository: "library/demo", Tag: "1", Digest: loaded[0].Digest, Labels: map[string]string{"who": "me"}}
			if diff := cmp.Diff([]root.Image{want}, loaded); diff != "" {
				t.Errorf("loaded (-want +got):\n%s", diff)
			}
			for _, ref := range []string{"demo:1", "docker.io/library/demo:1", "demo@" + string(want.Digest), string(want.Digest)} {
				got, err := s.Resolve(t.Context(), ref)
				if err != nil || got.Digest != want.Digest {
					t.Errorf("resolve %s: got %s, %v", ref, got.Digest, err)
				}
			}
			config, err := s.Config(t.Context(), want.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"A=1"}, config.Config.Env); diff != "" {
				t.Errorf("config env (-want +got):\n%s", diff)
			}

			target := filepath.Join(t.TempDir(), "rootfs")
			if err := s.Mount(t.Context(), "m1", want.Digest, target); err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"etc/name": "over", "etc/alias": "over"} {
				if got, err := os.ReadFile(filepath.Join(target, file)); err != nil || string(got) != want {
					t.Errorf("%s: got %q, %v; want %q", file, got, err, want)
				}
			}
			if _, err := os.Lstat(filepath.Join(target, "data/gone")); !os.IsNotExist(err) {
				t.Errorf("a file that the second layer removes: got %v, want absent", err)
			}
			if err := os.WriteFile(filepath.Join(target, "etc/name"), []byte("written"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := s.Mount(t.Context(), "m1", want.Digest, target); err != nil {
				t.Errorf("mount of the same again: %v", err)
			}
			if err := s.Mount(t.Context(), "m1", want.Digest, target+"2"); !root.IsKind(err, root.Conflict) {
				t.Errorf("mount of a taken key elsewhere: got %v, want Conflict", err)
			}
			if got, _ := s.Mounted(t.Context()); !cmp.Equal(got, []string{"m1"}) {
				t.Errorf("mounted: got %v", got)
			}
			for range 2 {
				if err := s.Unmount(t.Context(), "m1", target); err != nil {
					t.Fatal(err)
				}
			}
			if got, _ := s.Mounted(t.Context()); len(got) != 0 {
				t.Errorf("mounted after unmount: got %v", got)
			}
			// Fresh: what was written is gone.
			if err := s.Mount(t.Context(), "m1", want.Digest, target); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(filepath.Join(target, "etc/name")); string(got) != "over" {
				t.Errorf("second mount of the key: got %q, want the image's file", got)
			}
		})
	}
}

func TestImageWithoutLayers(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, imagetest.Image{Name: "empty:1"})
	target := filepath.Join(t.TempDir(), "rootfs")
	if err := s.Mount(t.Context(), "m1", img.Digest, target); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	one := load(t, s, imagetest.Image{Name: "one:1", Layers: [][]imagetest.Entry{base}})
	two := load(t, s, demo)
	for want, img := range map[string]root.Image{"base": one, "over": two} {
		target := filepath.Join(t.TempDir(), "view")
		for range 2 {
			if err := s.View(t.Context(), img.Digest, target); err != nil {
				t.Fatal(err)
			}
		}
		if got, _ := os.ReadFile(filepath.Join(target, "etc/name")); string(got) != want {
			t.Errorf("file in view: got %q, want %q", got, want)
		}
		if err := os.WriteFile(filepath.Join(target, "etc/name"), nil, 0o644); err == nil {
			t.Error("a view can be written to")
		}
		if keys, _ := s.Mounted(t.Context()); len(keys) != 0 {
			t.Errorf("views are listed as mounts: %v", keys)
		}
		if views, _ := s.Views(t.Context()); views[target] != img.Digest {
			t.Errorf("views: got %v, want %s at %s", views, img.Digest, target)
		}
		for range 2 {
			if err := s.Unview(t.Context(), target); err != nil {
				t.Fatal(err)
			}
		}
		if is, _ := mountinfo.Mounted(target); is {
			t.Error("still mounted after Unview")
		}
		if views, _ := s.Views(t.Context()); len(views) != 0 {
			t.Errorf("views after Unview: got %v", views)
		}
	}
}

func TestMountUnknownImage(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	target := filepath.Join(t.TempDir(), "rootfs")
	err := s.Mount(t.Context(), "m1", "sha256:"+root.Digest(strings.Repeat("0", 64)), target)
	if !root.IsKind(err, root.NotFound) {
		t.Errorf("got %v, want NotFound", err)
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("target is left: %v", err)
	}
	if keys, _ := s.Mounted(t.Context()); len(keys) != 0 {
		t.Errorf("key is left: %v", keys)
	}
}

// After a crash the next process knows what is mounted, also when the mount
// itself did not survive (a reboot), and mounts afresh.
func TestReopen(t *testing.T) {
	t.Parallel()
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "rootfs")
	first, err := Open(t.Context(), Options{Root: dir, Domain: "roost.test"})
	if err != nil {
		t.Fatal(err)
	}
	img := load(t, first, demo)
	if err := first.Mount(t.Context(), "m1", img.Digest, target); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "etc/name"), []byte("written"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "mounts", "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Root: dir})
	if got, _ := s.Mounted(t.Context()); !cmp.Equal(got, []string{"m1"}) {
		t.Errorf("mounted: got %v, want m1", got)
	}
	if err := s.Mount(t.Context(), "m1", img.Digest, target); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(target, "etc/name")); string(got) != "written" {
		t.Errorf("a running machine's file after a restart of the store: got %q", got)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount(t.Context(), "m1", img.Digest, target); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(target, "etc/name")); string(got) != "over" {
		t.Errorf("a file after the mount was lost: got %q, want the image's", got)
	}
}

func TestOpenTwice(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	_, err := Open(t.Context(), Options{Root: s.o.Root})
	if !root.IsKind(err, root.Unavailable) {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestConcurrentMounts(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, demo)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for key := range strings.SplitSeq("abcdefghij", "") {
		wg.Go(func() {
			if err := s.Mount(t.Context(), key, img.Digest, filepath.Join(dir, key)); err != nil {
				t.Error(err)
			}
			if _, err := s.Collect(t.Context()); err != nil {
				t.Error(err)
			}
			if got, _ := os.ReadFile(filepath.Join(dir, key, "etc/name")); string(got) != "over" {
				t.Errorf("%s: got %q", key, got)
			}
		})
	}
	wg.Wait()
}

// empty fails unless nothing at all is stored.
func empty(t *testing.T, s *Store) {
	t.Helper()
	parts, err := s.allParts(Context(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if len(parts) != 0 {
		t.Errorf("left in the store: %v", parts)
	}
	for _, dir := range []string{"content/ingest", "overlay/snapshots", "mounts"} {
		entries, err := os.ReadDir(filepath.Join(s.o.Root, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if len(entries) != 0 {
			t.Errorf("%s: %d entries are left", dir, len(entries))
		}
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("list: got %v, %v", list, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	good := imagetest.OCI(t, demo)
	flipped := bytes.Clone(good)
	// A byte inside a compressed layer: the largest blob's middle.
	layer := demo.Blobs(t)
	for d, data := range layer.All {
		if i := bytes.Index(flipped, data); i >= 0 && d != layer.Manifest.Digest && data[0] == 0x1f {
			flipped[i+len(data)/2] ^= 0xff
			break
		}
	}
	image := func(name string, entries ...imagetest.Entry) []byte {
		return imagetest.OCI(t, imagetest.Image{Name: name, Layers: [][]imagetest.Entry{base, entries}})
	}
	foreign := demo
	foreign.Arch = "s390x"
	device := imagetest.Entry{Header: tar.Header{Name: "../dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}
	for _, tc := range []struct {
		name    string
		archive []byte
		as      string
		want    string // in the message
	}{
		{"not an archive", []byte("hello"), "a:1", "damaged"},
		{"empty", nil, "a:1", "archive"},
		{"some tar", imagetest.Tar(t, imagetest.File("a", "b", 0o644)), "a:1", "neither an OCI layout nor"},
		{"cut off", good[:len(good)/2], "", "damaged"},
		{"damaged layer", flipped, "", "damaged"},
		{"no name", imagetest.OCI(t, imagetest.Image{Layers: demo.Layers}), "", "give a name"},
		{"bad name", good, "UPPER:1", "not valid"},
		{"digest as name", good, "a@" + demo.Digest(t), "cannot name"},
		{"other architecture", imagetest.OCI(t, foreign), "", "linux/s390x"},
		{"other architecture, docker", imagetest.Docker(t, foreign), "", "linux/s390x"},
		{"two images, one name", imagetest.OCI(t, demo, imagetest.Image{Name: "other:1"}), "a:1", "several images"},
		{"path out of root", image("a:1", imagetest.File("../../escape", "x", 0o644)), "", "points out of its root"},
		{"path out of root, deep", image("a:1", imagetest.File("etc/../../escape", "x", 0o644)), "", "points out of its root"},
		{"device out of root", image("a:1", device), "", "points out of its root"},
		{"hard link out of root", image("a:1", imagetest.Link("etc/link", "../../../etc/shadow")), "", "hard link"},
		{"no layer list", imagetest.Tar(t, imagetest.File("oci-layout", `{"imageLayoutVersion":"1.0.0"}`, 0o644), imagetest.File("index.json", `{"manifests":[]}`, 0o644)), "a:1", "holds no image"},
		{"index is no JSON", imagetest.Tar(t, imagetest.File("oci-layout", `{"imageLayoutVersion":"1.0.0"}`, 0o644), imagetest.File("index.json", `{`, 0o644)), "a:1", "not a manifest"},
		{"parts missing", imagetest.Tar(t, imagetest.File("oci-layout", `{"imageLayoutVersion":"1.0.0"}`, 0o644), imagetest.File("index.json",
			`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+demo.Digest(t)+`","size":5}]}`, 0o644)), "a:1", "part of the image is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, Options{})
			_, err := s.Load(t.Context(), bytes.NewReader(tc.archive), tc.as)
			if !root.IsKind(err, root.Invalid) || !strings.Contains(root.MessageOf(err), tc.want) {
				t.Errorf("got %v (kind %v), want Invalid with %q", err, root.KindOf(err), tc.want)
			}
			empty(t, s)
		})
	}
}

// A root file system is no image; that is found out before all of it is stored.
func TestLoadRootFS(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	s.maxFiles = 10
	var files []imagetest.Entry
	for i := range 11 {
		files = append(files, imagetest.File(strconv.Itoa(i), "", 0o644))
	}
	_, err := s.Load(t.Context(), bytes.NewReader(imagetest.Tar(t, files...)), "a:1")
	if !root.IsKind(err, root.Invalid) || !strings.Contains(root.MessageOf(err), "so it is no image") {
		t.Errorf("got %v, want Invalid", err)
	}
	empty(t, s)
}

// A symbolic link inside a layer may point anywhere, and writing through it
// stays inside.
func TestSymlinkStaysInside(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	s := open(t, Options{})
	load(t, s, imagetest.Image{Name: "a:1", Layers: [][]imagetest.Entry{
		{imagetest.Symlink("out", outside), imagetest.File("out/file", "x", 0o644)},
	}})
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("written outside: %v, %v", entries, err)
	}
}

func TestProtectAndRemove(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, demo)
	if err := s.Protect(t.Context(), "machine/148e", img.Digest); err != nil {
		t.Fatal(err)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || !list[0].InUse || list[0].Size == 0 || list[0].Digest != img.Digest {
		t.Errorf("list: got %+v, %v", list, err)
	}
	err = s.Remove(t.Context(), "demo:1")
	if !root.IsKind(err, root.Precondition) || !strings.Contains(root.MessageOf(err), "machine/148e") {
		t.Errorf("remove of a protected image: got %v, want Precondition naming the machine", err)
	}
	if err := s.Protect(t.Context(), "machine/148e", "sha256:"+root.Digest(strings.Repeat("0", 64))); !root.IsKind(err, root.NotFound) {
		t.Errorf("protect of an image that is not here: got %v, want NotFound", err)
	}
	if err := s.Remove(t.Context(), "demo:1"); !root.IsKind(err, root.Precondition) {
		t.Errorf("remove after a failed Protect: got %v, want Precondition", err)
	}
	for range 2 {
		if err := s.Protect(t.Context(), "machine/148e"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), string(img.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "demo:1"); !root.IsKind(err, root.NotFound) {
		t.Errorf("second remove: got %v, want NotFound", err)
	}
	empty(t, s)
}

// big is an image of its own of about size bytes that do not compress.
func big(name string, seed byte, size int) imagetest.Image {
	data := make([]byte, size)
	x := uint32(seed) + 1
	for i := range data {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		data[i] = byte(x)
	}
	return imagetest.Image{Name: name, Layers: [][]imagetest.Entry{{imagetest.File("f"+name[:1], string(data), 0o644)}}}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	const size = 1 << 20 // twice that each: compressed and unpacked
	s := open(t, Options{Budget: 5 * root.MiB, KeepFor: time.Nanosecond, KeepReleases: 1})
	old := load(t, s, big("a:1", 1, size))
	load(t, s, big("b:1", 2, size))
	load(t, s, big("c:1", 3, size))
	kept := load(t, s, big("d:1", 4, size))
	load(t, s, big("registry.roost.test/app:1", 5, size))
	load(t, s, big("registry.roost.test/app:2", 6, size))
	if err := s.Protect(t.Context(), "machine/1", old.Digest); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "rootfs")
	if err := s.Mount(t.Context(), "m1", kept.Digest, target); err != nil {
		t.Fatal(err)
	}
	freed, err := s.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range list {
		got = append(got, i.Repository+":"+i.Tag)
	}
	// Not paid for: a (protected), d (mounted), app:2 (the newest release).
	// The budget has room for two of the other three, so the oldest goes.
	want := []string{"library/a:1", "library/c:1", "library/d:1", "app:1", "app:2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("images left (-want +got):\n%s", diff)
	}
	if freed < 2*root.MiB || freed > 2*root.MiB+64*root.KiB {
		t.Errorf("freed: got %s, want one image, 2 MB", freed)
	}
	u, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.Images != 5 || u.Needed < 4*root.MiB || u.Needed > 4*root.MiB+64*root.KiB || u.Blobs < 5*root.MiB || u.Unpacked < 5*root.MiB {
		t.Errorf("usage: got %+v", u)
	}
	// A mounted image whose name is taken away stays until it is unmounted.
	ctx := Context(t.Context())
	if err := s.images.Delete(ctx, "docker.io/library/d:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount(t.Context(), "m2", kept.Digest, target+"2"); err != nil {
		t.Errorf("mount of what another mount keeps: %v", err)
	}
	for key, target := range map[string]string{"m1": target, "m2": target + "2"} {
		if err := s.Unmount(t.Context(), key, target); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount(t.Context(), "m1", kept.Digest, target); !root.IsKind(err, root.NotFound) {
		t.Errorf("mount of what was collected: got %v, want NotFound", err)
	}
}

func TestCollectKeepsRecent(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, demo)
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Config(t.Context(), img.Digest); err != nil {
		t.Errorf("an image loaded just now: %v", err)
	}
}

// Two images with the same layers share the unpacked ones; the one that stays
// keeps them when the other goes.
func TestSharedLayers(t *testing.T) {
	t.Parallel()
	s := open(t, Options{KeepFor: time.Nanosecond})
	twin := demo
	twin.Name = "twin:1"
	twin.Config.Env = []string{"A=1"}
	load(t, s, demo)
	img := load(t, s, twin)
	if err := s.Protect(t.Context(), "machine/1", img.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "demo:1"); err != nil {
		t.Fatal(err)
	}
	snapshots, err := os.ReadDir(filepath.Join(s.o.Root, "overlay/snapshots"))
	if err != nil || len(snapshots) != 2 {
		t.Errorf("unpacked layers after the other image went: got %d, %v; want 2", len(snapshots), err)
	}
}

func BenchmarkMount(b *testing.B) {
	s := open(b, Options{})
	img := load(b, s, demo)
	target := filepath.Join(b.TempDir(), "rootfs")
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Mount(b.Context(), "m1", img.Digest, target); err != nil {
			b.Fatal(err)
		}
		if err := s.Unmount(b.Context(), "m1", target); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnpack(b *testing.B) {
	archive := imagetest.OCI(b, big("big:1", 1, 16<<20))
	s := open(b, Options{})
	b.SetBytes(16 << 20)
	for b.Loop() {
		if _, err := s.Load(b.Context(), bytes.NewReader(archive), ""); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(b.Context(), "big:1"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProtect(b *testing.B) {
	s := open(b, Options{})
	img := load(b, s, demo)
	for b.Loop() {
		if err := s.Protect(b.Context(), "machine/1", img.Digest); err != nil {
			b.Fatal(err)
		}
		if err := s.Protect(b.Context(), "machine/1"); err != nil {
			b.Fatal(err)
		}
	}
}

// Several calls for one key at once make one mount.
func TestConcurrentMountsOfOneKey(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, demo)
	target := filepath.Join(t.TempDir(), "rootfs")
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if err := s.Mount(t.Context(), "m1", img.Digest, target); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil || len(mounts) != 1 {
		t.Fatalf("mounts: got %d, %v", len(mounts), err)
	}
	all, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != target, false })
	if err != nil || len(all) != 1 {
		t.Errorf("mounts at the target: got %d, %v; want one", len(all), err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o644); err != nil {
		t.Errorf("write: %v", err)
	}
}

// An image pushed to the registry's address is found by that name.
func TestRegistryAddress(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Addresses: []string{"127.0.0.1:4280"}})
	own := demo
	own.Name = "registry.roost.test/shop:1"
	img := load(t, s, own)
	got, err := s.Resolve(t.Context(), "127.0.0.1:4280/shop:1")
	if err != nil || got.Ref() != img.Ref() {
		t.Errorf("got %s, %v; want %s", got.Ref(), err, img.Ref())
	}
	if _, err := s.Resolve(t.Context(), "127.0.0.1:4280/nothing:1"); !root.IsKind(err, root.NotFound) {
		t.Errorf("an image that nobody pushed: got %v, want NotFound", err)
	}
	if err := s.Remove(t.Context(), "127.0.0.1:4280/shop:1"); err != nil {
		t.Error(err)
	}
}

// Between the answer of Resolve and the Protect of who asked, the image stays,
// even if its name is taken away meanwhile.
func TestResolvedImageStays(t *testing.T) {
	t.Parallel()
	s := open(t, Options{})
	img := load(t, s, demo)
	if _, err := s.Resolve(t.Context(), "demo@"+string(img.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := s.images.Delete(Context(t.Context()), "docker.io/library/demo:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Protect(t.Context(), "machine/1", img.Digest); err != nil {
		t.Errorf("protect: %v", err)
	}
}

// Loading, mounting and removing go on while garbage is collected all the time.
func TestCollectBesideEverything(t *testing.T) {
	t.Parallel()
	s := open(t, Options{KeepFor: time.Minute})
	done := make(chan struct{})
	var collector, users sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := s.Collect(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	dir := t.TempDir()
	for n := range 4 {
		users.Go(func() {
			// Two names for the same layers, and layers of its own.
			img := imagetest.Image{Name: fmt.Sprintf("user%d:1", n), Layers: [][]imagetest.Entry{base, {imagetest.File("own", strconv.Itoa(n/2), 0o644)}}}
			img.Config.Env = []string{fmt.Sprint("N=", n)}
			archive := imagetest.OCI(t, img)
			key := fmt.Sprint("m", n)
			target := filepath.Join(dir, key)
			for range 5 {
				loaded, err := s.Load(t.Context(), bytes.NewReader(archive), "")
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Mount(t.Context(), key, loaded[0].Digest, target); err != nil {
					t.Error(err)
					return
				}
				for file, want := range map[string]string{"own": strconv.Itoa(n / 2), "etc/name": "base"} {
					if got, err := os.ReadFile(filepath.Join(target, file)); err != nil || string(got) != want {
						t.Errorf("%s: got %q, %v", file, got, err)
					}
				}
				if err := s.Unmount(t.Context(), key, target); err != nil {
					t.Error(err)
				}
				if err := s.Remove(t.Context(), img.Name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	close(done)
	collector.Wait()
	empty(t, s)
}
