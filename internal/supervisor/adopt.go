package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
)

// adopt finds what an earlier server process started.
func (c *children) adopt(ctx context.Context) error {
	var old map[string]childProcess
	if err := readJSON(c.paths.children(), &old); err != nil {
		return err
	}
	for name, p := range old {
		exited, err := c.foreign.watch(ctx, p.PID, p.ProcStart)
		if err != nil {
			continue // it ended
		}
		p.exited = exited
		c.adopted[name] = p
	}
	return c.endStrays()
}

// endStrays ends children that an earlier server process started and was
// killed before it had noted them.
func (c *children) endStrays() error {
	for _, name := range []string{childControl, childEdge, childBuilder} {
		pids, err := running(c.argv(name))
		if err != nil {
			return err
		}
		for _, pid := range pids {
			st, err := readStat(pid)
			// Until it is another program, what a process starts looks like it.
			if err != nil || pid == c.adopted[name].PID || slices.Contains(pids, st.parent) {
				continue
			}
			c.log.Warn("child that nobody has noted is ended", "child", name, "pid", pid)
			if err := endStray(pid, st.startedAt); err != nil {
				return fmt.Errorf("end %s %d: %w", name, pid, err)
			}
		}
	}
	return nil
}

func endStray(pid int, started uint64) error {
	fd, err := openPidfd(pid, started)
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	defer fd.Close()
	if err := unix.PidfdSendSignal(int(fd.Fd()), unix.SIGKILL, nil, 0); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// running lists the processes with this command line. Those of another PID
// namespace are left out: a server in a container may have the same paths.
func running(argv []string) (pids []int, err error) {
	const pidNamespace = "ns/pid"
	own, err := os.Readlink("/proc/self/" + pidNamespace)
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	want := strings.Join(argv, "\x00") + "\x00"
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || string(data) != want {
			continue // it ended, or is another one
		}
		if ns, err := os.Readlink(filepath.Join(dir, pidNamespace)); err != nil || ns != own {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// heldSockets finds the sockets that an earlier server process opened.
func heldSockets(p *paths, from *inherited) (map[orders.Listener]*os.File, error) {
	var notes []heldSocket
	if err := readJSON(p.sockets(), &notes); err != nil {
		return nil, err
	}
	inodes := map[uint64]bool{}
	for _, n := range notes {
		inodes[n.Inode] = true
	}
	files, err := from.take(inodes)
	out := map[orders.Listener]*os.File{}
	for _, n := range notes {
		if f := files[n.Inode]; f != nil {
			out[n.Listener] = f
		}
	}
	return out, err
}

func takeFrom(p childProcess, inodes map[uint64]bool) (map[uint64]*os.File, error) {
	if p.PID == 0 || len(inodes) == 0 {
		return nil, nil
	}
	fd, err := openPidfd(p.PID, p.ProcStart)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	return takeSockets(p.PID, fd, inodes)
}

// readJSON fills v; a file that does not exist leaves it as it is.
func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// adopt takes over, for as long as ctx, what earlier server processes left: slots from their
// files, machines that run, and the truth about those that do not any more.
func (a *slots) adopt(ctx context.Context, rebooted bool, from *inherited) error {
	lives := a.journal.lives()
	if rebooted {
		// Nothing of before runs. Files may be left where the run directory
		// is on a disk.
		if err := os.RemoveAll(filepath.Join(a.cfg.Run, "slots")); err != nil {
			return err
		}
	}
	files, err := a.slotFiles()
	if err != nil {
		return err
	}
	existing, err := a.driver.List(ctx)
	if err != nil {
		return fmt.Errorf("adopt machines: %w", err)
	}
	byContainer := map[string]runtime.Existing{}
	for _, e := range existing {
		byContainer[e.ID] = e
	}
	inodes := map[uint64]bool{}
	for _, f := range files {
		inodes[f.Socket] = true
	}
	sockets, err := from.take(inodes)
	if err != nil {
		a.log.Warn("sockets of machines not taken over", "err", err)
	}
	for _, f := range files {
		if err := a.adoptSlot(ctx, f, lives[f.Instance], byContainer, sockets[f.Socket]); err != nil {
			// One unreadable instance must not hold up its neighbours.
			a.log.Error("instance not adopted", "machine", f.Machine, "instance", f.Instance, "err", err)
			continue
		}
		delete(lives, f.Instance)
	}
	// What the journal knows and no file does: its exit is not journalled, or
	// it has no files because the host was started anew.
	for id, last := range lives {
		e := orders.Entry{At: time.Now(), Machine: last.Machine, App: last.App, Instance: id, Generation: last.Generation, Number: last.Number}
		if p := orders.PhaseAfter(last.Type); p != "" && p != orders.PhaseStopped {
			e.Type, e.Exit = orders.EntryExited, &orders.Exit{Code: -1, Requested: last.Type == orders.EntryStopping}
			e.Reason = "it ended while the platform was down"
			if rebooted {
				e.Reason = orders.ReasonHostRestarted
			}
			a.journal.append(e)
			e.Exit, e.Reason = nil, ""
		}
		e.Type = orders.EntryRemoved
		a.journal.append(e)
	}
	a.journal.flush(a.journal.last())
	a.deleteStrays(ctx, byContainer)
	return nil
}

// slotFiles reads every slot's file.
func (a *slots) slotFiles() ([]slotFile, error) {
	entries, err := os.ReadDir(filepath.Join(a.cfg.Run, "slots"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []slotFile
	for _, e := range entries {
		var f slotFile
		err := readJSON(filepath.Join(a.cfg.Run, "slots", e.Name(), "slot.json"), &f)
		if err != nil || string(f.Instance) != e.Name() {
			a.log.Error("instance's file is unreadable, ignored", "instance", e.Name(), "err", err)
			continue
		}
		out = append(out, f)
	}
	return out, nil
}

// adoptSlot takes one instance over. Containers it owns are removed from
// byContainer.
func (a *slots) adoptSlot(ctx context.Context, f slotFile, last orders.Entry, byContainer map[string]runtime.Existing, api *os.File) error {
	s := &slot{all: a, id: f.Instance, api: api, phase: orders.PhaseStopped, changed: make(chan struct{})}
	s.machine, s.app, s.generation, s.leaseUntil = f.Machine, f.App, f.Generation, f.LeaseUntil
	s.next = f.Next
	s.stamp, s.since = last.Stamp, last.At
	if s.api == nil {
		l, err := a.listenMachine(f.Instance)
		if err != nil {
			return err
		}
		s.api = l
	}
	phase := orders.PhaseAfter(last.Type)
	if b := f.Running; b != nil {
		delete(byContainer, b.Container)
		r := &run{boot: *b, pid: f.PID, procStart: f.ProcStart, startedAt: f.StartedAt, source: s.source(), ended: make(chan struct{}), oomKills: f.OOMKills}
		s.run = r
		s.phase = phase
		exited, err := a.adoptRun(ctx, r)
		if err != nil {
			a.log.Info("machine ended while the platform was away", "machine", s.machine, "instance", s.id, "err", err)
		}
		code := -1
		if f.Exit != nil {
			code = *f.Exit
		}
		r.stopAsked = phase == orders.PhaseStopping
		a.share(s)
		a.resettle(ctx, s, r, exited != nil)
		a.tasks.Go(func() {
			if exited == nil {
				s.exited(ctx, r, code)
				return
			}
			if code, ok := await(ctx, exited); ok {
				s.exited(ctx, r, code)
			} else {
				s.leave(r)
			}
		})
		return nil
	}
	a.share(s)
	if phase == orders.PhaseStarting {
		// The server process died in a start. If there is a container, it is a
		// stray that is deleted.
		s.phase = phase
		s.record(orders.Entry{Type: orders.EntryFailed, Number: last.Number, Source: last.Source, Reason: last.Reason, Error: "the platform's server process ended during the start"})
		if s.next != nil && s.next.Number == last.Number {
			s.next = nil
		}
	} else if phase != "" && phase != orders.PhaseStopped {
		s.phase = phase
		s.record(orders.Entry{Type: orders.EntryExited, Number: last.Number, Exit: &orders.Exit{Code: -1, Requested: phase == orders.PhaseStopping}})
	}
	s.save()
	return nil
}

func (a *slots) share(s *slot) {
	a.mu.Lock()
	a.byID[s.id] = s
	a.mu.Unlock()
}

// adoptRun takes over a running boot's process and output.
func (a *slots) adoptRun(ctx context.Context, r *run) (<-chan int, error) {
	if f := a.terminals[r.boot.Container]; f != nil {
		delete(a.terminals, r.boot.Container)
		r.out = carry(f, a.logs.stream(r.source, &r.boot))
	}
	if !r.boot.TTY {
		if f, err := openFIFO(a.fifo(r.boot.Instance, r.boot.Container), true); err == nil {
			r.out = carry(f, a.logs.stream(r.source, &r.boot))
		} else {
			a.log.Warn("machine output not taken over", "machine", r.boot.Machine, "err", err)
		}
	}
	exited, err := a.foreign.watch(ctx, r.pid, r.procStart)
	if err == nil {
		if err := a.swaps.Restore(r.boot.Container, a.swapOf(r.boot, r.source), r.pid); err != nil {
			a.log.Warn("swap that a machine had turned on is not restored", "machine", r.boot.Machine, "err", err)
		}
	}
	return exited, err
}

// resettle brings an adopted run into the state that the journal says, since
// the old process may have died between a deed and its entry.
func (a *slots) resettle(ctx context.Context, s *slot, r *run, alive bool) {
	if !alive {
		return
	}
	switch s.phase {
	case orders.PhaseSuspended:
		if err := a.driver.Freeze(r.boot.Container); err != nil {
			a.log.Error("suspended machine not frozen", "machine", s.machine, "err", err)
		}
		s.mu.Lock()
		s.reclaimDue = time.Now().Add(a.reclaimAfter)
		s.mu.Unlock()
		a.kickReclaim()
	case orders.PhaseSuspending:
		if err := a.driver.Thaw(r.boot.Container); err != nil {
			a.log.Error("machine not thawed", "machine", s.machine, "err", err)
		}
		s.record(orders.Entry{Type: orders.EntryResumed, Number: r.boot.Number, PID: r.pid, Source: orders.SourceHost, Reason: "the platform's server process was restarted"})
	case orders.PhaseStopping:
		timeout := r.boot.Stop.Timeout
		if timeout <= 0 {
			timeout = root.DefaultStopTimeout
		}
		a.tasks.Go(func() { s.insist(ctx, r, timeout) })
	case orders.PhaseStarted:
		if err := a.driver.Thaw(r.boot.Container); err != nil {
			a.log.Error("machine not thawed", "machine", s.machine, "err", err)
		}
	default:
		s.record(orders.Entry{Type: orders.EntryStarted, Number: r.boot.Number, PID: r.pid, Source: orders.SourceHost, Reason: "the platform's server process was restarted"})
	}
	s.mark()
}

// deleteStrays deletes containers that no slot knows: an earlier process died
// between making one and noting it.
func (a *slots) deleteStrays(ctx context.Context, byContainer map[string]runtime.Existing) {
	for id := range byContainer {
		clean, cancel := context.WithTimeout(ctx, cleanTimeout)
		if err := a.driver.Delete(clean, id, true); err != nil {
			a.log.Error("stray container not deleted", "container", id, "err", err)
		}
		cancel()
	}
}
