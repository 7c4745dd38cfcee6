package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/statics"
)

// static answers with a file of the app's images, if the request is for one.
// Nothing is woken for that, and no machine counts it as load.
func (p *Proxy) static(w http.ResponseWriter, x *exchange) (answered bool, _ *failure) {
	r := x.r
	if p.o.Statics == nil || r.Method != http.MethodGet && r.Method != http.MethodHead || r.ContentLength != 0 || r.Header.Get("Upgrade") != "" {
		return false, nil
	}
	table := p.router.Table(p.o.Catalog.Snapshot(), x.app)
	if table == nil || len(table.Files) == 0 {
		return false, nil
	}
	targets := table.Port(x.port)
	if len(targets) == 0 {
		return false, nil
	}
	options := &targets[0].Port.HTTP
	f, verdict := p.o.Statics.Find(x.app, table.Files, &statics.Ask{
		URL: r.URL, AcceptEncoding: strings.Join(r.Header["Accept-Encoding"], ","), Plain: options.Compress != nil && !*options.Compress,
	})
	switch verdict {
	case statics.Pass:
		return false, nil
	case statics.Refuse:
		return false, failf(http.StatusBadRequest, "PU01", "client problem: the path %s leaves its directory", clip(r.URL.Path))
	}
	defer func() { _ = f.Close() }() // only read
	x.rec.Static = true
	p.o.Metrics.Static()
	if options.Pristine {
		clear(w.Header()) // nothing is in it but our own
	}
	p.part(w.Header())
	out := &fileWriter{ResponseWriter: w, rc: http.NewResponseController(w), options: options, status: http.StatusOK}
	setIdle(r, options.IdleTimeout)
	f.Serve(out, r)
	out.finish()
	x.rec.Status, x.rec.Bytes = out.status, out.n
	if out.err != nil {
		x.rec.Err = out.err.Error()
	}
	return true, nil
}

// fileWriter passes a file on and counts. A client that stops reading does not
// hold it open for ever.
type fileWriter struct {
	http.ResponseWriter
	rc       *http.ResponseController
	options  *root.HTTPOptions
	status   int
	n        int64
	err      error
	extended time.Time // when the client's time to read was last extended
}

// fileChunk is what a client has writeTimeout to read.
const fileChunk = 1 << 20

func (w *fileWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *fileWriter) WriteHeader(status int) {
	w.status = status
	edit(w.Header(), w.options)
	w.ResponseWriter.WriteHeader(status)
}

func (w *fileWriter) Write(data []byte) (int, error) {
	w.extend(int64(len(data)))
	n, err := w.ResponseWriter.Write(data)
	w.wrote(int64(n), err)
	return n, err
}

// ReadFrom hands whole chunks of the file to the kernel (sendfile(2)) where the
// connection can take them.
func (w *fileWriter) ReadFrom(src io.Reader) (total int64, err error) {
	dst, ok := w.ResponseWriter.(io.ReaderFrom)
	limited, isLimited := src.(*io.LimitedReader) // net knows a file in one, but not in two
	if !ok || !isLimited {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	for limited.N > 0 {
		part := io.LimitedReader{R: limited.R, N: min(limited.N, fileChunk)}
		w.extend(part.N)
		n, err := dst.ReadFrom(&part)
		w.wrote(n, err)
		limited.N -= n
		total += n
		if err != nil || part.N > 0 {
			return total, err
		}
	}
	return total, nil
}

// extend gives the client time to read n more bytes; small answers fit into
// the kernel's buffers and cannot block.
func (w *fileWriter) extend(n int64) {
	if w.n+n <= smallAnswer {
		return
	}
	if now := time.Now(); now.Sub(w.extended) > writeTimeout/10 {
		w.extended = now
		_ = w.rc.SetWriteDeadline(now.Add(writeTimeout)) // without it, it only takes longer
	}
}

func (w *fileWriter) wrote(n int64, err error) {
	w.n += n
	w.err = errors.Join(w.err, err)
}

func (w *fileWriter) finish() {
	if !w.extended.IsZero() {
		_ = w.rc.SetWriteDeadline(time.Time{}) // for the next request
	}
}
