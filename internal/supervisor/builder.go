package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	root "github.com/roost-run/roost"
)

// buildsGroup is the control group of builds: they count towards the limit of
// all machines.
const buildsGroup = "builds"

// builderTimeout is how long the builder may take until its socket answers.
const builderTimeout = 20 * time.Second

// startBuilder makes sure that the builder runs and answers. It ends by itself
// when it has been idle.
func (s *server) startBuilder(ctx context.Context) error {
	s.building.Lock()
	defer s.building.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, builderTimeout, errors.New("the builder did not open its socket"))
	defer cancel()
	// The end of the one before takes all of the control group with it.
	if up, err := s.awaitBuilder(ctx, s.builder); up || err != nil {
		return err
	}
	// Builds have a network of their own: public addresses, nothing else.
	inside, err := s.network.AttachBuilds(ctx, s.cfg.BuildsNamespace())
	if err != nil {
		return fmt.Errorf("network of builds: %w", err)
	}
	s.children.setWithin(childBuilder, inside)
	p, err := s.children.start(childBuilder)
	if err != nil {
		return err
	}
	s.builder = s.watchBuilder(p)
	if up, err := s.awaitBuilder(ctx, s.builder); up || err != nil {
		return err
	}
	return root.Errorf(root.Unavailable, "the builder ended at its start; the server's log says why")
}

// awaitBuilder returns when the builder answers (up) or has ended; nil stands
// for one that never was.
func (s *server) awaitBuilder(ctx context.Context, ended <-chan struct{}) (up bool, _ error) {
	for !answers(ctx, s.cfg.BuilderSocket()) {
		if ended == nil && ctx.Err() == nil {
			return false, nil
		}
		select {
		case <-ended:
			return false, nil
		case <-ctx.Done():
			return false, &root.Error{Kind: root.Unavailable, Message: "the builder did not start", Err: context.Cause(ctx)}
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true, nil
}

// adoptBuilder takes over the builder that an earlier server process left. It
// is called before orders are served.
func (s *server) adoptBuilder() {
	if p, ok := s.children.takeAdopted(childBuilder); ok {
		s.builder = s.watchBuilder(p)
	}
}

// watchBuilder waits for the builder's end, and ends it with the server. The
// channel is closed when it has ended, and its steps with it.
func (s *server) watchBuilder(p childProcess) (ended <-chan struct{}) {
	if err := s.cgroups.Join(buildsGroup, p.PID, s.buildMemory); err != nil {
		s.log.Warn("builds are not limited", "err", err)
	}
	done := make(chan struct{})
	s.builders.Go(func() {
		defer close(done)
		select {
		case code := <-p.exited:
			s.children.set(childBuilder, nil)
			s.log.Info("builder ended", "pid", p.PID, "code", code)
		case <-s.closing:
			s.children.terminate(childBuilder, p)
		}
		// Steps of a build that outlived it.
		if err := s.cgroups.RemoveGroup(buildsGroup); err != nil {
			s.log.Warn("control group of builds left", "err", err)
		}
	})
	return done
}

func answers(ctx context.Context, socket string) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
