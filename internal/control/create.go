package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/placement"
)

const (
	// maxAttempts bounds how often a lost race for a name, an id or an address
	// is run again.
	maxAttempts = 20
	// undoTimeout bounds the removal of a machine that could not be launched:
	// it happens even if the caller has gone.
	undoTimeout = time.Minute
	// maxMachineName is the longest name: it must be a DNS label.
	maxMachineName = 63
	// sourceUser is an event's source for what was asked for.
	sourceUser = "user"
)

// Create makes a machine and, unless SkipLaunch, starts it. It returns when
// the machine runs, or with the reason why it cannot, and then leaves nothing.
// A name that is taken gives Conflict, code "machine_name_taken".
func (s *Machines) Create(ctx context.Context, a auth.Actor, app root.AppName, c CreateMachine) (*root.Machine, error) {
	found, err := s.app(a, auth.MachineCreate, app)
	if err != nil {
		return nil, err
	}
	if found.Deleting {
		return nil, root.Errorf(root.Precondition, "app %s is being deleted", app)
	}
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	if err := c.Config.Validate(); err != nil {
		return nil, err
	}
	if c.Name != "" { // before an image is pulled in vain; the transaction decides
		for _, m := range s.Catalog.Snapshot().Machines(app) {
			if m.Name == c.Name {
				return nil, nameTaken(app, c.Name)
			}
		}
	}
	if err := s.mayUseAll(ctx, a, found.Org, c.Config); err != nil {
		return nil, err
	}
	img, err := s.image(ctx, c.Config.Image, c.Release)
	if err != nil {
		return nil, err
	}
	m, rev, err := s.record(ctx, a, found, c, img)
	if err != nil {
		return nil, err
	}
	if err := s.read(ctx, rev); err != nil {
		return nil, err
	}
	done, err := s.Agent.Launch(ctx, m)
	if err != nil {
		if ctx.Err() == nil {
			s.undo(ctx, m)
		}
		return nil, launchError(m, err)
	}
	if l := m.Lease; l != nil {
		if err := s.Agent.Lease(ctx, m.ID, l.ExpiresAt); err != nil && !root.IsKind(err, root.NotFound) {
			return nil, err
		}
	}
	if err := s.read(ctx, done); err != nil {
		return nil, err
	}
	return s.current(ctx, app, m.ID)
}

// image is what the machine runs: the release's, or what ref says now.
func (s *Machines) image(ctx context.Context, ref string, r *Pinned) (root.Image, error) {
	if r != nil {
		return r.Image, nil
	}
	img, err := s.Images.Resolve(ctx, ref)
	if err != nil {
		return img, fmt.Errorf("resolve image: %w", err)
	}
	return img, nil
}

// pin gives spec what comes from its release, or else from the app.
func pin(spec *root.Spec, app *root.App, r *Pinned, skipSecrets bool) {
	spec.Release, spec.Secrets = 0, app.Secrets
	if r != nil {
		spec.Release, spec.Secrets = r.Release, r.Secrets
		if r.Instance != "" {
			spec.Instance = r.Instance
		}
	}
	if skipSecrets {
		spec.Secrets = 0
	}
}

func nameTaken(app root.AppName, name string) error {
	return &root.Error{Kind: root.Conflict, Code: root.CodeMachineNameTaken, Message: fmt.Sprintf("app %s has a machine named %s already", app, name)}
}

func launchError(m *root.Machine, err error) error {
	kind := root.KindOf(err)
	if kind == root.Internal {
		return fmt.Errorf("launch %s: %w", m.ID, err)
	}
	e := &root.Error{Kind: kind, Message: "machine could not be launched: " + root.MessageOf(err), Err: err}
	if kind == root.Exhausted {
		e.Code = "insufficient_capacity"
	}
	return e
}

// undo removes a machine that could not be launched.
func (s *Machines) undo(ctx context.Context, m *root.Machine) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := s.destroy(ctx, m.ID, true); err != nil && !root.IsKind(err, root.NotFound) {
		s.Log.Error("machine that could not be launched was not removed", "machine", m.ID, "app", m.App, "err", err)
	}
}

// record places the machine and commits its record; what is lost to others
// meanwhile is tried again with a fresh snapshot.
func (s *Machines) record(ctx context.Context, a auth.Actor, app *root.App, c CreateMachine, img root.Image) (*root.Machine, int64, error) {
	var last error
	for range maxAttempts {
		snapshot := s.Catalog.Snapshot()
		host, err := placement.Place(placement.Request{
			App: app.Name, Region: c.Region, Here: s.region(), Memory: c.Config.Guest.Memory,
		}, snapshot)
		if err != nil {
			return nil, 0, err
		}
		address, err := s.addresses.next(s.Deps, snapshot, host, app.NetworkID)
		if err != nil {
			return nil, 0, err
		}
		m := s.newMachine(a, app, host, c, img, address)
		rev, err := s.Store.CreateMachine(ctx, *m)
		if err == nil {
			return m, rev, nil
		}
		last = err
		e, ok := errors.AsType[*root.Error](err)
		retry := ok && (e.Code == root.CodeAddressTaken || e.Code == root.CodeMachineExists || e.Code == root.CodeMachineNameTaken && c.Name == "")
		if !retry {
			return nil, 0, err
		}
	}
	return nil, 0, last
}

func (s *Machines) newMachine(a auth.Actor, app *root.App, host *root.Host, c CreateMachine, img root.Image, address root.Address) *root.Machine {
	now := s.Now().UTC()
	m := &root.Machine{
		ID: s.randomMachineID(), App: app.Name, Org: app.Org, Network: app.Network,
		Name: c.Name, Region: host.Region, Host: host.ID, Origin: a.Origin, CreatedAt: now,
		Spec: root.Spec{
			Instance: root.InstanceID(ulid.Make().String()), Generation: 1,
			Config: c.Config, Source: c.Source, Image: img,
			Launch: !c.SkipLaunch, Cordoned: c.SkipServiceRegistration,
			Address: address, UpdatedAt: now,
		},
	}
	pin(&m.Spec, app, c.Release, c.SkipSecrets)
	if m.Name == "" {
		m.Name = randomName()
	}
	if m.Origin == "" {
		m.Origin = root.OriginUser
	}
	m.Status = root.Status{
		State: root.StateCreating, Instance: m.Spec.Instance, Generation: 1, UpdatedAt: now,
		Events: []root.Event{{ID: ulid.Make().String(), Type: "launch", Status: root.StateCreated, Source: sourceUser, At: now}},
	}
	if c.LeaseTTL > 0 {
		m.Lease = newLease(a, c.LeaseTTL, "", m.Spec.Instance, now)
	}
	return m
}

func newLease(a auth.Actor, ttl time.Duration, description string, version root.InstanceID, now time.Time) *root.Lease {
	return &root.Lease{
		Nonce: randomHex(6), ExpiresAt: now.Add(min(ttl, MaxLease)).UTC().Truncate(time.Second), Owner: a.Name,
		Description: description, Version: version,
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand
	return hex.EncodeToString(b)
}

// region is this host's.
func (d *Deps) region() root.Region {
	if h := d.Catalog.Snapshot().Host(d.Host); h != nil {
		return h.Region
	}
	return ""
}

// addresses gives out address indexes. They go round, so that the index of a
// machine that has just gone is not another's while somebody may still send
// to it.
type addresses struct {
	mu   sync.Mutex
	last map[root.HostID]uint32 // guarded by mu
}

func (x *addresses) next(d Deps, s *root.Snapshot, h *root.Host, network uint32) (root.Address, error) {
	taken := map[uint32]bool{}
	highest := uint32(0)
	for m := range s.AllMachines() {
		if m.Host == h.ID {
			taken[m.Spec.Address.Index] = true
			highest = max(highest, m.Spec.Address.Index)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.last == nil {
		x.last = map[root.HostID]uint32{}
	}
	last, known := x.last[h.ID]
	if !known {
		last = highest
	}
	for range len(taken) + 2 {
		last++
		a := d.Address(network, h.NetworkPart, last)
		if a.IPv4 == "" { // past the end
			last = 0
			continue
		}
		if !taken[last] {
			x.last[h.ID] = last
			return a, nil
		}
	}
	return root.Address{}, &root.Error{Kind: root.Exhausted, Code: "insufficient_capacity", Message: "the host has no private address left for another machine"}
}

func checkName(name string) error {
	if len(name) > maxMachineName {
		return root.Errorf(root.Invalid, "name: longer than %d characters", maxMachineName)
	}
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("-_.", rune(c)) {
			return root.Errorf(root.Invalid, "name: %q is not valid: use letters, digits, dashes, dots and underscores", name)
		}
	}
	return nil
}

var (
	adjectives = []string{
		"amber", "autumn", "bold", "bitter", "blue", "brave", "calm", "clear", "cold", "crimson", "dark", "dawn", "deep", "divine", "dry",
		"early", "falling", "fragrant", "frosty", "gentle", "green", "hidden", "holy", "icy", "late", "lingering", "little", "lively", "long",
		"misty", "morning", "muddy", "nameless", "old", "patient", "polished", "proud", "purple", "quiet", "rapid", "red", "restless", "rough",
		"shy", "silent", "small", "snowy", "solitary", "sparkling", "spring", "still", "summer", "twilight", "wandering", "weathered", "white",
		"wild", "winter", "wispy", "young",
	}
	nouns = []string{
		"bird", "breeze", "brook", "bush", "butterfly", "cherry", "cloud", "darkness", "dawn", "dew", "dream", "dust", "feather", "field",
		"fire", "firefly", "flower", "fog", "forest", "frog", "frost", "glade", "glitter", "grass", "haze", "hill", "lake", "leaf", "meadow",
		"moon", "morning", "mountain", "night", "paper", "pine", "pond", "rain", "resonance", "river", "sea", "shadow", "shape", "silence",
		"sky", "smoke", "snow", "snowflake", "sound", "star", "sun", "sunset", "surf", "thunder", "tree", "violet", "voice", "water",
		"waterfall", "wave", "wildflower", "wind", "wood",
	}
)

// randomName makes a name in Fly's manner: adjective-noun-NNNN.
func randomName() string {
	return fmt.Sprintf("%s-%s-%d", adjectives[mathrand.IntN(len(adjectives))], nouns[mathrand.IntN(len(nouns))], 1000+mathrand.IntN(9000))
}
