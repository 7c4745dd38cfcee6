package machinelog

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
)

// The names under which processes write beside the machines. No machine has
// such a name.
const (
	Control root.MachineID = "_control"
	Edge    root.MachineID = "_edge"
)

// process reports whether a writer's name is a process's.
func process(id root.MachineID) bool { return strings.HasPrefix(string(id), "_") }

const (
	// maxOpen bounds the files that a process has open: most apps are silent.
	maxOpen = 64
	// reopenAfter is how long a file stays open without a line: what is not
	// written to may be removed (Enforce), and then begins anew.
	reopenAfter = time.Minute
	// repeatAfter is how long a line that says the same again is left out.
	repeatAfter = 10 * time.Second
	// maxRepeats bounds what is remembered of lines that may come again.
	maxRepeats = 1000
)

// Apps is one process's own lines in the logs of apps. It is safe for
// concurrent use; its methods lose lines rather than fail or wait.
type Apps struct {
	dir     func(root.AppName) string
	name    root.MachineID
	budget  root.Bytes // for each app
	region  root.Region
	log     *slog.Logger
	now     func() time.Time
	mu      sync.Mutex
	open    map[root.AppName]*appWriter
	repeats map[repeatKey]*repeat
}

type appWriter struct {
	*Writer
	used time.Time
}

type repeatKey struct {
	app root.AppName
	key string
}

type repeat struct {
	at   time.Time
	more int // since then
}

// NewApps returns the lines of the process with that name; dir says where an
// app's log is.
func NewApps(name root.MachineID, dir func(root.AppName) string, budget root.Bytes, region root.Region, log *slog.Logger) *Apps {
	return &Apps{
		dir: dir, name: name, budget: budget, region: region, log: log, now: time.Now,
		open: make(map[root.AppName]*appWriter), repeats: make(map[repeatKey]*repeat),
	}
}

// Say records a message, one line or several, about an app and one of its
// machines, if any.
func (a *Apps) Say(app root.AppName, machine root.MachineID, provider, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.say(app, machine, provider, message)
}

// SayOnce is Say for what may happen with every request: what has the same key
// as a line of the last few seconds is only counted, and the count said with
// the next one.
func (a *Apps) SayOnce(app root.AppName, machine root.MachineID, provider, key, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	k := repeatKey{app, key}
	r := a.repeats[k]
	if r != nil && now.Sub(r.at) < repeatAfter {
		r.more++
		return
	}
	if r == nil {
		if len(a.repeats) >= maxRepeats {
			for old, o := range a.repeats {
				if now.Sub(o.at) >= repeatAfter {
					delete(a.repeats, old)
				}
			}
		}
		if len(a.repeats) >= maxRepeats {
			return // a flood of different lines: the first ones have to do
		}
		r = &repeat{}
		a.repeats[k] = r
	}
	if r.more > 0 {
		message = fmt.Sprintf("%s (and %d times more in the %s before)", message, r.more, now.Sub(r.at).Round(time.Second))
	}
	*r = repeat{at: now}
	a.say(app, machine, provider, message)
}

func (a *Apps) say(app root.AppName, machine root.MachineID, provider, message string) {
	now := a.now()
	w := a.open[app]
	if w != nil && now.Sub(w.used) > reopenAfter {
		_ = w.Close() // every write has been checked
		w = nil
	}
	if w == nil {
		opened, err := Open(a.dir(app), a.name, a.budget)
		if err != nil {
			delete(a.open, app)
			a.log.Warn("log of app not opened", "app", app, "err", err)
			return
		}
		w = &appWriter{Writer: opened}
		if a.open[app] == nil && len(a.open) >= maxOpen {
			for other, o := range a.open { // any: it is opened again when needed
				_ = o.Close() // every write has been checked
				delete(a.open, other)
				break
			}
		}
		a.open[app] = w
	}
	w.used = now
	s := Source{Machine: machine, App: app, Region: a.region}
	for line := range strings.Lines(message) {
		for line = strings.TrimRight(line, "\r\n"); len(line) > maxLine; {
			cut := runeStart([]byte(line[:maxLine]))
			w.say(s, provider, line[:cut])
			line = line[cut:]
		}
		w.say(s, provider, line)
	}
}

// Close closes the files; lines that come later open them again.
func (a *Apps) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for app, w := range a.open {
		_ = w.Close() // every write has been checked
		delete(a.open, app)
	}
}
