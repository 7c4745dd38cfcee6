package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	root "github.com/roost-run/roost"
)

const shop = root.AppName("shop")

// errDead is what everything answers when the process is dead.
var errDead = errors.New("the process is dead")

// world is an app's machines, and the store that outlives the process. It
// keeps an eye on what serves.
type world struct {
	mu       sync.Mutex // guards all
	machines map[root.MachineID]*root.Machine
	next     int
	dead     bool

	// What becomes of a version of the new release.
	bad      root.Release // its Version: of this release nothing works
	badAfter bool         // it looks ready, and fails its gates afterwards

	journal root.Rollout
	were    map[root.MachineID]*root.Machine
	status  root.ReleaseStatus
	message string
	current int
	events  []root.ReleaseEvent
	ran     []string // commands, each attempt
	failing string   // the command that fails
	checked []root.MachineID
	refused string // machines of this group do not pass their machine checks
	verify  error

	retired    []root.MachineID
	floor      map[string]int // by group: so many have to serve
	violations []string
}

func newWorld() *world {
	return &world{machines: map[root.MachineID]*root.Machine{}, were: map[root.MachineID]*root.Machine{}, floor: map[string]int{}}
}

// add makes a machine of an old release.
func (w *world) add(group string, state root.State, release int, served bool) *root.Machine {
	w.next++
	m := &root.Machine{
		ID: root.MachineID(fmt.Sprintf("%014x", w.next)), App: shop, Origin: root.OriginUser, Region: "loc",
		Spec: root.Spec{
			Instance: root.InstanceID(fmt.Sprintf("I%d", w.next)), Generation: 3, Release: release, Launch: state == root.StateStarted,
			Image: root.Image{Digest: "sha256:old"}, Config: config(served),
		},
		Status: root.Status{State: state},
	}
	m.Spec.Config.Metadata = map[string]string{root.MetadataPlatform: "v2", root.MetadataProcessGroup: group}
	w.machines[m.ID] = m
	return m
}

func config(served bool) root.Config {
	c := root.Config{Image: "old", Guest: root.DefaultGuest()}
	if served {
		c.Services = []root.Service{{Protocol: "tcp", InternalPort: 8080, Checks: []root.Check{{Type: "tcp"}}}}
	}
	return c
}

// release is version 2, of these groups.
func release(groups ...root.Group) *root.Release {
	return &root.Release{
		ID: "R2", App: shop, Version: 2, Image: root.Image{Registry: "r", Repository: "shop", Digest: "sha256:new"},
		Groups: groups, Deploy: root.Deploy{Strategy: root.StrategyRolling},
	}
}

func group(name string, served bool) root.Group {
	return root.Group{Name: name, Config: config(served)}
}

// look counts what serves; the caller holds mu.
func (w *world) look(after string) {
	for g, least := range w.floor {
		if n := w.serving(g); n < least {
			w.violations = append(w.violations, fmt.Sprintf("after %s: %d of group %s serve, want at least %d", after, n, g, least))
		}
	}
}

func (w *world) serving(group string) int {
	n := 0
	for _, m := range w.machines {
		if m.Group() == group && m.Status.State == root.StateStarted && !m.Spec.Cordoned && m.Spec.Release != w.bad.Version {
			n++
		}
	}
	return n
}

// do runs f unless the process is dead.
func (w *world) do(what string, f func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errDead
	}
	err := f()
	w.look(what)
	return err
}

func (w *world) Machines(context.Context, root.AppName) ([]*root.Machine, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return nil, errDead
	}
	return w.list(), nil
}

func (w *world) list() []*root.Machine {
	var out []*root.Machine
	for _, id := range slices.Sorted(maps.Keys(w.machines)) {
		out = append(out, w.machines[id].Clone())
	}
	return out
}

func (w *world) Create(_ context.Context, r *root.Release, t Target, n NewMachine) (m *root.Machine, err error) {
	err = w.do("create", func() error {
		if w.bad.Version == r.Version && !w.badAfter && n.Launch {
			return root.Errorf(root.Precondition, "it ended with exit code 1")
		}
		m = w.add(t.Config.Metadata[root.MetadataProcessGroup], root.StateStopped, r.Version, Served(&t.Config))
		if n.Launch {
			m.Status.State = root.StateStarted
		}
		m.Spec.Generation, m.Spec.Config, m.Spec.Image, m.Spec.Secrets, m.Spec.Launch, m.Spec.Cordoned = 1, t.Config, t.Image, t.Secrets, n.Launch, n.Cordoned
		m = m.Clone()
		return nil
	})
	return m, err
}

func (w *world) change(m *root.Machine, release int, t Target, launch bool) {
	now := w.machines[m.ID]
	w.next++
	now.Spec.Instance, now.Spec.Generation = root.InstanceID(fmt.Sprintf("I%d", w.next)), now.Spec.Generation+1
	now.Spec.Config, now.Spec.Image, now.Spec.Secrets, now.Spec.Release, now.Spec.Launch = t.Config.Clone(), t.Image, t.Secrets, release, launch
	now.Status.State = root.StateStopped
	if launch {
		now.Status.State = root.StateStarted
	}
}

func (w *world) Update(_, _ context.Context, r *root.Release, m *root.Machine, t Target, launch bool) error {
	beside := Served(&t.Config) && launch
	if !beside { // it stops first
		if err := w.do("stop", func() error { w.machines[m.ID].Status.State = root.StateStopped; return nil }); err != nil {
			return err
		}
	}
	return w.do("update", func() error {
		if w.bad.Version == r.Version && !w.badAfter && launch {
			if !beside {
				w.change(m, r.Version, t, false)
			}
			return root.Errorf(root.Precondition, "the new version did not listen")
		}
		w.change(m, r.Version, t, launch)
		return nil
	})
}

func (w *world) Keep(_ context.Context, r *root.Release, m *root.Machine, t Target) error {
	return w.do("keep", func() error {
		now := w.machines[m.ID]
		now.Spec.Config.Metadata, now.Spec.Release = maps.Clone(t.Config.Metadata), r.Version
		return nil
	})
}

func (w *world) Ready(ctx context.Context, r *root.Release, id root.MachineID, _ bool, _ Tell) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return w.do("ready", func() error {
		if m := w.machines[id]; m.Spec.Release == w.bad.Version {
			return root.Errorf(root.Precondition, "machine %s does not pass its checks", id)
		}
		return nil
	})
}

func (w *world) RunChecks(_ context.Context, _ *root.Release, id root.MachineID, _ Tell) error {
	return w.do("checks", func() error {
		w.checked = append(w.checked, id)
		if m := w.machines[id]; m.Group() == w.refused {
			return root.Errorf(root.Precondition, "machine check of %s: exit code 1", id)
		}
		return nil
	})
}

func (w *world) Cordon(_ context.Context, _ root.AppName, id root.MachineID, on bool) error {
	return w.do("cordon", func() error { w.machines[id].Spec.Cordoned = on; return nil })
}

func (w *world) Retire(ctx context.Context, app root.AppName, id root.MachineID) error {
	if err := w.do("retire", func() error { w.retired = append(w.retired, id); return nil }); err != nil {
		return err
	}
	return w.Destroy(ctx, app, id)
}

func (w *world) Destroy(_ context.Context, _ root.AppName, id root.MachineID) error {
	return w.do("destroy", func() error { delete(w.machines, id); return nil })
}

func (w *world) Restore(_ context.Context, r *root.Release, was *root.Machine) error {
	return w.do("restore", func() error {
		now := w.machines[was.ID]
		if now.Spec.Instance != was.Spec.Instance {
			w.change(was, was.Spec.Release, Target{Config: was.Spec.Config, Image: was.Spec.Image, Secrets: was.Spec.Secrets}, was.Spec.Launch)
		}
		now.Spec.Config.Metadata, now.Spec.Release, now.Spec.Cordoned = maps.Clone(was.Spec.Config.Metadata), was.Spec.Release, was.Spec.Cordoned
		return nil
	})
}

func (w *world) Command(_ context.Context, r *root.Release, step string, _ []string, _ root.MachineID, made func(root.MachineID) error, _ Tell) error {
	if err := made("00000000000abc"); err != nil {
		return err
	}
	return w.do(step, func() error {
		w.ran = append(w.ran, step)
		if w.failing == step {
			return root.Errorf(root.Precondition, "exit code 3")
		}
		return nil
	})
}

func (w *world) Verify(context.Context, *root.Release, Tell) (string, error) {
	return "", w.do("verify", func() error { return w.verify })
}

func (w *world) Begin(context.Context, root.AppName, int) error {
	return w.do("begin", func() error { return nil })
}

func (w *world) Save(_ context.Context, j root.Rollout) error {
	return w.do("save", func() error { w.journal = j; return nil })
}

func (w *world) Remember(_ context.Context, m *root.Machine) error {
	return w.do("remember", func() error {
		if w.were[m.ID] == nil {
			w.were[m.ID] = m.Clone()
		}
		return nil
	})
}

func (w *world) Remembered(context.Context, root.AppName) (all map[root.MachineID]*root.Machine, err error) {
	err = w.do("remembered", func() error { all = maps.Clone(w.were); return nil })
	return all, err
}

func (w *world) Shift(_ context.Context, r *root.Release, j root.Rollout) error {
	return w.do("shift", func() error {
		w.journal, w.current = j, r.Version
		// From here on other groups may go.
		for g := range w.floor {
			if !slices.ContainsFunc(r.Groups, func(x root.Group) bool { return x.Name == g }) {
				delete(w.floor, g)
			}
		}
		return nil
	})
}

func (w *world) Finish(_ context.Context, _ root.Rollout, status root.ReleaseStatus, message string) error {
	return w.do("finish", func() error { w.status, w.message = status, message; return nil })
}

func (w *world) Tell(e root.ReleaseEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.dead {
		w.events = append(w.events, e)
	}
}

// run carries the rollout of r to its end, through a crash at each of the
// points given, one a life of the process.
func (w *world) run(ctx context.Context, r *root.Release, crashes ...string) error {
	for life := 0; ; life++ {
		w.mu.Lock()
		w.dead = false
		j := w.journal
		w.mu.Unlock()
		o := Options{Cluster: w, Memory: w, Pause: time.Nanosecond}
		if life < len(crashes) {
			o.Failpoint = func(point string) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if point == crashes[life] {
					w.dead = true
				}
			}
		}
		_, _, err := New(o, r, j).Run(ctx, ctx)
		w.mu.Lock()
		dead := w.dead
		w.mu.Unlock()
		if !dead {
			return err
		}
		if life > len(crashes) {
			return errors.New("it does not end")
		}
	}
}
