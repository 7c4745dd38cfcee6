package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/buildcontext"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/orders"
)

// fake is control without a cluster: every verb does what it says at once.
type fake struct {
	mu       sync.Mutex // guards what follows
	apps     map[root.AppName]*root.App
	machines map[root.MachineID]*root.Machine
	dead     map[root.MachineID]*root.Machine
	calls    []string // verbs with what matters of their input
	actor    auth.Actor
	next     int
	now      time.Time
	execute  func(ctx context.Context, e control.ExecStream) (control.ExecResult, error)
	dial     func() (net.Conn, error)
	removed  chan struct{} // closed when a console goes, if not nil
}

func newFake() *fake {
	return &fake{
		apps: make(map[root.AppName]*root.App), machines: make(map[root.MachineID]*root.Machine),
		dead: make(map[root.MachineID]*root.Machine), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func (f *fake) called(a auth.Actor, format string, args ...any) {
	f.actor = a
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) lastCall() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return ""
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) find(app root.AppName, id root.MachineID, nonce string, change bool) (*root.Machine, error) {
	m := f.machines[id]
	if m == nil || m.App != app {
		return nil, root.Errorf(root.NotFound, "machine not found")
	}
	if l := m.Lease; l != nil && change && nonce != l.Nonce {
		return nil, &root.Error{Kind: root.Conflict, Code: "lease_held",
			Message: fmt.Sprintf("machine ID %s lease currently held by %s, expires at %s", id, l.Owner, l.ExpiresAt.Format(time.RFC3339))}
	}
	return m, nil
}

func (f *fake) event(m *root.Machine, kind string, state root.State) {
	f.next++
	m.Status.State = state
	m.Status.Instance = m.Spec.Instance
	m.Status.Events = root.PushEvent(m.Status.Events, root.Event{ID: fmt.Sprintf("01J%05d", f.next), Type: kind, Status: state, Source: "user", At: f.now})
}

type fakeApps struct{ *fake }

func (f fakeApps) Create(_ context.Context, a auth.Actor, c control.CreateApp) (control.AppStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "create app %s org=%s network=%s key=%s", c.Name, c.Org, c.Network, c.IdempotencyKey)
	name, err := root.ParseAppName(c.Name)
	if err != nil {
		return control.AppStatus{}, err
	}
	if f.apps[name] != nil {
		return control.AppStatus{}, &root.Error{Kind: root.Conflict, Code: "name_taken", Message: "Name has already been taken"}
	}
	f.apps[name] = &root.App{Name: name, ID: "abcdefghij012345", Org: "personal", Network: "default", CreatedAt: f.now}
	return f.status(name), nil
}

func (f fakeApps) status(name root.AppName) control.AppStatus {
	return control.AppStatus{App: f.apps[name], Org: root.Org{Slug: "personal", Name: "Personal"}, Status: "deployed", MachineCount: len(f.machines)}
}

func (f fakeApps) Get(_ context.Context, _ auth.Actor, name root.AppName) (control.AppStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case name == "foreign":
		return control.AppStatus{}, root.Errorf(root.Forbidden, "not yours")
	case f.apps[name] == nil:
		return control.AppStatus{}, root.Errorf(root.NotFound, "app %q not found", name)
	}
	return f.status(name), nil
}

func (f fakeApps) List(context.Context, auth.Actor, string) ([]control.AppStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []control.AppStatus
	for _, name := range slices.Sorted(maps.Keys(f.apps)) {
		list = append(list, f.status(name))
	}
	return list, nil
}

func (f fakeApps) Delete(_ context.Context, a auth.Actor, name root.AppName, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "delete app %s force=%v", name, force)
	if len(f.machines) > 0 && !force {
		return root.Errorf(root.Precondition, "app %s has machines", name)
	}
	delete(f.apps, name)
	return nil
}

type fakeMachines struct{ *fake }

func (f fakeMachines) Create(_ context.Context, a auth.Actor, app root.AppName, c control.CreateMachine) (*root.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "create machine name=%s region=%s skip_launch=%v cordoned=%v", c.Name, c.Region, c.SkipLaunch, c.SkipServiceRegistration)
	if c.Config.Image == "panic" {
		panic("asked to")
	}
	if f.apps[app] == nil {
		return nil, root.Errorf(root.NotFound, "app %q not found", app)
	}
	for _, m := range f.machines {
		if m.Name == c.Name {
			return nil, &root.Error{Kind: root.Conflict, Code: "machine_name_taken", Message: "machine name " + c.Name + " is taken by " + string(m.ID)}
		}
	}
	f.next++
	m := &root.Machine{
		ID: root.MachineID(fmt.Sprintf("%014x", f.next)), App: app, Org: "personal", Name: c.Name, Region: "loc", CreatedAt: f.now, Origin: a.Origin,
		Spec: root.Spec{Instance: root.InstanceID(fmt.Sprintf("01INSTANCE%05d", f.next)), Generation: 1, Config: c.Config, Source: c.Source,
			Image: root.Image{Registry: "docker.io", Repository: "library/debian", Tag: "bookworm-slim", Digest: "sha256:0"}, Cordoned: c.SkipServiceRegistration, UpdatedAt: f.now,
			Address: root.Address{IPv6: "fdaa::5"}},
	}
	if c.LeaseTTL > 0 {
		m.Lease = &root.Lease{Nonce: "0123456789ab", Owner: a.Name, ExpiresAt: time.Now().Add(c.LeaseTTL), Version: m.Spec.Instance}
	}
	f.event(m, "launch", root.StateCreated)
	if c.SkipLaunch {
		m.Status.State = root.StateStopped
	} else {
		f.event(m, "start", root.StateStarted)
	}
	f.machines[m.ID] = m
	return m.Clone(), nil
}

func (f fakeMachines) Update(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, u control.UpdateMachine) (*root.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "update %s current=%s", id, u.CurrentVersion)
	m, err := f.find(app, id, u.Nonce, true)
	if err != nil {
		return nil, err
	}
	if u.CurrentVersion != "" && u.CurrentVersion != string(m.Spec.Instance) {
		return nil, root.Errorf(root.Conflict, "the live version is %s", m.Spec.Instance)
	}
	f.next++
	m.Spec.Instance, m.Spec.Config, m.Spec.Source = root.InstanceID(fmt.Sprintf("01INSTANCE%05d", f.next)), u.Config, u.Source
	f.event(m, "launch", root.StateCreated)
	f.event(m, "start", root.StateStarted)
	return m.Clone(), nil
}

func (f fakeMachines) Get(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID) (*root.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.actor = a
	m, err := f.find(app, id, "", false)
	if err != nil {
		return nil, err
	}
	return m.Clone(), nil
}

func (f fakeMachines) List(_ context.Context, a auth.Actor, app root.AppName, filter control.Filter) ([]*root.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "list deleted=%v region=%s states=%v metadata=%v", filter.IncludeDeleted, filter.Region, filter.States, filter.Metadata)
	var list []*root.Machine
	all := slices.Collect(maps.Values(f.machines))
	if filter.IncludeDeleted {
		all = slices.AppendSeq(all, maps.Values(f.dead))
	}
	for _, m := range all {
		ok := m.App == app && (len(filter.States) == 0 || slices.Contains(filter.States, m.Status.State))
		for k, v := range filter.Metadata {
			ok = ok && m.Spec.Config.Metadata[k] == v
		}
		if ok {
			list = append(list, m.Clone())
		}
	}
	slices.SortFunc(list, func(a, b *root.Machine) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list, nil
}

func (f fakeMachines) verb(a auth.Actor, app root.AppName, id root.MachineID, nonce, kind string, state root.State, detail string) (root.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "%s %s%s", kind, id, detail)
	m, err := f.find(app, id, nonce, true)
	if err != nil {
		return "", err
	}
	if kind != "signal" && kind != "cordon" {
		if _, err := root.CheckVerb(root.Verb(kind), m.Status.State); err != nil {
			return "", err
		}
	}
	previous := m.Status.State
	if state != "" {
		f.event(m, kind, state)
	}
	return previous, nil
}

func (f fakeMachines) Start(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) (root.State, error) {
	return f.verb(a, app, id, nonce, "start", root.StateStarted, "")
}

func (f fakeMachines) Stop(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r control.StopRequest) error {
	_, err := f.verb(a, app, id, nonce, "stop", root.StateStopped, fmt.Sprintf(" signal=%s timeout=%s", r.Signal, r.Timeout))
	return err
}

func (f fakeMachines) Restart(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, r control.RestartRequest) error {
	_, err := f.verb(a, app, id, nonce, "restart", root.StateStarted, fmt.Sprintf(" signal=%s timeout=%s force=%v", r.Signal, r.Timeout, r.Force))
	return err
}

func (f fakeMachines) Suspend(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	_, err := f.verb(a, app, id, nonce, "suspend", root.StateSuspended, "")
	return err
}

func (f fakeMachines) Signal(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, signal int) error {
	_, err := f.verb(a, app, id, nonce, "signal", "", fmt.Sprintf(" %d", signal))
	return err
}

func (f fakeMachines) Cordon(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, on bool) error {
	_, err := f.verb(a, app, id, nonce, "cordon", "", fmt.Sprintf(" %v", on))
	if err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.machines[id].Spec.Cordoned = on
	}
	return err
}

func (f fakeMachines) Destroy(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "destroy %s force=%v", id, force)
	m, err := f.find(app, id, nonce, true)
	if err != nil {
		return err
	}
	if !force {
		if _, err := root.CheckVerb(root.VerbDestroy, m.Status.State); err != nil {
			return err
		}
	}
	delete(f.machines, id)
	m.Status.State = root.StateDestroyed
	f.dead[id] = m
	return nil
}

func (f fakeMachines) Wait(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, w control.WaitRequest) (control.WaitResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "wait %s states=%v version=%s from=%s timeout=%s", id, w.States, w.Version, w.FromEvent, w.Timeout)
	m, err := f.find(app, id, "", false)
	if err != nil {
		return control.WaitResult{}, err
	}
	want := w.States
	if len(want) == 0 {
		want = []string{"started"}
	}
	if !slices.Contains(want, string(m.Status.State)) {
		return control.WaitResult{}, root.Errorf(root.Timeout, "machine failed to reach desired state, %s, currently %s", strings.Join(want, " or "), m.Status.State)
	}
	return control.WaitResult{State: m.Status.State, Version: m.Spec.Instance, EventID: m.Status.Events[0].ID}, nil
}

func (f fakeMachines) Exec(_ context.Context, a auth.Actor, _ root.AppName, id root.MachineID, _ string, e control.ExecRequest) (control.ExecResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "exec %s %q timeout=%s", id, e.Args, e.Timeout)
	return control.ExecResult{Stdout: e.Stdin + "out", Stderr: "err", Code: 3}, nil
}

func (f fakeMachines) ExecStream(ctx context.Context, a auth.Actor, _ root.AppName, id root.MachineID, _ string, e control.ExecStream) (control.ExecResult, error) {
	f.mu.Lock()
	f.called(a, "exec stream %s %q tty=%v", id, e.Args, e.TTY)
	f.mu.Unlock()
	return f.execute(ctx, e)
}

func (f fakeMachines) Inspect(context.Context, auth.Actor, root.AppName, root.MachineID) (orders.Inspection, error) {
	return orders.Inspection{
		Processes: []orders.Process{{PID: 1, Command: "/bin/store", RSS: 4096, Listens: []orders.Listen{{Proto: "tcp6", Address: "[::]:8080"}, {Proto: "tcp", Address: "broken"}}}},
		Listens:   []orders.Listen{{Proto: "tcp6", Address: "[::]:8080"}},
	}, nil
}

func (f fakeMachines) Stats(context.Context, auth.Actor, root.AppName, root.MachineID) (orders.Stats, error) {
	return orders.Stats{Memory: 5, Swap: 6}, nil
}

func (f fakeMachines) Events(_ context.Context, _ auth.Actor, app root.AppName, id root.MachineID, limit int) ([]root.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := f.find(app, id, "", false)
	if err != nil {
		return nil, err
	}
	return m.Status.Events[:min(limit, len(m.Status.Events))], nil
}

func (f fakeMachines) Lease(_ context.Context, _ auth.Actor, app root.AppName, id root.MachineID) (*root.Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := f.find(app, id, "", false)
	if err != nil {
		return nil, err
	}
	if m.Lease == nil {
		return nil, root.Errorf(root.NotFound, "lease not found")
	}
	return m.Lease, nil
}

func (f fakeMachines) Acquire(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce, description string, ttl time.Duration) (*root.Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called(a, "lease %s ttl=%s %s", id, ttl, description)
	m, err := f.find(app, id, nonce, true)
	if err != nil {
		return nil, err
	}
	m.Lease = &root.Lease{Nonce: "0123456789ab", Owner: a.Name, Description: description, ExpiresAt: time.Now().Add(ttl), Version: m.Spec.Instance}
	return m.Lease, nil
}

func (f fakeMachines) Release(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, nonce string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := f.find(app, id, nonce, true)
	if err != nil {
		return err
	}
	if m.Lease == nil {
		return root.Errorf(root.NotFound, "lease not found")
	}
	m.Lease = nil
	return nil
}

func (f fakeMachines) Metadata(_ context.Context, _ auth.Actor, app root.AppName, id root.MachineID) (map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := f.find(app, id, "", false)
	if err != nil {
		return nil, err
	}
	return maps.Clone(m.Spec.Config.Metadata), nil
}

func (f fakeMachines) SetMetadata(_ context.Context, a auth.Actor, app root.AppName, id root.MachineID, version string, values map[string]*string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.actor = a
	m, err := f.find(app, id, "", false)
	if err != nil {
		return err
	}
	if version != "" && version != string(m.Spec.Instance) {
		return root.Errorf(root.Precondition, "the live version is %s", m.Spec.Instance)
	}
	next := maps.Clone(m.Spec.Config.Metadata)
	if next == nil {
		next = make(map[string]string)
	}
	for k, v := range values {
		if v == nil || *v == "" {
			delete(next, k)
		} else {
			next[k] = *v
		}
	}
	m.Spec.Config.Metadata = next
	return nil
}

type fakeHosts struct{}

func (fakeHosts) Regions(context.Context) []root.Region { return []root.Region{"loc", "fra"} }

func (fakeHosts) List(context.Context, auth.Actor) ([]control.HostStatus, error) {
	return []control.HostStatus{{Host: root.Host{ID: "5e1f00aa", Region: "loc"}, Local: true, Status: orders.HostStatus{Swap: "zram"}, Machines: map[root.State]int{root.StateStarted: 2}}}, nil
}

type fakeOrgs struct{}

func (fakeOrgs) List(context.Context, auth.Actor) ([]root.Org, error) {
	return []root.Org{{Slug: "personal", Name: "Personal"}}, nil
}

func (fakeOrgs) Get(_ context.Context, _ auth.Actor, slug string) (root.Org, error) {
	return root.Org{Slug: root.OrgSlug(slug)}, nil
}

func (fakeOrgs) Create(_ context.Context, _ auth.Actor, slug, name string) (root.Org, error) {
	return root.Org{Slug: root.OrgSlug(slug), Name: name}, nil
}

type fakeTokens struct{}

func (fakeTokens) Create(_ context.Context, _ auth.Actor, c control.CreateToken) (string, auth.Token, error) {
	return "roost_d_secret", auth.Token{ID: "01TOKEN", Name: c.Name, Scope: c.Scope, App: root.AppName(c.App), ExpiresAt: time.Unix(0, 0).Add(c.Expiry)}, nil
}

func (fakeTokens) List(context.Context, auth.Actor, string) ([]auth.Token, error) {
	return []auth.Token{{ID: "01TOKEN"}}, nil
}

func (fakeTokens) Revoke(_ context.Context, _ auth.Actor, id string) error {
	if id != "01TOKEN" {
		return root.Errorf(root.NotFound, "token %q not found", id)
	}
	return nil
}

type fakeImages struct{}

func (fakeImages) List(context.Context, auth.Actor) ([]control.ImageInfo, error) {
	return []control.ImageInfo{{Image: debian, Size: 7, InUse: true}}, nil
}

var debian = root.Image{Registry: "docker.io", Repository: "library/debian", Tag: "bookworm-slim", Digest: "sha256:0"}

func (fakeImages) Pull(_ context.Context, _ auth.Actor, ref string, login control.RegistryLogin, progress func(control.PullProgress)) (root.Image, error) {
	if ref == "private" && login != (control.RegistryLogin{User: "me", Password: "secret"}) {
		return root.Image{}, root.Errorf(root.Invalid, "it needs credentials")
	}
	switch ref {
	case "none":
		return root.Image{}, root.Errorf(root.NotFound, "no image none")
	case "breaks":
		progress(control.PullProgress{State: "downloading"})
		return root.Image{}, root.Errorf(root.Unavailable, "the registry went away")
	}
	progress(control.PullProgress{Layer: "sha256:1", State: "downloading", Done: 1, Total: 2})
	progress(control.PullProgress{State: "done"})
	return debian, nil
}

func (fakeImages) Load(_ context.Context, _ auth.Actor, r io.Reader, as string) ([]root.Image, error) {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, err
	}
	return []root.Image{{Registry: as, Repository: fmt.Sprint(n), Digest: "sha256:1"}}, nil
}

func (fakeImages) Remove(_ context.Context, _ auth.Actor, ref string) error {
	return root.Errorf(root.Precondition, "image %s is in use", ref)
}

// BuildContext lacks every file, and one after a first upload that broke.
func (fakeImages) BuildContext(_ context.Context, _ auth.Actor, app root.AppName, manifest io.Reader) (control.ContextState, error) {
	if app == "none" {
		return control.ContextState{}, root.Errorf(root.NotFound, "app none not found")
	}
	var m buildcontext.Manifest
	if err := json.NewDecoder(manifest).Decode(&m); err != nil {
		return control.ContextState{}, err
	}
	blobs, err := m.Blobs()
	state := control.ContextState{ID: string(m.ID())}
	for d := range blobs {
		state.Missing = append(state.Missing, string(d))
	}
	return state, err
}

// uploaded is what BuildFiles got, by app.
var uploaded sync.Map

func (fakeImages) BuildFiles(_ context.Context, _ auth.Actor, app root.AppName, id string, r io.Reader) error {
	var total int64
	err := buildcontext.ReadBlobs(r, func(_ digest.Digest, size int64, body io.Reader) error {
		total += size
		_, err := io.Copy(io.Discard, body)
		return err
	})
	uploaded.Store(app, fmt.Sprint(id, " ", total))
	return err
}

func (fakeImages) Build(_ context.Context, _ auth.Actor, r control.BuildRequest, news func(control.BuildNews)) (root.Image, error) {
	got, _ := uploaded.Load(r.App)
	news(control.BuildNews{Log: fmt.Sprintf("%s %s %s %v %v", r.Kind, r.DockerfileName, r.Args["a"], r.Secrets, got == fmt.Sprint(r.Context, " ", 3<<20))})
	news(control.BuildNews{Status: json.RawMessage(`{"vertexes":[]}`)})
	if r.Target == "bad" {
		return root.Image{}, root.Errorf(root.Invalid, "there is no such stage")
	}
	return debian, nil
}

type fakeLogs struct{}

func (fakeLogs) Tail(ctx context.Context, _ auth.Actor, app root.AppName, f control.LogFilter, follow bool, line func(control.LogLine) error) error {
	if app == "none" {
		return root.Errorf(root.NotFound, "app none not found")
	}
	for i := range max(f.Lines, 1) {
		if err := line(control.LogLine{App: app, Machine: f.Machine, Message: fmt.Sprint("line ", i)}); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	<-ctx.Done()
	return errors.New("nobody listens any more")
}
