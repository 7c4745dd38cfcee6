package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	root "github.com/roost-run/roost"
)

// Snapshot writes a consistent copy of everything to w; Restore reads it. It
// is etcd's own format: the backend's file and its SHA-256.
func (m *Member) Snapshot(ctx context.Context, w io.Writer) error {
	r, err := m.client.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	_, err = io.Copy(w, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

const (
	// lockWait is how long a snapshot's file may be locked by another reader.
	lockWait = 5 * time.Second
	// restoreBatch is how many keys share a transaction, within etcd's limit.
	restoreBatch = 100
	// restoreBytes bounds the values in one transaction.
	restoreBytes = 1 << 20
)

// Restore makes the state in o.Dir, where there must be none, from a snapshot
// file: the keys as they were, without history, and without those that were to
// expire. A file that is cut or damaged gives kind Invalid and leaves nothing.
func Restore(ctx context.Context, file string, o Options) (err error) {
	if _, err := os.Stat(filepath.Join(o.Dir, dataDir)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(root.Errorf(root.Precondition, "%s holds a state already: move it away before restoring another", o.Dir), err)
	}
	if err := verifySnapshot(file); err != nil {
		return err
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockWait})
	if err != nil {
		return damaged(file, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	live, err := liveRevisions(db)
	if err != nil {
		return damaged(file, err)
	}
	m, err := Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, m.Close())
		if err != nil {
			err = errors.Join(err, os.RemoveAll(filepath.Join(o.Dir, dataDir)))
		}
	}()
	return m.putAll(ctx, db, live)
}

func damaged(file string, err error) error {
	return &root.Error{Kind: root.Invalid, Message: "the snapshot " + file + " is damaged or not one: use another", Err: err}
}

// verifySnapshot compares the file's end with the hash of what is before it.
func verifySnapshot(file string) (err error) {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	// The backend's file is a whole number of sectors.
	if info.Size()%512 != sha256.Size {
		return damaged(file, errors.New("its length is wrong"))
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, info.Size()-sha256.Size); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	want, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if !bytes.Equal(h.Sum(nil), want) {
		return damaged(file, errors.New("its checksum is wrong"))
	}
	return nil
}

// keyBucket is where etcd's backend holds all revisions of all keys, in order
// of revision.
var keyBucket = []byte("key")

// revisionLen is the length of a key in that bucket: main, '_', sub; a
// deletion has a mark behind it.
const revisionLen = 17

// liveRevisions returns where in the backend the current value of each key is.
func liveRevisions(db *bolt.DB) (map[string][]byte, error) {
	live := map[string][]byte{}
	err := db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(keyBucket)
		if b == nil {
			return errors.New("it has no keys")
		}
		return b.ForEach(func(rev, value []byte) error {
			if len(rev) < revisionLen {
				return fmt.Errorf("malformed revision %x", rev)
			}
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(value, &kv); err != nil {
				return fmt.Errorf("revision %d: %w", binary.BigEndian.Uint64(rev), err)
			}
			if len(rev) > revisionLen || kv.Lease != 0 {
				delete(live, string(kv.Key))
			} else {
				live[string(kv.Key)] = bytes.Clone(rev)
			}
			return nil
		})
	})
	return live, err
}

// putAll copies the live keys into the member.
func (m *Member) putAll(ctx context.Context, db *bolt.DB, live map[string][]byte) error {
	return db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(keyBucket)
		var ops []clientv3.Op
		size := 0
		flush := func() error {
			if len(ops) == 0 {
				return nil
			}
			_, err := m.client.Txn(ctx).Then(ops...).Commit()
			ops, size = nil, 0
			return err
		}
		for key, rev := range live {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(b.Get(rev), &kv); err != nil {
				return err
			}
			ops = append(ops, clientv3.OpPut(key, string(kv.Value)))
			if size += len(kv.Value); len(ops) == restoreBatch || size > restoreBytes {
				if err := flush(); err != nil {
					return fmt.Errorf("restore: %w", err)
				}
			}
		}
		if err := flush(); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		return nil
	})
}
