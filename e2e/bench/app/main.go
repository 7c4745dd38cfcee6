// Command app is the static program in the machines that the benchmarks wake:
// it answers 1 KB, and sends a request on to another machine when asked to. As
// a step of a build ("burn DURATION") it keeps every processor, and the disk, busy.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "burn" {
		burn(os.Args[2])
		return
	}
	body := bytes.Repeat([]byte("0123456789abcdef"), 64)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(body)
	})
	// The issuer answers with a replay, the target with the page.
	mux.HandleFunc("/replay", func(w http.ResponseWriter, r *http.Request) {
		target := r.URL.Query().Get("to")
		if target == os.Getenv("FLY_MACHINE_ID") {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write(body)
			return
		}
		w.Header().Set("Fly-Replay", "instance="+target)
		w.WriteHeader(http.StatusConflict)
	})
	s := &http.Server{Addr: "0.0.0.0:8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
	os.Exit(1)
}

// burn does what a heavy build does: more threads than processors, and files.
func burn(duration string) {
	d, err := time.ParseDuration(duration)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for i := range 2 * runtime.NumCPU() {
		wg.Go(func() {
			data := make([]byte, 16<<20)
			for time.Now().Before(end) {
				sum := sha256.Sum256(data)
				copy(data[i:], sum[:])
				if err := os.WriteFile(fmt.Sprintf("/tmp/burn-%d", i), data, 0o600); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		})
	}
	wg.Wait()
}
