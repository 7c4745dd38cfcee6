// Command probe is the program in the machines of these tests: it does what
// the request tells it to, so that a test can look at the platform from inside.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

func main() {
	if filepath.Base(os.Args[0]) == "sleep" { // what keeps a console's machine
		os.Exit(command("wait", nil))
	}
	if len(os.Args) > 1 {
		os.Exit(command(os.Args[1], os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	addr := os.Getenv("LISTEN")
	if addr == "" {
		addr = "0.0.0.0:8080"
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s := &http.Server{Handler: routes(), ReadHeaderTimeout: 5 * time.Minute}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	fmt.Println("probe listens on", addr)
	select {
	case err := <-done:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case <-ctx.Done():
		shutdown, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if err := s.Shutdown(shutdown); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func get(url, want string) int {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		fmt.Println(err)
		return 64
	}
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	fmt.Printf("status %d, body %s\n", resp.StatusCode, body)
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
		return 3
	}
	return 0
}

// command is what a one-off machine does.
func command(name string, args []string) int {
	switch name {
	case "exit":
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return 64
		}
		fmt.Println("leaving with", code)
		return code
	case "eat": // megabytes
		mb, err := strconv.Atoi(args[0])
		if err != nil {
			return 64
		}
		eat(mb)
		return 0
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
		return 0
	case "files": // whether each path exists
		for _, path := range args {
			fi, err := os.Stat(path)
			if err != nil {
				fmt.Println(path, "missing")
				continue
			}
			data, _ := os.ReadFile(path)
			fmt.Printf("%s %04o %q\n", path, fi.Mode().Perm(), data)
		}
		return 0
	case "whoami":
		dir, _ := os.Getwd()
		groups, _ := os.Getgroups()
		fmt.Printf("uid=%d gid=%d groups=%v dir=%s home=%s args=%q\n", os.Getuid(), os.Getgid(), groups, dir, os.Getenv("HOME"), args)
		return 0
	case "dial": // whether each address answers; names are looked up first
		for _, addr := range args {
			c, err := net.DialTimeout("tcp", addr, dialTimeout)
			if err != nil {
				fmt.Println("dial", addr, "no")
				continue
			}
			_ = c.Close()
			fmt.Println("dial", addr, "yes")
		}
		return 0
	case "get": // URL WANT: whether the answer has WANT; the environment is filled in
		return get(os.ExpandEnv(args[0]), args[1])
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return 1
		}
		return 0
	case "wait": // for ever, or until a signal; "wait stubborn" takes none
		got := make(chan os.Signal, 1)
		signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1)
		fmt.Println("waiting")
		for s := range got {
			fmt.Println("got", s)
			if len(args) == 0 {
				return 7
			}
		}
	case "abort": // by a signal
		n, _ := strconv.Atoi(args[0])
		signal.Reset(syscall.Signal(n))
		_ = syscall.Kill(os.Getpid(), syscall.Signal(n))
		select {}
	case "security":
		security()
		return 0
	case "flood": // lines
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return 64
		}
		out := bufio.NewWriterSize(os.Stdout, 64<<10) // many at once: a flood on a slow host too
		for i := range n {
			fmt.Fprintf(out, "line %d %s\n", i, strings.Repeat("x", 200))
		}
		if out.Flush() != nil {
			return 1
		}
		return 0
	}
	fmt.Fprintln(os.Stderr, "probe: unknown command", name)
	return 64
}

var kept [][]byte

func eat(mb int) {
	for range mb {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
}

// dialTimeout is when nobody answers at an address: long enough for a busy
// host, short enough for all the addresses that must not answer.
const dialTimeout = 4 * time.Second

var (
	requests atomic.Int64
	slow     atomic.Int64 // requests to /slow in flight
)

// Echo is what a machine says of a request that it got.
type Echo struct {
	Machine string
	Method  string
	URI     string
	Host    string
	Header  http.Header
	Body    int64 // bytes
	Sum     uint32
	Number  int64 // requests this process answered
}

// What the health check says: sick is how many checks fail from now on, below
// zero all of them.
var sick, checks atomic.Int64

// health answers the platform's checks. With ALLOWED_HOST in the environment
// it is as particular about names as Django.
func health(w http.ResponseWriter, r *http.Request) {
	checks.Add(1)
	if host := os.Getenv("ALLOWED_HOST"); host != "" && r.Host != host {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "<html><head><title>DisallowedHost at /ht/</title></head><body><h1>Bad Request (400)</h1></body></html>")
		return
	}
	switch n := sick.Load(); {
	case n > 0:
		sick.Add(-1)
		fallthrough
	case n < 0:
		http.Error(w, "no database", http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "well")
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ht/", health)
	mux.HandleFunc("/sicken", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		sick.Store(n)
	})
	mux.HandleFunc("/checks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, checks.Load()) })
	// /replay answers the header of ?h=, or the JSON document of ?j=, once:
	// a request that was replayed is echoed, unless it asks for a loop.
	mux.HandleFunc("/replay", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		replayed := r.Header.Get("Fly-Replay-Src") != "" || r.Header.Get("Fly-Replay-Failed") != ""
		if replayed && q.Get("loop") == "" || q.Get("only") != "" && q.Get("only") != os.Getenv("FLY_MACHINE_ID") {
			echo(w, r)
			return
		}
		if j := q.Get("j"); j != "" {
			w.Header().Set("Content-Type", "application/vnd.fly.replay+json")
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, j)
			return
		}
		w.Header().Set("Fly-Replay", q.Get("h"))
		w.Header().Set("Set-Cookie", "issuer=1") // must never reach the client
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, "the client must not see this")
	})
	mux.HandleFunc("/eat", func(w http.ResponseWriter, r *http.Request) {
		mb, _ := strconv.Atoi(r.URL.Query().Get("mb"))
		eat(mb)
		fmt.Fprintln(w, "eaten", mb)
	})
	mux.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(9) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("d"))
		slow.Add(1)
		defer slow.Add(-1)
		w.Header().Set("Began", strconv.FormatInt(time.Now().UnixMilli(), 10))
		select {
		case <-time.After(d):
			w.Header().Set("Ended", strconv.FormatInt(time.Now().UnixMilli(), 10))
			fmt.Fprintln(w, "slept", d, "at", os.Getenv("FLY_MACHINE_ID"))
		case <-r.Context().Done():
		}
	})
	// /stay says at once where the request is, and keeps it until the client goes.
	mux.HandleFunc("/stay", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "at", os.Getenv("FLY_MACHINE_ID"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		rc := http.NewResponseController(w)
		for i := range n {
			fmt.Fprintf(w, "part %d\n", i)
			if rc.Flush() != nil {
				return
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { // PUT writes, GET reads
		path := r.URL.Query().Get("path")
		if r.Method == http.MethodPut {
			data, _ := io.ReadAll(r.Body)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
			return
		}
		data, err := os.ReadFile(path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_, _ = w.Write(data)
	})
	mux.HandleFunc("/download", func(w http.ResponseWriter, r *http.Request) {
		mb, _ := strconv.Atoi(r.URL.Query().Get("mb"))
		chunk := make([]byte, 1<<20)
		for range mb {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) { // one event, then silence
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: hello\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) { // echoes messages
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				fmt.Println("websocket ended:", websocket.CloseStatus(err))
				return
			}
			if err := c.Write(r.Context(), kind, data); err != nil {
				return
			}
		}
	})
	// /slows answers 200 when ?n= requests to /slow are in flight.
	mux.HandleFunc("/slows", func(w http.ResponseWriter, r *http.Request) {
		if n := strconv.FormatInt(slow.Load(), 10); n != r.URL.Query().Get("n") {
			http.Error(w, n+" requests to /slow", http.StatusConflict)
		}
	})
	mux.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) {
		d := net.Dialer{Timeout: dialTimeout}
		c, err := d.DialContext(r.Context(), r.URL.Query().Get("net"), r.URL.Query().Get("addr"))
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprintln(w, err)
			return
		}
		_ = c.Close()
		fmt.Fprintln(w, "connected")
	})
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		hc := &http.Client{Timeout: 20 * time.Second}
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.Query().Get("url"), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if token := r.URL.Query().Get("token"); token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := hc.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
	mux.HandleFunc("/reverse", func(w http.ResponseWriter, r *http.Request) {
		names, err := net.DefaultResolver.LookupAddr(r.Context(), r.URL.Query().Get("ip"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		fmt.Fprintln(w, strings.Join(names, " "))
	})
	mux.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		addrs, err := net.DefaultResolver.LookupHost(r.Context(), r.URL.Query().Get("name"))
		if err != nil {
			var de *net.DNSError
			if errors.As(err, &de) && de.IsNotFound {
				w.WriteHeader(http.StatusNotFound)
			} else {
				w.WriteHeader(http.StatusBadGateway)
			}
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, strings.Join(addrs, " "))
	})
	mux.HandleFunc("/self", func(w http.ResponseWriter, r *http.Request) { // a call to /.fly/api
		hc := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", "/.fly/api")
		}}}
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://flaps"+r.URL.Query().Get("path"), r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		resp, err := hc.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
	mux.HandleFunc("/", echo)
	return mux
}

func echo(w http.ResponseWriter, r *http.Request) {
	e := Echo{Machine: os.Getenv("FLY_MACHINE_ID"), Method: r.Method, URI: r.RequestURI, Host: r.Host, Header: r.Header, Number: requests.Add(1)}
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		for _, b := range buf[:n] {
			e.Sum = e.Sum*31 + uint32(b)
		}
		e.Body += int64(n)
		if err != nil {
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(e)
}
