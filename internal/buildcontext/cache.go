package buildcontext

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/roost-run/roost/internal/atomicfile"
)

// settled is the age from which a file's time of change says that it has not
// changed since: file systems count time in steps.
const settled = 2 * time.Second

// cache remembers digests of files by size and time of change, in a file that
// may be lost: it only saves reading.
type cache struct {
	file string // "" keeps nothing
	dir  string // absolute

	mu    sync.Mutex
	old   map[string]known // as read
	new   map[string]known // what this scan saw; guarded by mu
	dirty bool             // guarded by mu
}

type known struct {
	Size   int64         `json:"size"`
	Time   int64         `json:"time"` // nanoseconds since 1970
	Digest digest.Digest `json:"digest"`
}

type cacheFile struct {
	Dir   string           `json:"dir"`
	Files map[string]known `json:"files"`
}

func openCache(file, dir string) *cache {
	c := &cache{file: file, new: map[string]known{}}
	if abs, err := filepath.Abs(dir); err == nil {
		c.dir = abs
	}
	if file == "" {
		return c
	}
	var doc cacheFile
	data, err := os.ReadFile(file)
	if err == nil && json.Unmarshal(data, &doc) == nil && doc.Dir == c.dir {
		c.old = doc.Files
	}
	return c
}

func (c *cache) get(name string, fi fs.FileInfo) (digest.Digest, bool) {
	k, ok := c.old[name]
	if !ok || k.Size != fi.Size() || k.Time != fi.ModTime().UnixNano() {
		return "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.new[name] = k
	return k.Digest, true
}

func (c *cache) put(name string, fi fs.FileInfo, size int64, d digest.Digest) {
	if size != fi.Size() || time.Since(fi.ModTime()) < settled {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.new[name] = known{fi.Size(), fi.ModTime().UnixNano(), d}
	c.dirty = true
}

// drop forgets a file that turned out to be another.
func (c *cache) drop(name string) {
	c.mu.Lock()
	delete(c.new, name)
	c.dirty = true
	c.mu.Unlock()
	c.save()
}

// save writes the file; that it cannot costs time at the next scan, no more.
func (c *cache) save() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == "" || !c.dirty && len(c.old) == len(c.new) {
		return
	}
	data, err := json.Marshal(cacheFile{c.dir, c.new})
	if err != nil {
		return
	}
	if os.MkdirAll(filepath.Dir(c.file), 0o700) == nil {
		_ = atomicfile.Write(c.file, data, 0o600)
	}
}
