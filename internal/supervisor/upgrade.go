package supervisor

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// replace puts the binary on disk into this process. Children stay children;
// what is open is taken out of the running edge again, as after a crash.
func (s *server) replace() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	return fmt.Errorf("upgrade to %s: %w", exe, unix.Exec(exe, os.Args, os.Environ()))
}

// notifyReady tells systemd, if that started us (sd_notify(3)).
func (s *server) notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		s.log.Warn("systemd not told", "err", err)
		return
	}
	defer c.Close()
	if _, err := c.Write([]byte("READY=1\n")); err != nil {
		s.log.Warn("systemd not told", "err", err)
	}
}
