package serverless

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/roost-run/roost/machines"
)

const (
	// namePrefix begins the names of serverless machines.
	namePrefix = "serverless-"
	// digestDigits of the image's digest end them.
	digestDigits = 12
	// metadataProcessGroup keeps the machine out of the app's process groups.
	metadataProcessGroup = "fly_process_group"
	// metadataReleaseVersion is the release of an app machine, metadataRelease
	// the one that a serverless machine was made for.
	metadataReleaseVersion = "fly_release_version"
	metadataRelease        = "serverless_release"

	// flightTimeout bounds one search or creation: it includes a pull.
	flightTimeout = 2 * time.Minute
	// freshFor is how long a machine that was looked at is used unseen. A
	// replay to one that is gone comes back and may not be replayed again, so
	// such a request has to be served locally.
	freshFor = 250 * time.Millisecond
	// checkWait is how long a request waits for a second look at a machine
	// that is known: the proxy reaches it whether the API answers or not.
	checkWait = 100 * time.Millisecond
	// failedFor is how long the API is left alone after a failure: one that is
	// down must not make each request wait.
	failedFor = 5 * time.Second
	// pollEvery is the pause between looks at a machine that another process
	// has just made.
	pollEvery = 50 * time.Millisecond
	// sweepFirst is the pause before the second look at older machines; it
	// doubles up to sweepMost, since a rollout may take its time.
	sweepFirst = 2 * time.Second
	sweepMost  = time.Minute
)

// pool finds or makes the one serverless machine of this process's image.
type pool struct {
	client *machines.Client
	self   identity
	change func(*machines.Config)
	log    *slog.Logger
	sweep  time.Duration // the first pause
	fresh  time.Duration
	check  time.Duration // checkWait
	alone  time.Duration // failedFor

	background context.Context // ends with close; flights and the sweeper run in it
	cancel     context.CancelFunc
	running    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	closed   bool
	id       string    // the machine, "" unknown
	name     string    // its name, "" unknown
	seen     time.Time // when it was last looked at
	flight   *flight   // the search that is under way, nil if none
	err      error     // why the last search failed
	failed   time.Time // when it did
	sweeping bool
}

// flight is a search that any number of requests wait for. done is closed when
// the other two are set.
type flight struct {
	done chan struct{}
	id   string
	err  error
}

func newPool(o Options, self identity) *pool {
	ctx, cancel := context.WithCancel(context.Background())
	return &pool{
		client: o.Client, self: self, log: o.Logger, sweep: sweepFirst, fresh: freshFor, check: checkWait, alone: failedFor, background: ctx, cancel: cancel,
		change: func(c *machines.Config) {
			maps.Copy(c.Env, o.Env)
			if o.Guest != nil {
				c.Guest, c.Size = o.Guest, ""
			}
			for i := range c.Services {
				if o.IdleStop != 0 {
					d := machines.Duration(o.IdleStop)
					c.Services[i].AutoStopAfter = &d
				}
				if o.SuspendFor != 0 {
					d := machines.Duration(o.SuspendFor)
					c.Services[i].SuspendFor = &d
				}
			}
		},
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.running.Wait()
}

// forget makes the next request look again: the machine was not reached.
func (p *pool) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id = ""
}

// machine returns the id of the serverless machine. One search is under way
// at a time, and all requests wait for it; but one that is known is returned
// after checkWait, and at once while the API is left alone.
func (p *pool) machine(ctx context.Context) (string, error) {
	p.mu.Lock()
	now := time.Now()
	id, f := p.id, p.flight
	alone := p.err != nil && now.Sub(p.failed) < p.alone
	switch {
	case id != "" && (alone || now.Sub(p.seen) < p.fresh):
		p.mu.Unlock()
		return id, nil
	case f == nil && alone:
		defer p.mu.Unlock()
		return "", p.err
	case f == nil && p.closed:
		p.mu.Unlock()
		return "", reason("the app is shutting down")
	case f == nil:
		f = &flight{done: make(chan struct{})}
		p.flight = f
		p.running.Go(func() { p.run(f, id) }) //nolint:contextcheck // it is for every request that waits, so it must not end with one of them
	}
	p.mu.Unlock()
	var enough <-chan time.Time
	if id != "" {
		timer := time.NewTimer(p.check)
		defer timer.Stop()
		enough = timer.C
	}
	select {
	case <-f.done:
		return f.id, f.err
	case <-enough:
		return id, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// run is one search; known is the machine of the last one, or "".
func (p *pool) run(f *flight, known string) {
	ctx, cancel := context.WithTimeout(p.background, flightTimeout)
	defer cancel()
	name, leftovers, err := "", false, error(nil)
	f.id, name, err = p.look(ctx, known)
	if err == nil && f.id == "" {
		var m *machines.Machine
		if m, leftovers, err = p.ensure(ctx); err == nil {
			f.id, name = m.ID, m.Name
		}
	}
	p.mu.Lock()
	p.flight = nil
	p.err = err
	switch {
	case err == nil:
		p.id, p.name, p.seen = f.id, name, time.Now()
	case known != "" && p.id == known:
		// Not the machine failed but the question. If it is gone, the replay
		// comes back and says so.
		f.id, p.failed = known, time.Now()
	default:
		f.err, p.failed = err, time.Now()
	}
	if err == nil && leftovers && !p.sweeping && !p.closed {
		p.sweeping = true
		p.running.Go(p.sweepOlder)
	}
	p.mu.Unlock()
	close(f.done)
}

// look says whether the machine that is known is still there: its id, or "".
func (p *pool) look(ctx context.Context, known string) (id, name string, err error) {
	if known == "" {
		return "", "", nil
	}
	m, err := p.client.Get(ctx, p.self.app, known)
	switch {
	case machines.StatusOf(err) == http.StatusNotFound:
		return "", "", nil
	case err != nil:
		return "", "", err
	case m.State.Gone() || broken(m.State):
		return "", "", nil
	}
	return m.ID, m.Name, nil
}

// ensure finds the machine or makes it. leftovers says that there are
// serverless machines of other images.
func (p *pool) ensure(ctx context.Context) (m *machines.Machine, leftovers bool, err error) {
	digest, err := p.digest(ctx)
	if err != nil {
		return nil, false, err
	}
	name := namePrefix + digest[:digestDigits]
	list, err := p.client.List(ctx, p.self.app, machines.ListOptions{})
	if err != nil {
		return nil, false, fmt.Errorf("look for machine %s: %w", name, err)
	}
	for i := range list {
		switch found := &list[i]; {
		case found.State.Gone() || !strings.HasPrefix(found.Name, namePrefix):
		case found.Name != name:
			leftovers = true
		case broken(found.State):
			// It will never run; its name has to be free for the next one.
			if err := p.client.Destroy(ctx, p.self.app, found.ID, true); err != nil && machines.StatusOf(err) != http.StatusNotFound {
				return nil, leftovers, fmt.Errorf("remove machine %s, which has %s: %w", name, found.State, err)
			}
		default:
			m = found
		}
	}
	if m == nil {
		m, err = p.create(ctx, name)
	} else {
		err = p.renew(ctx, m)
	}
	return m, leftovers, err
}

// renew gives the machine the config and the secrets of a newer release, if it
// was made for an older one of the same image.
func (p *pool) renew(ctx context.Context, m *machines.Machine) error {
	self, err := p.client.Get(ctx, p.self.app, p.self.machine)
	if err != nil {
		return fmt.Errorf("read the machine's own config: %w", err)
	}
	if release(self, metadataReleaseVersion) <= release(m, metadataRelease) {
		return nil
	}
	config, err := p.config(self)
	if err != nil {
		return err
	}
	_, err = p.client.Update(ctx, p.self.app, m.ID, machines.UpdateRequest{
		CreateRequest: machines.CreateRequest{Config: config}, CurrentVersion: m.InstanceID,
	})
	switch machines.StatusOf(err) {
	case http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed:
		return nil // another process is at it
	}
	if err != nil {
		return fmt.Errorf("update machine %s: %w", m.Name, err)
	}
	p.log.InfoContext(ctx, "updated the serverless machine", "app", p.self.app, "machine", m.ID, "release", release(self, metadataReleaseVersion))
	return nil
}

// release is the version of the release in a machine's metadata, 0 if there
// is none.
func release(m *machines.Machine, key string) int {
	if m.Config == nil {
		return 0
	}
	v, err := strconv.Atoi(m.Config.Metadata[key])
	if err != nil {
		return 0
	}
	return v
}

func broken(s machines.State) bool {
	return s == machines.StateFailed || s == machines.StateLaunchFailed
}

// digest returns the hex digits of the image's digest.
func (p *pool) digest(ctx context.Context) (string, error) {
	_, digest, ok := strings.Cut(p.self.image, "@sha256:")
	if !ok {
		self, err := p.client.Get(ctx, p.self.app, p.self.machine)
		if err != nil {
			return "", fmt.Errorf("read the machine's own image: %w", err)
		}
		digest = strings.TrimPrefix(self.ImageRef.Digest, "sha256:")
	}
	if len(digest) < digestDigits {
		return "", reason("the image of this machine has no digest")
	}
	return digest, nil
}

// create makes the machine. Of several processes that try, one succeeds; the
// others read what it made.
func (p *pool) create(ctx context.Context, name string) (*machines.Machine, error) {
	self, err := p.client.Get(ctx, p.self.app, p.self.machine)
	if err != nil {
		return nil, fmt.Errorf("read the machine's own config: %w", err)
	}
	config, err := p.config(self)
	if err != nil {
		return nil, err
	}
	m, err := p.client.Create(ctx, p.self.app, machines.CreateRequest{Name: name, Region: self.Region, Config: config})
	if err == nil {
		p.log.InfoContext(ctx, "made the serverless machine", "app", p.self.app, "machine", m.ID, "name", name)
		return m, nil
	}
	if machines.StatusOf(err) != http.StatusConflict {
		return nil, fmt.Errorf("make machine %s: %w", name, err)
	}
	for {
		found, findErr := p.client.Find(ctx, p.self.app, name)
		if findErr != nil {
			return nil, fmt.Errorf("look for machine %s: %w", name, findErr)
		}
		if found != nil {
			return found, nil
		}
		// Its name is taken but it cannot be read yet.
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return nil, fmt.Errorf("look for machine %s, whose name is taken: %w", name, context.Cause(ctx))
		}
	}
}

// config is the app machine's own, asleep unless needed.
func (p *pool) config(self *machines.Machine) (machines.Config, error) {
	if self.Config == nil || len(self.Config.Services) == 0 {
		return machines.Config{}, reason("this machine has no services, so the proxy could not reach another one like it")
	}
	c := *self.Config
	if p.self.image != "" {
		c.Image = p.self.image
	}
	c.Env = maps.Clone(c.Env)
	if c.Env == nil {
		c.Env = make(map[string]string)
	}
	c.Env[envMarker] = "1"
	c.Metadata = map[string]string{metadataProcessGroup: "serverless"}
	if v := release(self, metadataReleaseVersion); v > 0 {
		c.Metadata[metadataRelease] = strconv.Itoa(v)
	}
	c.Services = append([]machines.Service(nil), c.Services...)
	autostart := true
	for i := range c.Services {
		s := &c.Services[i]
		s.Autostop, s.Autostart, s.MinRunning = machines.AutostopSuspend, &autostart, 0
	}
	c.Mounts, c.Standbys, c.Schedule, c.AutoDestroy, c.DisableAutostart = nil, nil, "", false, false
	p.change(&c)
	return c, nil
}

// sweepOlder removes serverless machines of images that no app machine runs
// any more, each as soon as it is idle, until none is left.
func (p *pool) sweepOlder() {
	p.mu.Lock()
	name := p.name
	p.mu.Unlock()
	for pause := p.sweep; ; pause = min(2*pause, sweepMost) {
		left, err := p.sweepOnce(p.background, name)
		if err != nil && p.background.Err() == nil {
			p.log.Warn("could not remove older serverless machines", "app", p.self.app, "err", err)
		}
		p.mu.Lock()
		if !left || p.background.Err() != nil {
			p.sweeping = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.background.Done():
			timer.Stop()
		}
	}
}

func (p *pool) sweepOnce(ctx context.Context, ours string) (left bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, flightTimeout)
	defer cancel()
	list, err := p.client.List(ctx, p.self.app, machines.ListOptions{})
	if err != nil {
		return true, err
	}
	wanted := make(map[string]bool)
	for _, m := range list {
		digest := strings.TrimPrefix(m.ImageRef.Digest, "sha256:")
		if !strings.HasPrefix(m.Name, namePrefix) && !m.State.Gone() && len(digest) >= digestDigits {
			wanted[namePrefix+digest[:digestDigits]] = true
		}
	}
	var errs []error
	for _, m := range list {
		switch {
		case m.State.Gone() || !strings.HasPrefix(m.Name, namePrefix) || m.Name == ours:
		case wanted[m.Name] || !m.State.Idle() && !broken(m.State):
			left = true // until its version is gone and its last request served
		default:
			err := p.client.Destroy(ctx, p.self.app, m.ID, broken(m.State))
			if err == nil {
				p.log.InfoContext(ctx, "removed an older serverless machine", "app", p.self.app, "machine", m.ID, "name", m.Name)
			} else if status := machines.StatusOf(err); status != http.StatusNotFound {
				// 412: it was woken meanwhile. The next round sees.
				left = true
				if status != http.StatusPreconditionFailed {
					errs = append(errs, err)
				}
			}
		}
	}
	return left, errors.Join(errs...)
}
