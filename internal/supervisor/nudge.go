package supervisor

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// nudgeTimeout bounds one connection of a nudge: the kernel answers it.
const nudgeTimeout = 100 * time.Millisecond

// maxNudges bounds the connections to one port.
const maxNudges = 16

// nudge makes the processes that wait on one listening socket together, as
// the workers of a pre-forking server do, return from their wait: it connects
// to that port as a probe would. There are two connections for each, all open
// before the first is closed: who is quick must not take them all away.
func (s *server) nudge(container string, pids []int) {
	address := s.slots.address(container)
	ports := sharedPorts(pids)
	if address == "" || len(ports) == 0 {
		return
	}
	err := s.network.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), nudgeTimeout)
		defer cancel()
		for _, port := range ports {
			for range min(2*len(pids), maxNudges) {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
				if err != nil {
					return err
				}
				defer func() { _ = c.Close() }()
			}
		}
		return nil
	})
	if err != nil {
		s.log.Debug("workers not nudged", "container", container, "err", err)
	}
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
// by the same socket, where others than the machine itself can connect.
func sharedPorts(pids []int) []uint16 {
	if len(pids) == 0 {
		return nil
	}
	holders := map[uint64]int{}
	for _, pid := range pids {
		for _, inode := range socketInodes(pid) {
			holders[inode]++
		}
	}
	var ports []uint16
	for inode, l := range listening(pids[0]) {
		addr, err := netip.ParseAddrPort(l.Address)
		if err != nil || holders[inode] < 2 || addr.Addr().IsLoopback() || l.Proto != "tcp" && l.Proto != "tcp6" {
			continue
		}
		ports = append(ports, addr.Port())
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
