package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
)

// privatePort is where _api.internal answers inside the private network.
const privatePort = "4280"

// socket is a listening socket that outlives the process that serves it.
type socket struct {
	orders.Listener
	file *os.File
}

// wanted names every socket that the configuration asks for.
func wanted(cfg *config.Config) (out []orders.Listener, err error) {
	for _, l := range cfg.Listen {
		port := l.Port
		if port == 0 {
			_, p, err := net.SplitHostPort(l.Addr)
			if err != nil {
				return nil, root.Errorf(root.Invalid, "listen: %q is not an address: %v", l.Addr, err)
			}
			if port, err = strconv.Atoi(p); err != nil {
				return nil, root.Errorf(root.Invalid, "listen: %q is not a port", p)
			}
		}
		out = append(out, orders.Listener{Kind: orders.ListenEdge, Address: l.Addr, Port: port, TLS: port == 443})
	}
	if cfg.API != "" {
		out = append(out, orders.Listener{Kind: orders.ListenAPI, Address: cfg.API})
	}
	out = append(out, orders.Listener{Kind: orders.ListenAPISock, Address: cfg.APISocket()})
	for _, host := range []string{network.DNSIPv6, network.GatewayIPv4} {
		out = append(out,
			orders.Listener{Kind: orders.ListenInternal, Address: net.JoinHostPort(host, privatePort)},
			orders.Listener{Kind: orders.ListenDNS, Address: net.JoinHostPort(host, "53")},
			orders.Listener{Kind: orders.ListenDNSUDP, Address: net.JoinHostPort(host, "53")})
	}
	return out, nil
}

// inside reports whether a socket belongs into the router namespace.
func inside(name orders.Listener) bool {
	switch name.Kind {
	case orders.ListenInternal, orders.ListenDNS, orders.ListenDNSUDP:
		return true
	default:
		return false
	}
}

// openSockets returns every named socket: from held, where it is, else newly
// opened, and then held has it too, also after a failure.
func openSockets(ctx context.Context, names []orders.Listener, inRouter func(func() error) error, held map[orders.Listener]*os.File) (out []socket, err error) {
	for _, name := range names {
		if held[name] != nil {
			out = append(out, socket{name, held[name]})
			continue
		}
		var f *os.File
		open := func() (err error) {
			f, err = openSocket(ctx, name)
			return err
		}
		in := func(f func() error) error { return f() }
		if inside(name) {
			in = inRouter
		}
		if err := in(open); err != nil {
			return nil, err
		}
		held[name] = f
		out = append(out, socket{name, f})
	}
	return out, nil
}

// filer is what net's listeners share.
type filer interface {
	File() (*os.File, error)
	Close() error
}

func openSocket(ctx context.Context, name orders.Listener) (_ *os.File, err error) {
	var l filer
	var lc net.ListenConfig
	switch name.Kind {
	case orders.ListenAPISock:
		u, err := ipc.Listen(name.Address, 0o600)
		if err != nil {
			return nil, err
		}
		u.SetUnlinkOnClose(false)
		l = u
	case orders.ListenDNSUDP:
		p, err := lc.ListenPacket(ctx, "udp", name.Address)
		if err != nil {
			return nil, listenError(name, err)
		}
		l = p.(*net.UDPConn)
	default:
		t, err := lc.Listen(ctx, "tcp", name.Address)
		if err != nil {
			return nil, listenError(name, err)
		}
		l = t.(*net.TCPListener)
	}
	f, err := l.File() // a copy: the socket lives on
	return f, errors.Join(err, l.Close())
}

func listenError(name orders.Listener, err error) error {
	kind, what := root.Unavailable, "listen on %s (%s)"
	if errors.Is(err, unix.EADDRINUSE) {
		what = "listen on %s (%s): another program has this address; stop it or set another one"
	}
	return &root.Error{Kind: kind, Message: fmt.Sprintf(what, name.Address, name.Kind), Err: err}
}

// inode names a socket for ever; 0 when unknown.
func inode(f *os.File) uint64 {
	if f == nil {
		return 0
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	var st unix.Stat_t
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil || err != nil {
		return 0
	}
	return st.Ino
}

// heldSocket is a socket in the file that the next server process reads.
type heldSocket struct {
	orders.Listener
	Inode uint64
}

func (p *paths) sockets() string { return filepath.Join(p.run, "sockets.json") }

// saveSockets notes which sockets there are.
func saveSockets(p *paths, sockets []socket) error {
	held := make([]heldSocket, len(sockets))
	for i, s := range sockets {
		held[i] = heldSocket{s.Listener, inode(s.file)}
	}
	return writeVolatile(p.sockets(), held)
}

// takeSockets copies out of a process every socket whose inode is wanted; the
// keys of the result are inodes. The process keeps its own.
func takeSockets(pid int, pidfd *os.File, inodes map[uint64]bool) (map[uint64]*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[uint64]*os.File{}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		rest, ok := strings.CutPrefix(link, "socket:[")
		if !ok {
			continue
		}
		ino, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
		if err != nil || !inodes[ino] || out[ino] != nil {
			continue
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		f, err := takeFile(pidfd, number)
		if err != nil {
			return out, err
		}
		if inode(f) != ino { // the number was reused in between
			_ = f.Close()
			continue
		}
		out[ino] = f
	}
	return out, nil
}

func takeFile(pidfd *os.File, number int) (*os.File, error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(p uintptr) { fd, err = unix.PidfdGetfd(int(p), number, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, fmt.Errorf("take descriptor %d: %w", number, err)
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

// openSockets takes over the listening sockets that outlived an earlier server
// process, and opens the others. Those inside a router namespace that is gone
// are of no use.
func (s *server) openSockets(ctx context.Context, from *inherited, anew bool) ([]socket, error) {
	names, err := wanted(&s.cfg)
	if err != nil {
		return nil, err
	}
	held, err := heldSockets(s.paths, from)
	if err != nil {
		s.log.Warn("sockets of an earlier server process not taken over", "err", err)
	}
	unwanted := from.drop(storedListeners)
	for name, f := range held {
		if !slices.Contains(names, name) || anew && inside(name) {
			_ = f.Close()
			delete(held, name)
			unwanted = true
		}
	}
	if unwanted { // it may be in the way of what is to be opened
		s.keepSockets(storedListeners, slices.Collect(maps.Values(held)))
		if err := s.manager.barrier(ctx); err != nil {
			s.log.Warn("systemd may hold sockets that are not wanted", "err", err)
		}
	}
	sockets, err := openSockets(ctx, names, s.network.Do, held)
	if unwanted && from.edge.PID != 0 && errors.Is(err, unix.EADDRINUSE) {
		// The edge still listens where it should not any more: it would be
		// started anew in any case, see renew.
		s.children.end(childEdge)
		from.edge = childProcess{}
		sockets, err = openSockets(ctx, names, s.network.Do, held)
	}
	if err != nil {
		for _, f := range held {
			_ = f.Close()
		}
		return nil, err
	}
	var files []*os.File
	for _, l := range sockets {
		files = append(files, l.file)
	}
	s.keepSockets(storedListeners, files)
	return sockets, nil
}

// keepSockets has systemd keep these for the next server process. Without them
// the next one opens its own.
func (s *server) keepSockets(name string, files []*os.File) {
	if err := s.manager.keep(name, files); err != nil {
		s.log.Warn("sockets not stored: a restart may refuse connections", "sockets", name, "err", err)
	}
}
