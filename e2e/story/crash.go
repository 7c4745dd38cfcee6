package story

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/machines"
)

// kills is how often a process dies under load.
const kills = 3

func killControl(ctx context.Context, s *Story) (string, error) {
	load := &instance.Load{Addr: s.Edge, Host: s.Host(), Path: "/"}
	load.Start(ctx)
	problem := func() error {
		for range kills {
			if _, err := s.inState(ctx, machines.StateSuspended); err != nil {
				return err
			}
			if err := s.Kill(ctx, "control"); err != nil {
				return err
			}
			// A wake while control is away.
			if _, _, err := s.get(ctx, oneReceipt); err != nil {
				return fmt.Errorf("a wake while control was away: %w", err)
			}
			if err := s.controlBack(ctx); err != nil {
				return err
			}
		}
		return nil
	}()
	answered, err := load.Stop()
	if err := errors.Join(problem, err); err != nil {
		return "", err
	}
	return fmt.Sprintf("killed %d times, %d requests, none failed", kills, answered), nil
}

// controlBack waits until control answers again. The edge holds a request for
// it, but not as long as a control process may need to start on a busy host.
func (s *Story) controlBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("control did not come back"))
	defer cancel()
	for {
		_, err := s.api.List(ctx, s.app, machines.ListOptions{})
		if machines.StatusOf(err) != http.StatusServiceUnavailable {
			return err
		}
		if err := instance.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func killEdge(ctx context.Context, s *Story) (string, error) {
	before, err := s.bootIDs(ctx)
	if err != nil {
		return "", err
	}
	for range kills {
		if err := s.Kill(ctx, "edge"); err != nil {
			return "", err
		}
		// Fresh connections right after the death: each is accepted and answered.
		for range 20 {
			c, err := (&instance.Load{Addr: s.Edge}).Dial()
			if err != nil {
				return "", fmt.Errorf("a new connection was refused: %w", err)
			}
			err = errors.Join(c.Get(s.Host(), "/", false), c.Close())
			if err != nil {
				return "", fmt.Errorf("a new connection was not answered: %w", err)
			}
		}
	}
	after, err := s.bootIDs(ctx)
	if err != nil {
		return "", err
	}
	if before != after {
		return "", fmt.Errorf("machines were touched: %s before, %s after", before, after)
	}
	return fmt.Sprintf("killed %d times, %d new connections answered", kills, kills*20), nil
}

// bootIDs identifies the running processes of the app machines: the store
// makes an id at each start.
func (s *Story) bootIDs(ctx context.Context) (string, error) {
	web, err := s.web(ctx)
	if err != nil {
		return "", err
	}
	var ids []string
	for _, m := range web {
		resp, _, err := s.get(ctx, "/healthz", "Fly-Force-Instance-Id", m.ID)
		if err != nil {
			return "", err
		}
		if resp.Header.Get("Store-Boot") == "" {
			return "", errors.New("the store does not say which boot it is")
		}
		ids = append(ids, m.ID+"="+resp.Header.Get("Store-Boot"))
	}
	return strings.Join(ids, " "), nil
}

func killServer(ctx context.Context, s *Story) (string, error) {
	before, err := s.bootIDs(ctx)
	if err != nil {
		return "", err
	}
	load := &instance.Load{Addr: s.Edge, Host: s.Host(), Path: "/"}
	load.Start(ctx)
	problem := func() error {
		if err := s.Kill(ctx, "server"); err != nil {
			return err
		}
		if err := s.Serve(ctx); err != nil {
			return err
		}
		// The new server commands what the old one made.
		if _, err := s.inState(ctx, machines.StateSuspended); err != nil {
			return err
		}
		_, _, err := s.receipt(ctx, oneReceipt)
		return err
	}()
	answered, err := load.Stop()
	if err := errors.Join(problem, err); err != nil {
		return "", err
	}
	after, err := s.bootIDs(ctx)
	if err != nil {
		return "", err
	}
	if before != after {
		return "", fmt.Errorf("machines were touched: %s before, %s after", before, after)
	}
	return fmt.Sprintf("machines run on, %d requests meanwhile, none failed", answered), nil
}
