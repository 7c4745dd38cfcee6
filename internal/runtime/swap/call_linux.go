package swap

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

func swapCall(number uintptr, name *byte, flags uintptr) error {
	for {
		_, _, errno := unix.Syscall(number, uintptr(unsafe.Pointer(name)), flags, 0)
		if errno == 0 {
			return nil
		}
		if !errors.Is(errno, unix.EINTR) {
			return errno
		}
	}
}
