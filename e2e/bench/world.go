package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// world is a running instance and what the measurements need of it.
type world struct {
	*instance.Instance
	api        *machines.Client
	supervisor *http.Client
	edge       *conn // kept alive through all measurements
	report     *report
}

const helloImage, djangoImage = "registry.localhost/hello:latest", "registry.localhost/django:latest"

// patience is how long anything may take before the run is given up.
const patience = time.Minute

func newWorld(in *instance.Instance, r *report) *world {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(in.Run(), "supervisor.sock"))
	}
	return &world{
		Instance:   in,
		api:        machines.New(machines.Options{BaseURL: "unix://" + filepath.Join(in.Run(), "api.sock")}),
		supervisor: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: patience},
		report:     r,
	}
}

func (w *world) close() {
	w.supervisor.CloseIdleConnections()
	if w.edge != nil {
		w.edge.Close()
	}
}

// router is the file of the router's network namespace, where the edge is.
func (w *world) router() string { return filepath.Join(w.Run(), "netns", "router") }

// web is a config with port 80 served by port 8080 inside, which sleeps only
// when told to.
func web(image string) machines.Config {
	return machines.Config{Image: image, Services: []machines.Service{{
		Protocol: "tcp", InternalPort: 8080, Autostop: "off", Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}},
		Concurrency: &machines.Concurrency{Type: "requests"},
	}}}
}

// run makes a machine of a new or known app and waits until it answers.
func (w *world) run(ctx context.Context, app string, c machines.Config) (*machines.Machine, error) {
	if _, err := w.api.App(ctx, app); err != nil {
		if _, err := w.api.CreateApp(ctx, machines.CreateAppRequest{Name: app, OrgSlug: "personal"}); err != nil {
			return nil, err
		}
	}
	m, err := w.api.Create(ctx, app, machines.CreateRequest{Config: c})
	if err != nil {
		return nil, err
	}
	_, err = w.ask(app, "/", "Fly-Force-Instance-Id", m.ID)
	return m, err
}

// slot is the server process's account of a machine.
type slot struct {
	Phase         string
	PID           int
	Reclaimed     bool
	Running, Next *boot
}

type boot struct {
	Bundle string
	IPv4   string
}

// order speaks to the server process as the edge does.
func (w *world) order(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://roost/v1"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.supervisor.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, data)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

func (w *world) slot(ctx context.Context, m *machines.Machine) (slot, error) {
	var s slot
	return s, w.order(ctx, http.MethodGet, "/instances/"+m.InstanceID, nil, &s)
}

// until polls the account of a machine.
func (w *world) until(ctx context.Context, m *machines.Machine, what string, ok func(slot) bool) (slot, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("machine %s was not %s within %s", m.ID, what, patience))
	defer cancel()
	for {
		s, err := w.slot(ctx, m)
		if err != nil || ok(s) {
			return s, err
		}
		if err := instance.Pause(ctx, 5*time.Millisecond); err != nil {
			return s, err
		}
	}
}

// settle lets the host come to rest, so that what follows one measurement is
// not measured by the next.
func settle(ctx context.Context) error { return instance.Pause(ctx, 200*time.Millisecond) }

// rested waits until every process of the platform knows that a machine runs:
// an answer can be here before the news of the wake are.
func (w *world) rested(ctx context.Context, app string, m *machines.Machine) error {
	if _, err := w.until(ctx, m, "started", func(s slot) bool { return s.Phase == "started" }); err != nil {
		return err
	}
	_, err := w.api.Wait(ctx, app, m.ID, machines.WaitOptions{State: machines.StateStarted, Timeout: patience})
	return err
}

// suspend freezes a machine and, if wanted, gives its memory back.
func (w *world) suspend(ctx context.Context, app string, m *machines.Machine, reclaim bool) error {
	if err := w.rested(ctx, app, m); err != nil {
		return err
	}
	if err := w.api.Suspend(ctx, app, m.ID); err != nil {
		return err
	}
	if _, err := w.until(ctx, m, "suspended", func(s slot) bool { return s.Phase == "suspended" }); err != nil {
		return err
	}
	if !reclaim {
		return nil
	}
	if err := w.order(ctx, http.MethodPost, "/instances/"+m.InstanceID+"/reclaim", nil, nil); err != nil {
		return err
	}
	_, err := w.until(ctx, m, "reclaimed", func(s slot) bool { return s.Reclaimed })
	return err
}

// stop stops a machine and waits until its next boot is prepared.
func (w *world) stop(ctx context.Context, app string, m *machines.Machine) (slot, error) {
	if err := w.rested(ctx, app, m); err != nil {
		return slot{}, err
	}
	if err := w.api.Stop(ctx, app, m.ID, machines.StopRequest{}); err != nil {
		return slot{}, err
	}
	return w.until(ctx, m, "stopped and prepared", func(s slot) bool { return s.Phase == "stopped" && s.Next != nil })
}

// stats is what the kernel accounts to a machine.
type stats struct {
	Memory int64 // resident, cache included
	Swap   int64
}

func (w *world) stats(ctx context.Context, m *machines.Machine) (stats, error) {
	var s stats
	return s, w.order(ctx, http.MethodGet, "/instances/"+m.InstanceID+"/stats", nil, &s)
}

// conn is a connection that repeats nothing and takes the time of first bytes.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func newConn(c net.Conn) *conn { return &conn{c, bufio.NewReader(c)} }

// ask sends a request and returns the time to the first byte of its answer.
func (c *conn) ask(host, path string, status int, header ...string) (ttfb time.Duration, closing bool, err error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n", path, host)
	for i := 0; i+1 < len(header); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", header[i], header[i+1])
	}
	b.WriteString("\r\n")
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, false, err
	}
	begin := time.Now()
	if _, err := c.Write(b.Bytes()); err != nil {
		return 0, false, err
	}
	if _, err := c.r.Peek(1); err != nil {
		return 0, false, err
	}
	ttfb = time.Since(begin)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, false, err
	}
	if resp.StatusCode != status {
		return 0, false, fmt.Errorf("GET %s%s: status %d, want %d: %.300s", host, path, resp.StatusCode, status, body)
	}
	return ttfb, resp.Close, nil
}

// ask asks an app through the edge.
func (w *world) ask(app, path string, header ...string) (time.Duration, error) {
	if w.edge == nil {
		c, err := net.DialTimeout("tcp", w.Edge, patience)
		if err != nil {
			return 0, err
		}
		w.edge = newConn(c)
	}
	ttfb, closing, err := w.edge.ask(app+".localhost", path, http.StatusOK, header...)
	if err != nil || closing {
		err = errors.Join(err, w.edge.Close())
		w.edge = nil
	}
	return ttfb, err
}

// direct connects to a machine's port as the edge does, past the edge.
func (w *world) direct(addr string) (c *conn, err error) {
	err = inNamespace(w.router(), func() error {
		n, err := net.DialTimeout("tcp", addr, patience)
		if err == nil {
			c = newConn(n)
		}
		return err
	})
	return c, err
}
