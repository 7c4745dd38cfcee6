package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/rollout"
)

const (
	// outputPause is how long lines of a release command are gathered before
	// they become an event.
	outputPause = 200 * time.Millisecond
	// maxCommandLines bounds what the events keep of a command's output; its
	// machine's log has all of it.
	maxCommandLines = 2000
	maxLineLength   = 4096
	// graceAfterExit is how long a command's machine may take to go away.
	graceAfterExit = 30 * time.Second
	// leastCommandWait is what is left of a command's time, at least, for a
	// process that takes it over: its end may be known only now.
	leastCommandWait = time.Second
)

// Command runs a command of a release in a machine of its own ("fly.toml",
// section 10.1). What such a machine did is told by its events, also after it
// is gone: an attempt that a crash cut short is never run twice.
func (c *cluster) Command(ctx context.Context, r *root.Release, step string, args []string, temporary root.MachineID, made func(root.MachineID) error, tell rollout.Tell) error {
	if r.Deploy.Ran != 0 {
		tell(root.ReleaseEvent{Step: step, Message: fmt.Sprintf("%s not run again: nothing has changed since v%d ran it (--run-release-command runs it)", words(step), r.Deploy.Ran)})
		return nil
	}
	m, err := c.commandMachine(ctx, r, step, temporary)
	if err != nil {
		return err
	}
	timeout := r.Deploy.ReleaseTimeout
	limit := "no time limit"
	if timeout > 0 {
		limit = "it may take " + timeout.String()
	}
	if m == nil {
		tell(root.ReleaseEvent{Step: step, Message: fmt.Sprintf("running %q in a temporary machine (%s)", strings.Join(args, " "), limit)})
		m, err = c.s.machines.Create(ctx, c.actor, r.App, CreateMachine{
			Name: commandName(r, step), Region: string(r.Groups[0].Region), Config: c.commandConfig(r, args), SkipLaunch: true,
			Release: &Pinned{Image: r.Image, Release: r.Version, Secrets: r.Secrets},
		})
		if err != nil {
			return fmt.Errorf("machine of the %s: %w", words(step), err)
		}
		if err := made(m.ID); err != nil {
			return err
		}
	}
	if !ran(m) {
		if _, err := c.s.machines.Start(ctx, c.actor, r.App, m.ID, ""); err != nil && !c.began(ctx, r.App, m.ID) {
			return c.commandFailed(ctx, r, step, m, err)
		}
	}
	err = c.outcome(ctx, r, m, bounds{
		step: step, what: "the " + words(step), began: beganAt(m, c.s.Now()), timeout: timeout,
		setting: "deploy.release_command_timeout", memory: "deploy.release_command_vm",
	}, tell)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx) // cancelled: the way back removes it; or the process ends, and another goes on
		}
		return c.commandFailed(ctx, r, step, m, err)
	}
	tell(root.ReleaseEvent{Step: step, Machine: m.ID, Message: fmt.Sprintf("the %s succeeded", words(step))})
	// It goes by itself; one that does not is removed.
	end, cancel := context.WithTimeout(ctx, graceAfterExit)
	defer cancel()
	_ = c.s.Catalog.Wait(end, func(sn *root.Snapshot) bool { return sn.Machine(m.ID) == nil })
	return c.Destroy(ctx, r.App, m.ID)
}

// bounds is what may be said of a command in a temporary machine.
type bounds struct {
	step    string
	what    string // "the release command"
	began   time.Time
	timeout time.Duration // 0 is none
	setting string        // that says the timeout
	memory  string        // that says its memory
}

// outcome passes on what the command of m writes, and returns what went wrong
// when it has ended, or has had its time.
func (c *cluster) outcome(ctx context.Context, r *root.Release, m *root.Machine, b bounds, tell rollout.Tell) error {
	wait := ctx
	if b.timeout > 0 {
		until := b.began.Add(b.timeout)
		tell(root.ReleaseEvent{Step: b.step, Machine: m.ID, Waiting: b.what + " to end", Until: until})
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeoutCause(ctx, max(until.Sub(c.s.Now()), leastCommandWait), errNotReady)
		defer cancel()
	}
	lines := c.output(ctx, r, b.step, m.ID, tell)
	exit, err := c.commandExit(wait, r.App, m.ID)
	lines.end(context.WithoutCancel(ctx))
	switch {
	case err == errNotReady: //nolint:errorlint // our own value
		return root.Errorf(root.Precondition, "it did not end within %s (%s)", b.timeout, b.setting)
	case err == nil && exit.OOMKilled:
		return root.Errorf(root.Precondition, "it ran out of memory: give it more with %s", b.memory)
	case err == nil && exit.Code != 0 && exit.Error != "":
		return root.Errorf(root.Precondition, "%s", exit.Error)
	case err == nil && exit.Code != 0:
		return root.Errorf(root.Precondition, "exit code %d", exit.Code)
	}
	return err
}

func words(step string) string { return strings.ReplaceAll(step, "_", " ") }

// commandName is the same at each attempt, so that there is one machine.
func commandName(r *root.Release, step string) string {
	return strings.ReplaceAll(step, "_", "-") + "-v" + strconv.Itoa(r.Version)
}

// commandMachine finds the machine of an attempt before a crash, living or
// gone, and removes those of other releases.
func (c *cluster) commandMachine(ctx context.Context, r *root.Release, step string, temporary root.MachineID) (*root.Machine, error) {
	machines, err := c.Machines(ctx, r.App)
	if err != nil {
		return nil, err
	}
	var found *root.Machine
	for _, m := range machines {
		switch {
		case m.Group() != root.GroupReleaseCommand:
		case m.Name == commandName(r, step):
			found = m
		default:
			if err := c.Destroy(ctx, r.App, m.ID); err != nil {
				return nil, err
			}
		}
	}
	if found != nil || temporary == "" {
		return found, nil
	}
	graves, err := c.s.Store.Tombstones(ctx, r.App)
	if err != nil {
		return nil, err
	}
	for _, m := range graves {
		if m.ID == temporary && m.Name == commandName(r, step) {
			return m, nil
		}
	}
	return nil, root.Errorf(root.Precondition,
		"the %s was begun on machine %s, which is gone, and nothing says how it ended: it is not run twice. Look at what it did, then deploy again", words(step), temporary)
}

// began reports whether a machine that would not start has been started before:
// a process that died had ordered it, and nobody had written it down.
func (c *cluster) began(ctx context.Context, app root.AppName, id root.MachineID) bool {
	if _, err := c.Machines(ctx, app); err != nil { // reads what was written
		return false
	}
	m := c.s.Catalog.Snapshot().Machine(id)
	if m == nil {
		var err error
		if m, err = c.s.machines.grave(ctx, app, id); err != nil {
			return false
		}
	}
	return ran(m)
}

// beganAt is when the command of m was started: before now where a process that
// died had started it, whose time counts.
func beganAt(m *root.Machine, now time.Time) time.Time {
	for _, e := range m.Status.Events { // newest first
		if e.Type == "start" && e.At.Before(now) {
			now = e.At
		}
	}
	return now
}

// ran reports whether the machine was ever started.
func ran(m *root.Machine) bool {
	return slices.ContainsFunc(m.Status.Events, func(e root.Event) bool { return e.Type == "start" || e.Type == "exit" })
}

// commandConfig is the machine of a command.
func (c *cluster) commandConfig(r *root.Release, args []string) root.Config {
	g := &r.Groups[0]
	for i := range r.Groups {
		if r.Groups[i].Name == "app" {
			g = &r.Groups[i]
		}
	}
	cfg := g.Config.Clone()
	out := root.Config{
		Image: r.Image.Ref(), Env: maps.Clone(cfg.Env), Init: root.Init{Entrypoint: cfg.Init.Entrypoint, Cmd: args}, Guest: c.commandGuest(r, g),
		Swap: cfg.Swap, Files: cfg.Files, Restart: root.Restart{Policy: root.RestartNo}, AutoDestroy: true, Stop: cfg.Stop,
		DNS: root.DNS{SkipRegistration: true}, Persist: cfg.Persist,
		Metadata: map[string]string{
			root.MetadataPlatform: root.PlatformManaged, root.MetadataProcessGroup: root.GroupReleaseCommand,
			root.MetadataReleaseID: string(r.ID), root.MetadataReleaseVersion: strconv.Itoa(r.Version),
		},
	}
	if out.Env == nil {
		out.Env = map[string]string{}
	}
	out.Env["RELEASE_COMMAND"], out.Env["FLY_PROCESS_GROUP"] = "1", root.GroupReleaseCommand
	if g.Region != "" {
		out.Env["PRIMARY_REGION"] = string(g.Region)
	}
	return out
}

// commandGuest is the size of a command's machine: as asked for, else that of
// the largest machine of the group, else shared-cpu-2x.
func (c *cluster) commandGuest(r *root.Release, g *root.Group) root.Guest {
	if r.Deploy.ReleaseGuest != nil {
		return *r.Deploy.ReleaseGuest
	}
	var largest root.Guest
	for _, m := range c.s.Catalog.Snapshot().Machines(r.App) {
		if m.Managed() && m.Group() == g.Name && m.Spec.Config.Guest.Memory > largest.Memory {
			largest = m.Spec.Config.Guest
		}
	}
	switch {
	case largest.Memory > 0:
		return largest
	case g.Sized:
		return g.Config.Guest
	}
	return root.Guest{CPUKind: "shared", CPUs: 2, Memory: 512 * root.MiB}
}

// commandExit waits for the end of a command, and finds it also in the record
// of a machine that is gone.
func (c *cluster) commandExit(ctx context.Context, app root.AppName, id root.MachineID) (root.Exit, error) {
	var exit *root.Exit
	var state root.State
	err := c.s.Catalog.Wait(ctx, func(sn *root.Snapshot) bool {
		m := sn.Machine(id)
		if m == nil {
			return true
		}
		exit, state = exitOf(m), m.Status.State
		return exit != nil || state == root.StateFailed || state == root.StateLaunchFailed
	})
	if err != nil {
		return root.Exit{}, err
	}
	if exit == nil {
		m, err := c.s.machines.grave(ctx, app, id)
		if err != nil {
			return root.Exit{}, root.Errorf(root.Precondition, "its machine is gone and nothing says how it ended")
		}
		if exit = exitOf(m); exit == nil {
			return root.Exit{}, root.Errorf(root.Precondition, "its machine was destroyed before it ended")
		}
	}
	return *exit, nil
}

// exitOf is how a machine last ended, after its last start.
func exitOf(m *root.Machine) *root.Exit {
	for _, e := range m.Status.Events { // newest first
		if e.Type == "exit" && e.Exit != nil {
			return e.Exit
		}
		if e.Type == "start" {
			return nil
		}
	}
	return nil
}

// commandFailed removes what is left of a command and says what happened.
func (c *cluster) commandFailed(ctx context.Context, r *root.Release, step string, m *root.Machine, cause error) error {
	err := c.s.diagnose(ctx, failure{
		what: fmt.Sprintf("the %s failed, the release is not rolled out", words(step)), app: r.App, machine: m.ID, instance: m.Spec.Instance,
		config: &m.Spec.Config, since: m.CreatedAt, err: cause, note: c.wrapped(ctx, m),
	})
	if e := c.Destroy(context.WithoutCancel(ctx), r.App, m.ID); e != nil {
		c.s.Log.Warn("machine of a failed command", "machine", m.ID, "err", e)
	}
	return err
}

// wrapped says that a command ran through the image's ENTRYPOINT, "" where it
// did not: one that starts the app, whatever it is told, never runs it.
func (c *cluster) wrapped(ctx context.Context, m *root.Machine) string {
	if i := m.Spec.Config.Init; len(i.Entrypoint) > 0 || len(i.Exec) > 0 {
		return ""
	}
	entry, err := c.s.Images.Entrypoint(ctx, m.Spec.Image.Digest)
	if err != nil {
		c.s.Log.Warn("entrypoint of an image", "image", m.Spec.Image.Digest, "err", err)
	}
	if len(entry) == 0 {
		return ""
	}
	return fmt.Sprintf("the image has an ENTRYPOINT, so what ran was %q: does that run the command it is given? If not, end it with exec \"$@\", or use CMD in place of it",
		strings.Join(slices.Concat(entry, m.Spec.Config.Init.Cmd), " "))
}

// output passes on what a command writes, from its log.
func (c *cluster) output(ctx context.Context, r *root.Release, step string, id root.MachineID, tell rollout.Tell) *commandOutput {
	o := &commandOutput{c: c, app: r.App, step: step, machine: id, tell: tell}
	o.sent = c.toldLines(ctx, r, step, id)
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	o.stop = stop
	o.wg.Go(func() { o.follow(follow) })
	return o
}

// toldLines is how many lines of the machine the events have already: those of
// an attempt that a crash cut short.
func (c *cluster) toldLines(ctx context.Context, r *root.Release, step string, id root.MachineID) int {
	n := 0
	err := c.s.Store.ReleaseEvents(ctx, r.App, r.Version, "", false, func(e root.ReleaseEvent) error {
		if e.Step == step && e.Machine == id {
			n += len(e.Lines)
		}
		return nil
	})
	if err != nil {
		c.s.Log.Warn("events of a release", "app", r.App, "release", r.Version, "err", err)
	}
	return n
}

// commandOutput follows the log of a command's machine.
type commandOutput struct {
	c       *cluster
	app     root.AppName
	step    string
	machine root.MachineID
	tell    rollout.Tell
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu   sync.Mutex
	sent int      // lines that events have; guarded by mu
	seen int      // lines read in this pass; guarded by mu
	held []string // guarded by mu
}

func (o *commandOutput) follow(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(outputPause)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				o.flush()
			}
		}
	})
	_ = o.read(ctx, true) // end reads again
	<-ctx.Done()
	wg.Wait()
}

func (o *commandOutput) read(ctx context.Context, follow bool) error {
	o.mu.Lock()
	o.seen = 0
	o.mu.Unlock()
	if o.c.s.Logs == nil {
		return nil
	}
	return o.c.s.Logs.Tail(ctx, o.app, LogFilter{Machine: o.machine}, follow, func(l LogLine) error {
		if l.Provider != LogApp && l.Provider != LogRelease {
			return nil
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.seen++; o.seen > o.sent+len(o.held) && o.seen <= maxCommandLines {
			o.held = append(o.held, clipText(l.Message, maxLineLength))
		}
		return nil
	})
}

func (o *commandOutput) flush() {
	o.mu.Lock()
	lines := o.held
	o.held, o.sent = nil, o.sent+len(lines)
	o.mu.Unlock()
	if len(lines) > 0 {
		o.tell(root.ReleaseEvent{Step: o.step, Machine: o.machine, Lines: lines})
	}
}

// end passes on what is left and ends the following.
func (o *commandOutput) end(ctx context.Context) {
	o.stop()
	o.wg.Wait()
	ctx, cancel := context.WithTimeout(ctx, diagnosisTime)
	defer cancel()
	if err := o.read(ctx, false); err != nil {
		o.c.s.Log.Warn("log of a release command", "machine", o.machine, "err", err)
	}
	o.flush()
	o.mu.Lock()
	more := o.seen - maxCommandLines
	o.mu.Unlock()
	if more > 0 {
		o.tell(root.ReleaseEvent{Step: o.step, Machine: o.machine, Warning: true, Message: fmt.Sprintf("%d more lines are in its log (roost logs)", more)})
	}
}
