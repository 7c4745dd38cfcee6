package state

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"

	root "github.com/roost-run/roost"
)

// CodeSecretsChanged is the code of PutSecrets' error when another set came first.
const CodeSecretsChanged = "secrets_changed"

func secretsUnder(a root.AppName) string { return "secrets/" + string(a) + "/" }

func secretsKey(a root.AppName, version int) string { return secretsUnder(a) + strconv.Itoa(version) }

// secretsRecord is one version of all of an app's secrets. The values are in
// sealed; the rest is what may be told.
type secretsRecord struct {
	V         int            `json:"v"`
	App       string         `json:"app"`
	Version   int            `json:"version"`
	Secrets   []secretRecord `json:"secrets,omitempty"`
	Sealed    []byte         `json:"sealed,omitempty"`
	CreatedAt time.Time      `json:"created_at,omitzero"`
	CreatedBy string         `json:"created_by,omitzero"`
}

type secretRecord struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	UpdatedAt time.Time `json:"updated_at,omitzero"`
	Version   int       `json:"version,omitzero"`
}

func fromSecrets(s root.SecretSet) secretsRecord {
	return secretsRecord{
		secretsVersion, string(s.App), s.Version,
		convert(s.Secrets, func(x root.Secret) secretRecord {
			return secretRecord{x.Name, x.Digest, utc(x.CreatedAt), utc(x.UpdatedAt), x.Version}
		}), s.Sealed, utc(s.CreatedAt), s.CreatedBy,
	}
}

func (r secretsRecord) root() root.SecretSet {
	return root.SecretSet{
		App: root.AppName(r.App), Version: r.Version,
		Secrets: convert(r.Secrets, func(x secretRecord) root.Secret {
			return root.Secret{Name: x.Name, Digest: x.Digest, CreatedAt: x.CreatedAt, UpdatedAt: x.UpdatedAt, Version: x.Version}
		}), Sealed: r.Sealed, CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy,
	}
}

// Secrets reads one version of an app's secrets; kind NotFound when there
// never was such a version or it has been pruned.
func (s *Store) Secrets(ctx context.Context, app root.AppName, version int) (root.SecretSet, error) {
	what := fmt.Sprintf("read secrets of %s, version %d", app, version)
	kv, err := s.get(ctx, secretsKey(app, version))
	if err != nil {
		return root.SecretSet{}, wrap(what, err)
	}
	if kv == nil {
		return root.SecretSet{}, root.Errorf(root.NotFound, "app %s has no version %d of its secrets", app, version)
	}
	var r secretsRecord
	if err := decode(kv.Value, secretsVersion, &r); err != nil {
		return root.SecretSet{}, wrap(what, err)
	}
	return r.root(), nil
}

// PutSecrets stores the next version of an app's secrets and makes it the one
// that machines get from now on, both or neither. The version has to follow
// the app's; kind Conflict, code CodeSecretsChanged, when it no longer does.
func (s *Store) PutSecrets(ctx context.Context, set root.SecretSet) (int64, error) {
	return attempt(ctx, "store secrets of "+string(set.App), func() (int64, error) {
		a, rev, err := s.app(ctx, set.App)
		if err != nil {
			return 0, err
		}
		if a.Secrets != set.Version-1 {
			return 0, &root.Error{Kind: root.Conflict, Code: CodeSecretsChanged, Message: fmt.Sprintf("the secrets of %s changed at the same time; try again", set.App)}
		}
		a.Secrets = set.Version
		return s.commit(ctx, []condition{unchanged(appKey(set.App), rev)},
			clientv3.OpPut(secretsKey(set.App, set.Version), encode(fromSecrets(set))),
			clientv3.OpPut(appKey(set.App), encode(fromApp(a))))
	})
}

// SecretVersions returns the versions of an app's secrets that are stored, in
// order.
func (s *Store) SecretVersions(ctx context.Context, app root.AppName) ([]int, error) {
	var versions []int
	err := s.list(ctx, secretsUnder(app), func(kv *mvccpb.KeyValue) error {
		v, err := strconv.Atoi(path.Base(string(kv.Key)))
		versions = append(versions, v)
		return err
	}, clientv3.WithKeysOnly())
	slices.Sort(versions)
	return versions, err
}

// DropSecrets forgets versions of an app's secrets. The one that the app's
// record names stays.
func (s *Store) DropSecrets(ctx context.Context, app root.AppName, versions ...int) (int64, error) {
	return attempt(ctx, "drop secrets of "+string(app), func() (int64, error) {
		a, rev, err := s.app(ctx, app)
		if err != nil {
			return 0, err
		}
		var then []clientv3.Op
		for _, v := range versions {
			if v != a.Secrets {
				then = append(then, clientv3.OpDelete(secretsKey(app, v)))
			}
		}
		if len(then) == 0 {
			return rev, nil
		}
		return s.commit(ctx, []condition{unchanged(appKey(app), rev)}, then[:min(len(then), maxDrops)]...)
	})
}

// maxDrops bounds a transaction; what is left over goes with the next one.
const maxDrops = 50
