package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// Router is an instance's router namespace, its uplink and its table on the
// host. The supervisor has the only one.
type Router struct {
	o      Options
	log    *slog.Logger
	host   *os.File // the host's namespace
	hostNL *netlink.Handle
	net    *Network
}

// cleanupTimeout bounds the removal of a router that could not be opened.
const cleanupTimeout = 10 * time.Second

// OpenRouter creates the router, or adopts and mends the one that is there.
// Kind Precondition says what the kernel lacks.
func OpenRouter(ctx context.Context, o Options, log *slog.Logger) (_ *Router, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil, &root.Error{Kind: root.Precondition, Message: "the kernel has no IPv6: remove ipv6.disable=1 from its command line (addresses on the host are not needed)", Err: err}
	}
	r := &Router{o: o, log: log}
	fresh := false
	defer func() {
		if err == nil {
			return
		}
		if fresh && r.net != nil { // nobody uses it yet: leave nothing behind
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			err = errors.Join(err, r.Close(cleanup))
			return
		}
		r.closeHandles()
	}()
	if r.host, err = openNamespace(o.HostNamespace); errors.Is(err, os.ErrNotExist) {
		r.host, err = bindNamespace(o.HostNamespace, false, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("the host's network namespace: %w", err)
	}
	if r.hostNL, err = netlink.NewHandleAt(netns.NsHandle(r.host.Fd()), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("the host's network namespace: %w", err)
	}
	ns, err := openNamespace(o.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		fresh = true
		ns, err = bindNamespace(o.Namespace, true, func() error { return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("the router's network namespace: %w", err)
	}
	if r.net, err = newNetwork(o, ns); err != nil {
		return nil, err
	}
	if err := r.setUp(ctx); err != nil {
		return nil, err
	}
	u, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.writeRules(u); err != nil {
		return nil, err
	}
	log.Info("network is up", "uplink", hostLink(o.Name), "address", u.router4.String(), "ipv6", u.v6)
	return r, nil
}

func (o Options) check() error {
	if o.Name == "" || len(hostLink(o.Name)) >= unix.IFNAMSIZ {
		return root.Errorf(root.Invalid, "network name %q does not fit: use 6 hex digits", o.Name)
	}
	for _, c := range o.Name {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return root.Errorf(root.Invalid, "network name %q does not fit: use 6 hex digits", o.Name)
		}
	}
	if !filepath.IsAbs(o.Namespace) || !filepath.IsAbs(o.HostNamespace) {
		return root.Errorf(root.Invalid, "network: the namespaces' paths must be absolute")
	}
	return nil
}

// setUp gives the router's namespace its settings and own addresses.
func (r *Router) setUp(ctx context.Context) error {
	err := within(r.net.ns, func() error {
		return setSysctls(
			sysctl{"ipv4/ip_forward", "1"},
			sysctl{"ipv4/conf/all/rp_filter", "0"}, // the source filter is stricter
			sysctl{"ipv4/conf/default/rp_filter", "0"},
			sysctl{"ipv4/conf/all/send_redirects", "0"},
			sysctl{"ipv4/conf/default/send_redirects", "0"},
			sysctl{"ipv4/conf/all/accept_redirects", "0"},
			sysctl{"ipv4/ip_local_port_range", "10240 65535"}, // the edge's connections to one machine
			sysctl{"ipv6/conf/all/disable_ipv6", "0"},
			sysctl{"ipv6/conf/default/disable_ipv6", "0"},
			sysctl{"ipv6/conf/default/accept_ra", "0"},
			sysctl{"ipv6/conf/default/accept_dad", "0"},
			sysctl{"ipv6/conf/default/addr_gen_mode", "1"}, // fe80::1 is given, nothing else
			sysctl{"ipv6/conf/all/forwarding", "1"},
		)
	})
	if err != nil {
		return fmt.Errorf("set the router's namespace up: %w", err)
	}
	lo, err := r.net.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("set the router's namespace up: %w", err)
	}
	if err := r.net.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the router's lo up: %w", err)
	}
	for _, a := range []string{GatewayIPv4 + "/32", DNSIPv6 + "/128"} {
		if err := addAddress(r.net.nl, lo, netip.MustParsePrefix(a)); err != nil {
			return err
		}
	}
	// An address that no machine has is refused at once, here, instead of
	// leaving the host or timing out.
	for _, p := range []string{PrivateIPv4, PrivateIPv6} {
		_, dst, err := net.ParseCIDR(p)
		if err != nil {
			return err
		}
		if err := r.net.nl.RouteReplace(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE, Protocol: unix.RTPROT_STATIC}); err != nil {
			return fmt.Errorf("refuse unknown addresses of %s: %w", p, err)
		}
	}
	return waitLocal(ctx, r.net.nl, netip.MustParseAddr(DNSIPv6))
}

func (r *Router) writeRules(u uplinkAddresses) error {
	err := r.net.nft(func(c *nftables.Conn) error {
		_, err := routerRules(c, r.o.BuildsReach)
		return err
	})
	if err != nil {
		return nftError("the router's rules", err)
	}
	if err := r.hostNFT(func(c *nftables.Conn) { hostRules(c, r.o.Name, u, r.o.Published) }); err != nil {
		return nftError("the host's rules", err)
	}
	return nil
}

func (r *Router) hostNFT(f func(*nftables.Conn)) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(r.host.Fd())))
	if err != nil {
		return err
	}
	f(c)
	return c.Flush()
}

// nftError names the mend for what a kernel may lack.
func nftError(what string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) {
		return &root.Error{Kind: root.Precondition, Message: what + " were refused: the kernel lacks a part of nf_tables (nf_tables, nft_ct, nft_log, nft_masq, nfnetlink_log); load the modules or use a distribution kernel", Err: err}
	}
	return fmt.Errorf("write %s: %w", what, err)
}

// Close removes every link, namespace file and rule of this instance and
// leaves the host's forwarding as it was. It is idempotent, also after a crash.
func (r *Router) Close(ctx context.Context) error {
	errs := []error{r.net.detachAll(ctx), r.disconnect(ctx)}
	if err := r.hostNFT(func(c *nftables.Conn) { c.DelTable(hostTable(r.o.Name)) }); err != nil && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("remove the host's rules: %w", err))
	}
	r.closeHandles()
	errs = append(errs, removeNamespace(r.o.Namespace), removeNamespace(r.o.HostNamespace))
	return errors.Join(errs...)
}

// Release gives the handle back and leaves everything in place, for a
// supervisor that hands over to its successor.
func (r *Router) Release() { r.closeHandles() }

func (r *Router) closeHandles() {
	if r.net != nil {
		_ = r.net.Close()
	}
	if r.hostNL != nil {
		r.hostNL.Close()
	}
	if r.host != nil {
		_ = r.host.Close()
	}
}

// Do runs f on a thread inside the router's namespace and waits for it.
// Sockets opened and processes started there belong to it; goroutines that f
// starts do not run there.
func (r *Router) Do(f func() error) error { return within(r.net.ns, f) }

// Network returns the router's own handle; it is closed with the router.
func (r *Router) Network() *Network { return r.net }

// SetSuspended says whether packets to the machine behind iface are reported
// by Wakes. Set it before the freeze, so that no packet falls in between.
func (r *Router) SetSuspended(iface string, on bool) error {
	if on {
		// A machine that falls asleep again within wakeInterval of a report:
		// its next packet may be the only one, the kernel acknowledges it.
		err := r.net.nft(func(c *nftables.Conn) error {
			return c.SetDeleteElements(r.net.sets.woken, []nftables.SetElement{{Key: ifname(iface)}})
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("watch for packets to %s: %w", iface, err)
		}
	}
	err := r.net.nft(func(c *nftables.Conn) error {
		e := []nftables.SetElement{{Key: ifname(iface)}}
		if on {
			return c.SetAddElements(r.net.sets.suspended, e)
		}
		return c.SetDeleteElements(r.net.sets.suspended, e)
	})
	if err != nil && (on || !errors.Is(err, unix.ENOENT)) {
		return fmt.Errorf("watch for packets to %s: %w", iface, err)
	}
	return nil
}

// Wakes calls f with the interface of each suspended machine that another
// machine wants something of, until ctx ends, at most once per interface and
// wakeInterval. The packet itself waits in the machine's kernel buffers. f must
// not block.
func (r *Router) Wakes(ctx context.Context, f func(iface string)) error {
	return r.wakes(ctx, f, func() {})
}

// wakes calls listening once reports arrive.
func (r *Router) wakes(ctx context.Context, f func(iface string), listening func()) error {
	log, err := nflog.Open(&nflog.Config{NetNS: int(r.net.ns.Fd()), Group: wakeGroup, Copymode: nflog.CopyMeta})
	if err != nil {
		return fmt.Errorf("listen for packets to suspended machines: %w", err)
	}
	var mu sync.Mutex
	done := false                 // under mu: f is not called any more
	failed := make(chan error, 1) // the first failure
	watch, cancel := context.WithCancel(ctx)
	err = log.RegisterWithErrorFunc(watch, func(a nflog.Attribute) int {
		if a.OutDev != nil {
			if l, err := r.net.nl.LinkByIndex(int(*a.OutDev)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				if !done {
					f(l.Attrs().Name)
				}
			}
		}
		return 0
	}, func(err error) int {
		if watch.Err() == nil && errors.Is(err, unix.ENOBUFS) {
			return 0 // reports were dropped; the packets come again
		}
		select {
		case failed <- err:
		default:
		}
		return 1
	})
	if err != nil {
		cancel()
		return errors.Join(fmt.Errorf("listen for packets to suspended machines: %w", err), log.Close())
	}
	listening()
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case err = <-failed:
		err = fmt.Errorf("listen for packets to suspended machines: %w", err)
	}
	cancel()
	err = errors.Join(err, log.Close())
	mu.Lock()
	done = true
	mu.Unlock()
	return err
}
