package supervisor

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// TestSharedPorts: a port that two processes listen on by one socket is one of
// a pre-forking server; a port of one process alone, or of loopback, is not.
func TestSharedPorts(t *testing.T) {
	t.Parallel()
	listen := func(addr string) (*os.File, int) {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f, l.Addr().(*net.TCPAddr).Port
	}
	shared, port := listen("0.0.0.0:0")
	loopback, _ := listen("127.0.0.1:0")
	listen("0.0.0.0:0") // ours alone
	child := exec.CommandContext(t.Context(), "sleep", "60")
	child.ExtraFiles = []*os.File{shared, loopback}
	if _, err := testReaper.Start(child); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill() })
	alone := exec.CommandContext(t.Context(), "sleep", "60")
	if _, err := testReaper.Start(alone); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = alone.Process.Kill() })
	both := []int{os.Getpid(), child.Process.Pid}
	slices.Sort(both)
	got, sharers := sharedPorts(append([]int{alone.Process.Pid}, both...))
	if len(got) != 1 || int(got[0]) != port {
		t.Errorf("shared ports: got %v, want %d", got, port)
	}
	if !slices.Equal(sharers, both) {
		t.Errorf("who shares them: got %v, want %v", sharers, both)
	}
}
