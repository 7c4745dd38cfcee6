package proxy_test

import (
	"bufio"
	"io"
	"net"
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

// What the reader below net/http refuses is answered like any other failure.
func TestRefusedHeadHasCodeAndRequestID(t *testing.T) {
	w := newWorld(t)
	for _, head := range []string{"GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: shop.localhost\r\n folded\r\n\r\n"} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, head); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if code := resp.Header.Get("Roost-Error"); resp.StatusCode != http.StatusBadRequest || code != "PU01" || resp.Header.Get("Fly-Request-Id") == "" {
			t.Errorf("%q: got %d with %q and request id %q, want 400 with PU01 and one", head, resp.StatusCode, code, resp.Header.Get("Fly-Request-Id"))
		}
	}
}
