package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	root "github.com/roost-run/roost"
)

const (
	hostnamesPrefix    = "hostnames/"
	certificatesPrefix = "certificates/"
	acmePrefix         = "acme/"
)

func hostnameKey(h string) string       { return hostnamesPrefix + h }
func certificatesUnder(h string) string { return certificatesPrefix + h + "/" }
func uploadKey(h string) string         { return certificatesUnder(h) + "upload" }
func attemptKey(h string) string        { return certificatesUnder(h) + "attempt" }
func acmeKey(key string) string         { return acmePrefix + key }
func lockKey(name string) string        { return "locks/" + name }

type hostnameRecord struct {
	V         int       `json:"v"`
	Name      string    `json:"name"`
	App       string    `json:"app"`
	ACME      bool      `json:"acme,omitzero"`
	CreatedAt time.Time `json:"created_at,omitzero"`
}

func fromHostname(h root.Hostname) hostnameRecord {
	return hostnameRecord{hostnameVersion, h.Name, string(h.App), h.ACME, utc(h.CreatedAt)}
}

func (r hostnameRecord) root() root.Hostname {
	return root.Hostname{Name: r.Name, App: root.AppName(r.App), ACME: r.ACME, CreatedAt: r.CreatedAt}
}

type uploadRecord struct {
	V         int       `json:"v"`
	Hostname  string    `json:"hostname"`
	Chain     string    `json:"chain"`
	Key       []byte    `json:"key"`
	CreatedAt time.Time `json:"created_at,omitzero"`
}

func fromUpload(u root.Upload) uploadRecord {
	return uploadRecord{uploadVersion, u.Hostname, u.Chain, u.Key, utc(u.CreatedAt)}
}

func (r uploadRecord) root() root.Upload {
	return root.Upload{Hostname: r.Hostname, Chain: r.Chain, Key: r.Key, CreatedAt: r.CreatedAt}
}

type attemptRecord struct {
	V        int       `json:"v"`
	Hostname string    `json:"hostname"`
	At       time.Time `json:"at,omitzero"`
	Failures int       `json:"failures,omitzero"`
	Next     time.Time `json:"next,omitzero"`
	Code     string    `json:"code,omitzero"`
	Message  string    `json:"message,omitzero"`
	Remedy   string    `json:"remedy,omitzero"`
}

func fromAttempt(a root.CertAttempt) attemptRecord {
	return attemptRecord{attemptVersion, a.Hostname, utc(a.At), a.Failures, utc(a.Next), a.Code, a.Message, a.Remedy}
}

func (r attemptRecord) root() root.CertAttempt {
	return root.CertAttempt{Hostname: r.Hostname, At: r.At, Failures: r.Failures, Next: r.Next, Code: r.Code, Message: r.Message, Remedy: r.Remedy}
}

// PutHostname gives an app a hostname, or changes what is known of one it has;
// kind Conflict, code "hostname_taken", when another app has it, or another
// organisation a wildcard over it or a name below it, NotFound without the app,
// Precondition while it is being deleted.
func (s *Store) PutHostname(ctx context.Context, h root.Hostname) (int64, error) {
	return attempt(ctx, "add hostname "+h.Name, func() (int64, error) {
		app, appRev, err := s.app(ctx, h.App)
		if err != nil {
			return 0, err
		}
		if app.Deleting {
			return 0, root.Errorf(root.Precondition, "app %s is being deleted", h.App)
		}
		kv, err := s.get(ctx, hostnameKey(h.Name))
		if err != nil {
			return 0, err
		}
		rev := int64(0)
		ifs := []condition{unchanged(appKey(h.App), appRev)}
		if kv == nil {
			near, err := s.apart(ctx, h.Name, app.Org)
			if err != nil {
				return 0, err
			}
			ifs = append(ifs, near...)
		} else {
			rev = kv.ModRevision
			var r hostnameRecord
			if err := decode(kv.Value, hostnameVersion, &r); err != nil {
				return 0, err
			}
			if r.App != string(h.App) {
				return 0, &root.Error{Kind: root.Conflict, Code: root.CodeHostnameTaken, Message: fmt.Sprintf("hostname %s leads to another app already", h.Name)}
			}
			h.CreatedAt = r.CreatedAt
		}
		if !slices.Contains(app.Hostnames, h.Name) {
			app.Hostnames = append(app.Hostnames, h.Name)
			slices.Sort(app.Hostnames)
		}
		return s.commit(ctx, append(ifs, unchanged(hostnameKey(h.Name), rev)),
			clientv3.OpPut(appKey(h.App), encode(fromApp(app))), clientv3.OpPut(hostnameKey(h.Name), encode(fromHostname(h))))
	})
}

// apart refuses a new name where another organisation has the wildcard over it,
// or one of the names that it would cover: requests for a name below somebody's
// domain would go to a stranger, who had their certificate. The conditions keep
// it so until the name is stored.
func (s *Store) apart(ctx context.Context, name string, org root.OrgSlug) ([]condition, error) {
	_, below, _ := strings.Cut(name, ".")
	if !strings.HasPrefix(name, "*.") {
		wildcard := "*." + below
		kv, err := s.get(ctx, hostnameKey(wildcard))
		if err != nil {
			return nil, err
		}
		if kv == nil {
			return []condition{unchanged(hostnameKey(wildcard), 0)}, nil
		}
		var r hostnameRecord
		if err := decode(kv.Value, hostnameVersion, &r); err != nil {
			return nil, err
		}
		return []condition{unchanged(hostnameKey(wildcard), kv.ModRevision)}, s.sameOrg(ctx, name, r, org)
	}
	all, err := s.Hostnames(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		if _, rest, _ := strings.Cut(h.Name, "."); rest == below {
			if err := s.sameOrg(ctx, name, fromHostname(h), org); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// sameOrg refuses name if near belongs to an app of an organisation other than org.
func (s *Store) sameOrg(ctx context.Context, name string, near hostnameRecord, org root.OrgSlug) error {
	app, _, err := s.app(ctx, root.AppName(near.App))
	if err != nil && !root.IsKind(err, root.NotFound) {
		return err
	}
	if err == nil && app.Org == org {
		return nil
	}
	return &root.Error{Kind: root.Conflict, Code: root.CodeHostnameTaken, Message: fmt.Sprintf("hostname %s cannot be added: another organisation has %s", name, near.Name)}
}

// DeleteHostname takes a hostname away from an app, with its certificates;
// kind NotFound when the app has no such one.
func (s *Store) DeleteHostname(ctx context.Context, app root.AppName, name string) (int64, error) {
	return attempt(ctx, "remove hostname "+name, func() (int64, error) {
		a, appRev, err := s.app(ctx, app)
		if err != nil {
			return 0, err
		}
		i := slices.Index(a.Hostnames, name)
		if i < 0 {
			return 0, root.Errorf(root.NotFound, "app %s has no hostname %s", app, name)
		}
		a.Hostnames = slices.Delete(a.Hostnames, i, i+1)
		return s.commit(ctx, []condition{unchanged(appKey(app), appRev)},
			clientv3.OpPut(appKey(app), encode(fromApp(a))), clientv3.OpDelete(hostnameKey(name)),
			clientv3.OpDelete(certificatesUnder(name), clientv3.WithPrefix()))
	})
}

// Hostname reads one hostname; kind NotFound.
func (s *Store) Hostname(ctx context.Context, name string) (root.Hostname, error) {
	var r hostnameRecord
	if err := s.record(ctx, hostnameKey(name), hostnameVersion, &r, "hostname "+name); err != nil {
		return root.Hostname{}, err
	}
	return r.root(), nil
}

// Hostnames returns all hostnames in order.
func (s *Store) Hostnames(ctx context.Context) ([]root.Hostname, error) {
	var out []root.Hostname
	err := s.list(ctx, hostnamesPrefix, func(kv *mvccpb.KeyValue) error {
		var r hostnameRecord
		if err := decode(kv.Value, hostnameVersion, &r); err != nil {
			return err
		}
		out = append(out, r.root())
		return nil
	})
	return out, err
}

// record reads one record; kind NotFound when there is none.
func (s *Store) record(ctx context.Context, key string, version int, out any, what string) error { //nolint:unparam // the next version of a record is not far
	kv, err := s.get(ctx, key)
	if err != nil {
		return wrap("read "+what, err)
	}
	if kv == nil {
		return root.Errorf(root.NotFound, "%s not found", what)
	}
	return wrap("read "+what, decode(kv.Value, version, out))
}

// PutUpload stores an uploaded certificate; kind NotFound without its hostname.
func (s *Store) PutUpload(ctx context.Context, u root.Upload) (int64, error) {
	rev, err := s.commit(ctx, []condition{present(hostnameKey(u.Hostname)).or(root.Errorf(root.NotFound, "hostname %s not found", u.Hostname))},
		clientv3.OpPut(uploadKey(u.Hostname), encode(fromUpload(u))))
	return rev, wrap("store certificate of "+u.Hostname, err)
}

// Upload reads an uploaded certificate; kind NotFound.
func (s *Store) Upload(ctx context.Context, hostname string) (root.Upload, error) {
	var r uploadRecord
	if err := s.record(ctx, uploadKey(hostname), uploadVersion, &r, "uploaded certificate of "+hostname); err != nil {
		return root.Upload{}, err
	}
	return r.root(), nil
}

// DeleteUpload forgets an uploaded certificate; kind NotFound.
func (s *Store) DeleteUpload(ctx context.Context, hostname string) (int64, error) {
	rev, err := s.commit(ctx, []condition{present(uploadKey(hostname)).or(root.Errorf(root.NotFound, "hostname %s has no uploaded certificate", hostname))},
		clientv3.OpDelete(uploadKey(hostname)))
	return rev, wrap("remove certificate of "+hostname, err)
}

// PutAttempt notes how obtaining a certificate went; for a hostname that is
// gone meanwhile it notes nothing.
func (s *Store) PutAttempt(ctx context.Context, a root.CertAttempt) error {
	_, err := s.commit(ctx, []condition{present(hostnameKey(a.Hostname)).or(root.Errorf(root.NotFound, "hostname %s not found", a.Hostname))},
		clientv3.OpPut(attemptKey(a.Hostname), encode(fromAttempt(a))))
	if root.IsKind(err, root.NotFound) {
		return nil
	}
	return wrap("note an attempt for "+a.Hostname, err)
}

// Attempt reads how the last attempt went; the zero value without one.
func (s *Store) Attempt(ctx context.Context, hostname string) (root.CertAttempt, error) {
	var r attemptRecord
	err := s.record(ctx, attemptKey(hostname), attemptVersion, &r, "attempt for "+hostname)
	if root.IsKind(err, root.NotFound) {
		return root.CertAttempt{Hostname: hostname}, nil
	}
	return r.root(), err
}

// WatchCertificates calls f with the names of the hostnames whose records or
// certificates changed: first with none, which means all, and so again when
// history was lost. It returns the error of f or of the watch, or the cause of
// ctx's end. Calls of f do not overlap.
func (s *Store) WatchCertificates(ctx context.Context, f func(hostnames []string) error) error {
	for {
		rev, err := s.Revision(ctx)
		if err != nil {
			return err
		}
		if err := f(nil); err != nil {
			return err
		}
		err = s.watchCertificates(ctx, rev, f)
		if ctx.Err() != nil {
			return fmt.Errorf("watch certificates: %w", context.Cause(ctx))
		}
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return wrap("watch certificates", err)
		}
	}
}

func (s *Store) watchCertificates(ctx context.Context, rev int64, f func([]string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch on the server
	// One watch over all keys from the first prefix to the last would see every
	// status; the three are far apart.
	events := make(chan clientv3.WatchResponse)
	for _, prefix := range []string{hostnamesPrefix, certificatesPrefix, acmePrefix + "certificates/"} {
		w := s.client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
		go func() { // ends with the watch, which ends with ctx
			for resp := range w {
				select {
				case events <- resp:
				case <-ctx.Done():
					return
				}
			}
			select {
			case events <- clientv3.WatchResponse{Canceled: true}:
			case <-ctx.Done():
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case resp := <-events:
			if err := resp.Err(); err != nil {
				return err
			}
			if resp.Canceled {
				return root.Errorf(root.Unavailable, "the watch ended")
			}
			var names []string
			for _, e := range resp.Events {
				if name := hostnameOf(string(e.Kv.Key)); name != "" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
			if len(names) == 0 {
				continue
			}
			if err := f(names); err != nil {
				return err
			}
		}
	}
}

// hostnameOf returns the hostname that a key is about, "" for none.
func hostnameOf(key string) string {
	if rest, ok := strings.CutPrefix(key, hostnamesPrefix); ok {
		return rest
	}
	if rest, ok := strings.CutPrefix(key, certificatesPrefix); ok {
		name, _, _ := strings.Cut(rest, "/")
		return name
	}
	// acme/certificates/<issuer>/<hostname>/<file>
	if parts := strings.Split(key, "/"); len(parts) == 5 && parts[0] == "acme" && parts[1] == "certificates" {
		return parts[3]
	}
	return ""
}

// ACMEFile is a value that the ACME client keeps, with the time of its last change.
type ACMEFile struct {
	Key      string // without this package's prefix
	Value    []byte
	Modified time.Time
}

type acmeRecord struct {
	V        int       `json:"v"`
	Modified time.Time `json:"modified"`
	Value    []byte    `json:"value"`
}

// PutACME stores a value of the ACME client.
func (s *Store) PutACME(ctx context.Context, f ACMEFile) error {
	_, err := s.client.Put(ctx, acmeKey(f.Key), encode(acmeRecord{acmeVersion, utc(f.Modified), f.Value}))
	return wrap("store "+f.Key, err)
}

// ACME reads a value of the ACME client; kind NotFound.
func (s *Store) ACME(ctx context.Context, key string) (ACMEFile, error) {
	var r acmeRecord
	if err := s.record(ctx, acmeKey(key), acmeVersion, &r, key); err != nil {
		return ACMEFile{}, err
	}
	return ACMEFile{Key: key, Value: r.Value, Modified: r.Modified}, nil
}

// DeleteACME forgets a value and everything below it.
func (s *Store) DeleteACME(ctx context.Context, key string) error {
	_, err := s.client.Txn(ctx).Then(clientv3.OpDelete(acmeKey(key)), clientv3.OpDelete(acmeKey(strings.TrimSuffix(key, "/")+"/"), clientv3.WithPrefix())).Commit()
	return wrap("remove "+key, err)
}

// ACMEKeys lists the keys below a directory, or all for "".
func (s *Store) ACMEKeys(ctx context.Context, dir string) ([]string, error) {
	prefix := acmeKey("")
	if dir = strings.Trim(dir, "/"); dir != "" {
		prefix = acmeKey(dir) + "/"
	}
	var keys []string
	err := s.list(ctx, prefix, func(kv *mvccpb.KeyValue) error {
		keys = append(keys, strings.TrimPrefix(string(kv.Key), acmePrefix))
		return nil
	}, clientv3.WithKeysOnly())
	return keys, err
}

// LockHolder is who holds a lock: one run of a host's control process.
type LockHolder struct {
	Host root.HostID
	Run  string
}

type lockRecord struct {
	V     int       `json:"v"`
	Host  string    `json:"host"`
	Run   string    `json:"run"`
	Until time.Time `json:"until"`
}

// TryLock takes a lock until a time and reports whether it did. A lock whose
// time is over is free, and so is one of an earlier run of the same host's
// control process: that one has ended.
func (s *Store) TryLock(ctx context.Context, name string, h LockHolder, now, until time.Time) (bool, error) {
	kv, err := s.get(ctx, lockKey(name))
	if err != nil {
		return false, wrap("lock "+name, err)
	}
	rev := int64(0)
	if kv != nil {
		rev = kv.ModRevision
		var r lockRecord
		if err := decode(kv.Value, lockVersion, &r); err != nil {
			return false, wrap("lock "+name, err)
		}
		ended := r.Host == string(h.Host) && r.Run != h.Run
		if !ended && now.Before(r.Until) {
			return false, nil
		}
	}
	_, err = s.commit(ctx, []condition{unchanged(lockKey(name), rev)}, clientv3.OpPut(lockKey(name), encode(lockRecord{lockVersion, string(h.Host), h.Run, utc(until)})))
	if errors.Is(err, errRace) {
		return false, nil
	}
	return err == nil, wrap("lock "+name, err)
}

// Unlock gives a lock back; one that somebody else holds meanwhile stays.
func (s *Store) Unlock(ctx context.Context, name string, h LockHolder) error {
	kv, err := s.get(ctx, lockKey(name))
	if err != nil || kv == nil {
		return wrap("unlock "+name, err)
	}
	var r lockRecord
	if err := decode(kv.Value, lockVersion, &r); err != nil {
		return wrap("unlock "+name, err)
	}
	if r.Host != string(h.Host) || r.Run != h.Run {
		return nil
	}
	_, err = s.commit(ctx, []condition{unchanged(lockKey(name), kv.ModRevision)}, clientv3.OpDelete(lockKey(name)))
	if errors.Is(err, errRace) {
		return nil
	}
	return wrap("unlock "+name, err)
}
