package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/loopback"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// fakeManager is systemd's side of sd_notify(3): it keeps what a service
// stores, and gives it to the service's next process.
type fakeManager struct {
	t      *testing.T
	socket string

	mu    sync.Mutex
	files []*os.File // their names are those that the service gave
	ready int        // how often the service was
}

func newFakeManager(t *testing.T) *fakeManager {
	t.Helper()
	dir, err := os.MkdirTemp("", "roost-") // short
	if err != nil {
		t.Fatal(err)
	}
	m := &fakeManager{t: t, socket: filepath.Join(dir, "notify")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		data, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*253))
		for {
			n, rn, _, _, err := c.ReadMsgUnix(data, rights)
			if err != nil {
				return
			}
			if err := m.message(string(data[:n]), rights[:rn]); err != nil {
				t.Errorf("message %q: %v", data[:n], err)
			}
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
		m.release()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

// message does what service_notify_message of systemd 252 does.
func (m *fakeManager) message(text string, rights []byte) error {
	var files []*os.File
	if len(rights) > 0 {
		messages, err := unix.ParseSocketControlMessage(rights)
		if err != nil {
			return err
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "given"))
		}
	}
	option := map[string]string{}
	for line := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(line, "=")
		option[key] = value
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := option["FDNAME"]
	if strings.ContainsAny(name, ": ") {
		return errors.New("systemd takes no such name")
	}
	switch {
	case option["READY"] == "1":
		m.ready++
	case option["FDSTOREREMOVE"] == "1":
		kept := m.files[:0:0]
		for _, f := range m.files {
			if f.Name() != name {
				kept = append(kept, f)
			} else if err := f.Close(); err != nil {
				return err
			}
		}
		m.files = kept
	case option["FDSTORE"] == "1":
		for _, f := range files {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return err
			}
			m.files = append(m.files, os.NewFile(uintptr(fd), name))
		}
	}
	for _, f := range files {
		if err := f.Close(); err != nil { // a barrier's, too
			return err
		}
	}
	return nil
}

// release is what happens when the unit has stopped.
func (m *fakeManager) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.files {
		_ = f.Close()
	}
	m.files = nil
}

func (m *fakeManager) count(name string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.files {
		if f.Name() == name {
			n++
		}
	}
	return n
}

func (m *fakeManager) starts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

// give changes a command so that it begins as systemd has services begin.
func (m *fakeManager) give(cmd *exec.Cmd) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, f := range m.files {
		// A copy: the service may have this one dropped while it begins.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			m.t.Fatal(err)
		}
		names, cmd.ExtraFiles = append(names, f.Name()), append(cmd.ExtraFiles, os.NewFile(uintptr(fd), f.Name()))
	}
	// Only the process itself knows its number.
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, self}
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.socket, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
}

// terminate is "systemctl restart" up to the moment when nothing runs.
func (h *host) terminate() {
	h.t.Helper()
	if err := unix.Kill(h.cmd.Process.Pid, unix.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	if e := <-h.exited; e.Status != 0 {
		h.t.Errorf("exit code: got %d, want 0", e.Status)
	}
	h.cmd = nil
	h.client.Close()
	h.t.Cleanup(func() {
		if !h.running() {
			h.launch() // somebody has to stop the machines
			patience.Until(h.t, "the server to take orders", func() bool {
				_, err := h.client.Host(context.WithoutCancel(h.t.Context()))
				return err == nil
			})
		}
	})
}

// call opens a connection and asks, without waiting for the answer.
func call(ctx context.Context, t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		t.Fatalf("connect while no server runs: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRestartRefusesNoConnection(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.manager = newFakeManager(t)
	h.start()
	i := h.started("01A", "sleep")
	before := h.ask()
	h.terminate()
	if got := h.manager.count(storedMachines); got != 1 {
		t.Errorf("stored sockets of machines: got %d, want 1", got)
	}

	waiting := call(t.Context(), t, "tcp", h.cfg.Listen[0].Addr)
	// The machine's own socket, by a short path to its directory.
	link := filepath.Join(filepath.Dir(h.cfg.Run), "m")
	if err := os.Symlink(filepath.Join(h.cfg.MachineDir("01A"), "fly"), link); err != nil {
		t.Fatal(err)
	}
	own := call(t.Context(), t, "unix", filepath.Join(link, "api"))
	call(t.Context(), t, "unix", h.cfg.APISocket())

	h.start()
	if err := waiting.SetReadDeadline(patience.Deadline()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(waiting), nil)
	if err != nil {
		t.Fatalf("the connection that waited: %v", err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) == before || string(body) != h.ask() {
		t.Errorf("answer: got %q, %v, want that of the new edge; the old one was %s", body, err, before)
	}
	if got := h.instance("01A"); got.Phase != orders.PhaseStarted || got.PID != i.PID {
		t.Errorf("machine: got %+v, want it adopted", got)
	}
	// The listener is the same one: what waits in it has not been cut off.
	if err := own.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := own.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the machine's connection: got %v, want that it waits", err)
	}

	patience.Until(t, "the machine's socket to be taken", func() bool { return h.manager.count(storedMachines) == 0 })

	// An address that is not wanted any more must not be held.
	old := h.cfg.Listen[0].Addr
	h.terminate()
	h.cfg.Listen[0].Addr = loopback.Free(t)
	h.start()
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", old); err == nil {
		_ = c.Close()
		t.Errorf("%s is not in the configuration, and connects", old)
	}
	want := len(h.listeners())
	patience.Until(t, "systemd to hold the listeners", func() bool { return h.manager.count(storedListeners) == want })
	patience.Until(t, "the server to have said three times that it is ready", func() bool { return h.manager.starts() == 3 })
}

func (h *host) listeners() []orders.Listener {
	h.t.Helper()
	names, files, err := h.client.Listeners(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range files {
		_ = f.Close()
	}
	return names
}

// TestListenElsewhereWhileTheEdgeRuns: the new address and the old one, which
// the edge has open, exclude each other.
func TestListenElsewhereWhileTheEdgeRuns(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	_, port, err := net.SplitHostPort(h.cfg.Listen[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	h.start()
	first := h.ask()
	h.kill()
	h.cfg.Listen[0].Addr = net.JoinHostPort("0.0.0.0", port)
	h.start()
	if got := h.ask(); got == "" || got == first {
		t.Errorf("edge: got %q, want another one than %q", got, first)
	}
}

// TestStoredSocketsOfARouterThatIsGone: a socket inside a router namespace
// that was undone answers nobody.
func TestStoredSocketsOfARouterThatIsGone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.manager = newFakeManager(t)
	h.start()
	first := h.ask()
	h.shutdown(patience.Context(t)) // and systemd, say, still has the sockets
	h.start()
	if got := h.ask(); got == "" || got == first {
		t.Errorf("edge: got %q, want another one than %q", got, first)
	}
	want := len(h.listeners())
	patience.Until(t, "systemd to hold the listeners", func() bool { return h.manager.count(storedListeners) == want })
}

func TestManagerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "n")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (manager{path}).barrier(ctx); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("barrier: got %v, want that the time is over", err)
	}
	if err := errors.Join((manager{}).keep(storedListeners, nil), (manager{}).barrier(ctx)); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}
