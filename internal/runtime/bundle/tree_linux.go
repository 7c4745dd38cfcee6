package bundle

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// tree is a root file system. The kernel resolves every path beneath it as if
// it were the root directory (openat2(2), RESOLVE_IN_ROOT), so that links and
// ".." of an image lead nowhere else.
type tree struct{ dir *os.File }

func openTree(rootfs string) (*tree, error) {
	f, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	return &tree{f}, nil
}

func (t *tree) close() { _ = t.dir.Close() } // only ever read through

func (t *tree) openat(name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 100 {
		fd, err := unix.Openat2(int(t.dir.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		// EAGAIN: something was renamed meanwhile (openat2(2)).
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EAGAIN}
}

// open opens a regular file for reading.
func (t *tree) open(name string) (*os.File, error) {
	// A fifo must not block, and a device not be touched.
	f, err := t.openat(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, &fs.PathError{Op: "open", Path: name, Err: unix.EINVAL}, f.Close())
	}
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return r, errors.Join(err, f.Close())
}

// checkProgram says whether the file at name can be executed; NotFound if it
// is not there, Invalid if it is of no use.
func (t *tree) checkProgram(command, name string) error {
	f, err := t.openat(name, unix.O_PATH, 0)
	if isNotExist(err) {
		return root.Errorf(root.NotFound, "command not found: %s does not exist in the image", clip(command))
	}
	if err != nil {
		return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("cannot run %s", clip(command)), Err: err}
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	switch {
	case info.IsDir():
		return root.Errorf(root.Invalid, "cannot run %s: it is a directory", clip(command))
	case !info.Mode().IsRegular():
		return root.Errorf(root.Invalid, "cannot run %s: it is not a regular file", clip(command))
	case info.Mode().Perm()&0o111 == 0:
		return root.Errorf(root.Invalid, "permission denied: %s is not executable; run chmod +x on it when the image is built", clip(command))
	}
	return t.checkInterpreter(command, name)
}

// checkInterpreter: for a script whose interpreter is missing the kernel says
// that the script does not exist, which has puzzled everybody once.
func (t *tree) checkInterpreter(command, name string) error {
	f, err := t.open(name)
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	line, err := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if cerr := f.Close(); cerr != nil || err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, cerr)
	}
	interpreter, script := strings.CutPrefix(line, "#!")
	words := strings.Fields(interpreter)
	if !script || len(words) == 0 {
		return nil
	}
	if strings.HasSuffix(strings.TrimRight(line, "\n"), "\r") {
		return root.Errorf(root.Invalid, "cannot run %s: its lines end in CR LF, so the kernel looks for the interpreter %s; save it with LF", clip(command), clip(words[0]+"\r"))
	}
	i, err := t.openat(words[0], unix.O_PATH, 0)
	if isNotExist(err) {
		return root.Errorf(root.Invalid, "cannot run %s: its interpreter %s does not exist in the image", clip(command), clip(words[0]))
	}
	if err != nil {
		return &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("cannot run %s", clip(command)), Err: err}
	}
	return i.Close()
}

// WriteFiles writes a config's files into a root file system, owned by root,
// and makes the directories on the way. Links are followed, but never out of
// it. A path that cannot be written is kind Invalid.
func WriteFiles(rootfs string, files []root.File) error {
	t, err := openTree(rootfs)
	if err != nil {
		return err
	}
	defer t.close()
	for _, f := range files {
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		if err := t.write(f.GuestPath, f.Content, mode); err != nil {
			if _, ok := errors.AsType[*fs.PathError](err); ok && !errors.Is(err, unix.ENOSPC) {
				err = &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("config.files: cannot write %s", clip(f.GuestPath)), Err: err}
			}
			return err
		}
	}
	return nil
}

func (t *tree) write(name string, content []byte, mode uint32) error {
	name = path.Join("/", name)
	if err := t.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	if old, err := t.openat(name, unix.O_PATH, 0); err == nil {
		info, err := old.Stat()
		if err := errors.Join(err, old.Close()); err != nil {
			return err
		}
		if !info.Mode().IsRegular() { // a fifo would block, a device do worse
			return &fs.PathError{Op: "write", Path: name, Err: errors.New("not a regular file")}
		}
	}
	// Not truncated by the opening: a persistent root file system has a running
	// machine, which may put the node of a disk there since the look above.
	f, err := t.openat(name, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, &fs.PathError{Op: "write", Path: name, Err: errors.New("not a regular file")}, f.Close())
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.Write(content)
	}
	return errors.Join(err, f.Chown(0, 0), unix.Fchmod(int(f.Fd()), mode), f.Close())
}

func (t *tree) mkdirAll(dir string) error {
	if dir == "/" {
		return nil
	}
	d, err := t.openat(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return d.Close()
	}
	if !isNotExist(err) {
		return err
	}
	if err := t.mkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	parent, err := t.openat(path.Dir(dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(int(parent.Fd()), path.Base(dir), 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return errors.Join(&fs.PathError{Op: "mkdir", Path: dir, Err: err}, parent.Close())
	}
	return parent.Close()
}

// isNotExist also covers a file where a directory is expected on the way.
func isNotExist(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
