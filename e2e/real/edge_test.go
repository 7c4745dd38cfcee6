package real

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// limited is web with a concurrency of its own.
func limited(soft, hard int) machines.Config {
	c := web()
	c.Services[0].Concurrency = &machines.Concurrency{Type: "requests", SoftLimit: soft, HardLimit: hard}
	return c
}

// sleepy is web that goes to sleep soon.
func sleepy(how machines.Autostop, after time.Duration) machines.Config {
	c := web()
	c.Services[0].Autostop = how
	c.Services[0].AutoStopAfter = new(machines.Duration(after))
	return c
}

// crowd sends n requests at once and returns the answers.
func crowd(t *testing.T, n int, app, path string) []answer {
	t.Helper()
	out := make([]answer, n)
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i] = get(t, app, path) })
	}
	wg.Wait()
	if t.Failed() { // some have no answer
		for i, a := range out {
			if a.Response != nil {
				t.Logf("answer %d: %s %.200s", i, a.Status, a.Text)
			}
		}
		t.FailNow()
	}
	return out
}

// settle returns when the edge knows that these machines run and has none of
// their requests in flight: it counts one until shortly after its answer has
// arrived, but takes the next request of a connection only then.
func settle(t *testing.T, i *instance.Instance, app string, ids ...string) {
	t.Helper()
	conn, err := i.DialEdge(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func(host, header string, status int) {
		t.Helper()
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s.localhost\r\n%s\r\n", host, header); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != status {
			t.Fatalf("%s %s: got %d, %v, want %d", host, header, resp.StatusCode, err, status)
		}
	}
	for _, id := range ids {
		ask(app, "Fly-Force-Instance-Id: "+id+"\r\n", http.StatusOK)
	}
	ask("nobody", "", http.StatusNotFound)
}

// ended counts at which machines requests to /slow ended.
func ended(t *testing.T, list []answer) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, a := range list {
		if a.StatusCode != http.StatusOK {
			t.Errorf("got %d, Roost-Error %q: %.200s", a.StatusCode, a.Header.Get("Roost-Error"), a.Text)
			continue
		}
		out[strings.TrimSpace(a.Text[strings.LastIndex(a.Text, "at ")+3:])]++
	}
	return out
}

// TestSoftLimit: load spreads over machines that run.
func TestSoftLimit(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	settle(t, in, app, start(t, app, limited(2, 0)).ID, start(t, app, limited(2, 0)).ID)
	at := stay(t, 4, app)
	for id, n := range at {
		if n != 2 {
			t.Errorf("%s got %d of 4 requests, want 2: %v", id, n, at)
		}
	}
}

// stay sends n requests at once, none of which ends before all are at a
// machine, and counts at which.
func stay(t *testing.T, n int, app string) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lines, errs := make([]string, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+app+".localhost/stay", nil)
			if err != nil {
				errs[i] = err
				return
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				errs[i] = err
				return
			}
			context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
			lines[i], errs[i] = bufio.NewReader(resp.Body).ReadString('\n')
		})
	}
	wg.Wait()
	want(t, errors.Join(errs...))
	at := map[string]int{}
	for _, line := range lines {
		id, ok := strings.CutPrefix(strings.TrimSpace(line), "at ")
		if !ok {
			t.Fatalf("got %q, want the machine", line)
		}
		at[id]++
	}
	return at
}

// TestHardLimit: no machine gets more; the rest waits and is answered.
func TestHardLimit(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, limited(1, 2))
	begin := time.Now()
	at := ended(t, crowd(t, 6, app, "/slow?d=500ms"))
	if at[m.ID] != 6 {
		t.Errorf("answers: got %v, want 6 of %s", at, m.ID)
	}
	if took := time.Since(begin); took < 1500*time.Millisecond {
		t.Errorf("6 requests of 500ms, two at a time, took %s: the limit was passed", took)
	}
}

// TestSecondMachineWakes: above the soft limit of what runs one more starts,
// and not before.
func TestSecondMachineWakes(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	first, second := start(t, app, limited(2, 0)), start(t, app, limited(2, 0))
	want(t, admin().Stop(t.Context(), app, second.ID, machines.StopRequest{}))
	await(t, app, second.ID, machines.StateStopped)
	settle(t, in, app, first.ID)
	if at := stay(t, 2, app); at[first.ID] != 2 {
		t.Errorf("below the limit: got %v, want 2 at %s", at, first.ID)
	}
	if got := state(t, app, second.ID); got != machines.StateStopped {
		t.Errorf("below the limit the second machine is %s", got)
	}
	stay(t, 6, app)
	await(t, app, second.ID, machines.StateStarted)
	if n := starts(t, app, second.ID); n != 2 {
		t.Errorf("starts of the second machine: got %d, want 2: %v", n, history(t, app, second.ID))
	}
}

// TestSingleFlight: a crowd at a sleeping machine is one wake.
func TestSingleFlight(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	for _, sleep := range []machines.State{machines.StateSuspended, machines.StateStopped} {
		if sleep == machines.StateSuspended {
			want(t, admin().Suspend(t.Context(), app, m.ID))
		} else {
			want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}))
		}
		await(t, app, m.ID, sleep)
		before := starts(t, app, m.ID)
		if at := ended(t, crowd(t, 30, app, "/slow?d=10ms")); at[m.ID] != 30 {
			t.Errorf("%s: answers: got %v", sleep, at)
		}
		await(t, app, m.ID, machines.StateStarted)
		if n := starts(t, app, m.ID) - before; n != 1 {
			t.Errorf("%s: got %d wakes, want 1", sleep, n)
		}
	}
}

// TestAutostartOff: a request is no reason to start it, and is told so soon.
func TestAutostartOff(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Services[0].Autostart = new(false)
	m := start(t, app, c)
	get(t, app, "/").echo(t)
	want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}))
	await(t, app, m.ID, machines.StateStopped)
	a := get(t, app, "/")
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Roost-Error") != "PR03" {
		t.Errorf("got %d %q, want 503 PR03: %s", a.StatusCode, a.Header.Get("Roost-Error"), a.Text)
	}
	wantText(t, a.Text, "no machine of app "+app+" can answer: its 1 with port 80 are stopped") // who was held is told for how long
	if got := state(t, app, m.ID); got != machines.StateStopped {
		t.Errorf("state: got %s", got)
	}
}

// TestAutostop: stop, suspend, off, and the floor.
func TestAutostop(t *testing.T) {
	t.Parallel()
	const after = 500 * time.Millisecond
	t.Run("stop", func(t *testing.T) {
		t.Parallel()
		app := newApp(t)
		m := launch(t, app, sleepy(machines.AutostopStop, after))
		await(t, app, m.ID, machines.StateStopped)
		wantText(t, strings.Join(history(t, app, m.ID), " "), "stop/stopping/proxy")
		wantText(t, logOf(t, in, app, m.ID, ""), "App "+app+" has excess capacity, autostopping machine "+m.ID+". 0 out of 1 machines left running (region=loc, process group=app)")
		wantMachine(t, get(t, app, "/"), m.ID)
	})
	t.Run("suspend", func(t *testing.T) {
		t.Parallel()
		app := newApp(t)
		m := launch(t, app, sleepy(machines.AutostopSuspend, after))
		await(t, app, m.ID, machines.StateSuspended)
		wantText(t, strings.Join(history(t, app, m.ID), " "), "suspend/suspended/proxy")
		wantMachine(t, get(t, app, "/"), m.ID)
		// A request in flight keeps it awake, however long.
		a := get(t, app, "/slow?d=2s")
		if a.StatusCode != http.StatusOK {
			t.Errorf("a long request: got %d %s", a.StatusCode, a.Text)
		}
		await(t, app, m.ID, machines.StateSuspended) // so everything before is recorded
		wantAwake(t, app, m.ID, milliseconds(t, a, "Began"), milliseconds(t, a, "Ended"))
	})
	t.Run("suspend, then stop", func(t *testing.T) {
		t.Parallel()
		app := newApp(t)
		c := sleepy(machines.AutostopSuspend, after)
		c.Services[0].SuspendFor = new(machines.Duration(time.Second))
		m := launch(t, app, c)
		await(t, app, m.ID, machines.StateStopped)
		h := strings.Join(history(t, app, m.ID), " ")
		if i := strings.Index(h, "suspend/suspended/proxy"); i < 0 || !strings.Contains(h[i:], "exit/stopped/") {
			t.Errorf("want suspended, then stopped: %s", h)
		}
	})
	t.Run("off and floor", func(t *testing.T) {
		t.Parallel()
		app, floor := newApp(t), newApp(t)
		off := start(t, app, sleepy(machines.AutostopOff, after))
		c := sleepy(machines.AutostopStop, after)
		c.Services[0].MinRunning = 1
		one, two := launch(t, floor, c), launch(t, floor, c)
		// Not before both have run: one that is still to start is none that stopped.
		settled := func() string {
			states := []machines.State{state(t, floor, one.ID), state(t, floor, two.ID)}
			slices.Sort(states)
			if !slices.Equal(states, []machines.State{machines.StateStarted, machines.StateStopped}) {
				return fmt.Sprintf("two machines are %s, want min_machines_running = 1", states)
			}
			return ""
		}
		eventually(t, settled)
		if err := instance.Pause(t.Context(), 3*time.Second); err != nil {
			t.Fatal(err)
		}
		if missing := settled(); missing != "" {
			t.Error(missing)
		}
		if got := state(t, app, off.ID); got != machines.StateStarted {
			t.Errorf("autostop off: got %s", got)
		}
	})
	t.Run("one of two, then the other", func(t *testing.T) {
		t.Parallel()
		app := newApp(t)
		a, b := launch(t, app, sleepy(machines.AutostopStop, after)), launch(t, app, sleepy(machines.AutostopStop, after))
		await(t, app, a.ID, machines.StateStopped)
		await(t, app, b.ID, machines.StateStopped)
		// Both are startable, one request needs one.
		get(t, app, "/").echo(t)
		eventually(t, func() string {
			if n := starts(t, app, a.ID) + starts(t, app, b.ID); n != 3 {
				return fmt.Sprintf("starts: got %d, want 3: one request wakes one", n)
			}
			return ""
		})
	})
}

// wantAwake fails if a machine went to sleep between two times, in
// milliseconds since 1970.
func wantAwake(t *testing.T, app, id string, from, to int64) {
	t.Helper()
	list, err := admin().Events(t.Context(), app, id, 50)
	want(t, err)
	for _, e := range list {
		if (e.Type == "suspend" || e.Type == "stop") && e.Timestamp > from && e.Timestamp < to {
			t.Errorf("it went to sleep %d ms after the beginning, %d ms before the end: %+v", e.Timestamp-from, to-e.Timestamp, e)
		}
	}
}

// milliseconds is a time that the probe says in a header.
func milliseconds(t *testing.T, a answer, header string) int64 {
	t.Helper()
	ms, err := strconv.ParseInt(a.Header.Get(header), 10, 64)
	want(t, err)
	return ms
}

// TestClientGivesUp: its place at the machine is free again.
func TestClientGivesUp(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, limited(1, 1))
	get(t, app, "/").echo(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The answer begins and never ends: the place is taken.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+app+".localhost/events", nil)
	want(t, err)
	resp, err := transport.RoundTrip(req)
	want(t, err)
	defer resp.Body.Close()
	second := make(chan answer, 1)
	go func() { second <- get(t, app, "/slow?d=1ms") }()
	select {
	case a := <-second:
		t.Fatalf("one place, and a second request got in: %d %s", a.StatusCode, a.Text)
	case <-time.After(time.Second): // it has to be held: nothing says so from outside
	}
	cancel()
	if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, context.Canceled) {
		t.Errorf("the client that gave up: %v", err)
	}
	if a := <-second; a.StatusCode != http.StatusOK { // else it is told so after the time it may be held
		t.Errorf("who waited for the place: got %d: %s", a.StatusCode, a.Text)
	}
}

// dialWS opens a WebSocket to an app.
func dialWS(t *testing.T, app string) *websocket.Conn {
	t.Helper()
	c, resp, err := websocket.Dial(t.Context(), "ws://"+app+".localhost/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatalf("websocket: %v (%+v)", err, resp)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	c.SetReadLimit(1 << 20)
	return c
}

// TestWebSocket: messages both ways; it keeps its machine awake; a stop says
// goodbye.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := launch(t, app, sleepy(machines.AutostopStop, time.Second))
	c := dialWS(t, app)
	echo := func(message string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		want(t, c.Write(ctx, websocket.MessageText, []byte(message)))
		_, got, err := c.Read(ctx)
		want(t, err)
		if string(got) != message {
			t.Errorf("got %d bytes back, want %d", len(got), len(message))
		}
	}
	echo("hello")
	echo(strings.Repeat("long ", 40000))
	if err := instance.Pause(t.Context(), 3*time.Second); err != nil { // longer than its idle time
		t.Fatal(err)
	}
	echo("still there")
	await(t, app, m.ID, machines.StateStarted)
	want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the machine stopped and the WebSocket goes on (%v)", err)
	}
	// A suspended machine is woken by an upgrade as by anything else.
	await(t, app, m.ID, machines.StateStopped)
	c = dialWS(t, app)
	echo("awake")
	want(t, c.Close(websocket.StatusNormalClosure, ""))
	await(t, app, m.ID, machines.StateStopped)
}

// TestWebSocketOfSuspended: what a client says over an open WebSocket wakes the
// machine behind it.
func TestWebSocketOfSuspended(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	c := dialWS(t, app)
	want(t, c.Write(t.Context(), websocket.MessageText, []byte("x")))
	_, _, err := c.Read(t.Context())
	want(t, err)
	want(t, admin().Suspend(t.Context(), app, m.ID))
	await(t, app, m.ID, machines.StateSuspended)
	// What is written to it wakes it, and is answered.
	want(t, c.Write(t.Context(), websocket.MessageText, []byte("wake up")))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, got, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway && (err != nil || string(got) != "wake up") {
		t.Errorf("after a suspend: got %q, %v; want the echo, or a close with 1001", got, err)
	}
}

// TestStreaming: what the app flushes arrives at once.
func TestStreaming(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, web())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+app+".localhost/events", nil)
	want(t, err)
	resp, err := transport.RoundTrip(req)
	want(t, err)
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n') // the app never ends its answer
	if err != nil || line != "data: hello\n" || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("got %q, %v, %v", line, err, resp.Header)
	}
	a := get(t, app, "/stream?n=5")
	if a.Text != "part 0\npart 1\npart 2\npart 3\npart 4\n" {
		t.Errorf("stream: got %q", a.Text)
	}
}

// TestLargeBodies: whole, both ways, in bounded memory.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, web())
	const size = 64 << 20
	// Without a length it goes chunked.
	e := request(t, http.MethodPost, app, "/", io.LimitReader(rand.Reader, size)).echo(t)
	if e.Body != size {
		t.Errorf("upload: %d bytes arrived, want %d", e.Body, size)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+app+".localhost/download?mb=64", nil)
	want(t, err)
	resp, err := transport.RoundTrip(req)
	want(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size {
		t.Errorf("download: got %d bytes, %v; want %d", n, err, size)
	}
}

// speak sends bytes to the edge as they are and returns everything that comes
// back until the edge closes or, after the first bytes, rest passes without one.
func speak(t *testing.T, bytes string, rest time.Duration) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", in.Edge, 10*time.Second)
	want(t, err)
	defer c.Close()
	_, err = io.WriteString(c, bytes)
	want(t, err)
	var out strings.Builder
	buf := make([]byte, 64<<10)
	for {
		wait := rest
		if out.Len() == 0 {
			wait = patience
		}
		want(t, c.SetReadDeadline(time.Now().Add(wait)))
		n, err := c.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			return out.String()
		}
	}
}

// TestProtocol: old, unusual and malicious HTTP, byte by byte.
func TestProtocol(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	start(t, app, web())
	get(t, app, "/").echo(t)
	host := "Host: " + app + ".localhost\r\n"
	const brief, long = 500 * time.Millisecond, time.Minute
	status := func(answer string) string {
		line, _, _ := strings.Cut(answer, "\r\n")
		return line
	}
	for _, test := range []struct {
		name, request string
		rest          time.Duration
		status        string   // of the first answer
		answers       int      // how many there are
		say           []string // what is in them
	}{
		{"HTTP/1.0", "GET / HTTP/1.0\r\n" + host + "\r\n", long, "200", 1, []string{`"Method":"GET"`}},
		{"HEAD", "HEAD / HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", long, "200", 1, []string{"Content-Type"}},
		{"pipelined", "GET /1 HTTP/1.1\r\n" + host + "\r\nGET /2 HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", long, "200", 2, []string{`"URI":"/1"`, `"URI":"/2"`}},
		{"expect", "POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", long, "100", 2, []string{`"Body":2`}},
		{"no host", "GET / HTTP/1.1\r\n\r\n", long, "400", 1, nil},
		{"no host, 1.0", "GET / HTTP/1.0\r\n\r\n", long, "400", 1, []string{"no host specified"}},
		{"two hosts", "GET / HTTP/1.1\r\n" + host + "Host: other\r\n\r\n", long, "400", 1, nil},
		{"unknown host", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", long, "404", 1, nil},
		{"nonsense", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", long, "400", 1, nil},
		{"connect", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", long, "405", 1, nil},
		{"length and chunked", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + host + "\r\n", brief, "400", 1, nil},
		{"two lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", brief, "400", 1, nil},
		{"odd length", "POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello", brief, "400", 1, nil},
		{"odd encoding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", brief, "", 1, nil},
		{"space before colon", "GET / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n", brief, "400", 1, nil},
		{"folded header", "GET / HTTP/1.1\r\n" + host + "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n", brief, "", 1, nil},
		{"newline in target", "GET /\r HTTP/1.1\r\n" + host + "\r\n", brief, "400", 1, nil},
		{"bad chunk", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n", long, "400", 1, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := speak(t, test.request, test.rest)
			if line := status(got); !strings.HasPrefix(line, "HTTP/1.") || !strings.Contains(line, " "+test.status) {
				t.Errorf("status line: got %q, want %s", line, test.status)
			}
			if n := strings.Count(got, "HTTP/1.1 ") + strings.Count(got, "HTTP/1.0 "); n != test.answers {
				t.Errorf("got %d answers, want %d:\n%s", n, test.answers, got)
			}
			if strings.Contains(got, "/smuggled") {
				t.Errorf("a request was smuggled:\n%s", got)
			}
			wantText(t, got, test.say...)
			if test.name == "HEAD" && !strings.HasSuffix(got, "\r\n\r\n") {
				t.Errorf("an answer to HEAD has a body:\n%s", got)
			}
		})
	}
}

// TestExitInFlight: the program dies over a request; the client is told, the
// next request is answered by its successor.
func TestExitInFlight(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Restart = &machines.Restart{Policy: "on-failure", MaxRetries: 10}
	m := start(t, app, c)
	get(t, app, "/").echo(t)
	a := request(t, http.MethodPost, app, "/exit", strings.NewReader("x"))
	if a.StatusCode != http.StatusBadGateway || a.Header.Get("Roost-Error") == "" {
		t.Errorf("got %d %q, want 502 with a code: %s", a.StatusCode, a.Header.Get("Roost-Error"), a.Text)
	}
	wantText(t, a.Text, m.ID)
	wantMachine(t, get(t, app, "/"), m.ID)
	eventually(t, func() string {
		if list := exits(t, app, m.ID); len(list) == 0 || list[0].ExitEvent.ExitCode != 9 || !list[0].ExitEvent.Restarting {
			return fmt.Sprintf("exits: got %+v, want code 9 and a restart", list)
		}
		return ""
	})
}
