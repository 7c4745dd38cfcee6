// Command app is the static program in the machines that the benchmarks wake:
// it answers 1 KB, and sends a request on to another machine when asked to.
package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
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
