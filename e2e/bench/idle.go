package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

// How long the platform rests before it is measured, and how long its use of
// the CPU is watched.
const idleRest, idleWatch = 10 * time.Second, 20 * time.Second

// idle measures the platform's own memory and CPU beside sleeping machines.
func (w *world) idle(ctx context.Context) error {
	made := 0
	for _, count := range []int{10, 100} {
		for ; made < count; made++ {
			app := fmt.Sprintf("sleeper-%d", made)
			m, err := w.run(ctx, app, web(helloImage))
			if err != nil {
				return err
			}
			if err := w.suspend(ctx, app, m, true); err != nil {
				return err
			}
		}
		if err := instance.Pause(ctx, idleRest); err != nil {
			return err
		}
		pids, err := w.processes(ctx)
		if err != nil {
			return err
		}
		var total int64
		var parts []string
		for _, p := range pids {
			pss, err := proportional(p.pid)
			if err != nil {
				return err
			}
			total += pss
			parts = append(parts, p.name+" "+mb(pss))
		}
		before, err := usedCPU(pids)
		if err != nil {
			return err
		}
		if err := instance.Pause(ctx, idleWatch); err != nil {
			return err
		}
		after, err := usedCPU(pids)
		if err != nil {
			return err
		}
		var used time.Duration
		var busy []string
		for i := range pids {
			used += after[i] - before[i]
			busy = append(busy, fmt.Sprintf("%s %.2f %%", pids[i].name, percent(after[i]-before[i])))
		}
		pssBar, cpuBar := int64(90<<20), 0.5
		if count != 10 {
			pssBar, cpuBar = 0, 0 // promised for ten
		}
		w.report.memory(fmt.Sprintf("Idle platform, %d sleeping apps: PSS of all its processes", count), total, pssBar, strings.Join(parts, ", "))
		w.report.cpu(fmt.Sprintf("Idle platform, %d sleeping apps: CPU, of one core", count), percent(used), cpuBar, strings.Join(busy, ", "))
	}
	return nil
}

func percent(d time.Duration) float64 { return 100 * float64(d) / float64(idleWatch) }

type process struct {
	pid  int
	name string
}

// processes are all the platform's: the server and what it has started,
// machines and what is in them left out.
func (w *world) processes(ctx context.Context) ([]process, error) {
	server, err := w.PID(ctx, "server")
	if err != nil {
		return nil, err
	}
	var slots []slot
	if err := w.order(ctx, http.MethodGet, "/instances", nil, &slots); err != nil {
		return nil, err
	}
	children, err := childrenOf()
	if err != nil {
		return nil, err
	}
	var found []process
	var walk func(pid int)
	walk = func(pid int) {
		if slices.ContainsFunc(slots, func(s slot) bool { return s.PID == pid }) {
			return
		}
		found = append(found, process{pid, nameOf(pid)})
		for _, c := range children[pid] {
			walk(c)
		}
	}
	walk(server)
	return found, nil
}

// nameOf is "server" for `roost server`, else the program's name.
func nameOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(string(data), "\x00")
	if err != nil || len(args) < 2 {
		return strconv.Itoa(pid)
	}
	program := args[0][strings.LastIndexByte(args[0], '/')+1:]
	if program == "roost" {
		return args[1]
	}
	return program
}

func childrenOf() (map[int][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue // not a process
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it ended
		}
		// Fields after the name, which may hold anything: state, parent.
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], pid)
	}
	return children, nil
}

// proportional is a process's PSS: pages that several processes share count
// in equal parts.
func proportional(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kb int64
		if _, err := fmt.Sscanf(s.Text(), "Pss: %d kB", &kb); err == nil {
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("process %d has no Pss in smaps_rollup", pid)
}

func usedCPU(list []process) ([]time.Duration, error) {
	used := make([]time.Duration, len(list))
	for i, p := range list {
		var err error
		if used[i], err = cpuTime(p.pid); err != nil {
			return nil, err
		}
	}
	return used, nil
}
