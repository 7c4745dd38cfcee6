// Package deploy tests releases from outside, on real machines: what they do
// to requests and WebSockets under load, what is left of them when the client
// or the control process dies at any point, and what they do to the disk. The
// program in the machines is that of e2e/real.
package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/e2e/suite"
	"github.com/roost-run/roost/machines"
)

// parallel is how many tests run at once unless -parallel says so.
const parallel = 3

// patience bounds what a test waits for: generous, since other tests share
// the processors.
const patience = 3 * time.Minute

var (
	tests   *suite.Suite
	program *instance.Program // the probe
)

func TestMain(m *testing.M) {
	suite.Main(m, parallel, func(ctx context.Context, s *suite.Suite) (err error) {
		tests = s
		program, err = instance.BuildProgram(ctx, "../real/probe", filepath.Join(s.Dir, "probe"), "")
		return err
	})
}

// host is a Roost of a test's own.
type host struct {
	*instance.Instance
	t *testing.T
}

func newHost(t *testing.T, settings ...string) *host {
	t.Helper()
	return &host{tests.Own(t, append([]string{"--swap=file:256MB"}, settings...)...), t}
}

// image makes an image of the probe that says which one it is, loads it, and
// returns its reference. Two with the same name and mark are the same.
func (h *host) image(name, mark string, files ...instance.File) string {
	h.t.Helper()
	archive := filepath.Join(h.t.TempDir(), mark+".tar")
	ref := "registry.localhost/" + name + ":" + mark
	if err := program.Archive(ref, archive, append(files, instance.File{Name: "release", Data: mark})...); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.CLI(h.t.Context(), "image", "load", archive); err != nil {
		h.t.Fatal(err)
	}
	return ref
}

// folder writes a fly.toml for an app of the probe; more is added to it.
func (h *host) folder(app, more string) string {
	h.t.Helper()
	dir := h.t.TempDir()
	text := fmt.Sprintf(`app = %q

%s
[http_service]
  internal_port = 8080

  [http_service.concurrency]
    type = "requests"

  [[http_service.checks]]
    path = "/ht/"
    interval = "1s"
    timeout = "5s"
    grace_period = "10s"
`, app, more)
	if strings.Contains(more, "[processes]") {
		text = strings.Replace(text, "[http_service]\n", "[http_service]\n  processes = [\"web\"]\n", 1)
	}
	if err := os.WriteFile(filepath.Join(dir, "fly.toml"), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return dir
}

// deploy deploys an image from a folder.
func (h *host) deploy(dir, image string, flags ...string) (instance.Result, error) {
	return h.CLI(h.t.Context(), append([]string{"deploy", dir, "--yes", "--image", image, "--smoke-checks=false"}, flags...)...)
}

func (h *host) mustDeploy(dir, image string) {
	h.t.Helper()
	if _, err := h.deploy(dir, image); err != nil {
		h.t.Fatal(err)
	}
}

type release struct {
	Version        int
	Status, Image  string
	Message        string
	Current        bool
	Reason, Author string
}

func (h *host) releases(app string) []release {
	h.t.Helper()
	r, err := h.CLI(h.t.Context(), "releases", "--app", app, "--json")
	if err != nil {
		h.t.Fatal(err)
	}
	var list []release
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil {
		h.t.Fatalf("%v: %s", err, r.Stdout)
	}
	slices.SortFunc(list, func(a, b release) int { return b.Version - a.Version })
	return list
}

// ended waits until the newest release has ended.
func (h *host) ended(app string) (newest release) {
	h.t.Helper()
	h.eventually(func() string {
		newest = h.releases(app)[0]
		if newest.Status == "pending" || newest.Status == "running" {
			return fmt.Sprintf("release v%d is %s", newest.Version, newest.Status)
		}
		return ""
	})
	return newest
}

func (h *host) eventually(look func() (missing string)) {
	h.t.Helper()
	suite.Eventually(h.t, patience, look)
}

// serves asks which image answers.
func (h *host) serves(app string) string {
	h.t.Helper()
	mark, err := h.mark(app)
	if err != nil {
		h.t.Fatal(err)
	}
	return mark
}

func (h *host) mark(app string) (string, error) {
	hc := &http.Client{Timeout: instance.RequestTimeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.DialEdge}}
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, "http://"+app+".localhost/file?path=/release", nil)
	if err != nil {
		return "", err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %.300s", resp.StatusCode, body)
	}
	return string(body), nil
}

// started waits until an app has so many machines that run.
func (h *host) started(app string, count int) {
	h.t.Helper()
	h.eventually(func() string {
		list, err := h.AsRoot().List(h.t.Context(), app, machines.ListOptions{})
		if err != nil {
			h.t.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(m machines.Machine) bool { return m.State != machines.StateStarted })
		if len(list) != count {
			return fmt.Sprintf("%d machines run, want %d", len(list), count)
		}
		return ""
	})
}

// runs checks that every machine of an app's releases runs an image, and that
// there are so many.
func (h *host) runs(app, image string, count int) {
	h.t.Helper()
	list, err := h.AsRoot().List(h.t.Context(), app, machines.ListOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(m machines.Machine) bool { return m.State.Gone() })
	for _, m := range list {
		if m.State != machines.StateStarted || !strings.HasPrefix(m.Config.Image, image) {
			h.t.Errorf("machine %s (%s) is %s with %s, want it started with %s", m.ID, m.Name, m.State, m.Config.Image, image)
		}
	}
	if len(list) != count {
		h.t.Errorf("%d machines, want %d", len(list), count)
	}
}
