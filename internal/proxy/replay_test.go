package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
)

// echo answers with the machine's name and what it got.
func echo(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s len=%d", name, r.Method, r.URL.RequestURI(), len(data))
		for _, h := range []string{"Fly-Replay-Src", "Fly-Replay-Failed", "Fly-Preferred-Instance-Unavailable", "X-A", "Cookie"} {
			if v := r.Header.Get(h); v != "" {
				fmt.Fprintf(w, " %s=[%s]", h, v)
			}
		}
	}
}

// replayer answers with a fly-replay header, unless the request was replayed.
func replayer(value func() string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Fly-Replay-Src") != "" || r.Header.Get("Fly-Replay-Failed") != "" {
			echo("issuer")(w, r)
			return
		}
		w.Header().Set("Fly-Replay", value())
		w.Header().Set("Set-Cookie", "secret=1")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, "never seen")
	}
}

func jsonReplayer(body func() string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.fly.replay+json; charset=utf-8")
		_, _ = io.WriteString(w, body())
	}
}

func region(r root.Region) func(*root.Machine) { return func(m *root.Machine) { m.Region = r } }

// forceFirst sends a request to the issuer, whatever else there is.
func forceFirst(m *fakeMachine) func(*http.Request) {
	return header("Fly-Force-Instance-Id", string(m.record.ID))
}

// TestReplayFields has one case for each field: it fails when the field is
// ignored.
func TestReplayFields(t *testing.T) {
	for _, c := range []struct {
		name   string
		value  string // %[1]s: id of target, %[2]s: of issuer
		json   bool
		status int
		want   string // regular expression
	}{
		{"instance", "instance=%[1]s", false, 200, `^target GET /p\?q=1 len=0 Fly-Replay-Src=\[instance=%[2]s;region=loc;t=\d{16}\] X-A=\[old\]`},
		{"region", "region=fra", false, 200, `^target `},
		{"region list", `region="ams,fra"`, false, 200, `^target `},
		{"region alias", "region=eu", false, 200, `^target `},
		{"region without fallback", "region=ams", false, 503, `regions asked for \(ams\)`},
		{"region with any", `region="ams,any"`, false, 200, `^(issuer|target|third) `},
		{"prefer_instance", "prefer_instance=%[1]s", false, 200, `^target `},
		{"prefer_instance gone", "prefer_instance=00000000ffffff", false, 200, `Fly-Preferred-Instance-Unavailable=\[00000000ffffff\]`},
		{"app", "app=other", false, 200, `^other `},
		{"state", "instance=%[1]s;state=my state", false, 200, `;state=my state\]`},
		{"elsewhere", "elsewhere=true", false, 200, `^(target|third) `},
		{"timeout", "instance=%[3]s;timeout=100ms", false, 503, `did not come up within`},
		{"fallback force_self", "instance=%[3]s;timeout=100ms;fallback=force_self", false, 200,
			`^issuer .*Fly-Replay-Failed=\[instance=%[3]s;app=shop;region=;replay_source=%[2]s;reason=timeout;elapsed_ms=\d+\] `},
		{"fallback prefer_self", "region=ams;fallback=prefer_self", false, 200, `^issuer .*reason=no_candidate`},
		{"json instance", `{"instance":"%[1]s","state":"s"}`, true, 200, `^target .*;state=s\]`},
		{"transform path", `{"instance":"%[1]s","transform":{"path":"/other?x=2"}}`, true, 200, `^target GET /other\?x=2 `},
		{"transform headers", `{"instance":"%[1]s","transform":{"delete_headers":["Cookie","X-A"],"set_headers":[{"name":"X-A","value":"new"}]}}`, true, 200, `X-A=\[new\]$`},
		{"malformed header", "instance=%[1]s;nonsense=1", false, 502, `unknown field "nonsense"`},
		{"malformed json", `{"instance":`, true, 502, `not valid`},
		{"unknown app", "app=nobody", false, 502, `app nobody, which does not exist`},
		{"other organisation", "app=foreign", false, 502, `different organisations`},
		{"other network", "app=apart", false, 502, `different private networks`},
		{"unknown instance", "instance=00000000ffffff", false, 502, `has no machine 00000000ffffff`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var value string
			handler := replayer(func() string { return value })
			if c.json {
				handler = jsonReplayer(func() string { return value })
			}
			issuer := w.machine("shop", root.StateStarted, handler)
			target := w.machine("shop", root.StateStarted, echo("target"), region("fra"))
			w.machine("shop", root.StateStarted, echo("third"), region("syd"))
			stuck := w.machine("shop", root.StateStarting, echo("stuck"))
			w.app("other", "personal", "default")
			w.machine("other", root.StateStarted, echo("other"))
			w.app("foreign", "acme", "default")
			w.app("apart", "personal", "second")
			fill := func(s string) string {
				s = strings.ReplaceAll(s, "%[1]s", string(target.record.ID))
				s = strings.ReplaceAll(s, "%[2]s", string(issuer.record.ID))
				return strings.ReplaceAll(s, "%[3]s", string(stuck.record.ID))
			}
			value = fill(c.value)
			resp, body := w.get("/p?q=1", forceFirst(issuer), header("X-A", "old"), header("Cookie", "c=1"), header("Accept", "text/plain"))
			if resp.StatusCode != c.status {
				t.Errorf("status: got %d, want %d (%s)", resp.StatusCode, c.status, body)
			}
			if want := fill(c.want); !regexp.MustCompile(want).MatchString(body) {
				t.Errorf("got %q, want %q", body, want)
			}
			if got := resp.Header.Get("Set-Cookie") + resp.Header.Get("Fly-Replay"); got != "" || strings.Contains(body, "never seen") {
				t.Errorf("the issuer's answer reached the client: %q %q", got, body)
			}
		})
	}
}

func TestReplayCodes(t *testing.T) {
	w := newWorld(t)
	loop := w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/unread" {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		rw.Header().Set("Fly-Replay", "app=shop")
	})
	resp, body := w.get("/")
	if resp.StatusCode != http.StatusBadGateway || resp.Header.Get("Roost-Error") != "PA02" {
		t.Errorf("loop: got %d %s %q, want 502 PA02", resp.StatusCode, resp.Header.Get("Roost-Error"), body)
	}
	if loop.accepts > 2 {
		t.Errorf("the replaying machine saw %d connections for one request, want them reused", loop.accepts)
	}
	// A body beyond what is kept, however much of it the app has read.
	for _, path := range []string{"/", "/unread"} {
		resp, body = w.do(w.client(), http.MethodPost, path, bytes.NewReader(make([]byte, 12<<20)))
		if resp.StatusCode != http.StatusRequestEntityTooLarge || resp.Header.Get("Roost-Error") != "PA01" {
			t.Errorf("12 MB to %s: got %d %s %q, want 413 PA01", path, resp.StatusCode, resp.Header.Get("Roost-Error"), body)
		}
	}
}

// TestReplayBody sends bodies of all sizes, with and without a length, to a
// machine that replays before, while and after it reads them.
func TestReplayBody(t *testing.T) {
	for _, size := range []int{0, 1, 1000, 64 << 10, 65 << 10, 2 << 20} {
		for _, chunked := range []bool{false, true} {
			for _, read := range []int{0, 10, 100 << 20} {
				t.Run(fmt.Sprintf("%d bytes, chunked %v, %d read", size, chunked, read), func(t *testing.T) {
					t.Parallel()
					w := newWorld(t)
					want := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
					target := w.machine("shop", root.StateSuspended, func(rw http.ResponseWriter, r *http.Request) {
						got, err := io.ReadAll(r.Body)
						fmt.Fprintf(rw, "same=%v err=%v", bytes.Equal(got, want), err)
					})
					issuer := w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, r *http.Request) {
						_, _ = io.CopyN(io.Discard, r.Body, int64(read))
						rw.Header().Set("Fly-Replay", "instance="+string(target.record.ID))
						rw.WriteHeader(http.StatusTeapot)
					})
					var body io.Reader = bytes.NewReader(want)
					if chunked {
						body = io.MultiReader(body)
					}
					_, got := w.do(w.client(), http.MethodPost, "/", body, forceFirst(issuer))
					if got != "same=true err=<nil>" {
						t.Errorf("got %q", got)
					}
				})
			}
		}
	}
}

// TestElsewhereAlone replays elsewhere where there is no elsewhere.
func TestElsewhereAlone(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, replayer(func() string { return "elsewhere=true" }))
	w.wantFailure(http.StatusServiceUnavailable, "PR03", "no other machine of app shop")
}

// TestReplayToNew replays to a machine whose record comes a moment later.
func TestReplayToNew(t *testing.T) {
	w := newWorld(t)
	w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		next := fmt.Sprintf("%014x", lastMachine.Load()+1)
		time.AfterFunc(50*time.Millisecond, func() { w.machine("shop", root.StateStopped, answer("new")) })
		rw.Header().Set("Fly-Replay", "instance="+next)
	})
	if resp, body := w.get("/"); body != "new" {
		t.Errorf("got %d %q, want new", resp.StatusCode, body)
	}
}
