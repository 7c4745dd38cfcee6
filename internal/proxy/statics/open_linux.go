package statics

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoFile says that there is no regular file of that name.
var errNoFile = errors.New("no such file")

// dir is a guest path inside a view: a directory, or a file itself.
type dir struct{ fd int }

// openDir resolves an image's path guest with view as root directory: links
// in it lead where they would lead a program in the machine.
func openDir(view, guest string) (dir, error) {
	root, err := unix.Open(view, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return dir{-1}, missing(err)
	}
	defer closeFD(root)
	path := strings.TrimLeft(guest, "/")
	if path == "" {
		path = "."
	}
	fd, err := openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	return dir{fd}, missing(err)
}

func (d dir) close() { closeFD(d.fd) }

// has reports whether name is a regular file in d.
func (d dir) has(name string) bool {
	fd, err := d.find(name)
	if err == nil {
		closeFD(fd)
	}
	return err == nil
}

// open opens the regular file name beneath d, without following links; "" is
// d itself. Nothing but a regular file is ever opened: a FIFO or a device
// would act on it.
func (d dir) open(name string) (*os.File, error) {
	fd, err := d.find(name)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, missing(err)
	}
	return f, nil
}

func (d dir) find(name string) (fd int, err error) {
	if name == "" {
		fd, err = unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	} else {
		fd, err = openat2(d.fd, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
	}
	if err != nil {
		return -1, missing(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		closeFD(fd)
		return -1, errors.Join(errNoFile, err)
	}
	return fd, nil
}

// openat2Tries: the kernel gives up when something is renamed meanwhile.
const openat2Tries = 4

func openat2(at int, path string, how *unix.OpenHow) (fd int, err error) {
	for range openat2Tries {
		if fd, err = unix.Openat2(at, path, how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// missing turns the ways in which a path is not a file into errNoFile; what
// is left is trouble of the host.
func missing(err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG, unix.EINVAL, unix.EACCES} {
		if errors.Is(err, e) {
			return errNoFile
		}
	}
	return err
}

func closeFD(fd int) {
	_ = unix.Close(fd) // opened for its path only: nothing to lose
}
