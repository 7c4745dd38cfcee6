package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

const (
	probe   = "registry.localhost/probe:latest"
	app     = "vm"
	host    = app + ".localhost"
	program = "/usr/local/bin/roost"
	memory  = 256 // megabytes of a machine
	eaten   = 100 // megabytes that the machine that is suspended has in use

	// patience is how long a check waits for something to happen by itself.
	patience = 5 * time.Minute
)

// world is what the checks share; what the next start of the virtual machine
// needs of it is in its file.
type world struct {
	api *machines.Client

	Web, Idle string // machines
	cgroup    string // web's
	pid       int    // web's first process
	served    int64  // requests that web's process has answered
}

const worldFile = "/root/world.json"

// check is one thing that is shown; it says in a few words what was seen.
type check struct {
	name string
	run  func(ctx context.Context, w *world) (seen string, err error)
}

func newWorld() *world {
	return &world{api: machines.New(machines.Options{BaseURL: "unix:///run/roost/api.sock"})}
}

// tell runs checks in order; one that fails does not keep the others from
// being tried.
func (w *world) tell(ctx context.Context, checks []check) {
	for _, c := range checks {
		begin := time.Now()
		cctx, cancel := context.WithTimeout(ctx, 2*patience)
		seen, err := c.run(cctx, w)
		cancel()
		took := time.Since(begin).Round(100 * time.Millisecond)
		if err != nil {
			fmt.Printf("%s%s (%s): %v\n", failMark, c.name, took, strings.ReplaceAll(err.Error(), "\n", "\n"+noteMark))
			lastWords(ctx)
			continue
		}
		fmt.Printf("%s%s (%s): %s\n", okMark, c.name, took, seen)
	}
}

// lastWords prints the end of the unit's journal, without the access log.
func lastWords(ctx context.Context) {
	out, err := exec.CommandContext(ctx, "journalctl", "--unit=roost", "--no-pager", "--lines=2000", "--output=short-precise", "--no-hostname").Output()
	if err != nil {
		fmt.Println(noteMark, err)
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(line string) bool {
		return strings.Contains(line, "]: {") || strings.Contains(line, " msg=etcd ") // on a slow host it complains of it
	})
	for _, line := range lines[max(0, len(lines)-60):] {
		fmt.Println(noteMark+"|", line)
	}
}

func runService(ctx context.Context, only string) {
	describe()
	// A module once loaded stays, with its settings: here before the look at
	// the host, as where anything else uses the firewall.
	if out, err := exec.CommandContext(ctx, "modprobe", "nf_conntrack").CombinedOutput(); err != nil {
		fmt.Println(failMark, err, string(out))
	}
	before, err := instance.ReadHost(ctx)
	if err != nil {
		fmt.Println(failMark, err)
		return
	}
	w := newWorld()
	checks := []check{
		{"install the binary and the unit; systemctl enable --now", install},
		{"roost doctor finds no problem", examine},
		{"an app, a machine from a loaded image, a request", firstRequest},
		{"the machine's control group is outside the unit's, with its limits", ownGroup},
		{"lxcfs: /proc/meminfo inside is the machine's", meminfo},
		{"a suspended machine's memory goes to zram, and comes back", reclaimed},
		{"out of memory: killed, noted, started again", outOfMemory},
		{"systemctl daemon-reload and daemon-reexec leave the groups alone", reexec},
		{"systemctl stop: the machine runs on", stop},
		{"systemctl start: the machine is adopted", start},
		{"systemctl reload (another binary) under requests: none is lost", reload},
		{"kill -9 of the server under requests: none is lost", kill},
		{"systemctl restart under requests: none is refused or lost", restart},
		{"roost server stop --machines: the host is as before", func(ctx context.Context, w *world) (string, error) {
			return undo(ctx, before)
		}},
		{"systemctl start again: the machine is started", again},
		{"a second machine, suspended", twoMachines},
	}
	at := slices.IndexFunc(checks, func(c check) bool { return strings.HasPrefix(c.name, "systemctl daemon-reload") })
	checks = slices.Insert(checks, at, deployChecks()...)
	if only != "" {
		checks = slices.Concat(checks[:3], slices.DeleteFunc(checks[3:], func(c check) bool { return !chosen(c.name, only) }))
	}
	w.tell(ctx, checks)
	data, err := json.Marshal(w)
	if err == nil {
		err = os.WriteFile(worldFile, data, 0o600)
	}
	if err != nil {
		fmt.Println(failMark, err)
	}
}

// runStart looks at the host after its start, and leaves it as it was found
// for the next one.
func runStart(ctx context.Context) {
	w := newWorld()
	data, err := os.ReadFile(worldFile)
	if err == nil {
		err = json.Unmarshal(data, w)
	}
	if err != nil {
		fmt.Println(failMark, err)
		return
	}
	w.tell(ctx, []check{
		{"the host starts: the unit runs", await},
		{"the host starts: the machine that was started is started", func(ctx context.Context, w *world) (string, error) {
			if err := w.reach(ctx, w.Web, machines.StateStarted); err != nil {
				return "", err
			}
			return w.remember(ctx)
		}},
		{"the host starts: the machine that was suspended is stopped", func(ctx context.Context, w *world) (string, error) {
			if err := w.reach(ctx, w.Idle, machines.StateStopped); err != nil {
				return "", err
			}
			m, err := w.api.Get(ctx, app, w.Idle)
			if err != nil || len(m.Events) == 0 {
				return "", fmt.Errorf("no events: %w", err)
			}
			return fmt.Sprintf("last event: %s, %s %s", m.Events[0].Type, m.Events[0].Status, m.Events[0].Reason), nil
		}},
		{"it can be started and suspended again", func(ctx context.Context, w *world) (string, error) {
			if _, err := w.api.Start(ctx, app, w.Idle); err != nil {
				return "", err
			}
			return w.sleep(ctx)
		}},
	})
}

// sleep lets the idle machine be suspended.
func (w *world) sleep(ctx context.Context) (string, error) {
	if err := w.reach(ctx, w.Idle, machines.StateStarted); err != nil {
		return "", err
	}
	if err := w.api.Suspend(ctx, app, w.Idle); err != nil {
		return "", err
	}
	return "suspended", w.reach(ctx, w.Idle, machines.StateSuspended)
}

// systemctl gives its output as the error's text.
func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// property is one of the unit's.
func property(ctx context.Context, name string) string {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--value", "--property="+name, "roost").Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

func cli(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("roost %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// cliJSON runs a command that reads, and fills v.
func cliJSON(ctx context.Context, v any, args ...string) error {
	out, err := exec.CommandContext(ctx, program, append(args, "--json")...).Output()
	if err != nil {
		return fmt.Errorf("roost %s: %w", strings.Join(args, " "), err)
	}
	return json.Unmarshal(out, v)
}

// until polls what sends no event.
func until(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		if instance.Pause(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		}
	}
}

func install(ctx context.Context, w *world) (string, error) {
	if err := errors.Join(copyFile(share+"/tree/bin/roost", program), copyFile(share+"/tree/packaging/roost.service", "/etc/systemd/system/roost.service"),
		os.Chmod("/etc/systemd/system/roost.service", 0o644)); err != nil {
		return "", err
	}
	// The only settings that are not the default: nobody wants to wait a minute,
	// or until a step has filled half of the memory.
	dropIn := "/etc/systemd/system/roost.service.d"
	if err := errors.Join(os.MkdirAll(dropIn, 0o755), os.WriteFile(dropIn+"/vm.conf", []byte("[Service]\nEnvironment=ROOST_RECLAIM_AFTER=1s ROOST_BUILD_MEMORY="+buildMemory+"\n"), 0o644)); err != nil {
		return "", err
	}
	if err := errors.Join(systemctl(ctx, "daemon-reload"), systemctl(ctx, "enable", "--now", "roost")); err != nil {
		return "", err
	}
	return await(ctx, w)
}

// await waits until the unit is active and the API answers.
func await(ctx context.Context, w *world) (string, error) {
	err := until(ctx, "the API", func() error {
		if state := property(ctx, "ActiveState"); state != "active" {
			return errors.New("the unit is " + state)
		}
		_, _, err := w.api.Regions(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	return "active, process " + property(ctx, "MainPID"), nil
}

func examine(ctx context.Context, _ *world) (string, error) {
	out, err := cli(ctx, "doctor")
	if err != nil {
		return "", err
	}
	var warnings []string
	for line := range strings.Lines(out) {
		fmt.Print(noteMark, line)
		if strings.Contains(line, "warning") {
			warnings = append(warnings, strings.TrimSpace(line))
		}
	}
	fmt.Println()
	return fmt.Sprintf("%d warnings", len(warnings)), nil
}

func config() machines.Config {
	return machines.Config{
		Image: probe, Guest: &machines.Guest{CPUKind: "shared", CPUs: 1, MemoryMB: memory},
		Services: []machines.Service{{
			Protocol: "tcp", InternalPort: 8080, Ports: []machines.Port{{Port: 80, Handlers: []string{"http"}}},
			Concurrency: &machines.Concurrency{Type: "requests"},
		}},
	}
}

func firstRequest(ctx context.Context, w *world) (string, error) {
	if _, err := cli(ctx, "image", "load", share+"/probe.tar"); err != nil {
		return "", err
	}
	if _, err := cli(ctx, "app", "create", app); err != nil {
		return "", err
	}
	m, err := w.api.Create(ctx, app, machines.CreateRequest{Name: "web", Config: config()})
	if err != nil {
		return "", err
	}
	w.Web = m.ID
	if err := w.reach(ctx, w.Web, machines.StateStarted); err != nil {
		return "", err
	}
	return w.remember(ctx)
}

// reach waits for a machine's state.
func (w *world) reach(ctx context.Context, id string, want machines.State) error {
	return until(ctx, id+" "+string(want), func() error {
		m, err := w.api.Get(ctx, app, id)
		if err == nil && m.State != want {
			err = errors.New("it is " + string(m.State))
		}
		return err
	})
}

// get asks the app through port 80.
func get(ctx context.Context, path string) ([]byte, error) { return request(ctx, http.MethodGet, path) }

func request(ctx context.Context, method, path string) ([]byte, error) {
	return requestOf(ctx, host, method, path)
}

func requestOf(ctx context.Context, host, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Host = host
	resp, err := (&http.Client{Timeout: instance.RequestTimeout, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: status %d: %.300s", method, path, resp.StatusCode, body)
	}
	return body, nil
}

// remember notes web's process and its count of requests; see same.
func (w *world) remember(ctx context.Context) (string, error) {
	n, err := ask(ctx)
	if err != nil {
		return "", err
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/roost-*/*/cgroup.procs")
	if err != nil {
		return "", err
	}
	for _, file := range groups {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		for field := range strings.FieldsSeq(string(data)) {
			environ, _ := os.ReadFile("/proc/" + field + "/environ")
			if !strings.Contains(string(environ), "FLY_MACHINE_ID="+w.Web) {
				continue
			}
			w.cgroup, w.served = filepath.Dir(file), n
			if w.pid, err = strconv.Atoi(field); err != nil {
				return "", err
			}
			return fmt.Sprintf("machine %s is process %d", w.Web, w.pid), nil
		}
	}
	return "", fmt.Errorf("no control group has a process of %s: %v", w.Web, groups)
}

// ask returns how many requests the process that answers has answered.
func ask(ctx context.Context) (int64, error) {
	body, err := get(ctx, "/")
	if err != nil {
		return 0, err
	}
	var echo struct{ Number int64 }
	return echo.Number, json.Unmarshal(body, &echo)
}

// same makes sure that web's process is the one that it was.
func (w *world) same(ctx context.Context) (string, error) {
	n, err := ask(ctx)
	if err != nil {
		return "", err
	}
	if n <= w.served {
		return "", fmt.Errorf("the machine was started anew: it answered %d requests, after %d", n, w.served)
	}
	if err := w.alive(); err != nil {
		return "", err
	}
	w.served = n
	return fmt.Sprintf("the same process %d, request %d", w.pid, n), nil
}

func (w *world) alive() error {
	data, err := os.ReadFile(filepath.Join(w.cgroup, "cgroup.procs"))
	if err != nil {
		return err
	}
	for field := range strings.FieldsSeq(string(data)) {
		if field == strconv.Itoa(w.pid) {
			return nil
		}
	}
	return fmt.Errorf("process %d is not in %s", w.pid, w.cgroup)
}

func (w *world) value(file string) string {
	data, err := os.ReadFile(filepath.Join(w.cgroup, file))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data))
}

func (w *world) bytes(file string) int64 {
	n, _ := strconv.ParseInt(w.value(file), 10, 64) // "max" is 0
	return n
}

func ownGroup(_ context.Context, w *world) (string, error) {
	parent := filepath.Dir(w.cgroup)
	lent, err := os.ReadFile(filepath.Join(parent, "cgroup.subtree_control"))
	if err != nil {
		return "", err
	}
	limit := w.bytes("memory.max")
	if limit != memory<<20 {
		return "", fmt.Errorf("memory.max is %s", w.value("memory.max"))
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !strings.Contains(" "+strings.TrimSpace(string(lent))+" ", " "+c+" ") {
			return "", fmt.Errorf("%s does not lend %s: %s", parent, c, lent)
		}
	}
	total, err := os.ReadFile(filepath.Join(parent, "memory.max"))
	if err != nil || strings.TrimSpace(string(total)) == "max" {
		return "", fmt.Errorf("all machines together have no limit: %s, %w", total, err)
	}
	return fmt.Sprintf("%s: memory.max %s MB, swap %s, cpu.weight %s, pids.max %s; together at most %s bytes", w.cgroup, strconv.Itoa(int(limit>>20)), w.value("memory.swap.max"), w.value("cpu.weight"), w.value("pids.max"), strings.TrimSpace(string(total))), nil
}

func meminfo(ctx context.Context, _ *world) (string, error) {
	body, err := get(ctx, "/file?path=/proc/meminfo")
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(body), "\n")
	if fields := strings.Fields(line); len(fields) < 2 || fields[1] != strconv.Itoa(memory<<10) {
		return "", fmt.Errorf("got %q, want %d kB", line, memory<<10)
	}
	uptime, err := get(ctx, "/file?path=/proc/uptime")
	if err != nil {
		return "", err
	}
	return line + "; uptime " + strings.TrimSpace(string(uptime)), nil
}

// reclaimed suspends web with memory in use.
func reclaimed(ctx context.Context, w *world) (string, error) {
	if _, err := get(ctx, "/eat?mb="+strconv.Itoa(eaten)); err != nil {
		return "", err
	}
	before, allowed := w.bytes("memory.current"), w.value("memory.swap.max")
	if before < eaten<<20 {
		return "", fmt.Errorf("the machine uses only %d bytes", before)
	}
	if err := w.api.Suspend(ctx, app, w.Web); err != nil {
		return "", err
	}
	if err := w.reach(ctx, w.Web, machines.StateSuspended); err != nil {
		return "", err
	}
	if frozen := w.value("cgroup.events"); !strings.Contains(frozen, "frozen 1") {
		return "", fmt.Errorf("not frozen: %s", frozen)
	}
	last := before
	if err := until(ctx, "reclaim", func() error {
		now := w.bytes("memory.current")
		if err := instance.Pause(ctx, time.Second); err != nil {
			return err
		}
		if last = w.bytes("memory.current"); last != now || now > before/10 {
			return fmt.Errorf("memory.current is %d MB of %d MB", last>>20, before>>20)
		}
		return nil
	}); err != nil {
		return "", err
	}
	asleep, swapped := last, w.bytes("memory.swap.current")
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(swaps), "/dev/zram") {
		return "", fmt.Errorf("no zram: %s", swaps)
	}
	stat := ""
	if names, _ := filepath.Glob("/sys/block/zram*/mm_stat"); len(names) > 0 {
		if data, err := os.ReadFile(names[0]); err == nil {
			if f := strings.Fields(string(data)); len(f) > 2 {
				stored, _ := strconv.Atoi(f[0])
				used, _ := strconv.Atoi(f[2])
				stat = fmt.Sprintf("zram holds %d MB in %.1f MB", stored>>20, float64(used)/(1<<20))
			}
		}
	}
	begin := time.Now()
	seen, err := w.same(ctx)
	if err != nil {
		return "", fmt.Errorf("wake: %w", err)
	}
	took := time.Since(begin).Round(time.Millisecond)
	if now := w.value("memory.swap.max"); now != allowed {
		return "", fmt.Errorf("memory.swap.max is %s after the wake, it was %s", now, allowed)
	}
	return fmt.Sprintf("memory.current %d MB awake, %.1f MB suspended (swap %d MB, %s); the request that wakes took %s; %s", before>>20, float64(asleep)/(1<<20), swapped>>20, stat, took, seen), nil
}

func outOfMemory(ctx context.Context, w *world) (string, error) {
	// POST, which the proxy does not repeat.
	if _, err := request(ctx, http.MethodPost, "/eat?mb="+strconv.Itoa(2*memory)); err == nil {
		return "", errors.New("the machine took twice its memory")
	}
	var note string
	if err := until(ctx, "the exit is noted", func() error {
		events, err := w.api.Events(ctx, app, w.Web, 20)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Request != nil && e.Request.ExitEvent != nil && e.Request.ExitEvent.OOMKilled {
				note = fmt.Sprintf("exit code %d, oom_killed", e.Request.ExitEvent.ExitCode)
				return nil
			}
		}
		return errors.New("no exit with oom_killed")
	}); err != nil {
		return "", err
	}
	status, err := cli(ctx, "machine", "status", w.Web, "--app", app)
	if err != nil {
		return "", err
	}
	if !strings.Contains(status, "out of memory") {
		return "", fmt.Errorf("machine status does not name it: %s", status)
	}
	if err := w.reach(ctx, w.Web, machines.StateStarted); err != nil {
		return "", err
	}
	seen, err := w.remember(ctx)
	return note + "; " + seen, err
}

func reexec(ctx context.Context, w *world) (string, error) {
	if err := errors.Join(systemctl(ctx, "daemon-reload"), systemctl(ctx, "daemon-reexec"), systemctl(ctx, "restart", "systemd-networkd")); err != nil {
		return "", err
	}
	// Another unit with limits makes systemd write the root's controllers anew.
	if out, err := exec.CommandContext(ctx, "systemd-run", "--wait", "--property=CPUWeight=50", "--property=MemoryMax=50M", "/bin/true").CombinedOutput(); err != nil {
		return "", fmt.Errorf("systemd-run: %w: %s", err, out)
	}
	if limit := w.bytes("memory.max"); limit != memory<<20 {
		return "", fmt.Errorf("memory.max is %s", w.value("memory.max"))
	}
	if weight := w.bytes("cpu.weight"); weight == 0 {
		return "", fmt.Errorf("cpu.weight is %s", w.value("cpu.weight"))
	}
	return w.same(ctx)
}

func stop(ctx context.Context, w *world) (string, error) {
	if err := systemctl(ctx, "stop", "roost"); err != nil {
		return "", err
	}
	if state := property(ctx, "ActiveState"); state != "inactive" {
		return "", fmt.Errorf("the unit is %s", state)
	}
	if data, err := os.ReadFile("/sys/fs/cgroup/system.slice/roost.service/cgroup.procs"); err == nil && len(data) > 0 {
		return "", fmt.Errorf("the unit left processes: %s", data)
	}
	if _, err := ask(ctx); err == nil {
		return "", errors.New("the app still answers")
	}
	return fmt.Sprintf("unit inactive without processes, process %d is there", w.pid), w.alive()
}

func start(ctx context.Context, w *world) (string, error) {
	if err := systemctl(ctx, "start", "roost"); err != nil {
		return "", err
	}
	if _, err := await(ctx, w); err != nil {
		return "", err
	}
	return w.same(ctx)
}

// under does something while requests come, and says how it went for them.
func under(ctx context.Context, do func() error) (answered int, lost, err error) {
	load := &instance.Load{Addr: "127.0.0.1:80", Host: host, Path: "/"}
	load.Start(ctx)
	err = errors.Join(instance.Pause(ctx, 2*time.Second), do(), instance.Pause(ctx, 3*time.Second))
	answered, lost = load.Stop()
	return answered, lost, err
}

func reload(ctx context.Context, w *world) (string, error) {
	pid := property(ctx, "MainPID")
	answered, lost, err := under(ctx, func() error {
		if err := copyFile(share+"/tree/bin/roost", program); err != nil {
			return err
		}
		if err := systemctl(ctx, "reload", "roost"); err != nil {
			return err
		}
		return until(ctx, "the new binary", func() error {
			if n := processes(); n != 3 {
				return fmt.Errorf("%d processes run it", n)
			}
			_, err := await(ctx, w)
			return err
		})
	})
	if err := errors.Join(lost, err); err != nil {
		return "", err
	}
	if now := property(ctx, "MainPID"); now != pid {
		return "", fmt.Errorf("the main process is %s, it was %s", now, pid)
	}
	seen, err := w.same(ctx)
	return fmt.Sprintf("main process %s still, %d requests answered; %s", pid, answered, seen), err
}

// processes counts those that run the program as it is on disk, and gives a
// negative number while others run what was there before.
func processes() int {
	n, stale := 0, 0
	names, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, name := range names {
		switch exe, _ := os.Readlink(name); exe { // it may have ended
		case program:
			n++
		case program + " (deleted)":
			stale++
		}
	}
	if stale > 0 {
		return -stale
	}
	return n
}

func kill(ctx context.Context, w *world) (string, error) {
	pid := property(ctx, "MainPID")
	answered, lost, err := under(ctx, func() error {
		if err := systemctl(ctx, "kill", "--kill-whom=main", "--signal=KILL", "roost"); err != nil {
			return err
		}
		return until(ctx, "another server process", func() error {
			if now := property(ctx, "MainPID"); now == pid || now == "0" {
				return errors.New("main process " + now)
			}
			_, err := await(ctx, w)
			return err
		})
	})
	if err := errors.Join(lost, err); err != nil {
		return "", err
	}
	seen, err := w.same(ctx)
	return fmt.Sprintf("process %s, then %s, %d requests answered; %s", pid, property(ctx, "MainPID"), answered, seen), err
}

// restart ends everything but the machines; connections wait with systemd.
func restart(ctx context.Context, w *world) (string, error) {
	pid := property(ctx, "MainPID")
	var took time.Duration
	answered, lost, err := under(ctx, func() error {
		begin := time.Now()
		if err := systemctl(ctx, "restart", "roost"); err != nil {
			return err
		}
		_, err := await(ctx, w)
		took = time.Since(begin).Round(100 * time.Millisecond)
		return err
	})
	if err := errors.Join(lost, err); err != nil {
		return "", err
	}
	now := property(ctx, "MainPID")
	if now == pid {
		return "", errors.New("the main process is still " + pid)
	}
	seen, err := w.same(ctx)
	return fmt.Sprintf("process %s, then %s, %d requests answered; from the order to the API's answer %s; %s", pid, now, answered, took, seen), err
}

func undo(ctx context.Context, before instance.HostState) (string, error) {
	if _, err := cli(ctx, "server", "stop", "--machines"); err != nil {
		return "", err
	}
	if err := until(ctx, "the unit is inactive", func() error {
		if state := property(ctx, "ActiveState"); state != "inactive" {
			return errors.New("it is " + state)
		}
		return nil
	}); err != nil {
		return "", err
	}
	// Longer than systemd would take to start it again.
	if err := instance.Pause(ctx, 3*time.Second); err != nil {
		return "", err
	}
	if state := property(ctx, "ActiveState"); state != "inactive" {
		return "", fmt.Errorf("the unit is %s again", state)
	}
	return "and stays so", instance.CheckRestored(ctx, before, nil)
}

func again(ctx context.Context, w *world) (string, error) {
	if err := systemctl(ctx, "start", "roost"); err != nil {
		return "", err
	}
	if _, err := await(ctx, w); err != nil {
		return "", err
	}
	m, err := w.api.Get(ctx, app, w.Web)
	if err != nil {
		return "", err
	}
	first := m.State
	if _, err := w.api.Start(ctx, app, w.Web); err != nil {
		return "", err
	}
	if err := w.reach(ctx, w.Web, machines.StateStarted); err != nil {
		return "", err
	}
	seen, err := w.remember(ctx)
	return fmt.Sprintf("it was %s; %s", first, seen), err
}

func twoMachines(ctx context.Context, w *world) (string, error) {
	c := config()
	c.Services = nil
	m, err := w.api.Create(ctx, app, machines.CreateRequest{Name: "idle", Config: c})
	if err != nil {
		return "", err
	}
	w.Idle = m.ID
	return w.sleep(ctx)
}
