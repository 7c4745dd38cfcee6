package serve_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/certs/serve"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/patience"
)

// control plays control's feed: lines are sent as they come, and a torn
// connection begins with whole again.
type control struct {
	mu    sync.Mutex
	whole []certs.Line
	lines chan certs.Line
	cut   chan struct{}
}

func (c *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := ipc.NewStream(w)
	c.mu.Lock()
	whole := c.whole
	c.mu.Unlock()
	for _, l := range whole {
		if s.Send(l) != nil {
			return
		}
	}
	for {
		select {
		case l := <-c.lines:
			if s.Send(l) != nil {
				return
			}
		case <-c.cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func certificate(t *testing.T, name string) certs.Certificate {
	t.Helper()
	c, err := certs.SelfSigned(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := certs.EncodePair(c)
	if err != nil {
		t.Fatal(err)
	}
	return certs.Certificate{Hostname: name, Source: certs.Uploaded, Chain: doc.Chain, Key: doc.Key}
}

func authority(t *testing.T, names ...string) *certs.Authority {
	t.Helper()
	chain, key, err := certs.NewRoot("test", "localhost", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := certs.NewIntermediate(chain, key, names, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &a
}

func line(put ...certs.Certificate) certs.Line { return certs.Line{Format: certs.Format, Put: put} }

func TestFollow(t *testing.T) {
	dir, err := os.MkdirTemp("", "serve")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "certificates.json")
	a, b := certificate(t, "a.example.com"), certificate(t, "*.b.example.com")
	first, second := line(a), line()
	first.Full, second.Full, second.Done = true, true, true
	second.Put, second.Authority = []certs.Certificate{b}, authority(t, "*.localhost")
	feed := &control{whole: []certs.Line{first, second}, lines: make(chan certs.Line), cut: make(chan struct{})}
	l, err := ipc.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+certs.FeedPath, feed)
	server := ipc.NewServer(mux)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	client := ipc.NewClient(socket)
	s := serve.New(serve.Options{Client: client, File: file, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ran
		client.Close()
		_ = server.Close()
		<-done
	})
	has := func(name string) bool { _, err := s.Certificate(name); return err == nil }

	patience.Until(t, "the whole", func() bool { return has("a.example.com") && has("x.b.example.com") && has("shop.localhost") })
	if has("b.example.com") || has("c.example.com") || has("") {
		t.Error("a certificate for a name that has none")
	}
	// A leaf made here is made once.
	one, _ := s.Certificate("shop.localhost")
	if two, _ := s.Certificate("SHOP.localhost."); one != two {
		t.Error("the same name got two certificates")
	}

	// Changes: one comes, one goes, one cannot be read and leaves the last.
	bad := a
	bad.Key = "nonsense"
	c := line(certificate(t, "c.example.com"), bad)
	c.Remove = []string{"*.b.example.com"}
	feed.lines <- c
	patience.Until(t, "a change", func() bool { return has("c.example.com") && !has("x.b.example.com") })
	if !has("a.example.com") {
		t.Error("a certificate that cannot be read took the last good one away")
	}
	if n, expires := s.Expiry(); n != 2 || time.Until(expires) > 31*24*time.Hour {
		t.Errorf("got %d certificates until %s, want 2 within a month", n, expires)
	}

	// The connection breaks; the next whole replaces everything.
	only := line(certificate(t, "d.example.com"))
	only.Full, only.Done = true, true
	feed.mu.Lock()
	feed.whole = []certs.Line{only}
	feed.mu.Unlock()
	feed.cut <- struct{}{}
	patience.Until(t, "the next whole", func() bool { return has("d.example.com") && !has("a.example.com") && !has("shop.localhost") })

	// What is on disk is enough to start with, and for root's eyes only.
	patience.Until(t, "the file", func() bool {
		next := serve.New(serve.Options{File: file, Log: slog.New(slog.DiscardHandler)})
		next.Load()
		names, _ := next.Names()
		return slices.Equal(names, []string{"d.example.com"})
	})
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file: got %v, %v; want mode 0600", fi, err)
	}
}

// A file that is torn or of another program is as good as none.
func TestLoadIgnoresWhatItCannotRead(t *testing.T) {
	whole, err := json.Marshal(certs.Line{Format: certs.Format, Full: true, Done: true, Put: []certs.Certificate{certificate(t, "a.example.com")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty": "", "torn": string(whole[:len(whole)/2]), "another format": `{"Format":99,"Done":true}`, "not whole": `{"Format":1}`, "no object": "[]",
	} {
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		s := serve.New(serve.Options{File: file, Log: slog.New(slog.DiscardHandler)})
		s.Load()
		if names, _ := s.Names(); len(names) > 0 {
			t.Errorf("%s: got %v", name, names)
		}
	}
}

// Names that clients make up cost a bounded amount of memory.
func TestLocalCertificatesAreBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	data, err := json.Marshal(certs.Line{Format: certs.Format, Full: true, Done: true, Authority: authority(t, "*.localhost")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve.New(serve.Options{File: file, Log: slog.New(slog.DiscardHandler)})
	s.Load()
	for i := range 2500 {
		if _, err := s.Certificate(fmt.Sprintf("x%d.localhost", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Cached(); n > 2048 {
		t.Errorf("got %d certificates in memory, want at most 2048", n)
	}
	if _, err := s.Certificate("a.b.localhost"); !errors.Is(err, certs.ErrNoCertificate) {
		t.Errorf("got %v, want no certificate", err)
	}
}

// A leaf is made anew before it expires.
func TestLocalCertificateIsRenewed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	data, err := json.Marshal(certs.Line{Format: certs.Format, Full: true, Done: true, Authority: authority(t, "*.localhost")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := serve.New(serve.Options{File: file, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)})
	s.Load()
	first, err := s.Certificate("shop.localhost")
	if err != nil {
		t.Fatal(err)
	}
	now = now.AddDate(0, 0, 20)
	if c, err := s.Certificate("shop.localhost"); err != nil || c != first {
		t.Errorf("after 20 days: got another one (%v), want the same", err)
	}
	now = now.AddDate(0, 0, 5)
	if c, err := s.Certificate("shop.localhost"); err != nil || c == first || c.Leaf.NotAfter.Sub(now) < 20*24*time.Hour {
		t.Errorf("after 25 days: got the same (%v), want a new one", err)
	}
}
