package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/go-runc"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
)

// The whole test binary has one reaper, like the process that it tests, so
// nothing in it may wait for children by itself.
var (
	testReaper  = newReaper()
	testPayload string
)

func TestMain(m *testing.M) {
	if role := os.Getenv("ROOST_TEST_ROLE"); role != "" {
		os.Exit(play(role))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if signal.Ignored(syscall.SIGINT) { // as what a script starts in the background; machines would inherit it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	}
	dir, err := os.MkdirTemp("", "roost-supervisor-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	testPayload = filepath.Join(dir, "payload")
	build := exec.CommandContext(context.Background(), "go", "build", "-o", testPayload, "github.com/roost-run/roost/internal/runtime/runtimetest/payload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the payload: %v\n%s", err, out)
		return 1
	}
	if err := becomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	runc.Monitor = testReaper
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		testReaper.run(ctx)
	}()
	code := m.Run()
	stop()
	<-done
	return code
}

// fakeRouter notes which interfaces are marked.
type fakeRouter struct {
	mu     sync.Mutex
	marked map[string]bool
}

func (r *fakeRouter) SetSuspended(iface string, on bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marked[iface] = on
	return nil
}

func (r *fakeRouter) isMarked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marked["m7"]
}

// world is slots over a fake driver.
type world struct {
	*slots
	t      *testing.T
	router *fakeRouter
	end    func()
	life   context.Context
}

func newWorld(t *testing.T, d runtime.Driver) *world {
	t.Helper()
	cfg := config.Default()
	cfg.Run, cfg.Data = t.TempDir(), t.TempDir()
	cfg.Reclaim = time.Hour
	life, end := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &world{t: t, router: &fakeRouter{marked: map[string]bool{}}}
	w.life = life
	w.slots = newSlots(life, cfg, d, w.router, testReaper, slog.New(slog.DiscardHandler))
	w.memory = newMemory(func() (root.Bytes, error) { return root.GiB, nil }, func() root.Bytes { return 2 * root.GiB })
	j, _, err := openJournal(cfg.Journal(), "boot-1", time.Now(), w.log)
	if err != nil {
		t.Fatal(err)
	}
	w.journal = j
	reclaimed := make(chan struct{})
	go func() {
		defer close(reclaimed)
		w.reclaimer(life)
	}()
	w.end = sync.OnceFunc(func() {
		end()
		w.tasks.Wait()
		<-reclaimed
		w.logs.close()
		if err := j.close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if life.Err() != nil {
			return // a successor has taken everything over
		}
		for _, s := range w.list() {
			if err := s.remove(context.WithoutCancel(t.Context())); err != nil {
				t.Errorf("remove: %v", err)
			}
		}
		w.end()
	})
	return w
}

// fake is a driver whose containers run the payload with args.
func fake(args ...string) *runtimetest.Fake {
	f := runtimetest.NewFake()
	f.Args = append([]string{testPayload}, args...)
	return f
}

// boot prepares boot n of an instance.
func (w *world) boot(id root.InstanceID, n uint64) orders.Boot {
	return orders.Boot{
		Machine: "148e1234c56789", App: "shop", Instance: id, Generation: 3, Number: n,
		Container: fmt.Sprintf("%s-%d", id, n), Bundle: w.t.TempDir(), Interface: "m7",
		Memory: 64 * root.MiB, Command: "payload", Stop: root.Stop{Signal: "SIGINT", Timeout: time.Minute},
	}
}

// prepared is an instance with its first boot ready.
func (w *world) prepared(id root.InstanceID) *slot {
	w.t.Helper()
	w.prepareBoot(w.boot(id, 1))
	s, err := w.get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) prepareBoot(b orders.Boot) {
	w.t.Helper()
	if _, err := w.prepare(b); err != nil {
		w.t.Fatalf("prepare: %v", err)
	}
}

func (w *world) started(id root.InstanceID) *slot {
	w.t.Helper()
	s := w.prepared(id)
	if _, err := s.start(w.t.Context(), orders.Start{Source: orders.SourceUser}); err != nil {
		w.t.Fatalf("start: %v", err)
	}
	return s
}

// until waits for a journal entry of a type, new or old, and returns it.
func (w *world) until(typ orders.EntryType) orders.Entry {
	w.t.Helper()
	past, f := w.journal.follow(root.Stamp{})
	defer w.journal.unfollow(f)
	for _, e := range past {
		if e.Type == typ {
			return e
		}
	}
	timeout := time.After(patience.Limit)
	for {
		select {
		case e := <-f.entries:
			if e.Type == typ {
				return e
			}
		case <-timeout:
			w.t.Fatalf("no entry %s in the journal: %v", typ, w.types())
		}
	}
}

func (w *world) types() (out []orders.EntryType) {
	past, f := w.journal.follow(root.Stamp{})
	w.journal.unfollow(f)
	for _, e := range past {
		out = append(out, e.Type)
	}
	return out
}

func (w *world) count(typ orders.EntryType) (n int) {
	for _, t := range w.types() {
		if t == typ {
			n++
		}
	}
	return n
}
