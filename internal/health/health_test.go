package health

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	root "github.com/roost-run/roost"
)

// fake plays a machine: when it accepts and what it listens on.
type fake struct {
	mu      sync.Mutex
	accepts time.Time
	listens []string
	dials   []time.Time
	changes int
}

func (f *fake) dial(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials = append(f.dials, time.Now())
	if f.accepts.IsZero() || time.Now().Before(f.accepts) {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	_ = b.Close()
	return a, nil
}

func (f *fake) Listens(context.Context, root.InstanceID) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.listens, nil
}

func (f *fake) changed(root.MachineID, root.InstanceID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes++
}

func (f *fake) probes() int {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dials)
}

func newProber(t *testing.T, f *fake) *Prober {
	t.Helper()
	p := New(Options{Dial: f.dial, Inspector: f, Changed: f.changed, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(p.Close)
	return p
}

var port = Target{Machine: "148e1234c56789", Instance: "01A", Address: "172.19.0.4", Port: 8080}

func TestReady(t *testing.T) {
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 300 * time.Millisecond, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{accepts: time.Now().Add(after)}
			p := newProber(t, f)
			begin := time.Now()
			p.Watch(port)
			p.Watch(port) // joins
			for !p.Status("01A", 8080).Ready {
				time.Sleep(time.Millisecond)
			}
			if took := time.Since(begin); took > after+after/10+3*time.Millisecond {
				t.Errorf("accepting after %s was seen after %s, want a tenth later at most", after, took)
			}
			synctest.Wait()
			f.mu.Lock()
			defer f.mu.Unlock()
			if n := len(f.dials); n > 130 {
				t.Errorf("%d probes within %s", n, after)
			}
			if f.changes == 0 {
				t.Errorf("nobody was told")
			}
		})
	}
}

func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{accepts: time.Now()}
		p := newProber(t, f)
		p.Watch(port)
		synctest.Wait()
		if !p.Lost("01A", 8080) || p.Lost("01A", 8080) {
			t.Error("want Lost to say once that it was ready")
		}
		if p.Status("01A", 8080).Ready {
			t.Error("still ready after it was lost")
		}
		p.Watch(port)
		synctest.Wait()
		if !p.Status("01A", 8080).Ready {
			t.Error("not ready again")
		}
		p.Forget("01A")
		if p.Status("01A", 8080).Ready {
			t.Error("still ready after it was forgotten")
		}
	})
}

func TestForgetEndsProbing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := newProber(t, f)
		p.Watch(port)
		time.Sleep(time.Second)
		p.Forget("01A")
		n := f.probes()
		time.Sleep(time.Minute)
		if got := f.probes(); got != n {
			t.Errorf("%d probes after it was forgotten", got-n)
		}
	})
}

func TestProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{listens: []string{"127.0.0.1:8080", "0.0.0.0:9000"}}
		p := newProber(t, f)
		p.Watch(port)
		time.Sleep(inspectAfter + time.Second)
		st := p.Status("01A", 8080)
		if st.Problem == nil || !strings.Contains(st.Problem.Error(), "127.0.0.1:8080 only") {
			t.Errorf("got %+v, want the loopback named", st)
		}
		f.mu.Lock()
		f.accepts = time.Now()
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		if st := p.Status("01A", 8080); !st.Ready || st.Problem != nil {
			t.Errorf("got %+v, want ready without problem", st)
		}
	})
}

// TestHurry checks that a port nobody waits for is probed rarely, and that a
// request is not made to wait for the next rare probe.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := newProber(t, f)
		p.Watch(port)
		time.Sleep(time.Hour)
		n := f.probes()
		time.Sleep(10 * time.Minute)
		if got := f.probes() - n; got < 30 || got > 50 {
			t.Errorf("%d probes in 10 minutes without anybody waiting, want about 40", got)
		}
		f.mu.Lock()
		f.accepts = time.Now()
		f.mu.Unlock()
		p.Watch(port)
		synctest.Wait()
		if !p.Status("01A", 8080).Ready {
			t.Error("not ready at once though somebody waits")
		}
	})
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		listens []string
		want    string
	}{
		{nil, "nobody in machine m listens on port 8080, nor on any other"},
		{[]string{"0.0.0.0:3000", "[::1]:9"}, "it listens on 0.0.0.0:3000, [::1]:9: make the app listen on 0.0.0.0:8080, or set internal_port"},
		{[]string{"127.0.0.1:8080", "[::1]:8080", "0.0.0.0:1"}, "listens on 127.0.0.1:8080 and [::1]:8080 only"},
	} {
		if got := Explain("m", 8080, c.listens); !strings.Contains(got, c.want) {
			t.Errorf("%v: got %q, want %q in it", c.listens, got, c.want)
		}
	}
	if onlyLoopback([]string{"127.0.0.1:8080", "[::]:8080"}, 8080) {
		t.Error("a wildcard beside the loopback is reachable")
	}
}
