package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// security tries what a machine must not do, and says how each try went.
func security() {
	say := func(name string, err error) { fmt.Printf("%s: %v\n", name, err) }
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		for _, key := range []string{"CapEff", "CapBnd", "Seccomp:"} {
			if strings.HasPrefix(line, key) {
				fmt.Print(strings.ReplaceAll(line, "\t", " "))
			}
		}
	}
	say("mount", unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	say("unshare", unix.Unshare(unix.CLONE_NEWNS))
	say("sethostname", unix.Sethostname([]byte("mine")))
	say("settime", unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}))
	say("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF))
	say("swapon", swapon("/etc/hosts")) // is none
	say("sysctl", os.WriteFile("/proc/sys/kernel/core_pattern", []byte("core"), 0))
	say("own swappiness", os.WriteFile("/proc/sys/vm/swappiness", []byte("1"), 0)) // the machine's: root may
	say("sysrq", os.WriteFile("/proc/sysrq-trigger", []byte("h"), 0))
	say("kcore", readable("/proc/kcore"))
	say("sysfs", os.WriteFile("/sys/kernel/mm/ksm/run", []byte("0"), 0))
	_ = os.Remove("/tmp/disk")
	err := unix.Mknod("/tmp/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0)))
	if err == nil { // the node may be made; it must not open
		_, err = os.Open("/tmp/disk")
	}
	say("disk", err)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err == nil { // take the address of eth0 away: RTM_DELLINK of index 2
		msg := make([]byte, 32)
		msg[0], msg[4], msg[6] = 32, unix.RTM_DELLINK, unix.NLM_F_REQUEST|unix.NLM_F_ACK
		msg[20] = 2
		err = unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			buf := make([]byte, 4096)
			n, _, rerr := unix.Recvfrom(fd, buf, 0)
			if err = rerr; rerr == nil && n >= 20 {
				if code := int32(buf[16]) | int32(buf[17])<<8 | int32(buf[18])<<16 | int32(buf[19])<<24; code != 0 {
					err = unix.Errno(-code)
				}
			}
		}
	}
	say("link", err)
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	fmt.Printf("nofile: %d %d\n", limit.Cur, limit.Max)
	devices, _ := filepath.Glob("/dev/*")
	fmt.Println("devices:", strings.Join(devices, " "))
	procs, _ := filepath.Glob("/proc/[0-9]*")
	fmt.Println("processes:", len(procs))
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.Read(make([]byte, 16))
	if err == nil && n == 0 {
		return fmt.Errorf("empty")
	}
	return err
}

func swapon(path string) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
