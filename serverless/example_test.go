package serverless_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/roost-run/roost/machines"
	"github.com/roost-run/roost/serverless"
)

// The receipts are heavy, so they get a machine of their own; it is suspended
// after a minute without any.
func ExampleNew() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "welcome") })
	mux.HandleFunc("GET /receipts", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "a large document") })

	s := serverless.New(serverless.Options{
		Routes:   []string{"GET /receipts"},
		IdleStop: time.Minute,
		Guest:    &machines.Guest{CPUKind: "shared", CPUs: 2, MemoryMB: 512},
	})
	defer s.Close()
	handler := s.Wrap(mux) // for http.Server

	// Without the platform, for example on your own computer, all is local.
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/receipts", nil))
	fmt.Print(w.Body)
	// Output: a large document
}

// What an app machine answers: the proxy swallows it and takes the request to
// the machine that it names.
func ExampleServerless_Wrap() {
	api := startPlatform() // a Machines API for tests
	defer api.Close()
	self := api.add("web-1", digestA, machines.StateStarted, &machines.Config{Services: []machines.Service{{InternalPort: 8080}}})
	env := map[string]string{"FLY_APP_NAME": "shop", "FLY_MACHINE_ID": self.ID, "FLY_IMAGE_REF": "registry.localhost/shop:1@" + digestA}

	s := serverless.New(serverless.Options{
		Routes: []string{"GET /receipts"},
		Client: machines.New(machines.Options{BaseURL: api.URL, Token: "roost_..."}),
		Getenv: func(name string) string { return env[name] },
	})
	defer s.Close()
	handler := s.Wrap(http.NotFoundHandler())

	r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/receipts", nil)
	r.Header.Set("Fly-Request-Id", "01JNRQ9VZ0000000000000000-loc") // the proxy sets it
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("Fly-Replay"))
	// Output: 307 instance=00000000000003;timeout=30s;fallback=prefer_self;state=serverless
}
