package deploy

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/roost-run/roost/e2e/instance"
)

// TestClientKilled: whoever began a deploy may go away at once.
func TestClientKilled(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	old, next := h.image("gone", "old"), h.image("gone", "new")
	dir := h.folder("gone", "[deploy]\n  release_command = \"files /app\"\n")
	h.mustDeploy(dir, old)
	cmd := exec.CommandContext(t.Context(), tests.Binary, "deploy", dir, "--yes", "--image", next)
	cmd.Env = append(os.Environ(), "ROOST_URL=unix://"+filepath.Join(h.Run(), "api.sock"), "HOME="+h.Dir)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(said); lines.Scan() && !strings.Contains(lines.Text(), "v2"); {
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the client ended before it was killed: the test proves nothing")
	}
	if r := h.ended("gone"); r.Version != 2 || r.Status != "complete" {
		t.Errorf("release v%d is %s, want v2 complete: %s", r.Version, r.Status, r.Message)
	}
	if got := h.serves("gone"); got != "new" {
		t.Errorf("%q serves, want the new image", got)
	}
	h.runs("gone", next, 1)
}

// failpoints are where a rollout may lose its process, by the strategy that
// passes there; the last ones are of rollouts that fail.
var failpoints = []struct {
	strategy string
	points   []string
	fails    bool // the web machine's new version does not pass its check
	worker   bool // there is a worker, too, whose new version fails its machine check
}{
	{"rolling", []string{"begin", "command:made", "command:done", "remembered", "updated", "passed", "verified"}, false, false},
	{"canary", []string{"canary:made", "canary:passed"}, false, false},
	{"rolling", []string{"machine_check:started"}, false, false},
	{"bluegreen", []string{"green:made", "uncordoned", "cordoned", "shifted", "retired"}, false, false},
	{"rolling", []string{"return:begin", "return:done"}, true, false},
	{"rolling", []string{"return:restored"}, true, true},
}

// TestControlKilled: kill -9 of the control process at every step of a rollout:
// meanwhile the old or the new version serves, afterwards the rollout ends.
func TestControlKilled(t *testing.T) {
	t.Parallel()
	for _, f := range failpoints {
		for _, point := range f.points {
			t.Run(strings.ReplaceAll(point, ":", " "), func(t *testing.T) {
				t.Parallel()
				h := newHost(t, "--test-failpoint=rollout:"+point)
				controlKilled(h, f.strategy, f.fails, f.worker)
				if _, err := os.Stat(filepath.Join(h.Run(), "failpoint")); err != nil {
					t.Errorf("nothing was killed at %s: the test proves nothing: %v", point, err)
				}
			})
		}
	}
}

// TestControlKilledAtFirst: the same while an app's first machine is made. It
// is found again, not made twice.
func TestControlKilledAtFirst(t *testing.T) {
	t.Parallel()
	const app = "first"
	h := newHost(t, "--test-failpoint=rollout:created")
	ref := h.image(app, "one")
	h.mustDeploy(h.folder(app, ""), ref)
	if _, err := os.Stat(filepath.Join(h.Run(), "failpoint")); err != nil {
		t.Errorf("nothing was killed: the test proves nothing: %v", err)
	}
	if r := h.ended(app); r.Version != 1 || r.Status != "complete" {
		t.Errorf("release v%d is %s, want v1 complete: %s", r.Version, r.Status, r.Message)
	}
	if got := h.serves(app); got != "one" {
		t.Errorf("%q serves, want the image", got)
	}
	h.runs(app, ref, 1)
}

func controlKilled(h *host, strategy string, fails, worker bool) {
	const app = "crash"
	t := h.t
	t.Helper()
	old, next := h.image(app, "old"), h.image(app, "new")
	machines, groups := 1, ""
	if worker {
		machines, groups = 2, "[processes]\n  web = \"\"\n  worker = \"wait\"\n"
	}
	// A crash may take the answer from the client.
	if _, err := h.deploy(h.folder(app, groups), old); err != nil {
		t.Logf("the first release's client: %v", err)
	}
	first := h.ended(app)
	if first.Status != "complete" {
		t.Fatalf("the first release is %s: %s", first.Status, first.Message)
	}
	// Many points are passed by the first release, too, and it was complete
	// all the same. Now the second.
	if err := os.Remove(filepath.Join(h.Run(), "failpoint")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	flags := []string{"--strategy", strategy}
	if fails {
		flags = append(flags, "--env", "ALLOWED_HOST=elsewhere.example.com")
	}
	if fails && !worker { // it waits that long in vain
		flags = append(flags, "--wait-timeout=20s")
	}
	load := &instance.Load{Addr: h.Edge, Host: app + ".localhost", Path: "/"}
	load.Start(t.Context())
	dir := h.folder(app, groups+"[deploy]\n  release_command = \"files /app\"\n"+answersOf(""))
	_, err := h.deploy(dir, next, flags...)
	t.Logf("the client: %v", err)
	second := h.ended(app)
	if answered, err := load.Stop(); err != nil {
		t.Errorf("after %d answers: %v", answered, err)
	}
	want, image := "complete", next
	if fails {
		want, image = "failed", old
	}
	if second.Version != 2 || second.Status != want {
		t.Errorf("release v%d is %s, want v2 %s: %s", second.Version, second.Status, want, second.Message)
	}
	if got, want := h.serves(app), image[strings.LastIndex(image, ":")+1:]; got != want {
		t.Errorf("%q serves, want %q", got, want)
	}
	h.runs(app, image, machines)
	current := slices.IndexFunc(h.releases(app), func(r release) bool { return r.Current })
	if current < 0 || h.releases(app)[current].Version != map[bool]int{false: 2, true: 1}[fails] {
		t.Errorf("releases: %s", fmt.Sprint(h.releases(app)))
	}
}
