package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// failure is what went wrong with a machine, or with a version that never
// became its.
type failure struct {
	what     string // "machine 148e... did not pass its checks within 5m0s"
	app      root.AppName
	machine  root.MachineID
	instance root.InstanceID
	config   *root.Config
	since    time.Time
	err      error  // as it came
	note     string // what else may matter, "" nothing
}

const (
	// diagnosisTime bounds looking for the cause: the failure is to be told.
	diagnosisTime = 5 * time.Second
	// lastLines is how much of the log a diagnosis repeats.
	lastLines = 10
	// maxOutput is how much of a check's answer it repeats.
	maxOutput = 500
)

// diagnose says what was waited for, what is seen of the machine, the last
// lines of its log, and a guess. It is for people: several lines, the first
// the most important.
func (d *Deps) diagnose(ctx context.Context, f failure) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), diagnosisTime)
	defer cancel()
	lines := []string{f.what + ": " + root.MessageOf(f.err)}
	if root.KindOf(f.err) == root.Internal {
		d.Log.Error("machine of a release", "app", f.app, "machine", f.machine, "err", f.err)
	}
	evidence := []string{root.MessageOf(f.err)}
	var sockets []orders.Listen
	looked := false
	m := d.Catalog.Snapshot().Machine(f.machine)
	if m != nil && m.Spec.Instance == f.instance {
		for _, k := range m.Status.Checks {
			if k.Status != root.CheckPassing {
				lines = append(lines, fmt.Sprintf("check %s is %s: %s", k.Name, k.Status, clipText(k.Output, maxOutput)))
				if !strings.HasPrefix(k.Output, "connect: ") { // the probe's own attempt says nothing of what the app does
					evidence = append(evidence, k.Output)
				}
			}
		}
		if e := m.Status.Exit; e != nil && !strings.Contains(lines[0], exitText(m)) && !strings.Contains(lines[0], fmt.Sprintf("exit code %d", e.Code)) {
			lines = append(lines, "its last end: "+exitText(m))
		}
		if m.Status.State.Running() && d.Agent != nil {
			if seen, err := d.Agent.Inspect(ctx, f.machine); err == nil {
				sockets, looked = seen.Listens, true
				lines = append(lines, listenText(sockets))
				evidence = append(evidence, listenText(sockets))
			}
		}
		evidence = append(evidence, exitText(m))
	}
	if f.note != "" {
		lines = append(lines, f.note)
	}
	log := d.lastLog(ctx, f)
	g := guess(strings.Join(slices.Concat(evidence, log), "\n"), f.config)
	if g == "" && looked && m.Status.State == root.StateStarted {
		g = wrongPort(sockets, f.config)
	}
	if g != "" {
		lines = append(lines, "likely cause: "+g)
	}
	if len(log) > 0 {
		lines = append(lines, "the last lines of its log:")
		for _, l := range log {
			lines = append(lines, "  "+clipText(l, maxOutput))
		}
	}
	e := &root.Error{Kind: root.KindOf(f.err), Code: root.CodeOf(f.err), Message: strings.Join(lines, "\n"), Err: f.err}
	if e.Kind == root.Internal {
		e.Kind = root.Precondition
	}
	return e
}

// lastLog returns the last lines that the version wrote.
func (d *Deps) lastLog(ctx context.Context, f failure) []string {
	if d.Logs == nil {
		return nil
	}
	var lines []string
	err := d.Logs.Tail(ctx, f.app, LogFilter{Machine: f.machine, Since: f.since.Add(-time.Second)}, false, func(l LogLine) error {
		if l.Instance != f.instance && f.instance != "" || strings.TrimSpace(l.Message) == "" || l.Provider != LogApp && l.Provider != LogRelease {
			return nil
		}
		lines = append(lines, l.Message)
		if len(lines) > 2*lastLines {
			lines = slices.Clone(lines[len(lines)-lastLines:])
		}
		return nil
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		d.Log.Debug("log of a failed machine", "machine", f.machine, "err", err)
	}
	return lines[max(0, len(lines)-lastLines):]
}

func clipText(s string, most int) string {
	s = strings.TrimSpace(s)
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

func listenText(all []orders.Listen) string {
	var tcp []string
	for _, l := range all {
		if strings.HasPrefix(l.Proto, "tcp") {
			tcp = append(tcp, l.Address)
		}
	}
	if len(tcp) == 0 {
		return "it listens on no port"
	}
	return "it listens on " + strings.Join(tcp, ", ")
}

// guesses are what failures look like, and what helps. The first that fits is
// told. All words of a row are there.
var guesses = []struct {
	words []string // in lower case; "a|b" is either
	text  string
}{
	{[]string{"disallowedhost|invalid http_host header|allowed_hosts"},
		"Django refuses the Host header: add the app's hostname to ALLOWED_HOSTS (FLY_APP_NAME is in the environment), or set headers.Host of the check"},
	{[]string{"out of memory|oom-kill|oom_kill|oomkill|oom killed"}, "the machine has too little memory: give it more (roost scale memory), or swap (swap_size_mb)"},
	{[]string{"importerror: cannot import name"}, "a module lacks a name that the program imports from it: it is misspelled, or the image has another version of the package"},
	{[]string{"modulenotfounderror|importerror|cannot find module|module not found"}, "the image lacks a package that the program needs"},
	{[]string{"improperlyconfigured|keyerror|environment variable|is not set"}, "a setting is missing: set it in [env], or as a secret (roost secrets set NAME=value)"},
	{[]string{"password authentication failed|access denied for user|no password supplied|wrongpass"},
		"a service that it needs, such as its database, refuses its password: look at the secret that has it (roost secrets set NAME=value)"},
	{[]string{"could not connect to server|connection refused|could not translate host name|name or service not known|temporary failure in name resolution|operationalerror"},
		"it does not reach a service that it needs, such as its database"},
	{[]string{"no such table|does not exist", "relation|table|column"}, "the database has not been migrated: set deploy.release_command"},
	{[]string{"exec format error"}, "the image is built for another kind of CPU"},
	{[]string{"no such file or directory|not found in|command not found|executable file not found"}, "the command does not exist in the image"},
	{[]string{"permission denied"}, "the program may not read or write something: look at the file's owner and at USER of the Dockerfile"},
	{[]string{"address already in use"}, "two programs in the machine want the same port"},
	{[]string{"400 bad request|status 400|got 400|answered 400"},
		"the app refuses the request of the check, often because of its Host header: allow the app's hostname, or set headers.Host of the check"},
	{[]string{"status 301|status 302|got 301|got 302|answered 301|answered 302|moved permanently"}, "the check's path redirects: name the path that answers with 200 itself, or trust X-Forwarded-Proto"},
	{[]string{"status 404|got 404|answered 404"}, "the check's path does not exist in the app"},
	{[]string{"exit code 137"}, "it was killed (SIGKILL), often for memory"},
}

// guess names the likely cause, "" if nothing points to one.
func guess(evidence string, c *root.Config) string {
	// That the check reached nobody says nothing of whom the app reaches.
	low := strings.ReplaceAll(strings.ToLower(evidence), "connect: connection refused", "")
	if text := loopback(low, c); text != "" {
		return text
	}
	for _, g := range guesses {
		if !slices.ContainsFunc(g.words, func(word string) bool {
			return !slices.ContainsFunc(strings.Split(word, "|"), func(w string) bool { return strings.Contains(low, w) })
		}) {
			return g.text
		}
	}
	return ""
}

// loopback finds a service's port on which only the machine itself is served.
func loopback(evidence string, c *root.Config) string {
	if c == nil {
		return ""
	}
	for i := range c.Services {
		port := strconv.Itoa(c.Services[i].InternalPort)
		for _, host := range []string{"127.0.0.1", "::1"} {
			if strings.Contains(evidence, net.JoinHostPort(host, port)) && !strings.Contains(evidence, "0.0.0.0:"+port) && !strings.Contains(evidence, "[::]:"+port) &&
				strings.Contains(evidence, "listen") {
				return fmt.Sprintf("the program listens on %s only, where nobody outside the machine reaches it: make it listen on 0.0.0.0:%s", net.JoinHostPort(host, port), port)
			}
		}
	}
	return ""
}

// wrongPort finds that the program listens, but not where a service is said to
// be, or that it does not listen at all.
func wrongPort(all []orders.Listen, c *root.Config) string {
	if c == nil || len(c.Services) == 0 {
		return ""
	}
	var other []string
	for _, l := range all {
		if _, port, err := net.SplitHostPort(l.Address); err == nil && strings.HasPrefix(l.Proto, "tcp") {
			other = append(other, port)
		}
	}
	for i := range c.Services {
		port := strconv.Itoa(c.Services[i].InternalPort)
		switch {
		case slices.Contains(other, port):
		case len(other) == 0:
			return fmt.Sprintf("the program has not come so far as to listen: it takes longer than it may (deploy.wait_timeout), or hangs; it has to listen on 0.0.0.0:%s", port)
		default:
			slices.Sort(other)
			other = slices.Compact(other)
			return fmt.Sprintf("the program listens on port %s, and internal_port says %s: make one of them say what the other does", strings.Join(other, ", "), port)
		}
	}
	return ""
}
