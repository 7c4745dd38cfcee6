package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// testPurchases keeps the tests short, under the race detector too.
const testPurchases = 300

func newStore(tb testing.TB) *store {
	tb.Helper()
	s, err := openStore(tb.Context(), testPurchases)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.close)
	return s
}

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w
}

// tool runs a program of poppler-utils on a document.
func tool(t *testing.T, name string, document []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "document.pdf")
	if err := os.WriteFile(file, document, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{file}
	if name == "pdftotext" {
		args = []string{"-layout", file, "-"}
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s (of Debian's poppler-utils): %v\n%s", name, err, out)
	}
	return string(out)
}

func pages(t *testing.T, document []byte) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^Pages: +(\d+)$`).FindStringSubmatch(tool(t, "pdfinfo", document))
	if m == nil {
		t.Fatal("pdfinfo does not say how many pages there are")
	}
	return m[1]
}

func TestPages(t *testing.T) {
	h := newSite(newStore(t), "148e1234c56789", "b1", slog.New(slog.DiscardHandler))
	tests := map[string]struct {
		status int
		want   string
	}{
		"/":                     {200, "Walnut egg cup"},
		"/purchases":            {200, `href="/purchases/300"`},
		"/purchases?page=12":    {200, "Page 12 of 12"},
		"/purchases?page=13":    {200, "Page 1 of 12"},
		"/purchases/7":          {200, "Purchase 7"},
		"/purchases/0":          {404, "There is nothing at this address"},
		"/purchases/x":          {404, "There is nothing at this address"},
		"/purchases/9999":       {404, "There is nothing at this address"},
		"/purchases/0/receipt":  {404, "There is nothing at this address"},
		"/nothing":              {404, "There is nothing at this address"},
		"/healthz":              {200, "ok"},
		"/static/style.css":     {200, "--accent"},
		"/static/../main.go":    {307, ""},
		"/purchases/7/receipts": {404, "nothing"},
	}
	for path, tt := range tests {
		t.Run(path, func(t *testing.T) {
			w := get(t, h, path)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("got %d %.300q, want %d with %q", w.Code, w.Body, tt.status, tt.want)
			}
			if got := w.Header().Get("Store-Machine"); got != "148e1234c56789" {
				t.Errorf("Store-Machine: got %q", got)
			}
			if got := w.Header().Get("Store-Boot"); got != "b1" {
				t.Errorf("Store-Boot: got %q", got)
			}
		})
	}
}

func TestReceipt(t *testing.T) {
	s := newStore(t)
	h := newSite(s, "local", "b1", slog.New(slog.DiscardHandler))
	for id, wantPages := range map[int]string{7: "1", longEvery: "2"} {
		p, err := s.purchase(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		w := get(t, h, fmt.Sprintf("/purchases/%d/receipt", id))
		if got := w.Header().Get("Content-Type"); w.Code != 200 || got != "application/pdf" {
			t.Fatalf("receipt %d: got %d %s", id, w.Code, got)
		}
		if got := pages(t, w.Body.Bytes()); got != wantPages {
			t.Errorf("receipt %d: got %s pages, want %s", id, got, wantPages)
		}
		text := tool(t, "pdftotext", w.Body.Bytes())
		sum := Cents(0)
		for _, item := range p.Items {
			sum += item.Total()
			if !strings.Contains(text, item.Product) {
				t.Errorf("receipt %d: %s is missing", id, item.Product)
			}
		}
		if sum != p.Total || !regexp.MustCompile(`Total +`+p.Total.String()).MatchString(text) || !strings.Contains(text, p.Customer) {
			t.Errorf("receipt %d of %s over %s (items: %s): got\n%s", id, p.Customer, p.Total, sum, text)
		}
	}
}

func TestAllReceipts(t *testing.T) {
	s := newStore(t)
	w := get(t, newSite(s, "local", "b1", slog.New(slog.DiscardHandler)), "/purchases/receipts")
	long := testPurchases / longEvery // two pages each
	if got, want := pages(t, w.Body.Bytes()), fmt.Sprint(testPurchases+long+1); got != want {
		t.Errorf("got %s pages, want %s", got, want)
	}
	all, err := s.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := Cents(0)
	for _, p := range all {
		sum += p.Total
	}
	text := tool(t, "pdftotext", w.Body.Bytes())
	for _, want := range []string{"Receipt 1\n", fmt.Sprintf("Receipt %d\n", testPurchases), "Summary", sum.String()} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

// TestSameEverywhere: machines do not share a database, so each has to have
// the same purchases.
func TestSameEverywhere(t *testing.T) {
	var documents [2]bytes.Buffer
	for i := range documents {
		p, err := newStore(t).purchase(t.Context(), 234)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeReceipts(&documents[i], receiptTitle(p), []Purchase{p}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(documents[0].Bytes(), documents[1].Bytes()) {
		t.Error("two machines make different receipts of one purchase")
	}
}

// TestShutdown: a request in flight is answered before the process ends. In
// flight is one whose handler runs: what net/http has not read whole when it
// shuts down it drops, which the platform's proxy and not the app makes up for.
func TestShutdown(t *testing.T) {
	site := newSite(newStore(t), "machine", "boot", slog.New(slog.DiscardHandler))
	began := make(chan struct{})
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(began)
			site.ServeHTTP(w, r)
		}),
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, server, listener, slog.New(slog.DiscardHandler)) }()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /purchases/1/receipt HTTP/1.1\r\nHost: store\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	cancel()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err != nil || !bytes.HasSuffix(bytes.TrimSpace(data), []byte("%%EOF")) {
		t.Errorf("document: %d bytes, %v, want all of it", len(data), err)
	}
	if err := <-ended; err != nil {
		t.Errorf("end: %v", err)
	}
}

// TestServe: the whole program listens where PORT says, answers and ends.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	address, ended := make(chan net.Addr, 1), make(chan error, 1)
	env := map[string]string{"PORT": "0", "SERVERLESS_STOP_AFTER": "1m", "PURCHASES": "300"}
	go func() {
		ended <- run(ctx, func(name string) string { return env[name] }, slog.New(slog.DiscardHandler), func(a net.Addr) { address <- a })
	}()
	select {
	case err := <-ended:
		t.Fatal(err)
	case a := <-address:
		url := fmt.Sprintf("http://127.0.0.1:%d/healthz", a.(*net.TCPAddr).Port)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("health: %s", resp.Status)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("end: %v", err)
	}
}

func TestCount(t *testing.T) {
	var out bytes.Buffer
	if err := printCount(t.Context(), &out); err != nil || out.String() != "2400 purchases\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestBadEnvironment(t *testing.T) {
	for variable, value := range map[string]string{"SERVERLESS_STOP_AFTER": "soon", "PURCHASES": "many"} {
		getenv := func(name string) string {
			if name == variable {
				return value
			}
			return ""
		}
		if err := run(t.Context(), getenv, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("%s=%s: got %v, want the variable named", variable, value, err)
		}
	}
}

func BenchmarkOpenStore(b *testing.B) {
	for b.Loop() {
		s, err := openStore(b.Context(), defaultPurchases)
		if err != nil {
			b.Fatal(err)
		}
		s.close()
	}
}

func BenchmarkAllReceipts(b *testing.B) {
	s, err := openStore(b.Context(), defaultPurchases)
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	all, err := s.all(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := writeReceipts(io.Discard, "All", all); err != nil {
			b.Fatal(err)
		}
	}
}
