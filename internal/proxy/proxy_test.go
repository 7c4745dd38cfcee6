package proxy_test

import (
	"net/http"
	"sync"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/rawtest"
)

func TestForward(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, answer("hello"))
	resp, body := w.get("/")
	if resp.StatusCode != http.StatusOK || body != "hello" {
		t.Errorf("got %d %q, want 200 hello", resp.StatusCode, body)
	}
	if got := resp.Header.Get("Server"); got != "roost" {
		t.Errorf("Server: got %q, want roost", got)
	}
}

func TestWake(t *testing.T) {
	for _, state := range []root.State{root.StateStopped, root.StateSuspended} {
		t.Run(string(state), func(t *testing.T) {
			w := newWorld(t)
			m := w.machine("shop", state, answer("hello"))
			c := w.client()
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if resp, body := w.do(c, http.MethodGet, "/", nil); resp.StatusCode != http.StatusOK || body != "hello" {
						t.Errorf("got %d %q, want 200 hello", resp.StatusCode, body)
					}
				})
			}
			wg.Wait()
			if got := m.woken(); got != 1 {
				t.Errorf("wakes: got %d, want 1", got)
			}
		})
	}
}

// TestNoWakeOfRunning: a suspension was announced and not carried out; the
// request that came meanwhile must not order a wake of a machine that runs.
func TestNoWakeOfRunning(t *testing.T) {
	w := newWorld(t)
	m := w.machine("shop", root.StateStarted, answer("hello"))
	w.proxy.Suspended(m.record, false)
	if resp, body := w.get("/"); resp.StatusCode != http.StatusOK || body != "hello" {
		t.Errorf("got %d %q, want 200 hello", resp.StatusCode, body)
	}
	if err := w.proxy.Shutdown(t.Context()); err != nil { // returns after every flight
		t.Error(err)
	}
	if got := m.woken(); got != 0 {
		t.Errorf("wakes: got %d, want 0", got)
	}
}

func TestRawBytes(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, rawtest.Handler)
	rawtest.Run(t, w.addr)
}
