package swapon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/atomicfile"
)

// The kernel's interface, see linux/seccomp.h.
const (
	ioctlReceive = 0xc0502100
	ioctlSend    = 0xc0182101
	ioctlIsValid = 0x40082102
)

type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	data  struct {
		nr   int32
		arch uint32
		ip   uint64
		args [6]uint64
	}
}

type response struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// call is a system call that waits for its answer.
type call struct {
	number int
	pid    int
	arg    uintptr // the first
	valid  func() bool
}

// path reads the first argument, a string, out of the caller's memory.
func (c call) path() (string, error) {
	var name []byte
	// Not past the end of a page: the next one may not be there.
	for addr := c.arg; len(name) < unix.PathMax; {
		chunk := make([]byte, page-addr%page)
		n, err := unix.ProcessVMReadv(c.pid, []unix.Iovec{{Base: &chunk[0], Len: uint64(len(chunk))}},
			[]unix.RemoteIovec{{Base: addr, Len: len(chunk)}}, 0)
		if err != nil {
			return "", err
		}
		if end := bytes.IndexByte(chunk[:n], 0); end >= 0 {
			return string(append(name, chunk[:end]...)), nil
		}
		name = append(name, chunk[:n]...)
		addr += uintptr(n)
	}
	return "", unix.ENAMETOOLONG
}

// sent is what an OCI runtime sends with a descriptor: the specification's
// container process state, of which this is needed.
type sent struct {
	FDs   []string `json:"fds"`
	State struct {
		ID string `json:"id"`
	} `json:"state"`
}

const descriptor = "seccompFd"

// Serve takes descriptors from OCI runtimes at l, and answers the calls that
// arrive on them until ctx ends. It closes l.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("containers' system calls: %w", err)
		}
		all.Go(func() {
			id, f, err := receive(ctx, conn)
			if err == nil {
				err = s.follow(ctx, id, f)
			}
			if err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "swap calls of a machine are not answered", "container", id, "err", err)
			}
		})
	}
}

// receive reads one container's message.
func receive(ctx context.Context, conn *net.UnixConn) (id string, f *os.File, err error) {
	defer conn.Close() //nolint:errcheck // only read from
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*16))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return "", nil, err
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		got, rerr := unix.ParseUnixRights(&m)
		fds, err = append(fds, got...), errors.Join(err, rerr)
	}
	var m sent
	err = errors.Join(err, json.NewDecoder(io.MultiReader(bytes.NewReader(buf[:n]), io.LimitReader(conn, 1<<20))).Decode(&m))
	for i, fd := range fds {
		if err == nil && i == slices.Index(m.FDs, descriptor) {
			unix.CloseOnExec(fd)
			_ = unix.SetNonblock(fd, true) // else it would not be polled
			f = os.NewFile(uintptr(fd), "seccomp")
			continue
		}
		_ = unix.Close(fd)
	}
	if err == nil && f == nil {
		err = errors.New("the message has no " + descriptor)
	}
	return m.State.ID, f, err
}

// follow answers the calls of one container's processes until they have all
// ended, or ctx does.
func (s *Server) follow(ctx context.Context, id string, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n notification
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			// The ioctl would block the thread; so look before.
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if got, err := unix.Poll(p, 0); err != nil || got == 0 {
				return false
			}
			if p[0].Revents&unix.POLLIN == 0 {
				failed = io.EOF // all have ended
				return true
			}
			n = notification{}
			failed = ioctl(fd, ioctlReceive, unsafe.Pointer(&n))
			return true
		})
		switch {
		case err != nil || errors.Is(failed, io.EOF):
			return err
		case errors.Is(failed, unix.ENOENT), errors.Is(failed, unix.EINTR):
			continue // whoever called was killed
		case failed != nil:
			return failed
		}
		r := response{id: n.id, err: -int32(unix.ENOSYS)}
		if n.data.arch == nativeArch && (n.data.nr == unix.SYS_SWAPON || n.data.nr == unix.SYS_SWAPOFF) {
			r.err = -int32(s.answer(ctx, id, call{
				number: int(n.data.nr), pid: int(n.pid), arg: uintptr(n.data.args[0]),
				valid: func() bool { return control(raw, ioctlIsValid, unsafe.Pointer(&n.id)) == nil },
			}))
		}
		// ENOENT: the caller has gone.
		if err := control(raw, ioctlSend, unsafe.Pointer(&r)); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

type rawConn interface {
	Control(f func(fd uintptr)) error
}

func control(c rawConn, request uintptr, arg unsafe.Pointer) (err error) {
	return errors.Join(c.Control(func(fd uintptr) { err = ioctl(fd, request, arg) }), err)
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

func readJSON(name string, v any) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func writeJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(name, data, 0o600)
}
