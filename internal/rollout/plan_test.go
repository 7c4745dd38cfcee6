package rollout

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

// text renders a plan, a line a step.
func text(p Plan) []string {
	out := []string{}
	lane := func(kind string, ls []Lane) {
		for _, l := range ls {
			for i, s := range l.Steps {
				how := fmt.Sprintf("pool %d", l.Pool)
				if l.Alone && i == 0 {
					how = "alone"
				}
				id := string(s.Machine)
				if id != "" {
					id = " " + id[12:]
				}
				out = append(out, fmt.Sprintf("%s %s %s%s launch=%v %s", kind, l.Group, s.Action, id, s.Launch, how))
			}
		}
	}
	for _, s := range p.Canaries {
		out = append(out, fmt.Sprintf("canary %s", s.Group))
	}
	lane("create", p.Creates)
	lane("update", p.Updates)
	lane("green", p.Greens)
	for _, b := range p.Blues {
		out = append(out, "blue "+string(b)[12:])
	}
	for _, s := range p.Gone {
		out = append(out, "gone "+s.Group+" "+string(s.Machine)[12:])
	}
	for _, m := range p.Foreign {
		out = append(out, "foreign "+string(m.ID)[12:])
	}
	return out
}

func TestPlan(t *testing.T) {
	web, worker := group("web", true), group("worker", false)
	for name, tc := range map[string]struct {
		machines func(*world)
		release  func(*root.Release)
		journal  root.Rollout
		want     []string
		err      string
	}{
		"first deploy": {want: []string{"create web create launch=true pool 1", "create worker create launch=true pool 1"}},
		"first deploy with two": {
			release: func(r *root.Release) { r.Deploy.Standby = true },
			want:    []string{"create web create launch=true pool 1", "create web create launch=true pool 1", "create worker create launch=true pool 1"},
		},
		"no new machines": {release: func(r *root.Release) { r.Deploy.UpdateOnly = true }, want: []string{}},
		"first canary is an ordinary one": {
			release: func(r *root.Release) { r.Deploy.Strategy = root.StrategyCanary },
			want:    []string{"create web create launch=true pool 1", "create worker create launch=true pool 1"},
		},
		"running and resting side by side": {
			machines: func(w *world) {
				for range 4 {
					w.add("web", root.StateStarted, 1, true)
				}
				w.add("web", root.StateSuspended, 1, true)
				w.add("web", root.StateFailed, 1, true)
				w.add("worker", root.StateStopped, 1, false)
			},
			want: []string{
				"update web update 01 launch=true alone", "update web update 02 launch=true pool 2", "update web update 03 launch=true pool 2",
				"update web update 04 launch=true pool 2", "update web update 06 launch=true pool 2",
				"update web update 05 launch=false alone", "update worker update 07 launch=false alone",
			},
		},
		"immediate": {
			machines: func(w *world) { w.add("web", root.StateStarted, 1, true); w.add("web", root.StateStarted, 1, true) },
			release:  func(r *root.Release) { r.Deploy.Strategy, r.Groups = root.StrategyImmediate, r.Groups[:1] },
			want:     []string{"update web update 01 launch=true pool 8", "update web update 02 launch=true pool 8"},
		},
		"canary": {
			machines: func(w *world) { w.add("web", root.StateStarted, 1, true); w.add("worker", root.StateStarted, 1, false) },
			release:  func(r *root.Release) { r.Deploy.Strategy = root.StrategyCanary },
			journal:  root.Rollout{Done: []string{"canary/worker"}},
			want:     []string{"canary web", "update web update 01 launch=true alone", "update worker update 02 launch=true alone"},
		},
		"bluegreen, all asleep: one shows that it works": {
			machines: func(w *world) { w.add("web", root.StateStopped, 1, true); w.add("web", root.StateStopped, 1, true) },
			release:  func(r *root.Release) { r.Deploy.Strategy, r.Groups = root.StrategyBlueGreen, r.Groups[:1] },
			want:     []string{"green web green 01 launch=true pool 1", "green web green 02 launch=false pool 1", "blue 01", "blue 02"},
		},
		"bluegreen without checks": {
			machines: func(w *world) { w.add("worker", root.StateStarted, 1, false) },
			release:  func(r *root.Release) { r.Deploy.Strategy, r.Groups = root.StrategyBlueGreen, r.Groups[1:] },
			err:      "health check",
		},
		"group gone, machines of others": {
			machines: func(w *world) {
				w.add("web", root.StateStarted, 1, true)
				w.add("old", root.StateStarted, 1, true)
				w.add("", root.StateStarted, 0, true).Spec.Config.Metadata = nil
				w.add(root.GroupReleaseCommand, root.StateStarted, 1, false)
				w.add("web", root.StateDestroyed, 1, true)
			},
			release: func(r *root.Release) { r.Groups = r.Groups[:1] },
			want:    []string{"update web update 01 launch=true alone", "gone old 02", "foreign 03"},
		},
		"only some": {
			machines: func(w *world) {
				w.add("web", root.StateStarted, 1, true)
				w.add("web", root.StateStarted, 1, true).Region = "fra"
				w.add("worker", root.StateStarted, 1, false)
				w.add("old", root.StateStarted, 1, true)
			},
			release: func(r *root.Release) { r.Deploy.OnlyGroups, r.Deploy.Regions = []string{"web"}, []root.Region{"fra"} },
			want:    []string{"update web update 02 launch=true alone"},
		},
		"after a crash": {
			machines: func(w *world) {
				w.add("web", root.StateStarted, 2, true) // passed
				w.add("web", root.StateStarted, 2, true) // changed, its gates not passed
				w.add("web", root.StateStarted, 1, true)
				w.add("worker", root.StateStarted, 2, false).Spec.Generation = 1 // made by this rollout
			},
			journal: root.Rollout{Passed: []root.MachineID{"00000000000001"}},
			want: []string{
				"create worker check 04 launch=true pool 1", "update web check 02 launch=true pool 1", "update web update 03 launch=true pool 1",
			},
		},
		"restart": {
			machines: func(w *world) {
				w.add("web", root.StateStarted, 1, true)
				w.add("other", root.StateStopped, 1, true)
			},
			release: func(r *root.Release) { r.Deploy.Restart = true },
			want:    []string{"update web update 01 launch=true alone", "update other update 02 launch=false alone"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, r := newWorld(), release(web, worker)
			if tc.machines != nil {
				tc.machines(w)
			}
			if tc.release != nil {
				tc.release(r)
			}
			p, err := Make(r, w.list(), tc.journal)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want an error with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, text(p)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnavailable(t *testing.T) {
	for _, tc := range []struct {
		limit   float64
		n, want int
	}{{0, 3, 1}, {0, 4, 2}, {0.33, 10, 4}, {0.5, 1, 1}, {1, 9, 1}, {2.9, 9, 2}, {0.01, 0, 1}} {
		if got := Unavailable(tc.limit, tc.n); got != tc.want {
			t.Errorf("%v of %d: got %d, want %d", tc.limit, tc.n, got, tc.want)
		}
	}
}

// What a machine keeps, what the release says, and when they are the same.
func TestTarget(t *testing.T) {
	w := newWorld()
	m := w.add("web", root.StateStarted, 1, true)
	c := &m.Spec.Config
	c.Guest.Memory, c.AutoDestroy, c.DNS.Hostname = root.GiB, true, "db"
	c.Env, c.Metadata["mine"] = map[string]string{"OLD": "1"}, "yes"
	g := group("web", true)
	g.Config.Env, g.Region = map[string]string{"NEW": "1"}, "loc"
	r := release(g)
	got := TargetOf(r, &r.Groups[0], m)
	want := map[string]string{"NEW": "1", "FLY_PROCESS_GROUP": "web", "PRIMARY_REGION": "loc"}
	if diff := cmp.Diff(want, got.Config.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	if md := got.Config.Metadata; md["mine"] != "yes" || md["fly_release_version"] != "2" || md["fly_release_id"] != "R2" || md["fly_platform_version"] != "v2" || md["fly_process_group"] != "web" {
		t.Errorf("metadata: got %v", md)
	}
	if got.Config.Guest.Memory != root.GiB || !got.Config.AutoDestroy || got.Config.DNS.Hostname != "db" || got.Image.Digest != "sha256:new" {
		t.Errorf("got %+v", got)
	}
	if got.Same(m) {
		t.Error("another image is the same")
	}
	w.change(m, 1, got, true)
	now := w.machines[m.ID]
	now.Spec.Config.Checks = map[string]root.Check{} // as a store may return it
	next := release(g)
	next.ID, next.Version = "R3", 3
	again := TargetOf(next, &next.Groups[0], now)
	if !again.Same(now) {
		t.Errorf("the next release of the same is not the same: %s", cmp.Diff(again.Config, now.Spec.Config))
	}
	if r.Groups[0].Config.Env["FLY_PROCESS_GROUP"] != "" {
		t.Error("a target shares its environment with the release")
	}
	sized := next.Groups[0]
	sized.Sized = true
	if bigger := TargetOf(next, &sized, now); bigger.Same(now) || bigger.Config.Guest != root.DefaultGuest() {
		t.Errorf("a size of the release: got %+v", bigger.Config.Guest)
	}
	next.Deploy.Restart = true
	next.Secrets = 4
	if kept := TargetOf(next, &sized, now); kept.Config.Guest.Memory != root.GiB || kept.Secrets != 4 || kept.Same(now) {
		t.Errorf("a restart: got %+v", kept)
	}
}
