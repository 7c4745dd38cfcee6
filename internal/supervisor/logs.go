package supervisor

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/machinelog"
	"github.com/roost-run/roost/internal/orders"
)

// logSource says who prints.
type logSource struct {
	app      root.AppName
	machine  root.MachineID
	instance root.InstanceID
}

type logWriter = machinelog.Writer

// logs holds one writer for each machine, whose versions share it.
type logs struct {
	dir    func(root.AppName) string
	budget root.Bytes
	region root.Region
	log    *slog.Logger

	mu   sync.Mutex
	open map[root.MachineID]*logWriter
}

func (l *logs) writer(s logSource) *logWriter {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.open[s.machine]
	if w != nil {
		return w
	}
	w, err := machinelog.Open(l.dir(s.app), s.machine, l.budget)
	if err != nil {
		// The machine runs without a log rather than not at all.
		l.log.Error("machine log not opened", "app", s.app, "machine", s.machine, "err", err)
		return nil
	}
	l.open[s.machine] = w
	return w
}

func (l *logs) of(s logSource) machinelog.Source {
	return machinelog.Source{App: s.app, Instance: s.instance, Region: l.region}
}

// stream is where a boot's output goes.
func (l *logs) stream(s logSource, b *orders.Boot) io.WriteCloser {
	if w := l.writer(s); w != nil {
		of := l.of(s)
		of.Provider = b.Log
		return w.Stream(of, "stdout")
	}
	return discard{}
}

// platform writes a line of the platform's own.
func (l *logs) platform(s logSource, line string) {
	if w := l.writer(s); w != nil {
		w.Platform(l.of(s), line)
	}
}

// proxy writes why the edge ordered something, if it said so.
func (l *logs) proxy(s logSource, source orders.Source, reason string) {
	if source != orders.SourceProxy || reason == "" {
		return
	}
	if w := l.writer(s); w != nil {
		w.Proxy(l.of(s), reason)
	}
}

// forget closes the writer of a machine that has no instance left.
func (l *logs) forget(id root.MachineID) {
	l.mu.Lock()
	w := l.open[id]
	delete(l.open, id)
	l.mu.Unlock()
	if w == nil {
		return
	}
	if err := w.Close(); err != nil {
		l.log.Warn("machine log not closed", "machine", id, "err", err)
	}
}

func (l *logs) close() {
	l.mu.Lock()
	open := l.open
	l.open = map[root.MachineID]*logWriter{}
	l.mu.Unlock()
	for id, w := range open {
		if err := w.Close(); err != nil {
			l.log.Warn("machine log not closed", "machine", id, "err", err)
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

// preparing is the line that announces a boot; command is the whole line, the
// part after the colon, or the bare command.
func preparing(command string) string {
	const intro = "Preparing to run: "
	switch {
	case strings.HasPrefix(command, intro):
		return command
	case strings.HasPrefix(command, "`"):
		return intro + command
	}
	return intro + "`" + command + "`"
}

// ending is the line that tells of an exit, in Fly's words, which tools read.
func ending(e orders.Exit) string {
	switch {
	case e.Code < 0:
		return "Main child ended while the platform was away, its exit code is unknown"
	case e.OOMKilled:
		return fmt.Sprintf("Out of memory: the kernel killed a process of this machine; it exited with code %d", e.Code)
	case e.Signal != 0:
		return fmt.Sprintf("Main child exited with signal (with signal '%s', core dumped? false)", unix.SignalName(unix.Signal(e.Signal)))
	}
	return fmt.Sprintf("Main child exited normally with code: %d", e.Code)
}
