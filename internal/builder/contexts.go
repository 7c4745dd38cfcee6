package builder

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/buildcontext"
	"github.com/roost-run/roost/internal/builder/buildkit"
)

const (
	// contextBudget is the disk for files of build contexts. The oldest go.
	contextBudget = 2 * root.GiB
	// keepManifest is how long a manifest waits for its build.
	keepManifest = 24 * time.Hour
	// bootMark is no key.
	bootMark = ".boot"
	// freshUse is how exactly the time of a file's last use is known.
	freshUse = time.Hour
)

// maxKey is the longest key.
const maxKey = 128

// checkKey refuses what cannot be a directory of its own.
func checkKey(key string) error {
	valid := key != "" && len(key) <= maxKey && key[0] != '.'
	for _, c := range []byte(key) {
		valid = valid && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.')
	}
	if !valid {
		return root.Errorf(root.Invalid, "%q is not the key of an app's files", clip(key))
	}
	return nil
}

// Dir is where a builder keeps things below the data directory.
func Dir(data string) string { return filepath.Join(data, "builder") }

// Forget removes what a builder in dir keeps under a key: contexts, and what
// Go programs were made of. A build that uses it fails.
func Forget(dir, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	err := errors.Join(os.RemoveAll(filepath.Join(contextsDir(dir), key)), os.RemoveAll(filepath.Join(outDir(dir), key)))
	if err != nil {
		return fmt.Errorf("forget files of builds: %w", err)
	}
	return nil
}

func contextsDir(dir string) string { return filepath.Join(dir, "contexts") }
func outDir(dir string) string      { return filepath.Join(dir, "out") }

// contexts keeps the files of uploaded build contexts by digest, for each app
// its own: who knows a digest must not get another's file. The key of an app
// is not its name, which somebody else may have tomorrow.
//
//	<dir>/.boot                    the boot in which all this was written; no key begins so
//	<dir>/<key>/manifests/<hex>    JSON
//	<dir>/<key>/blobs/<hex>        mode 0600; the time of change is that of the last use
//
// Nothing is synced: what an earlier boot left is thrown away.
type contexts struct {
	dir    string
	budget root.Bytes
	mu     sync.RWMutex // held for writing while collecting
}

// openContexts makes the directory, and empties it after a reboot.
func openContexts(dir string, budget root.Bytes) (*contexts, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("build contexts: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("build contexts: %w", err)
	}
	mark := filepath.Join(dir, bootMark)
	if was, err := os.ReadFile(mark); err != nil || !bytes.Equal(was, boot) {
		if err := errors.Join(emptyDir(dir), os.WriteFile(mark, boot, 0o600)); err != nil {
			return nil, fmt.Errorf("build contexts: %w", err)
		}
	}
	return &contexts{dir: dir, budget: budget}, nil
}

func (c *contexts) blob(key string, d digest.Digest) string {
	return filepath.Join(c.dir, key, "blobs", d.Encoded())
}

func (c *contexts) manifest(key string, id digest.Digest) string {
	return filepath.Join(c.dir, key, "manifests", id.Encoded())
}

// begin keeps the manifest and says which files are missing.
func (c *contexts) begin(key string, r io.Reader) (id digest.Digest, missing []digest.Digest, err error) {
	data, err := io.ReadAll(io.LimitReader(r, buildcontext.MaxManifest+1))
	if err != nil {
		return "", nil, fmt.Errorf("build context: %w", err)
	}
	if len(data) > buildcontext.MaxManifest {
		return "", nil, root.Errorf(root.TooLarge, "the list of the build context's files is larger than %s: leave out what the build does not need", root.Bytes(buildcontext.MaxManifest))
	}
	var m buildcontext.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return "", nil, &root.Error{Kind: root.Invalid, Message: "the list of the build context's files is not what it should be", Err: err}
	}
	if err := m.Check(); err != nil {
		return "", nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	missing, err = c.missing(key, m)
	if err != nil {
		return "", nil, err
	}
	id = m.ID()
	file := c.manifest(key, id)
	for _, dir := range []string{filepath.Dir(file), filepath.Join(c.dir, key, "blobs")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, fmt.Errorf("build context: %w", err)
		}
	}
	if data, err = json.Marshal(m); err != nil {
		return "", nil, fmt.Errorf("build context: %w", err)
	}
	if err := replaceFile(file, data); err != nil {
		return "", nil, fmt.Errorf("build context: %w", err)
	}
	return id, missing, nil
}

// missing lists the blobs that are not here, sorted; those that are count as used.
func (c *contexts) missing(key string, m buildcontext.Manifest) ([]digest.Digest, error) {
	blobs, err := m.Blobs()
	if err != nil {
		return nil, err
	}
	var missing []digest.Digest
	now := time.Now()
	for d, size := range blobs {
		name := c.blob(key, d)
		st, err := os.Stat(name)
		if err != nil || st.Size() != size {
			missing = append(missing, d)
			continue
		}
		if now.Sub(st.ModTime()) > freshUse {
			_ = os.Chtimes(name, now, now) // or it goes too early
		}
	}
	slices.Sort(missing)
	return missing, nil
}

// receive keeps the blobs of a stream. What arrived whole stays, also when the
// stream breaks.
func (c *contexts) receive(key string, id digest.Digest, r io.Reader) error {
	m, err := c.load(key, id)
	if err != nil {
		return err
	}
	sizes, err := m.Blobs()
	if err != nil {
		return err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return buildcontext.ReadBlobs(r, func(d digest.Digest, size int64, body io.Reader) error {
		if err := roomFor(c.dir); err != nil { // it was when the list came, for one of many
			return err
		}
		want, ok := sizes[d]
		if !ok || want != size {
			return root.Errorf(root.Invalid, "%s is not a file of the build context", d)
		}
		return c.put(c.blob(key, d), d, size, body)
	})
}

func (c *contexts) put(name string, d digest.Digest, size int64, body io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "incoming-*")
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	sum := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(f, sum.Hash()), body)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	if n != size {
		return root.Errorf(root.Invalid, "the stream of files ended in the middle of one: send the rest again")
	}
	if sum.Digest() != d {
		return root.Errorf(root.Invalid, "a file of the build context changed while it was sent: try again")
	}
	return os.Rename(f.Name(), name)
}

// load returns a manifest that begin kept.
func (c *contexts) load(key string, id digest.Digest) (buildcontext.Manifest, error) {
	var m buildcontext.Manifest
	if err := id.Validate(); err != nil {
		return m, root.Errorf(root.Invalid, "%q is not the name of a build context", clip(string(id)))
	}
	data, err := os.ReadFile(c.manifest(key, id))
	if errors.Is(err, fs.ErrNotExist) {
		return m, root.Errorf(root.NotFound, "the build context is not here any more: send it again")
	}
	if err != nil {
		return m, fmt.Errorf("build context: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("build context: %w", err)
	}
	return m, nil
}

// open returns a context that is whole; release must be called when the build
// has ended: until then nothing of it is collected.
func (c *contexts) open(key string, id digest.Digest) (_ *tree, release func(), err error) {
	c.mu.RLock()
	defer func() {
		if err != nil {
			c.mu.RUnlock()
		}
	}()
	m, err := c.load(key, id)
	if err != nil {
		return nil, nil, err
	}
	missing, err := c.missing(key, m)
	if err != nil {
		return nil, nil, err
	}
	if len(missing) > 0 {
		return nil, nil, root.Errorf(root.Precondition, "%d files of the build context have not been sent", len(missing))
	}
	t := &tree{c: c, key: key, m: m, blobs: make(map[string]digest.Digest, len(m.Entries))}
	for _, e := range m.Entries {
		if e.Digest != "" {
			t.blobs[e.Path] = e.Digest
		}
	}
	return t, c.mu.RUnlock, nil
}

// collect removes the files that have not been used for longest, until the
// rest fits the budget, and manifests that no build came for. It does nothing
// while contexts are in use.
func (c *contexts) collect(now time.Time) error {
	if !c.mu.TryLock() {
		return nil
	}
	defer c.mu.Unlock()
	type file struct {
		name string
		size int64
		used time.Time
	}
	var blobs []file
	var total root.Bytes
	err := filepath.WalkDir(c.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch filepath.Base(filepath.Dir(name)) {
		case "manifests":
			if now.Sub(st.ModTime()) > keepManifest {
				return os.Remove(name)
			}
		case "blobs":
			if strings.HasPrefix(d.Name(), "incoming-") { // nobody writes now
				return os.Remove(name)
			}
			blobs = append(blobs, file{name, st.Size(), st.ModTime()})
			total += root.Bytes(st.Size())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("collect build contexts: %w", err)
	}
	slices.SortFunc(blobs, func(a, b file) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.name, b.name)) })
	for _, f := range blobs {
		if total <= c.budget {
			return nil
		}
		if err := os.Remove(f.name); err != nil {
			return fmt.Errorf("collect build contexts: %w", err)
		}
		total -= root.Bytes(f.size)
	}
	return nil
}

// replaceFile writes a file so that nobody sees half of it.
func replaceFile(name string, data []byte) error {
	tmp := name + ".new"
	return errors.Join(os.WriteFile(tmp, data, 0o600), os.Rename(tmp, name))
}

// tree is a context as builds see it.
type tree struct {
	c     *contexts
	key   string
	m     buildcontext.Manifest
	blobs map[string]digest.Digest // by path
}

// Files implements buildkit.Tree. The nanoseconds of a file's time say what is
// in it, so that two contents never look the same.
func (t *tree) Files() []buildkit.File {
	files := make([]buildkit.File, len(t.m.Entries))
	for i, e := range t.m.Entries {
		nano := int64(0)
		if e.Digest != "" {
			for _, c := range []byte(e.Digest.Encoded()[:15]) {
				nano = nano<<4 | int64(c&15) ^ int64(c>>6)
			}
			nano %= int64(time.Second)
		}
		files[i] = buildkit.File{Path: e.Path, Mode: e.Mode, Size: e.Size, ModTime: time.Unix(e.MTime, nano), Link: e.Link}
	}
	return files
}

// Open implements buildkit.Tree.
func (t *tree) Open(name string) (io.ReadCloser, error) {
	d, ok := t.blobs[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return os.Open(t.c.blob(t.key, d))
}

// write makes the context a directory. Nothing in it points out of it.
func (t *tree) write(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	top, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer func() { _ = top.Close() }() // only a handle
	var links []string
	for _, e := range t.m.Entries {
		switch e.Mode.Type() {
		case fs.ModeDir:
			err = top.Mkdir(e.Path, 0o755)
		case fs.ModeSymlink:
			links = append(links, e.Path)
			err = top.Symlink(e.Link, e.Path)
		default:
			err = t.copyTo(top, e)
		}
		if err != nil {
			return fmt.Errorf("build context: %w", err)
		}
	}
	// A link is followed by the toolchain, not by us: it must end inside.
	for _, l := range links {
		if _, err := top.Stat(l); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return root.Errorf(root.Invalid, "the build context has a symbolic link %q that points out of it", clip(l))
		}
	}
	return nil
}

func (t *tree) copyTo(top *os.Root, e buildcontext.Entry) error {
	from, err := t.Open(e.Path)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := top.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600|e.Mode.Perm()&0o111)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
