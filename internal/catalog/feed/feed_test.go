package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/ipc"
	"github.com/roost-run/roost/internal/patience"
)

const secret = "hunter2"

func machine(id root.MachineID, state root.State, seq uint64) *root.Machine {
	return &root.Machine{
		ID: id, App: "shop", Org: "personal", Name: "m-" + string(id),
		Spec: root.Spec{
			Source: []byte(`{"env":{"KEY":"` + secret + `"}}`),
			Config: root.Config{
				Image: "debian", Env: map[string]string{"KEY": secret}, Init: root.Init{Cmd: []string{secret}},
				Files:    []root.File{{GuestPath: "/key", Content: []byte(secret)}},
				Process:  &root.Process{Env: map[string]string{"KEY": secret}},
				Services: []root.Service{{Protocol: "tcp", InternalPort: 8080, Autostart: true}},
			},
		},
		Status: root.Status{State: state, Stamp: root.Stamp{Boot: 1, Seq: seq}},
		Lease:  &root.Lease{Nonce: secret, Owner: "me"},
	}
}

// control serves a catalog on a socket until stop is called.
func control(t *testing.T, path string, h http.Handler) (stop func()) {
	t.Helper()
	l, err := ipc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, h)
	s := ipc.NewServer(mux)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

type edge struct {
	cat  *catalog.Catalog
	stop func()
}

func startEdge(t *testing.T, socket, file string) edge {
	t.Helper()
	c := ipc.NewClient(socket)
	t.Cleanup(c.Close)
	e := edge{cat: catalog.New(root.NewSnapshot())}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Client: c, Catalog: e.cat, File: file, Log: slog.New(slog.DiscardHandler)})
	}()
	stopped := false
	e.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: got %v, want the context's cause", err)
		}
	}
	t.Cleanup(e.stop)
	return e
}

// wait waits until the edge's catalog is as wanted.
func (e edge) wait(t *testing.T, what string, done func(*root.Snapshot) bool) *root.Snapshot {
	t.Helper()
	if err := e.cat.Wait(patience.Context(t), done); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
	return e.cat.Snapshot()
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "roost-feed-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "control.sock")
}

func state(id root.MachineID, want root.State) func(*root.Snapshot) bool {
	return func(s *root.Snapshot) bool { m := s.Machine(id); return m != nil && m.Status.State == want }
}

// TestFeed follows the life of an edge: with control, without it, with the
// next one, and started again from the last state.
func TestFeed(t *testing.T) {
	t.Parallel()
	socket, file := socketPath(t), filepath.Join(t.TempDir(), "catalog.json")
	cat := catalog.New(root.NewSnapshot().With(7,
		root.Change{App: &root.App{Name: "shop", Org: "personal"}}, root.Change{Host: &root.Host{ID: "aaaaaaaa"}},
		root.Change{Machine: machine("a", root.StateStopped, 1)}, root.Change{Machine: machine("b", root.StateStopped, 1)}))
	stopControl := control(t, socket, Handler(cat))
	e := startEdge(t, socket, file)
	s := e.wait(t, "the snapshot", func(s *root.Snapshot) bool { return s.Revision() == 7 })
	if s.App("shop") == nil || s.Host("aaaaaaaa") == nil || s.Machine("a") == nil || !s.Machine("a").Spec.Config.Services[0].Autostart {
		t.Error("the edge lacks part of the snapshot")
	}
	if dump := fmt.Sprintf("%+v %+v %+v", *s.Machine("a"), s.Machine("a").Spec.Config, s.Machine("a").Lease); strings.Contains(dump, secret) {
		t.Errorf("a secret reached the edge: %s", dump)
	}
	if l := s.Machine("a").Lease; l == nil || l.Owner != "me" {
		t.Errorf("lease: got %+v, want one without its nonce", l)
	}

	cat.Apply(8, root.Change{Machine: machine("a", root.StateStarted, 2)}, root.Change{Machine: machine("c", root.StateStopped, 1)}, root.Change{HostForgotten: "aaaaaaaa"})
	s = e.wait(t, "a change", state("a", root.StateStarted))
	if s.Machine("c") == nil || s.Host("aaaaaaaa") != nil || s.Revision() != 8 {
		t.Errorf("got %d machines at %d, want all of revision 8", len(s.Machines("shop")), s.Revision())
	}
	cat.Apply(9) // changes nothing that the edge sees
	e.wait(t, "a revision", func(s *root.Snapshot) bool { return s.Revision() == 9 })

	// Control dies. The supervisor's news still arrive; meanwhile b goes.
	stopControl()
	e.cat.PutStatus("a", root.Status{State: root.StateSuspended, Stamp: root.Stamp{Boot: 1, Seq: 3}})
	cat.Apply(10, root.Change{MachineGone: "b"}, root.Change{Machine: machine("c", root.StateStarted, 2)})
	stopControl = control(t, socket, Handler(cat))
	s = e.wait(t, "the next control", state("c", root.StateStarted))
	if s.Machine("b") != nil {
		t.Error("a machine that went while control was away is still there")
	}
	if got := s.Machine("a").Status.State; got != root.StateSuspended {
		t.Errorf("a: got %s, want the newer suspended", got)
	}

	// An edge without control starts from the file.
	stopControl()
	e.stop()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte(secret)) {
		t.Error("the file has a secret")
	}
	e = startEdge(t, socket, file)
	s = e.wait(t, "the last state", state("a", root.StateSuspended))
	if s.Machine("c") == nil || s.Machine("b") != nil || s.App("shop") == nil || s.Revision() != 10 {
		t.Errorf("from disk: got %d machines at %d, want two at 10", len(s.Machines("shop")), s.Revision())
	}
}

// TestLargeSnapshot needs several lines.
func TestLargeSnapshot(t *testing.T) {
	t.Parallel()
	socket := socketPath(t)
	var changes []root.Change
	for i := range 3*batch + 1 {
		changes = append(changes, root.Change{Machine: machine(root.MachineID(fmt.Sprint(i)), root.StateStopped, 1)})
	}
	cat := catalog.New(root.NewSnapshot().With(1, changes...))
	control(t, socket, Handler(cat))
	e := startEdge(t, socket, "")
	e.wait(t, "the snapshot", func(s *root.Snapshot) bool {
		if n := len(s.Machines("shop")); n != 0 && n != len(changes) {
			t.Errorf("saw %d machines, want none or all %d", n, len(changes))
		}
		return len(s.Machines("shop")) == len(changes)
	})
	for i := range changes {
		changes[i].Machine = machine(changes[i].Machine.ID, root.StateStarted, 2)
	}
	cat.Apply(2, changes...)
	s := e.wait(t, "the changes", func(s *root.Snapshot) bool { return s.Revision() == 2 })
	for m := range s.AllMachines() {
		if m.Status.State != root.StateStarted {
			t.Fatalf("%s at revision 2: got %s, want started", m.ID, m.Status.State)
		}
	}
}

func TestBadFile(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"torn": `{"Format":1,"Full":true,"Done":true,"Revision":7,"Cha`, "empty": "", "other format": `{"Format":99,"Full":true,"Done":true,"Revision":7}`,
		"part": `{"Format":1,"Full":true,"Revision":7}`, "no object": `7`,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "catalog.json")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			cat := catalog.New(root.NewSnapshot())
			Load(Options{Catalog: cat, File: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
			if cat.Snapshot().Revision() != 0 {
				t.Errorf("revision: got %d, want 0", cat.Snapshot().Revision())
			}
			if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), file) {
				t.Errorf("log: got %q, want a warning that names the file", log.String())
			}
		})
	}
	cat := catalog.New(root.NewSnapshot())
	Load(Options{Catalog: cat, File: filepath.Join(t.TempDir(), "none"), Log: slog.New(slog.NewTextHandler(failOnWrite{t}, nil))})
}

// failOnWrite is a log that should stay empty.
type failOnWrite struct{ t *testing.T }

func (f failOnWrite) Write(p []byte) (int, error) {
	f.t.Errorf("unexpected log: %s", p)
	return len(p), nil
}

// TestSlowReader: a reader that does not read is dropped and holds up nobody.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	socket := socketPath(t)
	cat := catalog.New(root.NewSnapshot())
	h := handler(cat, 50*time.Millisecond)
	dropped := make(chan struct{}, 10)
	control(t, socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		if r.Header.Get("Slow") != "" {
			dropped <- struct{}{}
		}
	}))
	e := startEdge(t, socket, "")
	slow, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET "+Path+" HTTP/1.1\r\nHost: roost\r\nSlow: yes\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(patience.Limit)
	for rev := int64(1); ; rev++ {
		m := machine("a", root.StateStarted, uint64(rev))
		m.Status.Message = strings.Repeat("x", 100<<10)
		cat.Apply(rev, root.Change{Machine: m})
		e.wait(t, "the change, beside a slow reader", func(s *root.Snapshot) bool { return s.Revision() >= rev })
		select {
		case <-dropped:
			return
		case <-deadline:
			t.Fatal("the slow reader was not dropped")
		default:
		}
	}
}

func TestForeignFormatIsNotApplied(t *testing.T) {
	t.Parallel()
	socket := socketPath(t)
	asked := make(chan struct{}, 100)
	control(t, socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		_ = ipc.NewStream(w).Send(line{Format: 99, Full: true, Done: true, Revision: 5})
	}))
	e := startEdge(t, socket, "")
	for range 3 { // it keeps asking
		<-asked
	}
	if got := e.cat.Snapshot().Revision(); got != 0 {
		t.Errorf("revision: got %d, want 0", got)
	}
}
