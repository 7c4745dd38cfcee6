package supervisor

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// maxNudges bounds the connections to one port.
const maxNudges = 16

// nudge makes the processes that wait on one listening socket together, as
// the workers of a pre-forking server do, return from their wait: it connects
// to that port as a probe would. There are two connections for each, and all
// stay open until end, when all have run: who is quick must not take them all
// away. It returns the processes that have such a socket.
//
// The kernel takes the connections, unless too many others wait there already;
// then these wake the workers as well.
func (s *server) nudge(ctx context.Context, container string, pids []int) (sharers []int, end func()) {
	var conns []net.Conn
	end = func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	address := s.slots.address(container)
	ports, sharers := sharedPorts(pids)
	if address == "" || len(ports) == 0 {
		return nil, end
	}
	err := s.network.Do(func() error {
		for _, port := range ports {
			for range min(2*len(pids), maxNudges) {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
				if err != nil {
					return err
				}
				conns = append(conns, c)
			}
		}
		return nil
	})
	if err != nil {
		s.log.Debug("workers not nudged", "container", container, "err", err)
	}
	return sharers, end
}

// address is where the machine of a running container answers, "" if there is
// none.
func (a *slots) address(container string) string {
	for _, s := range a.list() {
		s.mu.Lock()
		r := s.run
		s.mu.Unlock()
		if r != nil && r.boot.Container == container {
			return r.boot.IPv4
		}
	}
	return ""
}

// sharedPorts are the TCP ports that more than one of the processes listen on
// by the same socket, where others than the machine itself can connect, and
// these processes.
func sharedPorts(pids []int) (ports []uint16, sharers []int) {
	if len(pids) == 0 {
		return nil, nil
	}
	holders := map[uint64][]int{}
	for _, pid := range pids {
		for _, inode := range socketInodes(pid) {
			if !slices.Contains(holders[inode], pid) {
				holders[inode] = append(holders[inode], pid)
			}
		}
	}
	for inode, l := range listening(pids[0]) {
		addr, err := netip.ParseAddrPort(l.Address)
		if err != nil || len(holders[inode]) < 2 || addr.Addr().IsLoopback() || l.Proto != "tcp" && l.Proto != "tcp6" {
			continue
		}
		ports = append(ports, addr.Port())
		sharers = append(sharers, holders[inode]...)
	}
	slices.Sort(ports)
	slices.Sort(sharers)
	return slices.Compact(ports), slices.Compact(sharers)
}
