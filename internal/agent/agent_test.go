package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/catalog"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
	"github.com/roost-run/roost/internal/state"
)

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }

const (
	hostID  = root.HostID("5e1f00aa")
	appName = root.AppName("shop")
)

// images is an image store whose root file systems are directories with one
// program in them.
type images struct {
	dir       string // what Beside names is below it
	mu        sync.Mutex
	mounts    map[string]string
	views     map[string]root.Digest
	viewError error
	protected map[string][]root.Digest
}

func (s *images) View(_ context.Context, d root.Digest, target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewError != nil {
		return s.viewError
	}
	if s.views == nil {
		s.views = map[string]root.Digest{}
	}
	s.views[target] = d
	return nil
}

func (s *images) Unview(_ context.Context, target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.views, target)
	return nil
}

func (s *images) Views(context.Context) (map[string]root.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.views), nil
}

func (s *images) Resolve(_ context.Context, ref string) (root.Image, error) {
	return root.Image{Registry: "example.com", Repository: ref, Digest: root.Digest("sha256:" + ref)}, nil
}

func (s *images) Config(context.Context, root.Digest) (ocispec.Image, error) {
	return ocispec.Image{Config: ocispec.ImageConfig{Entrypoint: []string{"/app"}}}, nil
}

func (s *images) Mount(_ context.Context, key string, _ root.Digest, target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts[key] = target
	if err := os.MkdirAll(filepath.Join(target, "etc"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(target, "etc", "hosts"), []byte("10.0.0.1\tneighbour"), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(target, "app"), []byte("#!"), 0o755)
}

func (s *images) Unmount(_ context.Context, key, target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mounts, key)
	return os.RemoveAll(target)
}

func (s *images) Beside(key string) string { return filepath.Join(s.dir, key) }

func (s *images) Mounted(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.mounts)), nil
}

func (s *images) Protect(_ context.Context, owner string, digests ...root.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.protected, owner); len(digests) > 0 {
		s.protected[owner] = digests
	}
	return nil
}

func (s *images) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mounts) + len(s.protected)
}

// links is a private network without packets.
type links struct {
	mu sync.Mutex
	up map[string]bool
}

func (l *links) Attach(_ context.Context, a network.Attachment) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up[a.Interface] = true
	return nil
}

func (l *links) Detach(_ context.Context, a network.Attachment) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.up, a.Interface)
	return nil
}

func (l *links) Attachments(context.Context) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.up)), nil
}

// host is everything an agent stands on.
type host struct {
	t       *testing.T
	store   *state.Store
	catalog *catalog.Catalog
	sup     *supervisor
	images  *images
	links   *links
	options Options
	*Agent
	kill func() // ends the agent and waits for it
}

func newHost(t *testing.T) *host {
	t.Helper()
	ctx := t.Context()
	h := &host{
		t: t, store: state.New(etcdtest.New(t)), sup: newSupervisor(),
		images: &images{dir: t.TempDir(), mounts: map[string]string{}, protected: map[string][]root.Digest{}}, links: &links{up: map[string]bool{}},
	}
	must(t, last(h.store.CreateApp(ctx, root.App{Name: appName, Org: "personal", NetworkID: 1})))
	must(t, last(h.store.PutHost(ctx, root.Host{ID: hostID, Region: "loc", NetworkPart: 7})))
	s, err := h.store.Load(ctx)
	must(t, err)
	h.catalog = catalog.New(s)
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.catalog.Follow(follow, h.store, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { stop(); <-done })
	h.options = Options{
		Config: config.Config{Run: t.TempDir(), Data: t.TempDir(), Logs: root.MiB, LogBudget: root.GiB}, Host: hostID, Store: h.store, Catalog: h.catalog,
		Supervisor: h.sup.serve(t), Images: h.images, Network: h.links,
		CgroupPath: func(c string) string { return "/roost/" + c },
		Drain:      func(context.Context, *root.Machine) error { return nil },
	}
	t.Cleanup(func() { // once the agent has ended
		mounted, err := mountedBelow(h.options.Config.Run)
		if err != nil {
			t.Error(err)
		}
		for _, point := range mounted {
			if err := unmountTmpfs(point); err != nil {
				t.Error(err)
			}
		}
	})
	h.begin()
	return h
}

// begin starts an agent, as after the start of the process.
func (h *host) begin() {
	h.t.Helper()
	h.Agent = New(h.options)
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.t.Context()))
	done := make(chan error, 1)
	a := h.Agent
	go func() { done <- a.Run(ctx) }()
	h.kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			h.t.Errorf("agent: %v", err)
		}
	})
	h.t.Cleanup(h.kill)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func last(_ int64, err error) error { return err }

func workerConfig() root.Config {
	return root.Config{
		Image: "worker", Guest: root.DefaultGuest(), Restart: root.Restart{Policy: root.RestartOnFailure, MaxRetries: 10},
		Stop: root.Stop{Signal: "SIGINT", Timeout: time.Second}, Env: map[string]string{"A": "b"},
	}
}

func webConfig() root.Config {
	c := workerConfig()
	c.Services = []root.Service{{Protocol: "tcp", InternalPort: 8080}}
	return c
}

// machine writes a machine's record, as control does before it calls Launch.
func (h *host) machine(n int, c root.Config, launch bool) *root.Machine {
	h.t.Helper()
	m := &root.Machine{
		ID: root.MachineID(fmt.Sprintf("%014x", n)), App: appName, Org: "personal", Name: fmt.Sprintf("m%d", n), Region: "loc", Host: hostID,
		Spec: root.Spec{
			Instance: root.InstanceID(ulid.Make().String()), Generation: 1, Config: c, Image: root.Image{Repository: "worker", Digest: "sha256:1"},
			Launch: launch, Address: network.AddressFor(1, 7, uint32(n)),
		},
		Status: root.Status{State: root.StateCreating},
	}
	m.Status.Instance = m.Spec.Instance
	rev, err := h.store.CreateMachine(h.t.Context(), *m)
	must(h.t, err)
	must(h.t, h.catalog.WaitRevision(h.t.Context(), rev))
	return m
}

// wait returns when the machine's record satisfies ok.
func (h *host) wait(id root.MachineID, what string, ok func(*root.Machine) bool) *root.Machine {
	h.t.Helper()
	var m *root.Machine
	if err := h.catalog.Wait(patience.Context(h.t), func(s *root.Snapshot) bool { m = s.Machine(id); return ok(m) }); err != nil {
		h.t.Fatalf("machine %s: waited for %s: %v; it is %+v", id, what, err, m)
	}
	return m
}

func (h *host) waitState(id root.MachineID, s root.State) *root.Machine {
	h.t.Helper()
	return h.wait(id, string(s), func(m *root.Machine) bool { return m != nil && m.Status.State == s })
}

func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	patience.Until(h.t, what, ok)
}

func TestLaunch(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, workerConfig(), true)
	rev, err := h.Launch(t.Context(), m)
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	got := h.catalog.Snapshot().Machine(m.ID)
	if got.Status.State != root.StateStarted || got.Status.Instance != m.Spec.Instance {
		t.Errorf("status: got %s of %s, want started of %s", got.Status.State, got.Status.Instance, m.Spec.Instance)
	}
	if got.Status.Stamp == (root.Stamp{}) {
		t.Error("the status has no stamp")
	}
	// The next boot is prepared as soon as this one was used.
	h.eventually("the next boot", func() bool {
		i, err := h.options.Supervisor.Instance(t.Context(), m.Spec.Instance)
		return err == nil && i.Next != nil && i.Next.Number == 2
	})
	hosts, err := os.ReadFile(sourceOf(t, h.bootDir(m.Spec.Instance, 1), "/etc/hosts"))
	must(t, err)
	for _, want := range []string{"10.0.0.1\tneighbour\n", m.Spec.Address.IPv6 + "\tfly-local-6pn\n", m.Spec.Address.IPv4 + "\t" + string(m.ID) + "\n"} {
		if !strings.Contains(string(hosts), want) {
			t.Errorf("hosts: %q is missing in\n%s", want, hosts)
		}
	}
	// After an exit the used boot is gone and the next one is there.
	h.sup.crash(t, m.Spec.Instance, 0)
	h.waitState(m.ID, root.StateStopped)
	h.eventually("the used boot to go", func() bool {
		_, err := os.Stat(h.bootDir(m.Spec.Instance, 1))
		return errors.Is(err, os.ErrNotExist)
	})
	_, err = h.Destroy(t.Context(), m.ID)
	must(t, err)
	h.nothingLeft()
}

// nothingLeft checks that no machine has left anything on the host.
func (h *host) nothingLeft() {
	h.t.Helper()
	h.eventually("the supervisor to be empty", func() bool { return h.sup.count() == 0 })
	h.eventually("mounts and protected images to go", func() bool { return h.images.left() == 0 })
	up, _ := h.links.Attachments(h.t.Context())
	if len(up) > 0 {
		h.t.Errorf("links are left: %v", up)
	}
	entries, _ := os.ReadDir(filepath.Join(h.options.Config.Run, "machines"))
	if len(entries) > 0 {
		h.t.Errorf("directories are left: %v", entries)
	}
}

func TestLaunchFailures(t *testing.T) {
	h := newHost(t)
	c := workerConfig()
	c.Init.Exec = []string{"/nowhere"}
	m := h.machine(1, c, true)
	_, err := h.Launch(t.Context(), m)
	if !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("got %v, want kind invalid that names /nowhere", err)
	}
	got := h.waitState(m.ID, root.StateLaunchFailed)
	if !strings.Contains(got.Status.Message, "/nowhere") || got.Status.Exit == nil || got.Status.Exit.Error == "" {
		t.Errorf("status: got message %q and exit %+v, want the reason in both", got.Status.Message, got.Status.Exit)
	}
	h.sup.refuse["/app"] = root.Errorf(root.Exhausted, "the host has no memory left")
	m2 := h.machine(2, workerConfig(), true)
	began := time.Now()
	if _, err := h.Launch(t.Context(), m2); !root.IsKind(err, root.Exhausted) {
		t.Errorf("got %v, want kind exhausted", err)
	}
	if took := time.Since(began); took >= newsTimeout {
		t.Errorf("the refusal took %s: news were waited for that never come", took)
	}
	for _, id := range []root.MachineID{m.ID, m2.ID} {
		_, err := h.Destroy(t.Context(), id)
		must(t, err)
	}
	h.nothingLeft()
}

func TestPolicyRestart(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, workerConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	h.sup.crash(t, m.Spec.Instance, 3)
	got := h.wait(m.ID, "a restart", func(m *root.Machine) bool { return m.Status.State == root.StateStarted && m.Status.Restarts == 1 })
	want := []event{
		{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}, {"restart", "starting", "flyd"}, {"start", "started", "flyd"},
	}
	if d := cmp.Diff(want, events(&got.Status)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if x := got.Status.Exit; x == nil || !x.Restarting || x.Code != 3 {
		t.Errorf("exit: got %+v, want code 3, restarting", got.Status.Exit)
	}
	if notes := h.sup.said(); !slices.Contains(notes, "machine exited with exit code 3, restarting in 1s") {
		t.Errorf("log: got %q", notes)
	}
	// A stop during the delay ends the matter.
	h.sup.crash(t, m.Spec.Instance, 3)
	h.waitState(m.ID, root.StateRestarting)
	_, err = h.Stop(t.Context(), m.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	h.waitState(m.ID, root.StateStopped)
}

// A stop ends a machine that has failed before it could be told to, and of
// which the agent has not heard yet.
func TestStopCrossesAnExit(t *testing.T) {
	h := newHost(t)
	h.sup.quicker = true
	m := h.machine(1, workerConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	rev, err := h.Stop(t.Context(), m.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	got := h.catalog.Snapshot().Machine(m.ID)
	want := []event{{"start", "started", "flyd"}, {"exit", "stopped", "flyd"}, {"stop", "stopped", "user"}}
	if d := cmp.Diff(want, events(&got.Status)); d != "" || got.Status.State != root.StateStopped {
		t.Errorf("state %s, events (-want +got):\n%s", got.Status.State, d)
	}
}

func TestAutoDestroy(t *testing.T) {
	h := newHost(t)
	c := workerConfig()
	c.AutoDestroy, c.Restart.Policy = true, root.RestartNo
	h.sup.exitAt["/app"] = 7
	m := h.machine(1, c, true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	h.wait(m.ID, "its end", func(m *root.Machine) bool { return m == nil })
	graves, err := h.store.Tombstones(t.Context(), appName)
	must(t, err)
	if len(graves) != 1 || graves[0].Status.Exit == nil || graves[0].Status.Exit.Code != 7 {
		t.Errorf("tombstones: got %+v, want one with exit code 7", graves)
	}
	h.nothingLeft()
}

func TestRestartByRequest(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, workerConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	rev, err := h.Restart(t.Context(), m.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	got := h.catalog.Snapshot().Machine(m.ID)
	want := []event{
		{"start", "started", "flyd"}, {"restart", "stopping", "user"}, {"exit", "stopped", "flyd"}, {"restart", "starting", "flyd"}, {"start", "started", "flyd"},
	}
	if d := cmp.Diff(want, events(&got.Status)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// next returns the machine with a new version, and how control commits it.
func (h *host) next(m *root.Machine, c root.Config, launch bool) (*root.Machine, func(context.Context) (int64, error)) {
	n := m.Clone()
	n.Spec.Instance, n.Spec.Generation = root.InstanceID(ulid.Make().String()), m.Spec.Generation+1
	n.Spec.Config, n.Spec.Launch = c, launch
	n.Spec.Address = network.AddressFor(1, 7, m.Spec.Address.Index+100)
	return n, func(ctx context.Context) (int64, error) {
		return h.store.UpdateSpec(ctx, m.ID, m.Spec.Instance, n.Spec)
	}
}

func TestReplaceBeside(t *testing.T) {
	h := newHost(t)
	h.sup.listens["/app"] = []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}
	m := h.machine(1, webConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	n, commit := h.next(m, webConfig(), true)
	rev, err := h.Replace(t.Context(), n, 0, nil, func(ctx context.Context) (int64, error) {
		// Both run when traffic is switched.
		for _, id := range []root.InstanceID{m.Spec.Instance, n.Spec.Instance} {
			if i, err := h.options.Supervisor.Instance(ctx, id); err != nil || i.Phase != orders.PhaseStarted {
				t.Errorf("at the switch %s is %s (%v), want started", id, i.Phase, err)
			}
		}
		return commit(ctx)
	})
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	got := h.catalog.Snapshot().Machine(m.ID)
	if got.Spec.Instance != n.Spec.Instance || got.Status.Instance != n.Spec.Instance || got.Status.State != root.StateStarted {
		t.Errorf("got version %s, status %s of %s, want the new one started", got.Spec.Instance, got.Status.State, got.Status.Instance)
	}
	h.eventually("the old version to go", func() bool { return h.sup.count() == 1 })
	want := []event{{"start", "started", "flyd"}, {"update", "replacing", "user"}, {"launch", "created", "user"}, {"start", "started", "flyd"}}
	if d := cmp.Diff(want, events(&h.waitState(m.ID, root.StateStarted).Status)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	h.eventually("the old address to be free", func() bool {
		taken, err := h.store.Addresses(t.Context(), hostID)
		return err == nil && len(taken) == 1
	})
	_, err = h.Destroy(t.Context(), m.ID)
	must(t, err)
	h.nothingLeft()
}

func TestReplaceThatFailsLeavesTheOldVersion(t *testing.T) {
	crashing, broken, refused := webConfig(), webConfig(), webConfig()
	crashing.Init.Cmd = []string{"crash"}
	broken.Init.Exec = []string{"/nowhere"}
	refused.Init.Cmd = []string{"refused"}
	for _, c := range []struct {
		name, want string
		config     root.Config
		kind       root.Kind
		commit     func(context.Context) (int64, error)
	}{
		{"crashes", "exit code 9", crashing, root.Precondition, nil},
		{"cannot run", "/nowhere", broken, root.Invalid, nil},
		{"no room", "could not reserve resource for machine", refused, root.Exhausted, nil},
		{"lost the race", "version", webConfig(), root.Conflict, func(context.Context) (int64, error) {
			return 0, root.Errorf(root.Conflict, "another version came first")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.sup.listens["/app"] = []orders.Listen{{Proto: "tcp6", Address: "[::]:8080"}}
			h.sup.exitAt["/app crash"] = 9
			h.sup.refuse["/app refused"] = root.Errorf(root.Exhausted, "no memory")
			m := h.machine(1, webConfig(), true)
			_, err := h.Launch(t.Context(), m)
			must(t, err)
			n, commit := h.next(m, c.config, true)
			if c.commit != nil {
				commit = c.commit
			}
			_, err = h.Replace(t.Context(), n, 0, nil, commit)
			if !root.IsKind(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want kind %v with %q", err, c.kind, c.want)
			}
			got := h.catalog.Snapshot().Machine(m.ID)
			if got.Spec.Instance != m.Spec.Instance || got.Status.State != root.StateStarted {
				t.Errorf("got version %s in state %s, want the old one started", got.Spec.Instance, got.Status.State)
			}
			i, err := h.options.Supervisor.Instance(t.Context(), m.Spec.Instance)
			must(t, err)
			if i.Phase != orders.PhaseStarted || i.Running.Number != 1 {
				t.Errorf("the old version was touched: %+v", i)
			}
			_, err = h.Destroy(t.Context(), m.ID)
			must(t, err)
			h.nothingLeft()
		})
	}
}

// What a new version has to prove it proves while both run; if it does not, or
// nobody wants it any more, the old one serves on.
func TestReplaceProves(t *testing.T) {
	no := root.Errorf(root.Precondition, "a machine check failed")
	for name, c := range map[string]struct {
		prove  func(ctx context.Context, giveUp func()) error
		want   string
		passes bool
	}{
		"passes":   {func(context.Context, func()) error { return nil }, "", true},
		"fails":    {func(context.Context, func()) error { return no }, "a machine check failed", false},
		"given up": {func(ctx context.Context, giveUp func()) error { giveUp(); <-ctx.Done(); return context.Cause(ctx) }, "given up", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.sup.listens["/app"] = []orders.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}
			m := h.machine(1, webConfig(), true)
			_, err := h.Launch(t.Context(), m)
			must(t, err)
			n, commit := h.next(m, webConfig(), true)
			proved, committed := false, false
			_, err = h.Replace(t.Context(), n, 0, func(ctx context.Context) error {
				for _, id := range []root.InstanceID{m.Spec.Instance, n.Spec.Instance} {
					if i, err := h.options.Supervisor.Instance(ctx, id); err != nil || i.Phase != orders.PhaseStarted {
						t.Errorf("while it is proved %s is %s (%v), want started", id, i.Phase, err)
					}
				}
				proved = !committed
				return c.prove(ctx, func() { h.GiveUp(m.ID, n.Spec.Instance) })
			}, func(ctx context.Context) (int64, error) {
				committed = true
				return commit(ctx)
			})
			if c.passes != (err == nil) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if !proved || committed != c.passes {
				t.Errorf("proved before the commit: %v; committed: %v", proved, committed)
			}
			want := map[bool]root.InstanceID{true: n.Spec.Instance, false: m.Spec.Instance}[c.passes]
			h.eventually("one version to be left", func() bool { return h.sup.count() == 1 })
			if i, err := h.options.Supervisor.Instance(t.Context(), want); err != nil || i.Phase != orders.PhaseStarted {
				t.Errorf("version %s is %s (%v), want started", want, i.Phase, err)
			}
			_, err = h.Destroy(t.Context(), m.ID)
			must(t, err)
			h.nothingLeft()
		})
	}
}

func TestReplaceWorkerStopsFirst(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, workerConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	n, commit := h.next(m, workerConfig(), true)
	_, err = h.Replace(t.Context(), n, 0, nil, func(ctx context.Context) (int64, error) {
		if i, err := h.options.Supervisor.Instance(ctx, m.Spec.Instance); err != nil || i.Phase != orders.PhaseStopped {
			t.Errorf("at the commit the old version is %s (%v), want stopped", i.Phase, err)
		}
		return commit(ctx)
	})
	must(t, err)
	got := h.wait(m.ID, "the new version", func(m *root.Machine) bool {
		return m.Status.Instance == n.Spec.Instance && m.Status.State == root.StateStarted
	})
	want := []event{
		{"start", "started", "flyd"}, {"update", "replacing", "user"}, {"stop", "stopping", "user"}, {"exit", "stopped", "flyd"},
		{"launch", "created", "user"}, {"start", "started", "flyd"},
	}
	if d := cmp.Diff(want, events(&got.Status)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	// With skip_launch the next one ends stopped.
	m = got
	n, commit = h.next(m, workerConfig(), false)
	_, err = h.Replace(t.Context(), n, 0, nil, commit)
	must(t, err)
	h.wait(m.ID, "the third version, stopped", func(m *root.Machine) bool {
		return m.Status.Instance == n.Spec.Instance && m.Status.State == root.StateStopped
	})
	h.eventually("the old version to go", func() bool { return h.sup.count() == 1 })
}

// After a crash of control the agent finds out what happened without it.
func TestTakeOver(t *testing.T) {
	h := newHost(t)
	crashed, sleeping, stopped := h.machine(1, workerConfig(), true), h.machine(2, workerConfig(), true), h.machine(3, workerConfig(), true)
	for _, m := range []*root.Machine{crashed, sleeping, stopped} {
		_, err := h.Launch(t.Context(), m)
		must(t, err)
	}
	_, err := h.Stop(t.Context(), stopped.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	h.waitState(stopped.ID, root.StateStopped)
	sup := h.options.Supervisor
	h.eventually("a prepared boot", func() bool {
		i, err := sup.Instance(t.Context(), stopped.Spec.Instance)
		return err == nil && i.Next != nil
	})
	h.kill()
	h.sup.crash(t, crashed.Spec.Instance, 0)
	_, err = sup.Suspend(t.Context(), sleeping.Spec.Instance, orders.Suspend{Source: orders.SourceProxy})
	must(t, err)
	_, err = sup.Start(t.Context(), stopped.Spec.Instance, orders.Start{Source: orders.SourceProxy})
	must(t, err)
	// Half made: committed, and never launched. And a version nobody owns.
	half := h.machine(4, workerConfig(), true)
	orphan := root.InstanceID(ulid.Make().String())
	_, err = sup.Prepare(t.Context(), orders.Boot{Machine: "ffffffffffffff", Instance: orphan, Number: 1, Container: strings.ToLower(string(orphan)) + "-1", Bundle: "/"})
	must(t, err)

	h.begin()
	h.waitState(crashed.ID, root.StateStopped)
	got := h.waitState(sleeping.ID, root.StateSuspended)
	if want, got := []event{{"start", "started", "flyd"}, {"suspend", "suspending", "proxy"}, {"suspend", "suspended", "proxy"}}, events(&got.Status); !cmp.Equal(want, got) {
		t.Errorf("events: got %v, want %v", got, want)
	}
	h.waitState(stopped.ID, root.StateStarted)
	h.waitState(half.ID, root.StateStarted)
	if _, err := sup.Instance(t.Context(), orphan); !root.IsKind(err, root.NotFound) {
		t.Errorf("the orphan: got %v, want not found", err)
	}
	for _, m := range []*root.Machine{crashed, sleeping, stopped, half} {
		_, err := h.Destroy(t.Context(), m.ID)
		must(t, err)
	}
	h.nothingLeft()
}

// A destroy that was cut short goes on.
func TestTakeOverDestroy(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, workerConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	h.kill()
	rev, err := h.store.EditSpec(t.Context(), m.ID, func(s *root.Spec) error {
		s.Destroy = &root.Destroy{Force: true}
		return nil
	})
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	h.begin()
	h.wait(m.ID, "its end", func(m *root.Machine) bool { return m == nil })
	h.nothingLeft()
}

func TestHostReboot(t *testing.T) {
	h := newHost(t)
	no := workerConfig()
	no.Restart.Policy = root.RestartNo
	ran, sleeping, stopped := h.machine(1, no, true), h.machine(2, workerConfig(), true), h.machine(3, workerConfig(), true)
	for _, m := range []*root.Machine{ran, sleeping, stopped} {
		_, err := h.Launch(t.Context(), m)
		must(t, err)
	}
	_, err := h.Stop(t.Context(), stopped.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	_, err = h.Suspend(t.Context(), sleeping.ID, orders.Suspend{Source: orders.SourceUser})
	must(t, err)
	h.waitState(stopped.ID, root.StateStopped)
	h.waitState(sleeping.ID, root.StateSuspended)
	h.kill()
	h.sup.reboot()
	must(t, os.RemoveAll(filepath.Join(h.options.Config.Run, "machines")))
	h.begin()
	h.wait(ran.ID, "a second start", func(m *root.Machine) bool {
		return m.Status.State == root.StateStarted && m.Status.Events[0].Reason == reasonReboot
	})
	h.waitState(sleeping.ID, root.StateStopped)
	// Those that rest can be woken without anybody's help.
	for _, m := range []*root.Machine{sleeping, stopped} {
		h.eventually("a prepared boot", func() bool {
			i, err := h.options.Supervisor.Instance(t.Context(), m.Spec.Instance)
			return err == nil && i.Next != nil
		})
		h.waitState(m.ID, root.StateStopped)
	}
}

// The journal tells of the boot that the host's restart ended; the one that is
// prepared then is not cleaned up with it.
func TestHostRebootCleansOldBootsOnly(t *testing.T) {
	h := newHost(t)
	m := newMachine(h.Agent, h.machine(1, workerConfig(), true))
	m.st.State = root.StateSuspended
	m.take(t.Context(), orders.Entry{Type: orders.EntryExited, Number: 1, Instance: m.inst.id(), Stamp: root.Stamp{Boot: 1, Seq: 1}, At: time.Now(), Exit: &orders.Exit{Code: -1}, Reason: orders.ReasonHostRestarted})
	m.settled(t.Context(), nil)
	m.tidy(t.Context())
	i, err := h.options.Supervisor.Instance(t.Context(), m.inst.id())
	must(t, err)
	if i.Next == nil {
		t.Fatal("no boot is prepared")
	}
	if _, err := os.Stat(filepath.Join(i.Next.Bundle, "config.json")); err != nil {
		t.Errorf("the prepared boot: %v", err)
	}
}

func TestDestroyCutsAnUpdateShort(t *testing.T) {
	h := newHost(t) // nothing listens: the update waits
	m := h.machine(1, webConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	n, commit := h.next(m, webConfig(), true)
	failed := make(chan error, 1)
	go func() {
		_, err := h.Replace(context.WithoutCancel(t.Context()), n, 0, nil, commit)
		failed <- err
	}()
	h.eventually("both versions", func() bool { return h.sup.count() == 2 })
	_, err = h.Destroy(t.Context(), m.ID)
	must(t, err)
	if err := <-failed; !root.IsKind(err, root.Conflict) {
		t.Errorf("the update: got %v, want kind conflict", err)
	}
	h.nothingLeft()
}

func TestSweepLogs(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, workerConfig(), false)
	dir := h.options.Config.LogDir(appName)
	must(t, os.MkdirAll(dir, 0o755))
	gone, fresh := root.MachineID("00000000000099"), root.MachineID("00000000000098")
	for _, id := range []root.MachineID{m.ID, gone, fresh} {
		must(t, os.WriteFile(filepath.Join(dir, string(id)+".1.log"), []byte("x"), 0o600))
	}
	long := time.Now().Add(-2 * keepLogs)
	for _, id := range []root.MachineID{m.ID, gone} {
		must(t, os.Chtimes(filepath.Join(dir, string(id)+".1.log"), long, long))
	}
	must(t, h.SweepLogs(time.Now()))
	var left []string
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{string(m.ID) + ".1.log", string(fresh) + ".1.log"}; !cmp.Equal(want, left) {
		t.Errorf("left: got %v, want %v", left, want)
	}
}

func TestPersistentRootfs(t *testing.T) {
	h := newHost(t)
	c := workerConfig()
	c.Persist = root.PersistRestart
	m := h.machine(1, c, true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	_, target := h.rootfs(&instance{machine: m}, 1)
	must(t, os.WriteFile(filepath.Join(target, "kept"), nil, 0o600))
	_, err = h.Restart(t.Context(), m.ID, orders.Stop{Source: orders.SourceUser})
	must(t, err)
	h.eventually("the first boot to be cleaned", func() bool {
		_, err := os.Stat(h.bootDir(m.Spec.Instance, 1))
		return errors.Is(err, os.ErrNotExist)
	})
	if _, err := os.Stat(filepath.Join(target, "kept")); err != nil {
		t.Errorf("a file written before the restart: %v", err)
	}
	_, err = h.Destroy(t.Context(), m.ID)
	must(t, err)
	h.nothingLeft()
}

// A suspended machine with services is replaced without waking the old version first.
func TestReplaceSuspended(t *testing.T) {
	h := newHost(t)
	m := h.machine(1, webConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	_, err = h.Suspend(t.Context(), m.ID, orders.Suspend{Source: orders.SourceProxy})
	must(t, err)
	n, commit := h.next(m, webConfig(), true)
	_, err = h.Replace(t.Context(), n, 0, nil, func(ctx context.Context) (int64, error) {
		if i, err := h.options.Supervisor.Instance(ctx, m.Spec.Instance); err != nil || i.Phase != orders.PhaseSuspended {
			t.Errorf("at the commit the old version is %s (%v), want suspended", i.Phase, err)
		}
		return commit(ctx)
	})
	must(t, err)
	h.wait(m.ID, "the new version", func(m *root.Machine) bool {
		return m.Status.Instance == n.Spec.Instance && m.Status.State == root.StateStarted
	})
	h.eventually("the old version to go", func() bool { return h.sup.count() == 1 })
}

// News that came after the supervisor's account must not make the boot that
// runs look used.
func TestAccountOlderThanTheNews(t *testing.T) {
	h := newHost(t)
	rec := h.machine(1, workerConfig(), true)
	id := rec.Spec.Instance
	for _, n := range []uint64{1, 2, 3} {
		must(t, os.MkdirAll(h.bootDir(id, n), 0o755))
	}
	for _, c := range []struct {
		name    string
		entries []orders.Entry
		running uint64
		used    []uint64
		next    bool
	}{
		{"nothing new", nil, 2, []uint64{1}, true},
		{"suspended", []orders.Entry{{Type: orders.EntrySuspended, Number: 2}}, 2, []uint64{1}, true},
		{"ended", []orders.Entry{{Type: orders.EntryExited, Number: 2}}, 0, []uint64{2, 1}, true},
		{"ended and started", []orders.Entry{{Type: orders.EntryExited, Number: 2}, {Type: orders.EntryStarting, Number: 3}}, 3, []uint64{2, 1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(h.Agent, rec)
			m.st.State = root.StateStarted
			for n, e := range c.entries {
				e.Instance, e.Stamp = id, root.Stamp{Boot: 1, Seq: uint64(11 + n)}
				m.take(t.Context(), e)
			}
			m.known(t.Context(), &orders.Instance{
				Instance: id, Phase: orders.PhaseStarted, Stamp: root.Stamp{Boot: 1, Seq: 10},
				Running: &orders.Boot{Number: 2}, Next: &orders.Boot{Number: 3},
			})
			if m.inst.running != c.running || m.inst.next != c.next || !slices.Equal(m.used, c.used) {
				t.Errorf("got running %d, next %v, used %v; want %d, %v, %v", m.inst.running, m.inst.next, m.used, c.running, c.next, c.used)
			}
		})
	}
}

// A list of instances that was taken before a launch says nothing about it.
func TestAccountFromBeforeTheLaunch(t *testing.T) {
	h := newHost(t)
	rec := h.machine(1, workerConfig(), true)
	_, err := h.Launch(t.Context(), rec)
	must(t, err)
	h.get(rec.ID).settle(nil)
	_, err = h.get(rec.ID).do(t.Context(), func(_ context.Context, m *machine) error {
		if m.st.State != root.StateStarted || !m.inst.staged || m.inst.running != 1 {
			t.Errorf("got state %s, staged %v, running %d; want started, true, 1", m.st.State, m.inst.staged, m.inst.running)
		}
		return nil
	})
	must(t, err)
}

// Control died in the middle of an update: the old version serves on, nothing
// of the new one is left.
func TestTakeOverUpdate(t *testing.T) {
	h := newHost(t) // nothing listens: the update waits
	m := h.machine(1, webConfig(), true)
	_, err := h.Launch(t.Context(), m)
	must(t, err)
	n, commit := h.next(m, webConfig(), true)
	n.Spec.Image.Digest = "sha256:2"
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := h.Replace(context.WithoutCancel(t.Context()), n, 0, nil, commit); err == nil {
			t.Error("the update succeeded")
		}
	}()
	h.eventually("both versions", func() bool { return h.sup.count() == 2 })
	h.kill()
	<-gone
	h.begin()
	h.eventually("the new version to go", func() bool { return h.sup.count() == 1 })
	i, err := h.options.Supervisor.Instance(t.Context(), m.Spec.Instance)
	must(t, err)
	if i.Phase != orders.PhaseStarted || i.Running.Number != 1 {
		t.Errorf("the old version was touched: %+v", i)
	}
	h.eventually("the new image to be released", func() bool {
		h.images.mu.Lock()
		defer h.images.mu.Unlock()
		return slices.Equal(h.images.protected["machine/"+string(m.ID)], []root.Digest{"sha256:1"})
	})
	_, err = h.Destroy(t.Context(), m.ID)
	must(t, err)
	h.nothingLeft()
}
