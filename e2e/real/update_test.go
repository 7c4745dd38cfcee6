package real

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// load asks an app all the time until the test, or stop, ends it.
func load(t *testing.T, i *instance.Instance, app string) (stop func()) {
	t.Helper()
	l := &instance.Load{Addr: i.Edge, Host: app + ".localhost", Path: "/"}
	l.Start(t.Context())
	stopped := false
	stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		n, err := l.Stop()
		if err != nil {
			t.Errorf("after %d answers: %v", n, err)
		}
		if n < 20 {
			t.Errorf("only %d answers: that was no load", n)
		}
	}
	t.Cleanup(stop)
	eventually(t, func() string {
		if l.Answered() < 20 {
			return fmt.Sprintf("%d answers", l.Answered())
		}
		return ""
	})
	return stop
}

func update(t *testing.T, app, id string, c machines.Config) (*machines.Machine, error) {
	t.Helper()
	return admin().Update(t.Context(), app, id, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: c}})
}

// TestUpdateUnderLoad: a new version of the only machine, without a failed
// request; the id stays, the environment changes.
func TestUpdateUnderLoad(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Env = map[string]string{"RELEASE": "0"}
	m := start(t, app, c)
	stop := load(t, in, app)
	last := m.InstanceID
	for release := range 3 {
		c.Env = map[string]string{"RELEASE": fmt.Sprint(release + 1)}
		u, err := update(t, app, m.ID, c)
		want(t, err)
		if u.ID != m.ID || u.InstanceID == last {
			t.Errorf("update: got %s version %s, want a new version of %s", u.ID, u.InstanceID, m.ID)
		}
		last = u.InstanceID
		_, err = admin().Wait(t.Context(), app, m.ID, machines.WaitOptions{Version: u.InstanceID, Timeout: patience})
		want(t, err)
	}
	stop()
	wantText(t, inside(t, app, m.ID, "env").Stdout, "RELEASE=3\n")
	_, err := admin().Update(t.Context(), app, m.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: c}, CurrentVersion: m.InstanceID})
	wantStatus(t, err, http.StatusConflict)
}

// TestFailedUpdate: the old version serves on, all the time.
func TestFailedUpdate(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Env = map[string]string{"RELEASE": "good"}
	m := start(t, app, c)
	stop := load(t, in, app)
	for name, spoil := range map[string]func(*machines.Config){
		"no such image":     func(c *machines.Config) { c.Image = "registry.localhost/nobody:v9" },
		"command not found": func(c *machines.Config) { c.Init.Exec = []string{"/no/such/program"} },
		"no such user":      func(c *machines.Config) { c.Processes = []machines.Process{{User: "nobodyhere"}} },
	} {
		bad := c
		spoil(&bad)
		u, err := update(t, app, m.ID, bad)
		if err == nil { // accepted: then it has to fail later, and say so
			_, err = admin().Wait(t.Context(), app, m.ID, machines.WaitOptions{Version: u.InstanceID, Timeout: 20 * time.Second})
		}
		if err == nil {
			t.Errorf("%s: the update succeeded", name)
		}
		if got := state(t, app, m.ID); got != machines.StateStarted {
			t.Errorf("%s: the machine is %s", name, got)
		}
		wantText(t, inside(t, app, m.ID, "env").Stdout, "RELEASE=good\n")
	}
	stop()
	wantMachine(t, get(t, app, "/"), m.ID)
}

// TestUpdateOfSuspended: it is the new version that answers next.
func TestUpdateOfSuspended(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	m := start(t, app, c)
	if a := request(t, http.MethodPut, app, "/file?path=/tmp/note", strings.NewReader("old")); a.StatusCode != http.StatusOK {
		t.Fatal(a.Text)
	}
	want(t, admin().Suspend(t.Context(), app, m.ID))
	await(t, app, m.ID, machines.StateSuspended)
	c.Env = map[string]string{"RELEASE": "2"}
	u, err := update(t, app, m.ID, c)
	want(t, err)
	_, err = admin().Wait(t.Context(), app, m.ID, machines.WaitOptions{Version: u.InstanceID, Timeout: patience})
	want(t, err)
	wantText(t, inside(t, app, m.ID, "env").Stdout, "RELEASE=2\n")
	if a := get(t, app, "/file?path=/tmp/note"); a.StatusCode != http.StatusNotFound {
		t.Errorf("the old root file system is still there: %d %q", a.StatusCode, a.Text)
	}
}

// TestLogFlood: an app that prints without end is not slowed down, and what
// was dropped is said; order holds.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	const lines = 200000 // of 200 bytes: ten times what may be printed at once
	c := job("flood", fmt.Sprint(lines))
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: c})
	want(t, err)
	await(t, app, m.ID, machines.StateStopped) // an app that waited for its log would take minutes
	all := logOf(t, in, app, m.ID, "")
	if !strings.Contains(all, "dropped") {
		t.Errorf("nothing says that lines were dropped, of %d lines", strings.Count(all, "\n"))
	}
	last, n := -1, 0
	for line := range strings.Lines(printed(t, app, m.ID)) {
		var i int
		if _, err := fmt.Sscanf(line, "line %d ", &i); err == nil {
			if i <= last {
				t.Fatalf("line %d comes after line %d", i, last)
			}
			last, n = i, n+1
		}
	}
	if n < 1000 || n == lines {
		t.Errorf("%d lines of %d are in the log", n, lines)
	}
}

// TestLimits looks at what the kernel was told, from the host.
func TestLimits(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := web()
	c.Guest = &machines.Guest{CPUKind: "shared", CPUs: 2, MemoryMB: 512}
	m := start(t, app, c)
	pid := ""
	for deadline := time.Now().Add(patience); pid == ""; { // started is before the program's own first breath
		environ, err := filepath.Glob("/proc/[0-9]*/environ")
		want(t, err)
		for _, path := range environ {
			if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), "FLY_MACHINE_ID="+m.ID) {
				pid = filepath.Base(filepath.Dir(path))
				break
			}
		}
		if pid == "" && time.Now().After(deadline) {
			t.Fatal("no process of the machine on the host")
		}
	}
	groups, err := os.ReadFile("/proc/" + pid + "/cgroup")
	want(t, err)
	read := func(controller, name string) string {
		t.Helper()
		for line := range strings.Lines(string(groups)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			dir := ""
			switch {
			case len(f) == 3 && f[1] == "":
				dir = "/sys/fs/cgroup"
			case len(f) == 3 && strings.Contains(","+f[1]+",", ","+controller+","):
				dir = "/sys/fs/cgroup/" + controller
			default:
				continue
			}
			if data, err := os.ReadFile(filepath.Join(dir, f[2], name)); err == nil {
				return strings.TrimSpace(string(data))
			}
		}
		return ""
	}
	if got := read("pids", "pids.max"); got != "8192" {
		t.Errorf("pids: got %q, want 8192", got)
	}
	memory := read("memory", "memory.limit_in_bytes") // version 1
	if memory == "" {
		memory = read("memory", "memory.max")
	}
	if memory != fmt.Sprint(512<<20) {
		t.Errorf("memory: got %q, want 512 MB", memory)
	}
}
