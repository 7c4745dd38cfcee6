// Package etcdtest gives tests a real embedded member: one for the whole test
// binary, with a prefix of its own for each test.
package etcdtest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"

	"github.com/roost-run/roost/internal/etcd"
)

var (
	mu     sync.Mutex
	member *etcd.Member // started by the first New; guarded by mu
	dir    string       // guarded by mu

	prefixes atomic.Int64
)

// Main runs a test binary's tests and then stops the member; call it from
// TestMain. The returned code is for os.Exit.
func Main(m *testing.M) int {
	code := m.Run()
	mu.Lock()
	defer mu.Unlock()
	if member == nil {
		return code
	}
	if err := member.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "close etcd:", err)
		code = 1
	}
	member = nil
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// New returns a client that sees only keys of this test. The member is shared
// by all tests of the binary, which must call Main.
func New(t testing.TB) *clientv3.Client {
	t.Helper()
	m := shared(t)
	prefix := fmt.Sprintf("%s-%d/", t.Name(), prefixes.Add(1))
	c := clientv3.NewCtxClient(context.WithoutCancel(t.Context()))
	c.KV = namespace.NewKV(m.Client().KV, prefix)
	c.Watcher = namespace.NewWatcher(m.Client().Watcher, prefix)
	c.Lease = namespace.NewLease(m.Client().Lease, prefix)
	c.Maintenance = m.Client().Maintenance
	return c
}

// Member returns the member behind New, for tests that compact.
func Member(t testing.TB) *etcd.Member {
	t.Helper()
	return shared(t)
}

func shared(t testing.TB) *etcd.Member {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if member != nil {
		return member
	}
	// Not t.TempDir: the member outlives the first test, and a socket's path
	// must stay under 108 bytes.
	var err error
	if dir, err = os.MkdirTemp("", "roost-etcd-"); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	member, err = etcd.Open(context.WithoutCancel(t.Context()), etcd.Options{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return member
}
