package controlplane

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/patience"
)

// withEdge is a control process whose edge answers as mux says.
func withEdge(t *testing.T, mux *http.ServeMux) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "edge-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cfg: config.Config{Run: dir}, log: slog.New(slog.DiscardHandler)}
	l, err := ipc.Listen(p.cfg.EdgeSocket(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := ipc.NewServer(mux)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return p
}

// TestDrain: a version is drained when it has nothing in flight, and the edge
// sends it nothing more.
func TestDrain(t *testing.T) {
	answers := []load{{InFlight: 1, Routed: true}, {Routed: true}, {InFlight: 1}, {Upgrades: 1}, {}}
	var asked atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /load/{instance}", ipc.Handler(func(_ context.Context, r *http.Request, _ struct{}) (load, error) {
		if i, m := r.PathValue("instance"), r.URL.Query().Get("machine"); i != "01OLD" || m != "148e1234c56789" {
			t.Errorf("asked for the load of %s, a version of %s", i, m)
		}
		return answers[min(int(asked.Add(1)), len(answers))-1], nil
	}))
	p := withEdge(t, mux)
	if err := p.drain(patience.Context(t), &root.Machine{ID: "148e1234c56789", Spec: root.Spec{Instance: "01OLD"}}); err != nil {
		t.Fatal(err)
	}
	if n := int(asked.Load()); n != len(answers) {
		t.Errorf("drained after %d answers, want %d", n, len(answers))
	}
}

// TestRouted: a write waits for the edge's answer, but not for an edge that is
// not there.
func TestRouted(t *testing.T) {
	let, asked := make(chan struct{}), make(chan string, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /revision/{revision}", ipc.Handler(func(ctx context.Context, r *http.Request, _ struct{}) (struct{}, error) {
		asked <- r.PathValue("revision")
		select {
		case <-let:
		case <-ctx.Done(): // it waited long enough
		}
		return struct{}{}, nil
	}))
	p := withEdge(t, mux)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.routed(t.Context(), 42)
	}()
	if got := patience.Receive(t, "the edge to be asked", asked); got != "42" {
		t.Errorf("asked for revision %s, want 42", got)
	}
	select {
	case <-done:
		t.Error("it did not wait for the edge")
	default:
	}
	close(let)
	patience.Receive(t, "the answer to be taken", done)

	var said bytes.Buffer
	gone := &process{cfg: config.Config{Run: t.TempDir()}, log: slog.New(slog.NewTextHandler(&said, nil))}
	gone.routed(t.Context(), 43)
	if said.Len() > 0 {
		t.Errorf("an edge that is not there: got %q, want nothing to be said of it", said.String())
	}
}
