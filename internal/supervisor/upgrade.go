package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// terminalsVariable hands the terminals of machines to the next program: a
// JSON object of descriptor numbers by container. Everything else is found as
// after a crash. It does not begin with ROOST_, as settings do.
const terminalsVariable = "_ROOST_KEPT_TERMINALS"

// replace puts the binary on disk into this process. Children stay children;
// the sockets are taken out of the running edge again.
func (s *server) replace() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	kept := map[string]int{}
	for _, sl := range s.slots.list() {
		if r := sl.run; r != nil && r.boot.TTY && r.out != nil {
			fd, err := unix.FcntlInt(r.out.f.Fd(), unix.F_DUPFD, 3) // without close-on-exec
			if err != nil {
				return fmt.Errorf("upgrade: keep a terminal: %w", err)
			}
			kept[r.boot.Container] = fd
		}
	}
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	if err := os.Setenv(terminalsVariable, string(data)); err != nil {
		return err
	}
	return fmt.Errorf("upgrade to %s: %w", exe, unix.Exec(exe, os.Args, os.Environ()))
}

// keptTerminals takes what replace left.
func keptTerminals() (map[string]*os.File, error) {
	v := os.Getenv(terminalsVariable)
	if v == "" {
		return nil, nil
	}
	var kept map[string]int
	err := errors.Join(os.Unsetenv(terminalsVariable), json.Unmarshal([]byte(v), &kept))
	out := map[string]*os.File{}
	for container, fd := range kept {
		unix.CloseOnExec(fd)
		err = errors.Join(err, unix.SetNonblock(fd, true))
		out[container] = os.NewFile(uintptr(fd), container)
	}
	if err != nil {
		return nil, fmt.Errorf("terminals kept over the upgrade: %w", err)
	}
	return out, nil
}
