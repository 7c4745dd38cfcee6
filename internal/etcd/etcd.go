package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

const (
	// tick is the heartbeat. Idle, a member uses 0.3 % of a core with 200 ms,
	// 0.4 % with 100 ms, and 1.4 % with the 10 ms that fast elections take.
	tick = 200 * time.Millisecond
	// election is the time without leader after which a member stands; a lone
	// voter waits a part of it at each start. Five ticks are etcd's minimum.
	election = 5 * tick
	// flush is how often the backend's file follows the log, which alone must
	// be durable; etcd's own 100 ms cost 0.1 % of an idle core.
	flush = time.Second
	// standEvery is the pause between calls to a lone voter to stand.
	standEvery = 10 * time.Millisecond
	// quietLooks is how many looks have to find the log replayed first.
	quietLooks = 3
	// openTimeout bounds the start: replaying the log of a large cluster on a
	// slow disk takes seconds, a minute means that something is broken.
	openTimeout = time.Minute
	// closeTimeout bounds a clean stop.
	closeTimeout = 10 * time.Second

	// A snapshot of the raft log every 5,000 writes, and few entries kept after
	// it, bound memory and the time of the next start.
	snapshotCount  = 5000
	catchUpEntries = 500
	// walSegment is the size of one file of the log, allocated in advance;
	// etcd's default of 64 MB is most of a small data directory.
	walSegment = 16 << 20
	// defaultQuota is the size at which the backend refuses writes.
	defaultQuota = root.GiB
	// maxRequest bounds one transaction: the largest is a machine config with files.
	maxRequest = 8 << 20

	memberName = "roost"
	// dataDir is etcd's own directory inside ours.
	dataDir = "etcd"
)

// Options say where a member lives.
type Options struct {
	Dir    string     // durable data
	Socket string     // directory of the unix socket; made with mode 0700
	Quota  root.Bytes // size at which changes are refused; 0: 1 GB
	Log    *slog.Logger
}

// Member is a running member with a client. It is safe for concurrent use.
type Member struct {
	o      Options
	log    *slog.Logger
	server *embed.Etcd
	client *clientv3.Client
	lock   *os.File
	zap    *zap.Logger
	// closing quiets etcd's log.
	closing atomic.Bool

	stop context.CancelFunc
	done chan struct{} // closed when the maintenance goroutine has returned

	fsync     atomic.Int64 // nanoseconds, see FsyncTime
	fsyncSeen fsyncCounter // owned by the maintenance goroutine after Open

	closeOnce sync.Once
	closeErr  error
}

// tuneOnce sets etcd's package variables before any member starts.
var tuneOnce sync.Once

// Open starts the member on o.Dir, creating the directory at the first start,
// and returns when it serves. A directory that another process holds gives
// kind Conflict; one that cannot be read, the cause with what to do.
func Open(ctx context.Context, o Options) (_ *Member, err error) {
	tuneOnce.Do(func() { wal.SegmentSizeBytes, watchResyncPeriod = walSegment, resync })
	if o.Quota == 0 {
		o.Quota = defaultQuota
	}
	m := &Member{o: o, log: o.Log, done: make(chan struct{})}
	m.zap = zap.New(&slogCore{log: m.log, closing: &m.closing})
	defer func() {
		if err != nil {
			close(m.done)
			err = errors.Join(err, m.Close())
		}
	}()
	for _, dir := range []string{o.Dir, o.Socket} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open state directory: %w", err)
		}
	}
	if m.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	if m.server, err = embed.StartEtcd(m.config()); err != nil {
		return nil, &root.Error{Kind: root.Unavailable, Message: "the state in " + o.Dir + " cannot be opened; keep the directory and see the log; if its files are damaged, put back a copy of it", Err: err}
	}
	wait, cancel := context.WithTimeoutCause(ctx, openTimeout, fmt.Errorf("etcd did not become ready within %s", openTimeout))
	defer cancel()
	if err := m.ready(wait); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	if m.client, err = m.connect(); err != nil {
		return nil, err
	}
	if _, err := m.client.Get(wait, "\x00", clientv3.WithCountOnly()); err != nil {
		return nil, fmt.Errorf("start etcd: first read: %w", err)
	}
	m.measureFsync()
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop = stop
	go func() {
		defer close(m.done)
		m.maintain(run)
	}()
	return m, nil
}

// ready waits until the member leads and serves. Alone it need not wait for
// anybody's silence: it is told to stand for election at once.
func (m *Member) ready(ctx context.Context) error {
	s := m.server.Server
	stand := time.NewTicker(standEvery)
	defer stand.Stop()
	replayed := 0 // looks in a row that found the log replayed
	for {
		select {
		case <-s.ReadyNotify():
			return nil
		case err := <-m.server.Err():
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-stand.C:
		}
		if s.Leader() != 0 || len(s.Cluster().Members()) != 1 {
			continue
		}
		// A member that stands while it replays its log reads entries that the
		// replay has compacted already, which etcd answers by a panic.
		if committed := s.CommittedIndex(); committed == 0 || s.AppliedIndex() < committed {
			replayed = 0
			continue
		}
		if replayed++; replayed < quietLooks {
			continue
		}
		id := uint64(s.MemberID())
		kind := raftpb.MsgTimeoutNow
		// Refused until the log is replayed; then asked again.
		_ = s.Process(ctx, &raftpb.Message{Type: &kind, To: &id, From: &id})
	}
}

func (m *Member) config() *embed.Config {
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = filepath.Join(m.o.Dir, dataDir)
	c.TickMs = uint(tick.Milliseconds())
	c.ElectionMs = uint(election.Milliseconds())
	c.SnapshotCount = snapshotCount
	c.SnapshotCatchUpEntries = catchUpEntries
	c.MaxSnapFiles = 2
	c.MaxWalFiles = 2
	c.QuotaBackendBytes = int64(m.o.Quota)
	c.MaxRequestBytes = maxRequest
	c.BackendBatchInterval = flush
	c.EnableGRPCGateway = false
	c.StrictReconfigCheck = true

	// A lone voter has no peers: it listens for none, and its address is only
	// a name, which must not change when directories move.
	peer := url.URL{Scheme: "unix", Host: memberName}
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{peer}
	c.InitialCluster = memberName + "=" + peer.String()
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: m.socket()}}
	c.AdvertiseClientUrls = c.ListenClientUrls

	c.LogLevel = "warn"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(m.zap)
	return c
}

func (m *Member) socket() string { return filepath.Join(m.o.Socket, "etcd.sock") }

func (m *Member) connect() (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:          []string{"unix://" + m.socket()},
		Logger:             m.zap,
		MaxCallSendMsgSize: maxRequest + 1<<20,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return c, nil
}

// Client returns the member's client; it lives as long as the member.
func (m *Member) Client() *clientv3.Client { return m.client }

// Stopped is closed when the member has stopped by itself, which nothing
// mends but a new process.
func (m *Member) Stopped() <-chan struct{} { return m.server.Server.StopNotify() }

// Close stops the member after what it has accepted is on disk.
func (m *Member) Close() error {
	m.closeOnce.Do(func() {
		m.closing.Store(true)
		if m.stop != nil {
			m.stop()
		}
		<-m.done
		if m.client != nil {
			if err := m.client.Close(); !errors.Is(err, context.Canceled) {
				m.closeErr = err
			}
		}
		if m.server != nil {
			m.server.Close()
			select {
			case <-m.server.Server.StopNotify():
			case <-time.After(closeTimeout):
				m.closeErr = errors.Join(m.closeErr, fmt.Errorf("etcd did not stop within %s", closeTimeout))
			}
		}
		if m.lock != nil {
			m.closeErr = errors.Join(m.closeErr, m.lock.Close())
		}
	})
	return m.closeErr
}

// lockDir takes the directory for this process. The lock goes with the
// process, so a crash leaves none.
func lockDir(dir string) (*os.File, error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = root.Errorf(root.Conflict, "the state in %s is in use by another roost process; stop that one first, or choose another data directory", dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
