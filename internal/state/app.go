package state

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"

	root "github.com/roost-run/roost"
)

func orgKey(slug root.OrgSlug) string  { return "orgs/" + string(slug) }
func appKey(name root.AppName) string  { return "apps/" + string(name) }
func hostKey(id root.HostID) string    { return "hosts/" + string(id) + "/record" }
func metaKey(key string) string        { return "meta/" + key }
func namesUnder(a root.AppName) string { return "names/" + string(a) + "/" }
func gravesUnder(a root.AppName) string {
	return "tombstones/" + string(a) + "/"
}

func networkKey(org root.OrgSlug, name root.NetworkName) string {
	return "networks/" + string(org) + "/" + string(name)
}

// networkCounter holds the last network id given out, in decimal.
const networkCounter = "counters/network"

// CreateOrg stores a new organisation; kind Conflict, code "name_taken", when
// the slug is taken.
func (s *Store) CreateOrg(ctx context.Context, o root.Org) (int64, error) {
	rev, err := s.commit(ctx, []condition{absent(orgKey(o.Slug)).or(
		&root.Error{Kind: root.Conflict, Code: root.CodeNameTaken, Message: "organisation " + string(o.Slug) + " exists already"})},
		clientv3.OpPut(orgKey(o.Slug), encode(fromOrg(o))))
	return rev, wrap("create organisation "+string(o.Slug), err)
}

// Orgs returns all organisations in order of their slugs.
func (s *Store) Orgs(ctx context.Context) ([]root.Org, error) {
	var orgs []root.Org
	err := s.list(ctx, "orgs/", func(kv *mvccpb.KeyValue) error {
		var r orgRecord
		if err := decode(kv.Value, orgVersion, &r); err != nil {
			return err
		}
		orgs = append(orgs, r.root())
		return nil
	})
	return orgs, err
}

// CreateApp stores a new app; kind Conflict, code "name_taken", when the name
// is taken in any organisation.
func (s *Store) CreateApp(ctx context.Context, a root.App) (int64, error) {
	rev, err := s.commit(ctx, []condition{absent(appKey(a.Name)).or(
		&root.Error{Kind: root.Conflict, Code: root.CodeNameTaken, Message: "app name " + string(a.Name) + " is taken: choose another one"})},
		clientv3.OpPut(appKey(a.Name), encode(fromApp(a))))
	return rev, wrap("create app "+string(a.Name), err)
}

// App reads one app; kind NotFound.
func (s *Store) App(ctx context.Context, name root.AppName) (root.App, error) {
	a, _, err := s.app(ctx, name)
	return a, wrap("read app "+string(name), err)
}

func (s *Store) app(ctx context.Context, name root.AppName) (root.App, int64, error) {
	kv, err := s.get(ctx, appKey(name))
	if err != nil {
		return root.App{}, 0, err
	}
	if kv == nil {
		return root.App{}, 0, errNoApp(name)
	}
	var r appRecord
	if err := decode(kv.Value, appVersion, &r); err != nil {
		return root.App{}, 0, err
	}
	return r.root(), kv.ModRevision, nil
}

func errNoApp(name root.AppName) error { return root.Errorf(root.NotFound, "app %s not found", name) }

// UpdateApp replaces an app's record; kind NotFound when there is none.
func (s *Store) UpdateApp(ctx context.Context, a root.App) (int64, error) {
	rev, err := s.commit(ctx, []condition{present(appKey(a.Name)).or(errNoApp(a.Name))},
		clientv3.OpPut(appKey(a.Name), encode(fromApp(a))))
	return rev, wrap("update app "+string(a.Name), err)
}

// EditApp changes an app's record, whatever else of it changes at the same
// time; kind NotFound. f may run several times and gets a value of its own; its
// error ends the edit.
func (s *Store) EditApp(ctx context.Context, name root.AppName, f func(*root.App) error) (int64, error) {
	return attempt(ctx, "edit app "+string(name), func() (int64, error) {
		a, rev, err := s.app(ctx, name)
		if err != nil {
			return 0, err
		}
		before := encode(fromApp(a))
		if err := f(&a); err != nil {
			return 0, err
		}
		after := encode(fromApp(a))
		if after == before {
			return rev, nil
		}
		return s.commit(ctx, []condition{unchanged(appKey(name), rev)}, clientv3.OpPut(appKey(name), after))
	})
}

// DeleteApp forgets an app, its secrets, releases with the webhooks that are
// to be told, and tombstones; kind Precondition while it has machines, NotFound
// when there is no such app.
func (s *Store) DeleteApp(ctx context.Context, name root.AppName) (int64, error) {
	what := "delete app " + string(name)
	resp, err := s.client.Txn(ctx).
		If(present(appKey(name)).cmp,
			// Holds for every key under the prefix only if there is none.
			clientv3.Compare(clientv3.CreateRevision(namesUnder(name)).WithPrefix(), "=", 0)).
		Then(clientv3.OpDelete(appKey(name)), clientv3.OpDelete(gravesUnder(name), clientv3.WithPrefix()),
			clientv3.OpDelete(secretsUnder(name), clientv3.WithPrefix()),
			clientv3.OpDelete(releasesUnder(name), clientv3.WithPrefix()), clientv3.OpDelete(rolloutUnder(name), clientv3.WithPrefix()),
			clientv3.OpDelete(webhooksUnder(name), clientv3.WithPrefix())).
		Else(clientv3.OpGet(appKey(name), clientv3.WithCountOnly())).
		Commit()
	if err != nil {
		return 0, wrap(what, err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	if resp.Responses[0].GetResponseRange().Count == 0 {
		return 0, errNoApp(name)
	}
	return 0, root.Errorf(root.Precondition, "app %s still has machines", name)
}

// EnsureNetwork returns the organisation's network of that name and makes it
// at the first call, with an id that no network ever had.
func (s *Store) EnsureNetwork(ctx context.Context, org root.OrgSlug, name root.NetworkName, now time.Time) (root.Network, error) {
	var n root.Network
	_, err := attempt(ctx, "network "+string(name), func() (int64, error) {
		kv, err := s.get(ctx, networkKey(org, name))
		if err != nil {
			return 0, err
		}
		if kv != nil {
			var r networkRecord
			if err := decode(kv.Value, networkVersion, &r); err != nil {
				return 0, err
			}
			n = r.root()
			return kv.ModRevision, nil
		}
		last, rev := uint64(0), int64(0)
		counter, err := s.get(ctx, networkCounter)
		if err != nil {
			return 0, err
		}
		if counter != nil {
			rev = counter.ModRevision
			if last, err = strconv.ParseUint(string(counter.Value), 10, 32); err != nil {
				return 0, err
			}
		}
		n = root.Network{Org: org, Name: name, ID: uint32(last) + 1, CreatedAt: now.UTC()}
		return s.commit(ctx, []condition{absent(networkKey(org, name)), unchanged(networkCounter, rev)},
			clientv3.OpPut(networkKey(org, name), encode(fromNetwork(n))),
			clientv3.OpPut(networkCounter, strconv.FormatUint(last+1, 10)))
	})
	return n, err
}

// PutHost stores a host's record.
func (s *Store) PutHost(ctx context.Context, h root.Host) (int64, error) {
	resp, err := s.client.Put(ctx, hostKey(h.ID), encode(fromHost(h)))
	if err != nil {
		return 0, wrap("store host "+string(h.ID), err)
	}
	return resp.Header.Revision, nil
}

// DeleteHost forgets a host; one that is not there is no error.
func (s *Store) DeleteHost(ctx context.Context, id root.HostID) (int64, error) {
	resp, err := s.client.Delete(ctx, "hosts/"+string(id)+"/", clientv3.WithPrefix())
	if err != nil {
		return 0, wrap("delete host "+string(id), err)
	}
	return resp.Header.Revision, nil
}

// Meta reads a small value of the cluster: its id, its keys. Nil when it was
// never set.
func (s *Store) Meta(ctx context.Context, key string) ([]byte, error) {
	kv, err := s.get(ctx, metaKey(key))
	if err != nil || kv == nil {
		return nil, wrap("read "+metaKey(key), err)
	}
	return kv.Value, nil
}

// PutMeta sets a value.
func (s *Store) PutMeta(ctx context.Context, key string, value []byte) (int64, error) {
	resp, err := s.client.Put(ctx, metaKey(key), string(value))
	if err != nil {
		return 0, wrap("store "+metaKey(key), err)
	}
	return resp.Header.Revision, nil
}

// EnsureMeta sets a value unless there is one, and returns the one that holds:
// whoever comes first decides.
func (s *Store) EnsureMeta(ctx context.Context, key string, value []byte) ([]byte, error) {
	resp, err := s.client.Txn(ctx).If(absent(metaKey(key)).cmp).
		Then(clientv3.OpPut(metaKey(key), string(value))).
		Else(clientv3.OpGet(metaKey(key))).Commit()
	if err != nil {
		return nil, wrap("store "+metaKey(key), err)
	}
	if resp.Succeeded {
		return value, nil
	}
	return resp.Responses[0].GetResponseRange().Kvs[0].Value, nil
}
