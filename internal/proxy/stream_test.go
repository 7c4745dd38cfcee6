package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

// dump answers with the headers it got, as JSON.
func dump(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "app/1")
	w.Header().Set("X-App", "yes")
	w.Header().Set("Connection", "X-Hop")
	w.Header().Set("X-Hop", "no")
	r.Header.Set("Host", r.Host)
	_ = json.NewEncoder(w).Encode(r.Header)
}

func TestHeaders(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, dump)
	resp, body := w.get("/", func(r *http.Request) {
		r.Host = "Shop.localhost:8080"
		r.Header = http.Header{
			"Fly-Client-Ip": {"6.6.6.6"}, "Fly-Region": {"xxx"}, "Fly-Request-Id": {"mine"}, "Fly-Replay-Src": {"instance=x"}, "Fly-Replay-Failed": {"x"},
			"Fly-Preferred-Instance-Unavailable": {"x"}, "Fly-Forwarded-Port": {"1"}, "Roost-Machine": {"x"}, "Roost-Anything": {"x"},
			"X-Forwarded-For": {"10.1.1.1", "10.2.2.2"}, "X-Forwarded-Port": {"8443"}, "X-Forwarded-Proto": {"https"}, "Via": {"1.1 other"},
			"Connection": {"X-Mine, close"}, "X-Mine": {"x"}, "Keep-Alive": {"x"}, "Te": {"trailers"}, "Proxy-Authorization": {"x"},
			"X-Custom": {"a", "b"}, "User-Agent": {""},
		}
	})
	var got http.Header
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	id := resp.Header.Get("Fly-Request-Id")
	for name, want := range map[string]string{
		"Host": "Shop.localhost:8080", "Fly-Client-Ip": "127.0.0.1", "Fly-Region": "loc", "Fly-Request-Id": id, "Fly-Replay-Src": "", "Fly-Replay-Failed": "",
		"Fly-Preferred-Instance-Unavailable": "", "Fly-Forwarded-Port": "80", "Fly-Forwarded-Proto": "http", "Fly-Forwarded-Ssl": "off", "Roost-Machine": "", "Roost-Anything": "",
		"X-Forwarded-For": "10.1.1.1, 10.2.2.2, 127.0.0.1, 127.0.0.1", "X-Forwarded-Port": "8443", "X-Forwarded-Proto": "http", "X-Forwarded-Ssl": "off",
		"Via": "1.1 other, 1.1 roost", "X-Mine": "", "Keep-Alive": "", "Te": "trailers", "Proxy-Authorization": "", "X-Custom": "a|b", "User-Agent": "", "Connection": "",
	} {
		if v := strings.Join(got[name], "|"); v != want {
			t.Errorf("request: %s: got %q, want %q", name, v, want)
		}
	}
	if v := got.Get("X-Request-Start"); !strings.HasPrefix(v, "t=17") && !strings.HasPrefix(v, "t=18") || len(v) != len("t=1700000000000000") {
		t.Errorf("request: X-Request-Start: got %q, want t= and microseconds", v)
	}
	if len(id) != 26+4 || !strings.HasSuffix(id, "-loc") {
		t.Errorf("Fly-Request-Id: got %q, want a ULID and the region", id)
	}
	for name, want := range map[string]string{"Server": "roost", "Via": "1.1 roost", "X-App": "yes", "X-Hop": "", "Connection": "close"} {
		if v := resp.Header.Get(name); v != want && (name != "Connection" || !resp.Close) {
			t.Errorf("response: %s: got %q, want %q", name, v, want)
		}
	}
	if r := w.logged(1)[0]; r.ID != id || r.App != "shop" || r.Status != 200 || r.Method != "GET" || r.Bytes != int64(len(body)) {
		t.Errorf("access log: got %+v", r)
	}
}

// TestStreaming checks that each piece arrives before the next is written.
func TestStreaming(t *testing.T) {
	for _, length := range []bool{false, true} {
		t.Run(fmt.Sprintf("length %v", length), func(t *testing.T) {
			w := newWorld(t)
			next := make(chan struct{})
			w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "text/event-stream")
				if length {
					rw.Header().Set("Content-Length", "10")
				}
				rc := http.NewResponseController(rw)
				for range 5 {
					if _, err := io.WriteString(rw, "x\n"); err != nil || rc.Flush() != nil {
						return
					}
					<-next
				}
			})
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://shop.localhost/", nil)
			resp, err := w.client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := bufio.NewReader(resp.Body)
			for range 5 {
				if l, err := lines.ReadString('\n'); l != "x\n" || err != nil {
					t.Fatalf("got %q, %v", l, err)
				}
				next <- struct{}{}
			}
			if rest, err := io.ReadAll(lines); len(rest) != 0 || err != nil {
				t.Errorf("rest: got %q, %v", rest, err)
			}
		})
	}
}

// TestDuplex sends a body piece by piece and gets each back before the next.
func TestDuplex(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		_ = rc.EnableFullDuplex()
		for s := bufio.NewScanner(r.Body); s.Scan(); _ = rc.Flush() {
			fmt.Fprintln(rw, s.Text())
		}
	})
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://shop.localhost/", pr)
	type result struct {
		resp *http.Response
		err  error
	}
	got := make(chan result, 1)
	go func() {
		resp, err := w.client().Do(r)
		got <- result{resp, err}
	}()
	_, _ = fmt.Fprintln(pw, "one")
	res := <-got
	if res.err != nil {
		t.Fatal(res.err)
	}
	defer func() { _ = res.resp.Body.Close() }()
	lines := bufio.NewReader(res.resp.Body)
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			_, _ = fmt.Fprintln(pw, word)
		}
		if l, err := lines.ReadString('\n'); l != word+"\n" {
			t.Fatalf("got %q, %v, want %s", l, err, word)
		}
	}
	_ = pw.Close()
}

func TestTrailers(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(rw, "body")
		rw.Header().Set("X-Sum", "7")
		rw.Header().Set(http.TrailerPrefix+"X-Late", "8")
	})
	resp, body := w.get("/")
	if body != "body" || resp.Trailer.Get("X-Sum") != "7" || resp.Trailer.Get("X-Late") != "8" {
		t.Errorf("got %q with trailer %v, want X-Sum 7 and X-Late 8", body, resp.Trailer)
	}
}

// TestBroken checks that a client sees that an answer is not whole.
func TestBroken(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, "half")
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	})
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://shop.localhost/", nil)
	resp, err := w.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("got %q as if it were whole", data)
	}
}

func TestHead(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "1000")
	})
	c := w.client()
	for range 2 {
		resp, body := w.do(c, http.MethodHead, "/", nil)
		if resp.ContentLength != 1000 || body != "" {
			t.Errorf("got length %d, body %q, want 1000 and none", resp.ContentLength, body)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		data, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%d", len(data))
	})
	for path, want := range map[string][]string{"/take": {"100", "200"}, "/refuse": {"403"}} {
		conn := w.dial()
		_ = conn.SetDeadline(patience.Deadline())
		_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", path)
		r := bufio.NewReader(conn)
		for _, status := range want {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if got := fmt.Sprint(resp.StatusCode); got != status {
				t.Errorf("%s: got %s, want %s", path, got, status)
			}
			if status == "100" {
				_, _ = io.WriteString(conn, "hello")
			}
		}
		_ = conn.Close()
	}
}

// TestEarlyAnswer lets a machine answer before it read a large body.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusUnauthorized) })
	resp, _ := w.do(w.client(), http.MethodPost, "/", bytes.NewReader(make([]byte, 100<<10)))
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %d, want 401", resp.StatusCode)
	}
}

func TestLargeBody(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStopped, echo("m"))
	if _, body := w.do(w.client(), http.MethodPut, "/", bytes.NewReader(make([]byte, 30<<20))); body != fmt.Sprintf("m PUT / len=%d", 30<<20) {
		t.Errorf("got %q", body)
	}
}

// upgrader speaks a protocol of its own: it repeats lines until the client
// half-closes, then says goodbye.
func upgrader(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Connection", "Upgrade")
	rw.Header().Set("Upgrade", "lines")
	rw.WriteHeader(http.StatusSwitchingProtocols)
	c, buf, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	for {
		l, err := buf.ReadString('\n')
		if err != nil {
			_, _ = io.WriteString(c, "goodbye\n")
			return
		}
		if _, err := io.WriteString(c, l); err != nil {
			return
		}
	}
}

// TestUpgrade checks both directions, bytes sent with the head, half-close and
// the load it makes, from a sleeping machine.
func TestUpgrade(t *testing.T) {
	for _, state := range []root.State{root.StateStopped, root.StateSuspended} {
		t.Run(string(state), func(t *testing.T) {
			w := newWorld(t)
			m := w.machine("shop", state, upgrader)
			c := w.dial()
			_ = c.SetDeadline(patience.Deadline())
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\nearly\n"); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Server") != "roost" {
				t.Fatalf("got %+v, %v", resp, err)
			}
			if l, err := r.ReadString('\n'); l != "early\n" {
				t.Errorf("got %q, %v, want early", l, err)
			}
			if n := w.loads.Unit(m.record.Spec.Instance).Counts(); n.InFlight != 1 || n.Upgrades != 1 {
				t.Errorf("load: got %+v, want one upgrade", n)
			}
			_, _ = fmt.Fprint(c, "later\n")
			if l, err := r.ReadString('\n'); l != "later\n" {
				t.Errorf("got %q, %v, want later", l, err)
			}
			_ = c.(*net.TCPConn).CloseWrite()
			if l, err := r.ReadString('\n'); l != "goodbye\n" {
				t.Errorf("got %q, %v, want goodbye", l, err)
			}
			patience.Until(t, "the load is gone", func() bool { return w.loads.Unit(m.record.Spec.Instance).Counts().InFlight == 0 })
		})
	}
}

func TestUpgradeNotAsked(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, upgrader)
	if resp, _ := w.get("/"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("got %d, want 502", resp.StatusCode)
	}
}

// TestWebSocket talks with a real client through a replay, then drains: the
// client is told with code 1001.
func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	target := w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, nil)
		if err != nil {
			return
		}
		for {
			kind, data, err := c.Read(t.Context())
			if err != nil || c.Write(t.Context(), kind, data) != nil {
				return
			}
		}
	})
	issuer := w.machine("shop", root.StateStarted, replayer(func() string { return "instance=" + string(target.record.ID) }))
	ctx := patience.Context(t)
	c, _, err := websocket.Dial(ctx, "ws://shop.localhost/", &websocket.DialOptions{
		HTTPClient: w.client(), HTTPHeader: http.Header{"Fly-Force-Instance-Id": {string(issuer.record.ID)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := c.Read(ctx); string(data) != "hello" {
		t.Errorf("got %q, %v, want hello", data, err)
	}
	drain, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	_ = w.proxy.Shutdown(drain)
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("after the drain: got %v, want close code 1001", err)
	}
}

// TestDrain checks that requests in flight finish and that listeners close.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	arrived, finish := make(chan struct{}), make(chan struct{})
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-finish
		_, _ = io.WriteString(rw, "done")
	})
	got := make(chan string, 1)
	go func() {
		_, body := w.get("/")
		got <- body
	}()
	<-arrived
	drained := make(chan error, 1)
	go func() { drained <- w.proxy.Shutdown(t.Context()) }()
	patience.Until(t, "the listener is closed", func() bool {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", w.addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	close(finish)
	if body := <-got; body != "done" {
		t.Errorf("got %q, want done", body)
	}
	if err := <-drained; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// TestSteering checks the four headers of a request.
func TestSteering(t *testing.T) {
	w := newWorld(t)
	a := w.machine("shop", root.StateStarted, echo("a"))
	b := w.machine("shop", root.StateStopped, echo("b"), region("fra"))
	for _, c := range []struct{ name, value, want string }{
		{"Fly-Force-Instance-Id", string(b.record.ID), "b "},
		{"Fly-Force-Instance-Id", "00000000ffffff", "502"},
		{"Fly-Force-Instance-Id", "nonsense", "502"},
		{"Fly-Prefer-Instance-Id", string(b.record.ID), "b "},
		{"Fly-Prefer-Instance-Id", "00000000ffffff", "a GET / len=0 Fly-Preferred-Instance-Unavailable=[00000000ffffff]"},
		{"Fly-Prefer-Instance-Id", "nonsense", "a "},
		{"Fly-Force-Region", "fra", "b "},
		{"Fly-Force-Region", "syd,eu", "b "},
		{"Fly-Force-Region", "syd", "503"},
		{"Fly-Force-Region", "???", "400"},
		{"Fly-Prefer-Region", "fra", "b "},
		{"Fly-Prefer-Region", "syd", "a "},
	} {
		resp, body := w.get("/", header(c.name, c.value))
		if got := fmt.Sprintf("%s%d", body, resp.StatusCode); !strings.HasPrefix(body, c.want) && !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: %s: got %d %q, want %q", c.name, c.value, resp.StatusCode, body, c.want)
		}
	}
	_ = a
}
