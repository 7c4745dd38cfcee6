package supervisor

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// ticksPerSecond is USER_HZ, the same on every architecture Linux runs on here.
const ticksPerSecond = 100

func (s *slot) stats() (orders.Stats, error) {
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	if r == nil {
		return orders.Stats{}, s.notRunning("measure")
	}
	st, err := s.all.driver.Stats(r.boot.Container)
	if err != nil {
		return orders.Stats{}, err
	}
	return orders.Stats{
		Memory: st.Memory, Anon: st.Anon, Swap: st.Swap, OOMKills: st.OOMKills, Processes: st.Processes,
		CPU: time.Duration(st.CPUMicros) * time.Microsecond,
	}, nil
}

// inspect looks at what runs and listens inside; the platform's own init
// process is left out.
func (s *slot) inspect() (orders.Inspection, error) {
	s.mu.Lock()
	r := s.run
	s.mu.Unlock()
	out := orders.Inspection{Processes: []orders.Process{}, Listens: []orders.Listen{}}
	if r == nil {
		return out, s.notRunning("inspect")
	}
	pids, err := s.all.driver.PIDs(r.boot.Container)
	if err != nil {
		return out, err
	}
	byInode := listening(r.pid)
	for _, l := range byInode {
		out.Listens = append(out.Listens, l)
	}
	sortListens(out.Listens)
	boot := bootTime()
	for _, pid := range pids {
		if pid == r.pid {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue // ended meanwhile
		}
		p := orders.Process{
			PID: innerPID(pid), Command: commandLine(pid, st.comm), Listens: []orders.Listen{},
			CPU:       time.Duration(st.cpuTicks) * time.Second / ticksPerSecond,
			RSS:       root.Bytes(st.rssPages) * root.Bytes(os.Getpagesize()),
			StartedAt: boot.Add(time.Duration(st.startedAt) * time.Second / ticksPerSecond),
		}
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
			p.Directory = dir
		}
		for _, ino := range socketInodes(pid) {
			if l, ok := byInode[ino]; ok {
				p.Listens = append(p.Listens, l)
			}
		}
		sortListens(p.Listens)
		out.Processes = append(out.Processes, p)
	}
	slices.SortFunc(out.Processes, func(a, b orders.Process) int { return a.PID - b.PID })
	return out, nil
}

func sortListens(l []orders.Listen) {
	slices.SortFunc(l, func(a, b orders.Listen) int { return strings.Compare(a.Proto+a.Address, b.Proto+b.Address) })
}

func commandLine(pid int, comm string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(data) == 0 {
		return "[" + comm + "]"
	}
	return strings.ReplaceAll(strings.TrimRight(string(data), "\x00"), "\x00", " ")
}

func socketInodes(pid int) (out []uint64) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		rest, ok := strings.CutPrefix(link, "socket:[")
		if !ok {
			continue
		}
		if ino, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64); err == nil {
			out = append(out, ino)
		}
	}
	return out
}

// listening reads the listening sockets of a process's network namespace.
func listening(pid int) map[uint64]orders.Listen {
	out := map[uint64]orders.Listen{}
	for proto, state := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, proto))
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || fields[3] != state {
				continue
			}
			addr, err := parseProcAddress(fields[1])
			if err != nil {
				continue
			}
			ino, err := strconv.ParseUint(fields[9], 10, 64)
			if err != nil {
				continue
			}
			out[ino] = orders.Listen{Proto: proto, Address: addr.String()}
		}
		_ = f.Close()
	}
	return out
}

// parseProcAddress reads an address of /proc/net: words of 32 bits in the
// host's order (little endian here), and the port.
func parseProcAddress(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	for i := 0; i < len(raw); i += 4 {
		raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// bootTime is when the host started.
func bootTime() time.Time {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}
