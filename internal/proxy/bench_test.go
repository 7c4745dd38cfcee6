package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy"
)

// BenchmarkRequest is one request on a kept-alive connection, 1 KB back. The
// machine is in this process too.
func BenchmarkRequest(b *testing.B) {
	w := newWorld(b, func(o *proxy.Options) { o.Access = func(*proxy.Record) {} })
	text := string(make([]byte, 1024))
	w.machine("shop", root.StateStarted, answer(text))
	c := w.dial()
	r := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		discard(b, r)
	}
}

// BenchmarkReplay is a request that one machine replays to another.
func BenchmarkReplay(b *testing.B) {
	w := newWorld(b, func(o *proxy.Options) { o.Access = func(*proxy.Record) {} })
	target := w.machine("shop", root.StateStarted, answer("hello"))
	issuer := w.machine("shop", root.StateStarted, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Fly-Replay", "instance="+string(target.record.ID))
	})
	c := w.dial()
	r := bufio.NewReader(c)
	head := fmt.Sprintf("GET / HTTP/1.1\r\nHost: shop.localhost\r\nFly-Force-Instance-Id: %s\r\n\r\n", issuer.record.ID)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.WriteString(c, head); err != nil {
			b.Fatal(err)
		}
		discard(b, r)
	}
}

// BenchmarkWake is a request to a fake machine that is suspended each time.
func BenchmarkWake(b *testing.B) {
	w := newWorld(b, func(o *proxy.Options) { o.Access = func(*proxy.Record) {} })
	m := w.machine("shop", root.StateSuspended, answer("hello"))
	c := w.dial()
	r := bufio.NewReader(c)
	for b.Loop() {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		discard(b, r)
		b.StopTimer()
		m.suspend()
		b.StartTimer()
	}
}

func discard(b *testing.B, r *bufio.Reader) {
	b.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b.Fatal(resp.Status)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		b.Fatal(err)
	}
}
