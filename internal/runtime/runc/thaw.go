package runc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The clock ran on while a container was frozen, so a master process that
// watches its workers (gunicorn, uvicorn, PostgreSQL's postmaster) finds all of
// them overdue if it is scheduled before they are, and kills them. So a main
// process with children of its own is held back by SIGSTOP, which it finds
// pending when it thaws, until each of its descendants has run.
//
// To have run is not enough for a descendant that was frozen in select(2) or
// poll(2): the kernel goes on with the time that was left, and the process
// reports nothing until that is over (gunicorn's sync workers). Options.Nudge
// then gives it something to wake up for.

const (
	// headStart bounds how long a main process waits for the others: their
	// memory may have to come back from disk first.
	headStart = time.Second
	// nudged bounds a nudge and the wait for what it has woken. They come back
	// in a moment, but on a busy host each has to wait for its turn first.
	nudged = time.Second
	// lookAgain is how often the others are looked at.
	lookAgain = time.Millisecond
	// enoughCPU is what a woken process needs at most to report to its master,
	// also when its threads take turns; one that goes on longer is at work.
	enoughCPU = 20 * time.Millisecond
)

// master is a main process that is held back while its descendants thaw.
type master struct {
	pid    int
	others map[int]cpuTime // at the time of the hold
}

// heldMasters are the main processes that wait for their descendants. Each is
// let go by a goroutine that ends within headStart and nudged; who freezes the
// container again waits for that.
type heldMasters struct {
	mu      sync.Mutex
	pending map[string]chan struct{} // closed when the container's master goes on
}

// release lets m, of container id, go on in its time.
func (h *heldMasters) release(id string, m *master, o *Options) {
	done := make(chan struct{})
	h.mu.Lock()
	if h.pending == nil {
		h.pending = make(map[string]chan struct{})
	}
	h.pending[id] = done
	h.mu.Unlock()
	go func() {
		var nudge func(ctx context.Context, pids []int) ([]int, func())
		if o.Nudge != nil {
			nudge = func(ctx context.Context, pids []int) ([]int, func()) { return o.Nudge(ctx, id, pids) }
		}
		if err := m.release(nudge); err != nil {
			o.Log.Error("main process not let go", "container", id, "err", err)
		}
		h.mu.Lock()
		delete(h.pending, id)
		h.mu.Unlock()
		close(done)
	}()
}

// wait returns when nothing of container id is held back.
func (h *heldMasters) wait(id string) {
	h.mu.Lock()
	done := h.pending[id]
	h.mu.Unlock()
	if done != nil {
		<-done
	}
}

// waitAll returns when nothing is held back.
func (h *heldMasters) waitAll() {
	h.mu.Lock()
	ids := slices.Collect(maps.Keys(h.pending))
	h.mu.Unlock()
	for _, id := range ids {
		h.wait(id)
	}
}

// cpuTime is what the scheduler accounts to the threads of a process.
type cpuTime struct {
	ran    time.Duration
	turns  uint64
	asleep bool // all of them wait for something that is not the disk
	ended  bool // none will have a turn: stopped by a signal, or dead
}

// holdMaster stops the main process among pids, if it has children, and
// returns nil if there is none to hold back. The first process of a container
// is its init; the main process is init's child.
func holdMaster(pids []int) *master {
	parents := make(map[int]int, len(pids))
	for _, pid := range pids {
		if ppid, ok := parent(pid); ok {
			parents[pid] = ppid
		}
	}
	init := 0
	for pid, ppid := range parents {
		if _, inside := parents[ppid]; !inside && (init == 0 || pid < init) {
			init = pid
		}
	}
	main := 0
	children := make(map[int]int)
	for pid, ppid := range parents {
		children[ppid]++
		if ppid == init && (main == 0 || pid < main) {
			main = pid
		}
	}
	if main == 0 || children[main] == 0 {
		return nil
	}
	m := &master{pid: main, others: make(map[int]cpuTime)}
	for pid := range parents {
		if pid == init || pid == main {
			continue
		}
		if t, ok := readCPU(pid); ok {
			m.others[pid] = t
		}
	}
	if syscall.Kill(main, syscall.SIGSTOP) != nil {
		return nil // it ended: nobody watches
	}
	return m
}

// release lets the main process go on as soon as the others have run.
func (m *master) release(nudge func(ctx context.Context, pids []int) (sharers []int, end func())) error {
	pids := slices.Collect(maps.Keys(m.others))
	settle(m.others, time.Now().Add(headStart))
	if nudge != nil && len(pids) > 1 { // a single one has the request that waits
		others := make(map[int]cpuTime, len(pids))
		for _, pid := range pids {
			if t, alive := readCPU(pid); alive {
				others[pid] = t
			}
		}
		until := time.Now().Add(nudged)
		ctx, cancel := context.WithDeadline(context.Background(), until)
		defer cancel()
		sharers, end := nudge(ctx, pids)
		maps.DeleteFunc(others, func(pid int, before cpuTime) bool {
			now, alive := readCPU(pid)
			elsewhere := now.asleep && now.turns == before.turns // waits for something else, and was not woken
			return !alive || elsewhere || !slices.Contains(sharers, pid)
		})
		settle(others, until)
		end()
	}
	if err := syscall.Kill(m.pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("let process %d go on: %w", m.pid, err)
	}
	return nil
}

// settle waits until each process of others has had a turn since the time
// noted there and has gone back to sleep, or has had all the time it can need.
func settle(others map[int]cpuTime, deadline time.Time) {
	last := make(map[int]cpuTime, len(others))
	for len(others) > 0 && time.Now().Before(deadline) {
		for pid, before := range others {
			now, alive := readCPU(pid)
			settled := now.ended || now.asleep && now.turns > before.turns && now.turns == last[pid].turns
			if !alive || settled || now.ran-before.ran > enoughCPU {
				delete(others, pid)
			}
			last[pid] = now
		}
		if len(others) > 0 {
			timer := time.NewTimer(lookAgain)
			<-timer.C
		}
	}
}

// parent reads a process's parent.
func parent(pid int) (ppid int, ok bool) {
	_, ppid, ok = readStat(fmt.Sprintf("/proc/%d/stat", pid))
	return ppid, ok
}

// readStat reads state and parent from a stat file (proc_pid_stat(5)).
func readStat(file string) (state string, ppid int, ok bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", 0, false
	}
	// The name before stands in parentheses and may hold anything.
	rest := string(data[strings.LastIndexByte(string(data), ')')+1:])
	_, err = fmt.Sscan(rest, &state, &ppid)
	return state, ppid, err == nil
}

// readCPU adds up the threads of a process: schedstat has the time on the CPU,
// the time waiting for one, and how often it got one.
func readCPU(pid int) (sum cpuTime, alive bool) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return cpuTime{}, false
	}
	sum.asleep, sum.ended = true, true
	for _, task := range tasks {
		dir := fmt.Sprintf("/proc/%d/task/%s/", pid, task.Name())
		data, err := os.ReadFile(dir + "schedstat")
		if err != nil {
			continue // the thread ended
		}
		var ran, waited int64
		var turns uint64
		if _, err := fmt.Sscan(string(data), &ran, &waited, &turns); err != nil {
			continue
		}
		sum.ran += time.Duration(ran)
		sum.turns += turns
		if state, _, ok := readStat(dir + "stat"); ok {
			sum.asleep = sum.asleep && state != "R" && state != "D"
			sum.ended = sum.ended && strings.Contains("TtZX", state)
		}
	}
	return sum, true
}
