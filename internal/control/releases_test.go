package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"
	clientv3 "go.etcd.io/etcd/client/v3"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/rollout"
	"github.com/roost-run/roost/internal/state"
)

// errKilled is what the store answers to a control process that is dead.
var errKilled = errors.New("this process was killed")

// mortal is the store of one control process: nothing gets through once it is
// dead.
type mortal struct {
	clientv3.KV
	dead *atomic.Bool
}

func (m mortal) Get(ctx context.Context, key string, o ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if m.dead.Load() {
		return nil, errKilled
	}
	return m.KV.Get(ctx, key, o...)
}

func (m mortal) Put(ctx context.Context, key, value string, o ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if m.dead.Load() {
		return nil, errKilled
	}
	return m.KV.Put(ctx, key, value, o...)
}

func (m mortal) Txn(ctx context.Context) clientv3.Txn { return &mortalTxn{m.KV.Txn(ctx), m.dead} }

type mortalTxn struct {
	clientv3.Txn
	dead *atomic.Bool
}

func (t *mortalTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.Txn = t.Txn.If(c...); return t }
func (t *mortalTxn) Then(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(o...); return t }
func (t *mortalTxn) Else(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(o...); return t }
func (t *mortalTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.dead.Load() {
		return nil, errKilled
	}
	return t.Txn.Commit()
}

// deployAgent is a host that also runs commands, and versions that do not work.
type deployAgent struct {
	*agent
	exit atomic.Int32 // how commands end
	late atomic.Bool  // commands have been started already

	hangs   chan struct{} // closed when a version came up that is never ready
	givenUp chan root.InstanceID
	began   atomic.Int32                // commands
	dead    atomic.Pointer[atomic.Bool] // whether the process that gives orders is

	refuses atomic.Bool // machine checks do not pass
	mu      sync.Mutex
	tests   []machineTest // guarded by mu
}

// machineTest is a machine check that was run.
type machineTest struct {
	config root.Config
	image  root.Image
	serves map[root.MachineID]int // releases of the app's machines at that time
}

func (f *deployAgent) Instance(context.Context, root.InstanceID) (orders.Instance, error) {
	return orders.Instance{}, root.Errorf(root.NotFound, "no")
}

// settle does what an agent does at its start: what was cut short is ended.
func (f *deployAgent) settle(ctx context.Context, all []*root.Machine) error {
	for _, m := range all {
		if m.Status.State == root.StateCreating || m.Status.Instance != m.Spec.Instance {
			if _, err := f.Launch(ctx, m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *deployAgent) Launch(ctx context.Context, m *root.Machine) (int64, error) {
	ctx = context.WithoutCancel(ctx) // as a command to an agent, it goes on without its caller
	if m.Spec.Launch && m.Spec.Config.Env["BAD"] != "" {
		return 0, root.Errorf(root.Precondition, "it ended with exit code 1")
	}
	rev, err := f.agent.Launch(ctx, m)
	if code := m.Spec.Config.Env["ENDS"]; err == nil && code != "" { // by itself, a moment later
		return f.put(ctx, m.ID, func(st *root.Status) {
			st.State, st.Exit = root.StateStopped, &root.Exit{Code: len(code) - 1} // "0" is 0, "01" is 1
		})
	}
	return rev, err
}

func (f *deployAgent) GiveUp(_ root.MachineID, version root.InstanceID) { f.givenUp <- version }

func (f *deployAgent) Replace(ctx context.Context, m *root.Machine, ready time.Duration, prove func(context.Context) error, commit func(context.Context) (int64, error)) (int64, error) {
	if m.Spec.Launch && m.Spec.Config.Env["BAD"] != "" {
		return 0, root.Errorf(root.Precondition, "the new version did not listen on port 8080 within %s; the old version keeps serving", ready)
	}
	if m.Spec.Config.Env["HANG"] != "" {
		close(f.hangs)
		if version := <-f.givenUp; version != m.Spec.Instance {
			return 0, root.Errorf(root.Internal, "version %s was given up, want %s", version, m.Spec.Instance)
		}
		return 0, root.Errorf(root.Conflict, "the update was given up; the old version keeps serving")
	}
	return f.agent.Replace(context.WithoutCancel(ctx), m, ready, prove, commit)
}

// Start runs commands to their end.
func (f *deployAgent) Start(ctx context.Context, id root.MachineID, o orders.Start) (int64, error) {
	if f.dead.Load().Load() {
		return 0, errKilled // it had no time to give the order
	}
	m, err := f.store.Machine(ctx, id)
	if err != nil || m.Group() != root.GroupReleaseCommand && m.Group() != root.GroupTest {
		return f.agent.Start(ctx, id, o)
	}
	code := int(f.exit.Load())
	if m.Group() == root.GroupTest {
		ctx = context.WithoutCancel(ctx) // it ends although nobody waits
		if code = 0; f.refuses.Load() {
			code = 7
		}
		if err := f.tested(ctx, m); err != nil {
			return 0, err
		}
	} else {
		f.began.Add(1)
	}
	rev, err := f.put(ctx, id, func(st *root.Status) {
		for _, e := range []root.Event{{Type: "start"}, {Type: "exit", Exit: &root.Exit{Code: code}}} {
			e.ID, e.At = ulid.Make().String(), time.Now()
			st.Events = root.PushEvent(st.Events, e)
		}
		st.State, st.Exit = root.StateDestroying, &root.Exit{Code: code}
	})
	if err != nil {
		return rev, err
	}
	if rev, err = f.store.DeleteMachine(ctx, id); err == nil && f.late.Load() {
		err = root.Errorf(root.Conflict, "machine %s has ended and is being removed", id)
	}
	return rev, err
}

func (f *deployAgent) tested(ctx context.Context, m *root.Machine) error {
	s, err := f.store.Load(ctx)
	if err != nil {
		return err
	}
	serves := map[root.MachineID]int{}
	for _, other := range s.Machines(m.App) {
		if other.Managed() && other.Group() == "app" {
			serves[other.ID] = other.Spec.Release
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tests = append(f.tests, machineTest{m.Spec.Config, m.Spec.Image, serves})
	return nil
}

func (f *deployAgent) Inspect(ctx context.Context, id root.MachineID) (orders.Inspection, error) {
	if m, err := f.store.Machine(ctx, id); err == nil && m.Spec.Config.Env["RESTS"] != "" {
		if _, err := f.put(ctx, id, func(st *root.Status) { st.State, st.Exit = root.StateStopped, &root.Exit{RequestedStop: true} }); err != nil {
			return orders.Inspection{}, err
		}
	}
	return orders.Inspection{Listens: []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}}, nil
}

// outside is the app as seen from outside.
type outside struct{ status atomic.Int32 }

func (o *outside) Ask(_ context.Context, app root.AppName, q PublicQuestion) (PublicAnswer, error) {
	return PublicAnswer{URL: "http://" + string(app) + ".localhost" + q.Path, Status: int(o.status.Load()), Body: "DisallowedHost at /"}, nil
}

// post is a webhook that refuses the first time. It answers once hold is
// closed, or its caller is gone.
type post struct {
	hold chan struct{}

	mu    sync.Mutex
	calls []string // guarded by mu
}

func (p *post) Post(ctx context.Context, url string, body io.Reader) (int, error) {
	select {
	case <-p.hold:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	data, err := io.ReadAll(body)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, url+" "+string(data))
	if len(p.calls) == 1 {
		return 503, err
	}
	return 204, err
}

// imageShelf is an image store that remembers what is protected.
type imageShelf struct {
	library
	mu        sync.Mutex
	protected map[string][]root.Digest // guarded by mu
	lost      []root.Digest            // guarded by mu
}

func (s *imageShelf) Resolve(_ context.Context, ref string) (root.Image, error) {
	name, digest, _ := strings.Cut(ref, "@")
	name = strings.TrimPrefix(name, "example.com/")
	if digest == "" {
		digest = "sha256:" + name
	}
	return root.Image{Registry: "example.com", Repository: name, Digest: root.Digest(digest)}, nil
}

func (s *imageShelf) Protect(_ context.Context, owner string, digests ...root.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		if slices.Contains(s.lost, d) {
			return root.Errorf(root.NotFound, "image %s is not on this host: pull or load it first", d)
		}
	}
	s.protected[owner] = slices.Clone(digests)
	return nil
}

// deployment is a world with lives of the control process.
type deployment struct {
	*world
	base   *clientv3.Client
	cat    *catalog.Catalog
	host   *deployAgent
	out    *outside
	images *imageShelf
	post   *post
	keep   int
	end    func() // ends the process, if it is not dead, and waits for what it still does
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{base: etcdtest.New(t), out: &outside{}, post: &post{hold: make(chan struct{})}, images: &imageShelf{protected: map[string][]root.Digest{}}}
	d.out.status.Store(200)
	w := &world{t: t, store: state.New(d.base), now: time.Now()}
	d.world = w
	w.agent = &agent{store: w.store, leases: map[root.MachineID]time.Time{}}
	d.host = &deployAgent{agent: w.agent}
	_, err := w.store.CreateOrg(t.Context(), root.Org{Slug: root.DefaultOrg, Name: "Personal"})
	w.must(err)
	_, err = w.store.PutHost(t.Context(), root.Host{ID: hostID, Region: "loc", Memory: 64 * root.GiB, NetworkPart: 7})
	w.must(err)
	s, err := w.store.Load(t.Context())
	w.must(err)
	d.cat = catalog.New(s)
	follow, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.cat.Follow(follow, w.store, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { stop(); <-done })
	d.life("")
	_, err = w.Apps.Create(t.Context(), admin, CreateApp{Name: "shop"})
	w.must(err)
	return d
}

// life begins a control process that dies at the given point of a rollout.
// It returns when it is told to, or is dead; the channel tells which.
func (d *deployment) life(point string) (died <-chan struct{}) {
	d.t.Helper()
	if d.end != nil {
		d.end()
	}
	dead, death := &atomic.Bool{}, make(chan struct{})
	// A write comes after all that the one before still had on their way.
	rev, err := d.store.PutMeta(d.t.Context(), "life", nil)
	d.must(err)
	d.must(d.cat.WaitRevision(d.t.Context(), rev))
	d.must(d.host.settle(d.t.Context(), d.cat.Snapshot().Machines("shop")))
	d.host.dead.Store(dead)
	c := clientv3.NewCtxClient(context.WithoutCancel(d.t.Context()))
	c.KV, c.Watcher, c.Lease, c.Maintenance = mortal{d.base.KV, dead}, d.base.Watcher, d.base.Lease, d.base.Maintenance
	ctx, stop := context.WithCancel(context.WithoutCancel(d.t.Context()))
	d.Control = New(Deps{
		Store: state.New(c), Catalog: d.cat, Agent: d.host, Images: d.images, Host: hostID, Public: d.out, Poster: d.post, KeepReleases: d.keep,
		Address: func(_, _, index uint32) root.Address {
			return root.Address{Index: index, IPv4: "172.19.0.1", IPv6: "fdaa::1"}
		},
		Failpoint: func(at string) {
			if at == point && dead.CompareAndSwap(false, true) {
				close(death)
				stop()
			}
		},
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	ended := make(chan struct{})
	r := d.Releases
	go func() {
		defer close(ended)
		_ = r.Run(ctx)
	}()
	d.end = func() { stop(); <-ended }
	d.t.Cleanup(d.end)
	return death
}

// definition is a release of web machines and a worker.
func definition(image string, env map[string]string) NewRelease {
	c := config()
	c.Env = env
	c.Metadata = map[string]string{"kept": "yes"}
	web := c.Clone()
	web.Services = []root.Service{{
		Protocol: "tcp", InternalPort: 8080, Autostart: true, Ports: []root.Port{{Port: 80, Handlers: []string{"http"}}},
		Concurrency: root.Concurrency{Type: "requests", Soft: 20}, Autostop: root.AutostopOff,
	}}
	return NewRelease{
		Image: image, Definition: []byte(`{"app":"shop"}`), Groups: []root.Group{{Name: "app", Config: web}, {Name: "worker", Config: c}},
		Deploy: root.Deploy{WaitTimeout: patience.Limit},
	}
}

// release creates a release and waits for its end.
func (d *deployment) release(n NewRelease) *root.Release {
	d.t.Helper()
	r, err := d.Releases.Create(d.t.Context(), admin, "shop", n)
	d.must(err)
	return d.ended(r.Version)
}

func (d *deployment) ended(version int) *root.Release {
	d.t.Helper()
	ctx := patience.Context(d.t)
	for {
		err := d.Releases.Events(ctx, admin, "shop", version, "", true, func(root.ReleaseEvent) error { return nil })
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			d.t.Fatalf("release v%d does not end: %v", version, err)
		}
	}
	r, err := d.store.Release(ctx, "shop", version)
	d.must(err)
	return &r
}

// machines tells what each machine is.
func (d *deployment) machines() map[string]string {
	d.t.Helper()
	rev, err := d.store.Revision(d.t.Context())
	d.must(err)
	d.must(d.cat.WaitRevision(d.t.Context(), rev))
	out := map[string]string{}
	for _, m := range d.cat.Snapshot().Machines("shop") {
		out[string(m.ID)] = fmt.Sprintf("%s %s v%d %s", m.Group(), m.Spec.Image.Repository, m.Spec.Release, m.Status.State)
	}
	return out
}

// same checks that machines are what they were.
func (d *deployment) same(before map[string]string) {
	d.t.Helper()
	if diff := cmp.Diff(before, d.machines()); diff != "" {
		d.t.Errorf("machines are not what they were (-before +after):\n%s", diff)
	}
}

func sortedValues(m map[string]string) []string { return slices.Sorted(maps.Values(m)) }

func (d *deployment) expect(what string, want ...string) {
	d.t.Helper()
	if diff := cmp.Diff(want, sortedValues(d.machines())); diff != "" {
		d.t.Errorf("%s: machines (-want +got):\n%s", what, diff)
	}
}

func TestReleaseAndBack(t *testing.T) {
	d := newDeployment(t)
	first := d.release(definition("one", nil))
	if first.Progress.Status != root.ReleaseComplete || first.Version != 1 || first.Author != "root" {
		t.Fatalf("first: got %+v", first)
	}
	d.expect("first", "app one v1 started", "worker one v1 started")
	n := definition("two", map[string]string{"A": "2"})
	n.Deploy.ReleaseCommand = []string{"migrate"}
	n.Routes = []root.Route{{Paths: []string{"/pdf"}, Group: "worker"}}
	before := d.machines()
	d.release(n)
	d.expect("second", "app two v2 started", "worker two v2 started")
	if diff := cmp.Diff(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(d.machines()))); diff != "" {
		t.Errorf("an update keeps ids (-before +after):\n%s", diff)
	}
	app := d.cat.Snapshot().App("shop")
	if app.Release != 2 || len(app.Routes) != 1 || d.host.began.Load() != 1 {
		t.Errorf("app: got release %d, routes %v; commands: %d", app.Release, app.Routes, d.host.began.Load())
	}
	back, err := d.Releases.Rollback(t.Context(), admin, "shop", 0, Rollback{})
	d.must(err)
	warnings := back.Warnings
	if r := d.ended(back.Release.Version); r.Progress.Status != root.ReleaseComplete || r.Reason != ReasonRollback || r.Image.Repository != "one" {
		t.Errorf("rollback: got %+v", r)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], `v2 ran "migrate"`) {
		t.Errorf("warnings: got %q", warnings)
	}
	d.expect("back", "app one v3 started", "worker one v3 started")
	if app := d.cat.Snapshot().App("shop"); app.Release != 3 || len(app.Routes) != 0 || d.host.began.Load() != 1 {
		t.Errorf("app: got release %d, routes %v; commands: %d", app.Release, app.Routes, d.host.began.Load())
	}
	for _, m := range d.cat.Snapshot().Machines("shop") {
		if md := m.Spec.Config.Metadata; md["kept"] != "yes" || md[root.MetadataReleaseVersion] != "3" || md[root.MetadataPlatform] != "v2" {
			t.Errorf("metadata: got %v", md)
		}
	}
	_, err = d.Releases.Rollback(t.Context(), admin, "shop", 9, Rollback{})
	d.want(err, root.NotFound, "no release v9")
}

func TestReleaseFails(t *testing.T) {
	d := newDeployment(t)
	d.release(definition("one", nil))
	before := d.machines()
	for name, try := range map[string]struct {
		change func(*NewRelease)
		want   string
	}{
		"command": {func(n *NewRelease) { n.Deploy.ReleaseCommand = []string{"migrate"}; d.host.exit.Store(3) }, "exit code 3"},
		"wrapped command": {func(n *NewRelease) {
			n.Image, n.Deploy.ReleaseCommand = "wrapped", []string{"migrate"}
			d.host.exit.Store(3)
		}, "exit code 3\nthe image has an ENTRYPOINT, so what ran was \"/entry.sh web migrate\""},
		"machine": {func(n *NewRelease) { n.Groups[0].Config.Env = map[string]string{"BAD": "1"} }, "did not listen on port 8080"},
		"worker":  {func(n *NewRelease) { n.Groups[1].Config.Env = map[string]string{"BAD": "1"} }, "did not listen"},
		"outside": {func(n *NewRelease) { d.out.status.Store(500); n.Deploy.WaitTimeout = time.Second }, "ALLOWED_HOSTS"},
		"canary": {func(n *NewRelease) {
			n.Deploy.Strategy, n.Groups[0].Config.Env = root.StrategyCanary, map[string]string{"BAD": "1"}
		}, "exit code 1"},
		"group": {func(n *NewRelease) {
			bad := n.Groups[0]
			bad.Name, bad.Config.Env = "api", map[string]string{"BAD": "1"}
			n.Groups = append(n.Groups, bad)
		}, "exit code 1"},
	} {
		t.Run(name, func(t *testing.T) {
			n := definition("two", nil)
			try.change(&n)
			r := d.release(n)
			d.host.exit.Store(0)
			d.out.status.Store(200)
			if r.Progress.Status != root.ReleaseFailed || !strings.Contains(r.Progress.Message, try.want) {
				t.Errorf("got %s %q, want failed with %q", r.Progress.Status, r.Progress.Message, try.want)
			}
			if diff := cmp.Diff(before, d.machines()); diff != "" {
				t.Errorf("machines are not what they were (-before +after):\n%s", diff)
			}
			if app := d.cat.Snapshot().App("shop"); app.Release != 1 {
				t.Errorf("current release: got v%d, want v1", app.Release)
			}
		})
	}
}

func TestOneRolloutAtATime(t *testing.T) {
	d := newDeployment(t)
	died := d.life("begin")
	r, err := d.Releases.Create(t.Context(), admin, "shop", definition("one", nil))
	d.must(err)
	<-died
	d.life("")
	// Whether it still runs or has ended decides the store, not the moment.
	_, _, err = d.store.CreateRelease(t.Context(), root.Release{App: "shop", Version: 1})
	if err != nil && (!root.IsKind(err, root.Conflict) || root.CodeOf(err) != root.CodeReleaseRunning || !strings.Contains(err.Error(), "release v1 of shop (deploy by root, since ")) {
		t.Errorf("second: got %v", err)
	}
	if got := d.ended(r.Version).Progress.Status; got != root.ReleaseComplete {
		t.Errorf("first: got %s", got)
	}
}

func TestRedeployKeepsConfigs(t *testing.T) {
	d := newDeployment(t)
	_, err := d.Releases.Redeploy(t.Context(), admin, "shop", "secrets", "")
	d.want(err, root.Precondition, "no release")
	d.release(definition("one", nil))
	// Somebody has made one machine larger since.
	for id := range d.machines() {
		_, err := d.store.EditSpec(t.Context(), root.MachineID(id), func(s *root.Spec) error { s.Config.Guest.Memory = root.GiB; return nil })
		d.must(err)
	}
	_, err = d.store.EditApp(t.Context(), "shop", func(a *root.App) error { a.Secrets = 5; return nil })
	d.must(err)
	r, err := d.Releases.Redeploy(t.Context(), admin, "shop", "secrets", "set A")
	d.must(err)
	if got := d.ended(r.Version); got.Progress.Status != root.ReleaseComplete || got.Reason != "secrets" || got.Secrets != 5 {
		t.Errorf("got %+v", got)
	}
	d.expect("redeployed", "app one v2 started", "worker one v2 started")
	for _, m := range d.cat.Snapshot().Machines("shop") {
		if m.Spec.Secrets != 5 || m.Spec.Config.Guest.Memory != root.GiB || m.Spec.Generation != 2 {
			t.Errorf("machine: got secrets %d, memory %s, generation %d", m.Spec.Secrets, m.Spec.Config.Guest.Memory, m.Spec.Generation)
		}
	}
}

// The second of two equal deploys starts nothing.
func TestNothingChanged(t *testing.T) {
	d := newDeployment(t)
	d.release(definition("one", nil))
	d.release(definition("one", nil))
	d.expect("again", "app one v2 started", "worker one v2 started")
	for _, m := range d.cat.Snapshot().Machines("shop") {
		if m.Spec.Generation != 1 {
			t.Errorf("machine %s was started again", m.ID)
		}
	}
}

// A command that ran is run again when something has changed since, and when
// it is asked for.
func TestCommandsRunOnce(t *testing.T) {
	d := newDeployment(t)
	n := func(command string, env map[string]string) NewRelease {
		n := definition("one", env)
		n.Definition = fmt.Appendf(nil, `{"command": %q, "env": %q}`, command, env["A"])
		n.Deploy.ReleaseCommand = []string{command}
		return n
	}
	asked := n("migrate", map[string]string{"A": "2"})
	asked.RunCommands = true
	for i, c := range []struct {
		release NewRelease
		want    int32 // commands run so far
	}{
		{n("migrate", nil), 1},
		{n("migrate", nil), 1},
		{n("migrate", nil), 1}, // after one that did not run it itself
		{n("migrate", map[string]string{"A": "2"}), 2},
		{asked, 3},
		{n("seed", map[string]string{"A": "2"}), 4},
	} {
		d.release(c.release)
		if got := d.host.began.Load(); int32(got) != c.want {
			t.Errorf("after deploy %d: got %d commands run, want %d", i+1, got, c.want)
		}
	}
	events := ""
	d.must(d.Releases.Events(t.Context(), admin, "shop", 3, "", false, func(e root.ReleaseEvent) error { events += e.Message + "\n"; return nil }))
	if !strings.Contains(events, "nothing has changed since v1 ran it") {
		t.Errorf("events of v3: got %q", events)
	}
}

// Old releases go with their images, and never the one that serves.
func TestReleasesAreKept(t *testing.T) {
	d := newDeployment(t)
	d.keep = 3
	d.life("")
	for i := range 5 {
		d.release(definition(fmt.Sprint("image", i), nil))
	}
	for i := range 5 {
		n := definition(fmt.Sprint("broken", i), map[string]string{"BAD": "1"})
		d.release(n)
	}
	list, err := d.Releases.List(t.Context(), admin, "shop")
	d.must(err)
	var versions []int
	for _, r := range list {
		versions = append(versions, r.Version)
	}
	// Trimmed in the rollout's own time, a moment after its last event.
	if len(versions) > 7 || !slices.Contains(versions, 3) || !slices.Contains(versions, 5) || slices.Contains(versions, 2) || versions[0] != 10 {
		t.Errorf("kept: got %v, want the newest three, and v5, v4, v3, which can be gone back to", versions)
	}
	d.images.mu.Lock()
	defer d.images.mu.Unlock()
	got := d.images.protected["releases/shop"]
	if !slices.Contains(got, "sha256:image2") || !slices.Contains(got, "sha256:image4") || slices.Contains(got, "sha256:image0") || slices.Contains(got, "sha256:image1") {
		t.Errorf("protected: got %v", got)
	}
}

// With an app go its releases and the protection of their images.
func TestReleasesGoWithTheApp(t *testing.T) {
	d := newDeployment(t)
	d.release(definition("one", nil))
	d.must(d.Apps.Delete(t.Context(), admin, "shop", true))
	list, err := d.store.Releases(t.Context(), "shop")
	if err != nil || len(list) != 0 {
		t.Errorf("releases: got %d, %v, want none", len(list), err)
	}
	d.images.mu.Lock()
	defer d.images.mu.Unlock()
	if got := d.images.protected["releases/shop"]; len(got) != 0 {
		t.Errorf("protected: got %v, want nothing", got)
	}
}

// A webhook is told of a release that has ended: it does not hold up the end,
// and what comes of it is an event. The next process does what this one did
// not come to.
func TestWebhook(t *testing.T) {
	d := newDeployment(t)
	n := definition("one", map[string]string{"BAD": "1"})
	n.Deploy.Webhook = "http://example.com/hook?secret=1"
	r := d.release(n) // while the webhook does not answer
	if r.Progress.Status != root.ReleaseFailed {
		t.Fatalf("got %+v", r.Progress)
	}
	d.life("")
	close(d.post.hold)
	var told *root.ReleaseEvent
	patience.Until(t, "an event to tell of the webhook", func() bool {
		d.must(d.Releases.Events(t.Context(), admin, "shop", 1, "", false, func(e root.ReleaseEvent) error {
			if e.Step == root.StepWebhook {
				told = &e
			}
			return nil
		}))
		return told != nil
	})
	if told.Warning || !strings.Contains(told.Message, "example.com") || strings.Contains(told.Message, "secret") {
		t.Errorf("event: got %+v", told)
	}
	d.post.mu.Lock()
	calls := d.post.calls
	d.post.mu.Unlock()
	if len(calls) != 2 || !strings.Contains(calls[1], `"status":"failed"`) || !strings.Contains(calls[1], `"release":1`) {
		t.Errorf("calls: got %q, want a second one after the first was refused", calls)
	}
	if left, err := d.store.Webhooks(t.Context(), hostID); err != nil || len(left) != 0 {
		t.Errorf("left to tell: %v, %v", left, err)
	}
	n.Deploy.Webhook = "file:///etc/passwd"
	_, err := d.Releases.Create(t.Context(), admin, "shop", n)
	d.want(err, root.Invalid, "deploy.webhook")
}

func TestReleaseRefusals(t *testing.T) {
	d := newDeployment(t)
	try := func(change func(*NewRelease)) error {
		n := definition("one", nil)
		change(&n)
		_, err := d.Releases.Create(t.Context(), admin, "shop", n)
		return err
	}
	d.want(try(func(n *NewRelease) { n.Deploy.Strategy = "hope" }), root.Invalid, "deploy.strategy")
	d.want(try(func(n *NewRelease) { n.Deploy.MaxUnavailable = -1 }), root.Invalid, "max_unavailable")
	d.want(try(func(n *NewRelease) { n.Deploy.WaitTimeout = 48 * time.Hour }), root.Invalid, "wait_timeout")
	d.want(try(func(n *NewRelease) { n.Deploy.OnlyGroups = []string{"webb"} }), root.Invalid, `no process group "webb", it has app, worker`)
	d.want(try(func(n *NewRelease) { n.Deploy.OnlyMachines = []root.MachineID{"148e1234c56789"} }), root.Invalid, "only_machines")
	d.want(try(func(n *NewRelease) { n.Deploy.Regions = []root.Region{"fra"} }), root.Invalid, `no host is in "fra", there are loc`)
	d.want(try(func(n *NewRelease) { n.Groups = nil }), root.Invalid, "process group")
	d.want(try(func(n *NewRelease) { n.Image = "" }), root.Invalid, "image is missing")
	d.want(try(func(n *NewRelease) { n.Groups[1].Config.Guest.CPUs = 3 }), root.Invalid, "process group worker: config.guest.cpus")
	_, err := d.Releases.Create(t.Context(), reader, "shop", definition("one", nil))
	d.want(err, root.Forbidden, "")
	_, err = d.Releases.Create(t.Context(), foreign, "shop", definition("one", nil))
	d.want(err, root.Forbidden, "")
	d.want(d.Releases.Cancel(t.Context(), admin, "shop", 1), root.NotFound, "not being rolled out")
	list, err := d.Releases.List(t.Context(), admin, "shop")
	if err != nil || len(list) != 0 {
		t.Errorf("list: got %d, %v", len(list), err)
	}
	d.release(definition("one", nil))
	d.want(d.Releases.Cancel(t.Context(), admin, "shop", 1), root.Precondition, "serves already, it is too late to cancel it")
	n := definition("two", nil)
	n.Deploy.Strategy = root.StrategyBlueGreen
	_, err = d.Releases.Create(t.Context(), admin, "shop", n)
	d.want(err, root.Invalid, "health check")
}

// The control process dies at every point of a rollout, and the next one ends
// what it began.
func TestKilledAtEveryPoint(t *testing.T) {
	for _, point := range rollout.Failpoints {
		t.Run(point, func(t *testing.T) {
			d := newDeployment(t)
			first := definition("one", nil)
			gone := first.Groups[1]
			gone.Name = "old"
			first.Groups = append(first.Groups, gone)
			d.release(first)
			before := d.machines()

			n := definition("two", map[string]string{"A": "2"})
			n.Deploy.ReleaseCommand = []string{"migrate"}
			fresh := n.Groups[0]
			fresh.Name = "api"
			n.Groups = append(n.Groups, fresh)
			fails := strings.HasPrefix(point, "return:")
			switch {
			case fails:
				d.out.status.Store(500)
				n.Deploy.WaitTimeout = time.Second
			case strings.HasPrefix(point, "canary:"):
				n.Deploy.Strategy = root.StrategyCanary
			case point == "machine_check:started":
				for i := range n.Groups {
					n.Groups[i].Checks = []root.MachineCheck{{Command: []string{"probe"}}}
				}
			case point == "green:made" || point == "uncordoned" || point == "cordoned":
				n.Deploy.Strategy = root.StrategyBlueGreen
				// Nothing of this fake host is checked: of a group without machines.
				n.Groups = append(n.Groups, root.Group{Name: "checked", Config: n.Groups[1].Config.Clone()})
				n.Groups[3].Config.Checks = map[string]root.Check{"alive": {Type: "tcp", Port: 8080}}
				n.Deploy.OnlyGroups = []string{"app", "worker", "api"}
			}
			died := d.life(point)
			r, err := d.Releases.Create(t.Context(), admin, "shop", n)
			d.must(err)
			patience.Receive(t, "the rollout to come to "+point, died)
			d.life("")
			end := d.ended(r.Version)
			if d.host.began.Load() != 1 {
				t.Errorf("the release command ran %d times, want once", d.host.began.Load())
			}
			if fails {
				if end.Progress.Status != root.ReleaseFailed {
					t.Errorf("got %s %q, want failed", end.Progress.Status, end.Progress.Message)
				}
				if diff := cmp.Diff(before, d.machines()); diff != "" {
					t.Errorf("machines are not what they were (-before +after):\n%s", diff)
				}
				return
			}
			if end.Progress.Status != root.ReleaseComplete {
				t.Errorf("got %s %q, want complete", end.Progress.Status, end.Progress.Message)
			}
			want := []string{"api two v2 started", "app two v2 started", "worker two v2 started"}
			if n.Deploy.OnlyGroups != nil {
				want = append(want, "old one v1 started")
				slices.Sort(want)
			}
			d.expect(point, want...)
			if left, err := d.store.Rollouts(t.Context()); err != nil || len(left) != 0 {
				t.Errorf("rollouts left: %v, %v", left, err)
			}
		})
	}
}
