package control

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/seal"
	"github.com/roost-run/roost/internal/state"
)

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }

const hostID = root.HostID("5e1f00aa")

// agent does at once what it is told and writes the status.
type agent struct {
	Agent // what no test needs is nil
	store *state.Store

	mu       sync.Mutex
	launch   error                        // what Launch answers
	leases   map[root.MachineID]time.Time // as told
	replaced int
	seq      uint64
	live     orders.Instance // what Instance answers
}

func (f *agent) Instance(context.Context, root.InstanceID) (orders.Instance, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live, nil
}

func (f *agent) Suspend(ctx context.Context, id root.MachineID, _ orders.Suspend) (int64, error) {
	return f.set(ctx, id, root.StateSuspended)
}

func (f *agent) put(ctx context.Context, id root.MachineID, change func(*root.Status)) (int64, error) {
	m, err := f.store.Machine(ctx, id)
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	f.seq++
	st := m.Status
	st.Stamp = root.Stamp{Boot: 1, Seq: f.seq}
	f.mu.Unlock()
	st.Instance, st.Generation = m.Spec.Instance, m.Spec.Generation
	change(&st)
	return f.store.PutStatus(ctx, id, st)
}

func (f *agent) set(ctx context.Context, id root.MachineID, s root.State) (int64, error) {
	return f.put(ctx, id, func(st *root.Status) { st.State = s })
}

func (f *agent) Launch(ctx context.Context, m *root.Machine) (int64, error) {
	if f.launch != nil {
		return 0, f.launch
	}
	if !m.Spec.Launch {
		return f.set(ctx, m.ID, root.StateStopped)
	}
	return f.set(ctx, m.ID, root.StateStarted)
}

func (*agent) GiveUp(root.MachineID, root.InstanceID) {}

func (f *agent) Replace(ctx context.Context, m *root.Machine, _ time.Duration, prove func(context.Context) error, commit func(context.Context) (int64, error)) (int64, error) {
	if prove != nil && len(m.Spec.Config.Services) > 0 && m.Spec.Launch {
		if err := prove(ctx); err != nil {
			return 0, err
		}
	}
	if _, err := commit(ctx); err != nil {
		return 0, err
	}
	f.mu.Lock()
	f.replaced++
	f.mu.Unlock()
	return f.Launch(ctx, m)
}

func (f *agent) Start(ctx context.Context, id root.MachineID, _ orders.Start) (int64, error) {
	return f.set(ctx, id, root.StateStarted)
}

func (f *agent) Stop(ctx context.Context, id root.MachineID, _ orders.Stop) (int64, error) {
	return f.set(ctx, id, root.StateStopped)
}

func (f *agent) Destroy(ctx context.Context, id root.MachineID) (int64, error) {
	return f.store.DeleteMachine(ctx, id)
}

func (f *agent) Lease(_ context.Context, id root.MachineID, until time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases[id] = until
	return nil
}

func (f *agent) Exec(_ context.Context, _ root.MachineID, o orders.Exec, files ...*os.File) (orders.ExecResult, error) {
	in, err := io.ReadAll(files[0])
	if err != nil {
		return orders.ExecResult{}, err
	}
	if o.Args[0] == "flood" {
		_, err = files[1].WriteString(strings.Repeat("x", MaxExecOutput+10))
	} else {
		_, err = files[1].WriteString(o.Args[1] + string(in))
	}
	_, err2 := files[2].WriteString("oops")
	return orders.ExecResult{Code: 3}, errors.Join(err, err2)
}

// library is an image store that has every image but "missing".
type library struct{ ImageStore }

func (library) Resolve(_ context.Context, ref string) (root.Image, error) {
	if ref == "missing" {
		return root.Image{}, root.Errorf(root.NotFound, "image missing is nowhere")
	}
	return root.Image{Registry: "example.com", Repository: ref, Digest: "sha256:1"}, nil
}

func (library) Own(ref string) (string, error) {
	repository, own := strings.CutPrefix(ref, "registry.localhost/")
	if !own {
		return "", nil
	}
	repository, _, _ = strings.Cut(repository, ":")
	return repository, nil
}

// Load finds the image that as names, or in its place the archive.
func (library) Load(_ context.Context, r io.Reader, as string, allow func(string) error) ([]root.Image, error) {
	if as == "" {
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		as = string(data)
	}
	return nil, allow(as)
}

// Owners gives all that is called private to acme.
func (library) Owners(_ context.Context, ref string) ([]string, error) {
	if strings.Contains(ref, "private") {
		return []string{"acme", string(root.DefaultOrg)}, nil
	}
	return nil, nil
}

func (library) PrivateRepositories(string) []string { return []string{"docker.io/acme/private"} }

func (library) DropRepository(context.Context, string) error { return nil }

// Entrypoint gives one to all that is called wrapped.
func (library) Entrypoint(_ context.Context, d root.Digest) ([]string, error) {
	if strings.Contains(string(d), "wrapped") {
		return []string{"/entry.sh", "web"}, nil
	}
	return nil, nil
}

func (library) Protect(context.Context, string, ...root.Digest) error { return nil }

func (library) Remove(context.Context, string) error { return nil }

func (library) List(context.Context) ([]ImageInfo, error) {
	return []ImageInfo{
		{Image: root.Image{Registry: "registry.localhost", Repository: "shop", Tag: "1"}},
		{Image: root.Image{Registry: "docker.io", Repository: "library/debian", Tag: "12"}},
	}, nil
}

type world struct {
	t *testing.T
	*Control
	agent *agent
	store *state.Store
	now   time.Time
}

var (
	admin   = auth.LocalRoot()
	foreign = auth.Actor{Name: "x", Scope: auth.ScopeOrg, Org: "others"}
	reader  = auth.Actor{Name: "r", Scope: auth.ScopeRead, Org: root.DefaultOrg}
)

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t, store: state.New(etcdtest.New(t)), now: time.Now()}
	w.agent = &agent{store: w.store, leases: map[root.MachineID]time.Time{}}
	_, err := w.store.CreateOrg(ctx, root.Org{Slug: root.DefaultOrg, Name: "Personal"})
	w.must(err)
	_, err = w.store.PutHost(ctx, root.Host{ID: hostID, Region: "loc", Memory: 4 * root.GiB, NetworkPart: 7})
	w.must(err)
	s, err := w.store.Load(ctx)
	w.must(err)
	cat := catalog.New(s)
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cat.Follow(follow, w.store, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { stop(); <-done })
	key, err := seal.NewKey(rand.Reader)
	w.must(err)
	keys, err := seal.Parse([]byte(key))
	w.must(err)
	w.Control = New(Deps{
		Store: w.store, Catalog: cat, Agent: w.agent, Images: library{}, Host: hostID, Vault: &Vault{Store: w.store, Keys: keys},
		Address: func(network, _, index uint32) root.Address {
			if index > 300 {
				return root.Address{}
			}
			return root.Address{Index: index, IPv4: "172.19.0.1", IPv6: "fdaa::1"}
		},
		Now: func() time.Time { return w.now }, Log: slog.New(slog.DiscardHandler),
	})
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "shop"})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) want(err error, kind root.Kind, text string) {
	w.t.Helper()
	if !root.IsKind(err, kind) || !strings.Contains(root.MessageOf(err), text) {
		w.t.Errorf("got %v (%v), want kind %v with %q", err, root.KindOf(err), kind, text)
	}
}

func config() root.Config {
	return root.Config{
		Image: "shop", Guest: root.DefaultGuest(), Restart: root.Restart{Policy: root.RestartNo}, Stop: root.Stop{Signal: "SIGINT", Timeout: time.Second},
	}
}

func (w *world) create(name string) *root.Machine {
	w.t.Helper()
	m, err := w.Machines.Create(w.t.Context(), admin, "shop", CreateMachine{Name: name, Config: config()})
	w.must(err)
	return m
}

func TestCreateIsSeenAtOnce(t *testing.T) {
	w := newWorld(t)
	c := config()
	c.Metadata = map[string]string{"launch": "1"}
	a := admin
	a.Origin = root.OriginApp
	m, err := w.Machines.Create(t.Context(), a, "shop", CreateMachine{Config: c, SkipServiceRegistration: true})
	w.must(err)
	if m.Status.State != root.StateStarted || m.Origin != root.OriginApp || !m.Spec.Cordoned || m.Spec.Generation != 1 || m.Region != "loc" {
		t.Errorf("got %+v", m)
	}
	if parts := strings.Split(m.Name, "-"); len(parts) != 3 || len(parts[2]) != 4 {
		t.Errorf("name: got %q, want adjective-noun-NNNN", m.Name)
	}
	list, err := w.Machines.List(t.Context(), admin, "shop", Filter{Metadata: map[string]string{"launch": "1"}})
	w.must(err)
	if len(list) != 1 || list[0].ID != m.ID {
		t.Errorf("list by metadata: got %d machines", len(list))
	}
	for _, f := range []Filter{{Region: "fra"}, {States: []root.State{root.StateStopped}}, {Metadata: map[string]string{"launch": "2"}}} {
		if list, err := w.Machines.List(t.Context(), admin, "shop", f); err != nil || len(list) != 0 {
			t.Errorf("filter %+v: got %d machines, %v", f, len(list), err)
		}
	}
}

// A hundred callers that want the same name get one machine.
func TestCreateOneName(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 100 {
		wg.Go(func() {
			_, err := w.Machines.Create(t.Context(), admin, "shop", CreateMachine{Name: "serverless", Config: config()})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
				return
			}
			var e *root.Error
			if !errors.As(err, &e) || e.Kind != root.Conflict || e.Code != "machine_name_taken" {
				t.Errorf("got %v, want conflict machine_name_taken", err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("made: got %d, want 1", made)
	}
}

// Many at once get addresses of their own.
func TestCreateManyAddresses(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := w.Machines.Create(t.Context(), admin, "shop", CreateMachine{Config: config()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[uint32]bool{}
	list, err := w.Machines.List(t.Context(), admin, "shop", Filter{})
	w.must(err)
	for _, m := range list {
		seen[m.Spec.Address.Index] = true
	}
	if len(list) != 40 || len(seen) != 40 {
		t.Errorf("got %d machines with %d addresses, want 40 each", len(list), len(seen))
	}
}

func TestCreateRefusals(t *testing.T) {
	w := newWorld(t)
	try := func(a auth.Actor, app root.AppName, c CreateMachine) error {
		_, err := w.Machines.Create(t.Context(), a, app, c)
		return err
	}
	bad := config()
	bad.Guest.CPUs = 3
	missing := config()
	missing.Image = "missing"
	w.want(try(admin, "nobody", CreateMachine{Config: config()}), root.NotFound, "nobody")
	w.want(try(foreign, "shop", CreateMachine{Config: config()}), root.Forbidden, "")
	w.want(try(reader, "shop", CreateMachine{Config: config()}), root.Forbidden, "")
	w.want(try(admin, "shop", CreateMachine{Config: bad}), root.Invalid, "config.guest.cpus")
	w.want(try(admin, "shop", CreateMachine{Config: missing}), root.NotFound, "nowhere")
	w.want(try(admin, "shop", CreateMachine{Config: config(), Region: "fra"}), root.Exhausted, "fra")
	w.want(try(admin, "shop", CreateMachine{Config: config(), Name: "a b"}), root.Invalid, "name")
	w.agent.launch = root.Errorf(root.Invalid, "command not found: \"x\"")
	w.want(try(admin, "shop", CreateMachine{Config: config()}), root.Invalid, "command not found")
	if list, err := w.Machines.List(t.Context(), admin, "shop", Filter{}); err != nil || len(list) != 0 {
		t.Errorf("left behind: got %d machines, %v", len(list), err)
	}
}

// unrecorded is what the server process did with a machine a moment ago, of
// which the store has not heard yet.
func (w *world) unrecorded(m *root.Machine, phase orders.Phase) (news root.Stamp) {
	recorded, err := w.agent.store.Machine(w.t.Context(), m.ID)
	w.must(err)
	news = recorded.Status.Stamp
	news.Seq++
	w.agent.mu.Lock()
	defer w.agent.mu.Unlock()
	w.agent.live = orders.Instance{Machine: m.ID, Instance: m.Spec.Instance, Phase: phase, Stamp: news}
	w.agent.seq = news.Seq
	return news
}

// TestVerbAfterUnrecordedWake: a wake is answered before it is recorded; a
// suspend that comes at once must not take the machine for suspended still.
func TestVerbAfterUnrecordedWake(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	w.must(w.Machines.Suspend(ctx, admin, "shop", m.ID, ""))
	news := w.unrecorded(m, orders.PhaseStarted)
	w.must(w.Machines.Suspend(ctx, admin, "shop", m.ID, ""))
	after, err := w.agent.store.Machine(ctx, m.ID)
	w.must(err)
	if !news.Before(after.Status.Stamp) {
		t.Error("the suspend did not reach the agent")
	}
}

// A stop of a machine that has just ended by itself reaches the agent, which
// may be about to start it again.
func TestStopAfterUnrecordedExit(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	news := w.unrecorded(m, orders.PhaseStopped)
	w.must(w.Machines.Stop(ctx, admin, "shop", m.ID, "", StopRequest{}))
	after, err := w.agent.store.Machine(ctx, m.ID)
	w.must(err)
	if !news.Before(after.Status.Stamp) {
		t.Error("the stop did not reach the agent")
	}
}

func TestLease(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	_, err := w.Machines.Lease(ctx, admin, "shop", m.ID)
	w.want(err, root.NotFound, "lease not found")
	l, err := w.Machines.Acquire(ctx, admin, "shop", m.ID, "", "deploy", time.Minute)
	w.must(err)
	if len(l.Nonce) != 12 || l.Owner != "root" || !w.agent.leases[m.ID].Equal(l.ExpiresAt) {
		t.Errorf("lease: got %+v, the agent was told %s", l, w.agent.leases[m.ID])
	}
	held := "machine ID " + string(m.ID) + " lease currently held by root, expires at " + l.ExpiresAt.Format(time.RFC3339)
	_, err = w.Machines.Acquire(ctx, admin, "shop", m.ID, "000000000000", "", time.Minute)
	w.want(err, root.Conflict, held)
	_, startErr := w.Machines.Start(ctx, admin, "shop", m.ID, "")
	_, updateErr := w.Machines.Update(ctx, admin, "shop", m.ID, UpdateMachine{Config: config()})
	_, execErr := w.Machines.Exec(ctx, admin, "shop", m.ID, "wrong", ExecRequest{Args: []string{"true"}})
	for verb, err := range map[string]error{
		"start": startErr, "update": updateErr, "exec": execErr,
		"stop":    w.Machines.Stop(ctx, admin, "shop", m.ID, "", StopRequest{}),
		"restart": w.Machines.Restart(ctx, admin, "shop", m.ID, "", RestartRequest{}),
		"suspend": w.Machines.Suspend(ctx, admin, "shop", m.ID, ""),
		"signal":  w.Machines.Signal(ctx, admin, "shop", m.ID, "", 15),
		"cordon":  w.Machines.Cordon(ctx, admin, "shop", m.ID, "", true),
		"destroy": w.Machines.Destroy(ctx, admin, "shop", m.ID, "", true),
	} {
		if !root.IsKind(err, root.Conflict) || root.MessageOf(err) != held {
			t.Errorf("%s without the nonce: got %v", verb, err)
		}
	}
	w.must(w.Machines.Stop(ctx, admin, "shop", m.ID, l.Nonce, StopRequest{}))
	v := "x"
	w.must(w.Machines.SetMetadata(ctx, admin, "shop", m.ID, "", map[string]*string{"k": &v})) // needs no nonce
	again, err := w.Machines.Acquire(ctx, admin, "shop", m.ID, l.Nonce, "", 2*time.Minute)
	w.must(err)
	if again.Nonce != l.Nonce || !again.ExpiresAt.After(l.ExpiresAt) || again.Description != "deploy" {
		t.Errorf("refreshed: got %+v, want the same nonce, later", again)
	}
	w.must(w.Machines.Release(ctx, admin, "shop", m.ID, l.Nonce))
	if !w.agent.leases[m.ID].IsZero() {
		t.Errorf("the agent was not told of the end: %s", w.agent.leases[m.ID])
	}
	w.want(w.Machines.Release(ctx, admin, "shop", m.ID, l.Nonce), root.NotFound, "lease not found")
	// One that has expired is none.
	_, err = w.Machines.Acquire(ctx, admin, "shop", m.ID, "", "", time.Second)
	w.must(err)
	w.now = w.now.Add(2 * time.Second)
	_, err = w.Machines.Start(ctx, admin, "shop", m.ID, "")
	w.must(err)
}

func TestCreateLeased(t *testing.T) {
	w := newWorld(t)
	m, err := w.Machines.Create(t.Context(), admin, "shop", CreateMachine{Config: config(), LeaseTTL: time.Minute})
	w.must(err)
	if m.Lease == nil || len(m.Lease.Nonce) != 12 {
		t.Fatalf("lease: got %+v", m.Lease)
	}
	w.want(w.Machines.Stop(t.Context(), admin, "shop", m.ID, "", StopRequest{}), root.Conflict, "lease currently held")
}

func TestUpdate(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("web")
	_, err := w.Machines.Update(ctx, admin, "shop", m.ID, UpdateMachine{Config: config(), CurrentVersion: "01J0ABCDEFGHJKMNPQRSTVWXYZ"})
	w.want(err, root.Conflict, "current_version")
	_, err = w.Machines.Update(ctx, admin, "shop", m.ID, UpdateMachine{Config: config(), Name: "other"})
	w.want(err, root.Invalid, "name")
	_, err = w.Machines.Update(ctx, admin, "shop", m.ID, UpdateMachine{Config: config(), Region: "fra"})
	w.want(err, root.Invalid, "region")
	c := config()
	c.Env = map[string]string{"V": "2"}
	u, err := w.Machines.Update(ctx, admin, "shop", m.ID, UpdateMachine{Config: c, CurrentVersion: string(m.Spec.Instance), Name: "web", Region: "loc"})
	w.must(err)
	if u.Spec.Instance == m.Spec.Instance || u.Spec.Generation != 2 || u.Spec.Config.Env["V"] != "2" || u.Spec.Address.Index == m.Spec.Address.Index {
		t.Errorf("got %+v", u.Spec)
	}
	r, err := w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{Version: string(m.Spec.Instance), States: []string{"stopped"}})
	w.must(err)
	if r.State != root.StateReplaced {
		t.Errorf("old version: got %s, want replaced", r.State)
	}
}

func TestWait(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	r, err := w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{})
	w.must(err)
	if r.State != root.StateStarted || r.Version != m.Spec.Instance || r.EventID == "" {
		t.Errorf("got %+v", r)
	}
	_, err = w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{States: []string{"stopped"}, Timeout: 20 * time.Millisecond})
	w.want(err, root.Timeout, "machine failed to reach desired state, stopped, currently started")
	_, err = w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{States: []string{"bogus"}})
	w.want(err, root.Invalid, "bogus")
	_, err = w.Machines.Wait(ctx, admin, "shop", "00000000000000", WaitRequest{})
	w.want(err, root.NotFound, "machine not found")

	type answer struct {
		WaitResult
		err error
	}
	answers := make(chan answer, 2)
	for _, states := range [][]string{{"stopped", "suspended"}, {"destroyed"}} {
		go func() {
			r, err := w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{States: states, Timeout: MaxWait})
			answers <- answer{r, err}
		}()
	}
	w.must(w.Machines.Stop(ctx, admin, "shop", m.ID, "", StopRequest{}))
	if a := <-answers; a.err != nil || a.State != root.StateStopped {
		t.Errorf("first: got %+v, want stopped", a)
	}
	// A state that was passed through counts from an event on.
	_, err = w.agent.put(ctx, m.ID, func(st *root.Status) {
		st.Events = root.PushEvent(st.Events, root.Event{ID: "7ZZZZZZZZZZZZZZZZZZZZZZZZZ", Type: "start", Status: root.StateStarted})
	})
	w.must(err)
	r, err = w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{FromEvent: r.EventID, Timeout: MaxWait})
	w.must(err)
	if r.State != root.StateStarted || r.EventID != "7ZZZZZZZZZZZZZZZZZZZZZZZZZ" {
		t.Errorf("from an event: got %+v", r)
	}
	w.must(w.Machines.Destroy(ctx, admin, "shop", m.ID, "", false))
	if a := <-answers; a.err != nil || a.State != root.StateDestroyed {
		t.Errorf("second: got %+v, want destroyed", a)
	}
	_, err = w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{States: []string{"destroyed"}})
	w.must(err)
	_, err = w.Machines.Wait(ctx, admin, "shop", m.ID, WaitRequest{States: []string{"started"}})
	w.want(err, root.Timeout, "currently destroyed")
}

func TestDestroy(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	w.want(w.Machines.Destroy(ctx, admin, "shop", m.ID, "", false), root.Precondition, "use force")
	w.must(w.Machines.Destroy(ctx, admin, "shop", m.ID, "", true))
	w.want(w.Machines.Destroy(ctx, admin, "shop", m.ID, "", true), root.NotFound, "machine not found")
	got, err := w.Machines.Get(ctx, admin, "shop", m.ID)
	w.must(err)
	if got.Status.State != root.StateDestroyed {
		t.Errorf("state: got %s, want destroyed", got.Status.State)
	}
	all, err := w.Machines.List(ctx, admin, "shop", Filter{IncludeDeleted: true})
	w.must(err)
	if len(all) != 1 {
		t.Errorf("with deleted: got %d machines, want 1", len(all))
	}
}

func TestMetadata(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	a, b, empty := "1", "2", ""
	w.must(w.Machines.SetMetadata(ctx, admin, "shop", m.ID, "", map[string]*string{"a": &a, "b": &b, "c": &b}))
	w.must(w.Machines.SetMetadata(ctx, admin, "shop", m.ID, string(m.Spec.Instance), map[string]*string{"b": nil, "c": &empty}))
	got, err := w.Machines.Metadata(ctx, admin, "shop", m.ID)
	w.must(err)
	if len(got) != 1 || got["a"] != "1" {
		t.Errorf("got %v, want a=1 alone", got)
	}
	w.want(w.Machines.SetMetadata(ctx, admin, "shop", m.ID, "01J0", map[string]*string{"a": &b}), root.Precondition, "machine_version")
	w.want(w.Machines.SetMetadata(ctx, reader, "shop", m.ID, "", map[string]*string{"a": &b}), root.Forbidden, "")
	if now, _ := w.Machines.Get(ctx, admin, "shop", m.ID); now.Spec.Instance != m.Spec.Instance {
		t.Error("metadata made a new version")
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	m := w.create("")
	r, err := w.Machines.Exec(ctx, admin, "shop", m.ID, "", ExecRequest{Args: []string{"echo", "hi "}, Stdin: "there"})
	w.must(err)
	if r.Stdout != "hi there" || r.Stderr != "oops" || r.Code != 3 || r.Truncated {
		t.Errorf("got %+v", r)
	}
	r, err = w.Machines.Exec(ctx, admin, "shop", m.ID, "", ExecRequest{Args: []string{"flood"}})
	w.must(err)
	if len(r.Stdout) != MaxExecOutput || !r.Truncated {
		t.Errorf("flood: got %d bytes, truncated %v", len(r.Stdout), r.Truncated)
	}
	_, err = w.Machines.Exec(ctx, admin, "shop", m.ID, "", ExecRequest{})
	w.want(err, root.Invalid, "command")
	w.must(w.Machines.Stop(ctx, admin, "shop", m.ID, "", StopRequest{}))
	_, err = w.Machines.Exec(ctx, admin, "shop", m.ID, "", ExecRequest{Args: []string{"true"}})
	w.want(err, root.Precondition, "stopped")
}

func TestApps(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.Apps.Create(ctx, admin, CreateApp{Name: "shop"})
	var e *root.Error
	if !errors.As(err, &e) || e.Code != "name_taken" || !strings.Contains(e.Message, "Name has already been taken") {
		t.Errorf("taken name: got %v", err)
	}
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "No!"})
	w.want(err, root.Invalid, "No!")
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "x", Org: "nobody"})
	w.want(err, root.NotFound, "nobody")
	_, err = w.Apps.Get(ctx, foreign, "shop")
	w.want(err, root.Forbidden, "")
	_, err = w.Apps.Get(ctx, foreign, "free")
	w.want(err, root.NotFound, "free")

	first, err := w.Apps.Create(ctx, admin, CreateApp{Name: "once", Network: "dmz", IdempotencyKey: "k"})
	w.must(err)
	for _, name := range []string{"once", ""} {
		again, err := w.Apps.Create(ctx, admin, CreateApp{Name: name, IdempotencyKey: "k"})
		w.must(err)
		if again.App.ID != first.App.ID {
			t.Errorf("same key, name %q: got app %s, want %s", name, again.App.ID, first.App.ID)
		}
	}
	_, err = w.Apps.Create(ctx, admin, CreateApp{Name: "twice", IdempotencyKey: "k"})
	w.want(err, root.Invalid, "idempotency_key")

	w.create("a")
	w.create("b")
	st, err := w.Apps.Get(ctx, admin, "shop")
	w.must(err)
	if st.MachineCount != 2 || st.Status != AppDeployed {
		t.Errorf("got %d machines, status %s", st.MachineCount, st.Status)
	}
	w.want(w.Apps.Delete(ctx, admin, "shop", false), root.Precondition, "2 machines")
	w.must(w.Apps.Delete(ctx, admin, "shop", true))
	_, err = w.Apps.Get(ctx, admin, "shop")
	w.want(err, root.NotFound, "shop")
	list, err := w.Apps.List(ctx, admin, "")
	w.must(err)
	if len(list) != 1 || list[0].App.Name != "once" {
		t.Errorf("list: got %v", list)
	}
	// Its network keeps its id.
	net := first.App.NetworkID
	w.must(w.Apps.Delete(ctx, admin, "once", false))
	back, err := w.Apps.Create(ctx, admin, CreateApp{Name: "once", Network: "dmz"})
	w.must(err)
	if back.App.NetworkID != net {
		t.Errorf("network: got id %d, want %d", back.App.NetworkID, net)
	}
}

// A deletion that a crash cut short is finished.
func TestResumeDeletion(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("a")
	app, err := w.store.App(ctx, "shop")
	w.must(err)
	app.Deleting = true
	rev, err := w.store.UpdateApp(ctx, app)
	w.must(err)
	w.must(w.Machines.Catalog.WaitRevision(ctx, rev))
	_, err = w.Machines.Create(ctx, admin, "shop", CreateMachine{Config: config()})
	w.want(err, root.Precondition, "being deleted")
	w.must(w.Apps.Resume(ctx))
	_, err = w.Apps.Get(ctx, admin, "shop")
	w.want(err, root.NotFound, "shop")
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	v := &auth.Verifier{Source: w.store, Now: func() time.Time { return w.now }}
	secret, token, err := w.Tokens.Create(ctx, admin, CreateToken{Name: "ci", Scope: auth.ScopeDeploy, App: "shop", Expiry: time.Hour})
	w.must(err)
	a, err := v.Verify(ctx, secret)
	w.must(err)
	if a.App != "shop" || a.Org != root.DefaultOrg || a.TokenID != token.ID {
		t.Errorf("actor: got %+v", a)
	}
	_, _, err = w.Tokens.Create(ctx, a, CreateToken{Scope: auth.ScopeOrg})
	w.want(err, root.Forbidden, "")
	_, _, err = w.Tokens.Create(ctx, admin, CreateToken{Scope: auth.ScopeDeploy})
	w.want(err, root.Invalid, "app")
	_, _, err = w.Tokens.Create(ctx, admin, CreateToken{Scope: auth.ScopeMachine})
	w.want(err, root.Invalid, "scope")
	w.now = w.now.Add(2 * time.Hour)
	_, err = v.Verify(ctx, secret)
	w.want(err, root.Unauthenticated, "expired")
	secret, token, err = w.Tokens.Create(ctx, admin, CreateToken{Scope: auth.ScopeRead})
	w.must(err)
	w.must(w.Tokens.Revoke(ctx, admin, token.ID))
	_, err = v.Verify(ctx, secret)
	w.want(err, root.Unauthenticated, "revoked")
	w.want(w.Tokens.Revoke(ctx, admin, "nothing"), root.NotFound, "nothing")
	list, err := w.Tokens.List(ctx, admin, "")
	w.must(err)
	if len(list) != 2 || slices.ContainsFunc(list, func(t auth.Token) bool { return t.CreatedBy != "root" }) {
		t.Errorf("list: got %+v", list)
	}
}
