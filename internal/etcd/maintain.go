package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	root "github.com/roost-run/roost"
)

const (
	// maintainEvery is how often the member looks after itself.
	maintainEvery = time.Minute
	// History is kept for keepFor, so that a watch may be interrupted that
	// long and go on, but never less than keepMin revisions nor more than
	// keepMax.
	keepFor = 10 * time.Minute
	keepMin = 1000
	keepMax = 50_000
	// The backend is defragmented when more than half of it and at least
	// defragmentMin is free, in a minute with at most quietWrites writes: it
	// stops the member for as long as copying the rest takes.
	defragmentMin = 32 << 20
	quietWrites   = 20
	// slowFsync is where a disk begins to be felt in every call.
	slowFsync = 50 * time.Millisecond
	// operationTimeout bounds one step of maintenance.
	operationTimeout = 30 * time.Second
	// healthTimeout is when a member that does not answer counts as ill.
	healthTimeout = 2 * time.Second
)

// mark is a revision and when it was the newest.
type mark struct {
	at       time.Time
	revision int64
}

// maintain runs until ctx ends.
func (m *Member) maintain(ctx context.Context) {
	t := time.NewTicker(maintainEvery)
	defer t.Stop()
	var marks []mark
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			var err error
			if marks, err = m.maintainOnce(ctx, now, marks); err != nil && ctx.Err() == nil {
				m.log.Warn("state maintenance", "err", err)
			}
		}
	}
}

func (m *Member) maintainOnce(ctx context.Context, now time.Time, marks []mark) ([]mark, error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if d := m.measureFsync(); d > slowFsync {
		m.log.Warn("slow disk under the state: every change waits for it", "took", d)
	}
	status, err := m.client.Status(ctx, m.endpoint())
	if err != nil {
		return marks, fmt.Errorf("status: %w", err)
	}
	revision := status.Header.Revision
	written := int64(0)
	if len(marks) > 0 {
		written = revision - marks[len(marks)-1].revision
	}
	marks = append(marks, mark{now, revision})
	target, marks := compactTo(marks, now)
	if target > 0 {
		if err := m.Compact(ctx, target); err != nil {
			return marks, err
		}
	}
	if hasNoSpace(status.Errors) {
		return marks, m.Recover(ctx)
	}
	if free := status.DbSize - status.DbSizeInUse; free > defragmentMin && free > status.DbSize/2 && written <= quietWrites {
		return marks, m.Defragment(ctx)
	}
	return marks, nil
}

// compactTo returns the revision up to which history may go, 0 for none, and
// the marks still needed.
func compactTo(marks []mark, now time.Time) (int64, []mark) {
	newest := marks[len(marks)-1].revision
	target, old := newest-keepMax, 0
	for i, k := range marks {
		if now.Sub(k.at) >= keepFor {
			target, old = max(target, k.revision), i
		}
	}
	return max(0, min(target, newest-keepMin)), marks[old:]
}

// Compact forgets history up to revision and returns when its space is free
// for new writes; asking again is no error.
func (m *Member) Compact(ctx context.Context, revision int64) error {
	if _, err := m.client.Compact(ctx, revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact to revision %d: %w", revision, err)
	}
	return nil
}

// Defragment gives the space that compaction freed back to the file system.
// Every call waits meanwhile.
func (m *Member) Defragment(ctx context.Context) error {
	start := time.Now()
	if _, err := m.client.Defragment(ctx, m.endpoint()); err != nil {
		return fmt.Errorf("defragment: %w", err)
	}
	m.log.Info("state defragmented", "took", time.Since(start))
	return nil
}

// Recover takes the member out of the alarm that a full quota raises, in
// which it refuses writes: it forgets all history, gives the space back, and
// ends the alarm if that was enough; else the error has kind Exhausted.
func (m *Member) Recover(ctx context.Context) error {
	status, err := m.client.Status(ctx, m.endpoint())
	if err != nil {
		return fmt.Errorf("recover space: %w", err)
	}
	if err := m.Compact(ctx, status.Header.Revision); err != nil {
		return err
	}
	if err := m.Defragment(ctx); err != nil {
		return err
	}
	if status, err = m.client.Status(ctx, m.endpoint()); err != nil {
		return fmt.Errorf("recover space: %w", err)
	}
	if status.DbSize >= int64(m.o.Quota) {
		return root.Errorf(root.Exhausted, "the state has reached its limit of %s and accepts no changes: delete apps, machines or tokens that are not needed", m.o.Quota)
	}
	alarms, err := m.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("recover space: %w", err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != etcdserverpb.AlarmType_NOSPACE {
			continue
		}
		if _, err := m.client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: a.MemberID, Alarm: a.Alarm}); err != nil {
			return fmt.Errorf("end alarm: %w", err)
		}
	}
	m.log.Info("state has space again")
	return nil
}

// Health is how the member is.
type Health struct {
	Revision int64
	Size     root.Bytes    // of the backend's file
	InUse    root.Bytes    // of it, what is not free
	Quota    root.Bytes    // at which writes are refused
	Fsync    time.Duration // see FsyncTime
	Slow     bool          // the disk is slow enough to be felt
	Problems []string      // alarms and errors, for people; empty when all is well
}

// Health asks the member. An error means that it does not answer.
func (m *Member) Health(ctx context.Context) (Health, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, healthTimeout, fmt.Errorf("no answer within %s", healthTimeout))
	defer cancel()
	s, err := m.client.Status(ctx, m.endpoint())
	if err != nil {
		return Health{}, &root.Error{Kind: root.Unavailable, Message: "the control state does not answer", Err: err}
	}
	d := m.FsyncTime()
	h := Health{
		Revision: s.Header.Revision, Size: root.Bytes(s.DbSize), InUse: root.Bytes(s.DbSizeInUse), Quota: m.o.Quota,
		Fsync: d, Slow: d > slowFsync, Problems: s.Errors,
	}
	if h.Slow {
		h.Problems = append(h.Problems, fmt.Sprintf("the disk needs %s to store a change: use a faster one, or look for what else writes to it", d.Round(time.Millisecond)))
	}
	return h, nil
}

// FsyncTime is what a durable write to the log took on average, in the last
// minute with writes.
func (m *Member) FsyncTime() time.Duration { return time.Duration(m.fsync.Load()) }

// fsyncCounter is etcd's own account of its log, at one time.
type fsyncCounter struct {
	count uint64
	sum   float64 // seconds
}

// fsyncMetric is where etcd counts the syncs of its log.
const fsyncMetric = "etcd_disk_wal_fsync_duration_seconds"

func (m *Member) measureFsync() time.Duration {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		return m.FsyncTime()
	}
	for _, f := range families {
		if f.GetName() != fsyncMetric || len(f.GetMetric()) == 0 {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		now := fsyncCounter{h.GetSampleCount(), h.GetSampleSum()}
		if n := now.count - m.fsyncSeen.count; n > 0 {
			m.fsync.Store(int64((now.sum - m.fsyncSeen.sum) / float64(n) * float64(time.Second)))
		}
		m.fsyncSeen = now
	}
	return m.FsyncTime()
}

func (m *Member) endpoint() string { return m.client.Endpoints()[0] }

// hasNoSpace reads the alarm out of the status, which has it as text only;
// asking for the list of alarms would cost a write each time.
func hasNoSpace(problems []string) bool {
	return slices.ContainsFunc(problems, func(p string) bool {
		return strings.Contains(p, etcdserverpb.AlarmType_NOSPACE.String())
	})
}
