package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// procStat is what of /proc/PID/stat is needed here.
type procStat struct {
	comm      string
	parent    int
	cpuTicks  uint64
	startedAt uint64 // clock ticks after boot: with the pid it names a process for ever
	rssPages  int64
	state     byte   // 'Z': ended, not reaped
	exitCode  uint32 // wait status, once it has ended
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(data))
}

func parseStat(s string) (procStat, error) {
	// The name stands in parentheses and may contain any of the others.
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return procStat{}, fmt.Errorf("malformed process status %q", s)
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 50 {
		return procStat{}, fmt.Errorf("process status of %d fields", len(f))
	}
	st := procStat{comm: s[open+1 : end], state: f[0][0]}
	var errs [6]error
	st.parent, errs[0] = strconv.Atoi(f[1])
	utime, err := strconv.ParseUint(f[11], 10, 64)
	errs[1] = err
	stime, err := strconv.ParseUint(f[12], 10, 64)
	errs[2] = err
	st.cpuTicks = utime + stime
	st.startedAt, errs[3] = strconv.ParseUint(f[19], 10, 64)
	st.rssPages, errs[4] = strconv.ParseInt(f[21], 10, 64)
	code, err := strconv.ParseUint(f[49], 10, 32)
	errs[5], st.exitCode = err, uint32(code)
	for _, err := range errs {
		if err != nil {
			return procStat{}, fmt.Errorf("process status: %w", err)
		}
	}
	return st, nil
}

// innerPID is a process's number in its innermost namespace.
func innerPID(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			f := bytes.Fields(rest)
			if len(f) == 0 {
				return 0
			}
			n, err := strconv.Atoi(string(f[len(f)-1]))
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// mainChild is the number, inside the machine, of the app's main process: the
// first child of the init process with the given pid. 0 is unknown.
func mainChild(init int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", init, init))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		return 0
	}
	return innerPID(pid)
}

// kernelBootID changes with every start of the host.
func kernelBootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

// openPidfd opens a handle on a process; started, unless zero, makes sure that
// it is the one meant.
func openPidfd(pid int, started uint64) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if started == 0 {
		return f, nil
	}
	st, err := readStat(pid)
	if err == nil && st.startedAt == started {
		return f, nil
	}
	_ = f.Close()
	return nil, fmt.Errorf("process %d is another one by now", pid)
}
