// Package runtimetest has the suite that every runtime.Driver passes, and a
// fake driver for tests of what stands above. The fake passes the suite too.
// Only tests import it.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime"
)

// Fixture is a driver to test.
type Fixture struct {
	Driver runtime.Driver
	// Bundle makes the bundle of a container that runs args in rootfs, with
	// the working directory /, the variable FROM_BUNDLE=1 and a memory limit.
	Bundle func(t *testing.T, rootfs string, args []string, memory root.Bytes) runtime.Container
	// OOM is set if the driver cannot run out of memory by itself.
	OOM func(id string) error
}

// Payload builds the program that the suite's containers run, or takes the
// one that ROOST_TEST_PAYLOAD names, for hosts without Go.
func Payload(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("ROOST_TEST_PAYLOAD"); path != "" {
		return path
	}
	path := filepath.Join(tb.TempDir(), "payload")
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-o", path, "github.com/roost-run/roost/internal/runtime/runtimetest/payload")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build the payload: %v\n%s", err, out)
	}
	return path
}

// Rootfs makes a root file system with nothing but /payload.
func Rootfs(tb testing.TB, payload string) string {
	tb.Helper()
	dir := tb.TempDir()
	data, err := os.ReadFile(payload)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "payload"), data, 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Wait reaps a container's first process, as a driver's user has to, and
// returns its exit code, 128 + n if signal n ended it. The calling process
// must be a child subreaper if the driver's runtime forks.
func Wait(pid int) (int, error) {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for %d: %w", pid, err)
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
}

// Suite tests a driver; new makes one for each part.
func Suite(t *testing.T, newFixture func(t *testing.T) Fixture) {
	t.Helper()
	payload := Payload(t)
	for name, test := range map[string]func(*harness){
		"Lifecycle":        testLifecycle,
		"Output":           testOutput,
		"Blocking":         testBlocking,
		"Signal":           testSignal,
		"SignalAll":        testSignalAll,
		"Exec":             testExec,
		"ExecKilled":       testExecKilled,
		"Freeze":           testFreeze,
		"DeleteFrozen":     testDeleteFrozen,
		"DeleteRunning":    testDeleteRunning,
		"OOM":              testOOM,
		"List":             testList,
		"CreateTwice":      testCreateTwice,
		"CreateFails":      testCreateFails,
		"UnknownContainer": testUnknown,
		"Terminal":         testTerminal,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(&harness{t: t, Fixture: newFixture(t), payload: payload})
		})
	}
}

type harness struct {
	t *testing.T
	Fixture
	payload string
}

// instance is a container that a test made.
type instance struct {
	*harness
	id, rootfs string
	pid        int
	out        *os.File // what it prints
	reaped     bool
}

// create makes a container that runs the payload with args.
func (h *harness) create(memory root.Bytes, args ...string) *instance {
	h.t.Helper()
	rootfs := Rootfs(h.t, h.payload)
	c := h.Bundle(h.t, rootfs, append([]string{"/payload"}, args...), memory)
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = r.Close() })
	c.Stdout, c.Stderr = w, w
	pid, err := h.Driver.Create(h.t.Context(), c)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	i := &instance{harness: h, id: c.ID, rootfs: rootfs, pid: pid, out: r}
	h.t.Cleanup(func() {
		if err := h.Driver.Delete(context.WithoutCancel(h.t.Context()), i.id, true); err != nil {
			h.t.Errorf("clean up: %v", err)
			return // it may run for ever
		}
		if !i.reaped {
			_, _ = Wait(pid)
		}
	})
	return i
}

func (i *instance) start() {
	i.t.Helper()
	if err := i.Driver.Start(i.t.Context(), i.id); err != nil {
		i.t.Fatal(err)
	}
}

// ready waits for the payload to say so.
func (i *instance) ready() {
	i.t.Helper()
	if err := i.out.SetReadDeadline(patience.Deadline()); err != nil {
		i.t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := i.out.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "ready") {
		i.t.Fatalf("output: got %q, %v, want ready", buf[:n], err)
	}
}

func (i *instance) wait(want int) {
	i.t.Helper()
	code, err := Wait(i.pid)
	i.reaped = true
	if err != nil {
		i.t.Fatal(err)
	}
	if code != want {
		i.t.Errorf("exit code: got %d, want %d", code, want)
	}
}

// pause is between two looks at something that gives no event.
func pause() { <-time.After(2 * time.Millisecond) }

func wantKind(t *testing.T, what string, err error, want root.Kind) {
	t.Helper()
	if err == nil || root.KindOf(err) != want {
		t.Errorf("%s: got %v (kind %v), want kind %v", what, err, root.KindOf(err), want)
	}
}

func testLifecycle(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "exit", "7")
	if i.pid <= 0 {
		t.Fatalf("pid: got %d", i.pid)
	}
	ran := filepath.Join(i.rootfs, "ran")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the process ran before Start")
	}
	i.start()
	i.wait(7)
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("the process did not run: %v", err)
	}
	for range 2 {
		if err := h.Driver.Delete(t.Context(), i.id, false); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	_, err := h.Driver.PIDs(i.id)
	wantKind(t, "processes after delete", err, root.NotFound)
}

func testOutput(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "lines", "3")
	i.start()
	i.wait(0)
	out, err := io.ReadAll(i.out)
	if err != nil || string(out) != "line 0\nline 1\nline 2\n" {
		t.Errorf("output: got %q, %v", out, err)
	}
}

func testBlocking(h *harness) {
	t := h.t
	c := h.Bundle(t, Rootfs(t, h.payload), []string{"/payload", "blocking"}, 64*root.MiB)
	fds := make([]int, 2)
	if err := syscall.Pipe2(fds, syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	c.Stdin, c.Stdout, c.Stderr = w, w, w
	pid, err := h.Driver.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{harness: h, id: c.ID, pid: pid, out: r}
	i.start()
	i.wait(0)
	if err := errors.Join(w.Close(), h.Driver.Delete(t.Context(), c.ID, true)); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(r); err != nil || string(out) != "true\ntrue\ntrue\n" {
		t.Errorf("blocking: got %q, %v, want all true", out, err)
	}
}

func testSignal(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "catch", "42")
	i.start()
	i.ready()
	if err := h.Driver.Signal(t.Context(), i.id, syscall.SIGINT, false); err != nil {
		t.Fatal(err)
	}
	i.wait(42)
	wantKind(t, "signal to nobody", h.Driver.Signal(t.Context(), i.id, syscall.SIGINT, false), root.NotFound)
}

func testSignalAll(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "child")
	i.start()
	i.ready()
	if pids, err := h.Driver.PIDs(i.id); err != nil || len(pids) < 2 {
		t.Errorf("processes: got %v, %v, want two or more", pids, err)
	}
	if err := h.Driver.Signal(t.Context(), i.id, syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	i.wait(137)
	patience.Until(t, "all processes end", func() bool {
		pids, err := h.Driver.PIDs(i.id)
		return len(pids) == 0 || err != nil
	})
}

// exec runs the payload inside and returns what it printed.
func (i *instance) exec(ctx context.Context, e runtime.Exec) (out string, code int, err error) {
	i.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		i.t.Fatal(err)
	}
	defer r.Close()
	e.Stdout, e.Stderr = w, w
	code, err = i.Driver.Exec(ctx, i.id, e)
	if cerr := w.Close(); cerr != nil {
		i.t.Fatal(cerr)
	}
	data, rerr := io.ReadAll(r)
	if rerr != nil {
		i.t.Fatal(rerr)
	}
	return string(data), code, err
}

func testExec(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "sleep")
	i.start()
	i.ready()
	out, code, err := i.exec(t.Context(), runtime.Exec{Args: []string{"/payload", "print", "FROM_BUNDLE", "MORE"}, Env: []string{"MORE=2"}})
	if want := "FROM_BUNDLE=1\nMORE=2\n"; err != nil || code != 0 || !strings.HasSuffix(out, want) {
		t.Errorf("exec: got %q, %d, %v, want ending in %q", out, code, err, want)
	}
	if _, code, err := i.exec(t.Context(), runtime.Exec{Args: []string{"/payload", "exit", "5"}}); err != nil || code != 5 {
		t.Errorf("exec that fails: got %d, %v, want 5", code, err)
	}
	out, _, err = i.exec(t.Context(), runtime.Exec{Args: []string{"/nothing"}})
	wantKind(t, "exec of what is not there", err, root.Invalid)
	if out != "" {
		t.Errorf("the runtime wrote to the command's output: %q", out)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("over there"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out, code, err := i.exec(t.Context(), runtime.Exec{Args: []string{"/payload", "echo"}, Stdin: r}); out != "over there" || code != 0 || err != nil {
		t.Errorf("exec with input: got %q, %d, %v", out, code, err)
	}
}

func testExecKilled(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "sleep")
	i.start()
	i.ready()
	before, err := h.Driver.PIDs(i.id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	pidFile := filepath.Join(t.TempDir(), "pid")
	cause := errors.New("no patience")
	done := make(chan error, 1)
	go func() {
		_, err := h.Driver.Exec(ctx, i.id, runtime.Exec{Args: []string{"/payload", "child"}, PIDFile: pidFile})
		done <- err
	}()
	patience.Until(t, "the command and its child run", func() bool {
		pids, err := h.Driver.PIDs(i.id)
		data, ferr := os.ReadFile(pidFile)
		return err == nil && ferr == nil && len(data) > 0 && len(pids) >= len(before)+2
	})
	cancel(cause)
	if err := patience.Receive(t, "the command to end", done); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	patience.Until(t, "the command is gone", func() bool {
		pids, err := h.Driver.PIDs(i.id)
		return err == nil && len(pids) <= len(before)
	})
}

func (i *instance) count() string {
	data, err := os.ReadFile(filepath.Join(i.rootfs, "count"))
	if err != nil {
		i.t.Fatal(err)
	}
	return string(data)
}

func testFreeze(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "count")
	i.start()
	i.ready()
	for range 2 {
		if err := h.Driver.Freeze(i.id); err != nil {
			t.Fatal(err)
		}
	}
	frozen := i.count()
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); pause() {
		if got := i.count(); got != frozen {
			t.Fatalf("progress while frozen: from %s to %s", frozen, got)
		}
	}
	_, _, err := i.exec(t.Context(), runtime.Exec{Args: []string{"/payload", "exit", "0"}})
	wantKind(t, "exec while frozen", err, root.Precondition)
	for range 2 {
		if err := h.Driver.Thaw(i.id); err != nil {
			t.Fatal(err)
		}
	}
	patience.Until(t, "progress after the thaw", func() bool { return i.count() != frozen })
}

func testDeleteFrozen(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "count")
	i.start()
	i.ready()
	if err := h.Driver.Freeze(i.id); err != nil {
		t.Fatal(err)
	}
	if err := h.Driver.Delete(t.Context(), i.id, true); err != nil {
		t.Fatal(err)
	}
	i.wait(137)
}

func testDeleteRunning(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "sleep")
	i.start()
	i.ready()
	if err := h.Driver.Delete(t.Context(), i.id, false); err == nil {
		t.Error("a running container was deleted without force")
	}
	if err := h.Driver.Delete(t.Context(), i.id, true); err != nil {
		t.Fatal(err)
	}
	i.wait(137)
}

func testOOM(h *harness) {
	t := h.t
	i := h.create(32*root.MiB, "eat", "200")
	i.start()
	if h.OOM != nil {
		i.ready()
		if err := h.OOM(i.id); err != nil {
			t.Fatal(err)
		}
	}
	i.wait(137)
	s, err := h.Driver.Stats(i.id)
	if err != nil || s.OOMKills == 0 {
		t.Errorf("stats: got %+v, %v, want kills for memory", s, err)
	}
}

func testList(h *harness) {
	t := h.t
	made, running, ended := h.create(64*root.MiB, "sleep"), h.create(64*root.MiB, "sleep"), h.create(64*root.MiB, "exit", "0")
	running.start()
	running.ready()
	ended.start()
	ended.wait(0)
	list, err := h.Driver.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]runtime.Existing{}
	for _, e := range list {
		got[e.ID] = e
	}
	for _, want := range []runtime.Existing{
		{ID: made.id, PID: made.pid},
		{ID: running.id, PID: running.pid, Running: true},
		{ID: ended.id},
	} {
		if got[want.ID] != want {
			t.Errorf("list: got %+v, want %+v", got[want.ID], want)
		}
	}
	s, err := h.Driver.Stats(running.id)
	if err != nil || s.Memory <= 0 || s.Processes < 1 || s.OOMKills != 0 {
		t.Errorf("stats: got %+v, %v", s, err)
	}
}

func testCreateTwice(h *harness) {
	t := h.t
	i := h.create(64*root.MiB, "sleep")
	i.start()
	i.ready()
	c := h.Bundle(t, i.rootfs, []string{"/payload", "sleep"}, 64*root.MiB)
	c.ID = i.id
	_, err := h.Driver.Create(t.Context(), c)
	if err == nil {
		t.Error("a second container of the same id was created")
	}
	if pids, err := h.Driver.PIDs(i.id); err != nil || len(pids) == 0 {
		t.Errorf("the first one suffered: %v, %v", pids, err)
	}
}

func testCreateFails(h *harness) {
	t := h.t
	c := h.Bundle(t, Rootfs(t, h.payload), []string{"/payload", "sleep"}, 64*root.MiB)
	c.Bundle = t.TempDir() // nothing in it
	if _, err := h.Driver.Create(t.Context(), c); err == nil {
		t.Fatal("created from an empty bundle")
	}
	list, err := h.Driver.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.ID == c.ID {
			t.Errorf("something is left: %+v", e)
		}
	}
	_, err = h.Driver.PIDs(c.ID)
	wantKind(t, "its processes", err, root.NotFound)
}

func testUnknown(h *harness) {
	t := h.t
	const id = "no-such-container"
	d := h.Driver
	wantKind(t, "start", d.Start(t.Context(), id), root.NotFound)
	wantKind(t, "signal", d.Signal(t.Context(), id, syscall.SIGTERM, false), root.NotFound)
	wantKind(t, "freeze", d.Freeze(id), root.NotFound)
	wantKind(t, "thaw", d.Thaw(id), root.NotFound)
	_, err := d.Exec(t.Context(), id, runtime.Exec{Args: []string{"/payload"}})
	wantKind(t, "exec", err, root.NotFound)
	_, err = d.Stats(id)
	wantKind(t, "stats", err, root.NotFound)
	_, err = d.Reclaim(t.Context(), id, root.MiB)
	wantKind(t, "reclaim", err, root.NotFound)
	if err := d.Delete(t.Context(), id, true); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func testTerminal(h *harness) {
	t := h.t
	rootfs := Rootfs(t, h.payload)
	c := h.Bundle(t, rootfs, []string{"/payload", "echo"}, 64*root.MiB)
	if err := setTerminal(c.Bundle); err != nil {
		t.Fatal(err)
	}
	var master *os.File
	c.Terminal = func(f *os.File) { master = f }
	pid, err := h.Driver.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Driver.Delete(context.WithoutCancel(t.Context()), c.ID, true); err != nil {
			t.Errorf("clean up: %v", err)
		}
		_, _ = Wait(pid)
	})
	if master == nil {
		t.Fatal("no terminal came")
	}
	defer master.Close()
	if err := h.Driver.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := master.SetReadDeadline(patience.Deadline()); err != nil {
		t.Fatal(err)
	}
	if _, err := master.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	// Once from the terminal's echo, once from the payload.
	var got strings.Builder
	buf := make([]byte, 256)
	for strings.Count(got.String(), "typed") < 2 {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("terminal: got %q, %v", got.String(), err)
		}
		got.Write(buf[:n])
	}
}
