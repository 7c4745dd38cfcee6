// Package story tells story B on a real host: an app with two machines sends
// its heavy views to a serverless machine that is made when first needed,
// sleeps when idle, and wakes while the request waits; and parts of the
// platform die meanwhile. `make demo` runs it for people, the tests of this
// package run it for machines; the steps are the same.
//
// It looks from outside only: the command line, the Machines API, HTTP.
package story

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// Story is the state that the steps share.
type Story struct {
	*instance.Instance
	Source string // the module's directory

	app      string
	apiToken string // of scope app: what the app itself holds
	image    string // reference of the store's image
	api      *machines.Client
	http     *http.Client
}

// The times of the story: short ones, so that a person can watch a machine
// fall asleep. They are settings like any other.
const (
	stopAfter    = 2 * time.Second // idle time before a serverless machine is suspended
	reclaimAfter = time.Second     // then its memory is given back
	suspendFor   = 6 * time.Second // then it is stopped
	// patience is how long a step waits for something to happen by itself, and
	// a request for the serverless machine to be made: generous for a busy host.
	patience = 3 * time.Minute
)

// Settings are the server's settings that the story needs.
func Settings() []string {
	return []string{"--reclaim-after=" + reclaimAfter.String(), "--swap=file:1GB", "--log-level=info"}
}

// New makes a story on a running instance; source is the module's directory.
func New(in *instance.Instance, source string) *Story {
	return &Story{
		Instance: in, Source: source, app: "store",
		http: in.Visitor(),
	}
}

// Close drops the story's connections.
func (s *Story) Close() { s.http.CloseIdleConnections() }

// Host is the app's hostname.
func (s *Story) Host() string { return s.app + ".localhost" }

// Steps are the story, in order.
func Steps() []instance.Step[*Story] {
	return []instance.Step[*Story]{
		{Name: "build the store's image from its folder", Run: buildImage},
		{Name: "run it on two app machines", Run: runMachines},
		{Name: "a page is served", Run: page},
		{Name: "receipts: a serverless machine is made, the request replayed there", Run: firstReceipts},
		{Name: "receipts again: replayed to the running machine", Run: warmReceipts},
		{Name: "idle: suspended, then its memory given back", Run: suspended},
		{Name: "one receipt: woken", Run: wokenReceipt},
		{Name: "idle longer: stopped", Run: stopped},
		{Name: "one receipt: started from its image", Run: startedReceipt},
		{Name: "50 requests at once to a sleeping machine: one wake", Run: stampede},
		{Name: "a page sent to the serverless machine comes back from an app machine", Run: elsewhere},
		{Name: "a one-off command: its output and exit code", Run: oneOff},
		{Name: "100 first requests at once: one serverless machine", Run: hundredFirst},
		{Name: "kill -9 of the control process under load, wakes included", Run: killControl},
		{Name: "kill -9 of the edge: no machine touched, no connection refused", Run: killEdge},
		{Name: "kill -9 of the server process: machines run on and are adopted", Run: killServer},
		{Name: "the article's middleware logic, in Python, through all of it", Run: article},
		{Name: "a new image: its own serverless machine, the old one goes", Run: newImage},
	}
}

func buildImage(ctx context.Context, s *Story) (string, error) {
	if _, err := s.CLI(ctx, "app", "create", s.app); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(s.Dir, "context-")
	if err != nil {
		return "", err
	}
	if err := s.source(dir); err != nil {
		return "", err
	}
	ref, err := s.build(ctx, dir)
	if err != nil {
		return "", err
	}
	s.image = ref
	name, _, _ := strings.Cut(ref, "@")
	return name, nil
}

func (s *Story) build(ctx context.Context, dir string) (ref string, err error) {
	r, err := s.CLI(ctx, "image", "build", dir, "--package", "./examples/store", "--app", s.app)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(r.Stdout), nil
}

func runMachines(ctx context.Context, s *Story) (string, error) {
	r, err := s.CLI(ctx, "token", "create", "app", "--app", s.app, "--name", "store middleware")
	if err != nil {
		return "", err
	}
	s.apiToken = strings.TrimSpace(r.Stdout)
	s.api = s.Client(s.apiToken)
	var ids []string
	for i := range 2 {
		r, err := s.CLI(ctx, "machine", "run", s.image, "--app", s.app, "--name", fmt.Sprintf("web-%d", i+1), "--port", "80:8080",
			"--env", "FLY_API_TOKEN="+s.apiToken,
			"--env", "SERVERLESS_STOP_AFTER="+stopAfter.String(), "--env", "SERVERLESS_SUSPEND_FOR="+suspendFor.String(), "--env", "SERVERLESS_PATIENCE="+patience.String())
		if err != nil {
			return "", err
		}
		ids = append(ids, strings.TrimSpace(r.Stdout))
	}
	return strings.Join(ids, ", "), nil
}

// get asks the app for a path and returns the answer with its whole body.
func (s *Story) get(ctx context.Context, path string, header ...string) (*http.Response, []byte, error) {
	return instance.Get(ctx, s.http, s.Host(), path, header...)
}

// servedBy is the machine that the store says answered.
func servedBy(resp *http.Response) string { return resp.Header.Get("Store-Machine") }

func page(ctx context.Context, s *Story) (string, error) {
	resp, body, err := s.get(ctx, "/")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(body), "<html") {
		return "", fmt.Errorf("the page is not HTML: %.200s", body)
	}
	list, err := s.serverless(ctx)
	if err != nil {
		return "", err
	}
	if len(list) != 0 {
		return "", fmt.Errorf("%d serverless machines exist before any is needed", len(list))
	}
	return fmt.Sprintf("%d bytes from %s", len(body), servedBy(resp)), nil
}

const serverlessPrefix = "serverless-"

// serverless lists the app's serverless machines.
func (s *Story) serverless(ctx context.Context) ([]machines.Machine, error) {
	list, err := s.api.List(ctx, s.app, machines.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []machines.Machine
	for _, m := range list {
		if strings.HasPrefix(m.Name, serverlessPrefix) && !m.State.Gone() {
			found = append(found, m)
		}
	}
	return found, nil
}

// theServerless is the one there has to be.
func (s *Story) theServerless(ctx context.Context) (*machines.Machine, error) {
	list, err := s.serverless(ctx)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		names := make([]string, len(list))
		for i, m := range list {
			names[i] = m.Name + " (" + string(m.State) + ")"
		}
		return nil, fmt.Errorf("got %d serverless machines %v, want 1", len(list), names)
	}
	return &list[0], nil
}

const (
	allReceipts = "/purchases/receipts"
	oneReceipt  = "/purchases/17/receipt"
)

// receipt asks for a PDF and checks that it is one, that it came from the
// serverless machine, and how long it took.
func (s *Story) receipt(ctx context.Context, path string) (pages int, took time.Duration, err error) {
	start := time.Now()
	resp, body, err := s.get(ctx, path)
	if err != nil {
		return 0, 0, err
	}
	took = time.Since(start)
	if pages, err = pdfPages(ctx, body); err != nil {
		return 0, took, err
	}
	if fallback := resp.Header.Get("Serverless-Fallback"); fallback != "" {
		return pages, took, fmt.Errorf("the app served it itself: %s", fallback)
	}
	m, err := s.theServerless(ctx)
	if err != nil {
		return pages, took, err
	}
	if got := servedBy(resp); got != m.ID {
		return pages, took, fmt.Errorf("the receipt came from %s, not from the serverless machine %s", got, m.ID)
	}
	return pages, took, nil
}

// pdfPages has a foreign tool read the PDF.
func pdfPages(ctx context.Context, pdf []byte) (int, error) {
	cmd := exec.CommandContext(ctx, "pdfinfo", "-")
	cmd.Stdin = bytes.NewReader(pdf)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pdfinfo: %w: %.200s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		var pages int
		if n, _ := fmt.Sscanf(line, "Pages: %d", &pages); n == 1 && pages > 0 {
			return pages, nil
		}
	}
	return 0, fmt.Errorf("pdfinfo found no pages: %.200s", out)
}

func firstReceipts(ctx context.Context, s *Story) (string, error) {
	pages, took, err := s.receipt(ctx, allReceipts)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a PDF of %d pages in %s", pages, took.Round(time.Millisecond)), nil
}

func warmReceipts(ctx context.Context, s *Story) (string, error) {
	pages, took, err := s.receipt(ctx, oneReceipt)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a PDF of %s in %s", plural(pages, "page", "pages"), took.Round(100*time.Microsecond)), nil
}

// inState waits until the serverless machine is in a state by itself. One that
// was stopped before anybody saw it suspended is woken once more.
func (s *Story) inState(ctx context.Context, want machines.State) (*machines.Machine, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not %s after %s", want, patience))
	defer cancel()
	m, err := s.theServerless(ctx)
	if err != nil {
		return nil, err
	}
	for m.State != want {
		_, err := s.api.Wait(ctx, s.app, m.ID, machines.WaitOptions{State: want, Timeout: suspendFor})
		if err != nil && machines.StatusOf(err) != http.StatusRequestTimeout {
			return nil, err
		}
		if m, err = s.api.Get(ctx, s.app, m.ID); err != nil {
			return nil, err
		}
		if want == machines.StateSuspended && m.State == machines.StateStopped {
			if _, _, err := s.get(ctx, oneReceipt); err != nil {
				return nil, err
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("machine %s is %s: %w", m.ID, m.State, context.Cause(ctx))
		}
	}
	return m, nil
}

// usage is what the kernel accounts to a machine.
type usage struct {
	Memory int64 `json:"memory"`
	Anon   int64 `json:"anon"`
	Swap   int64 `json:"swap"`
}

func (s *Story) usage(ctx context.Context, id string) (usage, error) {
	var r struct{ Usage *usage }
	admin := s.Client(s.Token)
	if err := admin.Do(ctx, http.MethodGet, "/roost/v1/apps/"+s.app+"/machines/"+id+"/inspect", nil, &r); err != nil {
		return usage{}, err
	}
	if r.Usage == nil {
		return usage{}, fmt.Errorf("no accounts of machine %s", id)
	}
	return *r.Usage, nil
}

// awakeUsage is what the serverless machine has while it is awake, and the
// machine once it sleeps after that. On a busy host it may have been asleep
// before it was looked at: then it is woken once more.
func (s *Story) awakeUsage(ctx context.Context) (before usage, m *machines.Machine, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("its memory was never seen while it was awake"))
	defer cancel()
	for {
		if m, err = s.theServerless(ctx); err != nil {
			return before, nil, err
		}
		before, err = s.usage(ctx, m.ID)
		seen := time.Now()
		if ctx.Err() != nil {
			return before, nil, errors.Join(context.Cause(ctx), err)
		}
		if err == nil {
			if m, err = s.inState(ctx, machines.StateSuspended); err != nil {
				return before, nil, err
			}
			if awakeAt(m, seen) {
				return before, m, nil
			}
		}
		if _, _, err := s.get(ctx, oneReceipt); err != nil {
			return before, nil, err
		}
	}
}

// awakeAt reports whether a machine's events say that it was awake at a moment.
func awakeAt(m *machines.Machine, moment time.Time) bool {
	for _, e := range m.Events { // the newest is the first
		if e.Timestamp > moment.UnixMilli() {
			continue
		}
		switch machines.State(e.Status) {
		case machines.StateStarted:
			return true
		case machines.StateSuspended, machines.StateStopped:
			return false
		}
	}
	return false
}

func suspended(ctx context.Context, s *Story) (string, error) {
	before, m, err := s.awakeUsage(ctx)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("its memory was not given back"))
	defer cancel()
	for {
		after, err := s.usage(ctx, m.ID)
		if err != nil {
			// It was stopped meanwhile, on a slow disk: woken, it sleeps again.
			if m, err = s.inState(ctx, machines.StateSuspended); err != nil {
				return "", err
			}
			continue
		}
		if after.Memory < before.Memory/2 {
			return fmt.Sprintf("%.1f MB resident before, %.1f MB after (%.1f MB swapped out)", mb(before.Memory), mb(after.Memory), mb(after.Swap)), nil
		}
		if err := instance.Pause(ctx, 100*time.Millisecond); err != nil {
			return "", fmt.Errorf("%w: %.1f MB before, %.1f MB after", err, mb(before.Memory), mb(after.Memory))
		}
	}
}

func wokenReceipt(ctx context.Context, s *Story) (string, error) {
	if _, err := s.inState(ctx, machines.StateSuspended); err != nil {
		return "", err
	}
	_, took, err := s.receipt(ctx, oneReceipt)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a PDF in %s", took.Round(100*time.Microsecond)), nil
}

func stopped(ctx context.Context, s *Story) (string, error) {
	m, err := s.inState(ctx, machines.StateStopped)
	if err != nil {
		return "", err
	}
	for _, e := range m.Events {
		if e.Type == "stop" {
			return first(e.Reason, "by the "+e.Source), nil
		}
	}
	return "", errors.New("its events do not say why it was stopped")
}

func startedReceipt(ctx context.Context, s *Story) (string, error) {
	_, took, err := s.receipt(ctx, oneReceipt)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a PDF in %s", took.Round(time.Millisecond)), nil
}

// starts counts how often a machine was started or resumed.
func starts(m *machines.Machine) int {
	n := 0
	for _, e := range m.Events {
		if e.Status == string(machines.StateStarted) && (e.Type == "start" || e.Type == "resume") {
			n++
		}
	}
	return n
}

func stampede(ctx context.Context, s *Story) (string, error) {
	m, err := s.inState(ctx, machines.StateSuspended)
	if err != nil {
		return "", err
	}
	before := starts(m)
	start := time.Now()
	if err := s.together(ctx, 50, oneReceipt); err != nil {
		return "", err
	}
	took := time.Since(start)
	woken := 0
	for deadline := time.Now().Add(patience); woken == 0 && time.Now().Before(deadline); { // a wake answers before it is recorded
		if m, err = s.api.Get(ctx, s.app, m.ID); err != nil {
			return "", err
		}
		woken = starts(m) - before
		if woken == 0 {
			if err := instance.Pause(ctx, 50*time.Millisecond); err != nil {
				return "", err
			}
		}
	}
	if woken != 1 {
		return "", fmt.Errorf("50 requests woke the machine %d times, want once", woken)
	}
	return fmt.Sprintf("50 PDFs, one wake, %s", took.Round(time.Millisecond)), nil
}

// together sends n requests at once; every one has to be answered by a PDF
// that the app did not have to make itself.
func (s *Story) together(ctx context.Context, n int, path string) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-gate
			resp, body, err := s.get(ctx, path)
			switch {
			case err != nil:
				errs[i] = err
			case resp.Header.Get("Serverless-Fallback") != "":
				errs[i] = fmt.Errorf("served by the app: %s", resp.Header.Get("Serverless-Fallback"))
			case !bytes.HasPrefix(body, []byte("%PDF-")):
				errs[i] = fmt.Errorf("not a PDF: %.100s", body)
			}
		})
	}
	close(gate)
	wg.Wait()
	count := map[string]int{}
	for _, err := range errs {
		if err != nil {
			count[err.Error()]++
		}
	}
	var problems []error
	for text, times := range count {
		problems = append(problems, fmt.Errorf("%d of %d: %s", times, n, text))
	}
	return errors.Join(problems...)
}

func elsewhere(ctx context.Context, s *Story) (string, error) {
	m, err := s.theServerless(ctx)
	if err != nil {
		return "", err
	}
	resp, body, err := s.get(ctx, "/", "Fly-Force-Instance-Id", m.ID)
	if err != nil {
		return "", err
	}
	if got := servedBy(resp); got == m.ID || got == "" {
		return "", fmt.Errorf("the page came from %q: %.100s", got, body)
	}
	return "sent to " + m.ID + ", served by " + servedBy(resp), nil
}

func oneOff(ctx context.Context, s *Story) (string, error) {
	r, err := s.CLI(ctx, "machine", "run", s.image, "--app", s.app, "--rm", "--", "-count")
	if err == nil || r.Code != 3 {
		return "", fmt.Errorf("exit code %d, want 3 (%w)", r.Code, err)
	}
	if !strings.Contains(r.Stdout, "purchases") {
		return "", fmt.Errorf("its output is missing: stdout %q, stderr %q", r.Stdout, r.Stderr)
	}
	list, err := s.api.List(ctx, s.app, machines.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, m := range list {
		if m.Config != nil && m.Config.AutoDestroy && !m.State.Gone() {
			return "", fmt.Errorf("machine %s is still there", m.ID)
		}
	}
	return fmt.Sprintf("%q and exit code 3", strings.TrimSpace(r.Stdout)), nil
}

// destroyServerless makes the next request a first one again.
func (s *Story) destroyServerless(ctx context.Context) error {
	list, err := s.serverless(ctx)
	if err != nil {
		return err
	}
	for _, m := range list {
		if err := s.api.Destroy(ctx, s.app, m.ID, true); err != nil {
			return err
		}
	}
	return nil
}

func (s *Story) restartWeb(ctx context.Context) error {
	web, err := s.web(ctx)
	if err != nil {
		return err
	}
	for _, m := range web {
		if _, err := s.CLI(ctx, "machine", "restart", m.ID, "--app", s.app); err != nil {
			return err
		}
	}
	return nil
}

// web lists the app machines.
func (s *Story) web(ctx context.Context) ([]machines.Machine, error) {
	list, err := s.api.List(ctx, s.app, machines.ListOptions{})
	return slices.DeleteFunc(list, func(m machines.Machine) bool { return !strings.HasPrefix(m.Name, "web-") }), err
}

func hundredFirst(ctx context.Context, s *Story) (string, error) {
	// Nothing is left of the first time: neither the machine, nor what the
	// app's processes remember of it.
	if err := s.destroyServerless(ctx); err != nil {
		return "", err
	}
	if err := s.restartWeb(ctx); err != nil {
		return "", err
	}
	start := time.Now()
	if err := s.together(ctx, 100, oneReceipt); err != nil {
		return "", err
	}
	m, err := s.theServerless(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("100 PDFs from %s, %s", m.Name, time.Since(start).Round(time.Millisecond)), nil
}

func article(ctx context.Context, s *Story) (string, error) {
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", filepath.Join(s.Source, "e2e", "story", "article.py"))
	cmd.Env = append(os.Environ(), "FLY_API_HOSTNAME="+s.API, "FLY_API_TOKEN="+s.apiToken, "FLY_APP_NAME="+s.app, "FLY_IMAGE_REF="+s.image,
		"APP_URL=http://"+s.Edge, "APP_HOST="+s.Host(), "RECEIPT_PATH="+oneReceipt)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func mb(n int64) float64 { return float64(n) / (1 << 20) }
