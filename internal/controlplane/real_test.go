package controlplane_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/builder"
	"github.com/roost-run/roost/internal/cli"
	"github.com/roost-run/roost/internal/controlplane"
	"github.com/roost-run/roost/internal/edge"
	"github.com/roost-run/roost/internal/image/imagetest"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/supervisor"
	"github.com/roost-run/roost/machines"
)

// asRoost makes the test binary the product: server and children run from it.
const asRoost = "TEST_AS_ROOST"

func TestMain(m *testing.M) {
	if os.Getenv(asRoost) != "" {
		os.Exit(cli.Main(os.Args[1:], cli.Processes{
			Server: supervisor.Run, Control: controlplane.Run, Edge: edge.Run, Builder: builder.Run,
		}))
	}
	os.Exit(m.Run())
}

// server is a whole Roost of the test's own.
type server struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	log  bytes.Buffer
	http *http.Client
	sup  *orders.Client
}

func start(t *testing.T) *server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes machines and needs root: run it with sudo")
	}
	dir, err := os.MkdirTemp("", "rcp") // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(self, "server", "--data", s.path("data"), "--run", s.path("run"), "--listen", "127.0.0.1:0=80", "--api", "", "--swap", "none", "--reserve", "64MB")
	s.cmd.Env = append(os.Environ(), asRoost+"=1")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.path("run", "api.sock"))
	}}}
	s.sup = orders.NewClient(s.path("run", "supervisor.sock"))
	t.Cleanup(s.end)
	return s
}

func (s *server) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// end stops everything and checks that nothing is left on the host.
func (s *server) end() {
	ctx := patience.Context(s.t)
	if err := s.sup.Shutdown(ctx, orders.Shutdown{Machines: true}); err != nil {
		s.t.Errorf("shutdown: %v", err)
		if err := s.cmd.Process.Kill(); err != nil {
			s.t.Error(err)
		}
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("server: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.dir) {
			s.t.Errorf("still mounted: %s", line)
		}
	}
	if s.t.Failed() {
		s.t.Logf("log of the server:\n%s", s.log.String())
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
}

// call sends a request; in may be nil, a reader or a document. It waits for a
// platform that is just starting, as any client of the socket has to.
func (s *server) call(method, path string, in, out any) (status int, text string) {
	s.t.Helper()
	var body io.Reader
	switch in := in.(type) {
	case nil:
	case io.Reader:
		body = in
	default:
		data, err := json.Marshal(in)
		if err != nil {
			s.t.Fatal(err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://roost"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	var resp *http.Response
	if body == nil {
		patience.Until(s.t, method+" "+path+" to be answered", func() bool {
			if resp, err = s.http.Do(req); err != nil {
				return false // the socket is not there yet
			}
			if resp.StatusCode == http.StatusServiceUnavailable { // control is not
				_ = resp.Body.Close()
				return false
			}
			return true
		})
	} else if resp, err = s.http.Do(req); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if out != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(data, out); err != nil {
			s.t.Fatalf("%s %s: %v in %s", method, path, err, data)
		}
	}
	return resp.StatusCode, string(data)
}

// ok is call for what must succeed.
func (s *server) ok(method, path string, in, out any) {
	s.t.Helper()
	if status, text := s.call(method, path, in, out); status >= 300 {
		s.t.Fatalf("%s %s: status %d: %s", method, path, status, text)
	}
}

func (s *server) wait(id, state string) {
	s.t.Helper()
	s.ok("GET", "/v1/apps/shop/machines/"+id+"/wait?timeout=60&state="+state, nil, nil)
}

func (s *server) loadWeb() {
	s.t.Helper()
	bin := filepath.Join(s.t.TempDir(), "web")
	build := exec.CommandContext(s.t.Context(), "go", "build", "-o", bin, "./testdata/web")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("build: %v\n%s", err, out)
	}
	s.ok("POST", "/roost/v1/images/load", bytes.NewReader(imagetest.OCI(s.t, imagetest.FromBinary(s.t, "docker.io/library/web:1", bin))), nil)
}

type config map[string]any

func web(extra config) config {
	c := config{"image": "docker.io/library/web:1", "services": []config{{
		"protocol": "tcp", "internal_port": 8080, "autostop": "off", "ports": []config{{"port": 80, "handlers": []string{"http"}}},
	}}}
	maps.Copy(c, extra)
	return config{"config": c}
}

// One machine's life on real namespaces, control groups and images, the
// control process being killed on the way.
func TestRealLife(t *testing.T) {
	s := start(t)
	s.ok("GET", "/v1/apps?org_slug=personal", nil, nil) // it is up
	if fi, err := os.Stat(s.path("data", "admin.token")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("admin.token: %v, %v, want mode 0600", fi, err)
	}
	s.loadWeb()
	s.ok("POST", "/v1/apps", config{"app_name": "shop", "org_slug": "personal"}, nil)
	var m machines.Machine
	s.ok("POST", "/v1/apps/shop/machines", web(config{"env": config{"V": "1"}}), &m)
	if m.State != "started" {
		t.Fatalf("created: got state %s, want started", m.State)
	}
	base := "/v1/apps/shop/machines/" + m.ID
	for name, want := range map[string]string{"V": "1", "FLY_MACHINE_ID": m.ID, "FLY_APP_NAME": "shop", "FLY_MACHINE_VERSION": m.InstanceID, "FLY_PRIVATE_IP": m.PrivateIP, "FLY_VM_MEMORY_MB": "256"} {
		var r struct{ Stdout string }
		s.ok("POST", base+"/exec", config{"command": []string{"/bin/web", "env", name}}, &r)
		if r.Stdout != want {
			t.Errorf("%s: got %q, want %q", name, r.Stdout, want)
		}
	}
	s.ok("POST", base+"/suspend", nil, nil)
	s.wait(m.ID, "suspended")
	s.ok("POST", base+"/start", nil, nil)
	s.ok("POST", base+"/stop", nil, nil)
	s.wait(m.ID, "stopped")

	// The next control process knows what happened without it.
	host, err := s.sup.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(host.Children["control"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := s.sup.Start(t.Context(), root.InstanceID(m.InstanceID), orders.Start{Source: orders.SourceProxy, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	s.wait(m.ID, "started")

	var u machines.Machine
	s.ok("POST", base, web(config{"env": config{"V": "2"}}), &u)
	if u.InstanceID == m.InstanceID || u.State != "started" {
		t.Errorf("updated: got version %s in state %s", u.InstanceID, u.State)
	}
	// One that cannot run leaves it as it is.
	status, text := s.call("POST", base, web(config{"init": config{"exec": []string{"/nowhere"}}}), nil)
	if status != http.StatusBadRequest || !strings.Contains(text, "/nowhere") {
		t.Errorf("update to a command that is not there: got %d %s", status, text)
	}
	status, text = s.call("POST", base, web(config{"init": config{"cmd": []string{"exit", "4"}}}), nil)
	if status != http.StatusPreconditionFailed || !strings.Contains(text, "exit code 4") {
		t.Errorf("update to what ends at once: got %d %s", status, text)
	}
	var now machines.Machine
	s.ok("GET", base, nil, &now)
	if now.InstanceID != u.InstanceID || now.State != "started" {
		t.Errorf("after failed updates: got version %s in state %s, want %s started", now.InstanceID, now.State, u.InstanceID)
	}
	if status, text := s.call("DELETE", base, nil, nil); status != http.StatusPreconditionFailed {
		t.Errorf("delete while it runs: got %d %s", status, text)
	}
	s.ok("DELETE", base+"?force=true", nil, nil)
	s.nothingOf("run", "machines")
}

// nothingOf checks that a directory is empty or not there.
func (s *server) nothingOf(parts ...string) {
	s.t.Helper()
	patience.Until(s.t, fmt.Sprintf("nothing to be left in %v", parts), func() bool {
		entries, err := os.ReadDir(s.path(parts...))
		return errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0
	})
}

// What a machine does when its command cannot run or ends.
func TestRealEndings(t *testing.T) {
	s := start(t)
	s.ok("GET", "/v1/apps?org_slug=personal", nil, nil)
	s.loadWeb()
	s.ok("POST", "/v1/apps", config{"app_name": "shop", "org_slug": "personal"}, nil)
	for want, extra := range map[string]config{
		"command not found": {"init": config{"exec": []string{"/nowhere"}}},
		"no such user":      {"processes": []config{{"user": "nobody-here"}}},
	} {
		status, text := s.call("POST", "/v1/apps/shop/machines", web(extra), nil)
		if status != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%s: got %d %s", want, status, text)
		}
	}
	var list []machines.Machine
	s.ok("GET", "/v1/apps/shop/machines", nil, &list)
	if len(list) != 0 {
		t.Errorf("machines left: got %d, want 0", len(list))
	}
	var job machines.Machine
	s.ok("POST", "/v1/apps/shop/machines", config{"config": config{
		"image": "docker.io/library/web:1", "auto_destroy": true, "restart": config{"policy": "no"}, "init": config{"cmd": []string{"exit", "5"}},
	}}, &job)
	s.wait(job.ID, "destroyed")
	_, text := s.call("GET", "/v1/apps/shop/machines/"+job.ID+"/events", nil, nil)
	if !strings.Contains(text, fmt.Sprintf(`"exit_code":%d`, 5)) {
		t.Errorf("events of the job: got %s, want exit_code 5", text)
	}
	s.nothingOf("run", "machines")
}
