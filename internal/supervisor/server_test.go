package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/go-runc"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/loopback"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/runtime/bundle"
	"github.com/roost-run/roost/internal/runtime/cgroup"
	"github.com/roost-run/roost/internal/runtime/runtimetest"
)

// host is a real server process and its client.
type host struct {
	t      testing.TB
	cfg    config.Config
	client *orders.Client
	cmd    *exec.Cmd
	exited chan runc.Exit
	log    *os.File
	config root.Config // of machines to boot

	manager *fakeManager // nil: not started by systemd
}

func newHost(tb testing.TB) *host {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Fatal("this test needs root: it makes network namespaces and runs containers")
	}
	// Short, for the sockets in it.
	dir, err := os.MkdirTemp("", "roost-")
	if err != nil {
		tb.Fatal(err)
	}
	cfg := config.Default()
	cfg.Run, cfg.Data = filepath.Join(dir, "run"), filepath.Join(dir, "data")
	cfg.Listen = []config.Listen{{Addr: loopback.Free(tb), Port: 80}}
	cfg.API = loopback.Free(tb)
	cfg.Swap, cfg.Memory = "none", root.GiB
	cfg.LogLevel = "debug"
	h := &host{t: tb, cfg: cfg, client: orders.NewClient(cfg.SupervisorSocket())}
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx := patience.Context(tb)
		if h.running() {
			h.shutdown(ctx)
		}
		h.client.Close()
		h.sweep(ctx)
		if tb.Failed() {
			data, _ := os.ReadFile(h.log.Name())
			tb.Logf("log of the server:\n%s", data)
		}
		_ = h.log.Close()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return h
}

// sweep takes away what a server that died has left.
func (h *host) sweep(ctx context.Context) {
	if _, err := os.Stat(h.cfg.RouterNamespace()); err != nil {
		return
	}
	h.t.Error("the server has left things behind")
	r, err := network.OpenRouter(ctx, networkOptions(&h.cfg), slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Error(err)
		return
	}
	cg, err := cgroup.Open(h.cfg.CgroupParent())
	if err != nil {
		h.t.Error(err)
		return
	}
	if err := errors.Join(r.Close(ctx), unmountBelow(h.cfg.Run), cg.Remove()); err != nil {
		h.t.Error(err)
	}
}

// start starts the server and waits until it takes orders.
func (h *host) start() {
	h.t.Helper()
	h.launch()
	h.ready()
}

func (h *host) launch() {
	h.t.Helper()
	cfg, err := json.Marshal(h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Env = append(os.Environ(), "ROOST_TEST_ROLE=server", "ROOST_TEST_CONFIG="+string(cfg))
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	if h.manager != nil {
		h.manager.give(h.cmd)
	}
	h.exited, err = testReaper.Start(h.cmd)
	for _, f := range h.cmd.ExtraFiles {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) ready() {
	h.t.Helper()
	patience.Until(h.t, "the server to take orders", func() bool {
		if !h.running() {
			h.t.Fatal("the server ended")
		}
		st, err := h.client.Host(h.t.Context())
		return err == nil && st.Children[childEdge] != 0 && st.Children[childControl] != 0 && h.ask() != ""
	})
}

func (h *host) running() bool { return h.cmd != nil && len(h.exited) == 0 }

// kill is kill -9.
func (h *host) kill() {
	h.t.Helper()
	if err := unix.Kill(h.cmd.Process.Pid, unix.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	<-h.exited
	h.cmd = nil
	h.client.Close()
}

func (h *host) shutdown(ctx context.Context) {
	h.t.Helper()
	if err := h.client.Shutdown(ctx, orders.Shutdown{Machines: true}); err != nil {
		h.t.Errorf("shutdown: %v", err)
	}
	select {
	case e := <-h.exited:
		if e.Status != 0 {
			h.t.Errorf("exit code of the server: got %d, want 0", e.Status)
		}
	case <-ctx.Done():
		h.t.Error("the server does not end")
	}
	h.cmd = nil
}

// ask asks the edge for its process id; "" if it does not answer.
func (h *host) ask() string {
	ctx := patience.Context(h.t)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.cfg.Listen[0].Addr, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(b)
}

// boot makes the bundle of an instance that runs the payload.
func (h *host) boot(id root.InstanceID, number uint64, args ...string) orders.Boot {
	h.t.Helper()
	container := fmt.Sprintf("%s-%d", strings.ToLower(string(id)), number)
	b := orders.Boot{
		Machine: root.MachineID("148e1234c5678" + string(id[len(id)-1:])), App: "shop", Instance: id, Generation: 1, Number: number,
		Container: container, Bundle: filepath.Join(h.cfg.MachineDir(id), container), Memory: 64 * root.MiB,
		Command: "payload", TTY: h.config.Init.TTY, Stop: root.Stop{Signal: "SIGINT", Timeout: time.Minute},
	}
	if err := os.MkdirAll(b.Bundle, 0o755); err != nil {
		h.t.Fatal(err)
	}
	err := bundle.Write(b.Bundle, bundle.Spec{
		Container: container, Hostname: string(b.Machine), CgroupPath: "/" + h.cfg.CgroupParent() + "/" + container,
		Rootfs: runtimetest.Rootfs(h.t, testPayload), Image: ocispec.ImageConfig{Cmd: append([]string{"/payload"}, args...)},
		Memory: b.Memory, CPUShares: 64, Init: "/usr/bin/tini-static", Config: h.config, APIDir: filepath.Join(h.cfg.MachineDir(id), "fly"),
		LXCFS: filepath.Join(h.cfg.Run, "lxcfs"),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// started boots an instance.
func (h *host) started(id root.InstanceID, args ...string) orders.Instance {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.cfg.MachineDir(id), "fly"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.client.Prepare(h.t.Context(), h.boot(id, 1, args...)); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.client.Start(h.t.Context(), id, orders.Start{Source: orders.SourceUser}); err != nil {
		h.t.Fatal(err)
	}
	return h.instance(id)
}

func (h *host) instance(id root.InstanceID) orders.Instance {
	h.t.Helper()
	i, err := h.client.Instance(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return i
}

var errFound = errors.New("found")

// exit waits for the exit of an instance.
func (h *host) exit(id root.InstanceID) (found orders.Entry) {
	h.t.Helper()
	ctx := patience.Context(h.t)
	err := h.client.Journal(ctx, root.Stamp{}, func(e orders.Entry) error {
		if e.Instance == id && e.Type == orders.EntryExited {
			found = e
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		h.t.Fatalf("no exit of %s: %v", id, err)
	}
	return found
}

// logged waits for a line in a machine's log.
func (h *host) logged(m root.MachineID, line string) {
	h.t.Helper()
	ctx := patience.Context(h.t)
	var lines []string
	err := machinelog.Tail(ctx, h.cfg.LogDir("shop"), machinelog.Filter{Machine: m}, true, func(l machinelog.Line) error {
		lines = append(lines, l.Message)
		if l.Message == line {
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		h.t.Errorf("no line %q in the log: %q, %v", line, lines, err)
	}
}

// alive reports whether a process is there, be it as one that waits to be
// reaped.
func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

// runs reports whether a process has not ended.
func runs(pid int) bool {
	st, err := readStat(pid)
	return err == nil && st.state != 'Z'
}

func TestServerRunsAMachine(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	i := h.started("01A", "catch", "7")
	h.logged(i.Machine, "ready")
	in, err := h.client.Inspect(t.Context(), "01A")
	if err != nil || len(in.Processes) != 1 || in.Processes[0].Command != "/payload catch 7" || in.Processes[0].PID < 2 {
		t.Errorf("inspect: got %+v, %v, want the payload", in, err)
	}
	st, err := h.client.Stats(t.Context(), "01A")
	if err != nil || st.Memory <= 0 || st.Processes != 2 {
		t.Errorf("stats: got %+v, %v", st, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	res, err := h.client.Exec(t.Context(), "01A", orders.Exec{Args: []string{"/payload", "exit", "3"}}, null, w, w)
	_ = w.Close()
	out, _ := io.ReadAll(r)
	if err != nil || res.Code != 3 || string(out) != "hello\n" {
		t.Errorf("exec: got %+v, %q, %v, want 3 and hello", res, out, err)
	}
	if _, err := h.client.Exec(t.Context(), "01A", orders.Exec{Args: []string{"/nothing"}}, null, null, null); root.KindOf(err) != root.Invalid {
		t.Errorf("exec of nothing: got %v, want kind invalid", err)
	}
	if _, err := h.client.Stop(t.Context(), "01A", orders.Stop{Source: orders.SourceUser}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&orders.Exit{Code: 7, Requested: true}, h.exit("01A").Exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
	h.logged(i.Machine, "Main child exited normally with code: 7")
	h.logged(i.Machine, "Preparing to run: `payload`")
}

func TestExecEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.started("01A", "sleep")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := h.client.Exec(ctx, "01A", orders.Exec{Args: []string{"/payload", "sleep"}}, null, null, null)
		done <- err
	}()
	processes := func() int {
		st, err := h.client.Stats(t.Context(), "01A")
		if err != nil {
			t.Fatal(err)
		}
		return st.Processes
	}
	patience.Until(t, "the command to run", func() bool { return processes() == 3 })
	cancel()
	if err := <-done; err == nil {
		t.Error("exec: got no error")
	}
	patience.Until(t, "the command to end", func() bool { return processes() == 2 })
}

func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.started("01A", "eat", "500")
	e := h.exit("01A")
	if e.Exit == nil || !e.Exit.OOMKilled || e.Exit.Code != 137 || e.Exit.Requested {
		t.Errorf("exit: got %+v, want killed for memory", e.Exit)
	}
}

func TestServerKilledAndAdopted(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	running := h.started("01A", "catch", "7")
	h.logged(running.Machine, "ready")
	asleep := h.started("01B", "sleep")
	if _, err := h.client.Suspend(t.Context(), "01B", orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	dies := h.started("01C", "sleep")
	if _, err := h.client.Prepare(t.Context(), h.boot("01D", 1, "exit", "0")); err != nil {
		t.Fatal(err)
	}
	before, err := h.client.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	edge := h.ask()

	h.kill()
	if got := h.ask(); got != edge {
		t.Errorf("edge without server: got %q, want %q", got, edge)
	}
	for _, i := range []orders.Instance{running, asleep} {
		if !alive(i.PID) {
			t.Errorf("machine %s died with the server", i.Machine)
		}
	}
	// It prints while nobody reads, and another one ends while nobody watches.
	out, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", running.PID), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteString("printed in the gap\n"); err != nil {
		t.Error(err)
	}
	_ = out.Close()
	if err := unix.Kill(dies.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the machine to end", func() bool { return !alive(dies.PID) })

	h.start()
	after, err := h.client.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Boot != before.Boot || after.Children[childEdge] != before.Children[childEdge] || after.Children[childControl] != before.Children[childControl] {
		t.Errorf("host: got %+v, want boot and children of %+v", after, before)
	}
	if got := h.ask(); got != edge {
		t.Errorf("edge after adoption: got %q, want %q", got, edge)
	}
	if got := h.instance("01A"); got.Phase != orders.PhaseStarted || got.PID != running.PID || got.Stamp != running.Stamp {
		t.Errorf("running machine: got %+v, want as it was", got)
	}
	if got := h.instance("01B"); got.Phase != orders.PhaseSuspended || got.PID != asleep.PID {
		t.Errorf("suspended machine: got %+v, want as it was", got)
	}
	if got := h.instance("01D"); got.Next == nil || got.Phase != orders.PhaseStopped {
		t.Errorf("prepared machine: got %+v, want its boot", got)
	}
	if diff := cmp.Diff(&orders.Exit{Code: -1}, h.exit("01C").Exit); diff != "" {
		t.Errorf("exit in the gap (-want +got):\n%s", diff)
	}
	h.logged(running.Machine, "printed in the gap")
	if out, err := h.client.Start(t.Context(), "01B", orders.Start{Source: orders.SourceProxy}); err != nil || !out.Thawed {
		t.Errorf("wake of the adopted one: got %+v, %v", out, err)
	}
	if _, err := h.client.Start(t.Context(), "01D", orders.Start{}); err != nil {
		t.Errorf("start of the adopted boot: %v", err)
	}
	if _, err := h.client.Stop(t.Context(), "01A", orders.Stop{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&orders.Exit{Code: 7, Requested: true}, h.exit("01A").Exit); diff != "" {
		t.Errorf("exit of the adopted one (-want +got):\n%s", diff)
	}
	// Its edge ends: the adopted sockets serve the next one.
	pid := after.Children[childEdge]
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the next edge", func() bool { got := h.ask(); return got != "" && got != edge })
}

func TestChildrenComeBackAndNoConnectionIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", h.cfg.Listen[0].Addr)
				if err != nil {
					t.Errorf("connect: %v", err)
					return
				}
				_ = c.Close()
				<-time.After(10 * time.Millisecond) // the backlog and the host's ports are finite
			}
		})
	}
	for range 3 {
		edge := h.ask()
		st, err := h.client.Host(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, pid := range st.Children {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatalf("kill %s: %v", name, err)
			}
		}
		patience.Until(t, "the next edge", func() bool { got := h.ask(); return got != "" && got != edge })
		patience.Until(t, "the next children", func() bool {
			next, err := h.client.Host(t.Context())
			return err == nil && !slices.ContainsFunc(slices.Collect(maps.Keys(st.Children)), func(name string) bool {
				return next.Children[name] == 0 || next.Children[name] == st.Children[name]
			})
		})
	}
	close(stop)
	callers.Wait()
}

func TestTerminateLeavesMachines(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	i := h.started("01A", "sleep")
	if err := unix.Kill(h.cmd.Process.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := <-h.exited; e.Status != 0 {
		t.Errorf("exit code: got %d, want 0", e.Status)
	}
	h.cmd = nil
	h.client.Close()
	if got := h.ask(); got != "" {
		t.Errorf("the edge still answers")
	}
	if !alive(i.PID) {
		t.Fatal("the machine was stopped")
	}
	h.start()
	if got := h.instance("01A"); got.Phase != orders.PhaseStarted || got.PID != i.PID {
		t.Errorf("machine: got %+v, want it adopted", got)
	}
}

func TestUpgradeKeepsEverything(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	i := h.started("01A", "catch", "7")
	h.logged(i.Machine, "ready")
	h.config.Init.TTY = true
	terminal := h.started("01B", "catch", "5")
	h.logged(terminal.Machine, "ready")
	edge, pid := h.ask(), h.cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the server to be up again", func() bool {
		data, err := os.ReadFile(h.log.Name())
		return err == nil && bytes.Count(data, []byte("server is up")) == 2
	})
	h.ready()
	st, err := h.client.Host(t.Context())
	if err != nil || st.PID != pid {
		t.Fatalf("host: got %+v, %v, want the same process %d", st, err, pid)
	}
	if got := h.ask(); got != edge {
		t.Errorf("edge: got %q, want %q", got, edge)
	}
	for id, code := range map[root.InstanceID]int{"01A": 7, "01B": 5} {
		if _, err := h.client.Stop(t.Context(), id, orders.Stop{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&orders.Exit{Code: code, Requested: true}, h.exit(id).Exit); diff != "" {
			t.Errorf("exit of %s (-want +got):\n%s", id, diff)
		}
	}
}

func TestBuilderOnDemand(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	for range 2 { // the second time it runs already
		if err := h.client.StartBuilder(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	st, err := h.client.Host(t.Context())
	if err != nil || st.Children[childBuilder] == 0 {
		t.Fatalf("host: got %+v, %v, want a builder", st, err)
	}
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", st.Children[childBuilder]))
	if want := h.cfg.CgroupParent() + "/" + buildsGroup; err != nil || !strings.Contains(string(group), want) {
		t.Errorf("control groups of the builder: got %s, %v, want %s", group, err, want)
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", h.cfg.BuilderSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	patience.Until(t, "the builder to end", func() bool {
		st, err := h.client.Host(t.Context())
		return err == nil && st.Children[childBuilder] == 0
	})
}

// The builder of a server that was killed is the next one's, and ends with it.
func TestBuilderIsAdopted(t *testing.T) {
	t.Parallel()
	var pid int
	t.Cleanup(func() { // after the host's own clean-up
		if pid != 0 && runs(pid) { // this binary reaps it, in its own time
			t.Errorf("builder %d outlived the server", pid)
		}
	})
	h := newHost(t)
	h.start()
	if err := h.client.StartBuilder(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := h.client.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid = before.Children[childBuilder]
	h.kill()
	h.start()
	after, err := h.client.Host(t.Context())
	if err != nil || pid == 0 || after.Children[childBuilder] != pid {
		t.Errorf("builder: got %d, %v, want %d", after.Children[childBuilder], err, pid)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	if err := Run(t.Context(), h.cfg); root.KindOf(err) != root.Conflict {
		t.Errorf("got %v, want kind conflict", err)
	}
	elsewhere := h.cfg
	elsewhere.Run = t.TempDir()
	if err := Run(t.Context(), elsewhere); root.KindOf(err) != root.Conflict || !strings.Contains(err.Error(), "data directory") {
		t.Errorf("the same data directory: got %v, want kind conflict", err)
	}
}

// A start that fails takes back what it made; newHost's cleanup looks.
func TestFailedStartLeavesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", h.cfg.API)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	cfg, err := json.Marshal(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ROOST_TEST_ROLE=server", "ROOST_TEST_CONFIG="+string(cfg))
	cmd.Stdout, cmd.Stderr = h.log, h.log
	exited, err := testReaper.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if e := patience.Receive(t, "the server to end", exited); e.Status == 0 {
		t.Error("the server started although its address was taken")
	}
}

// The same after the control groups were made.
func TestStartWithoutSwapLeavesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.cfg.Swap = "file:900000GB"
	cfg, err := json.Marshal(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ROOST_TEST_ROLE=server", "ROOST_TEST_CONFIG="+string(cfg))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = h.log, &said
	if err := cmd.Run(); err == nil || !strings.Contains(said.String(), "swap") {
		t.Errorf("got %v, %q, want a start refused for its swap", err, said.String())
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + h.cfg.CgroupParent())
	if err != nil || len(groups) > 0 {
		t.Errorf("control groups are left: %v, %v", groups, err)
	}
}

func TestShutdownRestoresTheHost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	i := h.started("01A", "sleep")
	if _, err := h.client.Suspend(t.Context(), "01A", orders.Suspend{}); err != nil {
		t.Fatal(err)
	}
	h.shutdown(t.Context())
	if alive(i.PID) {
		t.Error("the machine runs")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(h.cfg.Run)) {
		t.Errorf("mounts are left, or %v", err)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.Contains(l.Name, h.cfg.InstanceName()) {
			t.Errorf("link %s is left", l.Name)
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + h.cfg.CgroupParent())
	if err != nil || len(groups) != 0 {
		t.Errorf("control groups are left: %v, %v", groups, err)
	}
}

// BenchmarkWake is what a wake costs until processes run, through the socket.
func BenchmarkWake(b *testing.B) {
	h := newHost(b)
	h.start()
	h.started("01A", "sleep")
	for b.Loop() {
		b.StopTimer()
		if _, err := h.client.Suspend(b.Context(), "01A", orders.Suspend{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := h.client.Start(b.Context(), "01A", orders.Start{Source: orders.SourceProxy}); err != nil {
			b.Fatal(err)
		}
	}
}
