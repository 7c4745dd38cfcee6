package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// mountRecord says that the image Digest is mounted, or about to be, at Target.
type mountRecord struct {
	Digest root.Digest `json:"digest"`
	Target string      `json:"target"`
	View   bool        `json:"view,omitempty"` // read-only
}

// lower is what an unpacked image looks like to overlayfs.
type lower struct{ dirs []string } // topmost first; empty for an image without layers

const viewPrefix = "view-" // of the keys of views; no container id begins so

// Mount makes target a fresh writable root file system of the image d: its
// layers with an empty writable one on top, which Unmount throws away. The
// image is unpacked first if it is not yet. Key names the use (a container
// id): letters, digits, dots, dashes and underscores. Asked again for the same
// key, image and target it changes nothing; for another image or target it
// gives Conflict. An image that is not here gives NotFound.
func (s *Store) Mount(ctx context.Context, key string, d root.Digest, target string) error {
	if !validKey(key) || strings.HasPrefix(key, viewPrefix) {
		return fmt.Errorf("mount: %q cannot be a key", key)
	}
	return s.mount(ctx, key, mountRecord{Digest: d, Target: filepath.Clean(target)})
}

// View makes target a read-only view of the image's files, without a writable
// layer. Asked again for the same image it changes nothing.
func (s *Store) View(ctx context.Context, d root.Digest, target string) error {
	target = filepath.Clean(target)
	return s.mount(ctx, viewKey(target), mountRecord{Digest: d, Target: target, View: true})
}

// Unview undoes View. It is idempotent.
func (s *Store) Unview(ctx context.Context, target string) error {
	target = filepath.Clean(target)
	return s.Unmount(ctx, viewKey(target), target)
}

// Views lists the targets of View that have not been unmounted, with their
// images: after a crash also those of the process before.
func (s *Store) Views(context.Context) (map[string]root.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	views := map[string]root.Digest{}
	for _, m := range s.mounts {
		if m.View {
			views[m.Target] = m.Digest
		}
	}
	return views, nil
}

func viewKey(target string) string {
	sum := sha256.Sum256([]byte(target))
	return viewPrefix + hex.EncodeToString(sum[:16])
}

func (s *Store) mount(ctx context.Context, key string, want mountRecord) (err error) {
	s.keys.Lock(key)
	defer func() { _ = s.keys.Unlock(key) }() // it is locked
	s.mu.Lock()
	have, exists := s.mounts[key]
	if exists && *have != want {
		s.mu.Unlock()
		return root.Errorf(root.Conflict, "%s is mounted already, with image %s at %s", key, have.Digest, have.Target)
	}
	if !exists {
		s.mounts[key] = &want
	}
	s.mu.Unlock()
	if exists {
		if is, err := mountinfo.Mounted(want.Target); err == nil && is {
			return nil
		}
	}
	s.collecting.RLock()   // see the field
	s.collecting.RUnlock() //nolint:staticcheck // nothing to do meanwhile: only a running collection is waited for

	defer func() {
		if err != nil {
			// Nothing is left.
			err = errors.Join(err, s.unmount(key, want.Target))
		}
	}()
	chain, err := s.unpacked(ctx, want.Digest)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	low, err := s.lowerOf(ctx, chain)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	if err := os.MkdirAll(want.Target, 0o755); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	dir := s.mountDir(key)
	// What a crash or a reboot left of an earlier use is not fresh.
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	record, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	// Not synced: after a power cut there is no mount either.
	if err := os.WriteFile(filepath.Join(dir, "image"), record, 0o600); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	m, err := overlayMount(dir, low.dirs, want.View)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	if err := m.Mount(want.Target); err != nil {
		return fmt.Errorf("mount image %s at %s: %w", want.Digest, want.Target, err)
	}
	return nil
}

// overlayMount prepares the writable directories in dir and describes the mount.
func overlayMount(dir string, lower []string, view bool) (mount.Mount, error) {
	empty := filepath.Join(dir, "empty")
	if len(lower) == 0 {
		if err := os.Mkdir(empty, 0o755); err != nil {
			return mount.Mount{}, err
		}
		lower = []string{empty}
	}
	if view {
		// An image may contain devices: nobody gets to open them here.
		if len(lower) == 1 {
			return mount.Mount{Type: "bind", Source: lower[0], Options: []string{"ro", "nodev", "nosuid", "noexec", "rbind"}}, nil
		}
		return mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"ro", "nodev", "nosuid", "noexec", "lowerdir=" + strings.Join(lower, ":")}}, nil
	}
	upper, work := filepath.Join(dir, "fs"), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o711)); err != nil {
		return mount.Mount{}, err
	}
	return mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		// volatile: the files are thrown away at the next stop, so neither the
		// machine's fsync nor the unmount needs to wait for the disk.
		"volatile", "index=off",
		"workdir=" + work, "upperdir=" + upper, "lowerdir=" + strings.Join(lower, ":"),
	}}, nil
}

// lowerOf returns the directories of an unpacked chain of layers. Only the
// snapshotter knows them, and tells only of snapshots one can mount.
func (s *Store) lowerOf(ctx context.Context, chain digest.Digest) (*lower, error) {
	if chain == "" {
		return &lower{}, nil
	}
	s.mu.Lock()
	l, ok := s.lower[chain]
	s.mu.Unlock()
	if ok {
		return l, nil
	}
	ctx = Context(ctx)
	key := fmt.Sprintf("lower-%s-%d", chain, time.Now().UnixNano())
	mounts, err := s.snap.View(ctx, key, chain.String())
	if err != nil {
		return nil, fmt.Errorf("unpacked layers: %w", err)
	}
	if err := s.snap.Remove(context.WithoutCancel(ctx), key); err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("unpacked layers: %w", err)
	}
	if len(mounts) != 1 {
		return nil, fmt.Errorf("unpacked layers: %d mounts, want one", len(mounts))
	}
	l = &lower{dirs: []string{mounts[0].Source}}
	if mounts[0].Type == "overlay" {
		_, l.dirs = overlayDirs(mounts[0].Options)
	}
	s.mu.Lock()
	s.lower[chain] = l
	s.mu.Unlock()
	return l, nil
}

// Unmount undoes Mount and throws the written files away. It is idempotent; a
// mount that is still busy is detached and goes when its last user does.
func (s *Store) Unmount(_ context.Context, key, target string) error {
	if !validKey(key) {
		return fmt.Errorf("unmount: %q cannot be a key", key)
	}
	s.keys.Lock(key)
	defer func() { _ = s.keys.Unlock(key) }() // it is locked
	return s.unmount(key, target)
}

// unmount is Unmount by the holder of the key's lock.
func (s *Store) unmount(key, target string) error {
	// Until nothing is stacked there: a caller may have mounted things below.
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if err := os.RemoveAll(s.mountDir(key)); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	s.mu.Lock()
	delete(s.mounts, key)
	s.mu.Unlock()
	return nil
}

// Mounted lists the keys of Mount that have not been unmounted, sorted: after
// a crash also those of the process before. Views are not among them.
func (s *Store) Mounted(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key, m := range s.mounts {
		if !m.View {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

// readMounts takes over what the process before left mounted.
func (s *Store) readMounts() error {
	entries, err := os.ReadDir(filepath.Join(s.o.Root, "mounts"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := s.mountDir(e.Name())
		var m mountRecord
		data, err := os.ReadFile(filepath.Join(dir, "image"))
		if err == nil {
			err = json.Unmarshal(data, &m)
		}
		if err != nil || !validKey(e.Name()) {
			// Cut off before it was mounted: the record is written first.
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		s.mounts[e.Name()] = &m
	}
	return nil
}

// Beside returns a directory on disk for what belongs to the mount with that
// key, and goes with it. It need not exist.
func (s *Store) Beside(key string) string { return filepath.Join(s.mountDir(key), "beside") }

func (s *Store) mountDir(key string) string { return filepath.Join(s.o.Root, "mounts", key) }

func validKey(key string) bool {
	if key == "" || len(key) > 128 || key[0] == '.' {
		return false
	}
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
