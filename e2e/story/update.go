package story

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

func newImage(ctx context.Context, s *Story) (string, error) {
	old, err := s.theServerless(ctx)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(s.Dir, "context-")
	if err != nil {
		return "", err
	}
	if err := s.changedSource(dir); err != nil {
		return "", err
	}
	ref, err := s.build(ctx, dir)
	if err != nil {
		return "", err
	}
	if ref == s.image {
		return "", errors.New("the changed program has the same image")
	}
	load := &instance.Load{Addr: s.Edge, Host: s.Host(), Path: "/"}
	load.Start(ctx)
	problem := s.updateAll(ctx, ref)
	answered, err := load.Stop()
	if err := errors.Join(problem, err); err != nil {
		return "", err
	}
	resp, _, err := s.get(ctx, oneReceipt)
	if err != nil {
		return "", err
	}
	if servedBy(resp) == old.ID {
		return "", errors.New("the receipt came from the old serverless machine")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the old serverless machine is still there"))
	defer cancel()
	for {
		m, err := s.theServerless(ctx)
		if err == nil && m.ID == servedBy(resp) {
			return fmt.Sprintf("%s instead of %s; %d requests during the update, none failed", m.Name, old.Name, answered), nil
		}
		// The newer one removes the older once that is idle; requests make it look.
		if _, _, getErr := s.get(ctx, oneReceipt); getErr != nil {
			return "", getErr
		}
		if pauseErr := instance.Pause(ctx, 500*time.Millisecond); pauseErr != nil {
			return "", errors.Join(pauseErr, err)
		}
	}
}

func (s *Story) updateAll(ctx context.Context, ref string) error {
	web, err := s.web(ctx)
	if err != nil {
		return err
	}
	for _, m := range web {
		if _, err := s.CLI(ctx, "machine", "update", m.ID, "--app", s.app, "--image", ref); err != nil {
			return err
		}
	}
	return nil
}

// source copies what the store is built from: the rest of the module is large,
// and may be at work.
func (s *Story) source(dir string) error {
	for _, part := range []string{"go.mod", "go.sum", "machines", "serverless", "examples"} {
		from := filepath.Join(s.Source, part)
		fi, err := os.Stat(from)
		if err != nil {
			return err
		}
		if fi.IsDir() {
			err = os.CopyFS(filepath.Join(dir, part), os.DirFS(from))
		} else {
			err = copyFile(from, filepath.Join(dir, part))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changedSource is source with one word changed.
func (s *Story) changedSource(dir string) error {
	if err := s.source(dir); err != nil {
		return err
	}
	var changed bool
	err := filepath.WalkDir(filepath.Join(dir, "examples", "store"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || changed || filepath.Ext(path) != ".html" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		changed = true
		return os.WriteFile(path, append(data, "\n<!-- the next release -->\n"...), 0o644)
	})
	if err == nil && !changed {
		err = errors.New("no page of the store was found to change")
	}
	return err
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
