package edge

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/network"
)

// trafficEvery is how often private traffic is read from the kernel's
// counters: a machine's idle time is exact to this much as far as traffic
// between machines counts.
const trafficEvery = 5 * time.Second

// followTraffic makes traffic between machines count as activity.
func (e *edge) followTraffic(ctx context.Context, n *network.Network) error {
	tick := time.NewTicker(trafficEvery)
	defer tick.Stop()
	last := make(map[string]uint64)
	warned := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if !e.anyRunning() {
			continue // counters of machines that stand still do not move
		}
		counts, err := n.Forwarded(ctx)
		if err != nil {
			if !warned && ctx.Err() == nil {
				e.log.Warn("private traffic does not count as activity", "err", err)
				warned = true
			}
			continue
		}
		now := time.Now()
		moved := make(map[string]bool)
		for name, packets := range counts {
			if before, ok := last[name]; ok && packets != before {
				moved[name] = true
			}
		}
		last = counts
		if len(moved) == 0 {
			continue
		}
		for m := range e.catalog.Snapshot().AllMachines() {
			if moved[network.InterfaceFor(m.Spec.Address.Index)] {
				e.loads.Unit(m.Spec.Instance).Touch(now)
			}
		}
	}
}

// anyRunning reports whether any instance runs.
func (e *edge) anyRunning() bool {
	e.live.mu.RLock()
	defer e.live.mu.RUnlock()
	for _, in := range e.live.instances {
		if in.phase.State() == root.StateStarted {
			return true
		}
	}
	return false
}

// upstreams are the name servers for public names: the configured ones, else
// the host's.
func upstreams(configured []string, resolvConf string, log *slog.Logger) []string {
	servers := configured
	if len(servers) == 0 {
		f, err := os.Open(resolvConf)
		if err != nil {
			log.Warn("public names cannot be resolved in machines", "err", err)
			return nil
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "nameserver" {
				servers = append(servers, fields[1])
			}
		}
	}
	out := make([]string, 0, len(servers))
	for _, s := range servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(s, "53")
		}
		out = append(out, s)
	}
	return out
}
