package real

import (
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/roost-run/roost/machines"
)

// TestEnvironment: the config's variables beat the image's, the platform's
// beat both, and a process entry's beat the config's.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	c := job("env")
	c.Env = map[string]string{"PATH": "/changed:/", "GREETING": "hello", "EMPTY": "", "LINES": "a\nb=c", "BOTH": "config"}
	c.Metadata = map[string]string{"fly_process_group": "web"}
	c.Guest = &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: 512}
	c.Processes = []machines.Process{{Env: map[string]string{"BOTH": "process"}}}
	m, err := admin().Create(t.Context(), app, machines.CreateRequest{Config: c})
	want(t, err)
	await(t, app, m.ID, machines.StateStopped)
	out := "\n" + printed(t, app, m.ID)
	for name, value := range map[string]string{
		"PATH": "/changed:/", "GREETING": "hello", "EMPTY": "", "LINES": "a", "BOTH": "process",
		"FLY_APP_NAME": app, "FLY_MACHINE_ID": m.ID, "FLY_ALLOC_ID": m.ID, "FLY_MACHINE_VERSION": m.InstanceID, "FLY_REGION": "loc",
		"FLY_PRIVATE_IP": m.PrivateIP, "FLY_PROCESS_GROUP": "web", "FLY_VM_MEMORY_MB": "512", "HOME": "/",
	} {
		wantText(t, out, "\n"+name+"="+value+"\n")
	}
	wantText(t, out, "\nFLY_IMAGE_REF=registry.localhost/probe", "\nb=c\n")
}

// TestFiles: content, mode, directories made, and nothing written outside.
func TestFiles(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	encode := func(s string) *string { return new(base64.StdEncoding.EncodeToString([]byte(s))) }
	c := job("files", "/plain", "/deep/er/script", "/etc/passwd", "/empty", "/missing")
	c.Files = []machines.File{
		{GuestPath: "/plain", RawValue: encode("text\n")},
		{GuestPath: "/deep/er/script", RawValue: encode("#!"), Mode: 0o755},
		{GuestPath: "/etc/passwd", RawValue: encode("root:x:0:0::/:\napp:x:1000:1000::/tmp:\n")},
		{GuestPath: "/empty", RawValue: encode(""), Mode: 0o444},
	}
	wantText(t, outcome(t, app, c), "/plain 0644 \"text\\n\"\n", "/deep/er/script 0755 \"#!\"\n", "/etc/passwd 0644 \"root:x:0:0::/:", "/empty 0444 \"\"\n", "/missing missing\n")
}

// TestCommandAndUser: what runs, as whom and where.
func TestCommandAndUser(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	for _, test := range []struct {
		name   string
		config machines.Config
		want   string
	}{
		{"image's entrypoint, own cmd", machines.Config{Init: machines.Init{Cmd: []string{"whoami", "a b"}}}, `uid=1000 gid=1000 groups=[] dir=/ home=/ args=["a b"]`},
		{"own entrypoint", machines.Config{Init: machines.Init{Entrypoint: []string{"/app", "whoami"}, Cmd: []string{"c"}}}, `args=["c"]`},
		{"entrypoint by PATH", machines.Config{Init: machines.Init{Entrypoint: []string{"app", "whoami"}}}, `args=[]`},
		{"exec is everything", machines.Config{Init: machines.Init{Exec: []string{"/app", "whoami", "$HOME"}, Cmd: []string{"no"}}}, `args=["$HOME"]`},
		{"process beats init", machines.Config{Init: machines.Init{Cmd: []string{"exit", "3"}}, Processes: []machines.Process{{Cmd: []string{"whoami"}, User: "root"}}}, `uid=0 gid=0`},
		{"number", machines.Config{Processes: []machines.Process{{Cmd: []string{"whoami"}, User: "4321"}}}, `uid=4321 gid=4321`},
		{"user and group", machines.Config{Processes: []machines.Process{{Cmd: []string{"whoami"}, User: "4321:root"}}}, `uid=4321 gid=0`},
		{"process exec", machines.Config{Processes: []machines.Process{{Exec: []string{"/app", "whoami", "x"}}}}, `args=["x"]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := test.config
			c.Image, c.Restart = probe, &machines.Restart{Policy: "no"}
			wantText(t, outcome(t, app, c), test.want)
		})
	}
}

// TestHostname: the machine knows its names, and the platform's files.
func TestHostname(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	out := inside(t, app, m.ID, "files", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc/sys/kernel/hostname").Stdout
	wantText(t, out, fmt.Sprintf("/etc/hostname 0644 %q", m.ID+"\n"), m.PrivateIP+`\tfly-local-6pn`, `\tfly-global-services`, "nameserver fdaa::3", fmt.Sprintf("hostname 0644 %q", m.ID+"\n"))
}

// TestFreshRootFS: what a machine wrote is gone after a stop and there after a
// suspend; so is its memory.
func TestFreshRootFS(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	m := start(t, app, web())
	write := func() {
		t.Helper()
		if a := request(t, "PUT", app, "/file?path=/tmp/note", strings.NewReader("kept")); a.StatusCode != 200 {
			t.Fatalf("write: %d %s", a.StatusCode, a.Text)
		}
	}
	write()
	number := get(t, app, "/").echo(t).Number
	want(t, admin().Suspend(t.Context(), app, m.ID))
	await(t, app, m.ID, machines.StateSuspended)
	if a := get(t, app, "/file?path=/tmp/note"); a.Text != "kept" {
		t.Errorf("after a suspend: got %d %q", a.StatusCode, a.Text)
	}
	if got := get(t, app, "/").echo(t).Number; got != number+1 {
		t.Errorf("after a suspend the process has answered %d requests, want %d: it is another one", got, number+1)
	}
	want(t, admin().Stop(t.Context(), app, m.ID, machines.StopRequest{}))
	await(t, app, m.ID, machines.StateStopped)
	if a := get(t, app, "/file?path=/tmp/note"); a.StatusCode != 404 {
		t.Errorf("after stop and start: got %d %q, want a fresh root file system", a.StatusCode, a.Text)
	}
	write()
	want(t, admin().Restart(t.Context(), app, m.ID, machines.StopRequest{}, false))
	await(t, app, m.ID, machines.StateStarted)
	if a := get(t, app, "/file?path=/tmp/note"); a.StatusCode != 404 {
		t.Errorf("after a restart: got %d %q, want a fresh root file system", a.StatusCode, a.Text)
	}
	if got := state(t, app, m.ID); got != machines.StateStarted {
		t.Errorf("state: got %s", got)
	}
}

// TestSecurity looks at the cage from inside, as an ordinary user and as root.
func TestSecurity(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	const swappiness = "/proc/sys/vm/swappiness"
	before, err := os.ReadFile(swappiness)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the machines have written to their own
		if after, err := os.ReadFile(swappiness); err != nil || string(after) != string(before) {
			t.Errorf("the host's swappiness: got %s, %v after %s", after, err, before)
		}
	})
	for _, user := range []string{"app", "root"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			c := job("security")
			c.Processes = []machines.Process{{User: user}}
			out := outcome(t, app, c)
			for _, name := range []string{"mount", "unshare", "sethostname", "settime", "reboot", "swapon", "sysctl", "sysrq", "kcore", "sysfs", "disk", "link"} {
				if i := strings.Index("\n"+out, "\n"+name+": "); i < 0 {
					t.Errorf("%s was not tried:\n%s", name, out)
				} else if line, _, _ := strings.Cut(out[i:], "\n"); strings.HasSuffix(line, "<nil>") {
					t.Errorf("a machine may: %s", line)
				}
			}
			wantText(t, out, "Seccomp: 2\n", "nofile: 10240 10240\n", "CapBnd: 00000000a80425fb\n")
			effective := map[string]string{"app": "0000000000000000", "root": "00000000a80425fb"}[user]
			wantText(t, out, "CapEff: "+effective+"\n")
			_, devices, _ := strings.Cut(out, "devices: ")
			devices, _, _ = strings.Cut(devices, "\n")
			got := strings.Fields(devices)
			for _, device := range got {
				if !slices.Contains([]string{
					"/dev/core", "/dev/fd", "/dev/full", "/dev/mqueue", "/dev/null", "/dev/ptmx", "/dev/pts", "/dev/random",
					"/dev/shm", "/dev/stderr", "/dev/stdin", "/dev/stdout", "/dev/tty", "/dev/urandom", "/dev/zero",
				}, device) {
					t.Errorf("a machine has %s", device)
				}
			}
			if len(got) < 10 {
				t.Errorf("devices: got %v", got)
			}
			_, processes, _ := strings.Cut(out, "processes: ")
			if n := strings.TrimSpace(processes); n != "1" && n != "2" { // tini and the probe
				t.Errorf("a machine sees %s processes, want its own", n)
			}
		})
	}
}
