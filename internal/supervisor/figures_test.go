package supervisor

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Machines see their own memory, also after the server process has died; what
// shows it goes with the last machine.
func TestMachinesSeeTheirOwnFigures(t *testing.T) {
	t.Parallel()
	if shows(hostLXCFS) {
		t.Log("the host's own lxcfs runs; it is used")
	}
	h := newHost(t)
	h.start()
	before, err := h.client.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own := before.Children[childLXCFS]
	if own == 0 && !shows(hostLXCFS) {
		t.Fatal("nothing shows machines their own figures")
	}
	h.logged(h.started("01A", "cat", "/proc/meminfo").Machine, "MemTotal:          65536 kB")

	h.kill()
	h.start()
	after, err := h.client.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Children[childLXCFS] != own {
		t.Errorf("lxcfs: got process %d after the server's death, want %d", after.Children[childLXCFS], own)
	}
	h.logged(h.started("01B", "cat", "/proc/meminfo").Machine, "MemTotal:          65536 kB")
	h.shutdown(t.Context())
	if own != 0 && runs(own) {
		t.Errorf("lxcfs (%d) runs on", own)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(h.cfg.Run+"/lxcfs", &st); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: got %v, want none", err)
	}
}
