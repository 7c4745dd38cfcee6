// Package instance runs a Roost of its own on this host, for the end-to-end
// tests, the demo and the benchmarks: own directories, ports and names, the
// command line as a person has it, processes that can be killed, a load of
// requests that nobody repeats, and the comparison of the host before and after.
package instance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/roost-run/roost/machines"
)

// Instance is a Roost of our own beside whatever else runs on the host: own
// directories, own ports, own names in the kernel.
type Instance struct {
	Binary string // bin/roost
	Dir    string // holds data, run and the log
	Edge   string // "127.0.0.1:41234": where apps answer
	API    string // "http://127.0.0.1:41235"
	Token  string // the admin's

	settings []string
	cmd      *exec.Cmd
	exited   chan struct{}
	log      *os.File
	mu       sync.Mutex // guards exitErr
	exitErr  error
}

// startTimeout is how long the platform may take to answer its first call:
// generous, since other tests may use the same two cores.
const startTimeout = time.Minute

// Start starts `roost server` with the given settings ("--flag=value")
// and waits until its API answers.
func Start(ctx context.Context, binary string, settings ...string) (_ *Instance, err error) {
	// Not a test's own temporary directory: sockets live here, and their
	// paths have to be short (unix(7)).
	dir, err := os.MkdirTemp("/tmp", "roost-")
	if err != nil {
		return nil, err
	}
	in := &Instance{Binary: binary, Dir: dir, settings: settings}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.Close(context.WithoutCancel(ctx)))
		}
	}()
	edge, err := freePort()
	if err != nil {
		return nil, err
	}
	api, err := freePort()
	if err != nil {
		return nil, err
	}
	in.Edge, in.API = edge, "http://"+api
	if in.log, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		return nil, err
	}
	if err := in.Serve(ctx); err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(in.data(), "admin.token"))
	if err != nil {
		return nil, err
	}
	in.Token = strings.TrimSpace(string(token))
	return in, nil
}

func (in *Instance) data() string { return filepath.Join(in.Dir, "data") }

// Run is the instance's run directory.
func (in *Instance) Run() string { return filepath.Join(in.Dir, "run") }

// LogFile is where the platform's processes write.
func (in *Instance) LogFile() string { return in.log.Name() }

// Serve starts the server process, for the first time or again, and waits
// until the API answers.
func (in *Instance) Serve(ctx context.Context) error {
	args := append([]string{
		"server", "--data", in.data(), "--run", in.Run(), "--listen", in.Edge + "=80",
		"--api", strings.TrimPrefix(in.API, "http://"), "--config", os.DevNull,
	}, in.settings...)
	in.cmd = exec.Command(in.Binary, args...)
	in.cmd.Stdout, in.cmd.Stderr = in.log, in.log
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ROOST_") })
	if err := in.cmd.Start(); err != nil {
		return err
	}
	in.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { // ends with the process; Close waits for it
		err := cmd.Wait()
		in.mu.Lock()
		in.exitErr = err
		in.mu.Unlock()
		close(exited)
	}(in.cmd, in.exited)

	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("the API did not answer within %s", startTimeout))
	defer cancel()
	for {
		probe := machines.New(machines.Options{BaseURL: "unix://" + filepath.Join(in.Run(), "api.sock")})
		_, _, err := probe.Regions(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-in.exited:
			return fmt.Errorf("roost server ended: %w\n%s", in.exitError(), in.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)\n%s", context.Cause(ctx), err, in.LogTail(20))
		default:
		}
		if err := Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%w\n%s", err, in.LogTail(20))
		}
	}
}

func (in *Instance) exitError() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.exitErr == nil {
		return errors.New("exit code 0")
	}
	return in.exitErr
}

func (in *Instance) running() bool {
	select {
	case <-in.exited:
		return false
	default:
		return true
	}
}

// LogTail returns the last lines of the platform's log, without the access log.
func (in *Instance) LogTail(lines int) string {
	data, err := os.ReadFile(in.LogFile())
	if err != nil {
		return err.Error()
	}
	all := slices.DeleteFunc(strings.Split(strings.TrimRight(string(data), "\n"), "\n"), func(line string) bool { return strings.HasPrefix(line, "{") })
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Close stops the machines and the platform and removes the directory.
func (in *Instance) Close(ctx context.Context) error {
	var err error
	if in.cmd != nil && in.cmd.Process != nil && in.running() {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if _, stopErr := in.CLI(ctx, "server", "stop", "--machines", "--run", in.Run()); stopErr != nil {
			err = errors.Join(err, stopErr, in.cmd.Process.Kill())
		}
		select {
		case <-in.exited:
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("the server did not stop: %w\n%s", context.Cause(ctx), in.LogTail(20)), in.cmd.Process.Kill())
			<-in.exited
		}
	}
	if in.log != nil {
		err = errors.Join(err, in.log.Close())
	}
	if err != nil {
		return fmt.Errorf("%w (its files are kept in %s)", err, in.Dir)
	}
	return os.RemoveAll(in.Dir)
}

// Result is what a command of the command line said.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// CLI runs the command line as the admin. A failure is an error with
// everything it said; the Result is complete either way.
func (in *Instance) CLI(ctx context.Context, args ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, in.Binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "ROOST_URL=unix://"+filepath.Join(in.Run(), "api.sock"), "HOME="+in.Dir, "XDG_CONFIG_HOME="+in.Dir)
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	if err != nil {
		return r, fmt.Errorf("roost %s: %w\n%s%s", strings.Join(args, " "), err, r.Stdout, r.Stderr)
	}
	return r, nil
}

// Client is a Machines API client with the given token over TCP.
func (in *Instance) Client(token string) *machines.Client {
	return machines.New(machines.Options{BaseURL: in.API, Token: token})
}

// PID returns the process id of one of the platform's processes: "server",
// "control" or "edge".
func (in *Instance) PID(ctx context.Context, process string) (int, error) {
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(in.Run(), "supervisor.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://roost/v1/host", nil)
	if err != nil {
		return 0, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var host struct {
		PID      int
		Children map[string]int
	}
	if err := json.NewDecoder(resp.Body).Decode(&host); err != nil {
		return 0, err
	}
	pid := host.Children[process]
	if process == "server" {
		pid = host.PID
	}
	if pid == 0 {
		return 0, fmt.Errorf("no process %q among %v", process, host.Children)
	}
	return pid, nil
}

// Kill ends one of the platform's processes without warning.
func (in *Instance) Kill(ctx context.Context, process string) error {
	pid, err := in.PID(ctx, process)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill -9 %s (%d): %w", process, pid, err)
	}
	if process == "server" {
		<-in.exited
	}
	return nil
}

// Marks are the strings that everything this instance makes on the host
// carries.
func (in *Instance) Marks() []string { return []string{in.Dir, filepath.Base(in.Dir)} }

// freePort finds a loopback port nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return "127.0.0.1:" + strconv.Itoa(port), l.Close()
}
