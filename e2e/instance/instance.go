// Package instance runs a Roost of its own on this host, for the end-to-end
// tests, the demo and the benchmarks: own directories, ports and names, the
// command line as a person has it, processes that can be killed, a load of
// requests that nobody repeats, and the comparison of the host before and after.
package instance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
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
	answered bool // the API did once: there may be machines
	cmd      *exec.Cmd
	exited   chan struct{}
	log      *os.File
	mu       sync.Mutex // guards exitErr
	exitErr  error
}

// How long the platform may take to answer its first call, and to stop with
// its machines: generous, since other programs may use the same processors.
const (
	startTimeout = 3 * time.Minute
	closeTimeout = 3 * time.Minute
)

// Start starts `roost server` with the given settings ("--flag=value")
// and waits until its API answers.
func Start(ctx context.Context, binary string, settings ...string) (*Instance, error) {
	in, err := New(binary, settings...)
	if err != nil {
		return nil, err
	}
	return in, in.Open(ctx)
}

// New makes an instance's directory and chooses its ports. Open starts it.
func New(binary string, settings ...string) (_ *Instance, err error) {
	// Not a test's own temporary directory: sockets live here, and their
	// paths have to be short (unix(7)).
	dir, err := os.MkdirTemp("/tmp", "roost-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	edge, err := FreePort()
	if err != nil {
		return nil, err
	}
	api, err := FreePort()
	if err != nil {
		return nil, err
	}
	in := &Instance{Binary: binary, Dir: dir, Edge: loopback(edge), API: "http://" + loopback(api), settings: settings}
	in.log, err = in.openLog()
	return in, err
}

// logName is the file in an instance's directory where the platform writes.
const logName = "server.log"

func (in *Instance) openLog() (*os.File, error) {
	return os.OpenFile(filepath.Join(in.Dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// Open starts an instance of New and waits until its API answers. When it
// fails, nothing of the instance is left.
func (in *Instance) Open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, in.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := in.Serve(ctx); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(in.data(), "admin.token"))
	if err != nil {
		return err
	}
	in.Token = strings.TrimSpace(string(token))
	return nil
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
			in.answered = true
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

// LogTail returns the last lines of what the platform says, without the access
// log and what lxcfs says of the kernel.
func (in *Instance) LogTail(lines int) string { return logTail(in.LogFile(), lines) }

// maxLogLine is where LogTail cuts lines.
const maxLogLine = 400

func logTail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	var kept []string
	crash := false // the lines of one have no form
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		ours := strings.HasPrefix(line, "time=")
		crash = !ours && (crash || strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "Error: "))
		if !ours && !crash {
			continue
		}
		if len(line) > maxLogLine {
			line = line[:maxLogLine] + "..."
		}
		kept = append(kept, line)
	}
	return strings.Join(kept[max(0, len(kept)-lines):], "\n")
}

// Close stops the machines and the platform and removes the directory.
func (in *Instance) Close(ctx context.Context) error {
	var err error
	if in.answered || in.cmd != nil && in.cmd.Process != nil && in.running() {
		ctx, cancel := context.WithTimeoutCause(ctx, closeTimeout, fmt.Errorf("it took more than %s", closeTimeout))
		defer cancel()
		err = in.stop(ctx)
	}
	if in.log != nil {
		err = errors.Join(err, in.log.Close())
	}
	if err != nil {
		return fmt.Errorf("close the instance: %w (its files are kept in %s)", err, in.Dir)
	}
	return os.RemoveAll(in.Dir)
}

// stop ends the machines and the platform. A server process that was killed
// gets a successor first, which takes back what it left.
func (in *Instance) stop(ctx context.Context) error {
	if !in.running() {
		if err := in.Serve(ctx); err != nil {
			return fmt.Errorf("start a server process again, to stop its machines: %w", err)
		}
	}
	_, err := in.CLI(ctx, "server", "stop", "--machines", "--run", in.Run())
	if err != nil {
		err = errors.Join(err, in.cmd.Process.Kill())
	}
	select {
	case <-in.exited:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("the server did not stop: %w\n%s", context.Cause(ctx), in.LogTail(20)), in.cmd.Process.Kill())
		<-in.exited
	}
	return err
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
// carries: its directory, and the prefix of links, tables and control groups,
// which Roost derives from the data directory.
func (in *Instance) Marks() []string {
	sum := sha256.Sum256([]byte(in.data()))
	return []string{in.Dir, filepath.Base(in.Dir), fmt.Sprintf("roost-%x", sum[:3]), fmt.Sprintf("roost_%x", sum[:3])}
}

// given are the ports that this process has chosen.
var given struct {
	sync.Mutex
	ports map[int]bool
}

// Ports are chosen from here up to where the kernel begins to choose by
// itself: one of those may be another program's connection a moment later.
const (
	firstPort = 15000
	portTries = 1000
)

// FreePort chooses a loopback port that nobody listens on, and that nobody is
// given by the kernel.
func FreePort() (int, error) {
	last := 32768
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var lowest int
		if _, err := fmt.Sscan(string(data), &lowest); err == nil && lowest > firstPort+portTries {
			last = lowest
		}
	}
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = map[int]bool{}
	}
	var err error
	for range portTries {
		port := firstPort + rand.IntN(last-firstPort)
		if given.ports[port] {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", loopback(port)); err != nil {
			continue
		}
		given.ports[port] = true
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port between %d and %d: %w", firstPort, last, err)
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
