package supervisor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// codeWithin is how long the kernel's news of an exit may take after the exit
// itself was seen.
const codeWithin = time.Second

// foreign learns how processes end that are not children of this one: what an
// earlier server process started. The kernel wakes the holder of a pidfd at
// the exit. The code it tells in three ways, of which any may do: a process
// that its parent has not reaped yet still says it in /proc; from 6.15 the
// pidfd knows it; and the process events connector reports it to those who
// listen, which is why this listens while there is somebody to listen for.
type foreign struct {
	reaper *reaper
	log    *slog.Logger

	mu    sync.Mutex
	codes map[int]chan uint32 // wait status of those watched, by process id
	stop  context.CancelFunc  // ends the connector; nil: it does not run
}

// watch returns a channel that gets the exit code of a process, -1 if nobody
// knows it. It ends with ctx.
func (w *foreign) watch(ctx context.Context, pid int, procStart uint64) (<-chan int, error) {
	fd, err := openPidfd(pid, procStart)
	if err != nil {
		return nil, err
	}
	st, err := readStat(pid)
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	out := make(chan int, 1)
	if st.parent == os.Getpid() { // the program was replaced, the process is the same
		ch := w.reaper.watch(pid)
		go func() {
			select {
			case e := <-ch:
				out <- e.Status
			case <-ctx.Done():
			}
		}()
		return out, fd.Close()
	}
	reported := w.listen(ctx, pid)
	go func() {
		defer w.unlisten(pid)
		defer fd.Close()
		wake := context.AfterFunc(ctx, func() { _ = fd.SetReadDeadline(time.Unix(1, 0)) })
		defer wake()
		if waitPidfd(fd) {
			out <- w.code(fd, pid, procStart, reported)
		}
	}()
	return out, nil
}

// code says how a process ended that has just ended.
func (w *foreign) code(fd *os.File, pid int, procStart uint64, reported <-chan uint32) int {
	for end := time.Now().Add(codeWithin); time.Now().Before(end); {
		if st, err := readStat(pid); err == nil && st.startedAt == procStart && st.state == 'Z' {
			return exitCode(unix.WaitStatus(st.exitCode))
		}
		if status, ok := pidfdStatus(fd); ok {
			return exitCode(unix.WaitStatus(status))
		}
		select {
		case status := <-reported:
			return exitCode(unix.WaitStatus(status))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return -1
}

// waitPidfd waits for the end of the process behind a pidfd; false means that
// the waiting was ended.
func waitPidfd(fd *os.File) bool {
	raw, err := fd.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(p uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	}) == nil
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, first version.
type pidfdInfo struct {
	mask, cgroup uint64
	ids          [11]uint32
	exitCode     int32
}

const (
	pidfdGetInfo  = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xff<<8 | 11 // _IOWR(0xFF, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3
)

func pidfdStatus(fd *os.File) (status int32, ok bool) {
	raw, err := fd.SyscallConn()
	if err != nil {
		return 0, false
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	err = raw.Control(func(p uintptr) {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, p, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
		ok = errno == 0 && info.mask&pidfdInfoExit != 0
	})
	return info.exitCode, ok && err == nil
}

// listen begins to note the exit of pid.
func (w *foreign) listen(ctx context.Context, pid int) <-chan uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.codes == nil {
		w.codes = map[int]chan uint32{}
	}
	ch := make(chan uint32, 1) // one process ends once
	w.codes[pid] = ch
	if w.stop == nil {
		conn, err := openConnector()
		if err != nil {
			w.log.Debug("process events are not available", "err", err)
			return ch
		}
		ctx, stop := context.WithCancel(ctx)
		w.stop = stop
		context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
		go w.readConnector(conn)
	}
	return ch
}

func (w *foreign) unlisten(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.codes, pid)
	if len(w.codes) == 0 && w.stop != nil {
		w.stop() // events of the whole host cost something
		w.stop = nil
	}
}

// The process events connector, linux/cn_proc.h and linux/connector.h.
const (
	cnIdxProc         = 1
	cnValProc         = 1
	procCnMcastListen = 1
	procEventExit     = 0x80000000
	nlHeader          = 16
	cnHeader          = 20
	eventAt           = nlHeader + cnHeader // what, cpu, time, then the event
	exitAt            = eventAt + 16        // pid, tgid, code, signal
)

// openConnector listens for exits of processes on the whole host.
func openConnector() (_ *os.File, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, fmt.Errorf("process events: %w", err)
	}
	f := os.NewFile(uintptr(fd), "process events")
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("process events: %w", err), f.Close())
		}
	}()
	// Only exits come in, and of those only whole processes', since many threads
	// may end at once and what does not fit is lost: load the event's kind and
	// compare, then pid with tgid, take all or nothing.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: eventAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 5, K: swap32(procEventExit)},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: exitAt},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: exitAt + 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: cnIdxProc}); err != nil {
		return nil, err
	}
	msg := make([]byte, nlHeader+cnHeader+4)
	ne := binary.NativeEndian
	ne.PutUint32(msg[0:], uint32(len(msg)))
	ne.PutUint16(msg[4:], unix.NLMSG_DONE)
	ne.PutUint32(msg[nlHeader:], cnIdxProc)
	ne.PutUint32(msg[nlHeader+4:], cnValProc)
	ne.PutUint16(msg[nlHeader+16:], 4)
	ne.PutUint32(msg[nlHeader+cnHeader:], procCnMcastListen)
	return f, unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// swap32 turns a number of this host into what a filter loads, which is in
// network order.
func swap32(n uint32) uint32 {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], n)
	return binary.BigEndian.Uint32(b[:])
}

// readConnector hands exits to those who wait, until the socket's deadline.
func (w *foreign) readConnector(f *os.File) {
	defer f.Close()
	buf := make([]byte, 512)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			continue // some were lost; their codes are unknown
		}
		if err != nil {
			return
		}
		if n < exitAt+16 {
			continue
		}
		ne := binary.NativeEndian
		pid, status := ne.Uint32(buf[exitAt:]), ne.Uint32(buf[exitAt+8:])
		w.mu.Lock()
		if ch := w.codes[int(pid)]; ch != nil {
			select {
			case ch <- status:
			default:
			}
		}
		w.mu.Unlock()
	}
}
