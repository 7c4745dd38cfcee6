package issue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/state"
)

const (
	// lockTime is how long a lock holds if nobody gives it back: longer than an
	// attempt may take.
	lockTime = 2 * attemptTimeout
	lockPoll = 250 * time.Millisecond
)

// storage is certmagic's, in the cluster's state. Every value is sealed: it is
// simpler than knowing which ones are keys.
type storage struct{ m *Manager }

var _ certmagic.Storage = storage{}

func sealContext(key string) []byte { return []byte("acme/" + key) }

func (s storage) Store(ctx context.Context, key string, value []byte) error {
	box, err := s.m.o.Keys.Seal(value, sealContext(key))
	if err != nil {
		return err
	}
	return s.m.o.Store.PutACME(ctx, state.ACMEFile{Key: key, Value: box, Modified: s.m.o.Now()})
}

func (s storage) Load(ctx context.Context, key string) ([]byte, error) {
	f, err := s.m.o.Store.ACME(ctx, key)
	if err != nil {
		return nil, notExist(err)
	}
	return s.m.o.Keys.Open(f.Value, sealContext(key))
}

func (s storage) Delete(ctx context.Context, key string) error {
	return s.m.o.Store.DeleteACME(ctx, key)
}

func (s storage) Exists(ctx context.Context, key string) bool {
	if _, err := s.m.o.Store.ACME(ctx, key); err == nil {
		return true
	}
	keys, err := s.m.o.Store.ACMEKeys(ctx, key)
	return err == nil && len(keys) > 0
}

func (s storage) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	keys, err := s.m.o.Store.ACMEKeys(ctx, dir)
	if err != nil || recursive {
		return keys, err
	}
	prefix := ""
	if dir = strings.Trim(dir, "/"); dir != "" {
		prefix = dir + "/"
	}
	for i, k := range keys {
		first, _, _ := strings.Cut(strings.TrimPrefix(k, prefix), "/")
		keys[i] = prefix + first
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

func (s storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	f, err := s.m.o.Store.ACME(ctx, key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Modified: f.Modified, Size: int64(len(f.Value)), IsTerminal: true}, nil
	}
	if keys, lerr := s.m.o.Store.ACMEKeys(ctx, key); lerr == nil && len(keys) > 0 {
		return certmagic.KeyInfo{Key: key}, nil
	}
	return certmagic.KeyInfo{}, notExist(err)
}

// notExist is how certmagic wants to hear that there is no such key.
func notExist(err error) error {
	if root.IsKind(err, root.NotFound) {
		return errors.Join(fs.ErrNotExist, err)
	}
	return err
}

func (s storage) holder() state.LockHolder { return state.LockHolder{Host: s.m.o.Host, Run: s.m.o.Run} }

func (s storage) Lock(ctx context.Context, name string) error {
	for {
		now := s.m.o.Now()
		ok, err := s.m.o.Store.TryLock(ctx, name, s.holder(), now, now.Add(lockTime))
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for lock %s: %w", name, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

func (s storage) Unlock(ctx context.Context, name string) error {
	return s.m.o.Store.Unlock(ctx, name, s.holder())
}
