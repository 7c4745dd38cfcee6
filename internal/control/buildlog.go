package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	root "github.com/roost-run/roost"
)

// buildLog turns a build's news into lines of the app's log, as BuildKit's
// plain progress does: every step has a number.
type buildLog struct {
	journal LogWriter
	app     root.AppName
	steps   map[string]*buildStep
}

type buildStep struct {
	number int
	named  bool
	done   bool
	rest   string // an unfinished line
}

// solveStatus is what is read of BuildKit's client.SolveStatus.
type solveStatus struct {
	Vertexes []struct {
		Digest    string
		Name      string
		Started   *time.Time
		Completed *time.Time
		Cached    bool
		Error     string
	}
	Logs []struct {
		Vertex string
		Data   []byte
	}
}

func newBuildLog(journal LogWriter, app root.AppName) *buildLog {
	return &buildLog{journal: journal, app: app, steps: make(map[string]*buildStep)}
}

func (b *buildLog) say(format string, args ...any) {
	b.journal.Log(LogEntry{App: b.app, Provider: LogBuild, Message: fmt.Sprintf(format, args...)})
}

// news takes what the builder says.
func (b *buildLog) news(n BuildNews) {
	if n.Log != "" {
		b.say("%s", n.Log)
	}
	var s solveStatus
	if n.Status == nil || json.Unmarshal(n.Status, &s) != nil {
		return
	}
	for _, v := range s.Vertexes {
		step := b.step(v.Digest)
		if v.Started != nil && !step.named && v.Name != "" {
			step.named = true
			b.say("#%d %s", step.number, v.Name)
		}
	}
	for _, l := range s.Logs {
		step := b.step(l.Vertex)
		text := step.rest + string(l.Data)
		for {
			line, rest, whole := strings.Cut(text, "\n")
			if !whole {
				break
			}
			b.say("#%d %s", step.number, strings.TrimRight(line, "\r"))
			text = rest
		}
		step.rest = text
	}
	for _, v := range s.Vertexes {
		if step := b.step(v.Digest); v.Completed != nil && !step.done && step.named {
			step.done = true
			b.flush(step)
			switch {
			case v.Error != "":
				b.say("#%d ERROR: %s", step.number, v.Error)
			case v.Cached:
				b.say("#%d CACHED", step.number)
			case v.Started != nil:
				b.say("#%d DONE %.1fs", step.number, v.Completed.Sub(*v.Started).Seconds())
			}
		}
	}
}

func (b *buildLog) step(digest string) *buildStep {
	s := b.steps[digest]
	if s == nil {
		s = &buildStep{number: len(b.steps) + 1}
		b.steps[digest] = s
	}
	return s
}

func (b *buildLog) flush(s *buildStep) {
	if s.rest != "" {
		b.say("#%d %s", s.number, s.rest)
		s.rest = ""
	}
}

// end says how the build ended; failed is why it did not work, or "".
func (b *buildLog) end(image root.Image, took time.Duration, failed string) {
	for _, s := range b.steps {
		b.flush(s)
	}
	if failed != "" {
		b.say("build failed: %s", failed)
		return
	}
	b.say("built %s in %.1fs", image.Ref(), took.Seconds())
}
