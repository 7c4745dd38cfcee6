package etcd

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	root "github.com/roost-run/roost"
)

func open(t *testing.T, dir string) *Member {
	t.Helper()
	sock, err := os.MkdirTemp("", "roost-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sock) })
	m, err := Open(t.Context(), Options{Dir: dir, Socket: sock, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func TestOpenAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	start := time.Now()
	m := open(t, dir)
	t.Logf("first open: %s", time.Since(start))
	if _, err := m.Client().Put(t.Context(), "a", "1"); err != nil {
		t.Fatal(err)
	}
	if m.FsyncTime() <= 0 {
		t.Errorf("fsync time: got %s, want more than 0", m.FsyncTime())
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	m = open(t, dir) // with another socket directory
	t.Logf("second open: %s", time.Since(start))
	got, err := m.Client().Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "1" {
		t.Errorf("after reopening: got %v, want a=1", got.Kvs)
	}
}

func TestOpenHeldDirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := Open(t.Context(), Options{Dir: dir, Socket: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if got, want := root.KindOf(err), root.Conflict; got != want {
		t.Fatalf("kind: got %v (%v), want %v", got, err, want)
	}
}
