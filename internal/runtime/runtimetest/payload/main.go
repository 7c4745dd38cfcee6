// Command payload is what the containers of the suite run. It needs no files
// beside itself; names of files are relative to the working directory.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Verbs:
//
//	exit CODE       write the file "ran", print hello and the arguments' number, end
//	catch CODE      print ready, end with CODE at SIGINT
//	count           print ready, then write a growing number to the file "count"
//	eat MB          touch memory until killed, or print ready and wait
//	child           print ready after starting a process of its own that waits
//	sleep           print ready and wait for ever
//	print ENV...    print the working directory, user and group, and variables
//	cat FILE...     print files
//	blocking        print whether each standard stream blocks
//	size            for each line of input print the terminal's rows and columns
//	lines N         print N numbered lines
//	echo            copy the standard input to the standard output
//	swap STEP...    do steps, print how each ended, print ready and wait: on:FILE,
//	                off:FILE, write:FILE:TEXT, user:ID
func main() {
	if len(os.Args) < 2 {
		fail("no verb")
	}
	switch arg := func(i int) string { return os.Args[i+1] }; arg(0) {
	case "exit":
		check(os.WriteFile("ran", nil, 0o644))
		fmt.Println("hello")
		os.Exit(number(arg(1)))
	case "catch":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGINT)
		fmt.Println("ready")
		<-c
		os.Exit(number(arg(1)))
	case "count":
		f, err := os.Create("count")
		check(err)
		fmt.Println("ready")
		for i := 1; ; i++ {
			_, err := f.WriteAt(fmt.Appendf(nil, "%020d", i), 0)
			check(err)
			<-time.After(200 * time.Microsecond)
		}
	case "eat":
		var kept [][]byte
		for range number(arg(1)) {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i * 31)
			}
			kept = append(kept, b)
		}
		fmt.Println("ready", len(kept))
		wait()
	case "child":
		c := exec.CommandContext(context.Background(), os.Args[0], "sleep")
		check(c.Start())
		fmt.Println("ready")
		wait()
	case "sleep":
		fmt.Println("ready")
		wait()
	case "print":
		dir, err := os.Getwd()
		check(err)
		fmt.Println(dir, os.Getuid(), os.Getgid())
		for _, k := range os.Args[2:] {
			fmt.Println(k + "=" + os.Getenv(k))
		}
	case "cat":
		for _, name := range os.Args[2:] {
			data, err := os.ReadFile(name)
			check(err)
			_, err = os.Stdout.Write(data)
			check(err)
		}
	case "blocking":
		for fd := range 3 {
			flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
			if errno != 0 {
				check(errno)
			}
			fmt.Println(flags&syscall.O_NONBLOCK == 0)
		}
	case "size":
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			var size struct{ rows, cols, x, y uint16 }
			_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
			if errno != 0 {
				check(errno)
			}
			fmt.Println("size", size.rows, size.cols)
		}
	case "lines":
		for i := range number(arg(1)) {
			fmt.Println("line", i)
		}
	case "swap":
		for _, step := range os.Args[2:] {
			fmt.Println(step, swap(strings.Split(step, ":")))
		}
		fmt.Println("ready")
		wait()
	case "echo":
		b := make([]byte, 1024)
		for {
			n, err := os.Stdin.Read(b)
			if n > 0 {
				_, werr := os.Stdout.Write(b[:n])
				check(werr)
			}
			if err != nil {
				return
			}
		}
	default:
		fail("unknown verb " + arg(0))
	}
}

func swap(step []string) error {
	call := func(number uintptr) error {
		name, err := syscall.BytePtrFromString(step[1])
		check(err)
		if _, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	switch step[0] {
	case "on":
		return call(syscall.SYS_SWAPON)
	case "off":
		return call(syscall.SYS_SWAPOFF)
	case "write":
		return os.WriteFile(step[1], []byte(step[2]), 0)
	case "user":
		return syscall.Setresuid(number(step[1]), number(step[1]), number(step[1]))
	}
	return syscall.EINVAL
}

func wait() {
	<-time.After(1 << 62) // a bare select would be a deadlock
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, "payload:", message)
	os.Exit(99)
}
