package state

import (
	"context"
	"encoding/hex"
	"fmt"
	"path"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"

	root "github.com/roost-run/roost"
)

func tokenKey(h root.TokenHash) string { return "tokens/" + hex.EncodeToString(h[:]) }

// PutToken stores a token, or replaces its record.
func (s *Store) PutToken(ctx context.Context, t root.Token) (int64, error) {
	resp, err := s.client.Put(ctx, tokenKey(t.Hash), encode(fromToken(t)))
	if err != nil {
		return 0, wrap("store token "+t.ID, err)
	}
	return resp.Header.Revision, nil
}

// Token reads the token with that hash, or nil.
func (s *Store) Token(ctx context.Context, h root.TokenHash) (*root.Token, error) {
	kv, err := s.get(ctx, tokenKey(h))
	if err != nil || kv == nil {
		return nil, wrap("read token", err)
	}
	var r tokenRecord
	if err := decode(kv.Value, tokenVersion, &r); err != nil {
		return nil, wrap("read token", err)
	}
	t := r.root(h)
	return &t, nil
}

// Tokens returns all tokens, in no useful order.
func (s *Store) Tokens(ctx context.Context) ([]root.Token, error) {
	var tokens []root.Token
	err := s.list(ctx, "tokens/", func(kv *mvccpb.KeyValue) error {
		var h root.TokenHash
		raw, err := hex.DecodeString(path.Base(string(kv.Key)))
		if err != nil || copy(h[:], raw) != len(h) {
			return fmt.Errorf("key is no hash: %w", err)
		}
		var r tokenRecord
		if err := decode(kv.Value, tokenVersion, &r); err != nil {
			return err
		}
		tokens = append(tokens, r.root(h))
		return nil
	})
	return tokens, err
}

// DeleteToken forgets a token; kind NotFound when there is none.
func (s *Store) DeleteToken(ctx context.Context, h root.TokenHash) (int64, error) {
	rev, err := s.commit(ctx, []condition{present(tokenKey(h)).or(root.Errorf(root.NotFound, "token not found"))}, clientv3.OpDelete(tokenKey(h)))
	return rev, wrap("delete token", err)
}
