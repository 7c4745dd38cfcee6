package runc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// consoleTimeout: when create has returned, the terminal has been sent.
const consoleTimeout = 5 * time.Second

// consoleSocket receives the master end of a container's terminal (OCI
// runtime command line interface, --console-socket).
type consoleSocket struct {
	dir      string
	listener *net.UnixListener
}

func listenConsole() (*consoleSocket, error) {
	// Not in the bundle: a socket's path has room for 107 bytes.
	dir, err := os.MkdirTemp("", "roost-console-")
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console socket: %w", err), os.RemoveAll(dir))
	}
	return &consoleSocket{dir: dir, listener: l}, nil
}

// Path implements go-runc's ConsoleSocket.
func (s *consoleSocket) Path() string { return filepath.Join(s.dir, "s") }

func (s *consoleSocket) close() error { return errors.Join(s.listener.Close(), os.RemoveAll(s.dir)) }

func (s *consoleSocket) receive() (_ *os.File, err error) {
	deadline := time.Now().Add(consoleTimeout)
	if err := s.listener.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("console socket: no terminal in the message"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("console socket: no terminal in the message"), err)
	}
	unix.CloseOnExec(fds[0])
	// Non-blocking, so that reads of it can be ended by closing it.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("console socket: %w", err), unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
