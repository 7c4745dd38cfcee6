package instance

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Handle is what another process needs to close an instance in place of the
// one that made it.
type Handle struct {
	Binary, Dir, Edge, API string
	Settings               []string
}

// Handle is the instance's own.
func (in *Instance) Handle() Handle {
	return Handle{in.Binary, in.Dir, in.Edge, in.API, in.settings}
}

// LogTail is the instance's.
func (h Handle) LogTail(lines int) string { return logTail(filepath.Join(h.Dir, logName), lines) }

// Reclaim closes an instance whose owner has ended: its machines and processes
// are stopped and its directory is removed.
func (h Handle) Reclaim(ctx context.Context) error {
	in := &Instance{Binary: h.Binary, Dir: h.Dir, Edge: h.Edge, API: h.API, settings: h.Settings}
	if _, err := os.Stat(in.data()); errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(h.Dir) // it was never started, or is gone
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if _, err := in.CLI(ctx, "server", "stop", "--machines", "--run", in.Run()); err == nil {
		return os.RemoveAll(h.Dir)
	}
	// There is no server process, or none that answers: another one takes
	// back what it left.
	var err error
	if in.log, err = in.openLog(); err != nil {
		return err
	}
	if err := in.Serve(ctx); err != nil {
		return errors.Join(err, in.log.Close())
	}
	return in.Close(ctx)
}
