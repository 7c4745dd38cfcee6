package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/proxy"
)

func hold(d time.Duration) option { return func(o *proxy.Options) { o.HoldTimeout = d } }

func limits(soft, hard int) func(*root.Machine) {
	return func(m *root.Machine) {
		m.Spec.Config.Services[0].Concurrency.Soft, m.Spec.Config.Services[0].Concurrency.Hard = soft, hard
	}
}

// wantFailure asks as a script would and checks status, code and text.
func (w *world) wantFailure(status int, code string, texts ...string) {
	w.t.Helper()
	resp, body := w.get("/", header("Accept", "application/json"))
	if resp.StatusCode != status || resp.Header.Get("Roost-Error") != code {
		w.t.Errorf("got %d %q (%s), want %d %q", resp.StatusCode, resp.Header.Get("Roost-Error"), body, status, code)
	}
	var e struct {
		Error, Code, Hint string
		RequestID         string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		w.t.Fatalf("body %q: %v", body, err)
	}
	if e.Code != code || e.RequestID == "" || e.RequestID != resp.Header.Get("Fly-Request-Id") {
		w.t.Errorf("body: got %+v, want code %s and the request's id", e, code)
	}
	for _, text := range texts {
		if !strings.Contains(e.Error+"|"+e.Hint, text) {
			w.t.Errorf("got %q, want %q in it", e.Error+"|"+e.Hint, text)
		}
	}
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(*world)
		status int
		code   string
		texts  []string
	}{
		{"no machines", func(*world) {}, 503, "PR03", []string{"app shop has no machines yet", "roost machine run"}},
		{"no service on the port", func(w *world) {
			w.machine("shop", root.StateStarted, answer(""), func(m *root.Machine) { m.Spec.Config.Services[0].Ports[0].Port = 9000 })
		}, 503, "PR03", []string{"offers a service on port 80 (they offer 9000)"}},
		{"autostart off", func(w *world) {
			w.machine("shop", root.StateStopped, answer(""), func(m *root.Machine) { m.Spec.Config.Services[0].Autostart = false })
		}, 503, "PR03", []string{"are stopped", "autostart"}},
		{"cordoned", func(w *world) {
			w.machine("shop", root.StateStarted, answer(""), func(m *root.Machine) { m.Spec.Cordoned = true })
		}, 503, "PR03", []string{"cordoned"}},
		{"never launched", func(w *world) {
			w.machine("shop", root.StateCreated, answer(""), func(m *root.Machine) { m.Spec.Launch = false })
		}, 503, "PR03", []string{"are created"}},
		{"failed", func(w *world) {
			w.machine("shop", root.StateFailed, answer(""), func(m *root.Machine) { m.Status.Message = "no such command: servr" })
		}, 503, "PR03", []string{"failed: no such command: servr"}},
		{"cannot be started", func(w *world) {
			m := w.machine("shop", root.StateStopped, answer(""))
			m.wakeErr = root.Errorf(root.Precondition, "no memory left: 64 MB free, 256 MB needed")
		}, 503, "PM08", []string{"no memory left: 64 MB free", "roost logs -a shop"}},
		{"suspended, cannot be woken", func(w *world) {
			m := w.machine("shop", root.StateSuspended, answer(""))
			m.wakeErr = root.Errorf(root.Conflict, "the machine is leased by ada")
		}, 503, "PM01", []string{"leased by ada"}},
		{"exits at each start", func(w *world) {
			m := w.machine("shop", root.StateStopped, answer(""))
			m.deaf = true
			m.onStart = func() { go func() { m.exit("exited with code 3 0.1s after its start") }() }
		}, 503, "PR03", []string{"exited with code 3"}},
		{"nobody listens", func(w *world) {
			m := w.machine("shop", root.StateStopped, answer(""))
			m.deaf = true
		}, 502, "PM05", []string{"did not answer on port"}},
		{"does not come up", func(w *world) { w.machine("shop", root.StateStarting, answer("")) }, 503, "PM03", []string{"did not come up within", "starting"}},
		{"closes without an answer", func(w *world) {
			w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) })
		}, 502, "PU02", []string{"closed the connection before it answered"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			deadline := time.Minute // these end long before
			if c.code == "PM03" || c.code == "PM05" {
				deadline = 3 * time.Second // and these by it
			}
			w := newWorld(t, hold(deadline))
			c.make(w)
			w.wantFailure(c.status, c.code, c.texts...)
		})
	}
}

// TestLoopback checks that the likely mistake is found long before the
// deadline, and told.
func TestLoopback(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold(time.Hour))
	m := w.machine("shop", root.StateStopped, answer("hello"))
	m.deaf = true
	port := m.record.Spec.Config.Services[0].InternalPort
	w.listens.Store(&[]string{fmt.Sprintf("127.0.0.1:%d", port), "0.0.0.0:9999"})
	w.wantFailure(http.StatusBadGateway, "PC01", fmt.Sprintf("listens on 127.0.0.1:%d only", port), fmt.Sprintf("0.0.0.0:%d", port))
	// It is seen when it is mended.
	m.mu.Lock()
	m.listen(0)
	m.mu.Unlock()
	patience.Until(t, "the machine to get requests after it listens", func() bool {
		_, body := w.get("/")
		return body == "hello"
	})
}

func TestUnknownHost(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		host, accept, kind, want string
	}{
		{"nobody.localhost", "text/html,application/xhtml+xml", "text/html; charset=utf-8", "There is no app named nobody here."},
		{"example.com", "", "text/plain; charset=utf-8", "Apps answer at <app>.localhost."},
		{"<script>.localhost", "text/html", "text/html; charset=utf-8", "&lt;script&gt;"},
	} {
		resp, body := w.get("/", func(r *http.Request) { r.Host = c.host }, header("Accept", c.accept))
		if resp.StatusCode != http.StatusNotFound && c.host[0] != '<' || resp.Header.Get("Content-Type") != c.kind || !strings.Contains(body, c.want) {
			if c.host[0] == '<' && resp.StatusCode == http.StatusBadRequest {
				continue // net/http refuses the host itself
			}
			t.Errorf("%s: got %d %s %q, want %q in it", c.host, resp.StatusCode, resp.Header.Get("Content-Type"), body, c.want)
		}
	}
}

// TestHardLimit sends ten times what a machine takes at once.
func TestHardLimit(t *testing.T) {
	w := newWorld(t)
	var now, most atomic.Int64
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(2 * time.Millisecond) //nolint:forbidigo // the work of a request
		now.Add(-1)
		_, _ = io.WriteString(rw, "done")
	}, limits(2, 4))
	c := w.client()
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if resp, body := w.do(c, http.MethodGet, "/", nil); body != "done" {
				t.Errorf("got %d %q, want done", resp.StatusCode, body)
			}
		})
	}
	wg.Wait()
	if got := most.Load(); got > 4 {
		t.Errorf("at once: got %d, want at most 4", got)
	}
}

// TestQueueBound fills the queue; what is beyond gets 503 at once.
func TestQueueBound(t *testing.T) {
	w := newWorld(t, func(o *proxy.Options) { o.HoldQueue = 3 })
	m := w.machine("shop", root.StateStarting, answer("hello"))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, body := w.get("/"); body != "hello" {
				t.Errorf("a held request got %q", body)
			}
		})
	}
	patience.Until(t, "3 are held", func() bool { return w.proxy.Held() == 3 })
	resp, _ := w.get("/")
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("beyond: got %d, Retry-After %q, want 503 with Retry-After", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	m.start()
	wg.Wait()
}

// TestClientLeaves checks that a held request is released with its client.
func TestClientLeaves(t *testing.T) {
	w := newWorld(t, hold(time.Minute))
	w.machine("shop", root.StateStarting, answer("hello"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop.localhost/", nil)
		resp, err := w.client().Do(r)
		if err == nil {
			_ = resp.Body.Close()
		}
		done <- err
	}()
	patience.Until(t, "it is held", func() bool { return w.proxy.Held() == 1 })
	cancel()
	<-done
	patience.Until(t, "nobody is held", func() bool { return w.proxy.Held() == 0 })
}

// TestClientLeavesMachine checks that a machine sees when its client went away.
func TestClientLeavesMachine(t *testing.T) {
	w := newWorld(t)
	arrived, gone := make(chan struct{}), make(chan struct{})
	w.machine("shop", root.StateStarted, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop.localhost/", nil)
		if resp, err := w.client().Do(r); err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-arrived
	cancel()
	patience.Receive(t, "the machine to see that its client left", gone)
}

// TestSlowStart holds requests over a start that takes its time to listen; the
// client's own patience ends long before the hold.
func TestSlowStart(t *testing.T) {
	w := newWorld(t, hold(time.Hour))
	m := w.machine("shop", root.StateStopped, answer("hello"))
	m.slow = 300 * time.Millisecond
	begin := time.Now()
	if resp, body := w.get("/"); body != "hello" {
		t.Fatalf("got %d %q, want hello", resp.StatusCode, body)
	}
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("answered %s after the request, want after the machine listens at 300ms", took)
	}
}

// TestExitBetween lets a machine go away under a request; another one, or its
// next boot, answers.
func TestExitBetween(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		t.Run(method, func(t *testing.T) {
			w := newWorld(t)
			var once atomic.Bool
			var m *fakeMachine
			m = w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
				data, _ := io.ReadAll(r.Body)
				if !once.Swap(true) {
					m.exit("crashed")
					return
				}
				fmt.Fprintf(rw, "answered %d", len(data))
			})
			var body io.Reader
			if method == http.MethodPost {
				body = bytes.NewReader(make([]byte, 100))
			}
			resp, got := w.do(w.client(), method, "/", body)
			if method == http.MethodGet && got != "answered 0" {
				t.Errorf("got %d %q, want it retried", resp.StatusCode, got)
			}
			if method == http.MethodPost && resp.StatusCode != http.StatusBadGateway {
				t.Errorf("got %d %q, want 502: the machine may have acted on it", resp.StatusCode, got)
			}
			// Before a machine saw anything, everything is retried.
			m.exit("crashed")
			if _, got := w.do(w.client(), method, "/", strings.NewReader("xyz")); got != "answered 3" {
				t.Errorf("after the exit: got %q, want answered 3", got)
			}
		})
	}
}

// TestUnnoticedExit sends to a machine that is gone without news of it.
func TestUnnoticedExit(t *testing.T) {
	w := newWorld(t)
	a := w.machine("shop", root.StateStarted, answer("a"))
	b := w.machine("shop", root.StateStarted, answer("b"))
	w.get("/", forceFirst(a)) // returns when it is ready
	w.get("/", forceFirst(b))
	a.halt()
	c := w.client()
	for range 20 {
		if resp, body := w.do(c, http.MethodPost, "/", strings.NewReader("x")); body != "b" {
			t.Fatalf("got %d %q, want b", resp.StatusCode, body)
		}
	}
}

// TestSuspendedUnderRequest suspends a machine with a request in flight: it is
// woken, since nobody else would answer.
func TestSuspendedUnderRequest(t *testing.T) {
	w := newWorld(t)
	arrived, frozen := make(chan struct{}), make(chan struct{})
	var m *fakeMachine
	m = w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-frozen
		m.wait()
		_, _ = io.WriteString(rw, "done")
	})
	got := make(chan string, 1)
	go func() {
		_, body := w.get("/")
		got <- body
	}()
	<-arrived
	m.suspend()
	close(frozen)
	if body := <-got; body != "done" || m.woken() != 1 {
		t.Errorf("got %q after %d wakes, want done after 1", body, m.woken())
	}
}

// TestFrozenSeesRequest checks the order of a wake: the request is there
// before the machine goes on.
func TestFrozenSeesRequest(t *testing.T) {
	w := newWorld(t)
	m := w.machine("shop", root.StateSuspended, answer("hello"))
	m.onWake = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.state != root.StateSuspended {
			t.Errorf("woken in state %s", m.state)
		}
	}
	if _, body := w.get("/"); body != "hello" {
		t.Errorf("got %q, want hello", body)
	}
	if r := w.logged(1)[0]; !r.Woken {
		t.Errorf("record: got %+v, want woken", r)
	}
}

// TestEvenLoad: requests that come at the same moment do not all take the
// machine that was the least loaded just before.
func TestEvenLoad(t *testing.T) {
	w := newWorld(t)
	var met sync.WaitGroup
	var counts [2]atomic.Int32
	var machines [2]*fakeMachine
	for i := range machines {
		machines[i] = w.machine("shop", root.StateStarted, func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/meet" {
				counts[i].Add(1)
				met.Done()
				met.Wait()
			}
		}, limits(2, 0))
		w.get("/", forceFirst(machines[i])) // until it is ready
	}
	c := w.client()
	for round := range 200 {
		for _, m := range machines {
			patience.Until(t, "no request is in flight", func() bool { return w.loads.Counts(m.record.Spec.Instance).InFlight == 0 })
		}
		met.Add(4)
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() { w.do(c, http.MethodGet, "/meet", nil) })
		}
		clients.Wait()
		if a, b := counts[0].Swap(0), counts[1].Swap(0); a != 2 || b != 2 {
			t.Fatalf("round %d: %d and %d of four requests at once, want two each", round, a, b)
		}
	}
}

// TestSoftLimitWakes checks that one more machine is woken when all are at
// their soft limit, and that the request does not wait for it.
func TestSoftLimitWakes(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	arrived := make(chan struct{}, 10)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-block
		_, _ = io.WriteString(rw, "a")
	}, limits(1, 0))
	b := w.machine("shop", root.StateStopped, answer("b"), limits(1, 0))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, body := w.get("/"); body != "a" {
				t.Errorf("got %q, want a", body)
			}
		})
		<-arrived
	}
	patience.Until(t, "b is woken", func() bool { return b.woken() == 1 })
	w.get("/", forceFirst(b)) // until it is ready
	if _, body := w.get("/"); body != "b" {
		t.Errorf("the third: got %q, want b", body)
	}
	close(block)
	wg.Wait()
}

// TestOneWakes checks that one request wakes one of several machines, however
// often it looks at them again until that runs.
func TestOneWakes(t *testing.T) {
	w := newWorld(t)
	woken, looked := make(chan struct{}, 10), make(chan struct{})
	var all []*fakeMachine
	for range 4 {
		m := w.machine("shop", root.StateStopped, answer("done"))
		m.onWake = func() {
			woken <- struct{}{}
			<-looked
		}
		all = append(all, m)
	}
	done := make(chan string, 1)
	go func() {
		_, body := w.get("/")
		done <- body
	}()
	patience.Receive(t, "a wake", woken)
	for range 20 {
		w.proxy.Changed("shop")
		runtime.Gosched()
	}
	patience.Until(t, "it is held", func() bool { return w.proxy.Held() == 1 })
	close(looked)
	if body := patience.Receive(t, "the answer", done); body != "done" {
		t.Errorf("got %q, want done", body)
	}
	n := 0
	for _, m := range all {
		n += m.woken()
	}
	if n != 1 {
		t.Errorf("%d wakes for one request, want 1", n)
	}
}

// TestManyHeld holds far more requests than a machine takes at once, some of
// whose clients leave: everyone else gets its turn.
func TestManyHeld(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, answer("done"), limits(1, 2))
	other := w.machine("shop", root.StateStarted, answer("other"), limits(1, 1))
	c := w.client()
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			ctx := t.Context()
			if i%5 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(i/5)*time.Millisecond)
				defer cancel()
			}
			r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop.localhost/", nil)
			if i%3 == 0 {
				r.Header.Set("Fly-Force-Instance-Id", string(other.record.ID))
			}
			resp, err := c.Do(r)
			if err != nil {
				if i%5 != 0 {
					t.Errorf("request %d: %v", i, err)
				}
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("request %d: got %s", i, resp.Status)
			}
		})
	}
	wg.Wait()
	patience.Until(t, "nobody is held", func() bool { return w.proxy.Held() == 0 })
}
