package control

import (
	"slices"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

// checked is a release whose web machines have two machine checks, one with an
// image of its own.
func checked(image string) NewRelease {
	n := definition(image, map[string]string{"FOR": image})
	n.Groups[0].Checks = []root.MachineCheck{
		{Command: []string{"probe"}},
		{Ref: "curl", Entrypoint: []string{"/bin/sh", "-c"}, Command: []string{"curl it"}, Stop: root.Stop{Signal: "SIGKILL"}},
	}
	return n
}

func TestMachineChecks(t *testing.T) {
	for _, strategy := range []root.Strategy{root.StrategyRolling, root.StrategyCanary} {
		t.Run(string(strategy), func(t *testing.T) {
			d := newDeployment(t)
			d.release(definition("one", nil))
			n := checked("two")
			n.Deploy.Strategy = strategy
			before := d.machines()
			d.host.refuses.Store(true)
			r := d.release(n)
			if r.Progress.Status != root.ReleaseFailed || !strings.Contains(r.Progress.Message, "machine check") || !strings.Contains(r.Progress.Message, "exit code 7") {
				t.Errorf("got %s %q, want failed with the check's exit code", r.Progress.Status, r.Progress.Message)
			}
			d.same(before)
			for _, test := range d.host.tests {
				for id, v := range test.serves {
					if v != 1 {
						t.Errorf("while a check ran machine %s was at v%d already, want v1", id, v)
					}
				}
			}
			d.host.tests = nil
			d.host.refuses.Store(false)
			if r := d.release(n); r.Progress.Status != root.ReleaseComplete {
				t.Fatalf("got %s %q", r.Progress.Status, r.Progress.Message)
			}
			d.expect("after it", "app two v3 started", "worker two v3 started")
			want := 2
			if strategy == root.StrategyCanary {
				want = 4 // of the canary, too
			}
			if len(d.host.tests) != want {
				t.Fatalf("%d checks ran, want %d", len(d.host.tests), want)
			}
			i := slices.IndexFunc(d.host.tests, func(m machineTest) bool { return m.image.Repository == "curl" })
			if i < 0 {
				t.Fatal("no check ran in its own image")
			}
			c := d.host.tests[i].config
			if c.Env["FLY_TEST_COMMAND"] != "1" || c.Env["FLY_TEST_MACHINE_IP"] == "" || c.Env["FOR"] != "two" || c.Env["FLY_PROCESS_GROUP"] != root.GroupTest {
				t.Errorf("environment: got %v", c.Env)
			}
			if !c.AutoDestroy || len(c.Services) > 0 || !c.DNS.SkipRegistration || c.Stop.Signal != "SIGKILL" || !slices.Equal(c.Init.Entrypoint, []string{"/bin/sh", "-c"}) || !slices.Equal(c.Init.Cmd, []string{"curl it"}) {
				t.Errorf("machine of a check: got %+v", c)
			}
			d.images.mu.Lock()
			defer d.images.mu.Unlock()
			if kept := d.images.protected[protectOwner("shop")]; !slices.Contains(kept, "sha256:curl") {
				t.Errorf("the image of a check is not kept: %v", kept)
			}
		})
	}
}

// A release that only restarts keeps its checks; a rollback runs none, and so
// does a strategy that waits for nothing.
func TestMachineChecksAreLeftOut(t *testing.T) {
	d := newDeployment(t)
	d.release(checked("one"))
	ran := func() int {
		d.host.mu.Lock()
		defer d.host.mu.Unlock()
		n := len(d.host.tests)
		d.host.tests = nil
		return n
	}
	if n := ran(); n != 2 {
		t.Errorf("first machines: %d checks, want 2", n)
	}
	n := checked("two")
	n.Deploy.Strategy = root.StrategyImmediate
	d.release(n)
	if n := ran(); n != 0 {
		t.Errorf("immediate: %d checks, want none", n)
	}
	d.host.refuses.Store(true)
	back, err := d.Releases.Rollback(t.Context(), admin, "shop", 1, Rollback{Strategy: root.StrategyRolling})
	d.must(err)
	if r := d.ended(back.Release.Version); r.Progress.Status != root.ReleaseComplete || ran() != 0 {
		t.Errorf("rollback: got %s %q, want it complete without checks", r.Progress.Status, r.Progress.Message)
	}
	r, err := d.Releases.Redeploy(t.Context(), admin, "shop", "secrets", "")
	d.must(err)
	if r := d.ended(r.Version); r.Progress.Status != root.ReleaseFailed {
		t.Errorf("restart: got %s, want it to fail by its checks", r.Progress.Status)
	}
}

// An update that nothing tests is not given the time of tests.
func TestProveNothing(t *testing.T) {
	groups := []root.Group{{Name: "web", Checks: []root.MachineCheck{{Command: []string{"probe"}}}}, {Name: "worker"}}
	c := &cluster{}
	for name, r := range map[string]*root.Release{
		"no checks": {Groups: groups[1:]},
		"unchecked": {Groups: groups, Deploy: root.Deploy{Unchecked: true}},
		"detached":  {Groups: groups, Deploy: root.Deploy{Detach: true}},
		"immediate": {Groups: groups, Deploy: root.Deploy{Strategy: root.StrategyImmediate}},
	} {
		if c.prove(r) != nil {
			t.Errorf("%s: got a proof, want none", name)
		}
	}
	if c.prove(&root.Release{Groups: groups}) == nil {
		t.Error("with checks: got no proof")
	}
}
