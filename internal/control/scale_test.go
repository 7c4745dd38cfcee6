package control

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// groups are two process groups, as a release has them.
func groups() []root.Group {
	web, worker := config(), config()
	web.Services = []root.Service{{Protocol: "tcp", InternalPort: 8080, Autostop: root.AutostopOff, Concurrency: root.Concurrency{Type: "connections", Soft: 20}}}
	web.Metadata = map[string]string{"mine": "kept"}
	worker.Guest.Memory = 512 * root.MiB
	return []root.Group{{Name: "web", Config: web, Region: "loc", Source: []byte(`{"image":"shop"}`)}, {Name: "worker", Config: worker, Sized: true}}
}

// count asks for numbers of machines, as "web", 2, "worker", 1.
func (w *world) count(c ScaleCount, pairs ...any) ([]ScaleStep, error) {
	w.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		c.Groups = append(c.Groups, GroupCount{Group: pairs[i].(string), Count: pairs[i+1].(int)})
	}
	if c.Bound == 0 {
		c.Bound = Unbounded
	}
	w.now = w.now.Add(time.Second)
	var steps []ScaleStep
	err := w.Scale.Count(w.t.Context(), admin, "shop", c, func(s ScaleStep) { steps = append(steps, s) })
	return steps, err
}

// sizes are how many machines each group has.
func (w *world) sizes() map[string]int {
	w.t.Helper()
	list, err := w.Scale.Show(w.t.Context(), admin, "shop")
	w.must(err)
	out := map[string]int{}
	for _, s := range list {
		out[s.Group] += s.Count
	}
	return out
}

func TestScaleCount(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.Secrets.Set(ctx, admin, "shop", values("A", "b"))
	w.must(err)
	r := w.release(1, groups()...)
	steps, err := w.count(ScaleCount{}, "web", 2, "worker", 1)
	w.must(err)
	if got := w.sizes(); len(steps) != 3 || got["web"] != 2 || got["worker"] != 1 {
		t.Fatalf("got %v with %v, want two web and one worker", got, steps)
	}
	var first *root.Machine
	for _, m := range w.Machines.managed("shop") {
		meta, env := m.Spec.Config.Metadata, m.Spec.Config.Env
		if meta[root.MetadataReleaseVersion] != "1" || meta[root.MetadataReleaseID] != string(r.ID) || env["FLY_PROCESS_GROUP"] != m.Group() ||
			m.Spec.Release != 1 || m.Spec.Secrets != 1 || m.Spec.Image.Digest != r.Image.Digest || m.Origin != root.OriginUser {
			t.Errorf("machine %s is not one of the release: %+v", m.ID, m.Spec)
		}
		if m.Group() == "web" && first == nil {
			first = m
		}
	}
	// A clone is like the first one, whatever became of that since.
	c := first.Clone().Spec.Config
	c.Env["EXTRA"] = "1"
	_, err = w.Machines.Update(ctx, admin, "shop", first.ID, UpdateMachine{Config: c, Release: &Pinned{Image: first.Spec.Image, Release: 1, Secrets: 1}})
	w.must(err)
	steps, err = w.count(ScaleCount{}, "web", 3)
	w.must(err)
	m, err := w.Machines.Get(ctx, admin, "shop", steps[0].Machine)
	w.must(err)
	if m.Spec.Config.Env["EXTRA"] != "1" || m.Spec.Config.Metadata["mine"] != "kept" {
		t.Errorf("a clone: got %+v", m.Spec.Config)
	}
	// Down: what goes is the oldest (list order), and the other group stays.
	steps, err = w.count(ScaleCount{}, "web", 1)
	w.must(err)
	if got := w.sizes(); got["web"] != 1 || got["worker"] != 1 || len(steps) != 2 || !steps[0].Remove {
		t.Errorf("got %v with %v", got, steps)
	}
	if w.Machines.Catalog.Snapshot().Machine(m.ID) == nil {
		t.Error("the newest went before the older ones")
	}
	// To nothing and back: from the release again.
	_, err = w.count(ScaleCount{}, "web", 0)
	w.must(err)
	guest := root.Guest{CPUKind: "shared", CPUs: 2, Memory: 1024 * root.MiB}
	_, err = w.count(ScaleCount{Guest: &guest}, "web", 1)
	w.must(err)
	i := slices.IndexFunc(w.Machines.managed("shop"), func(m *root.Machine) bool { return m.Group() == "web" })
	if m := w.Machines.managed("shop")[i]; m.Spec.Config.Guest != guest || m.Spec.Config.Env["EXTRA"] != "" || m.Spec.Config.Env["PRIMARY_REGION"] != "loc" {
		t.Errorf("after zero: got %+v", m.Spec.Config)
	}
	steps, err = w.count(ScaleCount{}, "web", 1)
	if err != nil || len(steps) > 0 {
		t.Errorf("nothing to do: got %v, %v", steps, err)
	}
	var plus []ScaleStep
	w.must(w.Scale.Count(ctx, admin, "shop", ScaleCount{Groups: []GroupCount{{"worker", 1, true}}, Bound: Unbounded}, func(s ScaleStep) { plus = append(plus, s) }))
	if got := w.sizes(); len(plus) != 1 || got["worker"] != 2 {
		t.Errorf("one more: got %v", got)
	}
	w.must(w.Scale.Count(ctx, admin, "shop", ScaleCount{Groups: []GroupCount{{"worker", -5, true}}, Bound: Unbounded}, nil))
	if got := w.sizes(); got["worker"] != 0 {
		t.Errorf("five less of two: got %v, want none", got)
	}
}

func TestScaleRefuses(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.count(ScaleCount{}, "app", 2)
	w.want(err, root.Precondition, "deploy it before you scale")
	if root.CodeOf(err) != "no_release" {
		t.Errorf("code: got %q", root.CodeOf(err))
	}
	w.release(0, groups()...)
	_, err = w.count(ScaleCount{}, "nope", 1)
	w.want(err, root.Invalid, "web, worker")
	_, err = w.count(ScaleCount{}, "web", -1)
	w.want(err, root.Invalid, "negative")
	_, err = w.count(ScaleCount{}, "web", maxScale+1)
	w.want(err, root.Invalid, "more than")
	_, err = w.count(ScaleCount{}, "web", 1, "web", 2)
	w.want(err, root.Invalid, "twice")
	_, err = w.count(ScaleCount{Bound: 1}, "web", 2)
	w.want(err, root.Invalid, "--max-per-region")
	_, err = w.count(ScaleCount{Regions: []root.Region{"mars"}}, "web", 1)
	w.want(err, root.Exhausted, "mars")
	w.want(w.Scale.Count(ctx, reader, "shop", ScaleCount{}, nil), root.Forbidden, "")
	_, err = w.Scale.Show(ctx, foreign, "shop")
	w.want(err, root.Forbidden, "")

	// A machine that somebody leased is not taken away, and nothing else is.
	_, err = w.count(ScaleCount{}, "web", 2)
	w.must(err)
	_, err = w.Machines.Acquire(ctx, admin, "shop", w.Machines.managed("shop")[1].ID, "", "", time.Minute)
	w.must(err)
	_, err = w.count(ScaleCount{}, "web", 0)
	w.want(err, root.Conflict, "lease")
	for _, m := range w.Machines.managed("shop")[:1] {
		if l := m.ActiveLease(w.now); l != nil {
			t.Errorf("the lease of %s was not given back", m.ID)
		}
	}
	if got := w.sizes()["web"]; got != 2 {
		t.Errorf("got %d machines, want 2", got)
	}
	// A rollout under way.
	_, _, err = w.store.CreateRelease(ctx, root.Release{ID: "01J0ABCDEFGHJKMNPQRSTVWXYX", App: "shop", Definition: []byte(`{}`)})
	w.must(err)
	_, err = w.count(ScaleCount{}, "web", 3)
	w.want(err, root.Conflict, "being rolled out")
}

// TestScaleDrains: what goes is cordoned, has nothing in flight, and is
// stopped, before it is destroyed.
func TestScaleDrains(t *testing.T) {
	w := newWorld(t)
	w.release(0, groups()...)
	_, err := w.count(ScaleCount{}, "web", 1)
	w.must(err)
	drained := 0
	w.Scale.Drain = func(_ context.Context, m *root.Machine) error {
		drained++
		if now := w.Machines.Catalog.Snapshot().Machine(m.ID); now == nil || !now.Spec.Cordoned || now.Status.State != root.StateStarted {
			t.Errorf("when it drains: got %+v, want it cordoned and running", now)
		}
		return nil
	}
	_, err = w.count(ScaleCount{}, "web", 0)
	w.must(err)
	if drained != 1 {
		t.Errorf("drained %d machines, want 1", drained)
	}
}

func TestResize(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	big := root.Guest{CPUKind: "shared", CPUs: 2, Memory: 512 * root.MiB}
	w.release(0, groups()...)
	w.want(w.Scale.Resize(ctx, admin, "shop", Resize{Guest: &big}, nil), root.Precondition, "no machines")
	_, err := w.count(ScaleCount{}, "web", 2, "worker", 1)
	w.must(err)
	w.want(w.Scale.Resize(ctx, admin, "shop", Resize{Guest: &big}, nil), root.Invalid, "several process groups (web, worker)")
	w.want(w.Scale.Resize(ctx, admin, "shop", Resize{Group: "nope", Guest: &big}, nil), root.Invalid, "nope")
	w.want(w.Scale.Resize(ctx, admin, "shop", Resize{Group: "web"}, nil), root.Invalid, "name a size")
	w.want(w.Scale.Resize(ctx, admin, "shop", Resize{Group: "web", Memory: 300 * root.MiB}, nil), root.Invalid, "memory_mb")
	rests := w.Machines.managed("shop")[0]
	w.must(w.Machines.Stop(ctx, admin, "shop", rests.ID, "", StopRequest{}))
	changed := 0
	w.must(w.Scale.Resize(ctx, admin, "shop", Resize{Group: rests.Group(), Guest: &big, Memory: 1024 * root.MiB}, func(*root.Machine) { changed++ }))
	want := big
	want.Memory = 1024 * root.MiB
	for _, m := range w.Machines.managed("shop") {
		if (m.Group() == rests.Group()) != (m.Spec.Config.Guest == want) {
			t.Errorf("%s of %s: got %+v", m.ID, m.Group(), m.Spec.Config.Guest)
		}
		if m.ID == rests.ID && (m.Status.State != root.StateStopped || m.Spec.Release != 1) {
			t.Errorf("a stopped machine: got %s, release %d", m.Status.State, m.Spec.Release)
		}
	}
	if changed == 0 {
		t.Error("nobody was told")
	}
}

func TestRestartApp(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.want(w.Scale.Restart(ctx, admin, "shop", false, nil), root.Precondition, "no machine")
	w.release(0, groups()...)
	_, err := w.count(ScaleCount{}, "web", 2)
	w.must(err)
	list := w.Machines.managed("shop")
	w.must(w.Machines.Stop(ctx, admin, "shop", list[0].ID, "", StopRequest{}))
	var told []root.MachineID
	w.must(w.Scale.Restart(ctx, admin, "shop", false, func(m *root.Machine) { told = append(told, m.ID) }))
	if !slices.Equal(told, []root.MachineID{list[1].ID}) {
		t.Errorf("restarted %v, want only %s, which runs", told, list[1].ID)
	}
	now := w.Machines.Catalog.Snapshot().Machine(list[1].ID)
	if now.Spec.Instance == list[1].Spec.Instance || now.Spec.Release != list[1].Spec.Release {
		t.Errorf("got %+v, want a new version of the same release", now.Spec)
	}
}

// TestDial: a machine that rests is woken, kept awake while the connection is
// open, and a port that refuses is explained.
func TestDial(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, _, err := w.Machines.Dial(ctx, admin, "shop", "", 80)
	w.want(err, root.Unimplemented, "private network")
	var mu sync.Mutex
	var refuse error
	var meanwhile func() // happens while it connects
	type kept struct {
		instance root.InstanceID
		woken    bool // before
	}
	busy := make(chan kept, 10) // more than the sessions of this test send
	w.Machines.Deps.Dial = func(context.Context, string, string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if refuse != nil {
			return nil, refuse
		}
		if meanwhile != nil {
			meanwhile()
		}
		here, there := net.Pipe()
		return here, there.SetDeadline(time.Now())
	}
	w.Machines.Busy = func(_ context.Context, id root.InstanceID, _ time.Time) error {
		k := kept{instance: id}
		for m := range w.Machines.Catalog.Snapshot().AllMachines() {
			k.woken = k.woken || m.Spec.Instance == id && m.Status.State == root.StateStarted
		}
		busy <- k
		return nil
	}
	_, _, err = w.Machines.Dial(ctx, admin, "shop", "", 80)
	w.want(err, root.Precondition, "no machine that runs or could be woken")
	m := w.create("web")
	w.must(w.Machines.Suspend(ctx, admin, "shop", m.ID, ""))
	conn, got, err := w.Machines.Dial(ctx, admin, "shop", "", 80)
	w.must(err)
	if now := w.Machines.Catalog.Snapshot().Machine(m.ID); got.ID != m.ID || now.Status.State != root.StateStarted {
		t.Errorf("got %s, %s, want %s, woken", got.ID, now.Status.State, m.ID)
	}
	if k := patience.Receive(t, "somebody to keep the machine awake", busy); k.instance != m.Spec.Instance || k.woken {
		t.Errorf("got %+v kept awake, want %s before it was woken", k, m.Spec.Instance)
	}
	w.must(conn.Close())
	meanwhile = func() { w.must(w.Machines.Suspend(ctx, admin, "shop", m.ID, "")) } // as autostop, in the last moment
	conn, _, err = w.Machines.Dial(ctx, admin, "shop", m.ID, 80)
	w.must(err)
	if now := w.Machines.Catalog.Snapshot().Machine(m.ID); now.Status.State != root.StateStarted {
		t.Errorf("with the connection the machine is %s", now.Status.State)
	}
	w.must(conn.Close())
	meanwhile = nil
	_, _, err = w.Machines.Dial(ctx, admin, "shop", m.ID, 0)
	w.want(err, root.Invalid, "port")
	_, _, err = w.Machines.Dial(ctx, reader, "shop", m.ID, 80)
	w.want(err, root.Forbidden, "")
	mu.Lock()
	refuse = &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	mu.Unlock()
	_, _, err = w.Machines.Dial(ctx, admin, "shop", m.ID, 80)
	w.want(err, root.Precondition, "it listens on 0.0.0.0:8080")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the cause is lost: %v", err)
	}
}

func (f *agent) Inspect(context.Context, root.MachineID) (orders.Inspection, error) {
	return orders.Inspection{Listens: []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}, {Proto: "udp", Address: "0.0.0.0:53"}}}, nil
}

// TestConsole: a console is the app from inside, serves nothing, belongs to no
// release, and goes.
func TestConsole(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, _, _, err := w.Consoles.Open(ctx, admin, "shop", Console{})
	w.want(err, root.Precondition, "neither a release nor a machine")
	_, err = w.Secrets.Set(ctx, admin, "shop", values("A", "b"))
	w.must(err)
	w.release(1, groups()...)
	m, r, end, err := w.Consoles.Open(ctx, admin, "shop", Console{Env: map[string]string{"MINE": "1"}})
	w.must(err)
	c := m.Spec.Config
	if r == nil || r.Version != 1 || m.Managed() || len(c.Services) > 0 || !c.AutoDestroy || c.Env["MINE"] != "1" || m.Spec.Secrets != 1 ||
		!c.DNS.SkipRegistration || strings.Join(c.Init.Exec, " ") != "/bin/sleep inf" || m.Group() != root.GroupConsole {
		t.Errorf("got %+v", m.Spec)
	}
	w.must(end())
	w.must(end()) // whoever was first
	if w.Machines.Catalog.Snapshot().Machine(m.ID) != nil {
		t.Error("the console is still there")
	}
	// One that another control process left behind.
	m, _, _, err = w.Consoles.Open(ctx, admin, "shop", Console{})
	w.must(err)
	other := w.create("web")
	w.must(w.Consoles.Sweep(ctx))
	if w.Machines.Catalog.Snapshot().Machine(m.ID) != nil || w.Machines.Catalog.Snapshot().Machine(other.ID) == nil {
		t.Error("a sweep takes all consoles, and nothing else")
	}
	_, _, _, err = w.Consoles.Open(ctx, auth.Actor{Scope: auth.ScopeRead, Org: root.DefaultOrg}, "shop", Console{})
	w.want(err, root.Forbidden, "")
}
