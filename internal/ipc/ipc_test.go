package ipc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	root "github.com/roost-run/roost"
)

type question struct{ Text string }
type answer struct{ Text string }

func serve(t *testing.T, mux *http.ServeMux) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(RequireRootOrSelf(mux))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c
}

// RequireRootOrSelf lets these tests run as any user.
func RequireRootOrSelf(next http.Handler) http.Handler {
	if os.Getuid() == 0 {
		return RequireRoot(next)
	}
	return next
}

func TestCall(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", Handler(func(ctx context.Context, _ *http.Request, q question) (answer, error) {
		if c, ok := PeerFrom(ctx); !ok || c.PID != os.Getpid() {
			t.Errorf("peer: got %+v, %v, want pid %d", c, ok, os.Getpid())
		}
		if q.Text == "" {
			return answer{}, &root.Error{Kind: root.Conflict, Code: "name_taken", Message: "say something"}
		}
		return answer(q), nil
	}))
	c := serve(t, mux)
	var a answer
	if err := c.Call(t.Context(), http.MethodPost, "/echo", question{"hello"}, &a); err != nil {
		t.Fatal(err)
	}
	if a.Text != "hello" {
		t.Errorf("answer: got %q, want %q", a.Text, "hello")
	}
	err := c.Call(t.Context(), http.MethodPost, "/echo", nil, &a)
	e, ok := errors.AsType[*root.Error](err)
	if !ok || e.Kind != root.Conflict || e.Code != "name_taken" || e.Message != "say something" {
		t.Errorf("error: got %#v, want conflict, name_taken, its message", err)
	}
}

func TestCallNobodyListens(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	if err := c.Call(t.Context(), http.MethodGet, "/", nil, nil); root.KindOf(err) != root.Unavailable {
		t.Errorf("kind: got %v (%v), want %v", root.KindOf(err), err, root.Unavailable)
	}
}

func TestFollow(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /numbers", func(w http.ResponseWriter, _ *http.Request) {
		s := NewStream(w)
		for i := range 3 {
			if err := s.Send(i); err != nil {
				t.Error(err)
			}
		}
	})
	c := serve(t, mux)
	var got []int
	err := Follow(t.Context(), c, "/numbers", func(n int) error { got = append(got, n); return nil })
	if root.KindOf(err) != root.Unavailable || len(got) != 3 {
		t.Errorf("got %v and %v, want 3 numbers and the stream's end", got, err)
	}
}

func TestFiles(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, r *http.Request) {
		conn, err := Upgrade(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		var q question
		files, err := conn.Receive(&q)
		if err != nil || len(files) != 1 {
			t.Errorf("receive: got %d files, %v, want 1", len(files), err)
			return
		}
		defer files[0].Close()
		if _, err := io.WriteString(files[0], "written by the other side"); err != nil {
			t.Error(err)
		}
		if err := conn.Send(answer(q)); err != nil {
			t.Error(err)
		}
	})
	c := serve(t, mux)
	conn, err := c.Connect(t.Context(), "/files")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	if err := conn.Send(question{"q"}, pw); err != nil {
		t.Fatal(err)
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	var a answer
	if _, err := conn.Receive(&a); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(pr)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != "written by the other side" || a.Text != "q" {
		t.Errorf("got %q and %q", got, a.Text)
	}
}
