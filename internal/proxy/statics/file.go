package statics

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	root "github.com/roost-run/roost"
)

// File is an open file of an image.
type File struct {
	content  io.ReadSeeker // f itself, for the kernel to copy, or what was made of it
	f        *os.File
	name     string // without a variant's suffix
	size     int64
	modified time.Time
	tag      string
	encoding string // "" or the Content-Encoding of the variant
	varies   bool   // there are variants
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// open opens name beneath guest in an image, or the variant of it that the
// client prefers.
func (s *Server) open(image root.Digest, guest, name string, a *Ask) (*File, Verdict) {
	d, err := openDir(s.view(image), guest)
	if err != nil {
		return nil, Pass
	}
	defer d.close()
	f, err := d.open(name)
	if err != nil {
		return nil, Pass
	}
	if name == "" {
		name = guest
	}
	file, err := s.describe(f, d, fileKey{image, guest, name}, name)
	if err != nil {
		_ = f.Close() // it was not read
		return nil, Pass
	}
	if file.variants == 0 {
		s.pack(file.File, fileKey{image, guest, name}, a)
		return file.File, Found
	}
	v := choose(a.AcceptEncoding, variants[:], file.variants)
	if v == nil {
		return file.File, Found
	}
	alternative := name + v.suffix
	vf, err := d.open(alternative)
	if err != nil {
		return file.File, Found
	}
	variant, err := s.describe(vf, d, fileKey{image, guest, alternative}, name)
	if err != nil {
		_ = vf.Close() // it was not read
		return file.File, Found
	}
	_ = f.Close() // it was not read
	variant.encoding, variant.varies = v.coding, true
	return variant.File, Found
}

// pack replaces the content by a compressed form, if that is worth it and the
// client can read it.
func (s *Server) pack(f *File, key fileKey, a *Ask) {
	if a.Plain || !packable(f.name, f.size) {
		return
	}
	f.varies = true
	v := choose(a.AcceptEncoding, packed, 1<<len(packed)-1)
	if v == nil {
		return
	}
	p, err := s.packs.get(packKey{key, v.coding}, f.f, f.size)
	if err != nil || p.data == nil {
		return
	}
	f.content, f.size, f.tag, f.encoding = bytes.NewReader(p.data), int64(len(p.data)), p.etag, v.coding
}

type described struct {
	*File
	variants uint8
}

// describe reads what the answer's header says of f.
func (s *Server) describe(f *os.File, d dir, key fileKey, name string) (described, error) {
	st, err := f.Stat()
	if err != nil {
		return described{}, err
	}
	t, ok := s.tags.get(key)
	if !ok {
		if t.etag, err = tagOf(f, key, st); err != nil {
			return described{}, err
		}
		for i, v := range variants {
			if d.has(key.name + v.suffix) {
				t.variants |= 1 << i
			}
		}
		s.tags.put(key, t)
	}
	return described{
		&File{content: f, f: f, name: name, size: st.Size(), modified: st.ModTime(), tag: t.etag, varies: t.variants != 0}, t.variants,
	}, nil
}

// maxHashed is how large a file may be for its tag to be made of its content:
// that is read once per image. A larger one's is made of its place and time,
// so that it changes with every image.
const maxHashed = 8 << 20

// tagOf returns a strong entity tag. Times of files say little about images:
// builds that can be repeated set them all to the same.
func tagOf(f *os.File, key fileKey, st os.FileInfo) (string, error) {
	h := sha256.New()
	if st.Size() > maxHashed {
		_, _ = fmt.Fprintf(h, "%s\x00%s\x00%s\x00%d\x00%d", key.image, key.guest, key.name, st.Size(), st.ModTime().UnixNano()) // a hash takes everything
	} else if n, err := io.Copy(h, io.NewSectionReader(f, 0, st.Size())); err != nil || n != st.Size() {
		return "", errors.Join(io.ErrUnexpectedEOF, err)
	}
	return `"` + hex.EncodeToString(h.Sum(nil)[:16]) + `"`, nil
}

const (
	// fresh has browsers ask each time whether a file changed, which costs no
	// transfer: a name without a hash may mean another file after a deploy.
	fresh = "public, max-age=0, must-revalidate"
	// immutable is for names that change with the content.
	immutable = "public, max-age=31536000, immutable"
)

// Serve answers a GET or HEAD with the file: conditions (If-Match,
// If-None-Match, If-Modified-Since, If-Range ...) and ranges as RFC 9110 has
// them. Of the variants "name.zst", "name.br" and "name.gz" beside it that one
// is sent which the client prefers, with its Content-Encoding; of a text that
// has none, one that is made here.
func (f *File) Serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Etag"] = []string{f.tag}
	h["Content-Type"] = []string{contentType(f.name)}
	h["Cache-Control"] = []string{fresh}
	if hashed(f.name) {
		h["Cache-Control"] = []string{immutable}
	}
	if f.varies {
		h.Add("Vary", "Accept-Encoding")
	}
	if f.encoding != "" {
		h["Content-Encoding"] = []string{f.encoding}
		h["Content-Length"] = []string{strconv.FormatInt(f.size, 10)} // ServeContent leaves it out of encoded answers
	}
	http.ServeContent(w, r, "", f.modified, f.content)
}

// hashed reports whether a name has the hash of its content in it, as Django's
// and WhiteNoise's manifest storages write them: 12 hex digits between dots,
// "app.0c5a1f3a9e2b.css".
func hashed(name string) bool {
	name = name[strings.LastIndexByte(name, '/')+1:]
	stem, _, ok := cutLast(name)
	if !ok {
		return false
	}
	before, hash, ok := cutLast(stem)
	return ok && before != "" && len(hash) == 12 && strings.Trim(hash, "0123456789abcdef") == ""
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
