package statics

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"golang.org/x/sync/singleflight"
)

// Files that an image has in one form only are compressed here, once, and the
// compressed form is kept: it serves like a variant, ranges and all.
const (
	minPacked = 1 << 10 // below it headers weigh more than what is saved
	maxPacked = 4 << 20 // beyond it one file would take the room of many
	// keptPacked bounds what is kept, twice (see packs).
	keptPacked = 8 << 20
	// The levels are those of a file that is compressed once and sent often.
	brotliLevel = 6
	gzipLevel   = 7
)

// packed are the codings that we compress with, by preference.
var packed = []variant{{"br", ""}, {"gzip", ""}}

type packKey struct {
	fileKey
	coding string
}

// pack is a compressed file; without data it is not worth it.
type pack struct {
	data []byte
	etag string
}

// packs keeps what was asked for lately. When the younger half is full it
// becomes the older one.
type packs struct {
	flights singleflight.Group

	mu         sync.Mutex
	young, old map[packKey]pack
	size       int // of young
}

// packable reports whether a file is worth compressing, by its name and size.
func packable(name string, size int64) bool {
	if size < minPacked || size > maxPacked {
		return false
	}
	t, _, _ := strings.Cut(contentType(name), ";")
	switch t {
	case "application/json", "application/manifest+json", "application/xml", "application/wasm", "image/x-icon", "image/bmp", "font/ttf", "font/otf", "application/vnd.ms-fontobject":
		return true
	}
	return strings.HasPrefix(t, "text/") || strings.HasSuffix(t, "+json") || strings.HasSuffix(t, "+xml")
}

// get returns the file f, compressed. Many who ask at once wait for one.
func (p *packs) get(k packKey, f *os.File, size int64) (pack, error) {
	if v, ok := p.look(k); ok {
		return v, nil
	}
	v, err, _ := p.flights.Do(strings.Join([]string{string(k.image), k.guest, k.name, k.coding}, "\x00"), func() (any, error) {
		if v, ok := p.look(k); ok {
			return v, nil
		}
		v, err := compress(k.coding, io.NewSectionReader(f, 0, size), size)
		if err == nil {
			p.keep(k, v)
		}
		return v, err
	})
	if err != nil {
		return pack{}, err
	}
	return v.(pack), nil
}

func (p *packs) look(k packKey) (pack, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.young[k]
	if !ok {
		if v, ok = p.old[k]; ok {
			p.add(k, v)
		}
	}
	return v, ok
}

func (p *packs) keep(k packKey, v pack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(k, v)
}

// entryCost is what an entry takes besides its data.
const entryCost = 300

// add is keep by the holder of the lock.
func (p *packs) add(k packKey, v pack) {
	if p.young == nil || p.size > keptPacked {
		p.young, p.old, p.size = make(map[packKey]pack), p.young, 0
	}
	p.young[k] = v
	p.size += len(v.data) + entryCost
}

func compress(coding string, r io.Reader, size int64) (pack, error) {
	var b bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case "br":
		w = brotli.NewWriterLevel(&b, brotliLevel)
	default:
		var err error
		if w, err = gzip.NewWriterLevel(&b, gzipLevel); err != nil {
			return pack{}, err
		}
	}
	if _, err := io.Copy(w, r); err != nil {
		return pack{}, err
	}
	if err := w.Close(); err != nil {
		return pack{}, err
	}
	if int64(b.Len()) > size*9/10 {
		return pack{}, nil
	}
	sum := sha256.Sum256(b.Bytes())
	return pack{bytes.Clone(b.Bytes()), `"` + hex.EncodeToString(sum[:16]) + `"`}, nil
}
