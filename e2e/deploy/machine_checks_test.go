package deploy

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/roost-run/roost/e2e/instance"
)

// answersOf is a machine check: a machine beside the one under test asks that
// one over the private network which image it is.
func answersOf(mark string) string {
	return fmt.Sprintf("[[machine_checks]]\n  command = [\"get\", \"http://[$FLY_TEST_MACHINE_IP]:8080/file?path=/release\", %q]\n  kill_timeout = 1\n", mark)
}

// TestMachineChecks: a command of a machine of its own decides whether a
// release goes on, before the new version gets a request.
func TestMachineChecks(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, strategy := range []string{"rolling", "canary", "bluegreen"} {
		t.Run(strategy, func(t *testing.T) {
			app := "checks-" + strategy
			h := &host{h.Instance, t}
			old, next := h.image(app, "old"), h.image(app, "new")
			h.mustDeploy(h.folder(app, answersOf("old")), old)

			load := &instance.Load{Addr: h.Edge, Host: app + ".localhost", Path: "/"}
			load.Start(t.Context())
			seen := watch(h, app)
			r, err := h.deploy(h.folder(app, answersOf("another")), next, "--strategy", strategy)
			if err == nil {
				t.Errorf("a check that fails: the deploy succeeded: %s", r.Stderr)
			}
			for _, want := range []string{"machine check", "exit code 3", "status 200, body new"} {
				if text := fmt.Sprint(err, r.Stderr); !strings.Contains(text, want) {
					t.Errorf("it does not say %q: %s", want, text)
				}
			}
			if got := seen(); got["new"] && strategy != "canary" { // which tries the release with requests
				t.Errorf("the new version had requests: %v", got)
			}
			if e := h.ended(app); e.Status != "failed" || !strings.Contains(e.Message, "machine check") {
				t.Errorf("release v%d is %s: %s", e.Version, e.Status, e.Message)
			}
			h.runs(app, old, 1)

			r, err = h.deploy(h.folder(app, answersOf("new")), next, "--strategy", strategy)
			if err != nil || !strings.Contains(r.Stderr, "| status 200, body new") {
				t.Errorf("a check that passes: %v, or its output is not shown: %s", err, r.Stderr)
			}
			if answered, err := load.Stop(); err != nil {
				t.Errorf("after %d answers: %v", answered, err)
			}
			if got := h.serves(app); got != "new" {
				t.Errorf("%q serves, want the new image", got)
			}
			h.runs(app, next, 1)
		})
	}
}

// watch asks all the time which image answers, until the function it returns is called.
func watch(h *host, app string) (seen func() map[string]bool) {
	var wg sync.WaitGroup
	end, marks := make(chan struct{}), map[string]bool{}
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
				if mark, err := h.mark(app); err != nil {
					h.t.Errorf("who answers: %v", err)
				} else {
					marks[mark] = true
				}
			}
		}
	})
	return func() map[string]bool { close(end); wg.Wait(); return marks }
}

// TestMachineCheckThatHangs: one that does not end is ended, and its machine goes.
func TestMachineCheckThatHangs(t *testing.T) {
	t.Parallel()
	const app = "hangs"
	h := newHost(t)
	old, next := h.image(app, "old"), h.image(app, "new")
	h.mustDeploy(h.folder(app, ""), old)
	hang := strings.Replace(answersOf("x"), "command = [", "command = [\"wait\", \"stubborn\"] # ", 1)
	// The new version has to be up within that, too.
	_, err := h.deploy(h.folder(app, hang), next, "--wait-timeout=30s")
	if err == nil || !strings.Contains(err.Error(), "did not end within 30s") {
		t.Errorf("got %v, want that the check did not end", err)
	}
	if got := h.serves(app); got != "old" {
		t.Errorf("%q serves, want the old image", got)
	}
	h.runs(app, old, 1)
}
