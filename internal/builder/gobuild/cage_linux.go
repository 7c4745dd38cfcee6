package gobuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cage is what a build may touch of the host's files (landlock(7)). Without
// it a source could name any file of the host, in an assembler's #include or
// a replace of its go.mod, and read it in the messages or in the program.
type cage struct {
	read  []string // files and directories; what does not exist is left out
	write []string // directories
}

const (
	cageFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE
	cageRead = cageFile | unix.LANDLOCK_ACCESS_FS_READ_DIR
	// cageAll is what the first version of Landlock knows; the second adds
	// moves between directories, without which it forbids them all.
	cageAll = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1
)

// system is what the toolchain, and the git it calls, need of any host.
var system = []string{
	"/bin", "/lib", "/lib32", "/lib64", "/sbin", "/usr", "/etc/alternatives", "/etc/ca-certificates", "/etc/gai.conf", "/etc/host.conf",
	"/etc/hosts", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/pki", "/etc/protocols",
	"/etc/resolv.conf", "/etc/services", "/etc/ssl", "/dev/urandom", "/dev/zero", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage",
}

// errNoCage says that this kernel has no Landlock.
var errNoCage = errors.New("this kernel has no Landlock")

// start runs f on a thread of its own that has locked itself in: a process
// that f starts is locked in too.
func (c *cage) start(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: nothing else may run on this thread, it ends.
		runtime.LockOSThread()
		if err := c.enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// enter locks the calling thread in.
func (c *cage) enter() (err error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno == unix.ENOSYS || errno == unix.EOPNOTSUPP {
		return errNoCage
	}
	if errno != 0 {
		return fmt.Errorf("cage of the build: %w", errno)
	}
	all := uint64(cageAll)
	if version >= 2 {
		all |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: all}
	// The first member is all that the first version knows.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("cage of the build: %w", errno)
	}
	rules := os.NewFile(fd, "landlock")
	defer func() { err = errors.Join(err, rules.Close()) }()
	for _, name := range c.read {
		if err := allow(rules, name, cageRead); err != nil {
			return err
		}
	}
	for _, name := range append([]string{"/dev/null"}, c.write...) {
		if err := allow(rules, name, all); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cage of the build: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules.Fd(), 0, 0); errno != 0 {
		return fmt.Errorf("cage of the build: %w", errno)
	}
	return nil
}

// allow adds a rule for a file, or a directory and what is below it.
func allow(rules *os.File, name string, access uint64) error {
	f, err := os.OpenFile(name, unix.O_PATH, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cage of the build: %w", err)
	}
	defer func() { _ = f.Close() }() // only a handle
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cage of the build: %w", err)
	}
	if !info.IsDir() { // the rest means directories, and would be refused
		access &= cageFile | unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(f.Fd())}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules.Fd(), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("cage of the build: %s: %w", name, errno)
	}
	return nil
}
