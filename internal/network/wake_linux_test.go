package network

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roost-run/roost/internal/patience"
)

// wakes collects what Wakes reports.
type wakes struct {
	mu   sync.Mutex
	seen map[string]int
	news chan string
}

func watchWakes(t *testing.T, r *Router) *wakes {
	t.Helper()
	ws := &wakes{seen: map[string]int{}, news: make(chan string, 100)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done, listening := make(chan error, 1), make(chan struct{})
	go func() {
		done <- r.wakes(ctx, func(iface string) {
			ws.mu.Lock()
			ws.seen[iface]++
			ws.mu.Unlock()
			ws.news <- iface
		}, func() { close(listening) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("wakes: got %v, want %v", err, context.Canceled)
		}
	})
	select {
	case <-listening:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return ws
}

func (ws *wakes) count(iface string) int {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.seen[iface]
}

func (ws *wakes) wait(t *testing.T, want string) {
	t.Helper()
	if got := patience.Receive(t, "a wake of "+want, ws.news); got != want {
		t.Errorf("woke: got %s, want %s", got, want)
	}
}

// settle returns when all that happened has been reported, and forgets what was
// not waited for. It lets asker wake marker for that: reports keep their order.
func (ws *wakes) settle(t *testing.T, r *Router, asker, marker *machine) {
	t.Helper()
	must(t, r.SetSuspended(marker.Interface, true))
	must(t, within(asker.ns, func() error {
		c, err := net.Dial("udp", at(marker.IPv4, 9))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	}))
	for patience.Receive(t, "the wake of the marker", ws.news) != marker.Interface {
	}
	must(t, r.SetSuspended(marker.Interface, false))
}

func TestFirstPacketWakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ws := watchWakes(t, w.router)
	asker, sleeper, stranger, marker := w.attach(1, 7), w.attach(2, 7), w.attach(3, 8), w.attach(4, 7)
	serve(t, sleeper.ns, 8080)
	must(t, w.router.SetSuspended(sleeper.Interface, true))
	must(t, w.router.SetSuspended(sleeper.Interface, true)) // idempotent

	// None of these is anybody wanting something of the machine.
	refused(t, "another network", stranger.ns, "tcp", at(sleeper.IPv4, 8080))
	refused(t, "another network", stranger.ns, "udp", at(sleeper.IPv6, 8080))
	reaches(t, "edge", w.net().ns, "tcp", at(sleeper.IPv4, 8080), GatewayIPv4)

	// The first packet wakes, and is not lost. A connection has several, which
	// are reported once if they come within the interval.
	start := time.Now()
	reaches(t, "first packet", asker.ns, "tcp", at(sleeper.IPv4, 8080), asker.IPv4)
	ws.wait(t, sleeper.Interface)
	most := 1 + int(time.Since(start)/wakeInterval)
	ws.settle(t, w.router, asker, marker)
	woken := ws.count(sleeper.Interface)
	if woken < 1 || woken > most {
		t.Errorf("wakes by one connection: got %d, want 1 to %d", woken, most)
	}

	// Once awake nothing is reported any more; asleep again it is, by any
	// family and protocol.
	must(t, w.router.SetSuspended(sleeper.Interface, false))
	must(t, w.router.SetSuspended(sleeper.Interface, false)) // idempotent
	reaches(t, "awake", asker.ns, "tcp", at(sleeper.IPv6, 8080), asker.IPv6)
	ws.settle(t, w.router, asker, marker)
	if got := ws.count(sleeper.Interface); got != woken {
		t.Errorf("wakes of a running machine: got %d, want 0", got-woken)
	}
	must(t, w.router.SetSuspended(sleeper.Interface, true))
	reaches(t, "asleep again", asker.ns, "udp", at(sleeper.IPv6, 8080), asker.IPv6)
	ws.wait(t, sleeper.Interface)
}

// TestAsleepAgainAtOnce: the limit on reports does not swallow the packet that
// comes right after a machine was woken and put to sleep again.
func TestAsleepAgainAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ws := watchWakes(t, w.router)
	asker, sleeper := w.attach(1, 7), w.attach(2, 7)
	serve(t, sleeper.ns, 8080)
	for range 3 {
		must(t, w.router.SetSuspended(sleeper.Interface, true))
		reaches(t, "asleep", asker.ns, "tcp", at(sleeper.IPv4, 8080), asker.IPv4)
		ws.wait(t, sleeper.Interface)
		must(t, w.router.SetSuspended(sleeper.Interface, false))
	}
}

// TestWakesAreRateLimited floods a suspended machine.
func TestWakesAreRateLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ws := watchWakes(t, w.router)
	asker, sleeper := w.attach(1, 7), w.attach(2, 7)
	must(t, w.router.SetSuspended(sleeper.Interface, true))
	start := time.Now()
	must(t, within(asker.ns, func() error {
		c, err := net.Dial("udp", at(sleeper.IPv4, 9))
		if err != nil {
			return err
		}
		defer c.Close()
		for range 10000 {
			_, err := c.Write([]byte("x"))
			// The machine says that nobody listens: that is its right.
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	}))
	ws.wait(t, sleeper.Interface)
	most := 2 + int(time.Since(start)/wakeInterval)
	if got := ws.count(sleeper.Interface); got < 1 || got > most {
		t.Errorf("reports of 10000 packets: got %d, want 1 to %d", got, most)
	}
}

// TestKeepAliveDoesNotWake holds a connection open to a suspended machine: its
// kernel answers, the machine need not.
func TestKeepAliveDoesNotWake(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ws := watchWakes(t, w.router)
	asker, sleeper := w.attach(1, 7), w.attach(2, 7)
	var l net.Listener
	must(t, within(sleeper.ns, func() (err error) {
		l, err = net.Listen("tcp", at(sleeper.IPv4, 8080))
		return err
	}))
	defer l.Close()
	var c net.Conn
	must(t, within(asker.ns, func() (err error) {
		d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 5}}
		c, err = d.Dial("tcp", l.Addr().String())
		return err
	}))
	defer c.Close()
	served, err := l.Accept() // once the last packet of the handshake has come
	must(t, err)
	defer served.Close()
	before, err := w.net().Forwarded(t.Context())
	must(t, err)
	must(t, w.router.SetSuspended(sleeper.Interface, true))

	// Wait for two probes: the socket's own account says when.
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	sent := func() (n uint32) {
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n = info.Segs_out
			}
		})
		return n
	}
	first := sent()
	patience.Until(t, "two keep-alives to be sent", func() bool { return sent() >= first+2 })
	after, err := w.net().Forwarded(t.Context())
	must(t, err)
	if got := ws.count(sleeper.Interface); got != 0 {
		t.Errorf("wakes by keep-alives: got %d, want 0", got)
	}
	if after[sleeper.Interface] != before[sleeper.Interface] {
		t.Errorf("keep-alives counted as traffic: got %d, want %d", after[sleeper.Interface], before[sleeper.Interface])
	}
	// Data on the same connection does wake.
	_, err = c.Write([]byte("wanted"))
	must(t, err)
	ws.wait(t, sleeper.Interface)
}

func TestForwardedCountsPrivateTraffic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.attach(1, 7), w.attach(2, 7), w.attach(3, 7)
	serve(t, b.ns, 8080)
	counts := func() map[string]uint64 {
		t.Helper()
		m, err := w.net().Forwarded(t.Context())
		must(t, err)
		return m
	}
	reaches(t, "edge", w.net().ns, "tcp", at(b.IPv4, 8080), GatewayIPv4)
	if got := counts(); got[b.Interface] != 0 {
		t.Errorf("edge traffic counted: got %d, want 0", got[b.Interface])
	}
	reaches(t, "private", a.ns, "udp", at(b.IPv4, 8080), a.IPv4)
	got := counts()
	for _, m := range []*machine{a, b} {
		if got[m.Interface] != 2 { // question and answer
			t.Errorf("packets of %s: got %d, want 2", m.Interface, got[m.Interface])
		}
	}
	if got[c.Interface] != 0 {
		t.Errorf("packets of a silent machine: got %d, want 0", got[c.Interface])
	}
	must(t, w.net().Detach(t.Context(), b.Attachment))
	if got := counts(); got[b.Interface] != 0 {
		t.Errorf("packets after detach: got %d, want none", got[b.Interface])
	}
}
