package proxy

import (
	"compress/zlib"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	root "github.com/roost-run/roost"
)

// codings are what answers can be compressed with, the preferred first (Fly
// docs, "Compression").
var codings = []string{"zstd", "br", "gzip", "deflate"}

const (
	// minCompress: below it headers weigh more than what is saved.
	minCompress = 1 << 10
	// zstdWindow keeps an encoder small; clients need as much memory.
	zstdWindow = 128 << 10
	// The levels are those at which a core compresses faster than a host's
	// line carries away.
	brotliLevel = 4
	gzipLevel   = 4
)

// encoder compresses into the writer of its last Reset.
type encoder interface {
	io.WriteCloser
	Flush() error
	Reset(w io.Writer)
}

// zlibEncoder gives the standard library's the encoder's shape.
type zlibEncoder struct{ *zlib.Writer }

var encoders = map[string]*sync.Pool{
	"zstd": {New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			panic(err) // the options above are constants
		}
		return e
	}},
	"br": {New: func() any { return brotli.NewWriterLevel(nil, brotliLevel) }},
	"gzip": {New: func() any {
		e, err := gzip.NewWriterLevel(nil, gzipLevel)
		if err != nil {
			panic(err) // the level is a constant
		}
		return e
	}},
	"deflate": {New: func() any { return zlibEncoder{zlib.NewWriter(nil)} }},
}

// compressed decides whether an answer is compressed, and with what; "" leaves
// it as it is. It makes the header fit.
func compressed(h http.Header, r *http.Request, resp *http.Response, o *root.HTTPOptions) string {
	if strings.EqualFold(h.Get("Content-Encoding"), "none") { // the app's word for: not this one
		delete(h, "Content-Encoding")
		return ""
	}
	if o.Compress != nil && !*o.Compress || h.Get("Content-Encoding") != "" || !compressible(h.Get("Content-Type")) {
		return ""
	}
	switch {
	case resp.ContentLength >= 0 && resp.ContentLength < minCompress,
		resp.StatusCode == http.StatusNoContent, resp.StatusCode == http.StatusPartialContent, resp.StatusCode == http.StatusNotModified,
		h.Get("Content-Range") != "", !r.ProtoAtLeast(1, 1),
		strings.Contains(strings.ToLower(strings.Join(h["Cache-Control"], ",")), "no-transform"):
		return ""
	}
	vary(h)
	coding := negotiate(r.Header["Accept-Encoding"])
	if coding == "" || r.Method == http.MethodHead {
		return ""
	}
	h["Content-Encoding"] = []string{coding}
	for _, name := range []string{"Content-Length", "Accept-Ranges", "Content-Digest", "Digest"} {
		delete(h, name)
	}
	if tag := h.Get("Etag"); strings.HasPrefix(tag, `"`) { // the bytes are not the app's any more
		h["Etag"] = []string{"W/" + tag}
	}
	return coding
}

// vary tells caches that the answer depends on what the client can read.
func vary(h http.Header) {
	for _, line := range h["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name == "*" || strings.EqualFold(name, "Accept-Encoding") {
				return
			}
		}
	}
	h["Vary"] = append(h["Vary"][:len(h["Vary"]):len(h["Vary"])], "Accept-Encoding")
}

// negotiate picks the first of codings that the client takes.
func negotiate(accept []string) string {
	taken := make(map[string]bool, len(codings))
	for _, line := range accept {
		for part := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(part, ";")
			name = strings.ToLower(textproto.TrimString(name))
			q := 1.0
			if key, value, ok := strings.Cut(textproto.TrimString(params), "="); ok && strings.EqualFold(textproto.TrimString(key), "q") {
				v, err := strconv.ParseFloat(textproto.TrimString(value), 64)
				if err != nil {
					v = 0
				}
				q = v
			}
			taken[name] = q > 0
		}
	}
	for _, c := range codings {
		if taken[c] {
			return c
		}
	}
	if _, said := taken["gzip"]; taken["*"] && !said {
		return "gzip" // what everything reads
	}
	return ""
}

// compressible reports whether a type of content gets smaller. Streams of
// events are left alone: those who wait for each one gain nothing.
func compressible(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(textproto.TrimString(t))
	switch t {
	case "text/event-stream":
		return false
	case "application/json", "application/javascript", "application/x-javascript", "application/xml", "application/wasm", "application/x-ndjson",
		"application/graphql", "application/vnd.ms-fontobject", "font/ttf", "font/otf", "image/bmp", "image/x-icon", "image/vnd.microsoft.icon":
		return true
	}
	return strings.HasPrefix(t, "text/") || strings.HasSuffix(t, "+json") || strings.HasSuffix(t, "+xml")
}

// counted counts what reaches the client.
type counted struct {
	io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	return n, err
}
