package etcd

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

// childDir tells the test binary to be a process that writes to the state in
// that directory until it is killed.
const childDir = "ROOST_TEST_ETCD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForEver(dir))
		os.Exit(1)
	}
	resyncBefore = watchResyncPeriod
	os.Exit(m.Run())
}

// writeForEver says each key on standard output once it is acknowledged.
func writeForEver(dir string) error {
	ctx := context.Background()
	m, err := Open(ctx, Options{Dir: dir, Socket: filepath.Join(dir, "s"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if _, err := m.Client().Put(ctx, fmt.Sprint("key", i), "value"); err != nil {
			return err
		}
		fmt.Println("key" + fmt.Sprint(i))
	}
}

// shortDir returns a directory whose path is short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "roost-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, o Options) *Member {
	t.Helper()
	o.Socket, o.Log = shortDir(t), slog.New(slog.NewTextHandler(t.Output(), nil))
	m, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMember(t, m) })
	return m
}

func closeMember(t *testing.T, m *Member) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func put(t *testing.T, m *Member, key, value string) int64 {
	t.Helper()
	resp, err := m.Client().Put(t.Context(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func get(t *testing.T, m *Member, key string) string {
	t.Helper()
	resp, err := m.Client().Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestOpenAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	m := open(t, Options{Dir: dir})
	put(t, m, "a", "1")
	m.measureFsync()
	if m.FsyncTime() <= 0 {
		t.Errorf("fsync time: got %s, want more than 0", m.FsyncTime())
	}
	h, err := m.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.Revision < 2 || h.Size == 0 || h.InUse == 0 || h.Quota != root.GiB {
		t.Errorf("health: got %+v, want a revision, sizes and a quota of 1 GB", h)
	}
	closeMember(t, m)
	if _, err := m.Health(t.Context()); root.KindOf(err) != root.Unavailable {
		t.Errorf("health of a closed member: got %v, want kind unavailable", err)
	}
	m = open(t, Options{Dir: dir}) // with another socket directory
	if got := get(t, m, "a"); got != "1" {
		t.Errorf("after reopening: got %q, want 1", got)
	}
	if perm := stat(t, m.o.Socket).Mode().Perm(); perm != 0o700 {
		t.Errorf("socket directory: got mode %o, want 700", perm)
	}
}

func stat(t *testing.T, name string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestKilled checks that what was acknowledged before a kill -9 is there after
// it, and that a directory held by another process is refused with a reason.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acknowledged []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		acknowledged = append(acknowledged, lines.Text())
		if len(acknowledged) == 50 {
			_, err := Open(t.Context(), Options{Dir: dir, Socket: shortDir(t), Log: slog.New(slog.DiscardHandler)})
			if root.KindOf(err) != root.Conflict || !strings.Contains(root.MessageOf(err), "another roost process") {
				t.Errorf("while another holds it: got %v, want a conflict that says so", err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed
	if len(acknowledged) < 50 {
		t.Fatalf("the child ended early, after %d writes", len(acknowledged))
	}
	m := open(t, Options{Dir: dir})
	for _, key := range acknowledged {
		if get(t, m, key) != "value" {
			t.Errorf("%s was acknowledged and is lost", key)
		}
	}
}

// TestReopenLongLog opens a log that is longer than what a replay keeps of it:
// a member that stood for election meanwhile would panic.
func TestReopenLongLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, Options{Dir: dir})
	var writes errgroup.Group
	writes.SetLimit(32)
	for i := range 4 * catchUpEntries {
		writes.Go(func() error {
			_, err := m.Client().Put(t.Context(), fmt.Sprint("key", i), "value")
			return err
		})
	}
	if err := writes.Wait(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m = open(t, Options{Dir: dir})
	}
	if get(t, m, "key0") != "value" {
		t.Error("a key is lost")
	}
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	m := open(t, Options{Dir: t.TempDir(), Quota: 4 * root.MiB})
	value := strings.Repeat("x", 256<<10)
	var err error
	// The quota counts what has been flushed, so some more go in.
	for i := 0; i < 2000 && err == nil; i++ {
		_, err = m.Client().Put(t.Context(), "big", value) // history fills the backend
	}
	if err == nil {
		t.Fatal("2,000 writes of 256 KB went into 4 MB")
	}
	h, err := m.Health(t.Context())
	if err != nil || len(h.Problems) == 0 {
		t.Errorf("health of a full member: got %+v, %v, want problems", h, err)
	}
	if _, err := m.maintainOnce(t.Context(), time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	put(t, m, "big", "small") // writes go through again
	if h, err = m.Health(t.Context()); err != nil || len(h.Problems) > 0 {
		t.Errorf("health after recovery: got %+v, %v, want no problems", h, err)
	}
}

// TestNoSpaceForLiveKeys: what fills the member is not history, so that there
// is nothing to forget.
func TestNoSpaceForLiveKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, Options{Dir: dir})
	value := strings.Repeat("x", 256<<10)
	for i := range 24 {
		put(t, m, fmt.Sprint("big", i), value)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = open(t, Options{Dir: dir, Quota: 4 * root.MiB})
	if _, err := m.Client().Put(t.Context(), "one more", value); err == nil {
		t.Fatal("a write went into a member over its limit")
	}
	if err := m.Recover(t.Context()); root.KindOf(err) != root.Exhausted {
		t.Errorf("recovery: got %v, want kind exhausted", err)
	}
}

func TestDefragmentGivesSpaceBack(t *testing.T) {
	t.Parallel()
	m := open(t, Options{Dir: t.TempDir()})
	value := strings.Repeat("x", 512<<10)
	var rev int64
	for range 90 {
		rev = put(t, m, "big", value)
	}
	if err := m.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if err := m.Compact(t.Context(), rev); err != nil {
		t.Errorf("compact again: %v", err)
	}
	// The store counts what is in use when it next commits to its file, which it
	// does for the sake of a write only.
	var before Health
	patience.Until(t, "the store to count what is free", func() bool {
		rev = put(t, m, "small", "")
		var err error
		if before, err = m.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
		return before.InUse <= before.Size/10
	})
	// Busy: 50 writes since the last mark, nothing happens.
	now := time.Now()
	marks, err := m.maintainOnce(t.Context(), now, []mark{{now.Add(-time.Minute), rev - 50}})
	if err != nil {
		t.Fatal(err)
	}
	if busy, err := m.Health(t.Context()); err != nil || busy.Size < before.Size {
		t.Errorf("under load: got size %s, %v, want no defragmentation of %s", busy.Size, err, before.Size)
	}
	if _, err := m.maintainOnce(t.Context(), now.Add(time.Minute), marks); err != nil {
		t.Fatal(err)
	}
	after, err := m.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Size > before.Size/10 {
		t.Errorf("size: got %s after %s, want a tenth at most", after.Size, before.Size)
	}
	if get(t, m, "big") != value {
		t.Error("the value is lost")
	}
}

func TestCompactTo(t *testing.T) {
	now := time.Unix(10_000, 0)
	ago := func(minutes int, revision int64) mark {
		return mark{now.Add(-time.Duration(minutes) * time.Minute), revision}
	}
	tests := map[string]struct {
		marks []mark
		want  int64
		kept  int
	}{
		"young":         {[]mark{ago(5, 10_000), ago(0, 20_000)}, 0, 2},
		"old":           {[]mark{ago(12, 5000), ago(10, 10_000), ago(5, 15_000), ago(0, 20_000)}, 10_000, 3},
		"few revisions": {[]mark{ago(10, 1900), ago(0, 2000)}, 1000, 2},
		"very few":      {[]mark{ago(10, 900), ago(0, 901)}, 0, 2},
		"flood":         {[]mark{ago(1, 1000), ago(0, 100_000)}, 50_000, 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, rest := compactTo(test.marks, now)
			if got != test.want || len(rest) != test.kept {
				t.Errorf("got revision %d with %d marks, want %d with %d", got, len(rest), test.want, test.kept)
			}
		})
	}
}

// TestCloseLeavesNothing is not parallel: it looks at all goroutines.
func TestCloseLeavesNothing(t *testing.T) {
	m := open(t, Options{Dir: t.TempDir()})
	put(t, m, "a", "1")
	watch := m.Client().Watch(t.Context(), "a")
	socket := m.socket()
	closeMember(t, m)
	for range watch { // ends with the client
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("socket: got %v, want it gone", err)
	}
	deadline := patience.Deadline()
	for {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		var left []string
		for g := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(g, "go.etcd.io/etcd/server") || strings.Contains(g, "etcd.(*Member)") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines left after close:\n%s", strings.Join(left, "\n\n"))
		}
		runtime.Gosched()
	}
}

// BenchmarkPut is a durable write, with what the log's sync takes of it.
func BenchmarkPut(b *testing.B) {
	dir, err := os.MkdirTemp("", "roost-etcd-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	m, err := Open(b.Context(), Options{Dir: dir, Socket: filepath.Join(dir, "s"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	value := strings.Repeat("x", 1024)
	m.measureFsync()
	for b.Loop() {
		if _, err := m.Client().Put(b.Context(), "a", value); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(m.measureFsync().Nanoseconds()), "fsync-ns")
	if err := m.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOpen starts over 60,000 keys.
func BenchmarkOpen(b *testing.B) {
	dir, err := os.MkdirTemp("", "roost-etcd-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	start := func() *Member {
		m, err := Open(b.Context(), Options{Dir: dir, Socket: filepath.Join(dir, "s"), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		return m
	}
	m := start()
	value := strings.Repeat("x", 1024)
	for i := 0; i < 60_000; i += 100 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprint("key", i+j), value))
		}
		if _, err := m.Client().Txn(b.Context()).Then(ops...).Commit(); err != nil {
			b.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m := start()
		b.StopTimer()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
