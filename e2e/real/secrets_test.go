package real

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// cli runs the command line and fails the test when that fails.
func cli(t *testing.T, args ...string) string {
	t.Helper()
	r, err := in.CLI(t.Context(), args...)
	want(t, err)
	return r.Stdout
}

// deployed makes an app of the probe by a deploy, with more lines of fly.toml.
func deployed(t *testing.T, more string) string {
	t.Helper()
	app := newApp(t)
	file := filepath.Join(t.TempDir(), "fly.toml")
	text := more + "\n[http_service]\n  internal_port = 8080\n  auto_stop_machines = \"off\"\n"
	want(t, os.WriteFile(file, []byte(text), 0o600))
	cli(t, "deploy", "--app", app, "--config", file, "--image", probe, "--ha=false")
	return app
}

// only is the app's one machine.
func only(t *testing.T, app string) machines.Machine {
	t.Helper()
	list, err := admin().List(t.Context(), app, machines.ListOptions{})
	want(t, err)
	if len(list) != 1 {
		t.Fatalf("app %s has %d machines, want 1", app, len(list))
	}
	return list[0]
}

// setSecrets sets names and values in turn, by the API.
func setSecrets(t *testing.T, app string, pairs ...string) {
	t.Helper()
	values := machines.SecretValues{}
	for i := 0; i < len(pairs); i += 2 {
		values[pairs[i]] = &pairs[i+1]
	}
	_, err := admin().SetSecrets(t.Context(), app, values)
	want(t, err)
}

// TestSecretsInjected: a machine that is made by API gets the app's secrets,
// in its environment and as files, at every start, and one that is updated the
// newest; files cannot be used to get at others.
func TestSecretsInjected(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	pem := "-----BEGIN-----\nkey\n"
	setSecrets(t, app, "KEY", "first", "PEM", base64.StdEncoding.EncodeToString([]byte(pem)))
	config := web()
	config.Env = map[string]string{"KEY": "config", "PLAIN": "config"}
	name := "PEM"
	config.Files = []machines.File{{GuestPath: "/etc/app/key.pem", SecretName: &name, Mode: 0o400}}
	m := start(t, app, config)
	look := func(parts ...string) {
		t.Helper()
		out := inside(t, app, m.ID, "env").Stdout + inside(t, app, m.ID, "files", "/etc/app/key.pem").Stdout
		wantText(t, out, parts...)
	}
	look("KEY=first\n", "PLAIN=config\n", `/etc/app/key.pem 0400 "-----BEGIN-----\nkey\n"`)
	// The config that is read back has no values.
	read, err := admin().Get(t.Context(), app, m.ID)
	want(t, err)
	if read.Config.Env["KEY"] != "config" || read.Config.Files[0].SecretName == nil || read.Config.Files[0].RawValue != nil {
		t.Errorf("read back: %+v", read.Config)
	}
	// A change does not touch it; a restart starts the same version.
	setSecrets(t, app, "KEY", "second")
	want(t, admin().Restart(t.Context(), app, m.ID, machines.StopRequest{}, false))
	await(t, app, m.ID, machines.StateStarted)
	look("KEY=first\n", `0400 "-----BEGIN-----\nkey\n"`)
	_, err = admin().Update(t.Context(), app, m.ID, machines.UpdateRequest{CreateRequest: machines.CreateRequest{Config: *read.Config}})
	want(t, err)
	await(t, app, m.ID, machines.StateStarted)
	look("KEY=second\n", "PLAIN=config\n")

	missing := "NONE"
	bad := web()
	bad.Files = []machines.File{{GuestPath: "/etc/x", SecretName: &missing}}
	_, err = admin().Create(t.Context(), app, machines.CreateRequest{Config: bad})
	wantStatus(t, err, http.StatusBadRequest, "no secret NONE")
	status, body := raw(t, http.MethodPost, "/v1/apps/"+app+"/machines", in.Token, `{"skip_secrets":true,"config":{"image":"`+probe+`","init":{"cmd":["env"]},"restart":{"policy":"no"}}}`)
	if status != http.StatusOK {
		t.Fatalf("skip_secrets: %d %s", status, body)
	}
	id := regexp.MustCompile(`"id":"([0-9a-f]{14})"`).FindStringSubmatch(body)[1]
	await(t, app, id, machines.StateStopped)
	if out := printed(t, app, id); strings.Contains(out, "KEY=") {
		t.Errorf("skip_secrets: the machine has\n%s", out)
	}
}

// TestSecretsStayHidden puts a canary in and looks for it everywhere but in
// the machine: what the API answers, what the command line prints, what lies
// on the disk, what processes show of their arguments.
func TestSecretsStayHidden(t *testing.T) {
	const canary = "canary-5f3759df"
	i := ownInstance(t)
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), i.Binary, args...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "ROOST_URL=unix://"+filepath.Join(i.Run(), "api.sock"), "HOME="+i.Dir, "XDG_CONFIG_HOME="+i.Dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		if strings.Contains(string(out), canary) {
			t.Errorf("%v prints the value:\n%s", args, out)
		}
		return string(out)
	}
	file := filepath.Join(t.TempDir(), "fly.toml")
	want(t, os.WriteFile(file, []byte("[http_service]\n  internal_port = 8080\n  auto_stop_machines = \"off\"\n"), 0o600))
	run("", "app", "create", "shop")
	run(canary+"\n", "secrets", "set", "-a", "shop", "KEY=-")
	run("", "deploy", "-a", "shop", "-c", file, "--image", probe, "--ha=false")
	run("", "secrets", "set", "-a", "shop", "OTHER=1")
	run("", "secrets", "list", "-a", "shop", "--json")
	run("", "machine", "run", "-a", "shop", "--rm", probe, "env") // prints its environment, masked
	wantText(t, run("", "logs", "-a", "shop", "--no-tail"), "KEY=[secret]")
	for _, show := range []string{"config show", "releases --json", "config env", "status --json", "machine list --json"} {
		run("", append(strings.Fields(show), "-a", "shop")...)
	}
	// It did arrive.
	list, err := i.AsRoot().List(t.Context(), "shop", machines.ListOptions{})
	want(t, err)
	r, err := i.AsRoot().Exec(t.Context(), "shop", list[0].ID, machines.ExecRequest{Command: []string{"/app", "env"}})
	want(t, err)
	wantText(t, r.Stdout, "KEY="+canary)
	c := i.AsRoot()
	for _, path := range []string{"/v1/apps/shop/secrets", "/v1/apps/shop/secrets/KEY", "/v1/apps/shop/machines", "/roost/v1/apps/shop/secrets"} {
		for _, query := range []string{"", "?show_secrets=true"} {
			req, err := c.NewRequest(t.Context(), http.MethodGet, path+query, nil)
			want(t, err)
			resp, err := c.Send(req)
			if err != nil { // an error has the body's text
				if strings.Contains(err.Error(), canary) {
					t.Errorf("%s%s: %v", path, query, err)
				}
				continue
			}
			data, err := io.ReadAll(resp.Body)
			want(t, errors.Join(err, resp.Body.Close()))
			if bytes.Contains(data, []byte(canary)) {
				t.Errorf("%s%s shows the value: %s", path, query, data)
			}
		}
	}
	// On the disk: everything below the instance's directory but what is in
	// memory, and the machine's log, where the app itself wrote it.
	elsewhere := []string{filepath.Join(i.Dir, "data", "logs")}
	for _, name := range []string{"machines", "lxcfs", "netns", "views"} { // in memory, or mounts of something else
		elsewhere = append(elsewhere, filepath.Join(i.Run(), name))
	}
	forms := [][]byte{[]byte(canary), []byte(base64.StdEncoding.EncodeToString([]byte(canary)))[:12]}
	err = filepath.WalkDir(i.Dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(elsewhere, path):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, form := range forms {
			if bytes.Contains(data, form) {
				t.Errorf("the value is in %s", path)
			}
		}
		return err
	})
	want(t, err)
	var st syscall.Statfs_t
	const tmpfs = 0x01021994
	if err := syscall.Statfs(filepath.Join(i.Run(), "machines"), &st); err != nil || st.Type != tmpfs {
		t.Errorf("the bundles are not in memory: type %x, %v", st.Type, err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	want(t, err)
	for _, path := range lines {
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(canary)) { // else it has ended
			t.Errorf("the value is in the arguments of %s", path)
		}
	}
	key, err := os.Stat(filepath.Join(i.Dir, "data", "secrets.key"))
	if err != nil || key.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v, want mode 0600", key, err)
	}
}

// TestSecretsRotate: a secret changes three times under load, and no request
// is lost; after each change the machine has the new value.
func TestSecretsRotate(t *testing.T) {
	t.Parallel()
	app := deployed(t, "")
	load := &instance.Load{Addr: in.Edge, Host: app + ".localhost", Path: "/"}
	load.Start(t.Context())
	for _, value := range []string{"one", "two", "three"} {
		cli(t, "secrets", "set", "--app", app, "KEY="+value)
		wantText(t, inside(t, app, only(t, app).ID, "env").Stdout, "KEY="+value+"\n")
	}
	answered, err := load.Stop()
	if err != nil || answered == 0 {
		t.Errorf("%d requests were answered, these were not: %v", answered, err)
	}
}

// TestScaleUnderLoad: machines come and go, the app restarts, and no request
// is lost.
func TestScaleUnderLoad(t *testing.T) {
	t.Parallel()
	app := deployed(t, "")
	load := &instance.Load{Addr: in.Edge, Host: app + ".localhost", Path: "/slow?d=20ms"}
	load.Start(t.Context())
	cli(t, "scale", "count", "--app", app, "3")
	cli(t, "scale", "count", "--app", app, "1", "--yes")
	cli(t, "scale", "memory", "--app", app, "512")
	cli(t, "app", "restart", app)
	answered, err := load.Stop()
	if err != nil || answered == 0 {
		t.Errorf("%d requests were answered, these were not: %v", answered, err)
	}
	if got := only(t, app).Config.Guest.MemoryMB; got != 512 {
		t.Errorf("memory: got %d MB, want 512", got)
	}
}

// background runs the command line until the test ends it.
func background(t *testing.T, args ...string) (*exec.Cmd, *collector) {
	t.Helper()
	out := &collector{}
	cmd := exec.Command(in.Binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "ROOST_URL=unix://"+filepath.Join(in.Run(), "api.sock"), "HOME="+in.Dir, "XDG_CONFIG_HOME="+in.Dir)
	want(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, out
}

// collector keeps what a process says.
type collector struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// TestProxyIntoPrivateNetwork: a local port reaches a port that the edge does
// not serve; the machine is woken for it and stays awake meanwhile, although
// autostop would have it suspended.
func TestProxyIntoPrivateNetwork(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	config := web()
	soon := machines.Duration(500 * time.Millisecond)
	config.Services[0].Autostop, config.Services[0].AutoStopAfter = machines.AutostopSuspend, &soon
	m := launch(t, app, config)
	await(t, app, m.ID, machines.StateSuspended) // by autostop
	cmd, out := background(t, "proxy", "0:8080", app+".internal")
	addr := ""
	eventually(t, func() string {
		if found := regexp.MustCompile(`Proxying (\S+) to`).FindStringSubmatch(out.String()); found != nil {
			addr = found[1]
			return ""
		}
		return "the proxy does not listen: " + out.String()
	})
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.DialTimeout("tcp", addr, patience)
		want(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		want(t, conn.SetDeadline(time.Now().Add(patience)))
		return conn
	}
	// Two at once; the first says nothing for longer than autostop waits, but
	// not before it is through to the machine.
	idle := dial()
	answers := bufio.NewReader(idle)
	_, err := io.WriteString(idle, "GET / HTTP/1.1\r\nHost: inside\r\n\r\n")
	want(t, err)
	early, err := http.ReadResponse(answers, nil)
	want(t, err)
	_, err = io.Copy(io.Discard, early.Body)
	want(t, errors.Join(err, early.Body.Close()))
	through := time.Now()
	_, err = io.WriteString(idle, "GET / HTTP/1.1\r\nHost: inside\r\n")
	want(t, err)
	conn := dial()
	_, err = io.WriteString(conn, "GET /late HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n")
	want(t, err)
	want(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") || !strings.Contains(string(answer), `"URI":"/late"`) {
		t.Errorf("got %v, %.300s", err, answer)
	}
	want(t, instance.Pause(t.Context(), 3*time.Duration(soon)))
	still := time.Now()
	_, err = io.WriteString(idle, "Connection: close\r\n\r\n")
	want(t, err)
	if answer, err := io.ReadAll(answers); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") {
		t.Errorf("the idle connection: got %v, %.300s", err, answer)
	}
	want(t, cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err != nil {
		t.Errorf("after ctrl-c: %v\n%s", err, out)
	}
	// What happened before it is recorded with it.
	want(t, admin().Suspend(t.Context(), app, m.ID))
	wantAwake(t, app, m.ID, through.UnixMilli(), still.UnixMilli())
}

// TestConsoleGoes: the machine of a console is gone when its command ends, when
// the command line is interrupted, and when that is killed.
func TestConsoleGoes(t *testing.T) {
	t.Parallel()
	app := deployed(t, `console_command = "/app exit 4"`)
	cli(t, "secrets", "set", "--app", app, "KEY=canary") // a release: a console has what serves has
	r, err := in.CLI(t.Context(), "console", "--app", app)
	if err == nil || r.Code != 4 {
		t.Errorf("console_command: got code %d, %v, want 4", r.Code, err)
	}
	wantText(t, cli(t, "console", "--app", app, "-C", "/app env"), "KEY=canary\n", "FLY_APP_NAME="+app+"\n")
	only(t, app)
	for name, signal := range map[string]os.Signal{"interrupted": os.Interrupt, "killed": os.Kill} {
		cmd, out := background(t, "console", "--app", app, "-C", "/app wait")
		eventually(t, func() string {
			if strings.Contains(out.String(), "waiting") {
				return ""
			}
			return name + ": the command does not run: " + out.String()
		})
		list, err := admin().List(t.Context(), app, machines.ListOptions{})
		want(t, err)
		if len(list) != 2 {
			t.Errorf("%s: meanwhile there are %d machines, want 2", name, len(list))
		}
		want(t, cmd.Process.Signal(signal))
		_ = cmd.Wait() // how it ended is the signal's
		eventually(t, func() string {
			list, err := admin().List(context.WithoutCancel(t.Context()), app, machines.ListOptions{})
			want(t, err)
			if len(list) == 1 {
				return ""
			}
			return name + ": the console's machine is still there"
		})
	}
}
