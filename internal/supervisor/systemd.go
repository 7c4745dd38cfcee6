package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// The names under which systemd keeps our sockets (FileDescriptorStoreMax= of
// the unit). What is which follows from the inodes in our own files: names
// must not contain colons, which addresses have.
const (
	storedListeners = "listener"
	storedMachines  = "machine"
)

const (
	// storedAtOnce is how many descriptors one message carries; the kernel
	// takes up to 253.
	storedAtOnce = 128
	// tellTimeout bounds the wait for systemd to read what it is told.
	tellTimeout = 5 * time.Second
)

// manager is systemd, if it started this process (sd_notify(3)). What is in
// its store outlives this process, and the next one of the unit is given it:
// connections wait there while "systemctl restart" is under way. When the unit
// is stopped, systemd closes it all.
type manager struct{ socket string }

func newManager() manager { return manager{os.Getenv("NOTIFY_SOCKET")} }

// tell sends one message, with files. Without systemd it does nothing.
func (m manager) tell(state string, files ...*os.File) (err error) {
	if m.socket == "" {
		return nil
	}
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// Not f.Fd(): that would make the descriptor blocking.
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return err
		}
	}
	// Not net.UnixConn, which cannot send descriptors as datagrams.
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(c)) }()
	limit := unix.NsecToTimeval(int64(tellTimeout))
	if err := unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	defer runtime.KeepAlive(files)
	for {
		err := unix.Sendmsg(c, []byte(state), rights, &unix.SockaddrUnix{Name: m.socket}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// ready says that the unit has started.
func (m manager) ready() error { return m.tell("READY=1\n") }

// keep has these files, and no others, stored under a name; see barrier.
func (m manager) keep(name string, files []*os.File) error {
	err := m.tell("FDSTOREREMOVE=1\nFDNAME=" + name + "\n")
	for some := range slices.Chunk(files, storedAtOnce) {
		// FDPOLL=0: systemd is not to drop a socket because of its state.
		err = errors.Join(err, m.tell("FDSTORE=1\nFDPOLL=0\nFDNAME="+name+"\n", some...))
	}
	return err
}

// barrier waits until systemd has done what it was told: until then it holds
// what it is to drop, and messages of a process that has ended may be lost.
func (m manager) barrier(ctx context.Context) error {
	if m.socket == "" {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	err = errors.Join(m.tell("BARRIER=1", w), w.Close(), r.SetReadDeadline(time.Now().Add(tellTimeout)))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("systemd does not read what it is told: %w", err)
	}
	return nil
}

// inherited are sockets that outlived the server process which opened them.
type inherited struct {
	kept map[uint64]*os.File // what systemd stored, by inode
	edge childProcess        // the edge that still runs, if it does
}

// keptFiles takes what systemd hands over, once for the whole process: it has
// to come before the first child is started, which must not inherit it.
func keptFiles() map[uint64]*os.File {
	kept := map[uint64]*os.File{}
	for _, f := range activation.Files(true) {
		ino := inode(f)
		if ino == 0 || kept[ino] != nil {
			_ = f.Close()
			continue
		}
		kept[ino] = f
	}
	return kept
}

// take returns those of the sockets that are still there.
func (i *inherited) take(inodes map[uint64]bool) (map[uint64]*os.File, error) {
	missing := map[uint64]bool{}
	out := map[uint64]*os.File{}
	for ino := range inodes {
		if f := i.kept[ino]; f != nil {
			out[ino] = f
			delete(i.kept, ino)
			continue
		}
		missing[ino] = true
	}
	more, err := takeFrom(i.edge, missing)
	maps.Copy(out, more)
	return out, err
}

// drop closes what systemd kept under a name and nobody took.
func (i *inherited) drop(name string) (some bool) {
	for ino, f := range i.kept {
		if f.Name() == name {
			_ = f.Close()
			delete(i.kept, ino)
			some = true
		}
	}
	return some
}

// close drops all that nobody took.
func (i *inherited) close() {
	for _, f := range i.kept {
		_ = f.Close()
	}
	clear(i.kept)
}
