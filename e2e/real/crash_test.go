package real

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// ownApp makes an app on an instance of one's own.
func ownApp(t *testing.T, i *instance.Instance) string {
	t.Helper()
	const name = "shop"
	_, err := i.AsRoot().CreateApp(t.Context(), machines.CreateAppRequest{Name: name, OrgSlug: "personal"})
	want(t, err)
	return name
}

// up makes a machine on an instance and waits until it runs.
func up(t *testing.T, i *instance.Instance, app string, c machines.Config) *machines.Machine {
	t.Helper()
	m, err := i.AsRoot().Create(t.Context(), app, machines.CreateRequest{Config: c})
	want(t, err)
	_, err = i.AsRoot().Wait(t.Context(), app, m.ID, machines.WaitOptions{Timeout: patience})
	want(t, err)
	return m
}

// answers asks an instance's app once, on a connection of its own.
func answers(i *instance.Instance, app, path string) error {
	l := &instance.Load{Addr: i.Edge}
	c, err := l.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Get(app+".localhost", path, false)
}

// settled waits until every machine of an app is at rest, and returns them.
func settled(t *testing.T, i *instance.Instance, app string) []machines.Machine {
	t.Helper()
	var list []machines.Machine
	eventually(t, func() string {
		var err error
		if list, err = i.AsRoot().List(t.Context(), app, machines.ListOptions{}); err != nil {
			return err.Error()
		}
		for _, m := range list {
			switch m.State {
			case machines.StateStarted, machines.StateStopped, machines.StateSuspended, machines.StateCreated, machines.StateFailed:
			default:
				return fmt.Sprintf("machine %s is %s", m.ID, m.State)
			}
		}
		return ""
	})
	return list
}

// killControl kills the control process, once there is one.
func killControl(t *testing.T, i *instance.Instance) {
	t.Helper()
	eventually(t, func() string {
		if err := i.Kill(t.Context(), "control"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// TestEdgeDrains: an edge that is asked to end lets every request finish.
func TestEdgeDrains(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := ownApp(t, i)
	up(t, i, app, web())
	stop := load(t, i, app)
	for range 3 {
		pid, err := i.PID(t.Context(), "edge")
		want(t, err)
		slow := make(chan error, 1)
		begin := func() { go func() { slow <- answers(i, app, "/slow?d=3s") }() }
		begin()
		eventually(t, func() string {
			err := answers(i, app, "/slows?n=1")
			if err == nil {
				return ""
			}
			select {
			case <-slow: // it was over before it was seen
				begin()
			default:
			}
			return err.Error()
		})
		want(t, syscall.Kill(pid, syscall.SIGTERM))
		if err := <-slow; err != nil {
			t.Errorf("a request in flight: %v", err)
		}
		eventually(t, func() string {
			if now, err := i.PID(t.Context(), "edge"); err != nil || now == pid {
				return fmt.Sprintf("the edge is %d, as before (%v)", now, err)
			}
			return ""
		})
	}
	stop()
}

// TestEverythingKilled: server, control and edge at the same moment. Machines
// live on; the next server adopts them.
func TestEverythingKilled(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := ownApp(t, i)
	runs, sleeps := up(t, i, app, web()), up(t, i, app, web())
	want(t, i.AsRoot().Suspend(t.Context(), app, sleeps.ID))
	_, err := i.AsRoot().Wait(t.Context(), app, sleeps.ID, machines.WaitOptions{State: machines.StateSuspended, Timeout: patience})
	want(t, err)
	want(t, answers(i, app, "/"))
	var pids []int
	for _, process := range []string{"server", "control", "edge"} {
		pid, err := i.PID(t.Context(), process)
		want(t, err)
		pids = append(pids, pid)
	}
	for _, pid := range pids[1:] {
		want(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	want(t, syscall.Kill(pids[0], syscall.SIGKILL))
	want(t, i.Serve(t.Context()))
	list := settled(t, i, app)
	if len(list) != 2 {
		t.Fatalf("got %d machines, want 2", len(list))
	}
	for _, m := range list {
		wantState := map[string]machines.State{runs.ID: machines.StateStarted, sleeps.ID: machines.StateSuspended}[m.ID]
		if m.State != wantState {
			t.Errorf("machine %s: got %s, want %s as before", m.ID, m.State, wantState)
		}
		for _, e := range m.Events {
			if e.Type == "exit" {
				t.Errorf("machine %s was ended: %+v", m.ID, e)
			}
		}
	}
	want(t, answers(i, app, "/"))
	req := fmt.Sprintf("GET / HTTP/1.1\r\nHost: %s.localhost\r\nFly-Force-Instance-Id: %s\r\nConnection: close\r\n\r\n", app, sleeps.ID)
	c, err := (&instance.Load{Addr: i.Edge}).Dial()
	want(t, err)
	defer c.Close()
	_, err = c.Write([]byte(req))
	want(t, err)
	buf := make([]byte, 64)
	want(t, c.SetReadDeadline(time.Now().Add(patience)))
	n, err := c.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), " 200 ") {
		t.Errorf("the one that was suspended: %q, %v", buf[:n], err)
	}
	if got := logOf(t, i, app, runs.ID, "app"); !strings.Contains(got, "probe listens") {
		t.Errorf("its log is lost: %q", got)
	}
}

// TestControlKilledAtWork: in the middle of creates and updates. What was
// acknowledged is there; everything settles; nothing is left of the rest.
func TestControlKilledAtWork(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := ownApp(t, i)
	c := i.AsRoot()
	first := up(t, i, app, web())
	stop := load(t, i, app)
	var mu sync.Mutex
	made := map[string]bool{}
	for round := range 4 {
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				m, err := c.Create(t.Context(), app, machines.CreateRequest{Config: job("wait")})
				if err == nil {
					mu.Lock()
					made[m.ID] = true
					mu.Unlock()
				}
			})
		}
		wg.Go(func() {
			u := web()
			u.Env = map[string]string{"RELEASE": fmt.Sprint(round)}
			_, err := c.Update(t.Context(), app, first.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: u}})
			if status := machines.StatusOf(err); err != nil && status != 0 && status != http.StatusServiceUnavailable && status != http.StatusBadGateway && status != http.StatusConflict && status != http.StatusPreconditionFailed {
				t.Errorf("update: %v", err)
			}
		})
		// Each round at another moment of the work.
		want(t, instance.Pause(t.Context(), time.Duration(20+60*round)*time.Millisecond))
		killControl(t, i)
		wg.Wait()
	}
	list := settled(t, i, app)
	stop()
	got := map[string]machines.State{}
	for _, m := range list {
		got[m.ID] = m.State
	}
	if got[first.ID] != machines.StateStarted {
		t.Errorf("the machine that was updated is %q", got[first.ID])
	}
	for id := range made {
		if _, ok := got[id]; !ok {
			t.Errorf("machine %s was acknowledged and is lost", id)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for id := range got {
		if err := c.Destroy(ctx, app, id, true); err != nil {
			t.Errorf("destroy %s: %v", id, err)
		}
	}
	list, err := c.List(t.Context(), app, machines.ListOptions{})
	want(t, err)
	if len(list) != 0 {
		t.Errorf("%d machines are left", len(list))
	}
}

// TestLogsSurvive: what a machine prints while control is away is read later.
func TestLogsSurvive(t *testing.T) {
	t.Parallel()
	i := ownInstance(t)
	app := ownApp(t, i)
	m := up(t, i, app, job("wait", "stubborn"))
	eventually(t, func() string { return lacks(logOf(t, i, app, m.ID, "app"), "waiting") })
	for n := range 3 {
		want(t, i.AsRoot().Signal(t.Context(), app, m.ID, "SIGUSR1"))
		killControl(t, i)
		eventually(t, func() string {
			r, err := i.CLI(t.Context(), "logs", "--app", app, "--machine", m.ID, "--no-tail", "--lines", "0")
			if err != nil {
				return err.Error()
			}
			if got := strings.Count(r.Stdout, "got user defined signal 1"); got != n+1 {
				return fmt.Sprintf("%d lines of %d are in the log", got, n+1)
			}
			return ""
		})
	}
}

// TestQueueFull: who does not fit the queue is told at once to come again.
func TestQueueFull(t *testing.T) {
	t.Parallel()
	i := ownInstance(t, "--hold-queue=3", "--hold-timeout="+patience.String())
	app := ownApp(t, i)
	settle(t, i, app, up(t, i, app, limited(1, 1)).ID)
	const n, fit = 10, 1 + 3 // one at work, three in the queue
	codes, release := make(chan string, n), make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range n {
		go func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.Edge+"/stay", nil)
			if err != nil {
				codes <- err.Error()
				return
			}
			req.Host = app + ".localhost"
			resp, err := hc.Do(req)
			if err != nil {
				codes <- err.Error()
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode == http.StatusServiceUnavailable && (resp.Header.Get("Retry-After") == "" || resp.Header.Get("Roost-Error") == "") {
				codes <- "503 without Retry-After or Roost-Error"
				return
			}
			codes <- fmt.Sprint(resp.StatusCode)
			<-release
		}()
	}
	count := map[string]int{}
	for range n - fit + 1 { // who is refused, and who is at work and stays there
		count[<-codes]++
	}
	close(release)
	for range fit - 1 {
		count[<-codes]++
	}
	if count["200"] != fit || count["503"] != n-fit {
		t.Errorf("got %v, want %d times 200 and %d times 503", count, fit, n-fit)
	}
	if err := answers(i, app, "/"); err != nil {
		t.Error(errors.Join(errors.New("after the rush"), err))
	}
}
