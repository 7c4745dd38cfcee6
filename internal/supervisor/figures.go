package supervisor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	childLXCFS = "lxcfs"
	// hostLXCFS is where the Debian package's unit mounts it.
	hostLXCFS = "/var/lib/lxcfs"
	// figuresTimeout is how long lxcfs may take to be there; the first machine
	// waits for it.
	figuresTimeout = 5 * time.Second
	figuresPoll    = 5 * time.Millisecond
)

// figuresDir is where lxcfs of this instance shows machines their own memory,
// processors and swap.
func (s *server) figuresDir() string { return filepath.Join(s.cfg.Run, "lxcfs") }

func (s *server) figuresCommand() []string {
	return []string{"lxcfs", "-f", "-l", "-p", filepath.Join(s.cfg.Run, "lxcfs.pid"), s.figuresDir()}
}

// openFigures makes sure that machines see their own figures in /proc: by the
// host's lxcfs if it runs, else by one of this instance's own, which lives as
// long as its machines. It waits until that is there, because what is mounted
// into a machine is decided when its boot is prepared.
//
// The returned function keeps it running until ctx ends, and leaves it then.
func (s *server) openFigures(ctx context.Context) (keep func(context.Context)) {
	nothing := func(context.Context) {}
	p, adopted := s.children.takeAdopted(childLXCFS)
	switch {
	case adopted && shows(s.figuresDir()):
	case shows(hostLXCFS):
		return nothing
	default:
		if _, err := exec.LookPath("lxcfs"); err != nil {
			s.log.Warn("machines see the host's memory and processors in /proc: lxcfs is not installed")
			return nothing
		}
		var err error
		if p, err = s.startFigures(ctx); err != nil {
			s.log.Warn("machines see the host's memory and processors in /proc", "err", err)
			return nothing
		}
	}
	return func(ctx context.Context) {
		for begin := time.Now(); ; begin = time.Now() {
			code, ended := s.children.watch(ctx, childLXCFS, p)
			if !ended {
				return
			}
			// Machines that run have lost their figures until their next start.
			s.log.Error("lxcfs ended, starting it again", "pid", p.PID, "code", code, "after", time.Since(begin).Round(time.Millisecond), "said", s.figuresSaid())
			for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
				if wait(ctx, nil, backoff) != nil {
					return
				}
				var err error
				if p, err = s.startFigures(ctx); err == nil {
					break
				}
				s.log.Error("lxcfs not started", "err", err)
			}
		}
	}
}

// figuresSaid is the end of what lxcfs wrote.
func (s *server) figuresSaid() string {
	const most = 500
	data, err := os.ReadFile(s.paths.figuresLog())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data[max(0, len(data)-most):]))
}

// closeFigures ends lxcfs after the last machine.
func (s *server) closeFigures() {
	s.children.mu.Lock()
	p, ok := s.children.running[childLXCFS]
	s.children.mu.Unlock()
	if !ok {
		return
	}
	// By force: it has nothing to lose, and a SIGTERM that comes at the wrong
	// moment it only notices with the next read.
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
		s.log.Warn("lxcfs not ended", "pid", p.PID, "err", err)
		return
	}
	<-p.exited
	s.children.set(childLXCFS, nil)
}

// startFigures starts lxcfs and waits until it answers.
func (s *server) startFigures(ctx context.Context) (p childProcess, err error) {
	// What one that died has left would be in the way.
	if err := unix.Unmount(s.figuresDir(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return p, err
	}
	if err := os.MkdirAll(s.figuresDir(), 0o755); err != nil {
		return p, err
	}
	if p, err = s.children.start(childLXCFS); err != nil {
		return p, err
	}
	end := time.Now().Add(figuresTimeout)
	for !shows(s.figuresDir()) && time.Now().Before(end) {
		if wait(ctx, nil, figuresPoll) != nil {
			break
		}
	}
	return p, nil
}

// shows reports whether lxcfs is mounted there and answers.
func shows(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "proc", "meminfo"))
	return err == nil
}
