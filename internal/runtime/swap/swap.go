// Package swap sets up where the memory of suspended machines goes: a zram
// device, which keeps it compressed in memory, or a swap file. It undoes what
// it did, also after a crash: a swap area that an earlier process of the same
// Roost left behind is taken over. Swap that the host has anyway is used as it
// is and left alone.
//
// The supervisor is the only caller. No goroutines.
package swap

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	gorunc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/atomicfile"
	"github.com/roost-run/roost/internal/config"
)

// The kinds of Swap.
const (
	KindZRAM = "zram"
	KindFile = "file"
	KindNone = "none"
)

const (
	// priority is above what hosts configure: theirs is usually negative.
	priority = 100
	// flags of swapon(2).
	flagPrefer = 0x8000

	// zramNote names the device in the directory, for the next process.
	zramNote = "swap.zram"
	fileName = "swap"
)

// Swap is a swap area in use.
type Swap struct {
	Kind   string     // KindZRAM, KindFile or KindNone
	Device string     // "/dev/zram0", a file, or ""
	Size   root.Bytes // before compression
	dir    string
	ours   bool
}

// Setup makes the swap area that mode asks for, in Config.Swap's words: "zram",
// "file:SIZE", "none", or "auto": what the host has, else zram where the
// kernel can, else none. total is what machines may use together, which a zram
// device can hold all of. A file is made in dir. It gives Precondition if the
// host cannot.
func Setup(mode string, total root.Bytes, dir string) (*Swap, error) {
	if s, err := takeOver(dir); s != nil || err != nil {
		return s, err
	}
	size, isFile := strings.CutPrefix(mode, "file:")
	switch {
	case isFile:
		n, err := config.ParseBytes(size)
		if err != nil {
			return nil, &root.Error{Kind: root.Invalid, Message: fmt.Sprintf("swap %q: the size is not one, for example \"file:4GB\"", mode), Err: err}
		}
		return setupFile(n, dir)
	case mode == "none":
		return &Swap{Kind: KindNone}, nil
	case mode == "zram":
		return setupZRAM(total, dir)
	case mode != "auto":
		return nil, root.Errorf(root.Invalid, "swap %q is not one of auto, zram, file:SIZE, none", mode)
	}
	areas, err := active()
	if err != nil {
		return nil, err
	}
	if len(areas) > 0 {
		return areas[0], nil
	}
	s, err := setupZRAM(total, dir)
	if root.IsKind(err, root.Precondition) {
		return &Swap{Kind: KindNone}, nil
	}
	return s, err
}

// Close takes the swap area out of use and removes it. What is in it comes
// back into memory first, so this can take a while, and fail for want of
// memory; then the area stays.
func (s *Swap) Close() error {
	if !s.ours {
		return nil
	}
	if err := swapoff(s.Device); err != nil {
		return err
	}
	s.ours = false
	if s.Kind == KindFile {
		return os.Remove(s.Device)
	}
	return errors.Join(removeZRAM(s.Device), os.Remove(filepath.Join(s.dir, zramNote)))
}

// takeOver finds what an earlier process left, and removes what of it is not
// in use.
func takeOver(dir string) (*Swap, error) {
	areas, err := active()
	if err != nil {
		return nil, err
	}
	mine := filepath.Join(dir, fileName)
	note := filepath.Join(dir, zramNote)
	noted, err := os.ReadFile(note)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, a := range areas {
		if a.Device == mine || len(noted) > 0 && a.Device == string(noted) {
			a.ours, a.dir = true, dir
			return a, nil
		}
	}
	for _, name := range []string{mine, note} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, nil
}

// active reads /proc/swaps (proc_swaps(5)).
func active() ([]*Swap, error) {
	data, err := os.ReadFile("/proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	return parseSwaps(string(data)), nil
}

func parseSwaps(table string) []*Swap {
	var areas []*Swap
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 5 || f[0] == "Filename" {
			continue
		}
		kib, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			continue
		}
		s := &Swap{Kind: KindFile, Device: unescape(f[0]), Size: root.Bytes(kib) * root.KiB}
		if strings.HasPrefix(s.Device, "/dev/zram") {
			s.Kind = KindZRAM
		}
		areas = append(areas, s)
	}
	return areas
}

// unescape undoes the kernel's octal escapes of white space.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func setupFile(size root.Bytes, dir string) (_ *Swap, err error) {
	name, err := filepath.Abs(filepath.Join(dir, fileName))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("swap file %s: %w", name, err), os.Remove(name))
		}
	}()
	size -= size % root.Bytes(os.Getpagesize())
	err = unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
	switch {
	case errors.Is(err, unix.ENOSPC):
		err = &root.Error{Kind: root.Precondition, Message: fmt.Sprintf("there is no room for a swap file of %s in %s", size, dir), Err: err}
	case errors.Is(err, unix.EOPNOTSUPP):
		err = &root.Error{Kind: root.Precondition, Message: fmt.Sprintf("the file system of %s does not take swap files: use zram, or move \"data\" to ext4 or xfs", dir), Err: err}
	}
	if err == nil {
		err = writeHeader(f, size)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := swapon(name); err != nil {
		return nil, err
	}
	return &Swap{Kind: KindFile, Device: name, Size: size, dir: dir, ours: true}, nil
}

// writeHeader makes a swap area, as mkswap(8) does: version 1, one page of
// header with the number of the last page, and the signature at its end.
func writeHeader(f *os.File, size root.Bytes) error {
	page := os.Getpagesize()
	last := int64(size)/int64(page) - 1
	if last < 9 {
		return root.Errorf(root.Invalid, "%s is too little for a swap area", size)
	}
	h := make([]byte, page)
	binary.NativeEndian.PutUint32(h[1024:], 1)
	binary.NativeEndian.PutUint32(h[1028:], uint32(min(last, 1<<32-1)))
	_, _ = rand.Read(h[1036:1052]) // the UUID; never fails
	copy(h[1052:1068], "roost")
	copy(h[page-10:], "SWAPSPACE2")
	_, err := f.WriteAt(h, 0)
	return err
}

func setupZRAM(size root.Bytes, dir string) (_ *Swap, err error) {
	number, err := hotAdd()
	if err != nil {
		return nil, err
	}
	device := "/dev/zram" + number
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("swap on %s: %w", device, err), removeZRAM(device))
		}
	}()
	// Noted first: a crash from here on leaves a device that can be found.
	note := filepath.Join(dir, zramNote)
	if err := errors.Join(os.MkdirAll(dir, 0o700), atomicfile.Write(note, []byte(device), 0o600)); err != nil {
		return nil, err
	}
	size -= size % root.Bytes(os.Getpagesize())
	if err := os.WriteFile("/sys/block/zram"+number+"/disksize", []byte(strconv.FormatInt(int64(size), 10)), 0); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(writeHeader(f, size), f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := swapon(device); err != nil {
		return nil, err
	}
	return &Swap{Kind: KindZRAM, Device: device, Size: size, dir: dir, ours: true}, nil
}

const zramControl = "/sys/class/zram-control"

// hotAdd makes a new zram device, never one that somebody else may use.
func hotAdd() (number string, err error) {
	if _, err := os.Stat(zramControl); errors.Is(err, fs.ErrNotExist) {
		if err := loadModule("zram", "num_devices=0"); err != nil {
			return "", &root.Error{Kind: root.Precondition, Message: "the kernel has no zram (no compressed swap in memory): use \"file:SIZE\"", Err: err}
		}
	}
	data, err := os.ReadFile(filepath.Join(zramControl, "hot_add"))
	if err != nil {
		return "", &root.Error{Kind: root.Precondition, Message: "the kernel gives no zram device", Err: err}
	}
	return strings.TrimSpace(string(data)), nil
}

func removeZRAM(device string) error {
	return os.WriteFile(filepath.Join(zramControl, "hot_remove"), []byte(strings.TrimPrefix(device, "/dev/zram")), 0)
}

// loadModule starts modprobe(8) through go-runc's monitor: whoever reaps all
// of the process's children has replaced it.
func loadModule(name string, options ...string) error {
	// Without a limit: it is start-up, and modprobe does not hang.
	cmd := exec.CommandContext(context.Background(), "modprobe", append([]string{"-q", name}, options...)...)
	exit, err := gorunc.Monitor.Start(cmd)
	if err != nil {
		return err
	}
	status, err := gorunc.Monitor.Wait(cmd, exit)
	if err == nil && status != 0 {
		err = fmt.Errorf("modprobe %s: exit status %d", name, status)
	}
	return err
}

func swapon(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if err := swapCall(unix.SYS_SWAPON, p, flagPrefer|priority); err != nil {
		return &root.Error{Kind: root.Precondition, Message: "the kernel does not take " + name + " as swap", Err: os.NewSyscallError("swapon", err)}
	}
	return nil
}

func swapoff(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if err := swapCall(unix.SYS_SWAPOFF, p, 0); err != nil && !errors.Is(err, unix.EINVAL) { // it is off already
		return fmt.Errorf("swap %s stays in use: %w", name, os.NewSyscallError("swapoff", err))
	}
	return nil
}
