package statics

import (
	"sync"

	root "github.com/roost-run/roost"
)

// fileKey names a file of an image: what it holds never changes.
type fileKey struct {
	image root.Digest
	guest string
	name  string
}

// tag is what is known of a file.
type tag struct {
	etag     string
	variants uint8 // bit i: variants[i] is there
}

// tags remembers the files that were asked for lately: at most 2 maxTags, near
// 4 MB. When the younger half is full it becomes the older one.
type tags struct {
	mu         sync.RWMutex
	young, old map[fileKey]tag
}

const maxTags = 8192

func (t *tags) get(k fileKey) (tag, bool) {
	t.mu.RLock()
	v, ok := t.young[k]
	if ok {
		t.mu.RUnlock()
		return v, true
	}
	v, ok = t.old[k]
	t.mu.RUnlock()
	if ok {
		t.put(k, v)
	}
	return v, ok
}

func (t *tags) put(k fileKey, v tag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil || len(t.young) >= maxTags {
		t.young, t.old = make(map[fileKey]tag), t.young
	}
	t.young[k] = v
}
