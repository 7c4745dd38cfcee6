package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkByName returns nil for a link that does not exist.
func linkByName(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// deleteLink returns when the link is gone; one that is already is success.
func deleteLink(h *netlink.Handle, l netlink.Link) error {
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// The kernel finishes two things in its own time, behind the lock that any
// change of any namespace's links holds: it lets the end of a pair that came up
// first send, and it routes packets to a new IPv6 address. Until then packets
// are dropped: a first packet, and with it a second of a connection's life.
// Both take microseconds on an idle host and tens of milliseconds on a busy one.
const settleTimeout = 5 * time.Second

// waitCarrier waits until a link that is up also sends.
func waitCarrier(ctx context.Context, h *netlink.Handle, l netlink.Link) error {
	return settle(ctx, "link "+l.Attrs().Name+" is not active", func() (bool, error) {
		now, err := h.LinkByIndex(l.Attrs().Index)
		return err == nil && now.Attrs().OperState == netlink.OperUp, err
	})
}

// waitLocal waits until packets to an IPv6 address of ours arrive.
func waitLocal(ctx context.Context, h *netlink.Handle, ip netip.Addr) error {
	return settle(ctx, "address "+ip.String()+" is not active", func() (bool, error) {
		routes, err := h.RouteGet(ip.AsSlice())
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
			return false, nil
		}
		return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
	})
}

func settle(ctx context.Context, problem string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTimeout, fmt.Errorf("%s after %v", problem, settleTimeout))
	defer cancel()
	t := time.NewTicker(250 * time.Microsecond)
	defer t.Stop()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("%s: %w", problem, err)
		}
		if ok {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func addAddress(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // else the address is unusable for a second or two
	}
	if err := h.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give %s to %s: %w", p, l.Attrs().Name, err)
	}
	return nil
}

func addDefault(h *netlink.Handle, l netlink.Link, gateway netip.Addr) error {
	rt := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Protocol: unix.RTPROT_STATIC}
	if err := h.RouteReplace(rt); err != nil {
		return fmt.Errorf("default route by %s: %w", gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
