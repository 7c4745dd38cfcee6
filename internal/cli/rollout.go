package cli

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/roost-run/roost/internal/client"
)

// releaseOutcome is what --json prints of a rollout that was watched.
type releaseOutcome struct {
	client.Release
	URL string `json:"url,omitempty"` // where the app answered
}

// seeThrough shows a rollout until it ends. A release that did not succeed is
// an error that says why; to stop watching does not stop the rollout.
func (f *factory) seeThrough(ctx context.Context, c *client.Client, app string, r client.Release, asJSON bool) error {
	show := newRolloutView(f, app, r.Version)
	for _, w := range r.Warnings {
		show.event(client.ReleaseEvent{Warning: true, Message: w})
	}
	end, err := c.FollowRelease(ctx, app, r.Version, "", func(e client.ReleaseEvent) error {
		show.event(e)
		return nil
	})
	show.close()
	if err != nil {
		return hintError{err, fmt.Sprintf("the rollout of v%d continues on the server; `roost releases watch v%d --app %s` follows it, `roost releases cancel v%d --app %s` ends it",
			r.Version, r.Version, app, r.Version, app)}
	}
	if asJSON {
		if err := f.io.JSON(releaseOutcome{end, show.url}); err != nil {
			return err
		}
	}
	if end.Status != "complete" {
		what := "was " + end.Status // interrupted
		if end.Status == "failed" {
			what = end.Status
		}
		return hintError{fmt.Errorf("release v%d of %s %s: %s", end.Version, app, what, first(show.untold(end.Message), "no reason was recorded")),
			fmt.Sprintf("`roost releases show v%d --app %s` shows its rollout, `roost logs --app %s` what the app said", end.Version, app, app)}
	}
	took := ""
	if !end.StartedAt.IsZero() && !end.FinishedAt.IsZero() {
		took = " after " + short(end.FinishedAt.Sub(end.StartedAt))
	}
	f.io.Notef("Release v%d of %s is complete%s", end.Version, app, took)
	if show.url != "" && !asJSON {
		f.io.Printf("%s\n", show.url)
	}
	return nil
}

// short prints a duration without needless digits.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}

// eventLine is what an event says, as one line; "" nothing.
func eventLine(e client.ReleaseEvent) string {
	switch {
	case e.Output != nil:
		return "  | " + strings.ReplaceAll(printable(*e.Output), "\n", "\n  | ")
	case e.Message == "" && e.Waiting == nil:
		return ""
	}
	text := e.Message
	if text == "" {
		text = "waiting for " + e.Waiting.For
	}
	text = printable(text)
	switch {
	case e.Failed:
		text = "FAILED: " + text
	case e.Warning:
		text = "Warning: " + text
	}
	if subject := eventSubject(e); subject != "" && (e.Machine == "" || !strings.Contains(text, e.Machine)) {
		text = subject + ": " + text
	}
	return strings.ReplaceAll(text, "\n", "\n    ")
}

// eventSubject is what an event is about, unless its text says so itself.
func eventSubject(e client.ReleaseEvent) string {
	switch {
	case e.Machine != "" && strings.Contains(e.Message, e.Machine):
		return ""
	case e.Machine != "" && e.Group != "":
		return e.Machine + " (" + e.Group + ")"
	case e.Machine != "":
		return e.Machine
	}
	return e.Group
}

// home is the address of an app that answered at the given one.
func home(answered string) string {
	u, err := url.Parse(answered)
	if err != nil || u.Host == "" {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}).String()
}

// printable keeps control characters of others' programs from the terminal;
// lines and tabs stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// rolloutView shows events: append-only lines in a pipe; on a terminal what is
// waited for stands below them, with the time that is left.
type rolloutView struct {
	f   *factory
	url string // where the app answered, once it has

	ended  chan struct{}
	ticked sync.WaitGroup

	mu      sync.Mutex // guards what follows
	waiting []waitLine // in order of their beginning
	drawn   int        // lines on the terminal that will be replaced
	warned  map[string]bool
	failed  client.ReleaseEvent // not shown yet: the end may say the same
	output  []string            // the last lines of the release command, as shown
}

// keptOutput is more than what the message of a failed release repeats.
const keptOutput = 64

// untold is what a release says of its end without the log lines that stand on
// the screen already, because a command in a temporary machine printed them.
func (v *rolloutView) untold(message string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	text, log, ok := strings.Cut(message, "\nthe last lines of its log:\n")
	if !ok || len(v.output) == 0 {
		return message
	}
	for line := range strings.Lines(log) {
		if !slices.Contains(v.output, strings.TrimSpace(line)) {
			return message
		}
	}
	return text
}

type waitLine struct {
	key, what string
	until     time.Time
	said      time.Time // in a pipe: when it was last printed
}

// sayAgain is how often a pipe hears that something is still waited for.
const sayAgain = 30 * time.Second

func newRolloutView(f *factory, app string, version int) *rolloutView {
	v := &rolloutView{f: f, ended: make(chan struct{}), warned: make(map[string]bool)}
	f.io.Notef("Release v%d of %s", version, app)
	if f.io.ErrTTY {
		v.ticked.Go(v.tick)
	}
	return v
}

// tick redraws the time that is left.
func (v *rolloutView) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-v.ended:
			return
		case <-t.C:
			v.mu.Lock()
			v.redraw()
			v.mu.Unlock()
		}
	}
}

func (v *rolloutView) close() {
	close(v.ended)
	v.ticked.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting = nil
	if v.failed.Message != "" { // nobody told the end
		v.print(eventLine(v.failed))
	}
	v.redraw()
}

func (v *rolloutView) event(e client.ReleaseEvent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e.URL != "" {
		v.url = home(e.URL)
	}
	key := first(e.Machine, e.Step)
	if e.Waiting != nil && e.Message == "" {
		v.wait(key, e)
		return
	}
	if e.Output == nil {
		v.forget(key)
	} else {
		for line := range strings.Lines(*e.Output) {
			v.output = append(v.output, strings.TrimSpace(line))
		}
		v.output = v.output[max(0, len(v.output)-keptOutput):]
	}
	if e.Warning && v.warned[e.Message] {
		return
	}
	if e.Warning {
		v.warned[e.Message] = true
	}
	e.Message, _, _ = strings.Cut(e.Message, "\n") // the end tells all of it
	if v.failed.Message != "" && !(e.End() && strings.Contains(e.Release.Message, v.failed.Message)) {
		v.print(eventLine(v.failed))
	}
	v.failed = client.ReleaseEvent{}
	switch line := eventLine(e); {
	case line == "" || e.End(): // the end is told by who watches
	case e.Failed:
		v.failed = e
	default:
		v.print(line)
	}
}

// wait notes what a step waits for.
func (v *rolloutView) wait(key string, e client.ReleaseEvent) {
	line := waitLine{key: key, what: printable(e.Waiting.For)}
	if e.Waiting.Left > 0 { // by our own clock, which may not be the platform's
		line.until = v.f.io.Now().Add(time.Duration(e.Waiting.Left * float64(time.Second)))
	}
	if subject := eventSubject(e); subject != "" && !strings.Contains(line.what, e.Machine) {
		line.what = subject + ": waiting for " + line.what
	} else {
		line.what = "waiting for " + line.what
	}
	for i, old := range v.waiting {
		if old.key != key {
			continue
		}
		if old.what == line.what {
			line.said = old.said
		}
		v.waiting[i] = line
		v.sayOrDraw(&v.waiting[i])
		return
	}
	v.waiting = append(v.waiting, line)
	v.sayOrDraw(&v.waiting[len(v.waiting)-1])
}

func (v *rolloutView) sayOrDraw(line *waitLine) {
	if v.f.io.ErrTTY {
		v.redraw()
		return
	}
	if now := v.f.io.Now(); now.Sub(line.said) >= sayAgain {
		line.said = now
		v.f.io.Notef("%s", line.text(now))
	}
}

func (l *waitLine) text(now time.Time) string {
	if l.until.IsZero() {
		return l.what
	}
	return fmt.Sprintf("%s (%s left)", l.what, max(l.until.Sub(now), 0).Round(time.Second))
}

func (v *rolloutView) forget(key string) {
	kept := v.waiting[:0]
	for _, l := range v.waiting {
		if l.key != key {
			kept = append(kept, l)
		}
	}
	v.waiting = kept
}

// print adds a line that stays, above those that will be replaced.
func (v *rolloutView) print(line string) {
	v.erase()
	v.f.io.Notef("%s", line)
	v.redraw()
}

// erase removes what was drawn.
func (v *rolloutView) erase() {
	if v.drawn > 0 {
		fmt.Fprintf(v.f.io.Err, "\x1b[%dA\r\x1b[J", v.drawn)
		v.drawn = 0
	}
}

// redraw shows what is waited for, on a terminal.
func (v *rolloutView) redraw() {
	if !v.f.io.ErrTTY {
		return
	}
	v.erase()
	width := v.f.io.Width()
	for i := range v.waiting {
		text := []rune("… " + v.waiting[i].text(v.f.io.Now()))
		if len(text) > width-1 {
			text = text[:width-1]
		}
		v.f.io.Notef("%s", string(text))
		v.drawn++
	}
}
