package machines_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/roost-run/roost/machines"
)

// api stands in for the Machines API.
func api() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"error":"machine name worker is taken"}`)
			return
		}
		_, _ = io.WriteString(w, `[{"id":"148e1234c56789","name":"worker","state":"suspended"}]`)
	}))
}

// Get a machine by its name, or make it. Whoever else does the same at this
// moment, there is one machine of that name.
func ExampleClient_Create() {
	server := api()
	defer server.Close()
	ctx := context.Background()
	client := machines.New(machines.Options{BaseURL: server.URL, Token: "roost_..."}) // inside a machine: Options{}

	m, err := client.Create(ctx, "shop", machines.CreateRequest{
		Name: "worker",
		Config: machines.Config{
			Image: "registry.localhost/shop:1",
			Guest: &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 256},
			Services: []machines.Service{{
				Protocol: "tcp", InternalPort: 8080, Autostop: machines.AutostopSuspend,
				Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}},
			}},
		},
	})
	if machines.StatusOf(err) == http.StatusConflict { // somebody was faster
		m, err = client.Find(ctx, "shop", "worker")
	}
	if err != nil || m == nil {
		fmt.Println("no worker:", err)
		return
	}
	fmt.Println(m.ID, m.State)
	// Output: 148e1234c56789 suspended
}
