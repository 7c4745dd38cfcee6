package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	root "github.com/roost-run/roost"
)

// Store reads and writes the cluster's state.
type Store struct {
	client *clientv3.Client
	log    *slog.Logger

	mu     sync.Mutex
	loaded *parts // what the last Load read, until a Watch takes it; guarded by mu
}

// Option changes a Store.
type Option func(*Store)

// WithLogger says where unreadable records are reported; without it, nowhere.
func WithLogger(log *slog.Logger) Option { return func(s *Store) { s.log = log } }

// New returns a store over c, which stays the caller's.
func New(c *clientv3.Client, options ...Option) *Store {
	s := &Store{client: c, log: slog.New(slog.DiscardHandler)}
	for _, o := range options {
		o(s)
	}
	return s
}

// maxAttempts bounds how often a write that lost a race is tried again: the
// writers of one key are few.
const maxAttempts = 32

// retryPause is the longest pause after the first lost race; it doubles.
const retryPause = 2 * time.Millisecond

// errRace tells attempt to run again.
var errRace = errors.New("lost a race")

// attempt runs f until it does not return errRace.
func attempt(ctx context.Context, what string, f func() (int64, error)) (int64, error) {
	for i := range maxAttempts {
		rev, err := f()
		if !errors.Is(err, errRace) {
			return rev, wrap(what, err)
		}
		pause := time.Duration(rand.Int64N(int64(retryPause << min(i, 6)))) // jitter only: nothing depends on its value
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
	return 0, root.Errorf(root.Unavailable, "%s: others changed the same thing %d times in a row; try again", what, maxAttempts)
}

// wrap gives errors of etcd a kind.
func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*root.Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return &root.Error{Kind: root.Exhausted, Message: "the control state is full and accepts no changes; space is being recovered, try again in a minute", Err: fmt.Errorf("%s: %w", what, err)}
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return &root.Error{Kind: root.TooLarge, Message: what + ": the record is too large to store", Err: err}
	case clientv3.IsConnCanceled(err) || strings.Contains(err.Error(), "Unavailable"):
		return &root.Error{Kind: root.Unavailable, Message: "the control state does not answer; try again", Err: fmt.Errorf("%s: %w", what, err)}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// get reads one key; nil when there is none.
func (s *Store) get(ctx context.Context, key string) (*mvccpb.KeyValue, error) {
	resp, err := s.client.Get(ctx, key)
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0], nil
}

// list reads the records under a prefix and hands each to f; unreadable ones,
// those f refuses, are reported and skipped.
func (s *Store) list(ctx context.Context, prefix string, f func(*mvccpb.KeyValue) error, options ...clientv3.OpOption) error {
	resp, err := s.client.Get(ctx, prefix, append(options, clientv3.WithPrefix())...)
	if err != nil {
		return wrap("read "+prefix, err)
	}
	for _, kv := range resp.Kvs {
		if err := f(kv); err != nil {
			s.unreadable(kv, err)
		}
	}
	return nil
}

func (s *Store) unreadable(kv *mvccpb.KeyValue, err error) {
	s.log.Error("skipped an unreadable record of the control state", "key", string(kv.Key), "revision", kv.ModRevision, "err", err)
}

// condition is what must hold for a transaction to happen.
type condition struct {
	key       string
	cmp       clientv3.Cmp
	holds     func(*mvccpb.KeyValue) bool // the same as cmp, of a record or nil
	otherwise error
}

// or says which error a transaction returns when c does not hold; without it,
// errRace.
func (c condition) or(err error) condition {
	c.otherwise = err
	return c
}

// absent holds while there is no such key.
func absent(key string) condition {
	return condition{key, clientv3.Compare(clientv3.CreateRevision(key), "=", 0), func(kv *mvccpb.KeyValue) bool { return kv == nil }, errRace}
}

// present holds while there is such a key.
func present(key string) condition {
	return condition{key, clientv3.Compare(clientv3.CreateRevision(key), ">", 0), func(kv *mvccpb.KeyValue) bool { return kv != nil }, errRace}
}

// unchanged holds while the key's last change is at that revision; 0: none.
func unchanged(key string, revision int64) condition {
	return condition{key, clientv3.Compare(clientv3.ModRevision(key), "=", revision), func(kv *mvccpb.KeyValue) bool {
		return kv == nil && revision == 0 || kv != nil && kv.ModRevision == revision
	}, errRace}
}

// commit applies then if all conditions hold. Otherwise it returns the error
// of the first one that does not.
func (s *Store) commit(ctx context.Context, ifs []condition, then ...clientv3.Op) (int64, error) {
	cmps, gets := make([]clientv3.Cmp, len(ifs)), make([]clientv3.Op, len(ifs))
	for i, c := range ifs {
		cmps[i], gets[i] = c.cmp, clientv3.OpGet(c.key, clientv3.WithKeysOnly())
	}
	resp, err := s.client.Txn(ctx).If(cmps...).Then(then...).Else(gets...).Commit()
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	for i, c := range ifs {
		var kv *mvccpb.KeyValue
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			kv = kvs[0]
		}
		if !c.holds(kv) {
			return 0, c.otherwise
		}
	}
	return 0, errRace
}

// Revision returns the newest revision.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	resp, err := s.client.Get(ctx, "meta/", clientv3.WithCountOnly())
	if err != nil {
		return 0, wrap("read revision", err)
	}
	return resp.Header.Revision, nil
}
