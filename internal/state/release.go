package state

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"go.etcd.io/etcd/api/v3/mvccpb"

	root "github.com/roost-run/roost"
)

func releasesUnder(app root.AppName) string { return "releases/" + string(app) + "/" }

// releaseUnder has the version in eight digits: keys are in order of it.
func releaseUnder(app root.AppName, version int) string {
	return fmt.Sprintf("%s%08d/", releasesUnder(app), version)
}

func releaseKey(app root.AppName, version int) string { return releaseUnder(app, version) + "record" }
func progressKey(app root.AppName, version int) string {
	return releaseUnder(app, version) + "progress"
}
func releaseEventsUnder(app root.AppName, version int) string {
	return releaseUnder(app, version) + "events/"
}

const rolloutsPrefix = "rollouts/"

func rolloutUnder(app root.AppName) string { return rolloutsPrefix + string(app) + "/" }
func journalKey(app root.AppName) string   { return rolloutUnder(app) + "journal" }
func ownerKey(app root.AppName) string     { return rolloutUnder(app) + "owner" }
func cancelKey(app root.AppName) string    { return rolloutUnder(app) + "cancel" }
func formersUnder(app root.AppName) string { return rolloutUnder(app) + "before/" }

const webhooksPrefix = "webhooks/"

func webhooksUnder(app root.AppName) string { return webhooksPrefix + string(app) + "/" }

func webhookKey(app root.AppName, version int) string {
	return fmt.Sprintf("%s%08d", webhooksUnder(app), version)
}

// CreateRelease stores r as the app's next version, with a rollout that is to
// begin, and returns it with that version. One rollout of an app at a time:
// kind Conflict, code "release_in_progress", names the one under way. NotFound
// and Precondition as in CreateMachine.
func (s *Store) CreateRelease(ctx context.Context, r root.Release) (root.Release, int64, error) {
	rev, err := attempt(ctx, "create release of "+string(r.App), func() (int64, error) {
		app, _, err := s.app(ctx, r.App)
		if err != nil {
			return 0, err
		}
		if app.Deleting {
			return 0, root.Errorf(root.Precondition, "app %s is being deleted and takes no releases", r.App)
		}
		running, _, err := s.rollout(ctx, r.App)
		if err != nil {
			return 0, err
		}
		if running != nil {
			return 0, s.releaseRunning(ctx, r.App, running.Version)
		}
		last, err := s.lastRelease(ctx, r.App)
		if err != nil {
			return 0, err
		}
		r.Version = last + 1
		j := root.Rollout{App: r.App, Version: r.Version, Former: app.Release}
		return s.commit(ctx, []condition{present(appKey(r.App)).or(errNoApp(r.App)), absent(journalKey(r.App)), absent(releaseKey(r.App, r.Version))},
			clientv3.OpPut(releaseKey(r.App, r.Version), encode(fromRelease(r))),
			clientv3.OpPut(progressKey(r.App, r.Version), encode(fromProgress(r.Progress))),
			clientv3.OpPut(journalKey(r.App), encode(fromRollout(j))))
	})
	return r, rev, err
}

// releaseRunning says which rollout is under way, whose and since when.
func (s *Store) releaseRunning(ctx context.Context, app root.AppName, version int) error {
	r, err := s.Release(ctx, app, version)
	if err != nil && !root.IsKind(err, root.NotFound) {
		return err
	}
	whose := ""
	if err == nil {
		whose = fmt.Sprintf(" (%s by %s, since %s)", r.Reason, r.Author, r.CreatedAt.UTC().Format("15:04:05 UTC"))
		if r.Description != "" {
			whose = fmt.Sprintf(" (%s by %s, %q, since %s)", r.Reason, r.Author, r.Description, r.CreatedAt.UTC().Format("15:04:05 UTC"))
		}
	}
	return &root.Error{Kind: root.Conflict, Code: root.CodeReleaseRunning, Message: fmt.Sprintf(
		"release v%d of %s%s is being rolled out: watch it with \"roost releases watch v%d\", or end it with \"roost releases cancel v%d\"", version, app, whose, version, version)}
}

// lastRelease is the newest release's version, 0 without any.
func (s *Store) lastRelease(ctx context.Context, app root.AppName) (int, error) {
	resp, err := s.client.Get(ctx, releasesUnder(app), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	v, _, err := versionOf(app, string(resp.Kvs[0].Key))
	return v, err
}

func versionOf(app root.AppName, key string) (version int, part string, err error) {
	number, part, _ := strings.Cut(strings.TrimPrefix(key, releasesUnder(app)), "/")
	version, err = strconv.Atoi(number)
	return version, part, err
}

// Releases returns an app's releases, the newest first.
func (s *Store) Releases(ctx context.Context, app root.AppName) ([]root.Release, error) {
	versions, err := s.releaseVersions(ctx, app)
	if err != nil {
		return nil, err
	}
	var list []root.Release
	for _, v := range slices.Backward(versions) {
		r, err := s.Release(ctx, app, v)
		switch {
		case root.IsKind(err, root.NotFound): // trimmed this moment
		case err != nil && root.KindOf(err) != root.Internal:
			return nil, err
		case err != nil:
			s.log.Error("skipped an unreadable release", "app", app, "release", v, "err", err)
		default:
			list = append(list, r)
		}
	}
	return list, nil
}

// releaseVersions lists an app's releases in order, without reading them.
func (s *Store) releaseVersions(ctx context.Context, app root.AppName) ([]int, error) {
	var versions []int
	err := s.list(ctx, releasesUnder(app), func(kv *mvccpb.KeyValue) error {
		v, part, err := versionOf(app, string(kv.Key))
		if err == nil && part == "record" {
			versions = append(versions, v)
		}
		return err
	}, clientv3.WithKeysOnly())
	return versions, err
}

// Release reads one release; kind NotFound.
func (s *Store) Release(ctx context.Context, app root.AppName, version int) (root.Release, error) {
	what := fmt.Sprintf("read release v%d of %s", version, app)
	resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(releaseKey(app, version)), clientv3.OpGet(progressKey(app, version))).Commit()
	if err != nil {
		return root.Release{}, wrap(what, err)
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return root.Release{}, root.Errorf(root.NotFound, "app %s has no release v%d", app, version)
	}
	var rec releaseRecord
	if err := decode(kvs[0].Value, releaseVersion, &rec); err != nil {
		return root.Release{}, wrap(what, err)
	}
	r := rec.root()
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		var p progressRecord
		if err := decode(kvs[0].Value, progressVersion, &p); err != nil {
			return root.Release{}, wrap(what, err)
		}
		r.Progress = p.root()
	}
	return r, nil
}

// TrimReleases removes an app's oldest releases beyond the newest keep, never
// one that spare holds, and returns the versions removed.
func (s *Store) TrimReleases(ctx context.Context, app root.AppName, keep int, spare ...int) ([]int, error) {
	versions, err := s.releaseVersions(ctx, app)
	if err != nil {
		return nil, err
	}
	var removed []int
	for _, v := range versions[:max(0, len(versions)-keep)] {
		if slices.Contains(spare, v) {
			continue
		}
		if _, err := s.client.Delete(ctx, releaseUnder(app, v), clientv3.WithPrefix()); err != nil {
			return removed, wrap(fmt.Sprintf("remove release v%d of %s", v, app), err)
		}
		removed = append(removed, v)
	}
	return removed, nil
}

// SetProgress records how far a release has come; kind NotFound.
func (s *Store) SetProgress(ctx context.Context, app root.AppName, version int, p root.Progress) (int64, error) {
	rev, err := s.commit(ctx, []condition{present(releaseKey(app, version)).or(root.Errorf(root.NotFound, "app %s has no release v%d", app, version))},
		clientv3.OpPut(progressKey(app, version), encode(fromProgress(p))))
	return rev, wrap(fmt.Sprintf("record progress of release v%d of %s", version, app), err)
}

// Rollouts returns the rollouts under way.
func (s *Store) Rollouts(ctx context.Context) ([]root.Rollout, error) {
	var all []root.Rollout
	err := s.list(ctx, rolloutsPrefix, func(kv *mvccpb.KeyValue) error {
		if !strings.HasSuffix(string(kv.Key), "/journal") {
			return nil
		}
		var r rolloutRecord
		if err := decode(kv.Value, rolloutVersion, &r); err != nil {
			s.unreadable(kv, err) // it must not hold up those of other apps
			return nil
		}
		all = append(all, r.root())
		return nil
	})
	return all, err
}

// Rollout returns the rollout of an app that is under way, or nil.
func (s *Store) Rollout(ctx context.Context, app root.AppName) (*root.Rollout, error) {
	r, _, err := s.rollout(ctx, app)
	return r, wrap("read rollout of "+string(app), err)
}

func (s *Store) rollout(ctx context.Context, app root.AppName) (*root.Rollout, int64, error) {
	kv, err := s.get(ctx, journalKey(app))
	if err != nil || kv == nil {
		return nil, 0, err
	}
	var rec rolloutRecord
	if err := decode(kv.Value, rolloutVersion, &rec); err != nil {
		return nil, 0, err
	}
	r := rec.root()
	return &r, kv.ModRevision, nil
}

// ownedBy holds while host owns the app's rollout: see HoldRollout. It comes
// last among the conditions of a transaction.
func ownedBy(app root.AppName, host root.HostID) condition {
	return condition{ownerKey(app), clientv3.Compare(clientv3.Value(ownerKey(app)), "=", string(host)),
		func(*mvccpb.KeyValue) bool { return false }, // the other reading has keys only, and this one did not hold
		root.Errorf(root.Conflict, "the rollout of %s is another host's", app)}
}

// ownerTTL is how long a host that has gone keeps its rollouts from others.
const ownerTTL = 10 * time.Second

// errOwnerLost ends what runs under HoldRollout.
var errOwnerLost = root.Errorf(root.Unavailable, "the rollout could not be kept from other hosts: the control state did not answer in time")

// HoldRollout runs f while host is the one that carries out the app's
// rollout, and returns its error. It begins at once when the host was that
// already (its process restarted) or nobody is; kind Conflict while another
// host is, NotFound without rollout. f's context ends when the ownership is
// lost. It ends itself with FinishRollout, or some seconds after f.
func (s *Store) HoldRollout(ctx context.Context, app root.AppName, host root.HostID, f func(context.Context) error) error {
	what := "own rollout of " + string(app)
	lease, err := s.client.Grant(ctx, int64(ownerTTL/time.Second))
	if err != nil {
		return wrap(what, err)
	}
	put := clientv3.OpPut(ownerKey(app), string(host), clientv3.WithLease(lease.ID))
	free := clientv3.OpTxn([]clientv3.Cmp{absent(ownerKey(app)).cmp}, []clientv3.Op{put},
		[]clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{ownedBy(app, host).cmp}, []clientv3.Op{put}, nil)})
	resp, err := s.client.Txn(ctx).If(present(journalKey(app)).cmp).Then(free).Commit()
	if err != nil {
		return wrap(what, err)
	}
	if !resp.Succeeded {
		return root.Errorf(root.NotFound, "%s: there is none", what)
	}
	if r := resp.Responses[0].GetResponseTxn(); !r.Succeeded && !r.Responses[0].GetResponseTxn().Succeeded {
		return root.Errorf(root.Conflict, "%s: another host has it", what)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	alive, err := s.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		cancel(nil)
		return wrap(what, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range alive { //nolint:revive // the answers only have to be taken
		}
		cancel(errOwnerLost)
	}()
	err = f(ctx)
	cancel(nil)
	<-ended
	return err
}

// SaveRollout stores the journal of a rollout that host owns; kind Conflict
// when it does not.
func (s *Store) SaveRollout(ctx context.Context, host root.HostID, r root.Rollout) (int64, error) {
	rev, err := s.commit(ctx, []condition{ownedBy(r.App, host)}, clientv3.OpPut(journalKey(r.App), encode(fromRollout(r))))
	return rev, wrap("save rollout of "+string(r.App), err)
}

// errCancelled keeps a rollout from its shift.
func errCancelled(app root.AppName) error {
	return &root.Error{Kind: root.Conflict, Code: root.CodeReleaseCancelled, Message: fmt.Sprintf("the rollout of %s was cancelled", app)}
}

// ShiftRollout makes the rollout's release the one that serves: f changes the
// app's record, together with the journal. Kind Conflict, code
// "release_cancelled", when somebody asked for the end of it before.
func (s *Store) ShiftRollout(ctx context.Context, host root.HostID, r root.Rollout, f func(*root.App)) (int64, error) {
	return attempt(ctx, "shift rollout of "+string(r.App), func() (int64, error) {
		app, rev, err := s.app(ctx, r.App)
		if err != nil {
			return 0, err
		}
		f(&app)
		return s.commit(ctx, []condition{absent(cancelKey(r.App)).or(errCancelled(r.App)), unchanged(appKey(r.App), rev), ownedBy(r.App, host)},
			clientv3.OpPut(appKey(r.App), encode(fromApp(app))), clientv3.OpPut(journalKey(r.App), encode(fromRollout(r))))
	})
}

// FinishRollout ends a rollout: the release's progress is final, last is its
// last event, and nothing of the journal is left. With webhook the release is
// among those of Webhooks from then on.
func (s *Store) FinishRollout(ctx context.Context, host root.HostID, r root.Rollout, p root.Progress, last root.ReleaseEvent, webhook bool) (int64, error) {
	ops := []clientv3.Op{
		clientv3.OpPut(releaseEventsUnder(r.App, r.Version)+last.ID, encode(fromReleaseEvent(last))),
		clientv3.OpPut(progressKey(r.App, r.Version), encode(fromProgress(p))),
		clientv3.OpDelete(rolloutUnder(r.App), clientv3.WithPrefix()),
	}
	if webhook {
		ops = append(ops, clientv3.OpPut(webhookKey(r.App, r.Version), string(host)))
	}
	rev, err := s.commit(ctx, []condition{ownedBy(r.App, host)}, ops...)
	return rev, wrap("finish rollout of "+string(r.App), err)
}

// Webhook names a release that has ended, whose webhook is to be told.
type Webhook struct {
	App     root.AppName
	Version int
}

// Webhooks returns the webhooks that host has to tell.
func (s *Store) Webhooks(ctx context.Context, host root.HostID) ([]Webhook, error) {
	var all []Webhook
	err := s.list(ctx, webhooksPrefix, func(kv *mvccpb.KeyValue) error {
		app, number, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), webhooksPrefix), "/")
		version, err := strconv.Atoi(number)
		if err != nil {
			s.unreadable(kv, err)
			return nil
		}
		if string(kv.Value) == string(host) {
			all = append(all, Webhook{root.AppName(app), version})
		}
		return nil
	})
	return all, err
}

// WebhookDone ends what FinishRollout left to do; e, with an id, becomes an
// event of the release where there still is one.
func (s *Store) WebhookDone(ctx context.Context, h Webhook, e root.ReleaseEvent) error {
	what := fmt.Sprintf("end the webhook of release v%d of %s", h.Version, h.App)
	done := []clientv3.Op{clientv3.OpDelete(webhookKey(h.App, h.Version))}
	_, err := s.client.Txn(ctx).If(present(releaseKey(h.App, h.Version)).cmp).
		Then(append(slices.Clone(done), clientv3.OpPut(releaseEventsUnder(h.App, h.Version)+e.ID, encode(fromReleaseEvent(e))))...).Else(done...).Commit()
	return wrap(what, err)
}

// CancelRollout asks for the end of a rollout, for whoever carries it out; it
// stays asked for. NotFound when that version is not under way; Precondition,
// code "release_serves", when it serves already: it is too late then.
func (s *Store) CancelRollout(ctx context.Context, app root.AppName, version int, who string) error {
	_, err := attempt(ctx, "cancel rollout of "+string(app), func() (int64, error) {
		r, rev, err := s.rollout(ctx, app)
		if err != nil {
			return 0, err
		}
		if r == nil || r.Version != version {
			return 0, root.Errorf(root.NotFound, "release v%d of %s is not being rolled out", version, app)
		}
		if r.Shifted {
			return 0, ServesAlready(app, version)
		}
		return s.commit(ctx, []condition{unchanged(journalKey(app), rev)}, clientv3.OpPut(cancelKey(app), who))
	})
	return err
}

// ServesAlready is the answer to whoever cancels a release too late.
func ServesAlready(app root.AppName, version int) error {
	return &root.Error{Kind: root.Precondition, Code: root.CodeReleaseServes,
		Message: fmt.Sprintf("release v%d of %s serves already, it is too late to cancel it: \"roost rollback\" goes back to the release before", version, app)}
}

// Cancelled returns who asked for the end of the app's rollout, "" nobody.
func (s *Store) Cancelled(ctx context.Context, app root.AppName) (string, error) {
	kv, err := s.get(ctx, cancelKey(app))
	if err != nil || kv == nil {
		return "", wrap("read rollout of "+string(app), err)
	}
	return string(kv.Value), nil
}

// RememberMachine keeps what a machine was before a rollout first touched it:
// its record then, status included. A second call changes nothing.
func (s *Store) RememberMachine(ctx context.Context, host root.HostID, m *root.Machine) error {
	key := formersUnder(m.App) + string(m.ID)
	rec := encode(graveRecord{graveVersion, fromMachine(*m, nil), fromStatus(m.Status)})
	_, err := s.commit(ctx, []condition{absent(key).or(errKnown), ownedBy(m.App, host)}, clientv3.OpPut(key, rec))
	if err == errKnown { //nolint:errorlint // our own value, not wrapped
		return nil
	}
	return wrap("remember machine "+string(m.ID), err)
}

var errKnown = root.Errorf(root.Conflict, "known already")

// RememberedMachines returns what RememberMachine kept for the app's rollout.
func (s *Store) RememberedMachines(ctx context.Context, app root.AppName) (map[root.MachineID]*root.Machine, error) {
	all := map[root.MachineID]*root.Machine{}
	err := s.list(ctx, formersUnder(app), func(kv *mvccpb.KeyValue) error {
		var r graveRecord
		if err := decode(kv.Value, graveVersion, &r); err != nil {
			return err
		}
		m := r.root()
		m.Status.State = root.State(r.Status.State) // it lived
		all[m.ID] = m
		return nil
	})
	return all, err
}

// AddReleaseEvent appends to the history of a release; its id orders it.
func (s *Store) AddReleaseEvent(ctx context.Context, app root.AppName, version int, e root.ReleaseEvent) error {
	_, err := s.commit(ctx, []condition{present(releaseKey(app, version)).or(root.Errorf(root.NotFound, "app %s has no release v%d", app, version))},
		clientv3.OpPut(releaseEventsUnder(app, version)+e.ID, encode(fromReleaseEvent(e))))
	return wrap(fmt.Sprintf("add event to release v%d of %s", version, app), err)
}

// ReleaseEvents calls f with each event of a release behind the id after, in
// order; with follow also with those to come, until ctx ends or f returns an
// error, which it returns.
func (s *Store) ReleaseEvents(ctx context.Context, app root.AppName, version int, after string, follow bool, f func(root.ReleaseEvent) error) error {
	what := fmt.Sprintf("events of release v%d of %s", version, app)
	under := releaseEventsUnder(app, version)
	from := under
	if after != "" {
		from = under + after + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(under)))
	if err != nil {
		return wrap(what, err)
	}
	give := func(kv *mvccpb.KeyValue) error {
		var r releaseEventRecord
		if err := decode(kv.Value, releaseEventVersion, &r); err != nil {
			s.unreadable(kv, err)
			return nil
		}
		return f(r.root())
	}
	for _, kv := range resp.Kvs {
		if err := give(kv); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch on the server
	for w := range s.client.Watch(clientv3.WithRequireLeader(ctx), under, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)) {
		if err := w.Err(); err != nil {
			return wrap(what, err)
		}
		for _, e := range w.Events {
			if e.Type == clientv3.EventTypeDelete {
				return root.Errorf(root.NotFound, "release v%d of %s was removed", version, app)
			}
			if err := give(e.Kv); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return root.Errorf(root.Unavailable, "%s: the watch ended", what)
}
