package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/roost-run/roost/internal/config"
)

// A user of the host cannot start what a machine has left with the set-user-id
// bit, nor open a device's node that it made, nor speak as the machine.
func TestUsersOfTheHostDoNotReachMachines(t *testing.T) {
	t.Parallel()
	top, err := os.MkdirTemp("", "dirs") // t.TempDir is nobody else's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	cfg := config.Default()
	cfg.Run, cfg.Data = filepath.Join(top, "run"), filepath.Join(top, "data")
	rootfs := filepath.Join(cfg.MachineDir("01M805SFET4VJGBPC16ZX853NH"), "1", "rootfs")
	program := filepath.Join(rootfs, "left")
	err = errors.Join(os.Chmod(top, 0o755), os.MkdirAll(rootfs, 0o755), // by an older version
		os.WriteFile(program, []byte("#!/bin/sh\necho reached\n"), 0o755), os.Chmod(program, 0o4755), makeDirs(&cfg))
	if err != nil {
		t.Fatal(err)
	}
	// The reaper of this binary may be first to learn of an exit; so only the
	// output counts.
	run := func(name string) string {
		cmd := exec.CommandContext(t.Context(), name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return fmt.Sprintf("%s(%v)", out, err)
	}
	if out := run(program); strings.HasPrefix(out, "reached") {
		t.Errorf("a user of the host ran a machine's program: %s", out)
	}
	shown := filepath.Join(cfg.Run, "shown") // the user gets as far as that
	if err := os.WriteFile(shown, []byte("#!/bin/sh\necho reached\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := run(shown); !strings.HasPrefix(out, "reached") {
		t.Errorf("the test proves nothing: %s", out)
	}
}
