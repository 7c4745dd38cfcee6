package real

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// folder writes files into a directory of their own.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// imageOf builds a folder and returns the image, and what the build said.
func imageOf(t *testing.T, i *instance.Instance, app, dir string, flags ...string) (ref, said string) {
	t.Helper()
	r, err := i.CLI(t.Context(), append([]string{"image", "build", dir, "--app", app}, flags...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout), r.Stderr
}

// A Dockerfile becomes an image that runs, and again at once the same one.
func TestBuildDockerfile(t *testing.T) {
	t.Parallel()
	app := newApp(t)
	dir := folder(t, map[string]string{
		"Dockerfile":    "# syntax=docker/dockerfile:1\nFROM " + probe + " AS made\nUSER root\nRUN [\"/app\", \"whoami\", \"in the build of " + app + "\"]\nCOPY page.txt /made/page.txt\nFROM " + probe + "\nCOPY --from=made /made /made\nENV LISTEN=0.0.0.0:8081\n",
		"page.txt":      "a page",
		"left-out.txt":  "x",
		".dockerignore": "left-out.txt\n",
	})
	ref, said := imageOf(t, in, app, dir)
	wantText(t, said, "uid=0 gid=0", `args=["in the build of `+app+`"]`, "sending 3 of 3 files")
	config := web()
	config.Image, config.Services[0].InternalPort = ref, 8081
	m := start(t, app, config)
	if e := get(t, app, "/").echo(t); e.Machine != m.ID {
		t.Errorf("answered by %s, want %s", e.Machine, m.ID)
	}
	out, err := admin().Exec(t.Context(), app, m.ID, machines.ExecRequest{Command: []string{"/app", "files", "/made/page.txt", "/left-out.txt"}})
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out.Stdout, `/made/page.txt 0644 "a page"`, "/left-out.txt missing")
	again, said := imageOf(t, in, app, dir)
	if digest(again) != digest(ref) || strings.Contains(said, "uid=0 gid=0") || strings.Contains(said, "sending") {
		t.Errorf("again: got %s, want %s, nothing run and nothing sent:\n%s", again, ref, said)
	}
}

func digest(ref string) string {
	_, d, _ := strings.Cut(ref, "@")
	return d
}

// A step of a build reaches neither the host nor machines, and is ended with
// its client, its builder, or when it wants too much memory.
func TestBuildIsolation(t *testing.T) {
	t.Parallel()
	i := ownInstance(t, "--build-memory=160MB")
	app := "shop"
	if _, err := i.AsRoot().CreateApp(t.Context(), machines.CreateAppRequest{Name: app, OrgSlug: "personal"}); err != nil {
		t.Fatal(err)
	}
	m, err := i.AsRoot().Create(t.Context(), app, machines.CreateRequest{Config: web()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.AsRoot().Wait(t.Context(), app, m.ID, machines.WaitOptions{State: machines.StateStarted, Timeout: patience}); err != nil {
		t.Fatal(err)
	}

	// A service of the host on every address it has.
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	targets := []string{"127.0.0.1:" + port, "172.19.0.1:4280", net.JoinHostPort(m.PrivateIP, "8080"), "169.254.169.254:80", "10.0.0.1:80"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() != nil && !ip.IsLoopback() {
			targets = append(targets, net.JoinHostPort(ip.String(), port))
		}
	}
	const dns = "172.19.0.1:53"
	file := "FROM " + probe + "\nRUN [\"/app\", \"dial\", \"" + strings.Join(append(targets, dns), "\", \"") + "\"]\n"
	_, said := imageOf(t, i, app, folder(t, map[string]string{"Dockerfile": file}), "--no-cache")
	wantText(t, said, "dial "+dns+" yes")
	for _, target := range targets {
		wantText(t, said, "dial "+target+" no")
	}

	hungry := folder(t, map[string]string{"Dockerfile": "FROM " + probe + "\nRUN [\"/app\", \"eat\", \"1000\"]\n"})
	r, err := i.CLI(t.Context(), "image", "build", hungry, "--app", app)
	if err == nil {
		t.Fatal("a step that eats 1000 MB of 160: got no error")
	}
	wantText(t, r.Stderr, "out of memory", "160", "build_memory", "Dockerfile:2")
	if status, _, text := ask(t, i, app, "", "/"); status != http.StatusOK {
		t.Errorf("the app after it: %d %.200s", status, text)
	}

	// The builder is killed: its steps go, and the next build has another one.
	endless := folder(t, map[string]string{"Dockerfile": "FROM " + probe + "\nRUN [\"/app\", \"wait\", \"stubborn\", \"" + filepath.Base(i.Dir) + "\"]\n"})
	failed := make(chan error, 1)
	go func() {
		_, err := i.CLI(t.Context(), "image", "build", endless, "--app", app)
		failed <- err
	}()
	step := "stubborn\x00" + filepath.Base(i.Dir)
	eventually(t, func() string {
		if len(processesWith(t, step)) == 0 {
			return "the step does not run"
		}
		return ""
	})
	builders := processesWith(t, "builder\x00--run\x00"+i.Run())
	for _, pid := range builders {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if err := <-failed; err == nil {
		t.Error("a build without its builder: got no error")
	}
	eventually(t, func() string { // one that is dying may still take a connection
		for _, pid := range builders {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Sprintf("the builder that was killed, %d, is still there (%v)", pid, err)
			}
		}
		return ""
	})
	eventually(t, func() string {
		if pids := processesWith(t, step); len(pids) > 0 {
			return "the step still runs"
		}
		return ""
	})
	imageOf(t, i, app, folder(t, map[string]string{"Dockerfile": "FROM " + probe + "\nENV A=b\n"}))
}

// processesWith lists processes with such a part of their command line.
func processesWith(t *testing.T, part string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(data), part) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
