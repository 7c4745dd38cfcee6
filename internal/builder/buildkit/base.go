package buildkit

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"

	root "github.com/roost-run/roost"
)

// bases finds base images in the store, and remembers why it could not:
// BuildKit would then ask the registry itself, which only the store may do.
type bases struct {
	images.Store
	mu     sync.Mutex
	failed map[string]error // by reference
}

// Get implements images.Store.
func (b *bases) Get(ctx context.Context, name string) (images.Image, error) {
	img, err := b.Store.Get(ctx, name)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.failed, name)
		return img, nil
	}
	if b.failed == nil {
		b.failed = map[string]error{}
	}
	b.failed[name] = err
	return img, err
}

// why returns the reason for which an image that the text names is not there.
func (b *bases) why(text string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, err := range b.failed {
		if strings.Contains(text, name) {
			return err
		}
	}
	return nil
}

// noRegistry is BuildKit's way to registries: one that leads nowhere.
func noRegistry(host string) ([]docker.RegistryHost, error) {
	return []docker.RegistryHost{{
		Client: &http.Client{Transport: nowhere{}}, Host: host, Scheme: "https", Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}}, nil
}

type nowhere struct{}

func (nowhere) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, root.Errorf(root.NotFound, "the image is not on this host")
}
