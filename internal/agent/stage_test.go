package agent

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/network"
)

// faults fails steps of making a machine's first boot. A step that does not
// fail itself takes until another one has.
type faults struct {
	mount, protect, attach error
	failed                 chan struct{} // closed by the first that fails
}

func (f *faults) step(ctx context.Context, err error) error {
	if err != nil {
		defer close(f.failed)
		return err
	}
	select {
	case <-f.failed:
	case <-ctx.Done():
	}
	return nil
}

type brokenImages struct {
	*images
	*faults
}

func (b brokenImages) Mount(ctx context.Context, key string, d root.Digest, target string) error {
	return errors.Join(b.step(ctx, b.mount), b.images.Mount(ctx, key, d, target)) // as far as it came
}

func (b brokenImages) Protect(ctx context.Context, owner string, digests ...root.Digest) error {
	if len(digests) > 0 {
		if err := b.step(ctx, b.protect); err != nil {
			return err
		}
	}
	return b.images.Protect(ctx, owner, digests...)
}

type brokenLinks struct {
	*links
	*faults
}

func (b brokenLinks) Attach(ctx context.Context, a network.Attachment) error {
	return errors.Join(b.step(ctx, b.attach), b.links.Attach(ctx, a))
}

// TestStageFailures: the steps of making a version ready go on side by side;
// when one fails, nothing is left of the others.
func TestStageFailures(t *testing.T) {
	broken := errors.New("broken")
	for name, f := range map[string]*faults{
		"root file system": {mount: broken}, "protection": {protect: broken}, "network": {attach: broken},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.kill()
			f.failed = make(chan struct{})
			h.options.Images, h.options.Network = brokenImages{h.images, f}, brokenLinks{h.links, f}
			h.begin()
			m := h.machine(1, workerConfig(), true)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := h.Launch(ctx, m); !errors.Is(err, broken) {
				t.Errorf("got %v, want what failed", err)
			}
			h.images.mu.Lock()
			mounts := len(h.images.mounts)
			h.images.mu.Unlock()
			up, _ := h.links.Attachments(t.Context())
			if n := h.sup.count(); n > 0 || mounts > 0 || len(up) > 0 {
				t.Errorf("left: %d instances, %d mounts, links %v", n, mounts, up)
			}
			if _, err := os.Stat(h.options.Config.MachineDir(m.Spec.Instance)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the version's directory: got %v, want that it is gone", err)
			}
			h.waitState(m.ID, root.StateLaunchFailed)
			_, err := h.Destroy(t.Context(), m.ID)
			must(t, err)
			h.nothingLeft()
		})
	}
}
