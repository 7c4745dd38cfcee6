package swapon

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// swapFile makes what mkswap would.
func swapFile(t *testing.T) string {
	t.Helper()
	const pages = 16
	data := make([]byte, (pages+1)*page)
	binary.NativeEndian.PutUint32(data[lastPage:], pages)
	copy(data[page-len(signature):], signature)
	name := filepath.Join(t.TempDir(), "swapfile")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// limiter stands still in AddSwap as the kernel may, for as long as the test
// wants.
type limiter struct{ entered, leave chan struct{} }

func (l limiter) AddSwap(string, root.Bytes, int) error {
	l.entered <- struct{}{}
	<-l.leave
	return nil
}

// TestOneContainerHoldsUpNoOther: while the kernel works on one container's
// call, others are added, answered and forgotten.
func TestOneContainerHoldsUpNoOther(t *testing.T) {
	l := limiter{make(chan struct{}), make(chan struct{})}
	s := New(l, slog.New(slog.DiscardHandler))
	told := make(chan string, 1)
	s.Add("one", Container{Dir: t.TempDir(), Tell: func(line string) { told <- line }})
	name := append([]byte(swapFile(t)), 0)
	var pin runtime.Pinner
	pin.Pin(&name[0])
	defer pin.Unpin()
	c := call{number: unix.SYS_SWAPON, pid: os.Getpid(), arg: uintptr(unsafe.Pointer(&name[0])), valid: func() bool { return true }}
	answered := make(chan unix.Errno)
	go func() { answered <- s.answer(t.Context(), "one", c) }()
	<-l.entered
	s.Add("two", Container{Dir: t.TempDir()})
	if got := s.answer(t.Context(), "nobody", c); got != unix.ESRCH {
		t.Errorf("a call of a container that is not known: got %v, want ESRCH", got)
	}
	s.Forget("two")
	close(l.leave)
	if got := <-answered; got != 0 {
		t.Errorf("swapon: got %v, want 0", got)
	}
	if got := <-told; got == "" {
		t.Error("nobody was told")
	}
}

// TestOpenInsideDoesNotWait: a lease on a file would make whoever opens it
// wait for its holder, near a minute.
func TestOpenInsideDoesNotWait(t *testing.T) {
	name := swapFile(t)
	for _, access := range []int{os.O_RDWR, os.O_RDONLY} {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			t.Fatal(err)
		}
		if got, err := openInside(os.Getpid(), name, access); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("a leased file, access %d: got %v, want EAGAIN", access, err)
			if err == nil {
				_ = got.Close()
			}
		}
		if err := f.Close(); err != nil { // and with it the lease
			t.Error(err)
		}
		got, err := openInside(os.Getpid(), name, access)
		if err != nil {
			t.Fatalf("without the lease: %v", err)
		}
		_ = got.Close()
	}
}
